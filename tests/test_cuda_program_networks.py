"""Networks over cells that are data on a GPU: masks, normalised rows, products within a step, options.

Masks are drawn by the reference's own Philox, rows are normalised by NumPy; the CPU's kernels stand beside.
"""

from __future__ import annotations

import copy
from typing import Any

import masked_reference
import numpy as np
import pytest
import row_cells
from cuda_support import converter, host, own_or
from support import make_module, states_of
from test_cuda_functional import MODES
from test_masked_cells import MADE, OPTIONS, noise_of, normal, random_call, random_state
from test_row_cells import CASES
from test_row_cells import Problem as RowProblem
from tolerances import assert_close, relative_error

import fusedrnn as fr


def moved(module: Any) -> Any:
    """The same network on the GPU, where it draws the same masks."""
    other = copy.deepcopy(module)
    other.load_random_state(module.random_state())
    return other.to("cuda")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["plain", "both"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_masks(cell: str, option: str, training: bool, kind: str, dtype: str, where: str) -> None:
    """Recurrent dropout and zoneout against a reference that draws them by itself."""
    options = {"bidirectional": True, "dtype": dtype, **OPTIONS[option]}
    net = make_module(cell, 4, 9, 2, **options)
    net.train(training)
    call, noise, convert = random_call(net, kind), noise_of(net), own_or(where, "own")
    dy, dfinal = normal(6, 5, 18, dtype=dtype), random_state(net, 5, 90)
    want = masked_reference.run(cell, net, noise, call, dy, dfinal)
    net.to("cuda")
    given = {name: value if name == "lengths" else convert(value) for name, value in call.items()}
    y, final, tape = net.forward(**given)
    dx, dstate = net.backward(tape, convert(dy), convert(dfinal))
    assert_close(host(y), want.y, "output")
    assert_close(host(dx), want.dx, "gradient")
    for name, got, expected in (("state", final, want.final), ("gradient", dstate, want.dstate)):
        for part, other in zip(states_of(got), expected, strict=True):
            assert_close(host(part), other, name)
    for name, grad in net.grads.items():
        assert_close(host(grad), want.grads[name], "gradient", name)


@pytest.mark.parametrize("case", [name for name in CASES if name != "many_rows"])
@pytest.mark.parametrize("name", row_cells.CELLS)
def test_rows(name: str, case: str, where: str) -> None:
    """Layer normalisation and products within a step: y of NumPy, gradients by differences."""
    problem, convert = RowProblem(name, *CASES[case]), own_or(where, "own")
    net = moved(problem.module)
    given = {key: value if key == "lengths" else convert(value) for key, value in problem.call.items()}
    y, final, tape = net.forward(convert(problem.x), **given)
    assert np.array_equal(host(net(convert(problem.x), **given)[0]), host(y))
    want_y, want_final = problem.reference()
    assert_close(host(y), want_y, "output", "y")
    for got, want in zip(states_of(final), want_final, strict=True):
        assert_close(host(got), want, "state", "state")
    dstate = tuple(problem.dstate) if len(problem.dstate) > 1 else problem.dstate[0]
    dx, dstart = net.backward(tape, convert(problem.dy), convert(dstate))
    pairs = [(problem.x, dx), *zip(problem.state, states_of(dstart), strict=True)]
    pairs += [(array, net.grads[each]) for each, array in problem.module.parameters.items()]
    found, wanted = [], []
    for array, gradient in pairs:
        direction = problem.rng.normal(size=array.shape)
        found.append((host(gradient) * direction).sum())
        wanted.append(problem.slope(array, direction))
    if name != "rnn_relu":  # whose slope may change within a step
        assert np.abs(np.subtract(found, wanted)).max() <= 1e-7 * (1 + np.abs(wanted).max())


def random_network(name: str, dtype: str, **options: Any) -> Any:
    """Of six units and three features, none of whose parameters is as it starts."""
    net = MADE[name](dtype=dtype, seed=1, **options)
    for value in net.parameters.values():
        value += 0.3 * normal(*value.shape, seed=7).astype(dtype)
    return net


def check_beside_the_cpu(net: Any, where: str) -> None:
    """All results and gradients; a call that comes again has its bits."""
    other, convert = moved(net), own_or(where, "own")
    x, lengths, resets = normal(5, 4, 3), [5, 0, 3, 4], normal(5, 4) > 0.7
    noise, bits = net.random_state(), []
    y, final, tape = net.forward(x, lengths=lengths, resets=resets)
    dx, dstate = net.backward(tape, y.copy(), final)
    for _ in range(2):
        other.load_random_state(noise)
        other.zero_grad()
        got_y, got_final, got_tape = other.forward(convert(x), lengths=lengths, resets=convert(resets))
        got_dx, got_dstate = other.backward(got_tape, convert(y.copy()), convert(final))
        bits.append([host(each) for each in (got_y, got_dx, other.flat_grads)])
    assert_close(bits[0][0], y, "output")
    assert_close(bits[0][1], dx, "gradient")
    for name, grad in net.grads.items():
        assert_close(host(other.grads[name]), grad, "gradient", name)
    for got, want in zip(states_of(got_final), states_of(final), strict=True):
        assert_close(host(got), want, "state")
    for got, want in zip(states_of(got_dstate), states_of(dstate), strict=True):
        assert_close(host(got), want, "gradient")
    for one, two in zip(*bits, strict=True):
        np.testing.assert_array_equal(one, two)
    other.load_random_state(noise)
    y_alone, _ = other(convert(x), lengths=lengths, resets=convert(resets))
    np.testing.assert_array_equal(host(y_alone), bits[0][0])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("option", ["none", *OPTIONS])
@pytest.mark.parametrize("name", MADE)
def test_networks(name: str, option: str, recompute: bool, where: str) -> None:
    """Two layers in both directions."""
    chosen = OPTIONS.get(option, {})
    if "recurrent_dropout" in chosen and name in ("indrnn", "sru", "min_gru"):
        pytest.skip("has no weight_hh")
    options = {"num_layers": 2, "bidirectional": True, "recompute": recompute, **chosen}
    check_beside_the_cpu(random_network(name, "float64", **options), where)


PROJECTED: dict[str, dict[str, Any]] = {
    "peephole": {},
    "coupled": {},
    "layer_norm_lstm": {},
    "zoneout of c": {"zoneout": (0, 0.4)},
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", PROJECTED)
def test_projections(name: str, recompute: bool, where: str) -> None:
    made = name if name in MADE else "peephole"
    options = {"num_layers": 2, "bidirectional": True, "recompute": recompute, "proj_size": 4}
    check_beside_the_cpu(random_network(made, "float64", **options, **PROJECTED[name]), where)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("option", ["none", "both"])
@pytest.mark.parametrize("name", ["peephole", "layer_norm_lstm", "layer_norm_gru", "reset_before"])
def test_networks_in_16_bits(name: str, option: str, dtype: str, where: str) -> None:
    """Beside the CPU's in float64, with the weights that the 16 bits have."""
    torch = pytest.importorskip("torch")
    storage, to_device = getattr(torch, dtype), converter("torch", "gpu" if where == "gpu" else "emulated")

    def rounded(value: Any) -> Any:
        return torch.tensor(value).to(storage).double().numpy()

    net = random_network(name, "float32", **OPTIONS.get(option, {}))
    wide = copy.deepcopy(net).astype("float64")
    for each, value in wide.parameters.items():
        value[...] = rounded(net.parameters[each])
    wide.load_random_state(net.random_state())
    x, dy = rounded(normal(6, 4, 3)), rounded(normal(6, 4, 6, seed=1))
    other = moved(net)
    y, final, tape = other.forward(to_device(x).to(storage))
    dx, _ = other.backward(tape, to_device(dy).to(storage))
    assert y.dtype == dx.dtype == states_of(final)[0].dtype == storage
    want, _, want_tape = wide.forward(x)
    want_dx, _ = wide.backward(want_tape, dy)
    forward, gradient = MODES[dtype]
    assert relative_error(host(y.float()), want) <= forward
    assert relative_error(host(dx.float()), want_dx) <= gradient
    for each, grad in wide.grads.items():
        assert relative_error(host(other.grads[each]), grad) <= gradient, each


REFUSED: dict[str, Any] = {
    "weight_dropout": lambda: fr.LSTM(3, 6, peephole=True, weight_dropout=0.3),
    "locked_dropout": lambda: fr.GRU(3, 6, reset_after=False, locked_dropout=0.3),
    "num_heads": lambda: fr.SLSTM(3, 6, num_heads=2),
    "batch_norm": lambda: fr.LiGRU(3, 6),
    "all_states": lambda: fr.LSTM(3, 6, layer_norm=True, all_states=True),
    "compute": lambda: fr.LSTM(3, 6, peephole=True, compute="bf16"),
    "stream": lambda: fr.MGU(3, 6),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_by_name(name: str, where: str) -> None:
    net = REFUSED[name]().to("cuda")
    x = own_or(where, "own")(normal(4, 2, 3, dtype="float32"))
    message = rf"^{name}: expected an? {type(net).__name__} on cpu, got one on cuda:0"
    with pytest.raises(RuntimeError, match=message):
        net.stream(2) if name == "stream" else net.forward(x)


OTHERS: dict[str, Any] = {"lif": fr.LIF, "min_lstm": fr.MinLSTM, "slstm": fr.SLSTM}


@pytest.mark.parametrize("name", OTHERS)
def test_other_networks(name: str, where: str) -> None:
    options = {"num_layers": 2, "bidirectional": True, "dtype": "float64", "seed": 1}
    check_beside_the_cpu(OTHERS[name](3, 6, **options), where)


def test_draws_are_checked(where: str) -> None:
    net = moved(fr.LSTM(3, 4, zoneout=0.5, seed=0))
    convert = own_or(where, "own")
    call = [net._key, convert(normal(2, 2, 3, dtype="float32")), net._plan.layers[0][0].weights]
    kernels = net._backend.kernels
    for draws, error in (((1,), ValueError), (7, TypeError), ((1, -1), ValueError), (("a", 0), TypeError)):
        with pytest.raises(error, match=r"draws|seed|offset"):
            kernels.forward(*call, draws=draws)
    with pytest.raises(ValueError, match=r"cell: expected one of lstm, .*got 'elman'"):
        kernels.forward("elman", *call[1:])
