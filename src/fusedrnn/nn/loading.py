"""What a module reads from a state_dict before it writes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from fusedrnn.arrays import Array, as_array
from fusedrnn.backend import Backend
from fusedrnn.checks import check_mapping
from fusedrnn.nn.buffers import ParameterDict, named_views
from fusedrnn.symbolic import DefinedCell, cell_from_json, cell_to_json


class Loaded(Protocol):
    """What is read of the module that a state_dict is for."""

    _tree: ParameterDict
    _backend: Backend

    def named_modules(self) -> Iterator[tuple[str, Any]]: ...

    def named_buffers(self) -> Iterator[tuple[str, Array]]: ...


class LoadResult(NamedTuple):
    """Names that `load_state_dict(strict=False)` passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def read_state(
    module: Loaded, flat: Array, state_dict: Mapping[str, Any], strict: bool
) -> tuple[Array, dict[str, Array], LoadResult]:
    """Return new values for all parameters, converted, in the order of `flat`, which holds those of now.

    And those of all buffers, by name.

    Raises:
        TypeError, ValueError: as `Module.load_state_dict`.
    """
    check_mapping("state_dict", state_dict)
    parameters, tied = module._tree, _tied_names(module)
    saved = {name: np.array(module._backend.to_numpy(array)) for name, array in module.named_buffers()}
    given = dict(state_dict)
    for name, cell in saved_cells(module).items():
        if name in given:
            _check_cell(name, cell, given.pop(name))
    for name, first in tied.items():
        if name in given:
            value = given.pop(name)
            kept = as_array(given.setdefault(first, value), first)
            if not np.array_equal(kept, as_array(value, name), equal_nan=True):
                raise ValueError(f"{name}: expected the values of {first}, whose weight it is, got others")
    missing = [name for name in (*parameters, *saved) if name not in given]
    unexpected = [name for name in given if name not in parameters and name not in saved]
    if strict and (missing or unexpected):
        prefix = _prefix(missing, given)
        way = f"; those behind {prefix!r} fit: give them without it, by removeprefix" if prefix else ""
        raise ValueError(
            f"state_dict: expected the names of this {type(module).__name__}, got others; "
            f"missing: {', '.join(missing) or 'none'}; "
            f"unexpected: {', '.join(map(str, unexpected)) or 'none'}{way}"
        )
    values = np.array(module._backend.to_numpy(flat))
    views = named_views(values, {name: view.shape for name, view in parameters.items()})
    for name, view in views.items():
        if name in given:
            value = as_array(given[name], name)
            if value.dtype.kind != "f":
                raise TypeError(f"{name}: expected a float dtype, got {value.dtype}")
            if value.shape != view.shape:
                raise ValueError(f"{name}: expected shape {view.shape}, got {value.shape}")
            view[...] = value
    for prefix, member in module.named_modules():
        at = f"{prefix}." if prefix else ""
        try:
            member._check_values({name: views[at + name] for name in member._shapes})
        except ValueError as error:
            raise ValueError(f"{at}{error}") from None
    for name, array in saved.items():
        if name in given:
            value = as_array(given[name], name)
            if not np.can_cast(value.dtype, array.dtype, "same_kind"):
                raise TypeError(f"{name}: expected a dtype that casts to {array.dtype}, got {value.dtype}")
            if value.shape != array.shape:
                raise ValueError(f"{name}: expected shape {array.shape}, got {value.shape}")
            array[...] = value
    return values, saved, LoadResult(missing, unexpected)


def _prefix(missing: list[str], given: Mapping[str, Any]) -> str:
    """Return what stands before the names that are missing in those of a whole model, or nothing."""
    first = f".{missing[0]}" if missing else ""
    starts = [f"{name.removesuffix(first)}." for name in given if first and str(name).endswith(first)]
    return next((start for start in starts if all(start + name in given for name in missing)), "")


def _tied_names(module: Loaded) -> dict[str, str]:
    """Return {name that PyTorch gives a parameter of another module, too: its name here}."""
    members = list(module.named_modules())
    prefixes = {id(member): f"{prefix}." if prefix else "" for prefix, member in members}
    return {
        f"{prefixes[id(member)]}{name}": f"{prefixes[id(source)]}{name}"
        for _, member in members
        for name, source in member._tied.items()
        if id(source) in prefixes
    }


def saved_cells(module: Loaded) -> dict[str, DefinedCell]:
    """Return {dotted name: cell} of the networks below that save theirs."""
    return {
        f"{prefix}.cell" if prefix else "cell": member._saved_cell
        for prefix, member in module.named_modules()
        if member._saved_cell is not None
    }


def encoded(cell: DefinedCell) -> Array:
    """Return a cell as the array of bytes that goes into a state_dict."""
    return np.array(bytearray(cell_to_json(cell), "utf-8"), np.uint8)


def _check_cell(name: str, cell: DefinedCell, value: Any) -> None:
    """Refuse weights of another cell: of the same shapes, they would compute something else."""
    try:
        other = cell_from_json(value if isinstance(value, (str, bytes)) else as_array(value, name))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {str(error).removeprefix('cell: ')}") from None
    if other.digest != cell.digest:
        raise ValueError(f"{name}: expected {cell!r} as here, got another one, {other!r}")
