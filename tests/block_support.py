"""Gradients of modules by central differences in random directions."""

from __future__ import annotations

from typing import Any

import numpy as np

WIDE: Any = {"dtype": "float64"}
STEP = 1e-6


def assert_gradients(module: Any, x: Any, rtol: float = 2e-6, atol: float = 1e-8, **options: Any) -> None:
    """Hold dx and the gradients of all parameters against differences of the module's calls."""
    rng = np.random.default_rng(1)
    y, tape = module.forward(x, **options)
    np.testing.assert_array_equal(module(x, **options), y)
    dy = rng.normal(size=y.shape)
    module.zero_grad()
    dx = module.backward(tape, dy)
    flat, grads = module.flat_parameters, module.flat_grads.copy()
    kept = flat.copy()

    def loss(moved: Any) -> float:
        return float((module(moved, **options) * dy).sum())

    for _ in range(4):
        along = rng.normal(size=flat.shape)
        sides = []
        for sign in (1, -1):
            flat[:] = kept + sign * STEP * along
            sides.append(loss(x))
        flat[:] = kept
        slope = (sides[0] - sides[1]) / (2 * STEP)
        np.testing.assert_allclose((grads * along).sum(), slope, rtol=rtol, atol=atol)
        if x.dtype.kind != "f":
            assert dx is None
            continue
        along = rng.normal(size=x.shape)
        slope = (loss(x + STEP * along) - loss(x - STEP * along)) / (2 * STEP)
        np.testing.assert_allclose((dx * along).sum(), slope, rtol=rtol, atol=atol)
