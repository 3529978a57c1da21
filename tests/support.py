"""What several test files share: random problems, memory layouts, central differences, subprocesses."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import data_cells
import numpy as np
import numpy.typing as npt
import reference
from tolerances import assert_close

import fusedrnn as fr

Array = npt.NDArray[Any]

CELLS = tuple(reference.CELLS)
DTYPES = ("float64", "float32")
MODULE_CELLS = ("lstm", "lstm_proj", "gru", "rnn_tanh", "rnn_relu")
# And two that are data, with and without a product of h, which run on the CPU.
HOST_CELLS = (*MODULE_CELLS, "peephole", "sru")
TESTS = Path(__file__).parent


def states_of(state: Any) -> tuple[Any, ...]:
    """A state as a tuple, whether its cell has one array (given bare) or two."""
    return tuple(state) if isinstance(state, (tuple, list)) else (state,)


def bare(state: Any) -> Any:
    """A state as the modules of one-state cells take it: the array itself."""
    return state[0] if isinstance(state, tuple) and len(state) == 1 else state


@dataclass(frozen=True)
class Problem:
    """One layer and direction with random contents: everything that forward and backward take."""

    cell: str
    x: Array
    params: tuple[Any, ...]
    state: Any
    dy: Any
    dstate: Any
    options: dict[str, Any]

    @property
    def dtype(self) -> str:
        return self.x.dtype.name

    def run(self) -> tuple[Array, tuple[Array, ...], Any]:
        """The kernels' (y, state, tape)."""
        y, state, tape = fr.functional.forward(self.cell, self.x, self.params, self.state, **self.options)
        return y, states_of(state), tape

    def run_reference(self) -> tuple[Array, tuple[Array, ...], reference.Tape]:
        return reference.forward(self.cell, self.x, self.params, self.state, **self.options)

    def with_(self, **changes: Any) -> Problem:
        return replace(self, **changes)


def random_params(
    rng: np.random.Generator,
    cell: str,
    inputs: int,
    hidden: int,
    proj: int = 0,
    dtype: str = "float64",
    bias: bool = True,
) -> tuple[Any, ...]:
    """Weights and biases of one layer and direction, of the size of the usual initialisation."""
    rows, outputs = reference.CELLS[cell].gates * hidden, proj or hidden
    bound = 1.0 / np.sqrt(max(hidden, 2))

    def draw(*shape: int) -> Array:
        return rng.uniform(-bound, bound, shape).astype(dtype)

    biases = (draw(rows), draw(rows)) if bias else (None, None)
    dense = (draw(rows, inputs), draw(rows, outputs), *biases, draw(proj, hidden) if proj else None)
    return (*dense, *[draw(values * hidden) for _, values in reference.CELLS[cell].per_unit])


def random_state(
    rng: np.random.Generator,
    cell: str,
    lead: tuple[int, ...],
    hidden: int,
    proj: int = 0,
    dtype: str = "float64",
) -> tuple[Array, ...]:
    widths = reference.CELLS[cell].widths(hidden, proj)
    return tuple(rng.normal(size=(*lead, width)).astype(dtype) for width in widths)


def random_problem(
    cell: str,
    shape: tuple[int, int, int, int],
    dtype: str = "float64",
    *,
    seed: int = 0,
    proj: int = 0,
    bias: bool = True,
    **options: Any,
) -> Problem:
    """A problem of shape (T, B, I, H) with every optional input given."""
    seq_len, batch, inputs, hidden = shape
    rng = np.random.default_rng([seed, *shape])
    return Problem(
        cell,
        rng.normal(size=(seq_len, batch, inputs)).astype(dtype),
        random_params(rng, cell, inputs, hidden, proj, dtype, bias),
        random_state(rng, cell, (batch,), hidden, proj, dtype),
        rng.normal(size=(seq_len, batch, proj or hidden)).astype(dtype),
        random_state(rng, cell, (batch,), hidden, proj, dtype),
        options,
    )


def random_lengths(rng: np.random.Generator, seq_len: int, batch: int) -> Array:
    """Unsorted lengths with a zero and a full row among them where there is room."""
    lengths = rng.integers(0, seq_len + 1, batch)
    lengths[:2] = [seq_len, 0][: min(batch, 2)]
    return np.asarray(rng.permutation(lengths), dtype=np.int64)


# Memory layouts ---------------------------------------------------------------------------------------------


def _transposed(a: Array) -> Array:
    return np.ascontiguousarray(a.T).T


def _sliced(a: Array) -> Array:
    big = np.full([2 * n + 1 for n in a.shape], np.nan, a.dtype)
    view = big[tuple(slice(1, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def _negative(a: Array) -> Array:
    flip = tuple(slice(None, None, -1) for _ in a.shape)
    return np.ascontiguousarray(a[flip])[flip]


def _read_only(a: Array) -> Array:
    view = a.copy()
    view.flags.writeable = False
    return view


def _byte_misaligned(a: Array) -> Array:
    raw = np.empty(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _element_misaligned(a: Array) -> Array:
    raw = np.empty(a.size + 1, a.dtype)
    view = raw[1:].reshape(a.shape)
    view[...] = a
    return view


def _padded_rows(a: Array) -> Array:
    big = np.full((*a.shape[:-1], a.shape[-1] + 3), np.nan, a.dtype)
    view = big[..., 1:-2]
    view[...] = a
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "transposed": _transposed,
    "sliced": _sliced,
    "negative": _negative,
    "read_only": _read_only,
    "byte_misaligned": _byte_misaligned,
    "element_misaligned": _element_misaligned,
    "padded_rows": _padded_rows,
}


# Gradients by central differences ---------------------------------------------------------------------------


def numeric_gradient(f: Callable[[], float], at: Array, step: float = 1e-3) -> Array:
    """df/d(at) by the five-point formula; `f` reads `at`, which is changed in place and restored."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        centre = at[index]
        values = []
        for k in (-2, -1, 1, 2):
            at[index] = centre + k * step
            values.append(f())
        at[index] = centre
        gradient[index] = (values[0] - 8.0 * values[1] + 8.0 * values[2] - values[3]) / (12.0 * step)
    return gradient


# Processes and threads --------------------------------------------------------------------------------------


def run_python(
    *arguments: str, timeout: float = 120.0, **changes: str | None
) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in the tests' folder; `changes` are made to the environment (None: unset)."""
    environment = {**os.environ, **changes}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=TESTS,
        env={name: value for name, value in environment.items() if value is not None},
        check=False,
    )


def assert_ran(done: subprocess.CompletedProcess[str]) -> None:
    """The process ended well: no signal, no error."""
    assert done.returncode == 0, (
        f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    )


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    before = fr.get_num_threads()
    fr.set_num_threads(n)
    try:
        yield
    finally:
        fr.set_num_threads(before)


def in_threads(work: Callable[[], None], count: int) -> None:
    """Run it in so many threads at the same time."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def nothing_kept(step: Callable[[Array], Array], x: Array) -> Iterator[Callable[[int], None]]:
    """400 steps keep no object; gives what makes more of them, without the garbage collector.

    What a thread of another library keeps meanwhile is not there again: a step's own would be, each time.
    """

    def steps(n: int) -> None:
        for _ in range(n):
            step(x)

    steps(50)
    gc.collect()
    gc.disable()
    try:
        kept = 400
        for _ in range(3):
            before = sys.getallocatedblocks()
            steps(400)
            kept = min(kept, sys.getallocatedblocks() - before)
        assert kept <= 2
        yield steps
    finally:
        gc.enable()


# Modules ----------------------------------------------------------------------------------------------------


def make_module(cell: str, inputs: int, hidden: int, num_layers: int = 1, **options: Any) -> Any:
    """The module of a cell; "lstm_proj" is an LSTM that projects to about half its units."""
    options = {"dtype": "float64", "seed": 1, **options}
    if cell in data_cells.CELLS:
        return data_cells.CELLS[cell].make(inputs, hidden, num_layers, **options)
    if cell == "lstm_proj":
        return fr.LSTM(inputs, hidden, num_layers, proj_size=(hidden + 1) // 2, **options)
    if cell == "lstm":
        return fr.LSTM(inputs, hidden, num_layers, **options)
    if cell == "gru":
        return fr.GRU(inputs, hidden, num_layers, **options)
    return fr.RNN(inputs, hidden, num_layers, nonlinearity=cell.removeprefix("rnn_"), **options)


def assert_same_again(
    module: Any, x: Array, y: Array, state: Any, want: tuple[Any, ...], **options: Any
) -> None:
    """With 1 to 3 threads forward gives y, and backward the bits of `want`: dx, dstate and the gradients."""
    for threads in (1, 2, 3):
        with num_threads(threads):
            module.zero_grad()
            again, _, tape = module.forward(x, **options)
            dx, dstate = module.backward(tape, y.copy(), state)
        found = (again, dx, *states_of(dstate), module.flat_grads)
        for got, wanted in zip(found, (y, want[0], *states_of(want[1]), want[2]), strict=True):
            assert np.array_equal(got, wanted)


def assert_streams(module: Any, x: Array, y: Array, state: Any) -> None:
    """The steps of a stream give y (T, B, n) and the state after it."""
    stream = module.stream(x.shape[1])
    for t in range(len(x)):
        assert_close(stream(x[t]), y[t], "output")
    for got, want in zip(states_of(stream.state), states_of(state), strict=True):
        assert_close(got, want, "state")


def layer_params(module: Any, arrays: Any = None) -> list[list[tuple[Any, ...]]]:
    """A module's parameters, or its gradients, as reference.stack_forward takes them: with a weight_hh."""
    arrays = module.parameters if arrays is None else arrays
    names = list(reference.PARAM_NAMES)
    names += [p.name for p in module._spec.parameters if p.role == "per_unit"]
    layers: list[list[tuple[Any, ...]]] = []
    for layer in range(module.num_layers):
        layers.append([])
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            found = [arrays.get(f"{name}_l{layer}{suffix}") for name in names]
            if found[1] is None:
                found[1] = np.zeros((found[0].shape[0], module.hidden_size))
            layers[-1].append(tuple(found))
    return layers
