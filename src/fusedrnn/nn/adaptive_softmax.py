"""AdaptiveSoftmax: an output layer and its loss, whose rare classes cost little."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_flag, check_number, check_size, resolve_dtype
from fusedrnn.init import Seed, check_method, make_rng
from fusedrnn.inputs.rows import as_rows
from fusedrnn.losses.gamma import log_softmax
from fusedrnn.nn.blocks import Sequential
from fusedrnn.nn.class_loss import ClassLoss
from fusedrnn.nn.containers import ModuleList
from fusedrnn.nn.layers import Linear
from fusedrnn.training.losses import IGNORED, Reduction, cross_entropy


class AdaptiveSoftmax(ClassLoss):
    """Softmax over many classes, by clusters: the frequent ones first, the rare ones behind small layers.

    Classes are numbered by falling frequency. The head has the first cutoffs[0] of them and one more class
    for each cluster; cluster i has the classes from cutoffs[i] to cutoffs[i+1] - 1, the last one those up to
    n_classes - 1, behind a layer of in_features // div_value^(i+1) units. With p = softmax:

        log P(c) = log p_head[c]                                                        in the head
        log P(c) = log p_head[cutoffs[0] + i] + log p_i[c - cutoffs[i]]                 in cluster i

    Only the clusters in which targets are get computed. Semantics and the names of the parameters are those
    of torch.nn.AdaptiveLogSoftmaxWithLoss: head.weight, with head_bias head.bias, tail.{i}.0.weight (I_i, I)
    and tail.{i}.1.weight. Calls are `loss`, `log_prob` and `predict`, on the CPU; there is no `forward`.

    Args:
        in_features: I >= 1.
        n_classes: C >= 2.
        cutoffs: where clusters start, rising, each in 1..C-1.
        div_value: by how much the layers of the clusters shrink from one to the next, >= 1.
        head_bias: whether the head has a bias.
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here; None leaves all parameters at zero, for weights
            that are loaded next.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, or a cluster whose layer would have no units.

    Paper: Grave et al. 2016, Efficient softmax approximation for GPUs, arXiv:1609.04309v3.
    """

    _fixed = frozenset(("in_features", "n_classes", "cutoffs", "div_value", "head_bias"))

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        self.in_features = check_size("in_features", in_features)
        self.n_classes = check_size("n_classes", n_classes, 2)
        self.cutoffs = _check_cutoffs(cutoffs, self.n_classes)
        self.div_value = check_number("div_value", div_value, 1.0)
        self.head_bias = check_flag("head_bias", head_bias)
        sizes = [self._units(i) for i in range(len(self.cutoffs))]
        options: dict[str, Any] = {
            "dtype": resolve_dtype(dtype),
            "seed": make_rng(seed),
            "init": check_method(init),
        }
        head_size = self.cutoffs[0] + len(self.cutoffs)
        self.head = Linear(self.in_features, head_size, self.head_bias, **options)
        ends = [*self.cutoffs[1:], self.n_classes]
        self.tail = ModuleList(
            Sequential(
                Linear(self.in_features, size, False, **options),
                Linear(size, end - start, False, **options),
            )
            for start, end, size in zip(self.cutoffs, ends, sizes, strict=True)
        )

    def _losses(
        self, rows: Array, numbers: npt.NDArray[np.int64], reduction: Reduction
    ) -> tuple[float | Array, Array]:
        clusters = np.searchsorted(self.cutoffs, numbers, side="right")
        in_head = np.where(clusters > 0, self.cutoffs[0] + clusters - 1, numbers)
        logits, head_tape = self.head.forward(rows)
        losses, dlogits = cross_entropy(logits, in_head, reduction="none")
        flows = []
        for i, (cluster, start) in enumerate(zip(self.tail, self.cutoffs, strict=True), 1):
            (members,) = np.nonzero(clusters == i)
            if members.size:
                logits, tape = cluster.forward(rows[members])
                more, flow = cross_entropy(logits, numbers[members] - start, reduction="none")
                losses[members] += more
                flows.append((cluster, members, tape, flow))
        count = int((numbers != IGNORED).sum()) if reduction == "mean" else 1
        scale = rows.dtype.type(1 / count if count else 0)
        dh = self.head.backward(head_tape, dlogits * scale)
        for cluster, members, tape, flow in flows:
            dh[members] += cluster.backward(tape, flow * scale)
        if reduction == "none":
            return losses, dh
        return (float(losses.sum(dtype=np.float64)) / count if count else float("nan")), dh

    def log_prob(self, h: Array) -> Array:
        """Return log P (..., C) of all classes for h (..., I).

        Raises:
            TypeError: h is not an array of the module's dtype.
            ValueError: the last axis is not I.
        """
        rows = self._rows(h)
        return self._log_prob(rows, self.head(rows)).reshape(*h.shape[:-1], self.n_classes)

    def predict(self, h: Array) -> npt.NDArray[np.int64]:
        """Return the class of the highest probability (...) for h (..., I).

        Clusters are computed where the head has one of them in front, and only there.

        Raises:
            TypeError: h is not an array of the module's dtype.
            ValueError: the last axis is not I.
        """
        rows = self._rows(h)
        logits = self.head(rows)
        best: npt.NDArray[np.int64] = logits.argmax(axis=1).astype(np.int64, copy=False)
        (members,) = np.nonzero(best >= self.cutoffs[0])
        if members.size:
            best[members] = self._log_prob(rows[members], logits[members]).argmax(axis=1)
        return best.reshape(h.shape[:-1])

    def _log_prob(self, rows: Array, logits: Array) -> Array:
        first, found = self.cutoffs[0], np.empty((len(rows), self.n_classes), rows.dtype)
        head = log_softmax(logits, 1)
        found[:, :first] = head[:, :first]
        ends = (*self.cutoffs[1:], self.n_classes)
        for i, (cluster, start, end) in enumerate(zip(self.tail, self.cutoffs, ends, strict=True)):
            np.add(log_softmax(cluster(rows), 1), head[:, first + i, None], out=found[:, start:end])
        return found

    def _rows(self, h: Array) -> Array:
        rows = as_rows("h", h, (self.in_features,), self._backend)
        return check_array("h", rows, rows.shape, self.head.dtype)

    def _extra_repr(self) -> str:
        dtype = "" if self.head.dtype == np.float32 else f", dtype='{self.head.dtype}'"
        sizes = f"{self.in_features}, {self.n_classes}, cutoffs={list(self.cutoffs)}"
        return f"{sizes}, div_value={self.div_value}, head_bias={self.head_bias}{dtype}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._extra_repr()})"

    def _units(self, cluster: int) -> int:
        units = self.in_features // self.div_value ** (cluster + 1)
        if units < 1:
            raise ValueError(
                f"div_value: expected in_features // div_value^{cluster + 1} >= 1 for cluster {cluster}, "
                f"got {self.in_features} // {self.div_value}^{cluster + 1} = 0"
            )
        return int(units)


def _check_cutoffs(cutoffs: Any, classes: int) -> tuple[int, ...]:
    if not isinstance(cutoffs, (Sequence, np.ndarray)) or isinstance(cutoffs, str):
        raise TypeError(f"cutoffs: expected a sequence of ints, got {cutoffs!r}")
    found = tuple([check_size(f"cutoffs[{i}]", cutoff, 1, classes - 1) for i, cutoff in enumerate(cutoffs)])
    if not found or any(a >= b for a, b in pairwise(found)):
        raise ValueError(f"cutoffs: expected one or more rising class numbers, got {list(found)}")
    return found
