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


# Products of matrices by our own kernels: NumPy's take threads that `set_num_threads` does not know.
def _times(a: Array, b: Array) -> Array:
    """Return a b for a (N, K) and b (K, M)."""
    product = _core.linear_backward(np.empty((len(a), b.shape[1]), a.dtype), b, a, None, None, True)
    if product is None:
        raise AssertionError
    return product


def _transposed_times(a: Array, b: Array) -> Array:
    """Return a^T b for a (N, K) and b (N, M)."""
    product = np.zeros((a.shape[1], b.shape[1]), a.dtype)
    _core.linear_backward(b, product.copy(), a, product, None, False)
    return product


@dataclass(frozen=True, slots=True)
class Moments:
    """The input of a layer: the steps that count, their mean and covariance.

    Attributes:
        counts: (T, B) bool, None for all.
        number: N, how many of them count.
        mean: (I,), in float64.
        centred: (N, I), less their mean.
        covariance: (I, I), without Bessel's correction; None with fewer steps than features, which are less
            work as they are.
    """

    counts: Array | None
    number: int
    mean: Array
    centred: Array
    covariance: Array | None

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
        rows = steps.reshape(seq_len * batch, size) if counts is None else steps[counts]
        if len(rows) == 1:
            raise ValueError(
                "batch_norm: expected two steps that count or more in training mode, got 1, which has no "
                "variance; use eval()"
            )
        number = max(len(rows), 1)
        with np.errstate(all="ignore"):
            mean = rows.sum(axis=0, dtype=np.float64) / number
            centred = rows - mean.astype(rows.dtype)
            covariance = None
            if number >= len(mean):
                covariance = _transposed_times(centred, centred) / rows.dtype.type(number)
        return cls(counts, number, mean, centred, covariance)


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
        weight, gain, spread = given.copy(), own[GAIN + suffix].astype(np.float64), None
        with np.errstate(all="ignore"):
            if moments is None:
                mean, var = (own[name + suffix].astype(np.float64) for name in (MEAN, VAR))
            else:
                centre = moments.mean.astype(weight.dtype)[None]
                mean = _core.linear_forward(centre, weight, None)[0].astype(np.float64)
                if moments.covariance is None:
                    spread = _core.linear_forward(moments.centred, weight, None)
                    var = np.square(spread).sum(axis=0, dtype=np.float64) / moments.number
                else:
                    spread = _times(weight, moments.covariance)
                    var = (spread * weight).sum(axis=1, dtype=np.float64).clip(0.0)
            rstd = 1.0 / np.sqrt(var + EPS)
            scale = gain * rstd
            moved = -scale * mean if bias is None else bias - scale * mean
            made = list(weights)
            made[places[0]] = weight * scale.astype(weight.dtype)[:, None]
            made[places[1]] = moved.astype(given.dtype)
        return cls(tuple(made), weight, gain, mean, var, rstd, moments, spread, places)

    @property
    def nbytes(self) -> int:
        """Of what a tape keeps of it."""
        kept = self.weight.nbytes * 2 + self.gain.nbytes * 4
        if self.moments is None or self.spread is None:
            return kept
        return kept + self.spread.nbytes + self.moments.centred.nbytes

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
            made[place] = None if weight is None else np.zeros(weight.shape, weight.dtype)
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
            # What the variance takes from the gradient of W x, of each of its N values where these are kept.
            factor = (dgain * self.rstd).astype(kind)
            each = kind.type(1.0 if moments is None else 1.0 / moments.number)
            flow = (
                None if moments is None or moments.covariance is not None else self.spread * (factor * each)
            )
            if grads is not None:
                if moments is not None:
                    dweight -= dbias[:, None] * moments.mean.astype(kind)
                    dweight -= (
                        self.spread * factor[:, None]
                        if flow is None
                        else _transposed_times(flow, moments.centred)
                    )
                dweight *= scale[:, None]
                grads["weight_ih" + suffix] += dweight
                grads[GAIN + suffix] += dgain
                if "bias_ih" + suffix in grads:
                    grads["bias_ih" + suffix] += dbias
            if dx is None or moments is None:
                return
            scaled = self.weights[self.places[0]]
            if scaled is None:
                raise AssertionError
            if flow is None:
                through = _transposed_times(self.weight * (factor * each)[:, None], scaled)
                rows = _times(moments.centred, through)
                rows += _times((dbias * each)[None], scaled)
            else:
                flow += dbias * each
                rows = _times(flow, scaled)
            if moments.counts is None:
                dx -= rows.reshape(dx.shape)
            else:
                dx[moments.counts] -= rows
