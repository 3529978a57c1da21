"""Sequences with their targets, and the batches that they are put into."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, refuse_mask
from fusedrnn.checks import kind_error, shown
from fusedrnn.inputs.sequences import pad
from fusedrnn.preprocessing import buckets, cut
from fusedrnn.training.losses import IGNORED

Data: TypeAlias = "tuple[Array | Sequence[Array], Array | Sequence[Any]]"


class Batch(NamedTuple):
    """Some sequences and their targets, or a window of the steps of them.

    Attributes:
        x: (T, B, ...), or (B, T, ...) with batch_first.
        lengths: (B,), or None where no sequence is padded.
        targets: (B, ...) of sequences; of steps laid out as x, 0 past a sequence's end; (B, U) of labels, 0
            past their end.
        counted: bool, in the leading axes of targets, true for those that count; None where all do.
        weight: number of targets that count: sequences, or steps; of classes in more axes all of them.
        steps: (B,), the lengths of all sequences.
        target_lengths: (B,), of labels; else None.
        begins: whether x has the first steps of its sequences.
    """

    x: Array
    lengths: npt.NDArray[np.int64] | None
    targets: Array
    counted: npt.NDArray[np.bool_] | None
    weight: int
    steps: npt.NDArray[np.int64]
    target_lengths: npt.NDArray[np.int64] | None = None
    begins: bool = True


class SequenceData:
    """Sequences of one kind, each with a target, with one for each of its steps, or with labels.

    Args:
        data: (inputs, targets). Inputs are a list of N arrays (T_n, ...) of one dtype, or one array
            (N, T, ...). Targets are an array (N, ...), one for each sequence, or a list of N arrays
            (T_n, ...), one for each step.
        name: of the argument, for errors.
        batch_first: batches are (B, T, ...) instead of (T, B, ...).
        labels: targets are N sequences (U_n,) of integers, with lengths of their own.
        ignore_index: an integer target that does not count.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: numbers, lengths or shapes that do not fit together, or no sequences.
    """

    def __init__(
        self,
        data: Any,
        name: str = "data",
        batch_first: bool = False,
        labels: bool = False,
        ignore_index: int = IGNORED,
    ) -> None:
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            raise TypeError(f"{name}: expected a pair (inputs, targets), got {type(data).__name__}")
        inputs, targets = data
        self.batch_first, self.labels, self.ignore_index = batch_first, labels, ignore_index
        self.ragged = not isinstance(inputs, np.ndarray)
        self.inputs = _arrays(f"{name} inputs", inputs)
        self.lengths = np.array([len(x) for x in self.inputs], np.int64)
        listed = labels or (not isinstance(targets, np.ndarray) and _holds_arrays(targets))
        self.per_step = listed and not labels
        self.targets = _arrays(f"{name} targets", targets) if listed else _array(f"{name} targets", targets)
        if labels and (self.targets[0].ndim != 1 or self.targets[0].dtype.kind not in "iu"):
            found = f"{self.targets[0].dtype} {self.targets[0].shape}"
            raise TypeError(f"{name} targets: expected arrays of integers (U,), got {found}")
        if len(self.targets) != len(self.inputs):
            raise ValueError(
                f"{name} targets: expected as many as sequences (N = {len(self.inputs)}), "
                f"got {len(self.targets)}"
            )
        if self.per_step:
            for index, (x, y) in enumerate(zip(self.inputs, self.targets, strict=True)):
                if len(x) != len(y):
                    raise ValueError(
                        f"{name} targets[{index}]: expected one for each step (T = {len(x)}), got {len(y)}; "
                        "give an array (N, ...) for targets of whole sequences"
                    )

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        shortest, longest = self.lengths.min(), self.lengths.max()
        kind = "steps" if self.per_step else "labels" if self.labels else "sequences"
        return f"SequenceData({len(self)} sequences of {shortest}..{longest} steps, targets of {kind})"

    def batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Return the batch of some sequences."""
        x, lengths = pad([self.inputs[index] for index in indices], self.batch_first)
        targets = [self.targets[index] for index in indices]
        if self.labels:
            padded, ends = pad(targets, True)
            return Batch(x, self._if_padded(x, lengths), padded, None, len(indices), lengths, ends)
        return self._made(
            x, lengths, pad(targets, self.batch_first)[0] if self.per_step else np.stack(targets)
        )

    def window(self, batch: Batch, start: int, size: int) -> Batch:
        """Return some steps of a batch with targets of steps."""
        part = (slice(None),) * self.batch_first + (slice(start, start + size),)
        x = batch.x[part]
        steps = np.clip(batch.steps - start, 0, x.shape[self.batch_first])
        return self._made(x, steps, batch.targets[part])._replace(begins=start == 0)

    def _if_padded(self, x: Array, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        return steps if (steps < x.shape[self.batch_first]).any() else None

    def _made(self, x: Array, steps: npt.NDArray[np.int64], targets: Array) -> Batch:
        """Return a batch of padded arrays: which of the targets count, and how many these are."""
        lengths, counted = self._if_padded(x, steps), None
        if self.per_step and lengths is not None:
            times = np.arange(x.shape[self.batch_first])
            counted = times < steps[:, None] if self.batch_first else times[:, None] < steps
        weight = int(steps.sum()) if self.per_step else len(steps)
        leading = 1 + self.per_step
        if targets.dtype.kind == "i":
            ignored = targets == self.ignore_index
            weight = weight * math.prod(targets.shape[leading:]) - int(np.count_nonzero(ignored))
            if targets.ndim == leading and ignored.any():
                counted = ~ignored if counted is None else counted & ~ignored
        return Batch(x, lengths, targets, counted, weight, steps)

    def ordered(self, batch_size: int) -> list[npt.NDArray[np.int64]]:
        """Return the indices of each batch for evaluation: those of about the same length together."""
        return cut(np.argsort(self.lengths, kind="stable"), batch_size)

    def shuffled(self, batch_size: int, seed: int, epoch: int, least: int = 1) -> list[npt.NDArray[np.int64]]:
        """Return the indices of each batch of an epoch, as `preprocessing.buckets` makes them."""
        return buckets(self.lengths, batch_size, seed, epoch, least)

    def digest(self) -> str:
        """Return a SHA-256 of everything in it."""
        found = hashlib.sha256()
        for array in (*self.inputs, *self.targets):
            value = np.asarray(array)
            found.update(f"{value.dtype.str}{value.shape}".encode())
            found.update(np.ascontiguousarray(value).tobytes())
        return found.hexdigest()


def _holds_arrays(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and bool(values) and np.ndim(values[0]) > 0


def _array(name: str, values: Any) -> Array:
    refuse_mask(name, values)
    found = np.asarray(values)
    if found.dtype == object or found.ndim == 0:
        raise TypeError(
            f"{name}: expected an array (N, ...) or a list of arrays (T, ...), got {shown(values)}"
        )
    return found


def _arrays(name: str, values: Any) -> list[Array]:
    """Return the sequences as a list of arrays of one dtype that are equal but for the first axis."""
    if isinstance(values, np.ndarray):
        refuse_mask(name, values)
        if values.dtype == object:
            raise TypeError(
                f"{name}: expected a list of arrays (T, ...), got an array of objects; use list()"
            )
        if values.ndim < 2:
            raise ValueError(f"{name}: expected shape (N, T, ...), got {values.shape}")
    elif not isinstance(values, (list, tuple)):
        raise TypeError(
            f"{name}: expected a list of arrays (T, ...) or an array (N, T, ...), got {shown(values)}"
        )
    found = list(values)
    if not found:
        raise ValueError(f"{name}: expected at least one sequence, got none")
    for index, value in enumerate(found):
        if not isinstance(value, np.ndarray):
            raise kind_error(f"{name}[{index}]", value, "a numpy.ndarray")
        refuse_mask(f"{name}[{index}]", value)
        if value.ndim == 0 or value.shape[1:] != found[0].shape[1:]:
            raise ValueError(
                f"{name}[{index}]: expected shape (T, ...) = (T, *{found[0].shape[1:]}), got {value.shape}"
            )
        if value.dtype != found[0].dtype:
            raise TypeError(f"{name}[{index}]: expected {found[0].dtype} as the first, got {value.dtype}")
    return found
