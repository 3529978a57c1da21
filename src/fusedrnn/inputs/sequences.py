"""Sequences of different lengths: padding them into one array and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, as_regular, refuse_mask
from fusedrnn.checks import as_int64, kind_error


def as_lengths(lengths: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return lengths of any integer dtype as a contiguous int64 array; a single number becomes (1,).

    Raises:
        TypeError: not of an integer dtype.
    """
    array = as_regular("lengths", lengths)
    if not array.size and not isinstance(lengths, np.ndarray):
        return np.empty(array.shape, np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind == "f" and array.ndim > 1:
        raise TypeError(
            f"lengths: expected an integer dtype, got {array.dtype}; "
            "a state of two arrays is one pair, (h, c)"
        )
    return as_int64("lengths", array)


def lengths_within(lengths: npt.ArrayLike, batch: int, seq_len: int) -> npt.NDArray[np.int64]:
    """Return lengths (B,), each in 0..T.

    Raises:
        TypeError: not of an integer dtype.
        ValueError: of another shape, or out of range.
    """
    found = as_lengths(lengths)
    if found.shape != (batch,):
        raise ValueError(f"lengths: expected shape (B,) = ({batch},), got {found.shape}")
    if batch and not 0 <= found.min() <= found.max() <= seq_len:
        raise ValueError(f"lengths: expected values in 0..T = 0..{seq_len}, got {found.min()}..{found.max()}")
    return found


def pad(
    sequences: Sequence[Array], batch_first: bool = False, value: float = 0.0
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Put sequences of different lengths into one array.

    Args:
        sequences: B arrays (T_b, ...) of one dtype, equal but for the first axis; T_b may be 0.
        batch_first: return (B, T, ...) instead of (T, B, ...).
        value: the real number to write past the end of a sequence; for integers a whole one, in range.

    Returns:
        x: (T, B, ...) with T the largest T_b, and lengths: (B,) int64.

    Raises:
        TypeError: an item is not an array, dtypes differ, or value is no number.
        ValueError: no sequences, an item without axes, shapes that differ past the first axis, or a value
            that the dtype cannot hold.
    """
    items = list(sequences)
    if not items:
        raise ValueError("sequences: expected at least one array, got none")
    for index, item in enumerate(items):
        if not isinstance(item, np.ndarray):
            raise kind_error(f"sequences[{index}]", item, "a numpy.ndarray")
        refuse_mask(f"sequences[{index}]", item)
        if item.ndim == 0:
            raise ValueError(f"sequences[{index}]: expected shape (T, ...), got ()")
        if item.dtype != items[0].dtype:
            raise TypeError(f"sequences[{index}]: expected {items[0].dtype} as the first, got {item.dtype}")
        if item.shape[1:] != items[0].shape[1:]:
            raise ValueError(
                f"sequences[{index}]: expected shape (T, ...) = (T, *{items[0].shape[1:]}), got {item.shape}"
            )
    _check_fill(value, items[0].dtype)
    lengths = np.array([len(item) for item in items], np.int64)
    leading = (len(items), int(lengths.max())) if batch_first else (int(lengths.max()), len(items))
    padded: Array = np.full((*leading, *items[0].shape[1:]), value, items[0].dtype)
    for index, item in enumerate(items):
        _sequence(padded, index, len(item), batch_first)[...] = item
    return padded, lengths


def _check_fill(value: Any, dtype: np.dtype[Any]) -> None:
    """Refuse a fill that would become another number: a fraction in integers, a number out of range."""
    if dtype.kind not in "biuf":
        return  # NumPy's own rules
    if not isinstance(value, (int, float, np.bool_, np.integer, np.floating)):
        raise TypeError(f"value: expected a number, got {value!r}")
    if dtype.kind == "f":
        if float(np.finfo(dtype).max) < abs(value) < math.inf:
            raise ValueError(f"value: expected a number in the range of {dtype}, got {value!r}")
    elif not math.isfinite(value) or value != int(value):
        raise ValueError(f"value: expected a whole number for sequences of {dtype}, got {value!r}")
    else:
        least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not least <= int(value) <= most:
            raise ValueError(f"value: expected {least}..{most} for sequences of {dtype}, got {value!r}")


def unpad(x: Array, lengths: npt.ArrayLike, batch_first: bool = False) -> list[Array]:
    """Return the B sequences in x as views (T_b, ...) without their padding.

    Args:
        x: (T, B, ...), or (B, T, ...) with batch_first.
        lengths: (B,) of an integer dtype, each in 0..T.
        batch_first: whether the batch is the first axis.

    Raises:
        TypeError: x is not an array, or lengths are not integers.
        ValueError: x has fewer than two axes, or lengths of another shape or out of range.
    """
    if not isinstance(x, np.ndarray):
        raise kind_error("x", x, "a numpy.ndarray")
    refuse_mask("x", x)
    if x.ndim < 2:
        raise ValueError(f"x: expected shape (T, B, ...), got {x.shape}")
    batch, seq_len = x.shape[:2] if batch_first else x.shape[1::-1]
    sizes = lengths_within(lengths, batch, seq_len)
    return [_sequence(x, index, int(size), batch_first) for index, size in enumerate(sizes)]


def _sequence(x: Array, index: int, size: int, batch_first: bool) -> Any:
    """Return the first `size` steps of one sequence as a view."""
    return x[index, :size] if batch_first else x[:size, index]
