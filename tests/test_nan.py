"""NaN and Inf are neither hidden nor spread: they stay in their row. No access past the end of any array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from support import CELLS, DTYPES, Array, assert_ran, make_module, random_problem, run_python, states_of
from tolerances import assert_close

import fusedrnn as fr

SHAPES = [(5, 3, 4, 9), (5, 13, 3, 20), (6, 1, 4, 8)]


def changed_steps(a: Array, b: Array) -> Array:
    """(T, B) bool: where any feature differs by a bit, NaN being equal to NaN."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.asarray(~same.all(axis=2))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_x(cell: str, dtype: str, shape: tuple[int, int, int, int], reverse: bool) -> None:
    """Row b is NaN from step t on, in every unit; nothing else changes by a bit."""
    problem = random_problem(cell, shape, dtype, reverse=reverse)
    clean, clean_state, _ = problem.run()
    for t, b in ((2, shape[1] - 1), (0, 0), (shape[0] - 1, shape[1] // 2)):
        x = problem.x.copy()
        x[t, b, 0] = np.nan
        y, state, _ = problem.with_(x=x).run()
        touched = np.zeros(shape[:2], bool)
        touched[slice(0, t + 1) if reverse else slice(t, None), b] = True
        assert np.array_equal(changed_steps(y, clean), touched)
        assert np.isnan(y[touched]).all()
        others = np.arange(shape[1]) != b
        for got, want in zip(state, clean_state, strict=True):
            assert np.isnan(got[b]).all() and np.array_equal(got[others], want[others])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_the_initial_state(cell: str, shape: tuple[int, int, int, int]) -> None:
    problem = random_problem(cell, shape, "float32")
    clean = problem.run()[0]
    for part in range(len(problem.state)):
        state = tuple(s.copy() for s in problem.state)
        state[part][0, -1] = np.nan
        y = problem.with_(state=state).run()[0]
        others = slice(1, None)
        assert np.isnan(y[0, 0, -1]) and np.isnan(y[1:, 0]).all()
        assert np.array_equal(y[:, others], clean[:, others])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_dy(cell: str, shape: tuple[int, int, int, int], reverse: bool) -> None:
    """Gradients flow against the direction: row b is touched up to step t, the parameters' wholly."""
    problem = random_problem(cell, shape, "float32", reverse=reverse)
    tape = problem.run()[2]
    clean = fr.functional.backward(tape, problem.dy, problem.dstate)
    t, b = 2, shape[1] - 1
    dy = problem.dy.copy()
    dy[t, b] = np.nan
    grads = fr.functional.backward(tape, dy, problem.dstate)
    touched = np.zeros(shape[:2], bool)
    touched[slice(t, None) if reverse else slice(0, t + 1), b] = True
    assert np.array_equal(changed_steps(grads.x, clean.x), touched)
    others = np.arange(shape[1]) != b
    for got, want in zip(states_of(grads.state), states_of(clean.state), strict=True):
        assert np.isnan(got[b]).any() and np.array_equal(got[others], want[others])
    assert np.isnan(grads.params[0]).any() and np.isnan(grads.params[2]).any()


@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_inf_in_x(cell: str, dtype: str, value: float) -> None:
    """An infinite input saturates its gates, as in the reference; the other rows do not change by a bit."""
    problem = random_problem(cell, (5, 3, 4, 9), dtype)
    clean = problem.run()[0]
    x = problem.x.copy()
    x[2, 1, 3] = value
    problem = problem.with_(x=x)
    y, state, _ = problem.run()
    with np.errstate(invalid="ignore"):
        want, want_state, _ = problem.run_reference()
    assert_close(y, want, "output")
    for got, expected in zip(state, want_state, strict=True):
        assert_close(got, expected, "state")
    assert np.array_equal(y[:, [0, 2]], clean[:, [0, 2]]) and np.array_equal(y[:2], clean[:2])


@pytest.mark.parametrize("cell", CELLS)
def test_huge_values(cell: str) -> None:
    """Pre-activations near the largest number, of either sign, saturate and do not become NaN."""
    for dtype in DTYPES:
        problem = random_problem(cell, (1, 3, 4, 9), dtype)
        scale = np.asarray(np.finfo(dtype).max / 16, dtype)
        y, _, tape = problem.with_(x=problem.x * scale / np.abs(problem.x).max()).run()
        assert not np.isnan(y).any()
        if cell != "rnn_relu":
            assert np.isfinite(y).all()
            assert np.isfinite(fr.functional.backward(tape, problem.dy).params[1]).all()


@pytest.mark.parametrize("where", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_the_weights(cell: str, where: str) -> None:
    """Never hidden: a NaN in a unit's weights shows in that unit."""
    problem = random_problem(cell, (3, 2, 4, 9))
    problem.params[reference.PARAM_NAMES.index(where)].reshape(-1)[-1] = np.nan
    assert np.isnan(problem.run()[0][:, :, -1]).all()


def test_nan_between_layers() -> None:
    layer = make_module("gru", 4, 9, 3, bidirectional=True)
    x = np.random.default_rng(0).normal(size=(5, 4, 4))
    clean = layer(x)[0]
    x[3, 2] = np.nan
    y = layer(x)[0]
    assert np.isnan(y[:, 2]).any(axis=1).all()
    assert np.array_equal(y[:, [0, 1, 3]], clean[:, [0, 1, 3]])


@pytest.mark.parametrize("name", ["linear", "layer_norm", "cross_entropy"])
def test_rows_of_other_layers(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(13, 9)).astype("float32")
    weight, bias = rng.normal(size=(7, 9)).astype("float32"), rng.normal(size=9).astype("float32")

    def run() -> Any:
        if name == "linear":
            return fr._core.linear_forward(x, weight, None)
        if name == "layer_norm":
            return fr._core.layer_norm_forward(x, bias, bias, 1e-5)[0]
        return fr._core.cross_entropy(x, np.zeros(13, np.int64), None, -100, 0.0, False)[2]

    clean = run()
    x[5, 3] = np.nan
    got = run()
    assert np.isnan(got[5]).all()
    assert np.array_equal(np.delete(got, 5, axis=0), np.delete(clean, 5, axis=0))


@pytest.mark.parametrize("end", ["front", "back"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_guard_pages(dtype: str, end: str) -> None:
    """Every operand flush against a page that may be neither read nor written, before it or behind it."""
    done = run_python("guard_pages.py", dtype, end, timeout=240)
    assert_ran(done)
    assert done.stdout.splitlines()[-1] == "done"
