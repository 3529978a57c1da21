"""Gradient clipping."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

from fusedrnn.arrays import Array
from fusedrnn.checks import check_flag, check_number
from fusedrnn.nn.module import Module, gather_modules


def clip_grad_norm(
    modules: Module | Iterable[Module],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients by max_norm / (norm + 1e-6) if that is below 1; return the norm before clipping.

    Args:
        modules: a module, or several that share nothing; one norm is taken over all of their gradients but
            those of frozen parameters, which stay.
        max_norm: >= 0; math.inf changes nothing.
        norm_type: p > 0 of the p-norm; math.inf for the largest absolute value.
        error_if_nonfinite: refuse a norm that is NaN or infinite, before anything is written.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, or a non-finite norm that was to be refused.

    Paper: Pascanu, Mikolov and Bengio 2012, arXiv:1211.5063v2.
    """
    limit = check_number("max_norm", max_norm)
    p = check_number("norm_type", norm_type)
    if p == 0.0:
        raise ValueError("norm_type: expected a number > 0, got 0.0")
    grads = _trained(modules)
    total = _norm(grads, p)
    if check_flag("error_if_nonfinite", error_if_nonfinite) and not math.isfinite(total):
        raise ValueError(f"gradients: expected a finite norm, got {total}")
    if limit == math.inf:
        return total
    factor = limit / (total + 1e-6)
    # Not `factor < 1`: a NaN norm has to reach the gradients.
    if factor >= 1.0:
        return total
    if limit > 0.0 and factor < sys.float_info.min:
        # The factor has lost bits, or all of them; relative to gradients of about 1 it has not.
        largest = _norm(grads, math.inf)
        if 0.0 < largest < math.inf:
            _scale(grads, 2.0 ** -math.frexp(largest)[1])
            factor = limit / _norm(grads, p)
    _scale(grads, factor)
    return total


def _trained(modules: Module | Iterable[Module]) -> list[tuple[Any, Array]]:
    """Return the gradients of all parameters that are not frozen, each piece with its kernels."""
    pieces = []
    for item in gather_modules(modules):
        grads = item.flat_grads
        pieces += [(item._backend.kernels, grads[part]) for part in item._trained()]
    return pieces


def _scale(grads: list[tuple[Any, Array]], factor: float) -> None:
    for kernels, grad in grads:
        kernels.scale_(grad, factor)


def _norm(grads: list[tuple[Any, Array]], p: float) -> float:
    """Return the p-norm of several arrays, each with the kernels of its device."""
    norms = [kernels.norm(grad, p) for kernels, grad in grads]
    if any(math.isnan(norm) for norm in norms):
        return math.nan
    largest = max(norms, default=0.0)
    if len(norms) < 2 or p == math.inf or largest in (0.0, math.inf):
        return largest
    # Relative to the largest, so that no power overflows.
    try:
        return float(largest * math.fsum((norm / largest) ** p for norm in norms) ** (1.0 / p))
    except OverflowError:
        return math.inf


def clip_grad_value(modules: Module | Iterable[Module], clip_value: float) -> None:
    """Limit every gradient to [-clip_value, clip_value].

    Args:
        modules: a module, or several that share nothing.
        clip_value: >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: clip_value is negative.
    """
    limit = check_number("clip_value", clip_value)
    for kernels, grad in _trained(modules):
        kernels.clamp_(grad, -limit, limit)
