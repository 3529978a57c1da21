"""ClassLoss: base of the output layers that have a loss of their own, over many classes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.nn.module import Module
from fusedrnn.training.losses import Reduction, check_reduction, class_numbers


class ClassLoss(Module):
    """An output layer on the CPU for h (..., in_features), and its loss over n_classes classes."""

    _host_only = True
    n_classes: int

    @overload
    def loss(
        self,
        h: Array,
        targets: npt.ArrayLike,
        ignore_index: int = ...,
        reduction: Literal["mean", "sum"] = ...,
    ) -> tuple[float, Array]: ...
    @overload
    def loss(
        self, h: Array, targets: npt.ArrayLike, ignore_index: int = ..., *, reduction: Literal["none"]
    ) -> tuple[Array, Array]: ...
    def loss(
        self,
        h: Array,
        targets: npt.ArrayLike,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> tuple[float | Array, Array]:
        """Return the loss and the gradient of h; add those of the parameters to grads.

        Args:
            h: (..., I) in the module's dtype.
            targets: (...) of an integer dtype, each in 0..C-1 or ignore_index.
            ignore_index: target that contributes neither loss nor gradient.
            reduction: "mean" over the targets that are not ignored, "sum" or "none".

        Returns:
            loss: float, or (...) with reduction="none"; the mean over no targets is NaN.
            dh: (..., I), the gradient of the loss, with reduction="none" of its sum.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range; grads are as before.
        """
        check_reduction(reduction)
        rows = self._rows(h)
        numbers = class_numbers(targets, h.shape[:-1], self.n_classes, ignore_index)
        losses, dh = self._losses(rows, numbers, reduction)
        shaped = losses.reshape(h.shape[:-1]) if isinstance(losses, np.ndarray) else losses
        return shaped, dh.reshape(h.shape)

    @abstractmethod
    def _rows(self, h: Array) -> Array:
        """Return h, checked, as rows (N, I)."""

    @abstractmethod
    def _losses(
        self, rows: Array, numbers: npt.NDArray[np.int64], reduction: Reduction
    ) -> tuple[float | Array, Array]:
        """Return what `loss` does for rows, whose classes are IGNORED where they do not count."""
