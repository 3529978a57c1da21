"""The kernels on XLA's memory: what a compiled program calls, with any axes that vmap has added."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cells import CELLS

__all__ = ["call_text", "run"]

Named = dict[str, Array]
_RANKS = {"x": 3, "y": 3, "dy": 3, "lengths": 1, "tape": 1}


def call_text(kind: str, cell: str, reverse: bool, names: Sequence[str]) -> str:
    """Return what `run` is to do as one string, which the compiled program holds.

    Args:
        kind: "forward" or "backward".
        names: of the arrays that it gets: x, the states, parameters, and lengths and resets where they are
            given; for backward also y, tape, dy, and "d" before the name of each state.
    """
    return "|".join((kind, cell, str(int(reverse)), *names))


@lru_cache(maxsize=1024)
def _parsed(call: str) -> tuple[str, str, bool, tuple[str, ...]]:
    kind, cell, reverse, *names = call.split("|")
    return kind, cell, reverse == "1", tuple(names)


def run(call: str, arguments: list[Array], results: list[Array]) -> None:
    """Fill the results of one layer and direction.

    They are y, the final states and, where there is one more, the tape; of backward the gradients of x, of
    the states and of the given parameters.
    """
    kind, cell, reverse, names = _parsed(call)
    inputs = dict(zip(names, arguments, strict=True))
    function = _backward if kind == "backward" else _forward
    if results[0].ndim == 3:
        function(cell, reverse, inputs, results)
        return
    batch = results[0].shape[:-3]
    keeps = len(results) > 1 + CELLS[cell].states
    if kind == "backward" or keeps or _parameters_are_mapped(cell, inputs):
        _for_each(batch, lambda i, r: function(cell, reverse, i, r), inputs, results)
    else:
        _forward_joined(cell, reverse, batch, inputs, results)


def _forward(cell: str, reverse: bool, inputs: Named, results: Sequence[Array]) -> None:
    spec = CELLS[cell]
    y, *rest = results
    tape = rest[spec.states :]
    _core.forward(
        cell,
        inputs["x"],
        tuple([inputs.get(name) for name in spec.parameter_names]),
        tuple([inputs[name] for name in spec.state_names]),
        lengths=_lengths(inputs),
        resets=inputs.get("resets"),
        reverse=reverse,
        save=bool(tape),
        out=y,
        state_out=tuple(rest[: spec.states]),
        tape_out=tape[0] if tape else None,
    )


def _backward(cell: str, reverse: bool, inputs: Named, results: Sequence[Array]) -> None:
    spec = CELLS[cell]
    params = tuple([inputs.get(name) for name in spec.parameter_names])
    call = _core.ForwardCall(
        cell,
        inputs["x"],
        params,
        tuple([inputs[name] for name in spec.state_names]),
        lengths=_lengths(inputs),
        resets=inputs.get("resets"),
        reverse=reverse,
        save=True,
        out=inputs["y"],
        tape_out=inputs["tape"],
    )
    dx, *rest = results
    dstates, grads = rest[: spec.states], iter(rest[spec.states :])
    dparams = tuple([None if array is None else next(grads) for array in params])
    for grad in rest[spec.states :]:
        grad[...] = 0
    dfinal = tuple([inputs[f"d{name}"] for name in spec.state_names])
    _, found, _ = _core.backward(call.tape(), inputs["dy"], dfinal, dparams, dx=dx)
    for to, part in zip(dstates, found, strict=True):
        to[...] = part


def _lengths(inputs: Named) -> Array | None:
    lengths = inputs.get("lengths")
    return None if lengths is None else lengths.astype(np.int64)


def _rank(name: str) -> int:
    """How many axes an array has, without those of vmap."""
    return _RANKS.get(name, 1 if name.startswith("bias") else 2)


def _added(name: str, array: Array) -> tuple[int, ...]:
    """The axes that vmap has added; of size 1 for what it does not map."""
    return array.shape[: array.ndim - _rank(name)]


def _parameters_are_mapped(cell: str, inputs: Named) -> bool:
    names = CELLS[cell].parameter_names
    return any(math.prod(_added(name, inputs[name])) > 1 for name in names if name in inputs)


def _for_each(
    batch: tuple[int, ...],
    function: Callable[[Named, Sequence[Array]], None],
    inputs: Named,
    results: Sequence[Array],
) -> None:
    """Call the function with views of every batch."""
    for index in np.ndindex(batch):
        own = {
            name: array[tuple([i if n > 1 else 0 for i, n in zip(index, _added(name, array), strict=True)])]
            for name, array in inputs.items()
        }
        function(own, [array[index] for array in results])


def _forward_joined(
    cell: str, reverse: bool, batch: tuple[int, ...], inputs: Named, results: Sequence[Array]
) -> None:
    """One call, of which all batches are rows: they have the parameters in common."""
    count, parameters = math.prod(batch), CELLS[cell].parameter_names
    joined = {
        name: array.reshape(array.shape[array.ndim - _rank(name) :])
        if name in parameters
        else _joined(array, batch, 1 if name in ("x", "resets") else 0, _rank(name))
        for name, array in inputs.items()
    }
    y, *finals = results
    steps, rows, width = y.shape[-3:]
    made = np.empty((steps, count * rows, width), y.dtype)
    _forward(cell, reverse, joined, [made, *[s.reshape(count * rows, s.shape[-1]) for s in finals]])
    y[...] = np.moveaxis(made.reshape(steps, count, rows, width), 1, 0).reshape(y.shape)


def _joined(array: Array, batch: tuple[int, ...], axis: int, rank: int) -> Array:
    """Return an array with the axes of vmap and that of the batch, its `axis`, as one."""
    shape = array.shape[array.ndim - rank :]
    full = np.broadcast_to(array, (*batch, *shape)).reshape(-1, *shape)
    return np.moveaxis(full, 0, axis).reshape(*shape[:axis], -1, *shape[axis + 1 :])
