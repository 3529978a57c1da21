"""One step of a decoder at a time, for generation."""

from __future__ import annotations

import copy
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cells import CELLS
from fusedrnn.checks import check_array
from fusedrnn.sequence.host import host_array, integers

State: TypeAlias = "Array | tuple[Array, ...]"
# What a step leaves for the next, N rows each: the states of the first layer; its output, attention, coverage
# and windows; and the states of the layers above (N, num_layers - 1, H).
Carry: TypeAlias = "tuple[Array | None, ...]"
PAST = (None, None, None, None)


class DecoderStream:
    """One step of an `AttentionDecoder` at a time, over a memory whose keys are made once.

    It carries what the next step needs: the state, and by the decoder's options the output, the attention,
    the coverage or where the windows are. The parameters are those of the time when it was made.

    Attributes:
        batch_size: B of the memory.
        state: after the last step: h (num_layers, N, H), of an LSTM (h, c); at first None, which is zero. It
            may be set.
    """

    __slots__ = ("_carry", "_decoder", "_prepared", "_upper", "batch_size")

    def __init__(self, decoder: Any, prepared: _core.DecoderMemory) -> None:
        self._decoder = decoder
        self._prepared = prepared
        self._upper = copy.deepcopy(decoder.upper)
        self.batch_size = prepared.batch
        self._carry: Carry | None = None

    @property
    def _count(self) -> int:
        """How many states the cell has."""
        return CELLS[self._decoder.cell].states

    @property
    def state(self) -> State | None:
        first, _, above = self._parts()
        if any(part is None for part in first):
            return None
        found: State = self._decoder._as_state(first, self._stacked(above))
        return found

    @state.setter
    def state(self, state: State | None) -> None:
        first: Any = state[0] if isinstance(state, tuple) else state
        batch = first.shape[1] if getattr(first, "ndim", 0) == 3 else self.batch_size
        self._set(state, batch)

    def _set(self, state: State | None, batch: int) -> None:
        """Set the state of so many rows."""
        states = self._decoder._states("state", state, batch) or (None,) * self._count
        above: Carry = ()
        if self._upper is not None:
            above = tuple(None if part is None else part[1:].swapaxes(0, 1) for part in states)
        self._carry = (*self._decoder._first(states), *self._parts()[1], *above)

    def _parts(self) -> tuple[Carry, Carry, Carry]:
        """Return the states of the first layer, what is known of the past, and the states above."""
        count = self._count
        above = 0 if self._upper is None else count
        carry = self._carry or ((None,) * count + PAST + (None,) * above)
        end = count + len(PAST)
        return carry[:count], carry[count:end], carry[end:]

    def _stacked(self, above: Carry) -> Any:
        """Return the states above (num_layers - 1, N, H), or None without such layers."""
        if self._upper is None:
            return None
        return tuple(None if part is None else np.ascontiguousarray(part.swapaxes(0, 1)) for part in above)

    def __call__(self, x: Array, rows: npt.ArrayLike | None = None) -> tuple[Array, Array]:
        """Advance by one step and return y (N, H) and alpha (N, S).

        Args:
            x: (N, I); N = B without rows.
            rows: (N,) of an integer dtype: which row of the memory each row of x looks at, as hypotheses of a
                beam search that share one.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range.
        """
        inputs, decoder = host_array("x", x), self._decoder
        check_array("x", inputs, (*inputs.shape[:1], decoder.input_size), decoder._dtype, "(N, I)")
        return self._advance(inputs, None if rows is None else integers("rows", rows), None)

    def _advance(
        self, x: Any, rows: npt.NDArray[np.int64] | None, places: npt.NDArray[np.int64] | None
    ) -> tuple[Array, Array]:
        """Do what a call does; x is tokens (N,) where the memory has their table.

        Where there are places (N,), they are those that `select` takes: the rows go on from them.
        """
        (first, past, above), options = self._parts(), self._decoder._options
        y, alpha, found, _, _ = _core.decoder_forward(
            self._prepared, x[None], None, (*first, *past), rows, False, None, places
        )
        _, attended, covered, _ = past
        if options.coverage:
            covered = attended if covered is None or attended is None else attended + covered
        if places is not None:
            covered, *chosen = (None if part is None else part[places] for part in (covered, *above))
            above = tuple(chosen)
        looks_back = options.coverage or options.score == "location"
        found, centres = found[: self._count], found[self._count :]
        known = (y[0] if options.input_feeding else None, alpha[0] if looks_back else None, covered)
        if self._upper is not None:
            stacked = self._stacked(above)
            y, final = self._upper(y, stacked if len(stacked) > 1 else stacked[0])
            parts = final if isinstance(final, tuple) else (final,)
            above = tuple(part.swapaxes(0, 1) for part in parts)
        self._carry = (*found, *known, centres[0] if centres else None, *above)
        return y[0], alpha[0]

    def select(self, places: npt.ArrayLike) -> None:
        """Let the rows be these of the rows there are: those of the hypotheses that a search keeps.

        Args:
            places: (N,) of an integer dtype, each in 0..rows of the last step - 1; one may come again.

        Raises:
            TypeError, ValueError: places of the wrong kind or range.
        """
        if self._carry is None:
            return
        chosen = integers("places", places)
        count = next((len(part) for part in self._carry if part is not None), 0)
        if chosen.ndim != 1 or ((chosen < 0) | (chosen >= count)).any():
            raise ValueError(f"places: expected shape (N,) and values in 0..{count - 1}, got {places!r}")
        self._carry = tuple(None if part is None else part[chosen] for part in self._carry)

    def reset(self) -> None:
        """Set the state to zero, and what else it carries."""
        self._carry = None

    def __repr__(self) -> str:
        return f"DecoderStream({self._decoder!r}, batch_size={self.batch_size})"
