"""Stream: one step at a time, with the weights packed once and the state kept between calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array, StateLike, as_array
from fusedrnn.backend import CPU
from fusedrnn.cells import Weights
from fusedrnn.checks import as_int64
from fusedrnn.listing import Listed
from fusedrnn.nn.plan import Network

StateT = TypeVar("StateT")


def row_numbers(rows: npt.ArrayLike, batch_size: int) -> npt.NDArray[np.int64]:
    """Return rows of a batch, given by number or as bools (B,), as numbers."""
    array = np.atleast_1d(as_array(rows, "rows"))
    if array.dtype == np.bool_:
        if array.shape != (batch_size,):
            raise ValueError(f"rows: expected shape (B,) = ({batch_size},), got {array.shape}")
        return np.flatnonzero(array).astype(np.int64)
    return as_int64("rows", array) if array.size else np.empty(0, np.int64)


class Resettable(Listed, ABC):
    """What streams of all networks share: they begin anew alike.

    Attributes:
        batch_size: B.
    """

    __slots__ = ("batch_size",)
    batch_size: int

    def reset(self, rows: npt.ArrayLike | None = None) -> None:
        """Begin anew: set the state to zero, or to the initial state that the network has of its own.

        Args:
            rows: which sequences of the batch, by number, or as a bool array (B,); None for all.

        Raises:
            TypeError: rows are neither integers nor bools.
            ValueError: a row outside the batch.
        """
        self._reset(None if rows is None else row_numbers(rows, self.batch_size))

    @abstractmethod
    def _reset(self, rows: npt.NDArray[np.int64] | None) -> None:
        """Do what `reset` does, of rows by number."""


class StreamBase(Resettable, Generic[StateT]):
    """What streams of every kind of weights share.

    Attributes:
        batch_size: B.
    """

    __slots__ = ("_call", "_core")

    def __init__(self, core: _core.Stream | _core.QuantizedStream, batch_size: int) -> None:
        self.batch_size = batch_size
        self._core = core
        self._call = core.__call__

    def __call__(self, x: Array) -> Array:
        """Advance by one step and return the output of the last layer.

        Args:
            x: (B, I), or (I,) if batch_size is 1; of the network's dtype.

        Returns:
            (B, Hout), or (Hout,) if x has no batch axis. The next call overwrites it: copy it to keep it.

        Raises:
            TypeError: x is not an array of the network's dtype.
            ValueError: x has another shape.
            RuntimeError: the stream is in use, by another thread or by the call that a signal handler
                interrupts.
        """
        return self._call(x)

    def _reset(self, rows: npt.NDArray[np.int64] | None) -> None:
        self._core.reset(rows)


class Stream(StreamBase[StateT]):
    """A unidirectional network that remembers its state: `y_t = step(x_t)`; made by `lstm.stream()`.

    The weights are copied and packed when the stream is made; after they or `compute` change, call `refresh`.
    Feeding the steps of a sequence one by one gives the rows that the whole-sequence call gives. A stream
    serves one thread at a time: a use that comes during another raises RuntimeError and changes nothing.

    Attributes:
        batch_size: B.
    """

    __slots__ = ("_key", "_learned", "_module")
    _core: _core.Stream

    def __init__(self, module: Network, batch_size: int) -> None:
        self._module, self._key = module, module._key
        super().__init__(_core.Stream(self._key, self._weights(), batch_size), batch_size)
        self._learned = self._learned_state()
        self._start(slice(None))

    def _weights(self) -> list[Weights]:
        return [self._module._settled(parts[0]) for parts in self._module._plan.layers]

    def _learned_state(self) -> tuple[Array, ...] | None:
        start = self._module._constant_start()
        return None if start is None else tuple([np.array(part) for part in start])

    def _start(self, rows: Any) -> None:
        """Set some rows of the batch to the network's own initial state, if it has one."""
        if self._learned is None:
            return
        parts = self._stacked()
        for part, start in zip(parts, self._learned, strict=True):
            part[:, rows] = start
        self._set(parts)

    def _reset(self, rows: npt.NDArray[np.int64] | None) -> None:
        super()._reset(rows)
        self._start(slice(None) if rows is None else rows)

    @property
    def state(self) -> StateT:
        """A copy of the state, h or (h, c), each (num_layers, B, ...) as `forward` takes it; can be set."""
        parts = self._stacked()
        return cast(StateT, self._module._network.spec.pack_state(parts))

    @state.setter
    def state(self, value: StateLike) -> None:
        parts = self._module._network.split_state("state", value, self.batch_size)
        self._set(parts)

    def _stacked(self) -> list[Any]:
        """The state of all layers, a copy."""
        arrays = self._module._network.new_states(self.batch_size, CPU)
        for (part,), own in zip(self._module._plan.layers, self._core.get_state(), strict=True):
            for array, values in zip(part.of(arrays), own, strict=True):
                array[...] = values
        return arrays

    def _set(self, arrays: Sequence[Array | None]) -> None:
        self._core.set_state([part.of(arrays) for (part,) in self._module._plan.layers])

    def refresh(self) -> None:
        """Read the module's weights, and what it computes in, again; the state stays."""
        self._core.refresh(self._weights())
        if self._key != self._module._key:
            core = _core.Stream(self._module._key, self._weights(), self.batch_size)
            core.set_state([*self._core.get_state()])
            self._key, self._core, self._call = self._module._key, core, core.__call__
        self._learned = self._learned_state()

    def __repr__(self) -> str:
        return f"Stream({self._module!r}, batch_size={self.batch_size})"
