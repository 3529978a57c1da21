"""BatchNorm, with PyTorch's names and meaning, over the steps of sequences that count."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_flag, check_number, check_size, resolve_dtype
from fusedrnn.inputs.masks import counted_steps
from fusedrnn.inputs.rows import check_floats, check_sequence, contiguous
from fusedrnn.nn.module import Module, changed_options
from fusedrnn.nn.tape import SavedTape, check_tape


class BatchNorm(Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, for each feature of the last axis.

    In training mode mean and var (without Bessel's correction) are those of all rows of x, and go into the
    running ones, var with the correction:

        running <- (1 - momentum) * running + momentum * new

    In evaluation mode they are the running ones. With `lengths` or `mask` only the steps that count are rows;
    others may hold anything, and y is 0 there. Sums are in float64.

    Parameters: weight (F,), initially 1, and bias (F,), initially 0. Buffers, saved and not trained:
    running_mean (F,), running_var (F,), num_batches_tracked (). Names are torch.nn.BatchNorm1d's, whose x has
    the features in its second axis.

    Args:
        num_features: F >= 1.
        eps: added to the variance.
        momentum: weight of the new mean and var; None for the average over all batches.
        affine: whether there are weight and bias.
        batch_first: x is (B, T, F) where lengths are given.
        dtype: "float32" or "float64".

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    _fixed = frozenset(("num_features", "affine"))
    _host_only = True
    running_mean: Array
    running_var: Array
    num_batches_tracked: Array

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        batch_first: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
    ) -> None:
        super().__init__()
        self.num_features = check_size("num_features", num_features)
        self.eps = check_number("eps", eps)
        self.momentum = None if momentum is None else check_number("momentum", momentum, 0.0, 1.0)
        self.affine = check_flag("affine", affine)
        self.batch_first = check_flag("batch_first", batch_first)
        found = resolve_dtype(dtype)
        names = ("weight", "bias") if self.affine else ()
        self._declare(dict.fromkeys(names, (self.num_features,)), found)
        if self.affine:
            self._own["weight"] = 1.0
        self.buffer("running_mean", self.num_features, dtype=found)
        self.buffer("running_var", self.num_features, 1.0, dtype=found)
        self.buffer("num_batches_tracked", (), dtype="int64")

    def __call__(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> Array:
        """Return y in the shape of x and keep no tape; in training mode the running values move, too.

        Arguments and errors are those of `forward`.
        """
        return self.forward(x, lengths, mask)[0]

    def forward(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> tuple[Array, SavedTape]:
        """Return y in the shape of x, and the tape.

        Args:
            x: (..., F); with lengths or mask (T, B, F), (B, T, F) with batch_first, or (T, F).
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.
            mask: bool, laid out as x without its last axis: true for steps that count; all if None.

        Raises:
            TypeError: x is not an array of the module's dtype, or an argument of another wrong kind.
            ValueError: an argument of the wrong shape, lengths out of range, or in training mode a
                single row.
        """
        return self._run(x, lengths, mask, self.training)

    def _step_in(self, stream: Any, name: str) -> Any:
        return lambda x: self._run(x, None, None, False)[0]

    def _run(self, x: Array, lengths: Any, mask: Any, trained: bool) -> tuple[Array, SavedTape]:
        check_floats("x", x, self.running_mean.dtype)
        size = self.num_features
        counts = None
        if lengths is not None or mask is not None:
            axis = check_sequence(x, "F", size, x.dtype, self.batch_first)
            counts = counted_steps(mask, lengths, x.shape[:-1], axis)
        elif x.ndim < 1 or x.shape[-1] != size:
            raise ValueError(f"x: expected shape (..., F) with F = {size}, got {x.shape}")
        # Sums of another layout would have other bits.
        rows = contiguous(x.reshape(-1, size) if counts is None else x[counts])
        kept = self._kept_parameters()
        mean, var = self._learn(rows) if trained else (self.running_mean, self.running_var)
        rstd = (1 / np.sqrt(var + self.eps)).astype(x.dtype)
        normed = (rows - mean.astype(x.dtype)) * rstd
        y = normed * kept["weight"] + kept["bias"] if self.affine else normed
        if y is normed and counts is None:
            y = normed.copy()
        saved = (normed, rstd, counts, trained, kept, x.shape)
        return _placed(y, counts, x.shape), SavedTape(self, x.shape, saved, normed.nbytes + rstd.nbytes)

    def _learn(self, rows: Array) -> tuple[Array, Array]:
        """Return mean and var of the rows, after they went into the running ones."""
        count = len(rows)
        if count == 0:
            return np.zeros(self.num_features), np.ones(self.num_features)
        if count == 1:
            raise ValueError(
                "x: expected two rows that count or more in training mode, got 1, which has no variance; "
                "use eval()"
            )
        mean = rows.mean(axis=0, dtype=np.float64)
        var = np.square(rows - mean.astype(rows.dtype)).mean(axis=0, dtype=np.float64)
        with self._turn.take():
            self.num_batches_tracked += 1
            share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
            for name, new in (("running_mean", mean), ("running_var", var * (count / (count - 1)))):
                running = self._saved[name]
                running[...] = (1 - share) * running + share * new
        return mean, var

    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Add to the gradients of weight and bias; return dx in the shape of x, or None without need_dx.

        Steps that do not count get exactly 0.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        normed, rstd, counts, trained, kept, shape = tape.saved
        check_array("dy", dy, shape, normed.dtype)
        check_flag("need_dx", need_dx)
        flow = contiguous(dy.reshape(normed.shape) if counts is None else dy[counts])
        dweight, dbias = (flow * normed).sum(axis=0, dtype=np.float64), flow.sum(axis=0, dtype=np.float64)
        if sums := self._sums():
            with self._turn.take():
                sums["weight"] += dweight
                sums["bias"] += dbias
        if not need_dx:
            return None
        if trained and len(normed):
            flow = flow - (normed * dweight + dbias).astype(flow.dtype) / len(normed)
        scale = rstd * kept["weight"] if self.affine else rstd
        return _placed((flow * scale).astype(flow.dtype, copy=False), counts, shape)

    def _extra_repr(self) -> str:
        changed = changed_options(
            eps=(self.eps, 1e-5),
            momentum=(self.momentum, 0.1),
            affine=(self.affine, True),
            batch_first=(self.batch_first, False),
            dtype=(str(self.running_mean.dtype), "float32"),
        )
        return f"{self.num_features}{changed}"


def _placed(rows: Array, counts: Array | None, shape: tuple[int, ...]) -> Array:
    """Return rows at the places of those steps that count, and zeros elsewhere."""
    if counts is None:
        return rows.reshape(shape)
    placed: Array = np.zeros(shape, rows.dtype)
    placed[counts] = rows
    return placed
