"""Losses of values: absolute errors and their smooth kin, and quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_number
from fusedrnn.losses.elements import Each, Scalar, check_positive, check_pred, reduced, wide
from fusedrnn.training.losses import Reduction, check_reduction


@overload
def l1_loss(pred: Array, target: Array, reduction: Scalar = ...) -> tuple[float, Array]: ...
@overload
def l1_loss(pred: Array, target: Array, reduction: Each) -> tuple[Array, Array]: ...
def l1_loss(pred: Array, target: Array, reduction: Reduction = "mean") -> Any:
    """Return the absolute error |pred - target| and the gradient of pred, which is 0 where they are equal.

    Args:
        pred: any shape, float32 or float64.
        target: shape and dtype of pred.
        reduction: "mean", "sum" or "none".

    Returns:
        loss: float, or the shape of pred with reduction="none"; the mean over nothing is NaN.
        dpred: shape of pred, the gradient of the loss, with reduction="none" of its sum.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes differ, or an unknown reduction.
        RuntimeError: an array on a GPU.
    """
    check_reduction(reduction)
    x, y = wide("pred", pred, target=target)
    with np.errstate(over="ignore", invalid="ignore"):
        error = x - y
    return reduced(reduction, pred.dtype, np.abs(error), np.sign(error))


@overload
def huber_loss(
    pred: Array, target: Array, reduction: Scalar = ..., delta: float = ...
) -> tuple[float, Array]: ...
@overload
def huber_loss(pred: Array, target: Array, reduction: Each, delta: float = ...) -> tuple[Array, Array]: ...
def huber_loss(pred: Array, target: Array, reduction: Reduction = "mean", delta: float = 1.0) -> Any:
    """Return Huber's loss of e = pred - target, and the gradient of pred.

    loss = e^2 / 2 where |e| <= delta, and delta (|e| - delta / 2) elsewhere.

    Args:
        pred: any shape, float32 or float64.
        target: shape and dtype of pred.
        reduction: "mean", "sum" or "none".
        delta: where the square becomes a line, > 0.

    Returns:
        loss: float, or the shape of pred with reduction="none"; the mean over nothing is NaN.
        dpred: shape of pred, the gradient of the loss, with reduction="none" of its sum.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes differ, an unknown reduction, or delta out of range.
        RuntimeError: an array on a GPU.

    Paper: Huber 1964, Robust estimation of a location parameter.
    """
    check_reduction(reduction)
    return _bent(pred, target, reduction, check_positive("delta", delta), 1.0)


@overload
def smooth_l1_loss(
    pred: Array, target: Array, reduction: Scalar = ..., beta: float = ...
) -> tuple[float, Array]: ...
@overload
def smooth_l1_loss(pred: Array, target: Array, reduction: Each, beta: float = ...) -> tuple[Array, Array]: ...
def smooth_l1_loss(pred: Array, target: Array, reduction: Reduction = "mean", beta: float = 1.0) -> Any:
    """Return the absolute error with a square around 0, and the gradient of pred.

    With e = pred - target, loss = e^2 / (2 beta) where |e| < beta, and |e| - beta / 2 elsewhere, which is
    Huber's with delta = beta, divided by beta. With beta = 0 it is `l1_loss`.

    Args:
        pred: any shape, float32 or float64.
        target: shape and dtype of pred.
        reduction: "mean", "sum" or "none".
        beta: where the square becomes a line, >= 0.

    Returns:
        loss: float, or the shape of pred with reduction="none"; the mean over nothing is NaN.
        dpred: shape of pred, the gradient of the loss, with reduction="none" of its sum.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes differ, an unknown reduction, or beta out of range.
        RuntimeError: an array on a GPU.

    Paper: Girshick 2015, Fast R-CNN, arXiv:1504.08083v2.
    """
    check_reduction(reduction)
    if not check_number("beta", beta):
        return l1_loss(pred, target, reduction)
    return _bent(pred, target, reduction, check_positive("beta", beta), float(beta))


def _bent(pred: Array, target: Array, reduction: Reduction, bend: float, divisor: float) -> Any:
    """Huber's loss, divided."""
    x, y = wide("pred", pred, target=target)
    with np.errstate(over="ignore", invalid="ignore"):
        error = x - y
        size = np.abs(error)
        slope = np.minimum(size, bend)
        # slope (size - slope / 2) is both branches.
        losses = slope / divisor * (size - 0.5 * slope)
        return reduced(reduction, pred.dtype, losses, np.copysign(slope / divisor, error))


@overload
def quantile_loss(
    pred: Array, target: Array, quantiles: Sequence[float], reduction: Scalar = ...
) -> tuple[float, Array]: ...
@overload
def quantile_loss(
    pred: Array, target: Array, quantiles: Sequence[float], reduction: Each
) -> tuple[Array, Array]: ...
def quantile_loss(
    pred: Array, target: Array, quantiles: Sequence[float], reduction: Reduction = "mean"
) -> Any:
    """Return the pinball loss, whose minimum are quantiles of the target, and the gradient of pred.

    loss_q = max(q (target - pred_q), (q - 1) (target - pred_q)); the mean is over all values and quantiles.

    Args:
        pred: (..., Q) of float32 or float64.
        target: (...) in the dtype of pred.
        quantiles: Q numbers in (0, 1).
        reduction: "mean", "sum" or "none".

    Returns:
        loss: float, or the shape of pred with reduction="none"; the mean over nothing is NaN.
        dpred: shape of pred, the gradient of the loss, with reduction="none" of its sum; 0 where pred is the
            target.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not fit together, quantiles out of range, or an unknown reduction.
        RuntimeError: an array on a GPU.

    Paper: Koenker and Bassett 1978, Regression quantiles.
    """
    check_reduction(reduction)
    check_pred("pred", pred)
    levels = np.array([_check_level(f"quantiles[{i}]", level) for i, level in enumerate(quantiles)])
    if pred.ndim == 0 or pred.shape[-1] != levels.size:
        raise ValueError(f"pred: expected shape (..., Q) with Q = {levels.size}, got {pred.shape}")
    check_array("target", target, pred.shape[:-1], pred.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        wide_pred, wide_target = (np.asarray(array, np.float64, order="C") for array in (pred, target))
        error = wide_target[..., None] - wide_pred
        losses = np.maximum(levels * error, (levels - 1) * error)
        # Half of (1 - 2q) - sign(error): -q, 1 - q, and a NaN of an error stays.
        slope = np.where(error == 0, 0.0, 0.5 - levels - 0.5 * np.sign(error))
    return reduced(reduction, pred.dtype, losses, slope)


def _check_level(name: str, level: float) -> float:
    number = check_number(name, level, 0.0, 1.0)
    if not 0.0 < number < 1.0:
        raise ValueError(f"{name}: expected a number in (0, 1), got {number}")
    return number
