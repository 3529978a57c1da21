"""What the losses of single elements share: arguments in, losses and gradients out."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_number
from fusedrnn.inputs.rows import check_host

Scalar: TypeAlias = Literal["mean", "sum"]
Each: TypeAlias = Literal["none"]


def check_pred(name: str, pred: Any) -> Array:
    """Refuse what is not a float32 or float64 array in host memory."""
    check_host(name, pred, "this loss runs", "a float32 or float64 numpy.ndarray")
    if pred.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"{name}: expected a float32 or float64 numpy.ndarray, got {pred.dtype}; "
            f"use {name}.astype('float32')"
        )
    checked: Array = pred
    return checked


def wide(name: str, pred: Any, **others: Any) -> tuple[Array, ...]:
    """Return arrays of one shape and dtype, which are the first's, as float64."""
    first = check_pred(name, pred)
    for other, value in others.items():
        check_array(other, value, first.shape, first.dtype)
    # In one order: sums have the same bits in every layout.
    return tuple([np.asarray(value, np.float64, order="C") for value in (pred, *others.values())])


def check_positive(name: str, value: float) -> float:
    """Return a finite number above 0."""
    number = check_number(name, value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {number}")
    return number


def reduced(reduction: str, dtype: np.dtype[Any], losses: Array, *gradients: Array) -> Any:
    """Return the reduced loss and the gradients, from those of each element in float64.

    The mean over nothing is NaN.
    """
    if reduction == "none":
        with np.errstate(over="ignore"):
            return tuple([np.asarray(array).astype(dtype) for array in (losses, *gradients)])
    count = losses.size if reduction == "mean" else 1
    with np.errstate(over="ignore", invalid="ignore"):
        loss = float(losses.sum()) / count if count else math.nan
        if math.isinf(loss):
            loss = float((losses / count).sum())  # the sum may overflow where the mean does not
        return loss, *[np.asarray(array / max(count, 1)).astype(dtype) for array in gradients]
