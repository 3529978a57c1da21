"""functional.forward and backward on a GPU's arrays: every cell and option against the CPU and the reference.

The emulated build runs the kernels' own source on the CPU; with a device the same tests run there (`-m gpu`).
"""

from __future__ import annotations

import sys
from typing import Any

import fake_cupy
import numpy as np
import pytest
import reference
from cuda_support import DEVICES, converter, host, same_library
from support import CELLS, Problem, random_lengths, random_params, random_problem, states_of
from tolerances import assert_close, relative_error

import fusedrnn as fr
from fusedrnn import _core

pytestmark = pytest.mark.parametrize("device", DEVICES)

NAMES = reference.PARAM_NAMES
# Relative L2 errors against float64: forward, gradients.
MODES = {
    "ieee": (1e-5, 1e-4),
    "tf32x3": (2e-5, 2e-4),
    "tf32": (2e-3, 5e-3),
    "float16": (2e-3, 1e-2),
    "bfloat16": (1e-2, 3e-2),
}


def on_device(
    problem: Problem, convert: Any, **options: Any
) -> tuple[Any, Any, Any, fr.functional.Gradients]:
    """y, final state, tape and gradients of a problem whose arrays are converted first."""
    options |= problem.options
    for name in ("resets", "reset_state"):
        options[name] = convert(options.get(name))
    y, state, tape = fr.functional.forward(
        problem.cell, convert(problem.x), convert(problem.params), convert(problem.state), **options
    )
    grads = fr.functional.backward(tape, convert(problem.dy), convert(problem.dstate))
    return y, states_of(state), tape, grads


def assert_same_as_reference(
    problem: Problem, results: tuple[Any, Any, Any, fr.functional.Gradients]
) -> None:
    y, state, _, grads = results
    want_y, want_state, tape = problem.run_reference()
    want_dx, want_dstate, want_params = reference.backward(tape, problem.dy, problem.dstate)
    dtype = problem.dtype
    assert_close(host(y), want_y, "output", "y", dtype)
    for got, expected in zip(host(state), want_state, strict=True):
        assert_close(got, expected, "state", "state", dtype)
    assert_close(host(grads.x), want_dx, "gradient", "dx", dtype)
    for got, expected in zip(states_of(host(grads.state)), want_dstate, strict=True):
        assert_close(got, expected, "gradient", "dstate", dtype)
    for name, got, expected in zip(NAMES, grads.params, want_params, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            assert_close(host(got), expected, "gradient", name, dtype)


def random_case(cell: str, seed: int, dtype: str) -> Problem:
    """A problem of random small sizes with random options."""
    rng = np.random.default_rng([seed, CELLS.index(cell)])
    seq_len, batch = int(rng.integers(1, 7)), int(rng.integers(1, 6))
    inputs, hidden = int(rng.integers(1, 10)), int(rng.integers(1, 20))
    proj = int(rng.integers(0, hidden)) if cell == "lstm" and seed % 2 else 0
    options: dict[str, Any] = {"reverse": bool(rng.integers(2))}
    if rng.integers(2):
        options["lengths"] = random_lengths(rng, seq_len, batch)
    if rng.integers(2):
        options["resets"] = rng.random((seq_len, batch)) < 0.3
        widths = reference.CELLS[cell].widths(hidden, proj)
        if rng.integers(2):
            lead = (batch,) if rng.integers(2) else ()
            options["reset_state"] = tuple(rng.normal(size=(*lead, w)).astype(dtype) for w in widths)
    shape = (seq_len, batch, inputs, hidden)
    return random_problem(cell, shape, dtype, seed=seed, proj=proj, bias=bool(rng.integers(4)), **options)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cell", CELLS)
def test_random_problems(cell: str, seed: int, dtype: str, device: str) -> None:
    problem = random_case(cell, seed, dtype)
    results = on_device(problem, converter("torch", device))
    assert_same_as_reference(problem, results)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cell", CELLS)
def test_recomputed_gates(cell: str, seed: int, dtype: str, device: str) -> None:
    problem = random_case(cell, seed, dtype)
    convert = converter("torch", device)
    full, small = on_device(problem, convert), on_device(problem, convert, recompute=True)
    assert_same_as_reference(problem, small)
    np.testing.assert_array_equal(host(small[0]), host(full[0]))
    seq_len, batch, _ = problem.x.shape
    steps = int(np.sum(problem.options.get("lengths", seq_len * batch)))
    gates = steps * problem.params[0].shape[0] // reference.CELLS[cell].gates * _core.cells[cell]["saved"]
    assert full[2].nbytes - small[2].nbytes == gates * problem.x.itemsize


class Looked:
    """A problem whose x are random rows of a table, given to the GPU as a Lookup."""

    def __init__(self, problem: Problem, rows: int) -> None:
        rng = np.random.default_rng(rows)
        seq_len, batch, inputs = problem.x.shape
        self.table = rng.normal(size=(rows, inputs)).astype(problem.dtype)
        self.indices = rng.integers(0, rows, (seq_len, batch))
        self.problem = problem.with_(x=self.table[self.indices])

    def converter(self, convert: Any) -> Any:
        """`convert`, which makes a Lookup of x."""
        x = self.problem.x
        return lambda v: fr.Lookup(convert(self.table), self.indices) if v is x else convert(v)

    def table_gradient(self) -> Any:
        """What the gradient of the table should be."""
        _, _, tape = self.problem.run_reference()
        dx = reference.backward(tape, self.problem.dy, self.problem.dstate)[0]
        gradient = np.zeros(self.table.shape)
        np.add.at(gradient, self.indices, dx)
        return gradient


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [1, 4, 40])
@pytest.mark.parametrize("cell", CELLS)
def test_looked_up_inputs(cell: str, rows: int, seed: int, dtype: str, device: str) -> None:
    looked, convert = Looked(random_case(cell, seed, dtype), rows), converter("torch", device)
    given, recompute = looked.converter(convert), seed > 1
    y, state, tape, grads = on_device(looked.problem, given, recompute=recompute)
    assert_close(host(grads.x), looked.table_gradient(), "gradient", "dtable", dtype)
    _, _, plain, of_rows = on_device(looked.problem, convert, recompute=recompute)
    assert_same_as_reference(looked.problem, (y, state, tape, grads._replace(x=of_rows.x)))
    steps = int(np.sum(looked.problem.options.get("lengths", looked.indices.size)))
    assert tape.nbytes - plain.nbytes == 8 * (looked.indices.size + steps + rows + 1)


@pytest.mark.parametrize("rows", [3, 60])
@pytest.mark.parametrize("mode", ["float16", "bfloat16", "tf32"])
def test_looked_up_inputs_in_fewer_bits(mode: str, rows: int, device: str) -> None:
    torch = pytest.importorskip("torch")
    storage = getattr(torch, mode) if hasattr(torch, mode) else torch.float32
    looked = Looked(random_problem("lstm", (9, 8, 16, 24), "float32"), rows)
    convert = looked.converter(lambda v: None if v is None else converter("torch", device)(v).to(storage))
    problem = looked.problem.with_(state=None, dstate=None)
    with fr.cuda.set_float32_mode("tf32" if mode == "tf32" else "ieee"):
        y, _, tape = fr.functional.forward(
            "lstm", convert(problem.x), [convert(p) for p in problem.params[:4]]
        )
    grads = fr.functional.backward(tape, convert(problem.dy))
    looked.problem = problem
    want_y, _, want_tape = problem.run_reference()
    want_params = reference.backward(want_tape, problem.dy)[2]
    # Inputs and weights are rounded here too: twice what the mode may add.
    forward, gradient = (2 * limit for limit in MODES[mode])
    assert relative_error(host(y), want_y) <= forward
    assert relative_error(host(grads.x), looked.table_gradient()) <= gradient
    for got, want in zip(grads.params[:4], want_params[:4], strict=True):
        assert relative_error(host(got), want) <= gradient


@pytest.mark.parametrize("rows", [2, 9])
def test_tables_of_no_use(rows: int, device: str) -> None:
    convert = converter("torch", device)
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4)):
        looked = Looked(random_problem("gru", shape, "float64"), rows)
        _, _, _, grads = on_device(looked.problem, looked.converter(convert))
        np.testing.assert_array_equal(host(grads.x), np.zeros((rows, 3)))


@pytest.mark.parametrize("library", ["torch", "cupy", "jax", "other"])
def test_tables_of_each_library(library: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "cupy" and device == "emulated":
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    convert = converter(library, device)
    looked = Looked(random_problem("rnn_tanh", (5, 2, 4, 5), "float32"), 3)
    _, _, _, grads = on_device(looked.problem, looked.converter(convert))
    assert same_library(grads.x, convert(looked.table))
    assert_close(host(grads.x), looked.table_gradient(), "gradient", "dtable", "float32")


@pytest.mark.parametrize("library", ["torch", "cupy", "jax", "other"])
def test_results_are_of_the_callers_library(
    library: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "cupy" and device == "emulated":
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    convert = converter(library, device)
    problem = random_problem("lstm", (3, 2, 4, 5), "float32", proj=3, lengths=np.array([3, 1]))
    given = convert(problem.x)
    y, state, tape, grads = on_device(problem, convert)
    assert_same_as_reference(problem, (y, state, tape, grads))
    for result in (y, *state, grads.x, *grads.state, *grads.params):
        assert same_library(result, given)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("recompute", [False, True])
def test_modes_keep_their_promise(recompute: bool, mode: str, cell: str, device: str) -> None:
    torch = pytest.importorskip("torch")
    # A seed where no sum comes so close to zero that rounding flips a relu, whose gradient jumps there.
    exact = random_problem(cell, (6, 4, 16, 24), "float32", seed=0)
    storage = getattr(torch, mode) if hasattr(torch, mode) else torch.float32
    convert = converter("torch", device)

    def rounded(value: Any) -> Any:
        if value is None or isinstance(value, tuple):
            return value and tuple(rounded(item) for item in value)
        return convert(value).to(storage)

    def states(value: tuple[Any, ...]) -> Any:
        # h in the dtype of x, c in float32.
        return (rounded(value[0]), *convert(value[1:]))

    with fr.cuda.set_float32_mode(mode if mode in ("tf32", "tf32x3") else "ieee"):
        y, state, tape = fr.functional.forward(
            cell, rounded(exact.x), rounded(exact.params), states(exact.state), recompute=recompute
        )
    grads = fr.functional.backward(tape, rounded(exact.dy), states(exact.dstate))
    want_y, want_state, want_tape = exact.with_(
        x=host(rounded(exact.x)), params=host(rounded(exact.params)), state=host(states(exact.state))
    ).run_reference()
    want_dx, _, want_params = reference.backward(
        want_tape, host(rounded(exact.dy)), host(states(exact.dstate))
    )
    forward, gradient = MODES[mode]
    assert relative_error(host(y), want_y) <= forward
    for got, expected in zip(host(states_of(state)), want_state, strict=True):
        assert relative_error(got, expected) <= forward
    assert relative_error(host(grads.x), want_dx) <= gradient
    for got, expected in zip(grads.params, want_params, strict=True):
        if got is not None:
            assert got.dtype == torch.float32
            assert relative_error(host(got), expected) <= gradient
    expected_math = {"float16": "fp16", "bfloat16": "bf16"}.get(mode, mode)
    assert tape._layer.math == expected_math


def test_float32_mode_is_of_the_forward_call(device: str) -> None:
    convert = converter("torch", device)
    problem = random_problem("gru", (3, 2, 16, 16), "float32")
    with fr.cuda.set_float32_mode("tf32"):
        _, _, tape = fr.functional.forward("gru", convert(problem.x), convert(problem.params))
    assert fr.cuda.get_float32_mode() == "ieee"
    assert tape._layer.math == "tf32"
    fr.cuda.set_float32_mode("tf32x3")
    assert fr.cuda.get_float32_mode() == "tf32x3"
    fr.cuda.set_float32_mode("ieee")


def test_strided_inputs_and_gradients(device: str) -> None:
    convert = converter("torch", device)
    problem = random_problem("lstm", (3, 4, 5, 6), "float32")
    y, _, tape = fr.functional.forward("lstm", convert(problem.x), convert(problem.params))
    grads = fr.functional.backward(tape, convert(problem.dy))
    # Batch-first in memory, and padded rows.
    x = convert(problem.x.swapaxes(0, 1)).transpose(0, 1)
    wide = convert(np.pad(problem.dy, ((0, 0), (0, 0), (1, 2)), constant_values=np.nan))[..., 1:-2]
    strided, _, strided_tape = fr.functional.forward("lstm", x, convert(problem.params))
    strided_grads = fr.functional.backward(strided_tape, wide)
    np.testing.assert_array_equal(host(strided), host(y))
    np.testing.assert_array_equal(host(strided_grads.x), host(grads.x))


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (1, 1, 1, 1)], ids=["T=0", "B=0", "I=0", "ones"]
)
@pytest.mark.parametrize("cell", CELLS)
def test_empty_sizes(cell: str, shape: tuple[int, int, int, int], device: str) -> None:
    problem = random_problem(cell, shape, "float64")
    assert_same_as_reference(problem, on_device(problem, converter("torch", device)))


def test_results_do_not_change_from_run_to_run(device: str) -> None:
    convert = converter("torch", device)
    problem = random_case("lstm", 1, "float32")
    first = on_device(problem, convert)
    for _ in range(3):
        again = on_device(problem, convert)
        np.testing.assert_array_equal(host(again[0]), host(first[0]))
        for got, want in zip(again[3].params, first[3].params, strict=True):
            np.testing.assert_array_equal(host(got), host(want))


def test_tape_says_what_it_holds(device: str) -> None:
    convert = converter("torch", device)
    problem = random_problem("lstm", (5, 3, 4, 8), "float32")
    _, _, tape = fr.functional.forward("lstm", convert(problem.x), convert(problem.params))
    gates_and_c = 5 * 3 * 8 * (4 + 1) * 4
    assert gates_and_c <= tape.nbytes <= gates_and_c + 1000
    assert "seq_len=5, batch=3" in repr(tape)


def test_params_by_name(device: str) -> None:
    convert = converter("torch", device)
    problem = random_problem("gru", (3, 2, 4, 5), "float32")
    named = {
        name: convert(value) for name, value in zip(NAMES, problem.params, strict=True) if value is not None
    }
    y, _, tape = fr.functional.forward("gru", convert(problem.x), named)
    grads = fr.functional.backward(tape, convert(problem.dy), need_dx=False)
    assert grads.x is None
    assert list(grads.params) == list(named)
    bare_params = random_params(np.random.default_rng(0), "gru", 4, 5, dtype="float32", bias=False)
    fr.functional.forward("gru", convert(problem.x), convert(bare_params[:2]))
    assert y.shape == (3, 2, 5)
