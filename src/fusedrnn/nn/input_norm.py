"""Batch normalisation of W_ih x: what it makes of a call's weights, and the gradients that go through it.

Normalised products are products with other weights: with y = gain*(W x - mean)*rstd + bias, each row of W is
scaled by gain*rstd, and the bias moved. Mean and variance of W x follow from those of x, so that neither the
products nor the kernels have to be touched.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cells import CellSpec, Weights

EPS = 1e-5
MOMENTUM = 0.1
GAIN, MEAN, VAR = "gain_ih", "running_mean", "running_var"


# Arrays of a weight's size are spare ones: the system maps and clears new ones for longer than a pass takes.
# Products of matrices by our own kernels: NumPy's take threads that `set_num_threads` does not know.
def _times(a: Array, b: Array) -> Array:
    """Return a b for a (N, K) and b (K, M)."""
    product = _core.linear_backward(np.empty((len(a), b.shape[1]), a.dtype), b, a, None, None, True)
    if product is None:
        raise AssertionError
    return product


def _transposed_times(a: Array, b: Array) -> Array:
    """Return a^T b for a (N, K) and b (N, M)."""
    total = np.zeros((a.shape[1], b.shape[1]), a.dtype)
    unread = np.empty_like(total)  # stands for the weight, which no gradient of b asks for
    _core.linear_backward(b, unread, a, total, None, False)
    return total


@dataclass(frozen=True, slots=True)
class Moments:
    """The input of a layer: the steps that count, their mean and covariance.

    Attributes:
        counts: (T, B) bool, None for all.
        number: N, how many of them count.
        rows: (N + 1, I), the steps less their mean, and below them the mean.
        covariance: (I, I), without Bessel's correction; None with fewer steps than features, which are less
            work as they are.
    """

    counts: Array | None
    number: int
    rows: Array
    covariance: Array | None

    @property
    def centred(self) -> Array:
        """The steps less their mean, (N, I)."""
        return self.rows[:-1]

    @property
    def mean(self) -> Array:
        """Of the steps, (I,)."""
        mean: Array = self.rows[-1]
        return mean

    @classmethod
    def of(cls, steps: Array, ends: Array | None) -> Moments:
        """Return those of steps (T, B, I) that end where `ends` (B,) says.

        Raises:
            ValueError: a single step counts.
        """
        counts = None
        # What is wrong with lengths is the kernels' to say.
        if ends is not None and ends.shape == steps.shape[1:2]:
            counts = np.arange(len(steps))[:, None] < ends
        seq_len, batch, size = steps.shape
        given = steps.reshape(seq_len * batch, size) if counts is None else steps[counts]
        if len(given) == 1:
            raise ValueError(
                "batch_norm: expected two steps that count or more in training mode, got 1, which has no "
                "variance; use eval()"
            )
        number = max(len(given), 1)
        rows, covariance = np.empty((len(given) + 1, size), steps.dtype), None
        with np.errstate(all="ignore"):
            rows[-1] = given.sum(axis=0, dtype=np.float64) / number
            np.subtract(given, rows[-1], out=rows[:-1])
            if number >= size:
                covariance = _transposed_times(rows[:-1], rows[:-1])
                covariance /= steps.dtype.type(number)
        return cls(counts, number, rows, covariance)


@dataclass(frozen=True, slots=True)
class Fold:
    """The normalisation of one layer and direction in one call.

    Attributes:
        weights: the parameters that the kernels take.
        weight: weight_ih as it was.
        gain, mean, var, rstd: the gain, and of W x, (G*H,), in float64.
        moments: those of the input, None in evaluation mode.
        spread: W times the covariance, (G*H, I), or what both follow from, W x less its mean, (N, G*H).
        places: of weight_ih and bias_ih among the parameters.
    """

    weights: Weights
    weight: Array
    gain: Array
    mean: Array
    var: Array
    rstd: Array
    moments: Moments | None
    spread: Array | None
    places: tuple[int, int]

    @classmethod
    def of(
        cls, spec: CellSpec, weights: Weights, own: Mapping[str, Any], suffix: str, moments: Moments | None
    ) -> Fold:
        """Return that of a module's arrays `own`, by moments or by the running mean and variance."""
        names = spec.parameter_names
        places = names.index("weight_ih"), names.index("bias_ih")
        given, bias = weights[places[0]], weights[places[1]]
        if given is None:
            raise AssertionError
        weight, gain, spread = _core.spare_like(given), own[GAIN + suffix].astype(np.float64), None
        weight[...] = given
        with np.errstate(all="ignore"):
            if moments is None:
                mean, var = (own[name + suffix].astype(np.float64) for name in (MEAN, VAR))
            else:
                if moments.covariance is None:
                    products = _core.linear_forward(moments.rows, weight, None)
                    spread, mean = products[:-1], products[-1].astype(np.float64)
                    var = np.square(spread).sum(axis=0, dtype=np.float64) / moments.number
                else:
                    mean = np.einsum("gi,i->g", weight, moments.mean).astype(np.float64)
                    spread = _times(weight, moments.covariance)
                    var = (spread * weight).sum(axis=1, dtype=np.float64).clip(0.0)
            rstd = 1.0 / np.sqrt(var + EPS)
            scale = gain * rstd
            moved = -scale * mean if bias is None else bias - scale * mean
            made = list(weights)
            scales = scale.astype(weight.dtype)[:, None]
            made[places[0]] = np.multiply(weight, scales, out=_core.spare_like(weight))
            made[places[1]] = moved.astype(given.dtype)
        return cls(tuple(made), weight, gain, mean, var, rstd, moments, spread, places)

    @property
    def nbytes(self) -> int:
        """Of what a tape keeps of it."""
        kept = self.weight.nbytes * 2 + self.gain.nbytes * 4
        if self.moments is None or self.spread is None:
            return kept
        return kept + self.spread.nbytes + self.moments.rows.nbytes

    def learn(self, running: Mapping[str, Any], suffix: str) -> None:
        """Let the running mean and variance, this one with Bessel's correction, move."""
        if self.moments is None or self.moments.number == 1:  # no step counts
            return
        number = self.moments.number
        for name, new in ((MEAN, self.mean), (VAR, self.var * (number / (number - 1)))):
            array = running[name + suffix]
            array[...] = (1.0 - MOMENTUM) * array + MOMENTUM * new

    def apart(self, sums: Weights, frozen: bool) -> Weights:
        """Return the gradients that backward adds to, zeros of their own for those that `unfold` takes."""
        if frozen and self.moments is None:
            return sums
        made = list(sums)
        for place in self.places:
            weight = self.weights[place]
            made[place] = zeros = None if weight is None else _core.spare_like(weight)
            if zeros is not None:
                zeros.fill(0)
        return tuple(made)

    def unfold(
        self, sums: Weights, grads: MutableMapping[str, Any] | None, suffix: str, dx: Array | None
    ) -> None:
        """Add to `grads` of the module what `sums` of the kernels make, and correct dx (T, B, I)."""
        dweight, dbias = sums[self.places[0]], sums[self.places[1]]
        if dweight is None or dbias is None:
            return
        moments, kind = self.moments, self.weight.dtype
        with np.errstate(all="ignore"):
            scale = (self.gain * self.rstd).astype(kind)
            products = np.einsum("gi,gi->g", dweight, self.weight).astype(np.float64)
            dgain = self.rstd * (products - self.mean * dbias)
            # What variance and mean add to the gradient of W x: to each of its N values, if these are kept,
            # and, in the last row, to all together.
            factor = (dgain * self.rstd).astype(kind)
            each = kind.type(1.0 if moments is None else 1.0 / moments.number)
            flow = None
            if moments is not None and moments.covariance is None and self.spread is not None:
                flow = np.empty((len(moments.rows), len(dbias)), kind)
                np.multiply(self.spread, factor * -each, out=flow[:-1])
                np.negative(dbias, out=flow[-1])
            scaled, through_rows = self.weights[self.places[0]], None
            if scaled is None:
                raise AssertionError
            if flow is not None and moments is not None:
                added = None if grads is None else dweight
                through_rows = _core.linear_backward(moments.rows, scaled, flow, added, None, dx is not None)
            if grads is not None:
                if moments is not None and flow is None:
                    dweight -= dbias[:, None] * moments.mean
                    dweight -= self.spread * factor[:, None]
                dweight *= scale[:, None]
                grads["weight_ih" + suffix] += dweight
                grads[GAIN + suffix] += dgain
                if "bias_ih" + suffix in grads:
                    grads["bias_ih" + suffix] += dbias
            if dx is None or moments is None:
                return
            if through_rows is None:
                through = _transposed_times(scaled, self.weight * (factor * -each)[:, None])
                moved = np.einsum("g,gi->i", dbias * -each, scaled)
                rows = _core.linear_forward(moments.centred, through, moved)
            else:
                rows = through_rows[:-1]
                rows += through_rows[-1] * each
            if moments.counts is None:
                dx += rows.reshape(dx.shape)
            else:
                dx[moments.counts] += rows
