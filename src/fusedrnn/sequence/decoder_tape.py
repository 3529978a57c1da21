"""The tape of a decoder with attention."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import Tape
from fusedrnn.sequence.scheduled_sampling import ScheduledSampling


class Drawn:
    """The tokens (T, B) that scheduled sampling drew, -1 where the input stayed, and their tape."""

    def __init__(self, sampling: ScheduledSampling, tokens: npt.NDArray[np.int64]) -> None:
        self.tokens, self._places = tokens, tokens >= 0
        self._embedding = sampling.embedding
        self._tape = sampling.embedding.forward(tokens[self._places])[1]

    def backward(self, dx: Array) -> None:
        """Add the gradients of their inputs to those of the embedding, and set them to 0."""
        self._embedding.backward(self._tape, dx[self._places])
        dx[self._places] = 0.0


class DecoderTape(Tape):
    """Tape of an `AttentionDecoder`: what the kernels saved, the memory with its keys, and the layers above.

    Attributes:
        nbytes: bytes that stay allocated because of this tape, but for the input and the parameters.
        tokens: (T, B) int64, those that scheduled sampling drew, -1 where the input stayed; None without it.
    """

    __slots__ = ("alpha_shape", "core", "drawn", "shape", "upper")

    def __init__(
        self,
        owner: Module,
        core: _core.DecoderTape,
        upper: Any,
        drawn: Drawn | None,
        shape: tuple[int, ...],
        alpha_shape: tuple[int, ...],
    ) -> None:
        # What the layers above read, the first layer's y, is held by their tape alone.
        held = 0 if upper is None else upper.nbytes + math.prod(shape) * owner.dtype.itemsize
        held += 0 if drawn is None else drawn.tokens.nbytes
        Tape.__init__(self, owner, core.nbytes + held)
        self.core, self.upper, self.drawn = core, upper, drawn
        self.shape, self.alpha_shape = shape, alpha_shape

    @property
    def tokens(self) -> npt.NDArray[np.int64] | None:
        return None if self.drawn is None else self.drawn.tokens

    def _about(self) -> str:
        return f"shape={self.shape}, "
