"""SampledSoftmax: an output layer whose loss looks at a sample of the classes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_choice, check_size, resolve_dtype
from fusedrnn.init import Noise, Seed, check_method, make_rng, torch_uniform
from fusedrnn.inputs.rows import as_rows
from fusedrnn.nn.class_loss import ClassLoss
from fusedrnn.training.losses import IGNORED, Reduction, cross_entropy


class SampledSoftmax(ClassLoss):
    """Linear layer over many classes whose loss, in training, is over the target and a sample of the others.

    A call draws n_samples classes from the distribution q, with replacement and the same for all rows. With
    o = h W^T + b, n_c how often class c was drawn, and t the target,

        Z    = exp(o_t) + sum over c != t of n_c / (n_samples q_c) exp(o_c)
        loss = -log(exp(o_t) / Z)

    whose Z is that of the whole softmax in expectation; only rows of W that were drawn, or are targets, are
    read, and get a gradient. In evaluation mode the loss is over all classes. Calls of the layer itself
    return all logits.

    Parameters: weight (C, I), bias (C,), both initialised from U(-1/sqrt(I), 1/sqrt(I)) as a `Linear`.

    Args:
        in_features: I >= 1.
        n_classes: C >= 2.
        n_samples: how many classes a call draws, >= 1.
        distribution: "log_uniform", q_c = log((c + 2) / (c + 1)) / log(C + 1), for classes that are numbered
            by falling frequency, or "uniform".
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here; None leaves all parameters at zero.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Papers: Jean et al. 2014, arXiv:1412.2007v2; with the target's logit as it is, Blanc and Rendle 2017,
    arXiv:1712.00527v2.
    """

    _fixed = frozenset(("in_features", "n_classes"))
    _dtype: np.dtype[Any]
    _noise: Noise

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        n_samples: int,
        distribution: Literal["log_uniform", "uniform"] = "log_uniform",
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        self.in_features = check_size("in_features", in_features)
        self.n_classes = check_size("n_classes", n_classes, 2)
        self.n_samples = check_size("n_samples", n_samples)
        self.distribution = check_choice("distribution", distribution, ("log_uniform", "uniform"))
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        self._declare({"weight": (self.n_classes, self.in_features), "bias": (self.n_classes,)}, found)
        for array in self._own.values() if method else ():
            torch_uniform(array, self.in_features, rng=rng)
        self._noise = Noise(rng)

    def __call__(self, h: Array) -> Array:
        """Return the logits (..., C) of all classes for h (..., I).

        Raises:
            TypeError: h is not an array of the module's dtype.
            ValueError: the last axis is not I.
        """
        rows = self._rows(h)
        logits = _core.linear_forward(rows, self._own["weight"], self._own["bias"])
        return logits.reshape(*h.shape[:-1], self.n_classes)

    def _losses(
        self, rows: Array, numbers: npt.NDArray[np.int64], reduction: Reduction
    ) -> tuple[float | Array, Array]:
        weight, bias, sums = self._own["weight"], self._own["bias"], self._sums()
        if self.training:
            counted = numbers != IGNORED
            labels = np.where(counted, numbers, 0)
            classes, shifts = self._draw()
            part, shifts = weight[classes], shifts.astype(rows.dtype) + bias[classes]
            logits = np.empty((len(rows), len(classes) + 1), rows.dtype)
            own = weight[labels]
            logits[:, 0] = np.einsum("ni,ni->n", rows, own) + bias[labels]
            logits[:, 1:] = _core.linear_forward(rows, part, shifts)
            place = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
            (hit,) = np.nonzero(classes[place] == labels)
            logits[hit, place[hit] + 1] = -np.inf
            numbers = np.where(counted, 0, IGNORED)
        else:
            logits = _core.linear_forward(rows, weight, bias)
        losses, dlogits = cross_entropy(logits, numbers, reduction=reduction)
        with self._turn.take():
            if not self.training:
                dh = _core.linear_backward(rows, weight, dlogits, sums.get("weight"), sums.get("bias"), True)
                assert dh is not None
            else:
                flow = np.ascontiguousarray(dlogits[:, 1:])
                dpart, dshifts = np.zeros_like(part), np.zeros_like(shifts)
                dh = _core.linear_backward(rows, part, flow, dpart, dshifts, True)
                assert dh is not None
                first = dlogits[:, :1]
                dh += first * own
                if sums:
                    sums["weight"][classes] += dpart  # each of them once
                    sums["bias"][classes] += dshifts
                    _core.embedding_backward(labels, first * rows, sums["weight"])
                    np.add.at(sums["bias"], labels, first[:, 0])
        return losses, dh

    def _draw(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return classes, each once and in order, and log(n_c / (n_samples q_c))."""
        _, seed, offset = self._noise.take(0.0)
        uniform = np.random.Generator(np.random.Philox(key=seed, counter=offset << 64)).random(self.n_samples)
        if self.distribution == "uniform":
            drawn = np.floor(uniform * self.n_classes)
        else:
            drawn = np.floor(np.exp(uniform * np.log(self.n_classes + 1.0))) - 1
        numbers = np.clip(drawn, 0, self.n_classes - 1).astype(np.int64)
        classes, counts = np.unique(numbers, return_counts=True)
        if self.distribution == "uniform":
            chances = np.full(len(classes), 1 / self.n_classes)
        else:
            chances = np.log1p(1 / (classes + 1.0)) / np.log(self.n_classes + 1.0)
        return classes, np.log(counts / (self.n_samples * chances))

    def _rows(self, h: Array) -> Array:
        self._require_cpu("SampledSoftmax")
        rows = as_rows("h", h, (self.in_features,), self._backend)
        return check_array("h", rows, rows.shape, self._dtype)

    def _extra_repr(self) -> str:
        dtype = "" if self._dtype == np.float32 else f", dtype='{self._dtype}'"
        sizes = f"{self.in_features}, {self.n_classes}, {self.n_samples}"
        return f"{sizes}, distribution={self.distribution!r}{dtype}"
