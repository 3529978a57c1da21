"""Why training diverged: what is not finite, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusedrnn.arrays import as_array
from fusedrnn.nn.module import Module

_NAMED = 3  # parameters that are named, at most


class DivergedError(ArithmeticError):
    """The loss or a gradient is not finite; the text says where that began.

    Attributes:
        what: is not finite, such as "the loss is nan".
    """

    def __init__(self, text: str, what: str = "") -> None:
        super().__init__(text)
        self.what = what


def not_finite(value: Any) -> bool:
    """Return whether anything in an array of floats is NaN or infinite."""
    array = as_array(value)
    return array.dtype.kind == "f" and not bool(np.isfinite(array).all())


def names_not_finite(arrays: Mapping[str, Any]) -> str:
    """Return the names of arrays that hold NaN or infinities, the first few of them."""
    names = [name for name, array in arrays.items() if not_finite(array)]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def diagnose(
    what: str,
    model: Module,
    x: Any,
    targets: Any,
    output: Any,
    norms: list[float],
    clip: float | None,
    lr: float,
) -> str:
    """Return what is not finite, from the first to the last that a step computes, and what to do.

    Args:
        what: that was found, such as "the loss is nan".
        model: before its update.
        x: the batch's inputs.
        targets: the batch's targets.
        output: of the model.
        norms: of the gradients, in the steps before this one.
        clip: the largest norm that is let through, if there is one.
        lr: the learning rate.
    """
    recent = ", ".join(f"{norm:.3g}" for norm in norms[-3:])
    history = f"; norms of the gradients before: {recent}" if recent else ""
    if not_finite(x):
        return f"{what}: the inputs hold NaN or infinite values; clean or mask them"
    if not_finite(targets):
        return f"{what}: the targets hold NaN or infinite values"
    if names := names_not_finite(model.state_dict()):
        return f"{what}: parameters are not finite: {names}{history}; try a smaller lr than {lr:.3g}"
    if not_finite(output):
        way = f"scale the inputs, or try a smaller lr than {lr:.3g}"
        return f"{what}: the model's output overflowed{history}; {way}"
    way = "clip=1.0" if clip is None else f"a smaller clip than {clip:.3g}"
    advice = f"try {way}, or a smaller lr than {lr:.3g}"
    if names := names_not_finite(dict(model.grads)):
        return f"{what}: gradients are not finite: {names}{history}; {advice}"
    return f"{what}, though inputs, targets, parameters and output are finite{history}; look at the loss"
