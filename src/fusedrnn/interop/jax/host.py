"""The kernels on the memory of JAX's arrays: what a compiled program calls back, with any axes of vmap."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cells import CELLS

Named = dict[str, Array]


def rank_of(name: str) -> int:
    """How many axes an input has, without those of vmap."""
    return {"x": 3, "dy": 3, "lengths": 1}.get(name, 1 if name.startswith("bias") else 2)


def forward(cell: str, reverse: bool, names: tuple[str, ...], *arrays: Any) -> tuple[Array, ...]:
    """Return y and the final states of one layer and direction.

    Where vmap has added axes to them, but not to the parameters, all batches are rows of one.

    Args:
        names: of the arrays: x, the states, parameters, and lengths and resets where they are given.
    """
    inputs = {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}
    batch, parameters = _batch(inputs), CELLS[cell].parameter_names

    def run(inputs: Named) -> tuple[Array, ...]:
        y, final, _ = _call(cell, reverse, inputs, False)
        return y, *final

    if not batch or any(math.prod(_added(n, a)) > 1 for n, a in inputs.items() if n in parameters):
        return _for_each(batch, run, inputs)
    count = math.prod(batch)
    joined = {
        name: array.reshape(array.shape[array.ndim - rank_of(name) :])
        if name in parameters
        else _joined(array, batch, 1 if name in ("x", "resets") else 0, rank_of(name))
        for name, array in inputs.items()
    }
    y, *final = run(joined)
    y = np.moveaxis(y.reshape(len(y), count, -1, y.shape[-1]), 0, 1)
    return y.reshape(*batch, *y.shape[1:]), *(s.reshape(*batch, -1, s.shape[-1]) for s in final)


def backward(cell: str, reverse: bool, names: tuple[str, ...], *arrays: Any) -> tuple[Array, ...]:
    """Return the gradients of x, of the states and of the given parameters.

    Args:
        names: of the arrays: those of `forward`, then dy and "d" before the name of each state.
    """
    inputs = {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}
    states = CELLS[cell].state_names

    def run(inputs: Named) -> tuple[Array, ...]:
        _, _, tape = _call(cell, reverse, inputs, True)
        assert tape is not None
        dx, dstate, dparams = _core.backward(tape, inputs["dy"], tuple([inputs[f"d{s}"] for s in states]))
        assert dx is not None
        return dx, *dstate, *[d for d in dparams if d is not None]

    return _for_each(_batch(inputs), run, inputs)


def _call(cell: str, reverse: bool, inputs: Named, save: bool) -> Any:
    spec = CELLS[cell]
    lengths = inputs.get("lengths")
    return _core.forward(
        cell,
        inputs["x"],
        tuple([inputs.get(name) for name in spec.parameter_names]),
        tuple([inputs[name] for name in spec.state_names]),
        lengths=None if lengths is None else lengths.astype(np.int64),
        resets=inputs.get("resets"),
        reverse=reverse,
        save=save,
    )


def _added(name: str, array: Array) -> tuple[int, ...]:
    """The axes that vmap has added; of size 1 for what it does not map."""
    return array.shape[: array.ndim - rank_of(name)]


def _batch(inputs: Named) -> tuple[int, ...]:
    return np.broadcast_shapes(*[_added(name, array) for name, array in inputs.items()])


def _for_each(
    batch: tuple[int, ...], run: Callable[[Named], tuple[Array, ...]], inputs: Named
) -> tuple[Array, ...]:
    """Run every batch by itself, and stack what comes of them."""
    if not batch:
        return run(inputs)
    full = {
        name: np.broadcast_to(array, (*batch, *array.shape[array.ndim - rank_of(name) :]))
        for name, array in inputs.items()
    }
    found = [run({name: array[index] for name, array in full.items()}) for index in np.ndindex(batch)]
    return tuple(np.stack(parts).reshape(*batch, *parts[0].shape) for parts in zip(*found, strict=True))


def _joined(array: Array, batch: tuple[int, ...], axis: int, rank: int) -> Array:
    """Return an array with the axes of vmap and that of the batch, its `axis`, as one."""
    shape = array.shape[array.ndim - rank :]
    full = np.broadcast_to(array, (*batch, *shape)).reshape(-1, *shape)
    return np.moveaxis(full, 0, axis).reshape(*shape[:axis], -1, *shape[axis + 1 :])
