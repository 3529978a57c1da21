"""Inputs of layers as the kernels take them: contiguous rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fusedrnn.arrays import Array, refuse_mask
from fusedrnn.backend import Backend
from fusedrnn.checks import kind_error


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


def contiguous(x: Array) -> Array:
    """Return x as a contiguous and aligned array of its library; libraries of GPUs align what they make."""
    if isinstance(x, np.ndarray):
        flags = x.flags
        return x if flags.c_contiguous and flags.aligned else np.require(x, requirements=["C", "A"])
    return x if x.flags.c_contiguous else x.copy(order="C")


def copied(x: Array, rows: Array) -> int:
    """Return the bytes of `rows` that x does not already hold."""
    return 0 if x.flags.c_contiguous and getattr(x.flags, "aligned", True) else rows.nbytes
