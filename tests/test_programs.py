"""The interpreter of programs: its functions to a few ULP over the whole range, its operations, whole cells.

Results whose exact value is a denormal number may be flushed to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from defined_cells import CELLS, SHUFFLE, Values, random_inputs
from support import Array
from tolerances import assert_close, ulp_error

import fusedrnn as fr
from fusedrnn import _core
from fusedrnn.symbolic import DefinedCell, Instruction, Program, define_cell
from fusedrnn.symbolic.operations import PROGRAM_OPERATIONS

DTYPES = ("float32", "float64")


def run(program: Program, inputs: Values, dtype: str) -> dict[str, Array]:
    """A program run by the interpreter."""
    constants = np.array(program.constants, dtype)
    given = np.array([inputs[name] for name in program.inputs], dtype)
    got = _core.run_program(program.encoded, constants, given, len(program.outputs), program.temporaries)
    return dict(zip(program.outputs, got, strict=True))


def apply(operation: str, *operands: Array) -> Array:
    names = ("a", "b", "c")[: len(operands)]
    code = Instruction(operation, len(names), tuple(range(len(names))))
    program = Program((), names, ("y",), 0, (code,))
    return run(program, dict(zip(names, operands, strict=True)), operands[0].dtype.name)["y"]


def exact_erf(x: Any) -> Any:
    """By its series near 0 and its continued fraction elsewhere, in the precision of x."""
    small = np.abs(x) < 2.5
    total = term = np.where(small, x, 0)
    for n in range(1, 80):
        term = term * (-x * x / n) * small
        total = total + term / (2 * n + 1)
    a = np.where(small, 3, np.abs(x))
    fraction = a
    for n in range(150, 0, -1):
        fraction = a + (n / x.dtype.type(2)) / fraction
    pi = x.dtype.type("3.14159265358979323846264338327950288")
    with np.errstate(under="ignore"):
        far = np.copysign(1 - np.exp(-a * a) / (fraction * np.sqrt(pi)), x)
    return np.where(small, total * 2 / np.sqrt(pi), far)


FUNCTIONS: dict[str, tuple[Callable[[Any], Any], float]] = {
    "log": (np.log, 2.0),
    "softplus": (lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), 2.0),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), 2.0),
    "erf": (exact_erf, 2.0),
    "sqrt": (np.sqrt, 0.5),
    "sin": (np.sin, 1.0),
    "cos": (np.cos, 1.0),
}


def samples(name: str, dtype: str) -> Array:
    rng = np.random.default_rng(0)
    bits, exponents = (np.uint32, 0x7F800000) if dtype == "float32" else (np.uint64, 0x7FF0000000000000)
    spread = rng.integers(0, exponents, 50_000, dtype=bits).view(dtype)
    dense = [rng.uniform(-r, r, 20_000) for r in (1e-8, 1e-3, 0.1, 0.7, 1.01, 2.0, 7.0, 20.0, 100.0, 760.0)]
    x = np.concatenate(dense).astype(dtype)
    if name in ("sin", "cos"):
        far = rng.uniform(-1, 1, 50_000) * (4096 if dtype == "float32" else 1e6)
        quarters = np.arange(-2000, 2000) * (math.pi / 2)
        return np.concatenate([x, far.astype(dtype), quarters.astype(dtype)])
    if name in ("log", "sqrt"):
        near = 1 + rng.uniform(-1e-3, 1e-3, 20_000)
        x = np.abs(np.concatenate([x, spread, near.astype(dtype), rng.uniform(0.5, 2, 50_000).astype(dtype)]))
        return x[x >= np.finfo(dtype).tiny]
    return np.concatenate([x, spread, -spread]) if name != "erf" else x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, dtype: str) -> None:
    exact, limit = FUNCTIONS[name]
    x = samples(name, dtype)
    with np.errstate(all="ignore"):
        got, want = apply(name, x), exact(x.astype(np.longdouble))
    if name in ("sin", "cos"):
        error = np.abs(got.astype(np.longdouble) - want) / np.finfo(dtype).eps
    else:
        error = ulp_error(got, want)
    at = int(np.argmax(error))
    assert error[at] <= limit, f"{name}({x[at]!r}) = {got[at]!r}: {float(error[at]):.2f} ULP"


INF, NAN = math.inf, math.nan
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "log": [(0, -INF), (-0.0, -INF), (-1, NAN), (-INF, NAN), (INF, INF), (NAN, NAN), (1, 0)],
    "softplus": [(-INF, 0), (INF, INF), (NAN, NAN)],
    "elu": [(-INF, -1), (INF, INF), (NAN, NAN), (0, 0)],
    "erf": [(-INF, -1), (INF, 1), (NAN, NAN), (0, 0), (-0.0, -0.0)],
    "sqrt": [(-1, NAN), (INF, INF), (NAN, NAN), (0, 0), (-0.0, -0.0)],
    "sin": [(-INF, NAN), (INF, NAN), (NAN, NAN), (0, 0)],
    "cos": [(-INF, NAN), (INF, NAN), (NAN, NAN), (0, 1)],
    "relu": [(-INF, 0), (INF, INF), (NAN, NAN), (-1, 0)],
    "abs": [(-INF, INF), (INF, INF), (NAN, NAN), (-0.0, 0)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name: str, dtype: str) -> None:
    for value, want in SPECIAL[name]:
        for place in (0, 2, 18):
            x = np.full(19, 0.25, dtype)
            x[place] = value
            got = apply(name, x)
            assert np.array_equal(got[place], dtype and np.dtype(dtype).type(want), equal_nan=True), value
            assert np.signbit(got[place]) == np.signbit(want) or math.isnan(want), value
            assert np.isfinite(np.delete(got, place)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["less", "less_equal", "minimum", "maximum", "where"])
def test_comparisons(name: str, dtype: str) -> None:
    """Of all pairs of special values, as NumPy's."""
    values = np.array([NAN, INF, -INF, 0.0, 1.0, -1.0, np.finfo(dtype).max, np.finfo(dtype).tiny], dtype)
    a, b = (np.ascontiguousarray(v.ravel()) for v in np.meshgrid(values, values))
    operands = (a, b, b + 1) if name == "where" else (a, b)
    with np.errstate(all="ignore"):
        want = PROGRAM_OPERATIONS[name].evaluate(*operands)
        assert np.array_equal(apply(name, *operands), want, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROGRAM_OPERATIONS)
def test_operations(name: str, dtype: str) -> None:
    """At every length up to several tiles, and the same at every place."""
    rng = np.random.default_rng(1)
    operation = PROGRAM_OPERATIONS[name]
    for size in (1, 2, 7, 16, 33, 300):
        operands = [rng.uniform(0.25, 3, size).astype(dtype) for _ in range(operation.arity)]
        got = apply(name, *operands)
        assert_close(got, operation.evaluate(*(o.astype(np.float64) for o in operands)), "output", name)
        if size > 7:
            part = apply(name, *(np.ascontiguousarray(o[3:]) for o in operands))
            assert np.array_equal(part, got[3:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", [*CELLS.values(), SHUFFLE], ids=lambda cell: cell.name)
def test_cells(cell: DefinedCell, dtype: str) -> None:
    """Forward and backward as the reference evaluates them."""
    inputs = random_inputs(cell.forward.inputs)
    inputs |= random_inputs(tuple(f"dnext.{state}" for state in cell.states), seed=1)
    inputs = {name: value.astype(dtype).astype(np.float64) for name, value in inputs.items()}
    want, got = cell.forward.evaluate(inputs), run(cell.forward, inputs, dtype)
    for name, value in want.items():
        assert_close(got[name], value, "output", name)
    for name, value in run(cell.inference, inputs, dtype).items():
        assert np.array_equal(value, got[name]), name
    saved = {name: value for name, value in got.items() if name.startswith("saved.")}
    inputs |= {name: value.astype(np.float64) for name, value in saved.items()}
    gradients = run(cell.backward, inputs, dtype)
    for name, value in cell.backward.evaluate(inputs).items():
        assert_close(gradients[name], np.broadcast_to(value, gradients[name].shape), "gradient", name)


def test_bad_programs() -> None:
    """Nothing reaches memory that is not the program's."""
    x, none = np.ones((2, 5)), np.zeros(0)
    good = np.array([[1, 2, 0, 1, 0]])
    assert np.array_equal(_core.run_program(good, none, x, 1, 0), np.full((1, 5), 2.0))
    for column, value in [
        (0, -1),
        (0, len(_core.program_operations)),
        (1, 1),
        (1, 3),
        (2, 3),
        (3, -1),
        (4, 2**40),
    ]:
        code = good.copy()
        code[0, column] = value
        with pytest.raises(ValueError, match=f"code: expected numbers in .* in column {column}"):
            _core.run_program(code, none, x, 1, 0)
    with pytest.raises(ValueError, match="code: expected shape"):
        _core.run_program(np.zeros((2, 4), np.int64), none, x, 1, 0)
    with pytest.raises(ValueError, match="expected at most 256 together, got 257"):
        _core.run_program(good, none, x, 5, 250)
    with pytest.raises(TypeError, match="constants"):
        _core.run_program(good, np.zeros(1, np.float32), x, 1, 0)


ZONED: list[DefinedCell] = [
    make(2, 3, zoneout=0.1)._spec.definition  # type: ignore[misc]
    for make in (fr.LSTM, fr.GRU, fr.SLSTM)
]
MOVED = define_cell(
    "moved", "a", "h c m", lambda x, h, s, p: {"h": s.m, "c": s.h + s.c, "m": x.a + h.a + s.c}
)


@pytest.mark.parametrize("cell", [SHUFFLE, MOVED], ids=lambda cell: cell.name)
def test_states_that_change_places(cell: DefinedCell) -> None:
    """States lie where those before them lay, and gradients too: none is written before the last is read."""
    network = fr.Recurrent(cell, 3, 5, dtype="float64", seed=0)
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((4, 2, 3)), tuple(rng.standard_normal((1, 2, 5)) for _ in range(3))
    h, c, m = (part[0] for part in state)
    w = {name.removesuffix("_l0"): value for name, value in network.parameters.items()}
    y, found = network(x, state)
    for t in range(len(x)):
        a = x[t] @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
        h, c, m = (m, h + c, a + c) if cell is MOVED else (c, h, a + m * c * h + c)
        assert_close(y[t], h, "output")
    assert_close(np.concatenate(found), np.stack([h, c, m]), "state")
    assert fr.check_gradients(network, x, state).error < 1e-7


@pytest.mark.once
@pytest.mark.parametrize("cell", [*CELLS.values(), SHUFFLE, MOVED, *ZONED], ids=lambda cell: cell.name)
def test_results_take_the_place_of_what_was_read(cell: DefinedCell) -> None:
    """Each state alone that of the same state before: nothing else is overwritten, and few are copied."""
    rng = np.random.default_rng(0)
    for program, after, before in (
        (cell.forward, "next.", "s."),
        (cell.inference, "next.", "s."),
        (cell.backward, "ds.", "dnext."),
    ):
        inputs = {name: rng.uniform(0.1, 0.9, 5) for name in program.inputs}
        want = program.evaluate(inputs)
        own = {name: value.copy() for name, value in inputs.items()}
        outputs = [own.get(name.replace(after, before, 1), np.zeros(5)) for name in program.outputs]
        slots = [*(np.full(5, c) for c in program.constants), *own.values(), *outputs]
        slots += [np.zeros(5) for _ in range(program.temporaries)]
        for step in program.code:
            operation = PROGRAM_OPERATIONS[step.operation]
            slots[step.to][...] = operation.evaluate(*(slots[i] for i in step.operands))
        for name, got in zip(program.outputs, outputs, strict=True):
            assert np.array_equal(got, want[name]), name
        if cell is ZONED[0]:
            assert "copy" not in str(program)
