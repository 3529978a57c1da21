"""Networks with weights in bfloat16 and int8: layers, sequences, streams, threads, errors."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from quantized_support import FORMATS, draw, run
from support import (
    LAYOUTS,
    MODULE_CELLS,
    bare,
    make_module,
    nothing_kept,
    random_lengths,
    random_state,
    states_of,
)

import fusedrnn as fr
from fusedrnn import _core

# Layers, directions, sequences ------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_layers_and_directions(cell: str, bidirectional: bool, weights: str) -> None:
    """A stack is its layers one after the other, the reverse direction a layer on reversed time."""
    module = make_module(cell, 6, 19, 4, bidirectional=bidirectional, dtype="float32")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 3, 6)).astype(np.float32)
    rows = 8 if bidirectional else 4
    name = "lstm" if cell == "lstm_proj" else cell
    state = random_state(rng, name, (rows, 3), 19, module.proj_size, "float32")
    y, final = module.quantize(weights)(x, bare(state))
    for layer in range(4):
        outputs = []
        for part in module._plan.layers[layer]:
            params, reverse, row = part.weights, part.reverse, part.row
            start = tuple(part[row : row + 1] for part in state)
            one, last = run(name, [[params]], weights, x[::-1] if reverse else x, start)
            outputs.append(one[::-1] if reverse else one)
            for got, want in zip(states_of(final), last, strict=True):
                assert np.array_equal(got[row], want[0])
        x = np.concatenate(outputs, axis=-1)
    assert np.array_equal(y, x)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_lengths_and_resets(cell: str, weights: str) -> None:
    """Each row as if alone: cut at its length and at its resets, zeros past the end."""
    rng = np.random.default_rng(2)
    network = make_module(cell, 6, 19, bidirectional=True, dtype="float32").quantize(weights)
    x = rng.normal(size=(9, 5, 6)).astype(np.float32)
    lengths, resets = random_lengths(rng, 9, 5), rng.random((9, 5)) < 0.3
    name = "lstm" if cell == "lstm_proj" else cell
    state, fresh = (random_state(rng, name, (2, 5), 19, network.proj_size, "float32") for _ in range(2))
    y, final = network(x, bare(state), lengths, resets, bare(fresh))
    for b, n in enumerate(lengths):
        alone = tuple(part[:, b : b + 1] for part in state)
        want, last = network(x[:n, b : b + 1], bare(alone), None, resets[:n, b : b + 1],
                             bare(tuple(part[:, b : b + 1] for part in fresh)))  # fmt: skip
        assert np.array_equal(y[:n, b], want[:, 0]) and not y[n:, b].any()
        for got, expected in zip(states_of(final), states_of(last), strict=True):
            assert np.array_equal(got[:, b], expected[:, 0])
    cut = np.zeros((9, 5), bool)
    cut[4] = True
    whole = network(x, bare(state), None, cut, bare(tuple(part[:, 0] for part in fresh)))[0]
    width = y.shape[-1] // 2
    first = tuple(np.repeat(part[:, :1], 5, axis=1) for part in fresh)
    assert np.array_equal(whole[:4, :, :width], network(x[:4], bare(state))[0][..., :width])
    assert np.array_equal(whole[4:, :, :width], network(x[4:], bare(first))[0][..., :width])
    assert np.array_equal(whole[4:, :, width:], network(x[4:], bare(state))[0][..., width:])
    assert np.array_equal(whole[:4, :, width:], network(x[:4], bare(first))[0][..., width:])


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_steps_equal_the_sequence(cell: str, batch: int, layers: int, weights: str) -> None:
    """Bit for bit, and any chunking too."""
    network = make_module(cell, 5, 67, layers, dtype="float32").quantize(weights)
    x = np.random.default_rng(batch).normal(size=(150, batch, 5)).astype(np.float32)
    y, final = network(x)
    step = network.stream(batch_size=batch)
    for t in range(len(x)):
        got = step(x[t, 0] if batch == 1 and t % 2 else x[t])
        assert np.array_equal(got, y[t, 0] if batch == 1 and t % 2 else y[t])
    first, middle = network(x[:61])
    rest, last = network(x[61:], middle)
    assert np.array_equal(np.concatenate([first, rest]), y)
    for a, b, c in zip(states_of(step.state), states_of(final), states_of(last), strict=True):
        assert np.array_equal(a, b) and np.array_equal(b, c)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_views(cell: str, weights: str) -> None:
    """One sequence, batch_first, memory layouts and empty calls give what the plain call gives."""
    module = make_module(cell, 5, 9, 2, dtype="float32")
    network = module.quantize(weights)
    x = np.random.default_rng(0).normal(size=(7, 3, 5)).astype(np.float32)
    y, final = network(x)
    one, last = network(x[:, 1], bare(tuple(np.zeros_like(part[:, 1]) for part in states_of(final))))
    assert np.array_equal(one, y[:, 1])
    for got, want in zip(states_of(last), states_of(final), strict=True):
        assert got.shape == want[:, 1].shape and np.array_equal(got, want[:, 1])
    other = make_module(cell, 5, 9, 2, dtype="float32", batch_first=True).quantize(weights)
    turned = other(np.ascontiguousarray(x.swapaxes(0, 1)), lengths=[7, 7, 7])[0]
    assert np.array_equal(turned, y.swapaxes(0, 1)) and turned.flags.c_contiguous
    for layout in LAYOUTS.values():
        assert np.array_equal(network(layout(x))[0], y)
    assert network(x[:0])[0].shape == (0, 3, y.shape[-1])
    assert network(x[:, :0])[0].shape == (7, 0, y.shape[-1])
    assert not np.any(states_of(network(x[:0])[1])[0])


@pytest.mark.parametrize("weights", FORMATS)
def test_unusual_values(weights: str) -> None:
    """Rows of zeros and of tiny numbers count as zero for int8; NaN and infinity stay in their row."""
    network = fr.RNN(20, 17, seed=1).quantize(weights)
    x = np.random.default_rng(0).normal(size=(2, 5, 20)).astype(np.float32)
    y = network(x)[0]
    x[0, 0], x[0, 1], x[0, 2, 3], x[0, 3, 19] = 0, 1e-32, np.nan, np.inf
    got = network(x)[0]
    assert np.array_equal(got[:, 4], y[:, 4])
    assert np.isfinite(got[:, :2]).all() and not got[0, 0].any() and got[0, 1].any() == (weights == "bf16")
    assert np.isnan(got[:, 2]).all()
    assert np.isnan(got[:, 3]).all() if weights == "int8" else not np.array_equal(got[:, 3], y[:, 3])
    module = fr.RNN(20, 17, seed=1)
    module.parameters["weight_ih_l0"][[1, 5]] = [[np.nan], [0]]
    got = module.quantize(weights)(y[:, :, :1] * np.ones(20, "f4"))[0]
    assert np.isnan(got[0, :, 1]).all() and np.isfinite(np.delete(got[0], 1, axis=1)).all()


def test_calls_from_threads() -> None:
    network = fr.GRU(33, 70, 2, seed=1).quantize("int8")
    x = np.random.default_rng(0).normal(size=(40, 3, 33)).astype(np.float32)
    want = network(x)[0]
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: network(x)[0], range(16)):
            assert np.array_equal(got, want)


# Streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_stream_state_and_reset(cell: str) -> None:
    step = make_module(cell, 4, 9, 2, dtype="float32").quantize("int8").stream(batch_size=4)
    x = np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32)
    fresh = step(x[0]).copy()
    kept = step.state
    want = [step(x[t]).copy() for t in range(1, 6)]
    for part in states_of(step.state):
        assert part.shape[:2] == (2, 4)
        part[...] = np.nan
    step.state = kept
    assert all(np.array_equal(step(x[t]), want[t - 1]) for t in range(1, 6))
    before = states_of(step.state)
    step.reset(rows=[2, 0])
    step.reset(rows=[])
    for got, old in zip(states_of(step.state), before, strict=True):
        assert not got[:, [0, 2]].any() and np.array_equal(got[:, [1, 3]], old[:, [1, 3]])
    step.reset(rows=np.array([False, True, False, True]))
    assert not any(part.any() for part in states_of(step.state))
    assert np.array_equal(step(x[0]), fresh)
    step.reset()
    assert np.array_equal(step(x[0]), fresh)
    for rows in ([4], [-1]):
        with pytest.raises(ValueError, match="rows"):
            step.reset(rows=rows)
    with pytest.raises(ValueError, match="state"):
        step.state = bare(tuple(part[:, :3] for part in before))
    assert np.array_equal(states_of(step.state)[0][-1], fresh)


def test_stream_errors() -> None:
    network = fr.LSTM(4, 9, seed=1).quantize("bf16")
    step = network.stream(batch_size=2)
    y = step(np.ones((2, 4), np.float32)).copy()
    for bad in (np.ones((2, 4)), [[1.0] * 4] * 2, None):
        with pytest.raises(TypeError, match="x"):
            step(bad)  # type: ignore[arg-type]
    for shape in ((2, 5), (3, 4), (4,), (1, 2, 4)):
        with pytest.raises(ValueError, match="x"):
            step(np.ones(shape, np.float32))
    assert np.array_equal(step.state[0][0], y)
    for size, kind in ((0, ValueError), (-1, ValueError), (2.0, TypeError), ("two", TypeError)):
        with pytest.raises(kind, match="batch_size"):
            network.stream(batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bidirectional"):
        fr.GRU(4, 9, bidirectional=True).quantize("bf16").stream()


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("batch", [1, 4])
def test_steps_do_not_allocate(batch: int, weights: str) -> None:
    step = fr.LSTM(8, 64, 2, seed=1).quantize(weights).stream(batch_size=batch)
    x = np.ones((batch, 8), np.float32)
    first = step(x)
    with nothing_kept(step, x):
        pass
    assert np.shares_memory(step(x), first)


# Errors -----------------------------------------------------------------------------------------------------


def test_refused() -> None:
    module = fr.LSTM(4, 9, seed=1)
    for bad in ("fp16", "", "BF16"):
        with pytest.raises(ValueError, match=f"^weights: expected 'bf16' or 'int8', got '{bad}'$"):
            module.quantize(bad)
    with pytest.raises(TypeError, match="weights"):
        module.quantize(8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"quantize: expected .*float32, got float64"):
        fr.LSTM(4, 9, dtype="float64").quantize("int8")


def test_inference_only() -> None:
    network = fr.LSTM(4, 9, seed=1).quantize("int8")
    for name in ("forward", "backward", "parameters", "train"):
        assert not hasattr(network, name)


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        ({"x": np.ones((3, 2, 4))}, TypeError, "x: expected dtype float32"),
        ({"x": np.ones((3, 2, 5), "f4")}, ValueError, "x: expected shape (T, B, I) or (T, I) with I = 4"),
        ({"x": np.ones(4, "f4")}, ValueError, "x: expected shape"),
        ({"x": [[1.0]]}, TypeError, "x: expected a numpy.ndarray"),
        ({"state": np.zeros((1, 2, 9), "f4")}, TypeError, "state: expected a tuple (h, c)"),
        ({"state": (None, np.zeros((1, 3, 9), "f4"))}, ValueError, "state[1]: expected shape"),
        ({"state": (np.zeros((1, 2, 9)), None)}, TypeError, "state[0]: expected float32"),
        ({"lengths": [1, 2, 3]}, ValueError, "lengths: expected shape (B,) = (2,), got (3,)"),
        ({"lengths": [1, 4]}, ValueError, "lengths: expected values in [0, T + 1)"),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths: expected an integer dtype"),
        ({"resets": np.zeros((3, 2), int)}, TypeError, "resets: expected bool"),
        ({"resets": np.zeros((2, 3), bool)}, ValueError, "resets: expected shape"),
        ({"reset_state": (None, None)}, ValueError, "reset_state: expected None without resets"),
        (
            {"resets": np.zeros((3, 2), bool), "reset_state": (np.zeros((1, 9), "f4"),) * 3},
            ValueError,
            "reset_state: expected 2 array(s)",
        ),
        (
            {"resets": np.zeros((3, 2), bool), "reset_state": (np.zeros((2, 9), "f4"),) * 2},
            ValueError,
            "reset_state[0]: expected shape (num_layers*D, H) = (1, 9), got (2, 9)",
        ),
    ],
)  # fmt: skip
def test_bad_calls(change: dict[str, Any], kind: type[Exception], text: str) -> None:
    network = fr.LSTM(4, 9, seed=1).quantize("int8")
    with pytest.raises(kind, match=f"^{re.escape(text)}"):
        network(**{"x": np.ones((3, 2, 4), "f4"), **change})


def test_core_refuses_other_layers() -> None:
    _, params, _ = draw("lstm", (1, 1, 9, 9))
    _, other, _ = draw("lstm", (1, 1, 9, 8))
    for layers, kind in (
        (None, TypeError),
        ([], ValueError),
        ([params], ValueError),
        ([[params], []], ValueError),
        ([[params] * 3], ValueError),
        ([[params], [params, params]], ValueError),
        ([[params, other]], ValueError),
        ([[params], [other]], ValueError),
    ):
        with pytest.raises(kind, match=r"^(layers|weight_ih|weight_hh): expected .*, got"):
            _core.Quantized("lstm", layers, "int8")
    with pytest.raises(ValueError, match="weights"):
        _core.Quantized("lstm", [[params]], "int4")
    both = _core.Quantized("lstm", [[params, params]], "int8")
    with pytest.raises(ValueError, match="network: expected one direction"):
        _core.QuantizedStream(both, 1)
    with pytest.raises(TypeError, match="network"):
        _core.QuantizedStream(None, 1)  # type: ignore[arg-type]


def test_repr() -> None:
    network = fr.GRU(4, 9, 2, batch_first=True, seed=1).quantize("int8")
    assert repr(network) == "QuantizedRecurrent(GRU(4, 9, num_layers=2, batch_first=True), weights='int8')"
    assert repr(network.stream(2)) == f"QuantizedStream({network!r}, batch_size=2)"
