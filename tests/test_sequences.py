"""lengths and resets: a batch equals running each row and each segment on its own; padding is exact zero."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    CELLS,
    HOST_CELLS,
    LAYOUTS,
    Array,
    bare,
    layer_params,
    make_module,
    random_lengths,
    random_problem,
    states_of,
)
from tolerances import assert_close

import fusedrnn as fr

T, B, I, H = 9, 6, 3, 9


@dataclass
class Run:
    """Everything that one forward and backward gives."""

    y: Array
    state: tuple[Array, ...]
    dx: Array
    dstate: tuple[Array, ...]
    grads: dict[str, Array]


def run(module: Any, x: Array, state: Any, dy: Array, dlast: Any, **options: Any) -> Run:
    module.zero_grad()
    y, final, tape = module.forward(x, bare(state), **options)
    dx, dstate = module.backward(tape, dy, dstate=bare(dlast))
    grads = {name: g.copy() for name, g in module.grads.items()}
    return Run(np.asarray(y), states_of(final), dx, states_of(dstate), grads)


def draw(module: Any, layers: int, directions: int, seed: int = 0) -> tuple[Any, ...]:
    """x, initial state, dy and gradient of the final state for a batch of B rows of T steps."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(T, B, I))
    y, state = module(x)
    states = [tuple(rng.normal(size=s.shape) for s in states_of(state)) for _ in range(2)]
    assert states[0][0].shape[0] == layers * directions
    return x, states[0], rng.normal(size=y.shape), states[1]


def row(arrays: tuple[Array, ...], b: int) -> tuple[Array, ...]:
    return tuple(a[:, b : b + 1] for a in arrays)


def assert_sums(got: dict[str, Array], parts: list[dict[str, Array]]) -> None:
    for name, gradient in got.items():
        assert_close(gradient, sum(part[name] for part in parts), "gradient", name)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", HOST_CELLS)
def test_lengths_equal_single_rows(cell: str, layers: int, bidirectional: bool) -> None:
    module = make_module(cell, I, H, layers, bidirectional=bidirectional)
    x, state, dy, dlast = draw(module, layers, 1 + bidirectional)
    for lengths in (np.array([4, 9, 0, 1, 9, 6]), np.zeros(B, np.int64), np.array([0, 1, 2, 3, 2, 1])):
        whole = run(module, x, state, dy, dlast, lengths=lengths)
        parts = []
        for b, n in enumerate(lengths):
            single = run(module, x[:n, b : b + 1], row(state, b), dy[:n, b : b + 1], row(dlast, b))
            parts.append(single.grads)
            for got, want, what in ((whole.y, single.y, "y"), (whole.dx, single.dx, "dx")):
                assert_close(got[:n, b : b + 1], want, "output", what)
                assert not got[n:, b].any(), what
            for got, want in zip(whole.state + whole.dstate, single.state + single.dstate, strict=True):
                assert_close(got[:, b : b + 1], want, "state")
            if n == 0:
                for k, initial in enumerate(state):
                    assert np.array_equal(whole.state[k][:, b], initial[:, b])
                    assert np.array_equal(whole.dstate[k][:, b], dlast[k][:, b])
        assert_sums(whole.grads, parts)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("proj", [0, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_resets_equal_single_segments(cell: str, proj: int, reverse: bool) -> None:
    """One layer, one direction: each segment on its own, the first one travelled with the initial state."""
    proj = proj if cell == "lstm" else 0
    rng = np.random.default_rng(11)
    for lengths in (None, np.array([9, 5, 0, 7, 1, 8])):
        resets = rng.random((T, B)) < 0.3
        problem = random_problem(
            cell, (T, B, I, H), proj=proj, lengths=lengths, resets=resets, reverse=reverse
        )
        y, state, tape = problem.run()
        grads = fr.functional.backward(tape, problem.dy, problem.dstate)
        dparams = [None if p is None else np.zeros_like(p) for p in problem.params]
        for b in range(B):
            n = T if lengths is None else int(lengths[b])
            borders = [0, *(t for t in range(1, n) if resets[t, b]), n]
            segments = list(pairwise(borders)) if n else []
            for k, (start, stop) in enumerate(segments[::-1] if reverse else segments):
                initial = k == 0 and (reverse or not resets[0, b])
                last = k == len(segments) - 1
                part = problem.with_(
                    x=problem.x[start:stop, b : b + 1],
                    state=tuple(s[b : b + 1] for s in problem.state) if initial else None,
                    options={"reverse": reverse},
                )
                want_y, want_state, part_tape = part.run()
                want = fr.functional.backward(
                    part_tape,
                    problem.dy[start:stop, b : b + 1],
                    tuple(d[b : b + 1] for d in problem.dstate) if last else None,
                )
                assert_close(y[start:stop, b : b + 1], want_y, "output", "y")
                assert_close(grads.x[start:stop, b : b + 1], want.x, "gradient", "dx")
                for j, (total, gradient) in enumerate(zip(dparams, want.params, strict=True)):
                    if total is not None:
                        dparams[j] = total + gradient
                if last:
                    for got, expected in zip(state, want_state, strict=True):
                        assert_close(got[b : b + 1], expected, "state")
                if k == 0:
                    for got, expected in zip(states_of(grads.state), states_of(want.state), strict=True):
                        assert_close(
                            got[b : b + 1], expected if initial else 0.0 * expected, "gradient", "dstate"
                        )
        for got, expected in zip(grads.params, dparams, strict=True):
            if expected is not None:
                assert_close(got, expected, "gradient")


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", HOST_CELLS)
def test_module_against_reference(cell: str, layers: int, bidirectional: bool) -> None:
    """lengths and resets together, through every layer and direction."""
    module = make_module(cell, I, H, layers, bidirectional=bidirectional)
    x, state, dy, dlast = draw(module, layers, 1 + bidirectional)
    rng = np.random.default_rng(layers)
    name = "lstm" if cell == "lstm_proj" else cell
    for seed in range(2):
        options: dict[str, Any] = {"resets": rng.random((T, B)) < 0.25}
        if seed:
            options["lengths"] = random_lengths(rng, T, B)
        got = run(module, x, state, dy, dlast, **options)
        params = layer_params(module)
        y, final, tapes = reference.stack_forward(name, x, params, state, **options)
        dx, dstate, dparams = reference.stack_backward(tapes, dy, dlast)
        assert_close(got.y, y, "output", "y")
        assert_close(got.dx, dx, "gradient", "dx")
        for a, b in zip(got.state + got.dstate, final + dstate, strict=True):
            assert_close(a, b, "state")
        for found, wanted in zip(layer_params(module, got.grads), dparams, strict=True):
            for grads, wants in zip(found, wanted, strict=True):
                for grad, want in zip(grads, wants, strict=True):
                    if want is not None:
                        assert_close(grad, want, "gradient")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_reset_state(cell: str, per_row: bool, reverse: bool, dtype: str) -> None:
    """A given state replaces the running one, for all rows alike or row by row; a constant to backward."""
    rng = np.random.default_rng(13)
    problem = random_problem(cell, (T, B, I, H), dtype)
    shape = (B, H) if per_row else (H,)
    options = {
        "resets": rng.random((T, B)) < 0.3,
        "reset_state": tuple(rng.normal(size=shape).astype(dtype) for _ in problem.state),
        "lengths": np.array([9, 3, 0, 9, 5, 1]),
        "reverse": reverse,
    }
    problem = problem.with_(options=options)
    y, state, tape = problem.run()
    want_y, want_state, want_tape = problem.run_reference()
    assert_close(y, want_y, "output", "y")
    grads = fr.functional.backward(tape, problem.dy, problem.dstate)
    dx, dstate, dparams = reference.backward(want_tape, problem.dy, problem.dstate)
    assert_close(grads.x, dx, "gradient", "dx")
    for a, b in zip((*state, *states_of(grads.state)), (*want_state, *dstate), strict=True):
        assert_close(a, b, "state")
    for a, b in zip(grads.params[:4], dparams[:4], strict=True):
        assert_close(a, b, "gradient")


@settings(max_examples=150)
@given(data=st.data())
def test_any_problem(data: st.DataObject) -> None:
    """Any cell, sizes (zero among them), lengths, resets, reset state, direction and memory layout."""
    cell = data.draw(st.sampled_from(CELLS))
    seq_len, batch, inputs = (data.draw(st.integers(0, n)) for n in (9, 9, 12))
    hidden = data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    options: dict[str, Any] = {"reverse": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        options["lengths"] = rng.integers(0, seq_len + 1, batch)
    if data.draw(st.booleans()):
        options["resets"] = rng.random((seq_len, batch)) < data.draw(st.sampled_from([0.1, 0.5, 1.0]))
        if data.draw(st.booleans()):
            states = reference.CELLS[cell].states
            options["reset_state"] = tuple(rng.normal(size=(batch, hidden)) for _ in range(states))
    lay = data.draw(st.sampled_from(list(LAYOUTS.values())))
    problem = random_problem(cell, (seq_len, batch, inputs, hidden), **options)
    problem = problem.with_(x=lay(problem.x), dy=lay(problem.dy))
    y, state, tape = problem.run()
    want_y, want_state, want_tape = problem.run_reference()
    assert_close(y, want_y, "output")
    grads = fr.functional.backward(tape, problem.dy, problem.dstate)
    dx, dstate, dparams = reference.backward(want_tape, problem.dy, problem.dstate)
    assert_close(grads.x, dx, "gradient")
    for a, b in zip((*state, *states_of(grads.state)), (*want_state, *dstate), strict=True):
        assert_close(a, b, "state")
    for a, b in zip(grads.params[:4], dparams[:4], strict=True):
        assert_close(a, b, "gradient")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", HOST_CELLS)
def test_poison_stays_in_the_padding(cell: str, bidirectional: bool, dtype: str) -> None:
    """NaN past the end, in x and in dy, changes nothing anywhere: not one bit."""
    module = make_module(cell, I, H, 2, bidirectional=bidirectional, dtype=dtype)
    rng = np.random.default_rng(3)
    lengths = np.array([4, 9, 0, 1, 8, 6])
    x = rng.normal(size=(T, B, I)).astype(dtype)
    dy = rng.normal(size=module(x)[0].shape).astype(dtype)
    clean = run(module, x, None, dy, None, lengths=lengths)
    for b, n in enumerate(lengths):
        x[n:, b] = np.nan
        dy[n:, b] = np.nan
    poisoned = run(module, x, None, dy, None, lengths=lengths)
    assert np.array_equal(module(x, lengths=lengths)[0], clean.y)
    for got, want in ((poisoned.y, clean.y), (poisoned.dx, clean.dx)):
        assert np.array_equal(got, want)
        for b, n in enumerate(lengths):
            assert not got[n:, b].any()
    for a, b in zip(poisoned.state + poisoned.dstate, clean.state + clean.dstate, strict=True):
        assert np.array_equal(a, b)
    for name, gradient in poisoned.grads.items():
        assert np.array_equal(gradient, clean.grads[name]), name


@pytest.mark.parametrize("cell", CELLS)
def test_poison_before_a_reset(cell: str) -> None:
    """NaN in a replaced state reaches neither outputs nor gradients: nothing is multiplied by zero."""
    problem = random_problem(cell, (4, 3, I, H), seed=2)
    resets = np.zeros((4, 3), bool)
    resets[0] = True
    clean = problem.with_(state=None, options={"resets": resets})
    poisoned = clean.with_(state=tuple(np.full_like(s, np.nan) for s in problem.state))
    (y, _, tape), (want_y, _, want_tape) = poisoned.run(), clean.run()
    assert np.array_equal(y, want_y)
    got, want = (fr.functional.backward(t, problem.dy, problem.dstate) for t in (tape, want_tape))
    for a, b in zip((got.x, *got.params[:4]), (want.x, *want.params[:4]), strict=True):
        assert np.array_equal(a, b)
    assert not any(d.any() for d in states_of(got.state))


@pytest.mark.parametrize("cell", CELLS)
def test_poisoned_step_before_a_segment(cell: str) -> None:
    """A NaN in one segment stays there, forward and backward, the parameters' gradients excepted."""
    problem = random_problem(cell, (6, 2, I, H), seed=2)
    resets = np.zeros((6, 2), bool)
    resets[3, 0] = True
    for reverse in (False, True):
        problem = problem.with_(options={"resets": resets, "reverse": reverse})
        want_y, _, want_tape = problem.run()
        x = problem.x.copy()
        x[1 if not reverse else 4, 0] = np.nan
        y, _, tape = problem.with_(x=x).run()
        clean = slice(0, 3) if reverse else slice(3, 6)
        assert np.isnan(y).any()
        assert np.array_equal(y[clean], want_y[clean]) and np.array_equal(y[:, 1], want_y[:, 1])
        dx = fr.functional.backward(tape, problem.dy, problem.dstate).x
        want_dx = fr.functional.backward(want_tape, problem.dy, problem.dstate).x
        assert np.array_equal(dx[clean, 0], want_dx[clean, 0]) and np.array_equal(dx[:, 1], want_dx[:, 1])


@pytest.mark.parametrize("cell", CELLS)
def test_full_lengths_and_no_resets_change_nothing(cell: str) -> None:
    problem = random_problem(cell, (T, B, I, H), "float32")
    want = problem.run()[0]
    full = {"lengths": np.full(B, T), "resets": np.zeros((T, B), bool)}
    assert np.array_equal(problem.with_(options=full).run()[0], want)


def test_lengths_of_any_integer_kind() -> None:
    """A list, and integers of another width, mean the same lengths."""
    module = make_module("gru", I, H)
    x = np.random.default_rng(0).normal(size=(T, 3, I))
    want = module(x, lengths=np.array([2, 0, 9], np.int64))[0]
    assert np.array_equal(module(x, lengths=[2, 0, 9])[0], want)
    assert np.array_equal(module(x, lengths=np.array([2, 0, 9], np.int32))[0], want)


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_batch_first(cell: str) -> None:
    """batch_first swaps x, y, dx and resets, and nothing else."""
    module = make_module(cell, I, H, 2, bidirectional=True)
    turned = make_module(cell, I, H, 2, bidirectional=True, batch_first=True)
    turned.load_state_dict(module.state_dict())
    x, state, dy, dlast = draw(module, 2, 2)
    rng = np.random.default_rng(1)
    lengths, resets = random_lengths(rng, T, B), rng.random((T, B)) < 0.2
    want = run(module, x, state, dy, dlast, lengths=lengths, resets=resets)
    got = run(turned, x.swapaxes(0, 1), state, dy.swapaxes(0, 1), dlast, lengths=lengths, resets=resets.T)
    assert np.array_equal(got.y.swapaxes(0, 1), want.y) and np.array_equal(got.dx.swapaxes(0, 1), want.dx)
    for a, b in zip(got.state + got.dstate, want.state + want.dstate, strict=True):
        assert np.array_equal(a, b)
    for name, gradient in got.grads.items():
        assert np.array_equal(gradient, want.grads[name])


def test_pad_and_unpad() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(n, 3)).astype("float32") for n in (2, 0, 5, 1)]
    x, lengths = fr.pad(rows)
    assert x.shape == (5, 4, 3) and x.dtype == np.float32
    assert lengths.tolist() == [2, 0, 5, 1] and lengths.dtype == np.int64
    for b, r in enumerate(rows):
        assert np.array_equal(x[: len(r), b], r) and not x[len(r) :, b].any()
    for got, want in zip(fr.unpad(x, lengths), rows, strict=True):
        assert np.array_equal(got, want)
