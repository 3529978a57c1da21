"""MixtureDensity: what a network says of the next point of a pen, as a density."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_number, check_size
from fusedrnn.init import Seed, make_rng
from fusedrnn.listing import Listed
from fusedrnn.losses.elements import check_pred, reduced
from fusedrnn.losses.gamma import log_softmax, sigmoid, softplus
from fusedrnn.training.losses import Reduction, check_reduction

# Deviations and correlations beyond those of +-100 are taken for these: no float32 is as large or as small.
_MOST = 100.0


class MixtureDensity(Listed):
    """A mixture of K Gaussians in the plane, and a probability that the stroke ends.

    A network emits `size` = 6 K + 1 numbers for each step: e, then K each of pi, mu_1, mu_2, sigma_1, sigma_2
    and rho, of which

        weights softmax(pi), means mu, deviations exp(sigma), correlations tanh(rho),
        P(the stroke ends here) = sigmoid(e)

    are the parameters of the density of the next offset (x_1, x_2) and of the bit that a stroke ends.

    Args:
        num_components: K >= 1.

    Raises:
        TypeError: not an int.
        ValueError: out of range.

    Attributes:
        size: 6 K + 1, the outputs of the layer in front.

    Paper: Graves 2013, Generating sequences with recurrent neural networks, arXiv:1308.0850v5, equations 18
    to 25, with the sign of e changed.
    """

    def __init__(self, num_components: int) -> None:
        self.num_components = check_size("num_components", num_components)
        self.size = 6 * self.num_components + 1

    @overload
    def loss(
        self, raw: Array, targets: Array, reduction: Literal["mean", "sum"] = ...
    ) -> tuple[float, Array]: ...
    @overload
    def loss(self, raw: Array, targets: Array, reduction: Literal["none"]) -> tuple[Array, Array]: ...
    def loss(self, raw: Array, targets: Array, reduction: Reduction = "mean") -> Any:
        """Return the negative log likelihood of the targets, and the gradient of raw.

        Args:
            raw: (..., size), float32 or float64; sigma and rho beyond +-100 count as +-100.
            targets: (..., 3) in the dtype of raw: x_1, x_2, and 1 where a stroke ends, 0 elsewhere.
            reduction: "mean" over the points, "sum" or "none".

        Returns:
            loss: float, or (...) with reduction="none"; the mean over nothing is NaN.
            draw: (..., size), the gradient of the loss, with reduction="none" of its sum.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range, or an unknown reduction.
            RuntimeError: an array on a GPU.
        """
        check_reduction(reduction)
        values = self._values(raw)
        check_array("targets", targets, (*raw.shape[:-1], 3), raw.dtype, "(..., 3)")
        points = np.asarray(targets, np.float64, order="C")
        ends = points[..., 2]
        wrong = (ends != 0) & (ends != 1)
        if wrong.any():
            raise ValueError(f"targets: expected 0 or 1 at the end of the axis, got {ends[wrong].flat[0]}")
        e, pi, (mu_1, mu_2, sigma_1, sigma_2, rho) = values
        with np.errstate(over="ignore", invalid="ignore"):
            narrow_1, narrow_2, grow = np.exp(-sigma_1), np.exp(-sigma_2), np.exp(rho)
            u, v = (points[..., 0, None] - mu_1) * narrow_1, (points[..., 1, None] - mu_2) * narrow_2
            # The quadratic form of u and v is a sum of squares, which keeps its digits near correlations of
            # +-1, where 1 - tanh(rho)^2 has none: (u^2 + v^2) / 2 + (p^2 + q^2) / 4.
            p, q = (u - v) * grow, (u + v) / grow
            log_cosh = np.logaddexp(rho, -rho) - math.log(2)
            densities = log_cosh - sigma_1 - sigma_2 - (u * u + v * v) / 4 - (p * p + q * q) / 8
            weights = log_softmax(pi, -1)
            joint = weights + densities
            top = joint.max(axis=-1, keepdims=True)
            likelihood = np.log(np.exp(joint - top).sum(axis=-1, keepdims=True)) + top
            share = np.exp(joint - likelihood)
            losses = math.log(2 * math.pi) - likelihood[..., 0] + softplus(np.where(ends == 1, -e, e))
            du, dv = u / 2 + (p * grow + q / grow) / 4, v / 2 + (q / grow - p * grow) / 4
            blocks = (
                np.exp(weights) - share,
                -share * du * narrow_1,
                -share * dv * narrow_2,
                share * (1 - u * du),
                share * (1 - v * dv),
                share * ((p * p - q * q) / 4 - np.tanh(rho)),
            )
        draw = np.concatenate([(sigmoid(e) - ends)[..., None], *blocks], axis=-1)
        return reduced(reduction, raw.dtype, losses, draw)

    def sample(self, raw: Array, bias: float = 0.0, seed: Seed = None) -> Array:
        """Return points (..., 3) drawn from the densities: x_1, x_2, and whether the stroke ends.

        Args:
            raw: (..., size), float32 or float64.
            bias: b in [0, 100] makes what is drawn likelier, and a handwriting neater: weights are
                softmax(pi (1 + b)) and deviations exp(sigma - b).
            seed: int, numpy.random.Generator or None; a Generator goes on from call to call.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range, or raw is not finite.
            RuntimeError: an array on a GPU.
        """
        e, pi, others = self._values(raw)
        low, rng = check_number("bias", bias, 0.0, _MOST), make_rng(seed)
        if not np.isfinite(raw).all():
            raise ValueError("raw: expected finite values, got NaN or infinite ones")
        # The largest of log weights with Gumbel noise is a draw from the weights.
        chosen = (log_softmax(pi * (1 + low), -1) + rng.gumbel(size=pi.shape)).argmax(axis=-1)[..., None]
        mu_1, mu_2, sigma_1, sigma_2, rho = (np.take_along_axis(a, chosen, -1)[..., 0] for a in others)
        first, second = rng.standard_normal((2, *e.shape))
        second = np.tanh(rho) * first + second / np.cosh(rho)
        point = (
            mu_1 + np.exp(sigma_1 - low) * first,
            mu_2 + np.exp(sigma_2 - low) * second,
            rng.random(e.shape) < sigmoid(e),
        )
        with np.errstate(over="ignore"):
            return np.stack(point, axis=-1).astype(raw.dtype)

    def _values(self, raw: Any) -> tuple[Array, Array, list[Array]]:
        """Return e, pi, and the others in their order, in float64."""
        check_pred("raw", raw)
        if raw.ndim == 0 or raw.shape[-1] != self.size:
            raise ValueError(f"raw: expected shape (..., 6 K + 1) = (..., {self.size}), got {raw.shape}")
        wide = np.asarray(raw, np.float64, order="C")
        pi, mu_1, mu_2, *others = np.split(wide[..., 1:], 6, axis=-1)
        return wide[..., 0], pi, [mu_1, mu_2, *[np.clip(array, -_MOST, _MOST) for array in others]]

    def __repr__(self) -> str:
        return f"MixtureDensity({self.num_components})"
