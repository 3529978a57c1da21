"""The one table of tolerances, and the one meaning of "close".

The error of an array is relative to its scale: ||got - want||_2 / ||want||_2, the norms being over the whole
array. Where `want` is all zero, `got` has to be exactly zero. NaN and Inf have to stand at the same places,
with the same sign of Inf, and are left out of the norms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TOLERANCE: dict[str, dict[str, float]] = {
    "float64": {"output": 1e-10, "state": 1e-10, "gradient": 1e-10, "loss": 1e-10, "parameter": 1e-10},
    "float32": {"output": 1e-5, "state": 1e-5, "gradient": 1e-5, "loss": 1e-5, "parameter": 1e-5},
}
CENTRAL_DIFFERENCES = 1e-9  # float64 gradients against the five-point formula with its step of 1e-3
TRAINING_CURVE = {"float64": 1e-9, "float32": 1e-3}  # relative, at every one of 200 optimiser steps
ULP = 2.0  # exp, sigmoid, tanh


def relative_error(got: Any, want: Any) -> float:
    """||got - want|| / ||want|| over the finite entries; inf when the others differ."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(np.isfinite(got), finite):
        return float("inf")
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return float("inf")
    difference = float(np.linalg.norm(got[finite] - want[finite]))
    scale = float(np.linalg.norm(want[finite]))
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / scale


def assert_close(got: Any, want: Any, quantity: str, what: str = "", dtype: str | None = None) -> None:
    """`got` has want's shape and is as close as TOLERANCE asks of `quantity` in its (or the given) dtype."""
    got = np.asarray(got)
    assert got.shape == np.shape(want), f"{what}: shape {got.shape}, expected {np.shape(want)}"
    limit = TOLERANCE[dtype or got.dtype.name][quantity]
    error = relative_error(got, want)
    assert error <= limit, f"{what or quantity}: relative error {error:.3g}, allowed {limit:g}"


def ulp_error(got: Any, exact: Any) -> Any:
    """|got - exact| in units in the last place of the exact value; denormal results and overflow apart."""
    info = np.finfo(got.dtype)
    wide = exact.dtype.type
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.abs(exact).astype(got.dtype)
        ulp = np.spacing(np.clip(rounded, info.tiny, info.max)).astype(wide)
        error = np.abs(got.astype(wide) - exact) / ulp
    # An exact value beyond the largest number may give it or Inf; an exact denormal may give 0.
    beyond = np.abs(exact) > wide(info.max)
    error = np.where(beyond & (np.abs(got) >= info.max), 0.0, error)
    return np.where((np.abs(exact) < wide(info.tiny)) & (got == 0), 0.0, error)
