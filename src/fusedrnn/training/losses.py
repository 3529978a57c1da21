"""Losses. Each returns the loss and its gradient; there is no tape to keep."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, as_array, as_regular, refuse_mask
from fusedrnn.backend import CPU, Backend
from fusedrnn.checks import as_indices, check_array, check_choice, check_number, check_size, kind_error
from fusedrnn.devices import backend_of
from fusedrnn.inputs.rows import contiguous

Reduction = Literal["mean", "sum", "none"]

IGNORED = -100  # what stands for a target that does not count


@overload
def cross_entropy(
    logits: Array,
    targets: npt.ArrayLike,
    weight: Array | None = ...,
    ignore_index: int = ...,
    reduction: Literal["mean", "sum"] = ...,
    label_smoothing: float = ...,
) -> tuple[float, Array]: ...
@overload
def cross_entropy(
    logits: Array,
    targets: npt.ArrayLike,
    weight: Array | None = ...,
    ignore_index: int = ...,
    *,
    reduction: Literal["none"],
    label_smoothing: float = ...,
) -> tuple[Array, Array]: ...
def cross_entropy(
    logits: Array,
    targets: npt.ArrayLike,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> tuple[float | Array, Array]:
    """Return the cross entropy of softmax(logits) against class numbers, and the gradient of the logits.

    loss_n = -(1 - s) w[t_n] log p_n[t_n] - s/C sum_c w[c] log p_n[c], p = softmax(logits) and
    s = label_smoothing; the mean divides the sum by that of w[t_n] over the targets that are not ignored.

    Args:
        logits: (..., C), classes on the last axis, float32 or float64.
        targets: (...) of an integer dtype, each in 0..C-1 or ignore_index; best in host memory.
        weight: (C,) weight of each class, finite, in the dtype of the logits; a class of weight 0 counts
            nothing, whatever its logit is.
        ignore_index: target that contributes neither loss nor gradient.
        reduction: "mean", "sum" or "none".
        label_smoothing: s in [0, 1].

    Returns:
        loss: float, or (...) with reduction="none"; the mean over no targets, or over no weight, is NaN, with
            gradient 0.
        dlogits: (..., C), the gradient of the loss, with reduction="none" of its sum.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or range.

    Paper: label smoothing: Szegedy et al. 2015, arXiv:1512.00567v3.
    """
    check_reduction(reduction)
    backend = backend_of(logits)
    ignored = check_size("ignore_index", ignore_index, -(2**63))
    smoothing = check_number("label_smoothing", label_smoothing, 0.0, 1.0)
    run = partial(_cross_entropy, backend, reduction, ignored, smoothing)
    return backend.enter(logits, run, logits, targets, weight)


def _cross_entropy(
    backend: Backend,
    reduction: Reduction,
    ignored: int,
    smoothing: float,
    logits: Any,
    targets: Any,
    weight: Any,
) -> tuple[float | Array, Array]:
    if not isinstance(logits, backend.array):
        raise kind_error("logits", logits, "a numpy.ndarray")
    refuse_mask("logits", logits)
    if logits.ndim == 0:
        raise ValueError("logits: expected shape (..., C), got ()")
    labels = as_regular("targets", targets) if backend is CPU else as_array(targets, "targets")
    if labels.shape != logits.shape[:-1]:
        way = "; use targets.argmax(-1) for the numbers of classes" if labels.shape == logits.shape else ""
        raise ValueError(f"targets: expected shape (...) = {logits.shape[:-1]}, got {labels.shape}{way}")
    flat = as_indices("targets", labels)
    rows = contiguous(logits).reshape(flat.size, logits.shape[-1])
    if isinstance(weight, backend.array):
        weight = contiguous(weight)
    losses, count, dlogits = backend.kernels.cross_entropy(
        rows, flat, weight, ignored, smoothing, reduction == "mean"
    )
    gradient = dlogits.reshape(logits.shape)
    if reduction == "none":
        return losses.astype(logits.dtype, copy=False).reshape(labels.shape), gradient
    total = float(losses.sum())
    return (total if reduction == "sum" or count else float("nan")), gradient


@overload
def mse_loss(pred: Array, target: Array, reduction: Literal["mean", "sum"] = ...) -> tuple[float, Array]: ...
@overload
def mse_loss(pred: Array, target: Array, reduction: Literal["none"]) -> tuple[Array, Array]: ...
def mse_loss(pred: Array, target: Array, reduction: Reduction = "mean") -> tuple[float | Array, Array]:
    """Return the squared error (pred - target)^2 and the gradient of pred.

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
    """
    check_reduction(reduction)
    backend = backend_of(pred)
    return backend.enter(pred, partial(_mse_loss, backend, reduction), pred, target)


def _mse_loss(backend: Backend, reduction: Reduction, pred: Any, target: Any) -> tuple[float | Array, Array]:
    if not isinstance(pred, backend.array):
        raise kind_error("pred", pred, "a float32 or float64 numpy.ndarray")
    if pred.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"pred: expected a float32 or float64 numpy.ndarray, got {pred.dtype}; use pred.astype('float32')"
        )
    refuse_mask("pred", pred)
    xp = backend.xp
    check_array("target", target, pred.shape, pred.dtype, kind=backend.array)
    error = xp.asarray(pred - target)
    if reduction == "none":
        return error * error, 2.0 * error
    total = float(xp.square(error, dtype=xp.float64).sum())
    if not total < math.inf:
        return _mse_past_the_range(pred, target, reduction, xp)
    if reduction == "sum":
        return total, 2.0 * error
    if not error.size:
        return float("nan"), error
    return total / error.size, error * (2.0 / error.size)


def _mse_past_the_range(pred: Array, target: Array, reduction: Reduction, xp: Any) -> tuple[float, Array]:
    """Return loss and gradient where differences or squares overflow, though the results may not."""
    count = pred.size if reduction == "mean" else 1
    with np.errstate(over="ignore", invalid="ignore"):
        # float64 holds float32's differences, and those of float64 in quarters.
        quarter = xp.asarray(0.25 * pred.astype(xp.float64) - 0.25 * target.astype(xp.float64))
        loss = float(xp.square(quarter * (4.0 / math.sqrt(count))).sum())
        return loss, xp.asarray(quarter * (8.0 / count)).astype(pred.dtype)


def class_numbers(
    targets: Any, shape: tuple[int, ...], classes: int, ignore_index: int
) -> npt.NDArray[np.int64]:
    """Return targets of that shape as (N,), IGNORED where they do not count.

    Raises:
        TypeError: not integers, or a mask.
        ValueError: another shape, or a target that counts beyond the classes.
    """
    labels = as_regular("targets", targets)
    if labels.shape != shape:
        raise ValueError(f"targets: expected shape (...) = {shape}, got {labels.shape}")
    flat, ignored = as_indices("targets", labels), check_size("ignore_index", ignore_index, -(2**63))
    wrong = flat[(flat != ignored) & ((flat < 0) | (flat >= classes))]
    if wrong.size:
        raise ValueError(
            f"targets: expected values in [0, C) = [0, {classes}) or ignore_index = {ignored}, got {wrong[0]}"
        )
    return np.where(flat == ignored, IGNORED, flat)


def check_reduction(reduction: str) -> None:
    """Refuse what is no reduction of a loss."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))
