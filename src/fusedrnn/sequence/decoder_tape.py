"""The tape of a decoder with attention."""

from __future__ import annotations

from fusedrnn import _core
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import Tape


class DecoderTape(Tape):
    """Tape of an `AttentionDecoder`: what the kernels saved, and the memory with its keys.

    Attributes:
        nbytes: bytes that stay allocated because of this tape, but for the input and the parameters.
    """

    __slots__ = ("core", "shape")

    def __init__(self, owner: Module, core: _core.DecoderTape, shape: tuple[int, ...]) -> None:
        Tape.__init__(self, owner, core.nbytes)
        self.core = core
        self.shape = shape

    def _about(self) -> str:
        return f"shape={self.shape}, "
