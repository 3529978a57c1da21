"""Output layer and cross entropy in one call, by chunks of rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.backend import NOTHING
from fusedrnn.checks import check_array, check_number, check_size
from fusedrnn.inputs.rows import as_rows
from fusedrnn.nn.layers import Linear
from fusedrnn.nn.module import Module
from fusedrnn.training.losses import IGNORED, class_numbers

# Logits of so many bytes stay in a processor's caches; the products want so many rows to be fast.
_CHUNK_BYTES, _LEAST_ROWS = 4 << 20, 128


def linear_cross_entropy(
    h: Array,
    head: Linear,
    targets: npt.ArrayLike,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> tuple[float, Array]:
    """Return the mean cross entropy of softmax(head(h)) and the gradient of h; add the head's to its grads.

    The same as `head.forward`, `cross_entropy` and `head.backward`, within rounding, but logits exist for
    `chunk` rows at a time only: with a large vocabulary the full ones take most of a model's memory.
    Ctrl-C between two chunks leaves a part of the head's gradients added.

    Args:
        h: (..., I) in the head's dtype.
        head: a `Linear`(I, V).
        targets: (...) of an integer dtype, each in 0..V-1 or ignore_index.
        ignore_index: target that contributes neither loss nor gradient.
        label_smoothing: in [0, 1], as in `cross_entropy`.
        chunk: rows whose logits exist at once, >= 1; None for as many as 4 MiB hold, and at least 128.

    Returns:
        loss: float, the mean over the targets that are not ignored; NaN, with gradient 0, if there are none.
        dh: (..., I), the gradient of the loss.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or range; grads are as before.
        RuntimeError: head on a GPU.
    """
    if not isinstance(head, Linear):
        raise TypeError(f"head: expected a Linear, got {type(head).__name__}")
    sums = head._joined(Module._sums)
    return chunked_cross_entropy(h, head, targets, ignore_index, label_smoothing, chunk, sums)


def chunked_cross_entropy(
    h: Array,
    head: Linear,
    targets: npt.ArrayLike,
    ignore_index: int,
    label_smoothing: float,
    chunk: int | None,
    sums: Mapping[str, Array],
) -> tuple[float, Array]:
    """Do what `linear_cross_entropy` does, and add to these gradients of the head in place of its grads."""
    head._require_cpu("linear_cross_entropy")
    backend, classes = head._backend, head.out_features
    rows = as_rows("h", h, (head.in_features,), backend)
    check_array("h", rows, rows.shape, head._dtype)
    flat = class_numbers(targets, h.shape[:-1], classes, ignore_index)
    smoothing = check_number("label_smoothing", label_smoothing, 0.0, 1.0)
    if chunk is None:
        step = max(_LEAST_ROWS, _CHUNK_BYTES // (classes * rows.itemsize))
    else:
        step = check_size("chunk", chunk)
    weights = head._kept_parameters()
    weight, bias = weights["weight"], weights.get("bias")
    owner = head._tied.get("weight", head)
    count = int((flat != IGNORED).sum())
    scale = rows.dtype.type(1 / count if count else 0)
    total, dh = 0.0, np.empty_like(rows)
    kernels, options = backend.kernels, head._options()
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        logits = kernels.linear_forward(rows[part], weight, bias, **options)
        losses, _, dlogits = kernels.cross_entropy(logits, flat[part], None, IGNORED, smoothing, False)
        total += float(losses.sum())
        dlogits *= scale
        with head._turn.take(), NOTHING if owner is head else owner._turn.take():
            dh[part] = kernels.linear_backward(
                rows[part], weight, dlogits, sums.get("weight"), sums.get("bias"), True, **options
            )
    return (total / count if count else float("nan")), dh.reshape(h.shape)
