"""Cells that are data in the drivers: forward and all gradients against slow networks of their equations.

The ISA under test is the one in use: the suite is run once per value of FUSEDRNN_ISA.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import program_reference as programs
import pytest
import reference
from defined_cells import GRU, LSTM, PEEPHOLE, SPIKING
from program_reference import IND_RNN, MEMORYLESS, MIN_GRU, THREE, many_gates, random_problem
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

import fusedrnn as fr
from fusedrnn import _core
from fusedrnn.symbolic import DefinedCell
from fusedrnn.symbolic.operations import PROGRAM_OPERATIONS

DTYPES = ("float32", "float64")
CELLS = (PEEPHOLE, LSTM, GRU, IND_RNN, MIN_GRU, THREE, MEMORYLESS)
# (T, B, I, H)
SHAPES = [
    (0, 2, 1, 3),
    (1, 1, 1, 1),
    (7, 1, 5, 17),
    (7, 2, 0, 3),
    (7, 5, 5, 33),
    (1, 33, 1, 17),
    (7, 33, 5, 33),
    (3, 40, 3, 8),
    (5, 1, 2, 300),
]


def check(problem: programs.Problem, **more: Any) -> programs.Results:
    got, want = programs.run(problem, **more), programs.reference(problem)
    assert set(got.dparams) == set(want.dparams)
    for name, value in want.arrays().items():
        quantity = "gradient" if name.startswith("d") else "output"
        result = got.arrays()[name]
        assert result.dtype == problem.x.dtype
        assert_close(result, value, quantity, f"{problem.cell.name} {name}")
    y, final = programs.infer(problem, **more)
    assert np.array_equal(y, got.y)
    for a, b in zip(final, got.final, strict=True):
        assert np.array_equal(a, b)
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_reference(cell: DefinedCell, shape: tuple[int, int, int, int], dtype: str) -> None:
    check(random_problem(cell, shape, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rows", ["lengths", "resets", "both"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_sequences(cell: DefinedCell, rows: str, recompute: bool, reverse: bool, dtype: str) -> None:
    """Lengths, resets, directions; what is kept computed once more is what was kept, to the bit."""
    resets = {"lengths": "", "resets": "row", "both": "each"}[rows]
    for shape in [(7, 5, 5, 17), (6, 33, 3, 8), (7, 2, 3, 33), (9, 1, 2, 9)]:
        problem = random_problem(cell, shape, dtype, lengths=rows != "resets", resets=resets, reverse=reverse)
        got = check(problem, recompute=recompute)
        if recompute:
            for name, value in programs.run(problem).arrays().items():
                assert np.array_equal(got.arrays()[name], value), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", range(1, 13))
def test_any_number_of_gates(count: int, dtype: str) -> None:
    check(random_problem(many_gates(count), (4, 3, 2, 9), dtype, lengths=True))


@pytest.mark.parametrize("count", [2, 4, 5, 8])
def test_many_states_and_parameters(count: int) -> None:
    for batch in (1, 7, 40):
        cell = programs.delay_line(count)
        for recompute in (False, True):
            problem = random_problem(cell, (6, batch, 3, 19), "float64", lengths=True, resets="each")
            check(problem, recompute=recompute)


def test_many_gates_and_rows() -> None:
    check(random_problem(many_gates(32), (3, 40, 2, 35), "float32", resets="zero"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_surrogate_gradients(dtype: str) -> None:
    """Spikes are 0 or 1, and gradients pass through them."""
    problem = random_problem(SPIKING, (9, 6, 4, 21), "float64", resets="zero")
    want = programs.reference(problem)
    assert 0 < want.y.mean() < 1
    got = programs.run(problem)
    for name, value in want.arrays().items():
        assert_close(got.arrays()[name], value, "gradient", name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "name"), [(LSTM, "lstm"), (GRU, "gru")])
@pytest.mark.parametrize("rows", ["", "lengths resets"])
def test_against_compiled(cell: DefinedCell, name: str, rows: str, dtype: str) -> None:
    """The same bits: the program takes the compiled cell's operations, in its order."""
    for shape in [(1, 5, 5, 33), (20, 1, 8, 64), (12, 33, 16, 40), (100, 4, 8, 48)]:
        problem = random_problem(
            cell, shape, dtype, lengths="lengths" in rows, resets="row" if "resets" in rows else ""
        )
        got = programs.run(problem)
        order = reference.PARAM_NAMES
        params = tuple(problem.params.get(key) for key in order)
        y, final, tape = _core.forward(name, problem.x, params, problem.state, save=True, **problem.options)
        assert tape is not None
        dx, dstate, dparams = _core.backward(tape, problem.dy, problem.dstate)
        grads = {key: value for key, value in zip(order, dparams, strict=True) if value is not None}
        assert dx is not None
        want = programs.Results(y, final, dx, dstate, grads)
        for key, value in want.arrays().items():
            assert np.array_equal(got.arrays()[key], value), (key, shape)


@pytest.mark.parametrize("cell", [PEEPHOLE, GRU, IND_RNN, THREE], ids=lambda cell: cell.name)
def test_reference_by_central_differences(cell: DefinedCell) -> None:
    problem = random_problem(cell, (4, 3, 2, 3), "float64", lengths=True, resets="row")
    results = programs.reference(problem)

    def loss() -> float:
        r = programs.reference(problem)
        return float((r.y * problem.dy).sum()) + sum(
            float((a * b).sum()) for a, b in zip(r.final, problem.dstate, strict=True)
        )

    assert problem.state is not None
    given = {"x": problem.x} | problem.params
    given |= {f"state {k}": value for k, value in enumerate(problem.state)}
    for name, array in given.items():
        numeric = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            old, values = array[at], []
            for step in (-2e-3, -1e-3, 1e-3, 2e-3):
                array[at] = old + step
                values.append(loss())
            array[at] = old
            numeric[at] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12e-3
        assert relative_error(results.arrays()[f"d{name}"], numeric) < CENTRAL_DIFFERENCES, name


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_threads(cell: DefinedCell) -> None:
    """Equal bits with one, two and three threads, whether they share rows or units."""
    before = fr.get_num_threads()
    try:
        for shape in [(30, 40, 64, 96), (30, 2, 128, 300)]:
            problem = random_problem(cell, shape, "float32", lengths=True, resets="zero")
            fr.set_num_threads(1)
            want = programs.run(problem).arrays()
            for threads in (2, 3):
                fr.set_num_threads(threads)
                for recompute in (False, True):
                    got = programs.run(problem, recompute=recompute).arrays()
                    for name, value in want.items():
                        assert np.array_equal(got[name], value), (threads, name)
    finally:
        fr.set_num_threads(before)


@pytest.mark.parametrize("cell", [PEEPHOLE, GRU, MIN_GRU, THREE], ids=lambda cell: cell.name)
def test_nan_stays_in_its_row(cell: DefinedCell) -> None:
    """Of outputs, states and their gradients; other rows keep their bits."""
    for shape in [(5, 7, 3, 11), (5, 3, 3, 40)]:
        problem = random_problem(cell, shape, "float32", lengths=True, resets="zero")
        want = programs.run(problem)
        problem.x[:, 1] = np.nan
        got = programs.run(problem)
        others = np.arange(shape[1]) != 1
        assert np.isnan(got.y[:, 1]).any() or not (want.y[:, 1] != 0).any()
        assert np.array_equal(got.y[:, others], want.y[:, others])
        assert np.array_equal(got.dx[:, others], want.dx[:, others])
        for a, b in zip(got.final + got.dstate, want.final + want.dstate, strict=True):
            assert np.array_equal(a[others], b[others])


def test_padded_lanes() -> None:
    """What a program makes of zeros, here NaN and Inf, in lanes past the last unit gets nowhere."""
    from fusedrnn.symbolic import define_cell, sym

    def step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
        c = x.u / p.a + 0.5 * s.c / p.a
        return {"h": sym.tanh(c + h.u) * sym.log(p.a + 1), "c": c + 1 / p.a}

    cell = define_cell("quotients", "u", "h c", step, parameters="a")
    for hidden in (1, 3, 9, 17, 33):
        for batch in (1, 3, 9):
            problem = random_problem(cell, (5, batch, 3, hidden), "float64", lengths=True, resets="each")
            problem.params["a"] = 1.5 + np.abs(problem.params["a"])
            for recompute in (False, True):
                check(problem, recompute=recompute)


def test_strided_arrays() -> None:
    """Inputs, outputs and their gradients in any layout."""
    problem = random_problem(PEEPHOLE, (6, 9, 5, 24), "float32", resets="zero")
    want = programs.run(problem)
    key, constants = programs.register(PEEPHOLE)
    params = tuple(problem.params.get(parameter[0]) for parameter in constants["parameters"])
    x = np.ascontiguousarray(problem.x.transpose(1, 0, 2)).transpose(1, 0, 2)
    out = np.zeros((9, 6, 30), np.float32).transpose(1, 0, 2)[:, ::-1, :24]
    y, _, tape = _core.forward(key, x, params, problem.state, save=True, out=out, **problem.options)
    assert tape is not None
    assert np.array_equal(y, want.y)
    dx, _, dparams = _core.backward(tape, problem.dy, problem.dstate)
    assert np.array_equal(dx, want.dx)
    assert np.array_equal(dparams[0], want.dparams["weight_ih"])


def test_lookup() -> None:
    """Inputs that are rows of a table."""
    for cell in (PEEPHOLE, MIN_GRU):
        problem = random_problem(cell, (6, 5, 4, 19), "float64", lengths=True)
        rng = np.random.default_rng(0)
        table, indices = rng.standard_normal((7, 4)), rng.integers(0, 7, (6, 5))
        problem.x = table[indices]
        want = programs.run(problem)
        key, constants = programs.register(cell)
        params = tuple(problem.params.get(parameter[0]) for parameter in constants["parameters"])
        y, _, tape = _core.forward(
            key, table, params, problem.state, indices=indices, save=True, **problem.options
        )
        assert tape is not None
        assert_close(y, want.y, "output")
        dx, _, dparams = _core.backward(tape, problem.dy, problem.dstate)
        dtable = np.zeros_like(table)
        np.add.at(dtable, indices, want.dx)
        assert_close(dx, dtable, "gradient")
        assert_close(dparams[0], want.dparams["weight_ih"], "gradient")


@pytest.mark.parametrize("cell", [PEEPHOLE, THREE, IND_RNN], ids=lambda cell: cell.name)
def test_stream(cell: DefinedCell) -> None:
    """Step by step the same bits as a sequence."""
    for batch in (1, 3):
        problem = random_problem(cell, (5, batch, 4, 21), "float32")
        problem.state = None
        key, constants = programs.register(cell)
        params = tuple(problem.params.get(parameter[0]) for parameter in constants["parameters"])
        stream = _core.Stream(key, [params], batch)
        y, final = programs.infer(problem)
        for t in range(5):
            assert_close(stream(problem.x[t]), y[t], "output")
        for got, want in zip(stream.get_state()[0], final, strict=True):
            assert_close(got, want, "state")


class TestDefinitions:
    """What `define_program` refuses: nothing of it reaches a kernel."""

    def arguments(self) -> dict[str, Any]:
        return programs.arguments(PEEPHOLE)

    def test_twice(self) -> None:
        first = _core.define_program("twice", **self.arguments())
        assert _core.define_program("twice", **self.arguments()) == first
        names = [parameter[0] for parameter in first["parameters"]]
        assert names == ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "i", "f", "o"]
        with pytest.raises(ValueError, match="key: expected one of its own for each definition, got 'twice'"):
            _core.define_program("twice", **programs.arguments(GRU))
        with pytest.raises(ValueError, match="key: expected none of a compiled cell, got 'gru'"):
            _core.define_program("gru", **self.arguments())

    def test_without_product(self) -> None:
        _, constants = programs.register(IND_RNN)
        names = [parameter[0] for parameter in constants["parameters"]]
        assert names == ["weight_ih", "bias_ih", "weight_hr", "u"]

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            ("gates", 0, "gates: expected"),
            ("gates", 33, "gates: expected"),
            ("gates", 3, "inputs: expected names of the cell's values, got 'a.3'"),
            ("states", 9, "states: expected"),
            ("states", 1, "expected names of the cell's values"),
            ("saved", 257, "saved: expected"),
            ("saved", 9, r"outputs: expected saved\.[0-9]+ among them, got none"),
            ("split_gates", True, "expected names of the cell's values, got 'a.0'"),
            ("direct_hidden", True, "outputs: expected ds.0 among them"),
            (
                "per_unit",
                ["i", "f", "weight_ih"],
                "per_unit: expected names of their own, got 'weight_ih' twice",
            ),
            ("per_unit", [f"p{i}" for i in range(17)], "per_unit: expected at most 16 names, got 17"),
        ],
    )
    def test_shape(self, place: str, value: Any, message: str) -> None:
        given = self.arguments()
        given[place] = value
        if place == "per_unit":
            given["per_unit_values"] = [1] * len(value)
        with pytest.raises(ValueError, match=message):
            _core.define_program("malformed", **given)

    def test_program(self) -> None:
        given = self.arguments()
        good = given["forward"][0]
        first = len(good["constants"]) + len(good["inputs"])
        cases: list[tuple[str, Any, str]] = [
            ("slots", 257, "slots: expected"),
            ("slots", first, "slots: expected at least one for each"),
            ("inputs", [*good["inputs"][:-1], "p.9"], "inputs: expected names"),
            ("outputs", [*good["outputs"][:-1], "next.0"], "outputs: expected each once"),
            ("outputs", [*good["outputs"][:-1], "saved.99"], "outputs: expected names"),
        ]
        code = good["code"].copy()
        code[0, 0] = len(PROGRAM_OPERATIONS)
        cases.append(("code", code, "code: expected numbers in"))
        code = good["code"].copy()
        code[0, 1] = 0
        cases.append(("code", code, "code: expected numbers in"))
        code = good["code"].copy()
        code[0, 2] = good["slots"] - 1
        cases.append(("code", code, "to be written before it is read"))
        cases.append(("code", good["code"][:-1], "to be written, got no instruction"))
        for name, value, message in cases:
            given["forward"] = [good | {name: value}]
            with pytest.raises(ValueError, match=f"forward: .*{message}|^{message}"):
                _core.define_program("malformed", **given)
        given["forward"] = [{name: value for name, value in good.items() if name != "code"}]
        with pytest.raises(ValueError, match="forward: expected an entry 'code'"):
            _core.define_program("malformed", **given)
        given["forward"] = [good | {"inputs": [1, 2]}]
        with pytest.raises(TypeError, match="forward: inputs: expected a list of names"):
            _core.define_program("malformed", **given)

    def test_reads_what_is_not_there(self) -> None:
        given = self.arguments()
        given["hidden_product"] = False
        given["split_gates"] = True
        for each, kind in (("forward", "h"), ("inference", "x")):
            stage = given[each][0]
            given[each] = [stage | {"inputs": [n.replace("a.", f"{kind}.") for n in stage["inputs"]]}]
        with pytest.raises(ValueError, match="inputs: expected h"):
            _core.define_program("malformed", **given)

    def test_unknown(self) -> None:
        x = np.zeros((1, 1, 1), np.float32)
        with pytest.raises(ValueError, match="cell: expected one of lstm, gru"):
            _core.forward("nothing", x, (None,) * 5)
        key, _ = programs.register(LSTM)
        with pytest.raises(ValueError, match="cell: expected one with quantized kernels, got test:lstm"):
            _core.Quantized(key, [[(None,) * 5]], "bf16")
