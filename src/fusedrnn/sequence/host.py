"""Arguments of the sequence kernels, which are on the CPU alone."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, as_regular
from fusedrnn.checks import as_int64
from fusedrnn.cuda.libraries import is_device_array
from fusedrnn.inputs.rows import check_host, contiguous
from fusedrnn.training.losses import Reduction


def host_array(name: str, value: Any) -> Array:
    """Return a NumPy array as a contiguous and aligned one; refuse arrays on a GPU, and of other kinds."""
    check_host(name, value, "sequence losses and decoders run")
    return contiguous(value)


def integers(name: str, value: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return integers of any dtype as the kernels take them."""
    if not isinstance(value, np.ndarray) and is_device_array(value):
        raise RuntimeError(f"{name}: expected integers in host memory, got a {type(value).__name__} on a GPU")
    array = as_regular(name, value)
    if not array.size and not isinstance(value, np.ndarray):
        return np.empty(array.shape, np.int64)  # an empty list has no dtype of its own
    return as_int64(name, array)


def lengths_of(name: str, value: npt.ArrayLike, batch: int, symbol: str, most: int) -> npt.NDArray[np.int64]:
    """Return a copy of lengths (B,), each in 0..most."""
    lengths: npt.NDArray[np.int64] = integers(name, value).copy()
    if lengths.shape != (batch,):
        raise ValueError(f"{name}: expected shape (B,) = ({batch},), got {lengths.shape}")
    wrong = np.flatnonzero((lengths < 0) | (lengths > most))
    if wrong.size:
        raise ValueError(
            f"{name}: expected values in 0..{symbol} = 0..{most}, "
            f"got {lengths[wrong[0]]} at position {wrong[0]}"
        )
    return lengths


def reduced(losses: Array, reduction: Reduction, dtype: np.dtype[Any]) -> "float | Array":
    """Return losses (B,) as they are, their sum, or their mean, which is NaN over none."""
    if reduction == "none":
        return losses.astype(dtype, copy=False)
    total = float(losses.sum())
    if reduction == "sum":
        return total
    return total / losses.size if losses.size else float("nan")
