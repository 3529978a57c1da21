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


def call_text(kind: str, cell: str, reverse: bool, names: Sequence[str], found: Sequence[str]) -> str:
    """Return what `run` is to do as one string, which the compiled program holds.

    Args:
        kind: "forward" or "backward".
        names: of the arrays that it gets: x, the states, parameters, and lengths and resets where they are
            given; for backward also y, tape, dy, and "d" before the name of each state that has one.
        found: of its results: y, the states and, where it is kept, the tape; of backward those of names whose
            gradients are asked for.
    """
    return "|".join((kind, cell, str(int(reverse)), " ".join(found), *names))


@lru_cache(maxsize=1024)
def _parsed(call: str) -> tuple[str, str, bool, tuple[str, ...], tuple[str, ...]]:
    kind, cell, reverse, found, *names = call.split("|")
    return kind, cell, reverse == "1", tuple(names), tuple(found.split())


def run(call: str, arguments: list[Array], results: list[Array]) -> None:
    """Fill the results of one layer and direction."""
    kind, cell, reverse, names, found = _parsed(call)
    inputs, outputs = dict(zip(names, arguments, strict=True)), dict(zip(found, results, strict=True))
    function = _backward if kind == "backward" else _forward
    batch = _added(found[0], results[0])
    if not batch:
        function(cell, reverse, inputs, outputs)
    elif kind == "backward" or "tape" in outputs or _parameters_are_mapped(cell, inputs):
        _for_each(batch, lambda i, o: function(cell, reverse, i, o), inputs, outputs)
    else:
        _forward_joined(cell, reverse, batch, inputs, outputs)


def _forward(cell: str, reverse: bool, inputs: Named, outputs: Named) -> None:
    spec = CELLS[cell]
    _core.forward(
        cell,
        inputs["x"],
        tuple([inputs.get(name) for name in spec.parameter_names]),
        tuple([inputs[name] for name in spec.state_names]),
        lengths=_lengths(inputs),
        resets=inputs.get("resets"),
        reverse=reverse,
        save="tape" in outputs,
        out=outputs["y"],
        state_out=tuple([outputs[name] for name in spec.state_names]),
        tape_out=outputs.get("tape"),
    )


def _backward(cell: str, reverse: bool, inputs: Named, outputs: Named) -> None:
    spec = CELLS[cell]
    tape = _core.tape_from_arrays(
        cell,
        inputs["x"],
        tuple([inputs.get(name) for name in spec.parameter_names]),
        inputs["y"],
        inputs["tape"],
        tuple([inputs[name] for name in spec.state_names]),
        lengths=_lengths(inputs),
        resets=inputs.get("resets"),
        reverse=reverse,
    )
    dparams = tuple([outputs.get(name) for name in spec.parameter_names])
    for grad in dparams:
        if grad is not None:
            grad[...] = 0
    dfinal = tuple([inputs.get(f"d{name}") for name in spec.state_names])
    dx = outputs.get("x")
    _, found, _ = _core.backward(tape, inputs["dy"], dfinal, dparams, dx is not None, dx)
    for name, part in zip(spec.state_names, found, strict=True):
        if name in outputs:
            outputs[name][...] = part


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
    function: Callable[[Named, Named], None],
    inputs: Named,
    outputs: Named,
) -> None:
    """Call the function with views of every batch."""
    for index in np.ndindex(batch):
        own = {
            name: array[tuple([i if n > 1 else 0 for i, n in zip(index, _added(name, array), strict=True)])]
            for name, array in inputs.items()
        }
        function(own, {name: array[index] for name, array in outputs.items()})


def _forward_joined(cell: str, reverse: bool, batch: tuple[int, ...], inputs: Named, outputs: Named) -> None:
    """One call, of which all batches are rows: they have the parameters in common."""
    count, parameters = math.prod(batch), CELLS[cell].parameter_names
    joined = {
        name: array.reshape(array.shape[array.ndim - _rank(name) :])
        if name in parameters
        else _joined(array, batch, 1 if name in ("x", "resets") else 0, _rank(name))
        for name, array in inputs.items()
    }
    y = outputs["y"]
    steps, rows, width = y.shape[-3:]
    made = np.empty((steps, count * rows, width), y.dtype)
    finals = {name: s.reshape(count * rows, s.shape[-1]) for name, s in outputs.items() if name != "y"}
    _forward(cell, reverse, joined, {"y": made, **finals})
    y[...] = np.moveaxis(made.reshape(steps, count, rows, width), 1, 0).reshape(y.shape)


def _joined(array: Array, batch: tuple[int, ...], axis: int, rank: int) -> Array:
    """Return an array with the axes of vmap and that of the batch, its `axis`, as one."""
    shape = array.shape[array.ndim - rank :]
    full = np.broadcast_to(array, (*batch, *shape)).reshape(-1, *shape)
    return np.moveaxis(full, 0, axis).reshape(*shape[:axis], -1, *shape[axis + 1 :])
