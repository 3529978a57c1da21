"""How a model is trained, and whether this machine has the memory for it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np

from fusedrnn.cli.charlm import Config, check_count, parameter_shapes
from fusedrnn.cli.errors import CliError

_FINAL_RATE = 0.02  # of the peak learning rate, at the last step


@dataclass(frozen=True)
class Settings:
    """How a model is trained."""

    batch: int = 32
    steps: int = 64
    lr: float = 8e-3
    epochs: int = 5
    clip: float = 1.0
    patience: int = 4
    valid_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "epochs", "patience"):
            check_count(name, getattr(self, name))
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0.0 < value < math.inf:
                raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
        if not isinstance(self.valid_fraction, float) or not 0.0 <= self.valid_fraction < 1.0:
            raise ValueError(f"valid_fraction: expected 0 <= fraction < 1, got {self.valid_fraction!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed: expected an int >= 0, got {self.seed!r}")

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of update `step` of `total`: half a cosine from `lr` down."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / total))
        return self.lr * (_FINAL_RATE + (1.0 - _FINAL_RATE) * cosine)


def check_memory(config: Config, settings: Settings, vocabulary_size: int) -> None:
    """Refuse what cannot fit into this machine at once, rather than when its memory is full.

    Raises:
        CliError: parameters, their gradients, Adam's two moments, and the values of a window are too many.
    """
    parameters = sum(math.prod(shape) for _, shape in parameter_shapes(config, vocabulary_size))
    values = settings.batch * settings.steps * (2 * vocabulary_size + config.layers * config.hidden)
    needed = (4 * parameters + values) * np.dtype(config.dtype).itemsize
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return
    if needed > there:
        raise CliError(
            f"{parameters:,} parameters, trained in windows of {settings.batch} x {settings.steps}, take "
            f"more than {needed >> 30:,} GiB, this machine has {there >> 30:,}; give smaller --hidden, "
            "--layers, --embedding, --batch or --steps"
        )
