"""Binary cross entropy."""

from __future__ import annotations

from typing import Any, overload

import numpy as np

from fusedrnn.arrays import Array, refuse_mask
from fusedrnn.checks import dtype_error, kind_error
from fusedrnn.losses.elements import Each, Scalar, reduced, wide
from fusedrnn.losses.gamma import sigmoid, softplus
from fusedrnn.training.losses import Reduction, check_reduction


@overload
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    weight: Array | None = ...,
    reduction: Scalar = ...,
    pos_weight: Array | None = ...,
) -> tuple[float, Array]: ...
@overload
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    weight: Array | None = ...,
    *,
    reduction: Each,
    pos_weight: Array | None = ...,
) -> tuple[Array, Array]: ...
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    weight: Array | None = None,
    reduction: Reduction = "mean",
    pos_weight: Array | None = None,
) -> Any:
    """Return the cross entropy of sigmoid(logits) against probabilities, and the gradient of the logits.

    loss = -weight (pos_weight y log sigmoid(x) + (1 - y) log(1 - sigmoid(x))); the mean is over all elements,
    whatever their weights. What is multiplied by 0 counts nothing, whatever the logit is.

    Args:
        logits: x, any shape, float32 or float64.
        target: y in [0, 1], shape and dtype of logits.
        weight: of each element, finite, in the dtype of logits, a shape that broadcasts to theirs.
        reduction: "mean", "sum" or "none".
        pos_weight: of the term of y, as `weight`; with classes on the last axis, say (C,).

    Returns:
        loss: float, or the shape of logits with reduction="none"; the mean over nothing is NaN.
        dlogits: shape of logits, the gradient of the loss, with reduction="none" of its sum.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or range, or an unknown reduction.
        RuntimeError: an array on a GPU.
    """
    check_reduction(reduction)
    x, y = wide("logits", logits, target=target)
    wrong = ~((y >= 0) & (y <= 1))
    if wrong.any():
        raise ValueError(f"target: expected values in [0, 1], got {y[wrong].flat[0]}")
    each, positive = (
        _weights(name, value, logits) for name, value in (("weight", weight), ("pos_weight", pos_weight))
    )
    with np.errstate(over="ignore", invalid="ignore"):
        of_one, of_zero = each * positive * y, each * (1 - y)
        losses = _times(of_one, softplus(-x)) + _times(of_zero, softplus(x))
        slopes = of_zero * sigmoid(x) - of_one * sigmoid(-x)
    return reduced(reduction, logits.dtype, losses, slopes)


def _times(weight: Array, value: Array) -> Array:
    """Return the product, 0 where the weight is 0 and the value infinite."""
    return np.where((weight == 0) & np.isinf(value), 0.0, weight * value)


def _weights(name: str, value: Any, logits: Array) -> Array | float:
    if value is None:
        return 1.0
    if not isinstance(value, np.ndarray):
        raise kind_error(name, value, "a numpy.ndarray")
    refuse_mask(name, value)
    if value.dtype != logits.dtype:
        raise dtype_error(name, logits.dtype, value.dtype)
    try:
        fits = np.broadcast_shapes(value.shape, logits.shape) == logits.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: expected a shape that broadcasts to {logits.shape}, got {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: expected finite values, got {value[~np.isfinite(value)].flat[0]}")
    return np.asarray(value, np.float64)
