"""locked_dropout, residual, merge and learned_state, against a reference written by hand."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import masked_reference
import numpy as np
import pytest
from support import Array, make_module, num_threads, numeric_gradient, states_of
from test_masked_cells import noise_of, normal, random_call, random_state
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

import fusedrnn as fr

# What to make, and whether the state is given.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "locked": ({"locked_dropout": (0.3, 0.5)}, True),
    "locked_input": ({"locked_dropout": (0.3, 0.0), "num_layers": 2}, True),
    "locked_output": ({"locked_dropout": (0.0, 0.3), "num_layers": 2, "bidirectional": True}, True),
    "residual": ({"residual": True, "num_layers": 3}, True),
    "residual_both": ({"residual": True, "num_layers": 3, "bidirectional": True}, True),
    "sum": ({"merge": "sum", "bidirectional": True}, True),
    "mean": ({"merge": "mean", "bidirectional": True, "num_layers": 2}, True),
    "mul": ({"merge": "mul", "bidirectional": True, "num_layers": 2}, True),
    "dropout": ({"dropout": 0.3, "num_layers": 3, "locked_dropout": 0.2, "residual": True}, True),
    "dropout_mul": ({"dropout": 0.3, "num_layers": 2, "bidirectional": True, "merge": "mul"}, True),
    "learned": ({"learned_state": True, "num_layers": 2, "bidirectional": True}, False),
    "sizes": ({"hidden_size": [9, 5, 13]}, True),
    "sizes_alone": ({"hidden_size": (13, 5), "bidirectional": True}, False),
    "sizes_residual": (
        {
            "hidden_size": [5, 9, 9, 2],
            "residual": True,
            "bidirectional": True,
            "merge": "sum",
            "zoneout": 0.3,
        },
        True,
    ),
    "sizes_learned": (
        {"hidden_size": [5, 9], "learned_state": True, "recurrent_dropout": 0.4, "weight_dropout": 0.0},
        False,
    ),
    "learned_given": ({"learned_state": True}, True),
    "all": (
        {
            "learned_state": True,
            "merge": "mul",
            "residual": True,
            "locked_dropout": 0.4,
            "num_layers": 3,
            "bidirectional": True,
            "dropout": 0.3,
            "recurrent_dropout": 0.3,
            "zoneout": 0.2,
        },
        False,
    ),
}


def made(cell: str, case: str, dtype: str = "float64", **more: Any) -> Any:
    options = dict(CASES[case][0]) | more
    hidden = options.pop("hidden_size", 9)
    net = make_module(cell, 4, hidden, options.pop("num_layers", 1), dtype=dtype, **options)
    if net.learned_state:
        for name in ("h0", "c0")[: len(net._network.widths)]:
            net.parameters[name][...] = normal(*net.parameters[name].shape, seed=4)
    return net


def call_of(net: Any, case: str, kind: str) -> dict[str, Any]:
    call = random_call(net, kind)
    return call if CASES[case][1] else call | {"state": None}


@pytest.mark.parametrize(("kind", "dtype"), [("plain", "float64"), ("both", "float64"), ("both", "float32")])
@pytest.mark.parametrize(
    ("case", "training"), [*((case, True) for case in CASES), ("locked", False), ("all", False)]
)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_reference(cell: str, case: str, training: bool, kind: str, dtype: str) -> None:
    """Outputs, final states and all gradients; what is in the gradients stays, and the tape serves twice."""
    net = made(cell, case, dtype)
    net.train(training)
    call, noise = call_of(net, case, kind), noise_of(net)
    y, final, tape = net.forward(**call)
    dy, dfinal = normal(*y.shape, dtype=dtype), random_state(net, 5, 90)
    want = masked_reference.run(cell, net, noise, call, dy, dfinal)
    assert_close(y, want.y, "output")
    for part, other in zip(states_of(final), want.final, strict=True):
        assert_close(part, other, "state")
    for times in (1, 2):
        dx, dstate = net.backward(tape, dy, dfinal)
        assert_close(dx, want.dx, "gradient")
        for part, other in zip(states_of(dstate), want.dstate, strict=True):
            assert_close(part, other, "gradient")
        for name, grad in net.grads.items():
            assert_close(grad, times * want.grads[name], "gradient", name)


@pytest.mark.parametrize("case", list(CASES))
def test_numeric_gradients(case: str) -> None:
    """With the same masks again."""
    net = made("lstm", case)
    call, offset = call_of(net, case, "both"), net._noise.offset
    dfinal = random_state(net, 5, 90)

    def again() -> tuple[Array, Any, Any]:
        net._noise.offset = offset
        return net.forward(**call)  # type: ignore[no-any-return]

    dy = normal(*again()[0].shape)

    def loss() -> float:
        y, final, _ = again()
        ends = zip(states_of(dfinal), states_of(final), strict=True)
        return float(np.vdot(dy, y)) + sum(float(np.vdot(a, b)) for a, b in ends)

    dx, _ = net.backward(again()[2], dy, dfinal)
    some = [name for name in net.parameters if name in ("bias_hh_l0", "h0", "c0")]
    for at, grad in [(call["x"], dx), *((net.parameters[name], net.grads[name]) for name in some)]:
        numeric = numeric_gradient(loss, at)
        # A learned state beside a given one has no gradient: what differences leave of it is rounding.
        error = relative_error(grad, numeric) if grad.any() else np.abs(numeric).max()
        assert error < CENTRAL_DIFFERENCES


@pytest.mark.parametrize("case", ["all", "residual", "mean"])
def test_layouts_and_partial_gradients(case: str) -> None:
    """batch_first, one sequence alone, dstate alone, and without dx."""
    net, turned = made("gru", case), made("gru", case, batch_first=True)
    turned.load_state_dict(net.state_dict())
    x = normal(6, 5, 4)
    y, final, tape = net.forward(x)
    other, end, _ = turned.forward(x.swapaxes(0, 1))
    assert np.array_equal(y, other.swapaxes(0, 1))
    assert np.array_equal(final, end)
    dx, dstate = net.backward(tape, None, final)
    grads = {name: grad.copy() for name, grad in net.grads.items()}
    net.zero_grad()
    nothing, again = net.backward(tape, np.zeros_like(y), final, need_dx=False)
    assert nothing is None
    assert np.array_equal(dstate, again)
    for name, grad in net.grads.items():
        assert np.array_equal(grad, grads[name]), name
    single, alone, tape = net.eval().forward(x[:, 0])
    want, ends, _ = net.forward(x[:, :1])
    assert_close(single, want[:, 0], "output")
    assert_close(alone, ends[:, 0], "state")
    dx, dstate = net.backward(tape, np.ones_like(single), alone)
    assert dx.shape == (6, 4)
    assert dstate.shape == alone.shape


def test_lookups() -> None:
    """Rows of a table, masked for each sequence; the gradient is that of the table."""
    for size in (5, 100):
        net, table = made("lstm", "locked"), normal(size, 4)
        tokens, offset = np.random.default_rng(0).integers(0, size, (6, 5)), net._noise.offset
        y, _, tape = net.forward(fr.Lookup(table, tokens))
        net._noise.offset = offset
        want, _, other = net.forward(table[tokens])
        assert np.array_equal(y, want)
        dtable, _ = net.backward(tape, np.ones_like(y))
        dx, _ = net.backward(other, np.ones_like(y))
        summed = np.zeros_like(table)
        np.add.at(summed, tokens, dx)
        assert_close(dtable, summed, "gradient")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bits_do_not_depend_on_threads(dtype: str) -> None:
    found = []
    for threads in (1, 2, 3):
        for recompute in (False, True):
            net = make_module(
                "lstm",
                16,
                40,
                3,
                dtype=dtype,
                recompute=recompute,
                **{name: value for name, value in CASES["all"][0].items() if name != "num_layers"},
            )
            with num_threads(threads):
                y, final, tape = net.forward(normal(20, 17, 16, dtype=dtype))
                dx, _ = net.backward(tape, np.array(y), final)
            found.append([y, dx, *states_of(final), *net.grads.values()])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert np.array_equal(one, two)


def test_locked_masks_hold_for_all_steps() -> None:
    """Features of x and of y are dropped for a whole sequence, others scaled."""
    net = fr.RNN(64, 32, nonlinearity="relu", locked_dropout=(0.0, 0.25), seed=0)
    x = np.abs(normal(40, 8, 64, dtype="float32"))
    y, plain = net(x)[0], net.eval()(x)[0]
    lost = (y == 0).all(axis=0)
    assert 0.1 < lost.mean() < 0.4
    np.testing.assert_allclose(y, np.where(lost, 0, plain / 0.75), rtol=1e-6)
    assert np.array_equal(net(x)[0], plain)


def test_learned_state() -> None:
    """Calls, streams and windows start from it where no state is given."""
    net = made("lstm", "learned_given")
    x = normal(6, 3, 4)
    given = tuple(net.parameters[name].repeat(3, axis=1) for name in ("h0", "c0"))
    y, final = net(x)
    assert np.array_equal(net(x, given)[0], y)
    stream = net.stream(3)
    assert_close(np.stack([stream(step).copy() for step in x]), y, "output")
    stream.reset([1])
    for part, other, start in zip(stream.state, final, given, strict=True):
        assert np.array_equal(part[:, 1], start[:, 1])
        assert_close(part[:, 0], other[:, 0], "state")
    stream.reset()
    assert_close(stream(x[0]), y[0], "output")
    net.zero_grad()
    out, _, tape = fr.checkpoint(net, x, 2)
    tape.backward(np.ones_like(out))
    grads = {name: grad.copy() for name, grad in net.grads.items()}
    net.zero_grad()
    net.backward(net.forward(x)[2], np.ones_like(out))
    for name, grad in net.grads.items():
        assert_close(grads[name], grad, "gradient", name)
    net.requires_grad_(False)
    net.zero_grad()
    net.backward(net.forward(x)[2], np.ones_like(out))
    assert not any(grad.any() for grad in net.grads.values())


def test_learned_state_is_trained() -> None:
    """An optimiser finds the state that gives an output which x does not tell."""
    net = fr.GRU(1, 4, learned_state=True, seed=0)
    optimiser = fr.optim.Adam(net, lr=0.05)
    x, target = np.zeros((1, 2, 1), np.float32), np.float32(0.4)
    for _ in range(100):
        net.zero_grad()
        y, _, tape = net.forward(x)
        net.backward(tape, y - target)
        optimiser.step()
    assert np.abs(net(x)[0] - target).max() < 0.02


def test_sizes_of_layers() -> None:
    """States are as wide as the widest layer; streams and windows take them."""
    net = fr.LSTM(4, [5, 9, 3], seed=0, dtype="float64", zoneout=0.2).eval()
    assert (net.hidden_size, net.num_layers) == ((5, 9, 3), 3)
    assert net.parameters["weight_ih_l1"].shape == (36, 5)
    x = normal(6, 3, 4)
    y, (h, c) = net(x)
    assert y.shape == (6, 3, 3)
    assert h.shape == c.shape == (3, 3, 9)
    assert not h[0, :, 5:].any()
    assert h[0, :, :5].all()
    stream = net.stream(3)
    assert_close(np.stack([stream(step).copy() for step in x]), y, "output")
    for part, other in zip(stream.state, (h, c), strict=True):
        assert_close(part, other, "state")
    stream.state = (h, c)
    again, end = net(x, (h, c))
    assert_close(np.stack([stream(step).copy() for step in x]), again, "output")
    assert_close(stream.state[1], end[1], "state")
    out, _, tape = fr.checkpoint(net, x, 2)
    assert np.array_equal(out, y)
    dx, _ = tape.backward(np.ones_like(out))
    assert_close(dx, net.backward(net.forward(x)[2], np.ones_like(out))[0], "gradient")
    garbage = h.copy()
    garbage[0, :, 5:] = np.nan
    assert np.array_equal(net(x, (garbage, c))[0], again)
    assert fr.GRU(3, [4, 4]).hidden_size == 4
    assert fr.GRU(3, [4, 4]).num_layers == 2
    assert repr(fr.GRU(3, [4, 5])) == "GRU(3, (4, 5))"
    assert repr(fr.GRU(3, [4, 4])) == "GRU(3, 4, num_layers=2)"
    fr.GRU(3, [4, 5]).load_state_dict(fr.GRU(3, [4, 5], seed=1).state_dict())


def test_copies_and_repr() -> None:
    net = made("lstm", "all")
    x = normal(4, 2, 4)
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    y = net(x)[0]
    for twin in twins:
        assert np.array_equal(twin(x)[0], y)
    shown = repr(fr.GRU(3, 4, 2, bidirectional=True, merge="sum", residual=True, learned_state=True))
    assert shown == (
        "GRU(3, 4, num_layers=2, bidirectional=True, residual=True, merge='sum', learned_state=True)"
    )
    assert "locked_dropout=(0.5, 0.0)" in repr(fr.GRU(3, 4, locked_dropout=(0.5, 0.0)))


def test_arguments() -> None:
    for options, message in (
        ({"merge": "sum"}, "merge: expected 'concat' with bidirectional=False, got 'sum'"),
        (
            {"merge": "max", "bidirectional": True},
            "merge: expected 'concat', 'sum', 'mean' or 'mul', got 'max'",
        ),
        (
            {"residual": True},
            "residual: expected False without two layers of equal widths, .* got True with 4",
        ),
        ({"hidden_size": [4, 5], "residual": True}, "residual: expected False .* got True with 4, 5"),
        (
            {"hidden_size": [4, 5], "num_layers": 3},
            "hidden_size: expected a number, or one for each layer, got 2",
        ),
        ({"hidden_size": []}, "hidden_size: expected a number, or one for each layer, got 0"),
        ({"hidden_size": [4, 0]}, r"hidden_size\[1\]: expected"),
        ({"hidden_size": [4, 5], "proj_size": 2}, "proj_size: expected 0 with a hidden_size for each layer"),
        ({"locked_dropout": 1.5}, "locked_dropout: expected a number in"),
        ({"locked_dropout": (0.5, -1)}, r"locked_dropout\[1\]: expected a number in"),
        ({"locked_dropout": (0.5,)}, "locked_dropout: expected a number, or one for the input and one for y"),
    ):
        with pytest.raises(ValueError, match=message):
            fr.LSTM(3, **({"hidden_size": 4} | options))
    for name, value in (("merge", 1), ("residual", 1), ("learned_state", "h"), ("locked_dropout", "0.5")):
        with pytest.raises(TypeError, match=f"{name}: expected"):
            fr.LSTM(3, 4, 2, bidirectional=True, **{name: value})
    for name in ("merge", "residual", "learned_state", "locked_dropout"):
        with pytest.raises(AttributeError):
            setattr(fr.LSTM(3, 4), name, 0)
    net = fr.LSTM(3, 4, 2, residual=True)
    with pytest.raises(ValueError, match="stream: expected residual=False"):
        net.stream()
    for options in ({"residual": True}, {"merge": "sum", "bidirectional": True}, {"learned_state": True}):
        (name, _), *_ = options.items()
        with pytest.raises(ValueError, match=f"quantize: expected a network without {name}"):
            fr.LSTM(3, 4, 2, **options).quantize("int8")
    with pytest.raises(ValueError, match="quantize: expected a network without a hidden_size for each layer"):
        fr.LSTM(3, [4, 5]).quantize("int8")
    fr.LSTM(3, 4, locked_dropout=0.5).quantize("int8")
    with pytest.raises(RuntimeError, match="locked_dropout: expected 0 or evaluation mode"):
        fr.checkpoint(fr.LSTM(3, 4, locked_dropout=0.5), normal(4, 2, 3, dtype="float32"), 2)


def test_onnx_files_have_none_of_it(tmp_path: Any) -> None:
    """What ONNX cannot say is refused; masks of training alone are left out."""
    pytest.importorskip("onnx")
    for name, options in (
        ("zoneout", {"zoneout": 0.1}),
        ("merge", {"bidirectional": True, "merge": "sum"}),
        ("residual", {"num_layers": 2, "residual": True}),
        ("learned_state", {"learned_state": True}),
        ("a hidden_size for each layer", {"hidden_size": [4, 5]}),
    ):
        net = fr.GRU(3, **({"hidden_size": 4} | options))
        with pytest.raises(ValueError, match=f"{name}: expected a network without it"):
            fr.onnx.save(net, tmp_path / "net.onnx")
    fr.onnx.save(fr.GRU(3, 4, locked_dropout=0.1, recurrent_dropout=0.1), tmp_path / "net.onnx")
