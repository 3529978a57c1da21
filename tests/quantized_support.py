"""The schemes of docs/quantized.md, written out in NumPy, and layers to hold against them."""

from __future__ import annotations

from typing import Any

import numpy as np
from support import Array, random_params, random_state

from fusedrnn import _core

FORMATS = ("bf16", "int8")


def to_bf16(a: Array) -> Array:
    """The nearest number with 8 significant bits, ties to even."""
    mantissa, exponent = np.frexp(a.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256.0), exponent - 8)


def to_int8(rows: Array) -> tuple[Array, Array]:
    """Integers in [-127, 127] and the scale of each row, rounded in float32 exactly as the kernels do."""
    largest = np.abs(rows).max(-1, keepdims=True, initial=0.0).astype(np.float32)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest >= 1e-30)
    scale = np.where(largest >= 1e-30, largest / np.float32(127), np.float32(0))
    return np.rint(np.clip(rows * inverse, -127, 127)).astype(np.int64), scale.astype(np.float64)


def product(weights: str, w: Array, rows: Array) -> Array:
    """W x for each row x, in float64."""
    if weights == "bf16":
        return rows.astype(np.float64) @ to_bf16(w).T
    (w_int, w_scale), (x_int, x_scale) = to_int8(w), to_int8(rows)
    return (x_int @ w_int.T) * (x_scale * w_scale.T)


def draw(cell: str, sizes: tuple[int, int, int, int], proj: int = 0) -> tuple[Array, Any, Any]:
    """x, parameters and initial state of a problem (T, B, I, H) in float32."""
    seq_len, batch, inputs, hidden = sizes
    rng = np.random.default_rng([*sizes, proj])
    x = rng.normal(size=(seq_len, batch, inputs)).astype(np.float32)
    params = random_params(rng, cell, inputs, hidden, proj, "float32")
    return x, params, random_state(rng, cell, (1, batch), hidden, proj, "float32")


def run(
    cell: str, layers: Any, weights: str, x: Array, state: Any = None, **options: Any
) -> tuple[Array, Any]:
    """y and the final state of `_core.Quantized`; layers[k][d] are parameters."""
    widths = sum((p[1] if p[4] is None else p[4].T).shape[1] for p in layers[0])
    y = np.full((*x.shape[:2], widths), np.nan, np.float32)
    return y, _core.Quantized(cell, layers, weights).forward(x, y, state, **options)
