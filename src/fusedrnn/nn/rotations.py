"""Rotations of one qubit: RZ(c) RY(b) RZ(a) for angles a, b, c, and the gradients of the angles.

RZ(a) = diag(exp(-i a/2), exp(i a/2)), RY(b) = [[cos(b/2), -sin(b/2)], [sin(b/2), cos(b/2)]].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array

_Float64 = npt.NDArray[np.float64]


def rotations(angles: Array) -> _Float64:
    """Return matrices (..., 8) for angles (..., 3): entries row by row, real and imaginary part of each."""
    before, turn, after = np.moveaxis(angles.astype(np.float64), -1, 0)
    return _matrix(before, after, np.cos(turn / 2), np.sin(turn / 2)).view(np.float64)


def rotation_gradients(angles: Array, dmatrices: _Float64) -> _Float64:
    """Return the gradients of angles (..., 3) from those of their matrices (..., 8)."""
    before, turn, after = np.moveaxis(angles.astype(np.float64), -1, 0)
    cos, sin = np.cos(turn / 2), np.sin(turn / 2)
    matrix = _matrix(before, after, cos, sin)
    # RZ(a) multiplies the columns and RZ(c) the rows by exp(-i a/2) and its conjugate.
    derivatives = (
        matrix * np.array([-0.5j, 0.5j, -0.5j, 0.5j]),
        _matrix(before, after, -sin / 2, cos / 2),
        matrix * np.array([-0.5j, -0.5j, 0.5j, 0.5j]),
    )
    return np.stack([(d.view(np.float64) * dmatrices).sum(axis=-1) for d in derivatives], axis=-1)


def _matrix(before: _Float64, after: _Float64, cos: _Float64, sin: _Float64) -> npt.NDArray[np.complex128]:
    """Return RZ(after) [[cos, -sin], [sin, cos]] RZ(before), (..., 4)."""
    one, other = np.exp(0.5j * (before + after)), np.exp(0.5j * (before - after))
    return np.stack([cos / one, -sin * other, sin / other, cos * one], axis=-1)
