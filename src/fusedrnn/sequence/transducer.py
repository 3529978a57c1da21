"""RNN transducer: loss from logits, and a joiner that never holds all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.checks import MOST, check_array, check_number, check_size, resolve_dtype
from fusedrnn.init import Seed, check_method, make_rng, torch_uniform
from fusedrnn.inputs.rows import as_rows
from fusedrnn.nn.module import Module
from fusedrnn.sequence.host import host_array, integers, lengths_of, reduced
from fusedrnn.training.losses import Reduction, check_reduction

_LAST, _OUTSIDE = -1, -2  # labels of cells that emit none, and of those that are not in the lattice
_TILE_BYTES = 1 << 20  # of logits, which are read again soon


@overload
def transducer_loss(
    logits: Array,
    targets: npt.ArrayLike,
    logit_lengths: npt.ArrayLike,
    target_lengths: npt.ArrayLike,
    blank: int = ...,
    clamp: float = ...,
    fastemit_lambda: float = ...,
    reduction: Literal["mean", "sum"] = ...,
) -> tuple[float, Array]: ...
@overload
def transducer_loss(
    logits: Array,
    targets: npt.ArrayLike,
    logit_lengths: npt.ArrayLike,
    target_lengths: npt.ArrayLike,
    blank: int = ...,
    clamp: float = ...,
    fastemit_lambda: float = ...,
    *,
    reduction: Literal["none"],
) -> tuple[Array, Array]: ...
def transducer_loss(
    logits: Array,
    targets: npt.ArrayLike,
    logit_lengths: npt.ArrayLike,
    target_lengths: npt.ArrayLike,
    blank: int = -1,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    reduction: Reduction = "mean",
) -> tuple[float | Array, Array]:
    """Return the RNN transducer's loss of softmax(logits) against labels, and the gradient of the logits.

    With p(t, u) = softmax(logits[b, t, u]), a path goes from (0, 0) by the blank to (t + 1, u) and by label
    l_u to (t, u + 1), and ends with the blank of the last step after all labels:

        loss_b = -log of the sum, over all paths, of the product of p at what each emits
        dlogits[b, t, u] = p(t, u) (P_blank + P_label) - P_blank [blank] - P_label [l_u]

    where P are the probabilities that the path takes the blank or the label there. Arguments and reductions
    are torchaudio's `rnnt_loss`: the mean is over the sequences.

    Args:
        logits: (B, T, U+1, V), float32 or float64.
        targets: (B, U) of an integer dtype, each in 0..V-1 and not the blank; past a target's end anything.
        logit_lengths: (B,) of an integer dtype, each in 0..T; no steps emit no labels, with loss 0, or inf.
        target_lengths: (B,) of an integer dtype, each in 0..U.
        blank: class that stands for no label; negative ones count from the end.
        clamp: bound of each element of the gradient of a sequence's loss, if above 0.
        fastemit_lambda: gradients by way of labels count 1 + this, which makes them come early; the loss
            that is returned does not have the term. >= 0.
        reduction: "mean", "sum" or "none".

    Returns:
        loss: float, or (B,) with reduction="none"; the mean over no sequences is NaN.
        dlogits: (B, T, U+1, V), the gradient of the loss, with reduction="none" of its sum; 0 past the ends,
            NaN where the loss of the sequence is infinite or NaN.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or range.
        RuntimeError: an array on a GPU.

    Paper: Graves 2012, arXiv:1211.3711v1. The gradient through the softmax: Li et al. 2019,
    arXiv:1909.12415v1. FastEmit: Yu et al. 2021, arXiv:2010.11148v2.
    """
    x = host_array("logits", logits)
    if x.ndim != 4 or not x.shape[3]:
        raise ValueError(f"logits: expected shape (B, T, U+1, V) with V >= 1, got {x.shape}")
    options = _options(x.shape[3], blank, clamp, fastemit_lambda, reduction)
    lattice = _Lattice.read(x.shape, targets, logit_lengths, target_lengths, options.blank)
    rows, labels = x.reshape(lattice.labels.size, x.shape[3]), lattice.labels.reshape(-1)
    emissions = _core.transducer_emissions(rows, labels, options.blank)
    losses, flow = lattice.run(emissions[:2].reshape(2, *lattice.labels.shape), options)
    dlogits = _core.transducer_gradient(
        rows,
        labels,
        options.blank,
        emissions,
        flow.reshape(2, -1),
        options.factor(losses.size),
        options.clamp,
    )
    return reduced(losses, reduction, x.dtype), dlogits.reshape(x.shape)


class TransducerJoiner(Module):
    """Joiner of an RNN transducer, with its loss: logits(t, u) = tanh(enc_t + pred_u) weight^T + bias.

    `loss` computes the logits of a tile of cells at a time, and again for the gradient: the (B, T, U+1, V)
    logits of `transducer_loss`, which take most of the memory of a transducer's training, never exist.

    Parameters: weight (V, H), bias (V,), both initialised from U(-1/sqrt(H), 1/sqrt(H)) as a `Linear`.

    Args:
        hidden_size: H >= 1, size of what the encoder and the prediction network return.
        num_classes: V >= 1, with the blank.
        blank: class that stands for no label; negative ones count from the end.
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here; None leaves all parameters at zero.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Graves 2012, arXiv:1211.3711v1, with the joint network of Graves et al. 2013, arXiv:1303.5778v1.
    """

    _fixed = frozenset(("hidden_size", "num_classes"))
    _dtype: np.dtype[Any]

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        blank: int = -1,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.num_classes = check_size("num_classes", num_classes)
        self.blank = _class_number(blank, self.num_classes)
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        shapes = {"weight": (self.num_classes, self.hidden_size), "bias": (self.num_classes,)}
        self._declare(shapes, found)
        for array in self._own.values() if method else ():
            torch_uniform(array, self.hidden_size, rng=rng)

    def __call__(self, enc: Array, pred: Array) -> Array:
        """Return logits (..., V) of enc and pred, (..., H) each, of shapes that broadcast.

        Raises:
            TypeError, ValueError, RuntimeError: as `loss`.
        """
        self._require_cpu("TransducerJoiner")
        for name, value in (("enc", enc), ("pred", pred)):
            rows = as_rows(name, value, (self.hidden_size,), self._backend)
            check_array(name, rows, rows.shape, self._dtype)
        return self._logits(_core.tanh(np.asarray(enc + pred)))

    def loss(
        self,
        enc: Array,
        pred: Array,
        targets: npt.ArrayLike,
        logit_lengths: npt.ArrayLike,
        target_lengths: npt.ArrayLike,
        clamp: float = -1.0,
        fastemit_lambda: float = 0.0,
        reduction: Reduction = "mean",
    ) -> tuple[float | Array, Array, Array]:
        """Return the loss and the gradients of enc and pred; add those of the parameters to grads.

        Args:
            enc: (B, T, H) in the module's dtype.
            pred: (B, U+1, H) in the module's dtype: row u is what follows the first u labels.
            targets, logit_lengths, target_lengths, clamp, fastemit_lambda, reduction: as in
                `transducer_loss`.

        Returns:
            loss: float, or (B,) with reduction="none".
            denc, dpred: gradients of the loss, with reduction="none" of its sum; 0 past the ends.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range.
            RuntimeError: an array, or this module, on a GPU.
        """
        lattice_of = targets, logit_lengths, target_lengths
        return self._loss(enc, pred, lattice_of, clamp, fastemit_lambda, reduction, self._sums())

    def _loss(
        self,
        enc: Any,
        pred: Any,
        lattice_of: tuple[Any, Any, Any],
        clamp: float,
        fastemit: float,
        reduction: Reduction,
        sums: Mapping[str, Array],
    ) -> tuple[float | Array, Array, Array]:
        """Do what `loss` does, and add to these gradients of the parameters in place of `grads`."""
        self._require_cpu("TransducerJoiner.loss")
        enc, pred = host_array("enc", enc), host_array("pred", pred)
        for name, array, axes in (("enc", enc, "(B, T, H)"), ("pred", pred, "(B, U+1, H)")):
            if array.ndim != 3:
                raise ValueError(f"{name}: expected shape {axes}, got {array.shape}")
        check_array("enc", enc, (*enc.shape[:2], self.hidden_size), self._dtype, "(B, T, H)")
        check_array("pred", pred, (len(enc), pred.shape[1], self.hidden_size), self._dtype, "(B, U+1, H)")
        options = _options(self.num_classes, self.blank, clamp, fastemit, reduction)
        shape = (*enc.shape[:2], pred.shape[1], self.num_classes)
        lattice = _Lattice.read(shape, *lattice_of, options.blank)
        tiles = lattice.tiles(max(1, _TILE_BYTES // (self.num_classes * self._dtype.itemsize)))
        emissions = np.zeros((4, *lattice.labels.shape))
        for tile in tiles:
            logits = self._logits(_joined(enc, pred, tile))
            found = _core.transducer_emissions(
                logits.reshape(-1, self.num_classes), lattice.labels[tile.cells].reshape(-1), options.blank
            )
            everywhere = (slice(None), *tile.cells)
            emissions[everywhere] = found.reshape(4, *logits.shape[:-1])
        losses, flow = lattice.run(emissions[:2], options)
        denc, dpred = np.zeros_like(enc), np.zeros_like(pred)
        with self._turn.take():
            for tile in tiles:
                self._tile_backward(tile, lattice, emissions, flow, options, enc, pred, denc, dpred, sums)
        return reduced(losses, reduction, enc.dtype), denc, dpred

    def _tile_backward(
        self,
        tile: _Tile,
        lattice: _Lattice,
        emissions: Array,
        flow: Array,
        options: _Options,
        enc: Array,
        pred: Array,
        denc: Array,
        dpred: Array,
        sums: Any,
    ) -> None:
        joined = _joined(enc, pred, tile)
        everywhere = (slice(None), *tile.cells)
        dlogits = _core.transducer_gradient(
            self._logits(joined).reshape(-1, self.num_classes),
            lattice.labels[tile.cells].reshape(-1),
            options.blank,
            np.ascontiguousarray(emissions[everywhere].reshape(4, -1)),
            np.ascontiguousarray(flow[everywhere].reshape(2, -1)),
            options.factor(len(enc)),
            options.clamp,
        )
        rows = joined.reshape(-1, self.hidden_size)
        flows = _core.linear_backward(
            rows, self._own["weight"], dlogits, sums.get("weight"), sums.get("bias"), True
        )
        assert flows is not None
        joined *= joined
        np.subtract(1, joined, out=joined)
        joined *= flows.reshape(joined.shape)
        denc[tile.b, tile.steps] += joined.sum(1)
        dpred[tile.b, tile.labels] += joined.sum(0)

    def _logits(self, joined: Array) -> Array:
        rows = joined.reshape(-1, self.hidden_size)
        logits = _core.linear_forward(rows, self._own["weight"], self._own["bias"])
        return logits.reshape(*joined.shape[:-1], self.num_classes)

    def _extra_repr(self) -> str:
        dtype = "" if self._dtype == np.float32 else f", dtype='{self._dtype}'"
        return f"{self.hidden_size}, {self.num_classes}, blank={self.blank}{dtype}"


class _Tile(NamedTuple):
    """Cells of one sequence."""

    b: int
    steps: slice
    labels: slice

    @property
    def cells(self) -> tuple[int, slice, slice]:
        return self.b, self.steps, self.labels


def _joined(enc: Array, pred: Array, tile: _Tile) -> Array:
    rows = enc[tile.b, tile.steps, None] + pred[tile.b, None, tile.labels]
    return _core.tanh(rows)


class _Options(NamedTuple):
    blank: int
    clamp: float
    fastemit: float
    mean: bool

    def factor(self, batch: int) -> float:
        return 1 / batch if self.mean and batch else 1.0


def _options(classes: int, blank: int, clamp: float, fastemit: float, reduction: Reduction) -> _Options:
    check_reduction(reduction)
    return _Options(
        _class_number(blank, classes),
        check_number("clamp", clamp, -np.inf),
        check_number("fastemit_lambda", fastemit, high=MOST),
        reduction == "mean",
    )


def _class_number(blank: int, classes: int) -> int:
    """Return the blank counted from 0."""
    number = check_size("blank", blank, -classes, classes - 1)
    return number + classes if number < 0 else number


class _Lattice(NamedTuple):
    """Labels (B, T, U+1) of the cells, and the lengths."""

    labels: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @staticmethod
    def read(
        shape: tuple[int, ...], targets: Any, logit_lengths: Any, target_lengths: Any, blank: int
    ) -> _Lattice:
        """Check targets and lengths against the shape (B, T, U+1, V) of logits; copy them."""
        batch, most, width, classes = shape
        if width < 1:
            raise ValueError(f"logits: expected shape (B, T, U+1, V) with U >= 0, got {shape}")
        numbers = integers("targets", targets)
        if numbers.shape != (batch, width - 1):
            raise ValueError(f"targets: expected shape (B, U) = ({batch}, {width - 1}), got {numbers.shape}")
        steps = lengths_of("logit_lengths", logit_lengths, batch, "T", most)
        counts = lengths_of("target_lengths", target_lengths, batch, "U", width - 1)
        labels = np.full((batch, width), _LAST)
        labels[:, :-1] = numbers
        places = np.arange(width)
        used = places < counts[:, None]
        wrong = np.argwhere(used & ((labels < 0) | (labels >= classes) | (labels == blank)))
        if len(wrong):
            b, u = wrong[0]
            raise ValueError(
                f"targets: expected values in [0, V) = [0, {classes}) other than blank = {blank}, "
                f"got {labels[b, u]} at place {u} of sequence {b}"
            )
        labels[~used] = _OUTSIDE
        labels[np.arange(batch), counts] = _LAST
        inside = np.arange(most) < steps[:, None]
        return _Lattice(np.where(inside[:, :, None], labels[:, None], _OUTSIDE), steps, counts)

    def run(self, emissions: Array, options: _Options) -> tuple[Array, Array]:
        """Return losses (B,) and how often a path takes the blank and the label of each cell."""
        return _core.transducer_lattice(
            np.ascontiguousarray(emissions), self.steps, self.counts, 1 + options.fastemit
        )

    def tiles(self, cells: int) -> list[_Tile]:
        """Return tiles of about so many cells that make up the lattices of all sequences."""
        found = []
        for b, (steps, count) in enumerate(zip(self.steps.tolist(), self.counts.tolist(), strict=True)):
            high = max(1, min(steps, cells // (count + 1)))
            wide = min(count + 1, cells)
            for t in range(0, steps, high):
                for u in range(0, count + 1, wide):
                    labels = slice(u, min(u + wide, count + 1))
                    found.append(_Tile(b, slice(t, min(t + high, steps)), labels))
        return found
