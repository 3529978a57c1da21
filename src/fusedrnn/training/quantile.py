"""quantile_loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_number, kind_error


def quantile_loss(pred: Array, target: Array, quantiles: Sequence[float]) -> tuple[float, Array]:
    """Return the pinball loss, whose minimum are quantiles of the target, and the gradient of pred.

    loss_q = max(q (target - pred_q), (q - 1) (target - pred_q)), the mean over all values and quantiles.

    Args:
        pred: (..., Q) of float32 or float64.
        target: (...) in the dtype of pred.
        quantiles: Q numbers in (0, 1).

    Returns:
        loss: float; the mean over nothing is NaN.
        dpred: shape of pred.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not fit together, or quantiles out of range.

    Paper: Koenker and Bassett 1978, Regression quantiles.
    """
    if not isinstance(pred, np.ndarray):
        raise kind_error("pred", pred, "a float32 or float64 numpy.ndarray")
    if pred.dtype not in (np.float32, np.float64):
        raise TypeError(f"pred: expected float32 or float64, got {pred.dtype}; use pred.astype('float32')")
    levels = [check_number(f"quantiles[{i}]", q, 0.0, 1.0) for i, q in enumerate(quantiles)]
    if pred.ndim == 0 or pred.shape[-1] != len(levels):
        raise ValueError(f"pred: expected shape (..., Q) with Q = {len(levels)}, got {pred.shape}")
    check_array("target", target, pred.shape[:-1], pred.dtype)
    q = np.array(levels, pred.dtype)
    error = target[..., None] - pred
    losses = np.maximum(q * error, (q - 1) * error)
    gradient = np.where(error > 0, -q, np.where(error < 0, 1 - q, 0)).astype(pred.dtype)
    if not losses.size:
        return float("nan"), gradient
    return float(losses.mean(dtype=np.float64)), gradient / pred.dtype.type(losses.size)
