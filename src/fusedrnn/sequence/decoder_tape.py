"""The tape of a decoder with attention."""

from __future__ import annotations

import math
from typing import Any

from fusedrnn import _core
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import Tape


class DecoderTape(Tape):
    """Tape of an `AttentionDecoder`: what the kernels saved, the memory with its keys, and the layers above.

    Attributes:
        nbytes: bytes that stay allocated because of this tape, but for the input and the parameters.
    """

    __slots__ = ("alpha_shape", "core", "shape", "upper")

    def __init__(
        self,
        owner: Module,
        core: _core.DecoderTape,
        upper: Any,
        shape: tuple[int, ...],
        alpha_shape: tuple[int, ...],
    ) -> None:
        # What the layers above read, the first layer's y, is held by their tape alone.
        held = 0 if upper is None else upper.nbytes + math.prod(shape) * owner.dtype.itemsize
        Tape.__init__(self, owner, core.nbytes + held)
        self.core, self.upper = core, upper
        self.shape, self.alpha_shape = shape, alpha_shape

    def _about(self) -> str:
        return f"shape={self.shape}, "
