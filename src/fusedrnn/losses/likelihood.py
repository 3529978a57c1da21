"""Negative log likelihoods of distributions whose parameters a network emits."""

from __future__ import annotations

import math
from typing import Any, overload

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.checks import check_flag
from fusedrnn.losses.elements import Each, Scalar, check_positive, reduced, wide
from fusedrnn.losses.gamma import digamma_rise, log_rising, sigmoid, softplus
from fusedrnn.training.losses import Reduction, check_reduction

# Above exp(300) a shape is infinite: Student's t is a Gaussian, the negative binomial Poisson's.
_MOST = 300.0


@overload
def gaussian_nll_loss(
    pred: Array,
    target: Array,
    var: Array,
    full: bool = ...,
    eps: float = ...,
    reduction: Scalar = ...,
    log_var: bool = ...,
) -> tuple[float, Array, Array]: ...
@overload
def gaussian_nll_loss(
    pred: Array,
    target: Array,
    var: Array,
    full: bool = ...,
    eps: float = ...,
    *,
    reduction: Each,
    log_var: bool = ...,
) -> tuple[Array, Array, Array]: ...
def gaussian_nll_loss(
    pred: Array,
    target: Array,
    var: Array,
    full: bool = False,
    eps: float = 1e-6,
    reduction: Reduction = "mean",
    log_var: bool = False,
) -> Any:
    """Return the negative log likelihood of a Gaussian, and the gradients of its mean and variance.

    loss = (log v + (pred - target)^2 / v) / 2 with v = max(var, eps), as torch's: the gradient passes through
    the maximum as if it were not there. With log_var, v = exp(var), what a network emits as it is.

    Args:
        pred: the mean, any shape, float32 or float64.
        target: shape and dtype of pred.
        var: the variance, >= 0, or with log_var its logarithm; shape and dtype of pred.
        full: whether log(2 pi) / 2 is added.
        eps: the least variance, > 0; without effect if log_var.
        reduction: "mean", "sum" or "none".
        log_var: whether var is the logarithm of the variance.

    Returns:
        loss: float, or the shape of pred with reduction="none"; the mean over nothing is NaN.
        dpred, dvar: shape of pred, the gradients of the loss, with reduction="none" of its sum.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes differ, an argument out of range, or an unknown reduction.
        RuntimeError: an array on a GPU.

    Paper: Nix and Weigend 1994, Estimating the mean and variance of the target probability distribution.
    """
    check_reduction(reduction)
    full, log_var, least = (
        check_flag("full", full),
        check_flag("log_var", log_var),
        check_positive("eps", eps),
    )
    x, y, v = wide("pred", pred, target=target, var=var)
    if not log_var and (v < 0).any():
        raise ValueError(f"var: expected values >= 0, got {v[v < 0].flat[0]}; see log_var")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        error = x - y
        if log_var:
            # In logarithms, since a variance may underflow where the quotient does not.
            log_error = np.log(np.abs(error))
            square = np.exp(2 * log_error - v)
            losses, dpred = 0.5 * (v + square), np.copysign(np.exp(log_error - v), error)
            dvar = 0.5 * (1 - square)
        else:
            v = np.maximum(v, least)
            root = np.sqrt(v)
            square = np.square(error / root)
            losses, dpred, dvar = 0.5 * (np.log(v) + square), error / v, 0.5 * (1 - square) / v
    if full:
        losses = losses + 0.5 * math.log(2 * math.pi)
    return reduced(reduction, pred.dtype, losses, dpred, dvar)


@overload
def student_t_nll_loss(
    pred: Array, target: Array, log_scale: Array, log_df: Array, reduction: Scalar = ...
) -> tuple[float, Array, Array, Array]: ...
@overload
def student_t_nll_loss(
    pred: Array, target: Array, log_scale: Array, log_df: Array, reduction: Each
) -> tuple[Array, Array, Array, Array]: ...
def student_t_nll_loss(
    pred: Array, target: Array, log_scale: Array, log_df: Array, reduction: Reduction = "mean"
) -> Any:
    """Return the negative log likelihood of Student's t distribution, and the gradients of its parameters.

    With n = exp(log_df), s = exp(log_scale) and z = (target - pred) / s,

        loss = log Gamma(n/2) - log Gamma((n+1)/2) + log(n pi) / 2 + log s + (n+1)/2 log(1 + z^2 / n)

    that of torch.distributions.StudentT(n, pred, s). Scale and degrees of freedom are positive, so their
    logarithms are what a network emits. For a fixed number of degrees, say 4, give
    np.full_like(pred, np.log(4)) and leave its gradient.

    Args:
        pred: the location, any shape, float32 or float64.
        target: shape and dtype of pred.
        log_scale: logarithm of the scale, shape and dtype of pred.
        log_df: logarithm of the degrees of freedom, shape and dtype of pred.
        reduction: "mean", "sum" or "none".

    Returns:
        loss: float, or the shape of pred with reduction="none"; the mean over nothing is NaN.
        dpred, dlog_scale, dlog_df: shape of pred, the gradients of the loss, with reduction="none" of its
            sum.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes differ, or an unknown reduction.
        RuntimeError: an array on a GPU.

    Paper: Lange, Little and Taylor 1989, Robust statistical modeling using the t distribution.
    """
    check_reduction(reduction)
    x, y, scale, df = wide("pred", pred, target=target, log_scale=log_scale, log_df=log_df)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        df = np.minimum(df, _MOST)
        half = 0.5 * np.exp(df)
        error = x - y
        log_error = np.log(np.abs(error))
        # z^2 / n = exp(t), of which logarithms are taken again: it is never computed itself.
        t = 2 * (log_error - scale) - df
        bend = softplus(t)
        # Gamma(a) = Gamma(a + 1) / a, where a = n/2 may be as small as it likes.
        rising = log_rising(half + 1, 0.5) - np.log(half + 0.5) + df - math.log(2)
        losses = 0.5 * (df + math.log(math.pi)) - rising + scale + (half + 0.5) * bend
        log_weight = np.logaddexp(df, 0) - bend  # of (n + 1) / (1 + exp(t))
        dpred = np.copysign(np.exp(log_weight + log_error - 2 * scale - df), error)
        dscale = 1 - np.exp(log_weight + t)
        rise = 0.5 / (half + 0.5) + half * digamma_rise(half + 1, 0.5)
        ddf = 0.5 - rise + half * bend - (half + 0.5) * sigmoid(t)
    return reduced(reduction, pred.dtype, losses, dpred, dscale, ddf)


@overload
def negative_binomial_nll_loss(
    log_mean: Array, target: Array, log_total_count: Array, reduction: Scalar = ...
) -> tuple[float, Array, Array]: ...
@overload
def negative_binomial_nll_loss(
    log_mean: Array, target: Array, log_total_count: Array, reduction: Each
) -> tuple[Array, Array, Array]: ...
def negative_binomial_nll_loss(
    log_mean: Array, target: Array, log_total_count: Array, reduction: Reduction = "mean"
) -> Any:
    """Return the negative log likelihood of counts y under the negative binomial, and its gradients.

    With mean m = exp(log_mean) and r = exp(log_total_count), the variance is m + m^2 / r and

        loss = log Gamma(r) + log y! - log Gamma(r + y) + r log(1 + m / r) + y log(1 + r / m)

    that of torch.distributions.NegativeBinomial(r, logits=log(m / r)). Mean and r are positive, so their
    logarithms are what a network emits. Large r give Poisson's distribution.

    Args:
        log_mean: any shape, float32 or float64.
        target: y, whole numbers >= 0, in the shape and dtype of log_mean.
        log_total_count: shape and dtype of log_mean.
        reduction: "mean", "sum" or "none".

    Returns:
        loss: float, or the shape of log_mean with reduction="none"; the mean over nothing is NaN.
        dlog_mean, dlog_total_count: shape of log_mean, the gradients of the loss, with reduction="none" of
            its sum.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes differ, a target is no count, or an unknown reduction.
        RuntimeError: an array on a GPU.

    Paper: Salinas, Flunkert and Gasthaus 2017, DeepAR, arXiv:1704.04110v3.
    """
    check_reduction(reduction)
    mean, y, count = wide("log_mean", log_mean, target=target, log_total_count=log_total_count)
    wrong = ~((y >= 0) & (y < math.inf) & (np.floor(y) == y))
    if wrong.any():
        raise ValueError(f"target: expected whole numbers >= 0, got {y[wrong].flat[0]}")
    some, rest = y > 0, np.maximum(y - 1, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        count = np.minimum(count, _MOST)
        r, odds = np.exp(count), mean - count
        bend = softplus(odds)
        # log Gamma(r + y) - log Gamma(r) - y log r, with the first factor r taken out, which may underflow.
        rising = log_rising(1 + r, rest) - rest * count
        losses = log_rising(np.ones_like(y), y) - rising + r * bend + y * (bend - mean)
        success = sigmoid(odds)
        dmean = r * success - y * sigmoid(-odds)
        rise = np.where(some, 1.0, 0.0) + r * digamma_rise(1 + r, rest)
        dcount = y - rise + r * (bend - success) - y * success
    return reduced(reduction, log_mean.dtype, losses, dmean, dcount)
