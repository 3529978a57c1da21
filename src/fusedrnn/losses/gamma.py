"""Differences of the logarithm of the gamma function and of its derivative, which likelihoods are made of.

The differences are taken term by term: of large arguments, those of the functions themselves would keep none
of their digits.
"""

from __future__ import annotations

import numpy as np

from fusedrnn.arrays import Array

# Coefficients of 1/a, 1/a^3, ... of Stirling's series: from a = 9 on they give all digits of float64.
_SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_SLOPES = tuple([(2 * k + 1) * coefficient for k, coefficient in enumerate(_SERIES)])
_SHIFT = 8


def log_rising(a: Array, b: Array | float) -> Array:
    """Return log(Gamma(a + b) / Gamma(a)) for a >= 1, b >= 0, of float64."""
    low = a + _SHIFT
    high = low + b
    found = (low - 0.5) * np.log1p(b / low) + b * np.log(high) - b
    found = found + (_sum(1 / high, _SERIES) / high - _sum(1 / low, _SERIES) / low)
    for k in range(0, _SHIFT, 2):  # two at a time: of more, the product might overflow
        found = found - np.log1p(b / (a + k) * ((a + (2 * k + 1) + (a + b)) / (a + (k + 1))))
    return np.asarray(found)


def digamma_rise(a: Array, b: Array | float) -> Array:
    """Return the derivative of `log_rising` by a, digamma(a + b) - digamma(a), for a >= 1, b >= 0."""
    low = a + _SHIFT
    high = low + b
    found = np.log1p(b / low) + b / low / high / 2
    found = found - (_sum(1 / high, _SLOPES) / high / high - _sum(1 / low, _SLOPES) / low / low)
    for k in range(_SHIFT):
        found = found + b / (a + k) / (a + k + b)
    return np.asarray(found)


def _sum(x: Array, coefficients: tuple[float, ...]) -> Array:
    """Return the polynomial of x^2."""
    square = x * x
    found = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        found = found * square + coefficient
    return found


def softplus(x: Array) -> Array:
    """Return log(1 + exp(x)) with all digits everywhere."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) with all digits everywhere."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))


def log_softmax(x: Array, axis: int | tuple[int, ...]) -> Array:
    """Return x - log(sum of exp(x)) along axes; of NaN and inf NaN."""
    with np.errstate(invalid="ignore"):
        shifted = x - x.max(axis=axis, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)))
