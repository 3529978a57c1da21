"""Masks over the steps of sequences: those that count move to the front, where `lengths` cuts them off."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, as_regular
from fusedrnn.checks import check_array
from fusedrnn.inputs.lookup import Lookup
from fusedrnn.inputs.sequences import lengths_within


def counted_steps(
    mask: npt.ArrayLike | None, lengths: npt.ArrayLike | None, leading: tuple[int, ...], axis: int
) -> npt.NDArray[np.bool_]:
    """Return bools in the shape `leading`, (T, B), (B, T) or (T,): which steps count; an array of its own.

    Args:
        mask: bool in that shape or None; true where a step counts.
        lengths: (B,) integers in 0..T or None; steps past the end do not count.
        leading: the axes of x before the last.
        axis: the axis of time.

    Raises:
        TypeError: the mask is not of bools, or lengths not of integers.
        ValueError: a shape differs, or lengths are out of range.
    """
    counts = np.ones(leading, np.bool_)
    if mask is not None:
        symbols = ("(T, B)" if axis == 0 else "(B, T)") if len(leading) == 2 else "(T,)"
        counts &= check_array("mask", as_regular("mask", mask), leading, np.dtype(np.bool_), symbols)
    if lengths is not None:
        seq_len, batch = leading[axis], leading[1 - axis] if len(leading) == 2 else 1
        ends = lengths_within(lengths, batch, seq_len)
        steps = np.arange(seq_len)
        inside = steps[:, None] < ends if axis == 0 else steps < ends[:, None]
        counts &= inside if len(leading) == 2 else inside[:, 0]
    return counts


def only_counted(counts: npt.NDArray[np.bool_] | None, x: Array) -> Array:
    """Return x with zeros, whatever stood there, at steps that do not count; x itself if all do."""
    if counts is None:
        return x
    kept: Array = np.where(counts[..., None], x, 0).astype(x.dtype, copy=False)
    return kept


class Packing:
    """Which steps of each sequence count, in the layout (T, B), (B, T) or (T,) of the caller.

    A network that runs over the packed steps, with `lengths`, passes its state through all others, in either
    direction.

    Attributes:
        lengths: (B,), how many steps count.

    Args:
        mask: bool in the shape `leading`, true where a step counts.
        lengths: (B,) integers in 0..T or None; steps past the end do not count.
        leading: the axes of x before the last.
        axis: the axis of time.

    Raises:
        TypeError: the mask is not of bools, or lengths not of integers.
        ValueError: a shape differs, or lengths are out of range.
    """

    def __init__(
        self, mask: npt.ArrayLike, lengths: npt.ArrayLike | None, leading: tuple[int, ...], axis: int
    ) -> None:
        counts = counted_steps(mask, lengths, leading, axis)
        self._axis, self._seq_len = axis, leading[axis]
        self.lengths = np.atleast_1d(counts.sum(axis=axis, dtype=np.int64))
        longest = int(self.lengths.max(initial=0))
        # Stable: the steps that count, in their order, before all others.
        order = np.argsort(~counts, axis=axis, kind="stable")
        self._order = order[:longest] if axis == 0 else order[:, :longest]

    @property
    def nbytes(self) -> int:
        """Bytes of the order of the steps."""
        return self._order.nbytes

    def take(self, x: Array) -> Array:
        """Return the steps that count, those of each sequence at the front, then others."""
        order = self._order if x.ndim == self._order.ndim else self._order[..., None]
        return np.take_along_axis(x, order, self._axis)

    def inputs(self, x: Array | Lookup) -> Array | Lookup:
        """As `take`, of a look-up too."""
        return x._with_indices(self.take(x.indices)) if isinstance(x, Lookup) else self.take(x)

    def borders(self, resets: npt.ArrayLike, leading: tuple[int, ...]) -> Array:
        """Return resets of the packed steps: one at a step that does not count acts at the next that does."""
        given = check_array("resets", as_regular("resets", resets), leading, np.dtype(np.bool_))
        seen = self.take(np.cumsum(given, axis=self._axis))
        return np.diff(seen, axis=self._axis, prepend=0) > 0

    def shape(self, packed: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of what has a packed shape when it is spread."""
        return (*packed[: self._axis], self._seq_len, *packed[self._axis + 1 :])

    def spread(self, packed: Array) -> Array:
        """Return packed steps at their places, and zeros elsewhere; past the lengths they have to be zero."""
        x: Array = np.zeros(self.shape(packed.shape), packed.dtype)
        np.put_along_axis(x, self._order[..., None], packed, self._axis)
        return x


def packing_of(network: Any, x: Any, mask: npt.ArrayLike, lengths: npt.ArrayLike | None) -> Packing:
    """Return how the steps of an input of a recurrent network on the CPU, quantized or not, are packed.

    Raises:
        TypeError, ValueError: as `Packing`, or x is not an input of the network.
    """
    shape = x.shape if isinstance(x, (np.ndarray, Lookup)) else ()
    if len(shape) not in (2, 3) or shape[-1] != network.input_size:
        raise network._input_error(x)
    return Packing(mask, lengths, shape[:-1], int(network.batch_first and len(shape) == 3))
