"""Tape: what a forward call keeps for backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from fusedrnn import _core
from fusedrnn.backend import Backend
from fusedrnn.checks import check_flag
from fusedrnn.inputs.lookup import Lookup
from fusedrnn.inputs.masks import Packing
from fusedrnn.listing import Listed

TapeT = TypeVar("TapeT", bound="Tape")
Drop = tuple[float, int, int]

_detecting = False


class TapeOwner(Protocol):
    """What a tape asks of the module whose forward made it."""

    _backend: Backend

    @property
    def device(self) -> str: ...


def set_detect_changes(enabled: bool) -> None:
    """Set whether `backward` looks for arrays that were written to since `forward`, to find mistakes.

    A tape refers to x, y, states and resets. Where one of them holds other values when backward runs, say
    because a buffer was filled with the next batch, the gradients are wrong. With this on, forward and
    backward each read these arrays once more, on the CPU, and backward raises a RuntimeError that names the
    array before it writes anything. It is off at first; on, a training step takes 1 to 15% longer, most where
    batch and sizes are small.

    Args:
        enabled: for all threads, and for tapes made from now on.

    Raises:
        TypeError: enabled is not a bool.
    """
    global _detecting
    _detecting = check_flag("enabled", enabled)
    _core.set_detect_changes(_detecting)


class Tape(Listed):
    """What one forward call keeps for backward. It may be used for backward more than once.

    A tape refers to the input, the initial state and the output: do not write to them before backward
    (`set_detect_changes` finds where that happens). Their shapes and strides it keeps as they were. The
    parameters (and the table of a `Lookup`) may change, on a GPU only where forward ran in 16 bits: the
    gradients are those of the forward call, for every module. The module has to be on the device where
    forward ran.

    Attributes:
        nbytes: bytes that stay allocated because of this tape alone: what the kernels saved and the arrays
            between layers, not the arrays that the caller holds (input, states, output) nor the parameters.
    """

    __slots__ = ("_backend", "_owner", "nbytes")

    def __init__(self, owner: TapeOwner, nbytes: int) -> None:
        self._owner = owner
        self._backend = owner._backend
        self.nbytes = nbytes

    def _check_unchanged(self) -> None:
        """Raise RuntimeError if an array that backward reads has changed since forward."""

    def _about(self) -> str:
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._owner!r}, {self._about()}nbytes={self.nbytes})"


class SavedTape(Tape):
    """Tape of a layer without a time loop: the arrays its backward reads and the shape of its output."""

    __slots__ = ("_digests", "saved", "shape")

    def __init__(self, owner: TapeOwner, shape: tuple[int, ...], saved: tuple[Any, ...], nbytes: int) -> None:
        Tape.__init__(self, owner, nbytes)
        self.shape = shape
        self.saved = saved
        self._digests = _digests(saved) if _detecting else None

    def _check_unchanged(self) -> None:
        if self._digests is not None and self._digests != _digests(self.saved):
            raise RuntimeError(
                "tape: expected the input as it was after forward, got changed values; do not write to it "
                "before backward, or give forward a copy"
            )

    def _about(self) -> str:
        return f"shape={self.shape}, "


class RecurrentTape(Tape):
    """Tape of a recurrent network: one kernel tape for each layer and direction.

    Attributes:
        layers: the kernel tapes, directions of layer 0 first.
        dropout: for each layer, (p, seed, offset) of the dropout on its output, or None.
        weight_dropout: for each layer and direction, the same of the mask on its weight_hh.
        lookup: the input if it was a Lookup, else None.
        shape: shape of the output.
    """

    # _batch_first: how x, and dy with it, is laid out.
    # _on: the backend that forward ran with, another than the owner's in 16 bits.
    # _packing: with a mask, which steps the network ran over, else None.
    # _joints: what options between layers and around them left for backward, else None.
    __slots__ = (
        *("_batch_first", "_joints", "_on", "_packing", "dropout", "layers", "lookup", "shape"),
        "weight_dropout",
    )

    def __init__(
        self,
        owner: TapeOwner,
        shape: tuple[int, ...],
        layers: Sequence[_core.LayerTape],
        dropout: Sequence[Drop | None],
        weight_dropout: Sequence[Drop | None],
        between: int,
        on: Backend | None = None,
        joints: Any = None,
        lookup: Lookup | None = None,
        batch_first: bool = False,
    ) -> None:
        for layer in layers:
            between += layer.nbytes
        Tape.__init__(self, owner, between)
        self._on = self._backend if on is None else on
        self.shape = tuple(shape)
        self._batch_first = batch_first
        self.lookup = lookup
        self._packing: Packing | None = None
        self._joints = joints
        self.layers = tuple(layers)
        self.dropout = tuple(dropout)
        self.weight_dropout = tuple(weight_dropout)

    def _check_unchanged(self) -> None:
        for layer in self.layers:
            if isinstance(layer, _core.LayerTape):
                layer.check_unchanged()

    def _about(self) -> str:
        first = self.layers[0]
        return f"seq_len={first.seq_len}, batch={first.batch}, layers={len(self.layers)}, "


def _digests(saved: tuple[Any, ...]) -> list[int]:
    return [hash(array.tobytes()) for array in saved if isinstance(array, np.ndarray)]


def check_tape(tape: object, owner: TapeOwner, kind: type[TapeT]) -> TapeT:
    """Return the tape if it came from `owner.forward`.

    Raises:
        TypeError: not a tape.
        ValueError: the tape of another module.
        RuntimeError: the module has moved to another device since, or `set_detect_changes` is on and an
            array that backward reads has changed.
    """
    if not isinstance(tape, Tape):
        raise TypeError(
            f"tape: expected a Tape, got {type(tape).__name__}; it is the last of what forward returns"
        )
    if not isinstance(tape, kind) or tape._owner is not owner:
        raise ValueError(
            f"tape: expected a tape of this {owner!r}, got one of another module, {tape._owner!r}"
        )
    if tape._backend is not owner._backend:
        raise RuntimeError(
            f"tape: expected one made on {owner.device} as the parameters, got one made on {tape._backend}"
        )
    if _detecting:
        tape._check_unchanged()
    return tape
