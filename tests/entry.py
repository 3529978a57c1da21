"""A compiled entry and arguments that it accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
T, B, I, H, P = 5, 3, 4, 6, 2


@dataclass
class Entry:
    """A function and arguments that it accepts.

    Attributes:
        written: arguments whose arrays the call writes to; all others are only read.
        optional: arguments that may be None.
        free: arguments whose sizes or dtype set those of the rest, so that an error may name another.
        unbound: arguments of which any shape is right, or none is wrong while the others fit.
        open_axes: (argument, path, axis) of single axes whose size nothing else fixes.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    written: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()
    unbound: frozenset[str] = frozenset()
    open_axes: frozenset[tuple[str, tuple[int, ...], int]] = frozenset()

    def call(self, **changes: Any) -> Any:
        return self.function(**{**self.arguments, **changes})


def draw(*shape: int, dtype: str = "float64") -> Array:
    return np.random.default_rng([7, *shape]).uniform(-0.5, 0.5, shape).astype(dtype)
