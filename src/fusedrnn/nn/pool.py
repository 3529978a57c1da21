"""Pool: one vector for each sequence, whatever its length."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.backend import CPU
from fusedrnn.checks import check_array, check_choice, check_flag, check_size, resolve_dtype
from fusedrnn.init import Seed, check_method, make_rng, torch_uniform
from fusedrnn.inputs.masks import counted_steps, only_counted
from fusedrnn.inputs.rows import check_sequence, contiguous
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import SavedTape, check_tape

KINDS = ("last", "mean", "max", "attention")


class Pool(Module):
    """One vector for each sequence, from those of its steps.

        last         y = x at the last step that counts
        mean         y = mean over t of x_t
        max          y = max over t of x_t, for each feature
        attention    y = sum over t of a_t x_t,   a = softmax over t of query . x_t

    x is (T, B, F), (B, T, F) with batch_first, or (T, F) for one sequence; y (B, F), or (F,). Only steps that
    count, those within `lengths` and where `mask` is true, have a part in y; a sequence without any gives
    zeros. The gradient of a maximum goes to the first step that has it.

    Behind a bidirectional network, "last" has the reverse direction's output of a step that is its first.

    Parameters: with "attention" query (F,), initialised from U(-1/sqrt(F), 1/sqrt(F)).

    Args:
        kind: "last", "mean", "max" or "attention".
        features: F, which "attention" needs; others take any, or F alone if it is given.
        batch_first: x is (B, T, F).
        dtype: of x: "float32" or "float64"; kinds without parameters take both.
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here; None leaves the query at zero, which is the mean.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, or no features with "attention".

    Paper: attention: Yang et al. 2016, Hierarchical attention networks, without their hidden layer.
    """

    _fixed = frozenset(("kind", "features"))
    _host_only = True

    def __init__(
        self,
        kind: str = "last",
        features: int | None = None,
        batch_first: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        if features is None and kind == "attention":
            raise ValueError("features: expected the size of the last axis with 'attention', got None")
        self.kind = kind
        self.features = None if features is None else check_size("features", features)
        self.batch_first = check_flag("batch_first", batch_first)
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        if kind == "attention":
            assert self.features is not None
            self._declare({"query": (self.features,)}, found)
            if method:
                torch_uniform(self._own["query"], self.features, rng=rng)

    def output_steps(self, lengths: Any, mask: Any) -> tuple[None, None]:
        """Return (None, None): y has no time."""
        return None, None

    def __call__(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> Array:
        """Return y and keep no tape; arguments and errors are those of `forward`."""
        return self._apply(x, lengths, mask, self._own)[0]

    def forward(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> tuple[Array, SavedTape]:
        """Return y (B, F), or (F,) for one sequence, and the tape; that of "attention" refers to x.

        Args:
            x: (T, B, F), (B, T, F) with batch_first, or (T, F).
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.
            mask: bool, laid out as x without its last axis: true for steps that count; all if None.

        Raises:
            TypeError: x is not an array of float32 or float64, or an argument of another wrong kind.
            ValueError: an argument of the wrong shape, or lengths out of range.
        """
        kept = self._kept_parameters()
        y, counts, saved = self._apply(x, lengths, mask, kept)
        owned = sum([array.nbytes for array in saved if isinstance(array, np.ndarray) and array.base is None])
        return y, SavedTape(self, y.shape, (x.shape, x.dtype, kept, counts, *saved), owned)

    def _apply(
        self, x: Array, lengths: npt.ArrayLike | None, mask: npt.ArrayLike | None, parameters: Any
    ) -> tuple[Array, Array | None, tuple[Any, ...]]:
        axis = check_sequence(x, "F", self.features, self._dtype, self.batch_first)
        # Sums of another layout would have other bits.
        x = contiguous(x)
        counts = None
        if lengths is not None or mask is not None:
            counts = counted_steps(mask, lengths, x.shape[:-1], axis)
        if self.kind == "attention":
            y, saved = _attend(only_counted(counts, x), counts, axis, parameters["query"])
        else:
            y, saved = {"last": _last, "mean": _mean, "max": _maximum}[self.kind](x, counts, axis)
        return y, counts, saved

    def _axis(self, shape: tuple[int, ...]) -> int:
        return 1 if self.batch_first and len(shape) == 3 else 0

    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Add to the gradient of the query, if there is one; return dx in the shape of x, or None.

        Steps that do not count get exactly 0.

        Raises:
            TypeError: dy is not an array of the dtype of y.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        shape, dtype, kept, counts, *saved = tape.saved
        check_array("dy", dy, tape.shape, dtype, kind=np.ndarray)
        axis = self._axis(shape)
        flow = np.expand_dims(contiguous(dy), axis)
        if self.kind != "attention":
            if not need_dx:
                return None
            dx: Array = np.zeros(shape, dtype)
            if self.kind == "mean":
                dx[...] = only_counted(counts, flow * saved[0])
            elif dx.size:
                index, some = saved
                np.put_along_axis(dx, index, np.where(some, flow, 0).astype(dtype, copy=False), axis)
            return dx
        rows, weights = saved
        energy = (flow * rows).sum(axis=-1)
        slope = weights * (energy - (weights * energy).sum(axis=axis, keepdims=True))
        column = np.ascontiguousarray(slope.reshape(-1, 1))
        flat = rows.reshape(-1, shape[-1])
        sums = self._sums()
        dquery = sums["query"][None] if sums else None
        with self._turn.take():
            through = CPU.kernels.linear_backward(flat, kept["query"][None], column, dquery, None, need_dx)
        return only_counted(counts, flow * weights[..., None] + through.reshape(shape)) if need_dx else None

    def _extra_repr(self) -> str:
        options = "" if self.features is None else f", features={self.features}"
        options += ", batch_first=True" * self.batch_first
        if self._dtype is not None and self._dtype != np.float32:
            options += f", dtype='{self._dtype}'"
        return f"{self.kind!r}{options}"


def _last(x: Array, counts: Array | None, axis: int) -> tuple[Array, tuple[Any, ...]]:
    """Return y, the index of the step that it is, and where there is one."""
    seq_len = x.shape[axis]
    if counts is None:
        counts = np.ones(x.shape[:-1], np.bool_)
    some = np.expand_dims(counts.any(axis=axis, keepdims=True), -1)
    if not seq_len:
        return np.zeros((*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype), (None, None)
    index = seq_len - 1 - np.flip(counts, axis).argmax(axis=axis, keepdims=True)[..., None]
    index = np.broadcast_to(index, some.shape[:-1] + x.shape[-1:])
    y = np.where(some, np.take_along_axis(x, index, axis), 0).astype(x.dtype, copy=False)
    return y.squeeze(axis), (index, some)


def _mean(x: Array, counts: Array | None, axis: int) -> tuple[Array, tuple[Any, ...]]:
    """Return y and the weight of each step."""
    if counts is None:
        share = np.full((1,) * x.ndim, 1 / max(x.shape[axis], 1), x.dtype)
        number: Any = max(x.shape[axis], 1)
    else:
        x = only_counted(counts, x)
        number = np.maximum(counts.sum(axis=axis), 1)[..., None]
        share = (counts[..., None] / np.expand_dims(number, axis)).astype(x.dtype)
    return (x.sum(axis=axis, dtype=np.float64) / number).astype(x.dtype), (share,)


def _maximum(x: Array, counts: Array | None, axis: int) -> tuple[Array, tuple[Any, ...]]:
    """Return y, the index of the first step that has it, for each feature, and where there is a step."""
    if not x.shape[axis]:
        return np.zeros((*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype), (None, None)
    if counts is None:
        filled, some = x, np.ones((1,) * x.ndim, np.bool_)
    else:
        filled = np.where(counts[..., None], x, -np.inf).astype(x.dtype, copy=False)
        some = np.expand_dims(counts.any(axis=axis, keepdims=True), -1)
    index = filled.argmax(axis=axis, keepdims=True)
    y = np.where(some, np.take_along_axis(filled, index, axis), 0).astype(x.dtype, copy=False)
    if counts is not None and x.size:
        # Where a sequence is -inf throughout, the first that has it may be one that does not count.
        some = some & np.take_along_axis(np.broadcast_to(counts[..., None], x.shape), index, axis)
    return y.squeeze(axis), (index, some)


def _attend(x: Array, counts: Array | None, axis: int, query: Array) -> tuple[Array, tuple[Any, ...]]:
    """Return y, and x with the weight of each step."""
    # A view, whose shape nobody else can change.
    rows = x[...]
    flat = rows.reshape(-1, x.shape[-1])
    scores = CPU.kernels.linear_forward(flat, query[None], None).reshape(x.shape[:-1])
    if counts is not None:
        scores = np.where(counts, scores, -np.inf).astype(x.dtype, copy=False)
    top = scores.max(axis=axis, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isneginf(top), 0, top).astype(x.dtype))
    total = weights.sum(axis=axis, keepdims=True)
    weights = weights / np.where(total == 0, 1, total).astype(x.dtype)
    y: Array = (weights[..., None] * rows).sum(axis=axis)
    return y, (rows, weights)
