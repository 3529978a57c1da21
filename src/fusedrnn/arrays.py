"""Arrays: the types that every room shares, and the ways from and to other libraries' arrays."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
StateLike: TypeAlias = Array | tuple[Array | None, ...] | list[Array | None]


def refuse_mask(name: str, value: Any) -> None:
    """Refuse a masked array: the mask would be lost without a word."""
    if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got a MaskedArray; see its filled()")


def as_regular(name: str, value: Any) -> Array:
    """Return numbers, or lists of them of one length, as an array; refuse masked arrays and other lists."""
    refuse_mask(name, value)
    try:
        return np.asarray(value)
    except ValueError:
        if not isinstance(value, (list, tuple)):
            raise
        raise ValueError(f"{name}: expected an array, got lists of different lengths; pad them") from None


def as_array(value: Any, name: str = "value") -> Array:
    """Return an array or a tensor of another library as a NumPy array, off its gradient tape and device."""
    for method in ("detach", "cpu"):
        if hasattr(value, method):
            value = getattr(value, method)()
    if hasattr(value, "get") and hasattr(value, "__cuda_array_interface__"):
        value = value.get()
    return as_regular(name, value)


def assign(view: Any, value: Array) -> None:
    """Copy a NumPy array into an array of its shape, NumPy's or, on a GPU, CuPy's."""
    if isinstance(view, np.ndarray):
        view[...] = value
    else:
        view.set(np.ascontiguousarray(value, dtype=view.dtype))
