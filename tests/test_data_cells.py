"""Networks over cells that are data against references written by hand: outputs, states and all gradients."""

from __future__ import annotations

from typing import Any

import data_cells
import numpy as np
import pytest
import reference
from support import (
    DTYPES,
    assert_same_again,
    assert_streams,
    bare,
    layer_params,
    numeric_gradient,
    random_lengths,
    states_of,
)
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

import fusedrnn as fr

CELLS = data_cells.CELLS


def random_network(name: str, sizes: tuple[int, int, int], dtype: str = "float64", **options: Any) -> Any:
    """A network with random parameters, those of the units too."""
    module = CELLS[name].make(*sizes, dtype=dtype, init=None, **options)
    rng = np.random.default_rng([*sizes, 7])
    # A rectified state that grows from step to step has errors that do, too.
    scale = 0.3 if name == "ligru" else 0.6
    module.flat_parameters[...] = rng.normal(size=module.flat_parameters.size) * scale
    for each, array in module.parameters.items():
        if each.startswith("beta"):
            array[...] = rng.uniform(-0.2, 1.2, array.shape)  # beyond the limits as well
    return module


OPTIONS: dict[str, dict[str, bool]] = {
    "plain": {},
    "everything": {"bidirectional": True, "lengths": True, "resets": True, "reset_state": True},
    "no_bias": {"bias": False, "resets": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_against_the_reference(name: str, dtype: str, options: dict[str, bool]) -> None:
    compare(name, dtype, options)


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["everything"]], ids=["plain", "everything"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("peephole", "float64"), ("peephole", "float32"), ("slstm", "float64"), ("lif_recurrent", "float64")],
)
def test_projections(name: str, dtype: str, options: dict[str, bool]) -> None:
    """h is a projection of all units; outputs, gradients and those computed again."""
    compare(name, dtype, options, proj_size=11)


def compare(name: str, dtype: str, options: dict[str, bool], proj_size: int = 0) -> None:
    given: dict[str, Any] = {key: options[key] for key in ("bidirectional", "bias") if key in options}
    if proj_size:
        given["proj_size"] = proj_size
    module = random_network(name, (3, 18, 2), dtype, **given)
    steps, batch, rows = 6, 5, 2 * (1 + module.bidirectional)
    rng = np.random.default_rng(3)
    width = (proj_size or 18) * (1 + module.bidirectional)
    x, dy = (rng.normal(size=(steps, batch, size)).astype(dtype) for size in (3, width))

    def random_states() -> tuple[Any, ...]:
        widths = CELLS[name].reference.widths(18, proj_size)
        return tuple(rng.normal(size=(rows, batch, each)).astype(dtype) for each in widths)

    state, dstate, reset_state = random_states(), random_states(), random_states()
    call: dict[str, Any] = {"state": state}
    if "lengths" in options:
        call["lengths"] = random_lengths(rng, steps, batch)
    if "resets" in options:
        call["resets"] = rng.random((steps, batch)) < 0.3
    if "reset_state" in options:
        call["reset_state"] = reset_state
    want_y, want_state, tapes = reference.stack_forward(name, x, layer_params(module), **call)
    want_dx, want_dstate, want_grads = reference.stack_backward(tapes, dy, dstate)

    call = {key: bare(value) for key, value in call.items()}
    y, final, tape = module.forward(x, **call)
    assert np.array_equal(module(x, **call)[0], y)
    assert_close(y, want_y, "output", "y")
    for got, want in zip(states_of(final), want_state, strict=True):
        assert_close(got, want, "state", "state")
    dx, dstart = module.backward(tape, dy, bare(dstate))
    assert_close(dx, want_dx, "gradient", "dx")
    for got, want in zip(states_of(dstart), want_dstate, strict=True):
        assert_close(got, want, "gradient", "dstate")
    names = CELLS[name].reference.param_names
    for got_layer, want_layer in zip(layer_params(module, module.grads), want_grads, strict=True):
        for got_params, want_params in zip(got_layer, want_layer, strict=True):
            for each, got, want in zip(names, got_params, want_params, strict=True):
                if got is not None:
                    assert_close(got, want, "gradient", each)
    if proj_size:
        grads = module.flat_grads.copy()
        module.zero_grad()
        module.recompute = True
        again = module.backward(module.forward(x, **call)[2], dy, bare(dstate))[0]
        assert np.array_equal(again, dx) and np.array_equal(module.flat_grads, grads)


@pytest.mark.once
@pytest.mark.parametrize("name", [name for name in CELLS if CELLS[name].smooth])
def test_the_reference(name: str) -> None:
    cell = CELLS[name].reference
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, cell.gates * 4))
    if not CELLS[name].hidden_product:
        b[...] = 0
    state, d_next = (tuple(rng.normal(size=(cell.states, 4))) for _ in range(2))
    units = tuple(rng.normal(size=(len(cell.per_unit), 1, 4)))

    def value() -> float:
        after = cell.step(a, b, state, *units)
        return float(sum(np.sum(d * s) for d, s in zip(d_next, after, strict=True)))

    da, db, dstate, *dunits = cell.pull(a, b, state, d_next, *units)
    pairs = [(a, da), (b, db), *zip(state, dstate, strict=True), *zip(units, dunits, strict=True)]
    got = np.concatenate([gradient.reshape(-1) for _, gradient in pairs])
    want = np.concatenate([numeric_gradient(value, at).reshape(-1) for at, _ in pairs])
    assert relative_error(got, want) <= CENTRAL_DIFFERENCES


@pytest.mark.parametrize("name", CELLS)
def test_recompute_streams_and_threads(name: str) -> None:
    """Recomputed gradients, the steps of a stream and any number of threads have the same bits."""
    module = random_network(name, (4, 33, 2), "float32")
    rng = np.random.default_rng(5)
    x = rng.normal(size=(9, 8, 4)).astype("float32")
    y, state, tape = module.forward(x)
    dx, dstart = module.backward(tape, y.copy(), state)
    want = (dx, dstart, module.flat_grads.copy())
    module.recompute = True
    assert_same_again(module, x, y, state, want)
    assert_streams(module, x, y, state)


@pytest.mark.once
def test_initial_values() -> None:
    lstm = fr.LSTM(3, 4, peephole=True, seed=0)
    assert list(lstm.parameters)[4:] == ["peephole_i_l0", "peephole_f_l0", "peephole_o_l0"]
    assert not any(lstm.parameters[f"peephole_{gate}_l0"].any() for gate in "ifo")
    assert lstm.parameters["bias_ih_l0"].reshape(4, 4).tolist() == [[0] * 4, [1] * 4, [0] * 4, [0] * 4]
    coupled = fr.LSTM(3, 4, coupled_gates=True, forget_bias=2.0, seed=0)
    assert coupled.parameters["bias_ih_l0"].reshape(3, 4).tolist() == [[2] * 4, [0] * 4, [0] * 4]
    for init in ("default", "torch"):
        u = fr.IndRNN(3, 500, seed=0, init=init).parameters["u_l0"]
        assert 0 <= u.min() < 0.02 and 0.98 < u.max() <= 1 and 0.45 < u.mean() < 0.55
        assert fr.LIF(3, 4, beta=0.5, init=init).parameters["beta_l0"].tolist() == [0.5] * 4
    assert not fr.LIF(3, 4, init=None).flat_parameters.any()
    assert list(fr.LIF(3, 4, learn_beta=False).parameters) == ["weight_ih_l0", "bias_ih_l0"]
    # Their class and arguments say what the cell is: state_dicts have the weights alone.
    for module in (lstm, fr.MGU(3, 4), fr.LIF(3, 4)):
        assert list(module.state_dict()) == list(module.parameters)


@pytest.mark.once
def test_min_lstm_where_both_gates_underflow() -> None:
    net = fr.MinLSTM(1, 1, init=None)
    net.parameters["weight_ih_l0"][:] = [[-200], [-201], [3]]
    x = np.ones((1, 1, 1), np.float32)
    y, _, tape = net.forward(x, np.full((1, 1, 1), 5, np.float32))
    net.backward(tape, np.ones_like(y))
    share = 1 / (1 + np.exp(-1.0))
    assert abs(y.item() - (share * 5 + (1 - share) * 3)) < 1e-5
    assert np.isfinite(net.flat_grads).all()


ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "nonlinearity": (lambda: fr.IndRNN(3, 4, nonlinearity="gelu"), ValueError, "nonlinearity: expected"),
    "beta": (lambda: fr.LIF(3, 4, beta=1.5), ValueError, r"beta: expected a number in \[0.0, 1.0\], got 1.5"),
    "learn_beta": (lambda: fr.LIF(3, 4, learn_beta=None), TypeError, "learn_beta: expected a bool"),
    "threshold": (lambda: fr.LIF(3, 4, threshold="1"), TypeError, "threshold: expected a number"),
    "surrogate": (lambda: fr.LIF(3, 4, surrogate="boxcar"), ValueError, "surrogate: expected"),
    "surrogate kind": (
        lambda: fr.LIF(3, 4, surrogate=[]),
        TypeError,
        "surrogate: expected a string, got list",
    ),
    "cell_clip": (lambda: fr.LSTM(3, 4, cell_clip=-1.0), ValueError, "cell_clip: expected a number in"),
    "peephole": (lambda: fr.LSTM(3, 4, peephole=1), TypeError, "peephole: expected a bool, got 1"),
    "proj_size": (
        lambda: fr.MGU(3, 4, proj_size=2),
        ValueError,
        "proj_size: expected 0, since mgu works unit by unit on h or on what weight_hh multiplies",
    ),
    "proj_size without products": (
        lambda: fr.SRU(3, 4, proj_size=2),
        ValueError,
        "proj_size: expected 0, since sru has no weight_hh, got 2",
    ),
    "hidden_size": (lambda: fr.MGU(3, 0), ValueError, "hidden_size: expected an int >= 1, got 0"),
    "option": (lambda: fr.MGU(3, 4, beta=0.5), TypeError, "beta"),
}


@pytest.mark.once
@pytest.mark.parametrize("kind", ERRORS)
def test_errors(kind: str) -> None:
    call, error, message = ERRORS[kind]
    with pytest.raises(error, match=message):
        call()
