"""The decoder with attention against one row and one step at a time in NumPy, and central differences."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import decoder_reference as reference
import numpy as np
import pytest
from support import num_threads, numeric_gradient

import fusedrnn as fr

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
# T, B, S, I, H, M, A; the memory of the third has few rows, whose part of the gates is made at once
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (4, 3, 5, 3, 7, 6, 9),
    (7, 3, 2, 5, 19, 20, 10),
    (6, 5, 9, 8, 17, 16, 8),
    (3, 37, 4, 5, 33, 3, 2),
]


def module(cell: str, shape: tuple[int, ...], dtype: str = "float64", **options: Any) -> fr.AttentionDecoder:
    _, _, _, i, h, m, a = shape
    decoder = fr.AttentionDecoder(cell, i, h, m, a, dtype=dtype, seed=0, **options)
    rng = np.random.default_rng([1, *shape])
    for name, array in decoder.parameters.items():
        decoder.parameters[name] = rng.normal(0, 0.4, array.shape)
    return decoder


def problem(cell: str, shape: tuple[int, ...], dtype: str = "float64", layers: int = 1) -> dict[str, Any]:
    """Arguments at random, lengths with a zero among them."""
    steps, batch, source, i, h, m, _ = shape
    rng = np.random.default_rng([2, *shape])
    memory_lengths, lengths = rng.integers(0, source + 1, batch), rng.integers(0, steps + 1, batch)
    memory_lengths[:2], lengths[:2] = [source, 0][: min(batch, 2)], [steps, steps][: min(batch, 2)]
    lengths[2:3] = 0
    states = tuple(rng.normal(size=(layers, batch, h)).astype(dtype) for _ in range(1 + (cell == "lstm")))
    return {
        "x": rng.normal(size=(steps, batch, i)).astype(dtype),
        "memory": rng.normal(size=(source, batch, m)).astype(dtype),
        "memory_lengths": memory_lengths,
        "lengths": lengths,
        "state": states if len(states) > 1 else states[0],
    }


def parts(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def expected(
    decoder: fr.AttentionDecoder, given: dict[str, Any], **changes: Any
) -> tuple[Any, Any, list[Any]]:
    wide = {name: array.astype(np.float64) for name, array in decoder.parameters.items()}
    changed = {**given, **changes}
    states = [part.astype(np.float64) for part in parts(changed["state"])]
    x, memory = changed["x"].astype(np.float64), changed["memory"].astype(np.float64)
    return reference.forward(decoder.cell, wide, x, memory, given["memory_lengths"], given["lengths"], states)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_forward(cell: str, shape: tuple[int, ...], dtype: str, tolerance: float) -> None:
    decoder, given = module(cell, shape, dtype), problem(cell, shape, dtype)
    y, alpha, state, tape = decoder.forward(**given)
    want_y, want_alpha, want_state = expected(decoder, given)
    np.testing.assert_allclose(y, want_y, atol=tolerance)
    np.testing.assert_allclose(alpha, want_alpha, atol=tolerance)
    for got, want in zip(parts(state), want_state, strict=True):
        assert got.dtype == np.dtype(dtype)
        np.testing.assert_allclose(got, want, atol=tolerance)
    masked = np.arange(alpha.shape[2])[None] >= given["memory_lengths"][:, None]
    assert not alpha[:, masked].any()
    past = np.arange(len(y))[:, None] >= given["lengths"]
    assert not y[past].any()
    assert not alpha[past].any()
    assert tape.nbytes > 0
    again = decoder(**given)
    for a, b in zip(again[:2], (y, alpha), strict=True):
        np.testing.assert_array_equal(a, b)


def check_gradients(decoder: fr.AttentionDecoder, given: dict[str, Any]) -> None:
    """All of them against central differences of the reference; and a second backward adds the same again."""
    y, alpha, state, tape = decoder.forward(**given)
    rng = np.random.default_rng(3)
    dy, dalpha = rng.normal(size=y.shape), rng.normal(size=alpha.shape)
    dstate = tuple(rng.normal(size=part.shape) for part in parts(state))

    def loss() -> float:
        got_y, got_alpha, got_state = expected(decoder, given)
        flows = sum((d * s).sum() for d, s in zip(dstate, got_state, strict=True))
        return float((got_y * dy).sum() + (got_alpha * dalpha).sum() + flows)

    flow = dstate if len(dstate) > 1 else dstate[0]
    dx, dmemory, dinitial = decoder.backward(tape, dy, dalpha, flow)
    got = {"x": dx, "memory": dmemory}
    for name, gradient in got.items():
        np.testing.assert_allclose(gradient, numeric_gradient(loss, given[name]), atol=1e-6, err_msg=name)
    for part, gradient in zip(parts(given["state"]), parts(dinitial), strict=True):
        np.testing.assert_allclose(gradient, numeric_gradient(loss, part), atol=1e-6)
    grads = {name: array.copy() for name, array in decoder.grads.items()}
    assert set(grads) == set(decoder.parameters)
    for name, gradient in grads.items():
        want = numeric_gradient(loss, decoder.parameters[name])
        np.testing.assert_allclose(gradient, want, atol=1e-6, err_msg=name)
    # Added to, and a tape serves again.
    again = decoder.backward(tape, dy, dalpha, flow, need_dx=False)
    assert again[0] is None
    np.testing.assert_array_equal(again[1], dmemory)
    for name, gradient in grads.items():
        np.testing.assert_allclose(decoder.grads[name], 2 * gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("cell", "bias"), [*((cell, True) for cell in CELLS), ("gru", False)])
def test_gradients(cell: str, bias: bool) -> None:
    for shape in ((3, 4, 4, 2, 3, 3, 2), (4, 1, 3, 2, 3, 9, 2)):
        check_gradients(module(cell, shape, bias=bias), problem(cell, shape))


# Keys and queries as they are, keys that saturate, and queries whose exponentials would overflow with them.
@pytest.mark.parametrize(("keys", "queries"), [(1, 1), (60, 1), (1, 30), (60, 60), (400, 400)])
@pytest.mark.parametrize("size", [1, 23, 70])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 1e-5)])
def test_exponentials_of_keys(dtype: str, tolerance: float, size: int, keys: float, queries: float) -> None:
    """Beside tanh, which a decoder with coverage takes: panels by four, two and one, and keys that cancel."""
    shape = (3, 3, 6, 2, 3, 3, size)
    given = problem("gru", shape, dtype)
    given["state"] = np.sign(given["state"])
    decoder, other = module("gru", shape, dtype), module("gru", shape, dtype, coverage=True)
    tolerance *= max(keys, queries)  # sums of large numbers are rounded
    own = decoder.parameters
    for name, factor in (("weight_memory", keys), ("weight_query", queries)):
        own[name] *= factor
    # The first row's keys are near to what takes its first query away.
    own["bias_memory"] = (
        0.3 - own["weight_query"] @ given["state"][0, 0] - own["weight_memory"] @ given["memory"][0, 0]
    )
    for name in own:
        other.parameters[name] = own[name]
    other.parameters["weight_coverage"] = 0
    if dtype == "float64" and keys * queries == 1 and size == 23:
        check_gradients(decoder, given)
        decoder.zero_grad()
    rng, results = np.random.default_rng(3), []
    flows = rng.normal(size=(3, 3, 3)).astype(dtype), rng.normal(size=(3, 3, 6)).astype(dtype)
    for each in (decoder, other):
        y, alpha, _, tape = each.forward(**given)
        backward = each.backward(tape, *flows)
        results.append({"y": y, "alpha": alpha, "dx": backward[0], "dmemory": backward[1], **each.grads})
    want_y, want_alpha, _ = expected(decoder, given)
    np.testing.assert_allclose(results[0]["y"], want_y, atol=tolerance)
    np.testing.assert_allclose(results[0]["alpha"], want_alpha, atol=tolerance)
    for name, array in results[0].items():
        bound = tolerance * max(1.0, np.abs(results[1][name]).max())
        np.testing.assert_allclose(array, results[1][name], atol=bound, rtol=0, err_msg=name)


@pytest.mark.parametrize(("batch", "memory_size"), [(3, 190), (37, 40)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_threads(dtype: str, batch: int, memory_size: int) -> None:
    """The same bits."""
    shape = (40, batch, 20, 33, 65, memory_size, 30)
    given, results = problem("lstm", shape, dtype), []
    for threads in (1, 2, 3):
        decoder = module("lstm", shape, dtype)
        with num_threads(threads):
            y, alpha, state, tape = decoder.forward(**given)
            backward = decoder.backward(tape, y, alpha, state)
        results.append([y, alpha, *state, *backward[:2], *backward[2], *decoder.grads.values()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.once
def test_torch() -> None:
    """The cell of torch.nn by its names, and the attention written out."""
    torch = pytest.importorskip("torch")
    shape = (6, 4, 7, 5, 9, 8, 3)
    steps, _, _, i, h, m, _ = shape
    decoder, given = module("lstm", shape), problem("lstm", shape)
    own = {name: torch.tensor(array, requires_grad=True) for name, array in decoder.parameters.items()}
    x, memory = (torch.tensor(given[name], requires_grad=True) for name in ("x", "memory"))
    cell = torch.nn.LSTMCell(i + m, h, dtype=torch.float64)
    state = tuple(torch.tensor(part[0]) for part in given["state"])
    keys, outputs = memory @ own["weight_memory"].T + own["bias_memory"], []
    weights = {name.removesuffix("_l0"): own[name] for name in own if name.endswith("_l0")}
    for t in range(steps):
        energies = torch.tanh(keys + state[0] @ own["weight_query"].T) @ own["weight_energy"]
        context = (torch.softmax(energies, 0)[:, :, None] * memory).sum(0)
        state = torch.func.functional_call(cell, weights, (torch.cat([x[t], context], 1), state))
        outputs.append(state[0])
    want = torch.stack(outputs)
    y, _, _, tape = decoder.forward(given["x"], given["memory"], state=given["state"])
    np.testing.assert_allclose(y, want.detach().numpy(), atol=1e-12)
    dy = np.random.default_rng(0).normal(size=y.shape)
    want.backward(torch.tensor(dy))
    dx, dmemory, _ = decoder.backward(tape, dy)
    np.testing.assert_allclose(dx, x.grad.numpy(), atol=1e-11)
    np.testing.assert_allclose(dmemory, memory.grad.numpy(), atol=1e-11)
    for name, tensor in own.items():
        np.testing.assert_allclose(decoder.grads[name], tensor.grad.numpy(), atol=1e-11, err_msg=name)


@pytest.mark.parametrize("sizes", [(0, 3, 4), (3, 0, 4), (3, 2, 0)])
def test_empty(sizes: tuple[int, int, int]) -> None:
    """No steps, no rows, or a memory of none."""
    steps, batch, source = sizes
    decoder = fr.AttentionDecoder("gru", 3, 4, 5, dtype="float64", seed=0)
    x, memory = np.ones((steps, batch, 3)), np.ones((source, batch, 5))
    y, alpha, state, tape = decoder.forward(x, memory)
    assert y.shape == (steps, batch, 4)
    assert alpha.shape == (steps, batch, source)
    dx, dmemory, dstate = decoder.backward(tape, np.ones_like(y), dstate=np.ones_like(state))
    assert dx.shape == x.shape
    assert dmemory.shape == memory.shape
    assert dstate.shape == (1, batch, 4)
    if not steps:
        np.testing.assert_array_equal(dstate, 1.0)


def test_extreme_energies() -> None:
    """Energies that differ by far more than exponentials reach."""
    decoder = fr.AttentionDecoder("gru", 2, 3, 2, 2, dtype="float32", seed=0)
    decoder.parameters["weight_energy"] = 1e30
    x, memory = np.ones((2, 1, 2), np.float32), np.array([[[-3, -3]], [[3, 3]], [[0, 0]]], np.float32)
    decoder.parameters["weight_memory"] = np.eye(2)
    _, alpha, _ = decoder(x, memory)
    np.testing.assert_array_equal(alpha[0, 0], [0, 1, 0])
    memory[:] = np.nan
    y, alpha, _ = decoder(x, memory)
    assert np.isnan(alpha).all()
    assert np.isnan(y).all()


def test_stream_is_forward() -> None:
    shape = (5, 4, 6, 3, 9, 7, 5)
    decoder, given = module("lstm", shape, "float32"), problem("lstm", shape, "float32")
    y, alpha, state = decoder(given["x"], given["memory"], given["memory_lengths"], state=given["state"])
    step = decoder.stream(given["memory"], given["memory_lengths"])
    assert repr(step).startswith("DecoderStream(AttentionDecoder(")
    step.state = given["state"]
    decoder.parameters["weight_query"] *= 2  # not those of the stream
    order = np.array([2, 0, 3, 1, 1])
    for t in range(len(y)):
        before = step.state
        got_y, got_alpha = step(given["x"][t])
        np.testing.assert_array_equal(got_y, y[t])
        np.testing.assert_array_equal(got_alpha, alpha[t])
        after, step.state = step.state, tuple(part[:, order].copy() for part in before)
        np.testing.assert_array_equal(step(given["x"][t, order], order)[0], y[t, order])
        step.state = after
    for a, b in zip(step.state, state, strict=True):
        np.testing.assert_array_equal(a, b)
    step.reset()
    assert step.state is None


@pytest.mark.once
def test_module() -> None:
    decoder = fr.AttentionDecoder("gru", 3, 4, 5, 6, seed=0)
    assert repr(decoder) == "AttentionDecoder('gru', 3, 4, 5, attention_size=6)"
    assert (
        eval(repr(decoder), {"AttentionDecoder": fr.AttentionDecoder}).num_parameters
        == decoder.num_parameters
    )
    x, memory = np.ones((2, 3, 3), np.float32), np.ones((4, 3, 5), np.float32)
    want = decoder(x, memory)[0]
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        np.testing.assert_array_equal(other(x, memory)[0], want)
    fresh = fr.AttentionDecoder("gru", 3, 4, 5, 6, init=None)
    assert not any(array.any() for array in fresh.parameters.values())
    fresh.load_state_dict(decoder.state_dict())
    np.testing.assert_array_equal(fresh(x, memory)[0], want)
    y, _, _, tape = decoder.forward(x, memory)
    assert repr(tape).startswith("DecoderTape(AttentionDecoder(")
    decoder.requires_grad_(False)
    decoder.backward(tape, y)
    assert not any(array.any() for array in decoder.grads.values())
    # The gradients are those of the forward call.
    decoder.requires_grad_(True)
    first = decoder.backward(tape, y)[0]
    decoder.flat_parameters[...] *= 3
    np.testing.assert_array_equal(decoder.backward(tape, y)[0], first)


@pytest.mark.once
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": np.ones((2, 3, 4), np.float32)}, ValueError, "x: expected shape"),
        ({"x": np.ones((2, 3, 3))}, TypeError, "x: expected float32"),
        ({"x": np.ones((2, 2, 3), np.float32)}, ValueError, "x: expected shape"),
        ({"memory": np.ones((4, 3, 4), np.float32)}, ValueError, "memory: expected shape"),
        ({"memory": [1.0]}, TypeError, "memory: expected a numpy.ndarray"),
        ({"memory_lengths": [1, 2, 5]}, ValueError, "memory_lengths: expected values in 0..S = 0..4, got 5"),
        ({"lengths": [1, 2, -1]}, ValueError, "lengths: expected values in 0..T = 0..2, got -1"),
        ({"state": np.ones((3, 4), np.float32)}, ValueError, "state: expected shape"),
    ],
)
def test_errors(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    decoder = fr.AttentionDecoder("gru", 3, 4, 5, seed=0)
    given = {"x": np.ones((2, 3, 3), np.float32), "memory": np.ones((4, 3, 5), np.float32), **changes}
    with pytest.raises(error, match=message.replace("(", r"\(")):
        decoder(**given)


@pytest.mark.once
def test_more_errors() -> None:
    for arguments, error in (
        (("gru", 0, 4, 5), ValueError),
        (("elman", 3, 4, 5), ValueError),
        ((3, 3, 4, 5), TypeError),
        (("gru", 3, 4, 5, None, "cosine"), ValueError),
        (("gru", 3, 4, 5, None, "additive", "next"), ValueError),
    ):
        with pytest.raises(error):
            fr.AttentionDecoder(*arguments)
    decoder = fr.AttentionDecoder("gru", 3, 4, 5, seed=0)
    x, memory = np.ones((2, 3, 3), np.float32), np.ones((6, 3, 5), np.float32)
    y, _, _, tape = decoder.forward(x, memory)
    before = decoder.flat_grads.copy()
    for dy, more in ((y[:1], {}), (y, {"dalpha": y}), (y, {"dstate": y})):
        with pytest.raises(ValueError, match="expected"):
            decoder.backward(tape, dy, **more)
    with pytest.raises(ValueError, match="tape"):
        copy.deepcopy(decoder).backward(tape, y)
    np.testing.assert_array_equal(decoder.flat_grads, before)


@pytest.mark.once
def test_large_results_are_the_callers() -> None:
    """Their memory is that of freed buffers: no other call has it as long as a view of it lives."""
    decoder = fr.AttentionDecoder("gru", 40, 40, 40, seed=0)
    rng = np.random.default_rng(0)
    x, dy, memory = (rng.standard_normal((30, 16, 40), dtype=np.float32) for _ in range(3))

    def results(scale: float) -> list[Any]:
        y, _, _, tape = decoder.forward(scale * x, memory)
        return [y[1:], *(array[1:] for array in decoder.backward(tape, dy)[:2])]

    first = results(1.0)
    kept = [array.copy() for array in first]
    for scale in (2.0, 3.0):
        for array, other in zip(first, results(scale), strict=True):
            assert array.flags.writeable
            assert not np.shares_memory(array, other)
    np.testing.assert_array_equal(np.array(first), np.array(kept))
