"""Arguments and gradients of a cell's tangent (`symbolic.tangent`), from those of the cell and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.cells import CellSpec
from fusedrnn.checks import check_array
from fusedrnn.symbolic import DefinedCell, library


def cell_as_data(spec: CellSpec) -> DefinedCell:
    """Return a cell as data, a compiled one too."""
    cell: DefinedCell = library.compiled(spec.name) if spec.definition is None else spec.definition
    return cell


def checked(spec: CellSpec, weights: Mapping[str, Array | None], x: Array) -> dict[str, Array]:
    """Return the parameters that are given, checked against x (T, B, I).

    Raises:
        TypeError: a parameter is no array of the dtype of x.
        ValueError: a parameter of the wrong shape, or a projection.
    """
    if weights.get("weight_hr") is not None:
        raise ValueError("weight_hr: expected None for second derivatives, got a projection")
    first = weights["weight_ih"]
    rows = first.shape[0] if isinstance(first, np.ndarray) and first.ndim == 2 else 0
    shapes = spec.parameter_shapes(x.shape[2], max(rows // spec.gates, 1))
    return {
        name: check_array(name, array, shapes[name], x.dtype)
        for name, array in weights.items()
        if array is not None
    }


def directions_of(given: Any, names: tuple[str, ...], weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return {name: array}, zero where none is given, for these weights.

    Args:
        given: a mapping, a sequence in the order of `names`, or None.

    Raises:
        TypeError: none of these; or an item of the wrong kind or dtype.
        ValueError: unknown names, too many arrays, or one of another shape.
    """
    if isinstance(given, (tuple, list)):
        if len(given) > len(names):
            raise ValueError(f"directions.params: expected at most {len(names)} arrays, got {len(given)}")
        given = dict(zip(names, given, strict=False))
    elif given is None:
        given = {}
    elif not isinstance(given, Mapping):
        raise TypeError(f"directions.params: expected a mapping or a sequence, got {type(given).__name__}")
    if unknown := [str(name) for name, array in given.items() if name not in weights and array is not None]:
        raise ValueError(
            f"directions.params: expected some of the names {', '.join(weights)}, got {', '.join(unknown)}"
        )
    found = {}
    for name, array in weights.items():
        part = given.get(name)
        one = np.zeros_like(array) if part is None else part
        found[name] = check_array(f"directions.params[{name!r}]", one, array.shape, array.dtype)
    return found


def tangent_weights(
    cell: DefinedCell, weights: Mapping[str, Array], along: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the parameters of the tangent: of the gates e, g and d, one after another."""
    found: dict[str, Array] = {}
    units = 0
    for name, value in weights.items():
        moved, zero = along[name], np.zeros_like(value)
        if name in cell.parameters:
            parts = len(cell.symbols_of(name))
            for kind, array in (("p", value), ("d", moved)):
                found |= {f"{kind}{units + i}": part for i, part in enumerate(np.split(array, parts))}
            units += parts
        elif name == "weight_ih":
            found[name] = np.block([[zero, value], [value, zero], [moved, zero]])
        else:
            found[name] = np.concatenate([value if name == "weight_hh" else zero, value, moved])
    return found


def weight_gradients(
    cell: DefinedCell, weights: Mapping[str, Array], grads: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the gradients of the cell's parameters from those of the tangent's."""
    found: dict[str, Array] = {}
    units = 0
    for name, value in weights.items():
        if name in cell.parameters:
            parts = len(cell.symbols_of(name))
            found[name] = np.concatenate([grads[f"p{units + i}"] for i in range(parts)])
            units += parts
            continue
        of_e, of_g, _ = np.split(grads[name], 3)
        if name == "weight_ih":
            inputs = value.shape[1]
            found[name] = of_e[:, inputs:] + of_g[:, :inputs]
        else:
            found[name] = of_e + of_g if name == "weight_hh" else of_g
    return found
