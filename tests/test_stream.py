"""Streaming: any chunking of a sequence gives the whole-sequence call's outputs, without allocating."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import HOST_CELLS, Array, assert_streams, make_module, nothing_kept, states_of
from tolerances import assert_close

import fusedrnn as fr


def sequence(module_inputs: int, steps: int, batch: int, dtype: str) -> Array:
    return np.random.default_rng([steps, batch]).normal(size=(steps, batch, module_inputs)).astype(dtype)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", HOST_CELLS)
def test_steps_equal_the_sequence(cell: str, dtype: str, batch: int, layers: int) -> None:
    module = make_module(cell, 5, 19, layers, dtype=dtype)
    x = sequence(5, 12, batch, dtype)
    want, final = module(x)
    assert_streams(module, x, want, final)


@given(data=st.data())
def test_any_chunking(data: st.DataObject) -> None:
    """Whole-sequence calls and streamed steps, mixed at random, hand the state to each other."""
    cell = data.draw(st.sampled_from(HOST_CELLS))
    hidden = data.draw(st.sampled_from([2, 8, 13]))
    module = make_module(cell, 3, hidden, data.draw(st.integers(1, 2)))
    batch, steps = data.draw(st.sampled_from([1, 3])), data.draw(st.integers(0, 14))
    x = sequence(3, steps, batch, "float64")
    want, final = module(x)
    stream = module.stream(batch_size=batch)
    state, at = None, 0
    while at < steps:
        n = data.draw(st.integers(1, steps - at))
        if data.draw(st.booleans()):
            stream.reset() if state is None else setattr(stream, "state", state)
            for t in range(at, at + n):
                assert_close(stream(x[t]), want[t], "output")
            state = stream.state
        else:
            y, state = module(x[at : at + n], state)
            assert_close(y, want[at : at + n], "output")
        at += n
    for got, expected in zip(states_of(state) if steps else (), states_of(final), strict=False):
        assert_close(got, expected, "state")


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_state(cell: str) -> None:
    """state is a copy shaped as torch's, (num_layers, B, .); setting it goes back in time."""
    module = make_module(cell, 4, 9, 2)
    step = module.stream(batch_size=3)
    x = sequence(4, 6, 3, "float64")
    for got in states_of(step.state):
        assert got.shape[:2] == (2, 3) and not got.any()
    for t in range(3):
        step(x[t])
    kept = step.state
    first = [step(x[t]).copy() for t in range(3, 6)]
    for part in states_of(step.state):
        part[...] = np.nan
    step.state = kept
    for t, want in zip(range(3, 6), first, strict=True):
        assert np.array_equal(step(x[t]), want)


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_reset(cell: str) -> None:
    """All rows, or the named ones and no others."""
    module = make_module(cell, 4, 9, 2)
    step = module.stream(batch_size=4)
    x = sequence(4, 3, 4, "float64")
    for t in range(3):
        step(x[t])
    before = states_of(step.state)
    step.reset(rows=[2, 0])
    for got, old in zip(states_of(step.state), before, strict=True):
        assert not got[:, [0, 2]].any()
        assert np.array_equal(got[:, [1, 3]], old[:, [1, 3]])
    step.reset(rows=[])
    assert states_of(step.state)[0][:, [1, 3]].any()
    step.reset()
    assert not any(part.any() for part in states_of(step.state))
    assert np.array_equal(step(x[0]), module.stream(batch_size=4)(x[0]))


def test_same_buffer() -> None:
    step = make_module("gru", 4, 9).stream(batch_size=2)
    x = sequence(4, 3, 2, "float64")
    first = step(x[0])
    kept = first.copy()
    second = step(x[1])
    assert np.shares_memory(first, second) and first.shape == (2, 9)
    assert not np.array_equal(kept, second)


def test_batch_size_defaults_to_one() -> None:
    step = make_module("lstm", 4, 9).stream()
    assert step(np.ones((1, 4))).shape == (1, 9)


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_refresh(cell: str) -> None:
    """A stream keeps the weights it packed until it is told to pack again; its state lives on."""
    module = make_module(cell, 4, 9, 2)
    x = sequence(4, 4, 1, "float64")
    step, other = module.stream(), module.stream()
    step(x[0])
    other(x[0])
    for parameter in module.parameters.values():
        parameter *= 1.5
    step.refresh()
    assert_close(step(x[1]), module(x[1:2], other.state)[0][0], "output")
    assert not np.array_equal(step.state[0], other.state[0])


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_rows_are_independent(cell: str) -> None:
    module = make_module(cell, 4, 9, 2)
    step = module.stream(batch_size=3)
    x = sequence(4, 2, 3, "float64")
    want = [step(x[t]).copy() for t in range(2)]
    step.reset()
    x[0, 1] = np.nan
    for t in range(2):
        got = step(x[t])
        assert np.isnan(got[1]).all()
        assert np.array_equal(got[[0, 2]], want[t][[0, 2]])


@pytest.mark.parametrize(
    "bad",
    [
        np.ones((2, 5)),
        np.ones((3, 4)),
        np.ones(4),
        np.ones((1, 2, 4)),
        np.ones((2, 4), np.float32),
        np.ones((2, 4), np.int64),
        [[1.0] * 4] * 2,
        None,
        "x",
    ],
    ids=lambda bad: f"{getattr(bad, 'shape', '')}{getattr(bad, 'dtype', type(bad).__name__)}",
)
def test_bad_input(bad: Any) -> None:
    """The state is not touched by a refused step."""
    step = make_module("lstm", 4, 9).stream(batch_size=2)
    step(np.ones((2, 4)))
    before = step.state
    kind = ValueError if getattr(bad, "dtype", None) == np.float64 else TypeError
    with pytest.raises(kind, match="x"):
        step(bad)
    for a, b in zip(step.state, before, strict=True):
        assert np.array_equal(a, b)


def test_bad_state_and_rows() -> None:
    module = make_module("gru", 4, 9, 2)
    step = module.stream(batch_size=2)
    step(np.ones((2, 4)))
    before = step.state.copy()
    for bad in (np.ones((2, 2, 8)), np.ones((1, 2, 9)), np.ones((2, 9))):
        with pytest.raises(ValueError, match="state"):
            step.state = bad
    with pytest.raises(TypeError, match="state"):
        step.state = np.ones((2, 2, 9), np.float32)
    for rows in ([2], [-1], [0, 5]):
        with pytest.raises(ValueError, match="rows"):
            step.reset(rows=rows)
    with pytest.raises(TypeError, match="rows"):
        step.reset(rows=[0.5])
    assert np.array_equal(step.state, before)
    for size in (-1, 2**62):
        with pytest.raises((ValueError, MemoryError), match="batch_size" if size < 0 else None):
            module.stream(batch_size=size)
    with pytest.raises(TypeError, match="batch_size"):
        module.stream(batch_size="two")


def test_bidirectional_cannot_stream() -> None:
    with pytest.raises(ValueError, match="bidirectional"):
        fr.GRU(4, 9, bidirectional=True).stream()


def test_layouts() -> None:
    """Rows of a longer array are taken where they lie."""
    module = make_module("lstm", 4, 9, dtype="float32")
    x = sequence(4, 6, 2, "float32")
    want = module(x)[0]
    step = module.stream(batch_size=2)
    turned = np.ascontiguousarray(x.transpose(2, 1, 0))
    for t in range(6):
        assert_close(step(turned[:, :, t].T), want[t], "output")


@pytest.mark.once
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("cell", HOST_CELLS)
def test_steps_do_not_allocate(cell: str, batch: int) -> None:
    """No object and no byte stays behind after 400 steps, and no step ever holds one that matters."""
    module = make_module(cell, 8, 256, 2, dtype="float32", init="torch")
    step = module.stream(batch_size=batch)
    x = sequence(8, 1, batch, "float32")[0]
    kept, peaks = [], []
    with nothing_kept(step, x) as steps:
        for _ in range(3):  # other threads' objects are counted, too
            tracemalloc.start()
            try:
                steps(50)
                tracemalloc.reset_peak()
                start = tracemalloc.get_traced_memory()[0]
                steps(100)
                now, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            kept.append(now - start)
            peaks.append(peak - start)
    assert min(kept) <= 128
    # The interpreter's own frames and integers; one array of the step's output would be 1024 bytes and more.
    assert min(peaks) < 512
