"""What becomes of a layer's outputs before the next layer has them: merged, added to, masked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.nn.input_norm import Fold
from fusedrnn.nn.tape import Drop

MERGES = ("concat", "sum", "mean", "mul")


@dataclass(slots=True)
class Joints:
    """What backward needs of one forward call.

    Attributes:
        outputs: of each layer whose directions were multiplied the outputs of both (T, B, 2*Hout), else None.
        locked: of the input and of the output (p, seed, offset) of the mask, or None.
        learned, learned_reset: whether parameters were the initial state, and the state at resets.
        folds: of each layer and direction the batch_norm, if there is one.
    """

    outputs: list[Any] = field(default_factory=list)
    locked: tuple[Drop | None, Drop | None] = (None, None)
    learned: bool = False
    learned_reset: bool = False
    folds: list[list[Fold]] = field(default_factory=list)


def join(merge: str, both: Any, steps: Any, out: Any) -> None:
    """Write to `out` what the outputs of two directions make, with the layer's input `steps` if given."""
    merged = both
    if merge != "concat":
        one, other = np.split(both, 2, axis=-1)
        merged = (np.multiply if merge == "mul" else np.add)(one, other, out=out)
        if merge == "mean":
            merged *= 0.5
    if steps is not None:
        np.add(merged, steps, out=out)


def split(merge: str, both: Any, flow: Any, out: Any) -> None:
    """Write the gradients of the outputs of two directions, (T, B, 2*Hout), for that of what they make."""
    first, second = np.split(out, 2, axis=-1)
    if merge == "mul":
        one, other = np.split(both, 2, axis=-1)
        np.multiply(flow, other, out=first)
        np.multiply(flow, one, out=second)
        return
    np.multiply(flow, flow.dtype.type(0.5 if merge == "mean" else 1.0), out=first)
    second[...] = first


def lock(steps: Any, drop: Drop, out: Any = None) -> Any:
    """Return steps (T, B, n) with a mask for each sequence, the same in all steps."""
    factors = _core.dropout(np.ones(steps.shape[1:], steps.dtype), *drop)
    return np.multiply(steps, factors, out=out)
