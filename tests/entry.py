"""A compiled entry and arguments that it accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
T, B, I, H, P = 5, 3, 4, 6, 2
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


@dataclass
class Entry:
    """A function and arguments that it accepts.

    Attributes:
        written: arguments whose arrays the call writes to; all others are only read.
        optional: arguments that may be None.
        free: arguments whose sizes or dtype set those of the rest, so that an error may name another.
        unbound: arguments of which any shape is right, or none is wrong while the others fit.
        open_axes: (argument, path, axis) of single axes whose size nothing else fixes.
        weights: names of the arrays in a tuple of parameters, and which of them may be None.
        mixed: whether arrays of doubles stand beside one of either dtype.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    written: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()
    unbound: frozenset[str] = frozenset()
    open_axes: frozenset[tuple[str, tuple[int, ...], int]] = frozenset()
    weights: tuple[str, ...] = WEIGHTS
    optional_weights: tuple[int, ...] = (2, 3, 4)
    mixed: bool = False

    def call(self, **changes: Any) -> Any:
        return self.function(**{**self.arguments, **changes})


def draw(*shape: int, dtype: str = "float64") -> Array:
    return np.random.default_rng([7, *shape]).uniform(-0.5, 0.5, shape).astype(dtype)
