"""What products of float32 arrays are computed in: float32, or bfloat16, one or two for each factor."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cells import CellSpec
from fusedrnn.checks import check_choice

__all__ = ["get_float32_matmul_precision", "set_float32_matmul_precision"]

_COMPUTE = ("float32", "bf16x3", "bf16")
_PRECISIONS = dict(zip(("highest", "high", "medium"), _COMPUTE, strict=True))
_precision = "highest"
# What float32 was taken for, while a file says what to make.
_lacking: ContextVar[set[str] | None] = ContextVar("lacking", default=None)


def set_float32_matmul_precision(precision: str) -> None:
    """Set what networks and layers of float32 multiply in that are made from now on without `compute`.

    Args:
        precision: "highest" for float32; "high" for `compute="bf16x3"`, products within about 1e-5 of
            float32's, where the CPU has AMX, and float32 elsewhere; "medium" for `compute="bf16"`. The names
            are those of `torch.set_float32_matmul_precision`.

    Raises:
        ValueError: another name, or "medium" on a CPU without products of bfloat16.
    """
    global _precision
    check_choice("precision", precision, _PRECISIONS)
    # "high" asks for that much at least, which float32 has.
    if precision == "medium" and missing_for("bf16") is not None:
        raise _refusal("precision: expected 'highest' or 'high'", "bf16", precision)
    _precision = precision


def get_float32_matmul_precision() -> str:
    """Return what `set_float32_matmul_precision` set, "highest" at first."""
    return _precision


def check_compute(compute: str | None, dtype: np.dtype[Any]) -> str:
    """Return "float32", "bf16x3" or "bf16", for None as `set_float32_matmul_precision` says.

    Raises:
        ValueError: another value, or bfloat16 where dtype or CPU do not have it, but for the CPU within
            `float32_where_lacking`.
    """
    if compute is None:
        wanted = _PRECISIONS[_precision]
        return wanted if dtype == np.float32 and missing_for(wanted) is None else "float32"
    check_choice("compute", compute, _COMPUTE)
    if compute != "float32":
        # Another one is refused by what knows whose it is.
        if dtype == np.float64:
            raise ValueError(f"compute: expected None or 'float32' with {dtype}, got {compute!r}")
        if missing_for(compute) is not None:
            lacking = _lacking.get()
            if lacking is None:
                others = "None, 'float32' or 'bf16'" if missing_for("bf16") is None else "None or 'float32'"
                raise _refusal(f"compute: expected {others}", compute, compute)
            lacking.add(compute)
            return "float32"
    return compute


@contextmanager
def float32_where_lacking() -> Iterator[set[str]]:
    """Have modules made in float32 that ask for what the CPU lacks, so that weights are not lost.

    Yields:
        what was asked for, for `warn_of_lacking`.
    """
    lacking: set[str] = set()
    token = _lacking.set(lacking)
    try:
        yield lacking
    finally:
        _lacking.reset(token)


def warn_of_lacking(where: str, lacking: Iterable[str]) -> None:
    """Say what models were saved with that compute in float32 now, to the caller of the caller."""
    for compute in sorted(lacking):
        warnings.warn(
            f"{where}: the model was saved with compute={compute!r}, which this CPU, or this build, does "
            "not have; it computes in float32",
            stacklevel=3,
        )


class HasCompute:
    """A module whose products are computed as `compute` says."""

    _dtype: np.dtype[Any]
    _compute: str

    @property
    def compute(self) -> str:
        """What products are computed in: "float32" (which also names float64), "bf16x3" or "bf16"."""
        return self._compute if self._dtype == np.float32 else "float32"

    @compute.setter
    def compute(self, value: str) -> None:
        self._compute = check_compute(value, self._dtype)
        self._compute_changed()

    def _compute_changed(self) -> None:
        """What follows from that."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        # As of a file: pickles are all that estimators have.
        compute = state["_compute"]
        if missing_for(compute) is not None:
            if state["_dtype"] == np.float32:
                warn_of_lacking("pickle", [compute])
            state = {**state, "_compute": "float32"}
        super().__setstate__(state)  # type: ignore[misc]


def rounded(values: Array, compute: str) -> Array:
    """Return values as a product takes them: in "bf16" those of bfloat16 next to them, to nearest even."""
    if compute != "bf16":
        return values
    bits = values.view(np.uint32)
    near = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    kept: Array = (near & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(values), values, kept)


def kernel_key(spec: CellSpec, compute: str) -> str:
    """Return what the compiled module calls a cell whose products are computed so."""
    return spec.name if compute == "float32" else f"{spec.name}:{compute}"


@cache
def missing_for(compute: str) -> str | None:
    """Return what the CPU lacks for it, "AMX" or "AMX or AVX512_BF16"; None where nothing."""
    if compute == "float32" or _core.config()[f"{compute}_isa"] is not None:
        return None
    return "AMX or AVX512_BF16" if compute == "bf16" else "AMX"


def _refusal(expected: str, compute: str, got: str) -> ValueError:
    return ValueError(
        f"{expected} on a CPU without {missing_for(compute)} (or where the build, FUSEDRNN_ISA or "
        f"FUSEDRNN_BF16_ISA leave their kernels out), got {got!r}"
    )
