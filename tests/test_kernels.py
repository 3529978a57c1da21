"""The compiled kernels of one layer and direction against the reference.

The ISA under test is the one in use: the suite is run once per value of FUSEDRNN_ISA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from support import CELLS, DTYPES, LAYOUTS, Array, Problem, numeric_gradient, random_problem, states_of
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

import fusedrnn as fr

# (T, B, I, H): every listed size of each, combined to meet the tails of tiles in rows, units and depth.
# With one unit a gradient is one number; (2, 3, 8, 1) is not among those whose random terms happen to cancel.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 8, 1),
    (20, 5, 1, 1),
    (1, 1, 5, 7),
    (7, 3, 5, 7),
    (2, 13, 33, 7),
    (2, 1, 8, 8),
    (20, 3, 8, 8),
    (7, 8, 5, 8),
    (7, 1, 33, 9),
    (1, 5, 5, 9),
    (7, 13, 1, 9),
    (20, 1, 5, 17),
    (2, 3, 33, 17),
    (7, 2, 1, 17),
    (1, 13, 8, 17),
    (2, 1, 1, 33),
    (20, 2, 5, 33),
    (7, 8, 33, 33),
    (3, 1, 5, 22),
    (2, 3, 5, 27),
    (3, 2, 9, 40),
    (2, 7, 3, 90),
    (1, 5, 33, 128),
    (7, 1, 8, 128),
    (2, 13, 5, 128),
    (7, 3, 33, 128),
]
VARIANTS = [*((cell, False) for cell in CELLS), ("lstm", True)]


def check(problem: Problem) -> None:
    """Outputs, final states and every gradient against the reference."""
    y, state, tape = problem.run()
    want_y, want_state, want_tape = problem.run_reference()
    assert y.dtype == problem.x.dtype
    assert_close(y, want_y, "output", "y")
    for k, (got, want) in enumerate(zip(state, want_state, strict=True)):
        assert_close(got, want, "state", f"state {k}")
    grads = fr.functional.backward(tape, problem.dy, problem.dstate)
    dx, dstate, dparams = reference.backward(want_tape, problem.dy, problem.dstate)
    assert grads.x.dtype == problem.x.dtype
    assert_close(grads.x, dx, "gradient", "dx")
    for k, (got, want) in enumerate(zip(states_of(grads.state), dstate, strict=True)):
        assert_close(got, want, "gradient", f"dstate {k}")
    for name, got, want in zip(reference.CELLS[problem.cell].param_names, grads.params, dparams, strict=True):
        assert (got is None) == (want is None), name
        if want is not None:
            assert_close(got, want, "gradient", f"d{name}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "projected"), VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(shape: tuple[int, int, int, int], cell: str, projected: bool, dtype: str) -> None:
    check(random_problem(cell, shape, dtype, proj=(shape[3] + 1) // 2 if projected else 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "projected"), VARIANTS)
def test_random_shapes(cell: str, projected: bool, dtype: str) -> None:
    rng = np.random.default_rng([len(cell), projected, len(dtype)])
    for seed in range(12):
        shape = (*rng.integers(1, [9, 14, 40]), int(rng.integers(1, 70)))
        proj = int(rng.integers(1, shape[3] + 1)) if projected and shape[3] > 1 else 0
        check(random_problem(cell, shape, dtype, seed=seed, proj=proj if proj < shape[3] else 0))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "projected"), VARIANTS)
def test_directions(cell: str, projected: bool, dtype: str, reverse: bool) -> None:
    for shape in [(1, 1, 3, 9), (7, 5, 3, 17), (6, 9, 8, 8)]:
        check(random_problem(cell, shape, dtype, proj=4 if projected else 0, reverse=reverse))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "projected"), VARIANTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", range(8))
def test_optional_inputs(cell: str, projected: bool, dtype: str, bias: bool, given: int) -> None:
    """With and without biases, initial state, dy, and gradient of the final state."""
    problem = random_problem(cell, (7, 3, 5, 9), dtype, proj=4 if projected else 0, bias=bias)
    problem = problem.with_(
        state=problem.state if given & 1 else None,
        dy=problem.dy if given & 2 else None,
        dstate=problem.dstate if given & 4 else None,
    )
    if given & 6 == 0:
        problem = problem.with_(dy=np.zeros((7, 3, 4 if projected else 9), dtype))
    check(problem)


@pytest.mark.parametrize("part", [0, 1])
def test_half_a_state(part: int) -> None:
    """Either of h and c may be left out of the state and of its gradient."""
    problem = random_problem("lstm", (4, 3, 5, 9))

    def half(state: Any) -> tuple[Any, ...]:
        return tuple(s if k == part else None for k, s in enumerate(state))

    check(problem.with_(state=half(problem.state), dstate=half(problem.dstate)))


@pytest.mark.parametrize("part", [2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_one_bias_of_two(cell: str, part: int) -> None:
    problem = random_problem(cell, (4, 3, 5, 9))
    check(problem.with_(params=tuple(None if k == part else p for k, p in enumerate(problem.params))))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_layouts(cell: str, dtype: str, layout: str) -> None:
    """Any stride and alignment of x, the states, and the gradients that backward is given."""
    lay = LAYOUTS[layout]
    for shape in [(5, 3, 6, 9), (4, 8, 8, 16)]:
        problem = random_problem(cell, shape, dtype)
        check(
            problem.with_(
                x=lay(problem.x),
                state=tuple(map(lay, problem.state)),
                dy=lay(problem.dy),
                dstate=tuple(map(lay, problem.dstate)),
            )
        )


@pytest.mark.parametrize("layout", ["read_only", "byte_misaligned", "element_misaligned"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_layouts_of_weights(cell: str, dtype: str, layout: str) -> None:
    problem = random_problem(cell, (5, 3, 6, 9), dtype)
    check(problem.with_(params=tuple(None if p is None else LAYOUTS[layout](p) for p in problem.params)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_zero_strides(cell: str, axis: int) -> None:
    """One step, one row or one feature repeated without memory."""
    problem = random_problem(cell, (5, 4, 6, 9))

    def repeated(a: Array) -> Array:
        return np.broadcast_to(a.take([0], axis), a.shape)

    check(problem.with_(x=repeated(problem.x), dy=repeated(problem.dy)))


@pytest.mark.parametrize("cell", CELLS)
def test_swapped_axes(cell: str) -> None:
    """A batch-first array seen time-major."""
    problem = random_problem(cell, (5, 4, 6, 9), "float32")
    check(problem.with_(x=np.ascontiguousarray(problem.x.swapaxes(0, 1)).swapaxes(0, 1)))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("cell", "projected"), VARIANTS)
def test_float64_central_differences(cell: str, projected: bool, reverse: bool) -> None:
    """The gradients belong to the forward kernel itself, whatever the reference says."""
    problem = random_problem(cell, (3, 2, 3, 4), proj=2 if projected else 0, seed=3, reverse=reverse)

    def value() -> float:
        y, state, _ = problem.run()
        return float(
            np.sum(y * problem.dy) + sum(np.sum(s * d) for s, d in zip(state, problem.dstate, strict=True))
        )

    grads = fr.functional.backward(problem.run()[2], problem.dy, problem.dstate)
    pairs = [(problem.x, grads.x), *zip(problem.state, states_of(grads.state), strict=True)]
    pairs += zip(problem.params, grads.params, strict=True)
    for at, gradient in pairs:
        if at is not None:
            assert relative_error(gradient, numeric_gradient(value, at)) <= CENTRAL_DIFFERENCES


@pytest.mark.parametrize("cell", CELLS)
def test_saturated_gates(cell: str) -> None:
    """Large pre-activations: nothing overflows, and values and gradients stay relative-accurate."""
    for dtype in DTYPES:
        problem = random_problem(cell, (3, 3, 5, 9), dtype)
        scale = 1.0 if cell == "rnn_relu" else 30.0
        y, state, _ = problem.with_(x=problem.x * np.asarray(scale, dtype)).run()
        want_y, want_state, _ = problem.with_(x=problem.x * np.asarray(scale, dtype)).run_reference()
        assert_close(y, want_y, "output", "y")
        for got, want in zip(state, want_state, strict=True):
            assert_close(got, want, "state")


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_inference_equals_training(cell: str, reverse: bool) -> None:
    """Bit for bit, with and without a tape."""
    for shape in [(6, 1, 5, 9), (6, 9, 8, 32)]:
        problem = random_problem(cell, shape, "float32")
        core = fr._core
        plain = core.forward(cell, problem.x, problem.params, problem.state, reverse=reverse)
        kept = core.forward(cell, problem.x, problem.params, problem.state, reverse=reverse, save=True)
        assert plain[2] is None and kept[2] is not None
        assert np.array_equal(plain[0], kept[0])
        for a, b in zip(plain[1], kept[1], strict=True):
            assert np.array_equal(a, b)


def _poisoned(shape: tuple[int, ...], dtype: str) -> Array:
    return np.full(shape, np.nan, dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_in_place(cell: str, dtype: str, reverse: bool) -> None:
    """out and state_out are filled completely and nothing else is; the results are those arrays."""
    problem = random_problem(cell, (5, 3, 6, 9), dtype, lengths=np.array([2, 0, 5]), reverse=reverse)
    want_y, want_state, _ = problem.run()
    both = _poisoned((5, 3, 18), dtype)
    states = tuple(_poisoned(s.shape, dtype) for s in want_state)
    for half in (slice(0, 9), slice(9, 18)):
        y, state, _ = fr._core.forward(
            cell,
            problem.x,
            problem.params,
            problem.state,
            **problem.options,
            out=both[..., half],
            state_out=states,
        )
        assert np.shares_memory(y, both) and all(
            np.shares_memory(a, b) for a, b in zip(state, states, strict=True)
        )
        assert np.array_equal(both[..., half], want_y)
        assert half.stop == 18 or np.isnan(both[..., 9:]).all()
        for got, want in zip(states, want_state, strict=True):
            assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "projected"), VARIANTS)
def test_gradients_are_added(cell: str, projected: bool, dtype: str) -> None:
    """dparams and, on request, dx are added to; need_dx=False computes none and changes nothing else."""
    problem = random_problem(cell, (5, 3, 6, 9), dtype, proj=4 if projected else 0)
    tape = problem.run()[2]
    grads = fr.functional.backward(tape, problem.dy, problem.dstate)
    core_tape = fr._core.forward(cell, problem.x, problem.params, problem.state, save=True)[2]
    ones = tuple(None if p is None else np.ones_like(p) for p in problem.params)
    dx = np.ones_like(problem.x)
    got_dx, dstate, got = fr._core.backward(
        core_tape, problem.dy, problem.dstate, dparams=ones, dx=dx, accumulate_dx=True
    )
    assert np.shares_memory(got_dx, dx)
    assert_close(dx - 1.0, grads.x, "gradient", "dx", "float32")
    for mine, returned, want in zip(ones, got, grads.params, strict=True):
        if want is not None:
            assert np.shares_memory(mine, returned)
            assert_close(mine, 1.0 + want, "gradient")
    none_dx, dstate_again, without = fr._core.backward(core_tape, problem.dy, problem.dstate, need_dx=False)
    assert none_dx is None
    for a, b in zip(without, grads.params, strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)
    for a, b in zip(dstate, dstate_again, strict=True):
        assert np.array_equal(a, b)
    filled = _poisoned(problem.x.shape, dtype)
    fr._core.backward(core_tape, problem.dy, problem.dstate, dx=filled)
    assert np.array_equal(filled, grads.x)


@pytest.mark.parametrize("cell", CELLS)
def test_backward_again(cell: str) -> None:
    """A tape serves any number of backward passes, each the same bit for bit."""
    problem = random_problem(cell, (5, 3, 6, 9), "float32")
    tape = problem.run()[2]
    first = fr.functional.backward(tape, problem.dy, problem.dstate)
    fr.functional.backward(tape, 2.0 * problem.dy, None)
    again = fr.functional.backward(tape, problem.dy, problem.dstate)
    assert np.array_equal(first.x, again.x)
    for a, b in zip(first.params, again.params, strict=True):
        assert (a is None and b is None) or np.array_equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(0, 3, 5, 9), (4, 0, 5, 9), (4, 3, 0, 9), (0, 0, 0, 1)], ids=str)
def test_empty_sizes(cell: str, shape: tuple[int, int, int, int]) -> None:
    for dtype in DTYPES:
        check(random_problem(cell, shape, dtype))


@pytest.mark.parametrize("cell", CELLS)
def test_packed_weights_follow_the_arrays(cell: str) -> None:
    """A weight cache notices that the arrays were changed in place, and other arrays of the same shape."""
    problem = random_problem(cell, (4, 3, 5, 9))
    cache = fr._core.WeightCache()

    def outputs(params: tuple[Any, ...]) -> Array:
        y: Array = fr._core.forward(cell, problem.x, params, problem.state, cache=cache)[0]
        return y

    assert_close(outputs(problem.params), problem.run_reference()[0], "output")
    assert cache.nbytes > 0
    other = random_problem(cell, (4, 3, 5, 9), seed=8).params
    assert_close(outputs(other), problem.with_(params=other).run_reference()[0], "output")
    for part in range(4):
        before = outputs(problem.params)
        problem.params[part].reshape(-1)[-1] += 0.5
        assert_close(outputs(problem.params), problem.run_reference()[0], "output")
        assert not np.array_equal(outputs(problem.params), before)


def test_inputs_are_left_alone() -> None:
    problem = random_problem("lstm", (4, 3, 5, 9), "float32")
    arrays: list[Array] = [problem.x, problem.dy, *problem.params[:4], *problem.state, *problem.dstate]
    copies = [a.copy() for a in arrays]
    fr.functional.backward(problem.run()[2], problem.dy, problem.dstate)
    for a, b in zip(arrays, copies, strict=True):
        assert np.array_equal(a, b)


def test_every_compiled_cell_has_a_reference() -> None:
    compiled = {name: (spec["gates"], spec["states"]) for name, spec in fr._core.cells.items()}
    assert compiled == {name: (cell.gates, cell.states) for name, cell in reference.CELLS.items()}
