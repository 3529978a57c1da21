"""Densities of the next value that a network emits: their losses, and samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.losses.likelihood import gaussian_nll_loss, student_t_nll_loss
from fusedrnn.losses.regression import quantile_loss

# What is added to Student's logarithm of the degrees of freedom: an untrained network starts from five.
_LOG_DF = np.float32(np.log(5.0))


Loss: TypeAlias = "Callable[[Array, Array], tuple[Array, Array]]"


class Density(NamedTuple):
    """A density whose parameters are the last axis of an output.

    Attributes:
        size: parameters.
        loss: of (output, targets) to the losses of each element, and the gradient of the output of their sum.
        draw: of (output, generator) to a value for each element, in float64.
    """

    size: int
    loss: Loss
    draw: Callable[[Array, np.random.Generator], Array]


def _gaussian_loss(output: Array, targets: Array) -> tuple[Array, Array]:
    losses, *gradients = gaussian_nll_loss(
        output[..., 0], targets, output[..., 1], log_var=True, reduction="none"
    )
    return losses, np.stack(gradients, axis=-1)


def _gaussian(output: Array, rng: np.random.Generator) -> Array:
    mean, log_variance = np.moveaxis(output.astype(np.float64), -1, 0)
    found: Array = mean + np.exp(0.5 * log_variance) * rng.standard_normal(mean.shape)
    return found


def _student_t_loss(output: Array, targets: Array) -> tuple[Array, Array]:
    losses, *gradients = student_t_nll_loss(
        output[..., 0], targets, output[..., 1], output[..., 2] + _LOG_DF, reduction="none"
    )
    return losses, np.stack(gradients, axis=-1)


def _student_t(output: Array, rng: np.random.Generator) -> Array:
    location, log_scale, log_df = np.moveaxis(output.astype(np.float64), -1, 0)
    drawn = rng.standard_t(np.exp(np.minimum(log_df + _LOG_DF, 300.0)))
    found: Array = location + np.exp(log_scale) * drawn
    return found


DENSITIES = {
    "gaussian": Density(2, _gaussian_loss, _gaussian),
    "student_t": Density(3, _student_t_loss, _student_t),
}


def of_quantiles(levels: list[float]) -> Loss:
    """Return the loss of quantiles as `of_known` takes it."""
    return lambda output, targets: quantile_loss(output, targets, levels, "none")


def of_known(loss: Loss, output: Array, targets: Array) -> tuple[float, Array]:
    """Return the mean of a loss over the targets that are no NaN, and the gradient of the output.

    Args:
        loss: of (output, targets) to the losses of each element, and the gradient of the output of their sum.
        output: (..., P).
        targets: (...).
    """
    known = ~np.isnan(targets)
    losses, gradient = loss(output, np.where(known, targets, targets.dtype.type(0)))
    losses = losses.reshape(*targets.shape, -1)
    count = max(int(known.sum()) * losses.shape[-1], 1)
    total = float(losses[known].sum(dtype=np.float64))
    return total / count, np.where(known[..., None], gradient / count, 0.0).astype(output.dtype)
