"""Inputs of layers as the kernels take them: contiguous rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusedrnn.arrays import Array, refuse_mask
from fusedrnn.backend import CPU, Backend
from fusedrnn.checks import dtype_error, kind_error
from fusedrnn.cuda.libraries import is_device_array


def as_rows(name: str, x: Any, trailing: tuple[int, ...], backend: Backend) -> Array:
    """Return x (..., *trailing) as a contiguous and aligned (N, D) array, a view if x is both itself."""
    check_kind(name, x, backend)
    split = x.ndim - len(trailing)
    if split < 0 or x.shape[split:] != trailing:
        raise ValueError(f"{name}: expected shape (..., {', '.join(map(str, trailing))}), got {x.shape}")
    return contiguous(x).reshape(math.prod(x.shape[:split]), math.prod(trailing))


def check_kind(name: str, x: Any, backend: Backend) -> None:
    """Refuse what is not an array of the backend, or has a mask."""
    if not isinstance(x, backend.array):
        kind = f"{backend.array.__module__}.{backend.array.__name__}"
        raise kind_error(name, x, f"a {kind}")
    refuse_mask(name, x)


def check_host(name: str, value: Any, runs: str, expected: str = "a numpy.ndarray") -> None:
    """Refuse what is not an array in host memory; `runs` says what it is that runs on the CPU."""
    if not isinstance(value, np.ndarray):
        if is_device_array(value):
            raise RuntimeError(
                f"{name}: expected a numpy.ndarray, got a {type(value).__name__} on a GPU; {runs} on the CPU"
            )
        raise kind_error(name, value, expected)
    refuse_mask(name, value)


def contiguous(x: Array) -> Array:
    """Return x as a contiguous and aligned array of its library; libraries of GPUs align what they make."""
    if isinstance(x, np.ndarray):
        flags = x.flags
        return x if flags.c_contiguous and flags.aligned else np.require(x, requirements=["C", "A"])
    return x if x.flags.c_contiguous else x.copy(order="C")


def copied(x: Array, rows: Array) -> int:
    """Return the bytes of `rows` that x does not already hold."""
    return 0 if x.flags.c_contiguous and getattr(x.flags, "aligned", True) else rows.nbytes


def check_floats(name: str, x: Any, dtype: np.dtype[Any] | None) -> None:
    """Refuse what is not a NumPy array of a dtype, or with None of float32 or float64."""
    check_kind(name, x, CPU)
    if dtype is not None and x.dtype != dtype:
        raise dtype_error(name, dtype, x.dtype)
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {x.dtype}; use {name}.astype('float32')")


def check_sequence(
    x: Any, symbol: str, size: int | None, dtype: np.dtype[Any] | None, batch_first: bool
) -> int:
    """Refuse what is not (T, B, n), (B, T, n) with batch_first, or (T, n); return the axis of time.

    Args:
        x: of floats.
        symbol: what errors call n.
        size: n, or None for any.
        dtype: as `check_floats`.
        batch_first: which of the layouts.
    """
    check_floats("x", x, dtype)
    if x.ndim not in (2, 3) or (size is not None and x.shape[-1] != size):
        order = "B, T" if batch_first else "T, B"
        given = "" if size is None else f" with {symbol} = {size}"
        raise ValueError(f"x: expected shape ({order}, {symbol}) or (T, {symbol}){given}, got {x.shape}")
    return int(batch_first and x.ndim == 3)
