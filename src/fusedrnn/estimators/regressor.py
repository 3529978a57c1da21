"""SequenceRegressor."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array

import fusedrnn as fr
from fusedrnn.arrays import Array
from fusedrnn.estimators.pooled import Pooled
from fusedrnn.preprocessing import Scaler


class SequenceRegressor(RegressorMixin, Pooled):  # type: ignore[misc]
    """Numbers for sequences: a recurrent network, pooled over time, and a linear layer; squared error.

    y (N,) or (N, K) are numbers, which are scaled to mean 0 and standard deviation 1 inside.

    Args:
        ARGUMENTS

    Raises:
        TypeError, ValueError: `fit` raises them, also for what was wrong here.

    Attributes:
        model_: the network, a `fusedrnn.Sequential`.
        history_: figures of each epoch.
        n_features_in_: features of X; of an array (N, T) its columns.
        n_iter_: epochs so far.
    """

    def partial_fit(self, X: Any, y: Any) -> SequenceRegressor:
        """Make one pass over sequences, from the present weights; return self.

        The first call's y set the scale of the targets.

        Args:
            X: as in `fit`.
            y: (N,) or (N, K) numbers.

        Raises:
            TypeError, ValueError, ArithmeticError: as `fit`.
        """
        return self._once(X, y)

    def _targets(self, y: Any, reset: bool) -> Any:
        values = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        if values.ndim not in (1, 2):
            raise ValueError(f"y: expected shape (N,) or (N, K), got {values.shape}")
        columns = values.reshape(len(values), -1)
        if reset:
            self._target_shape = values.shape[1:]
            self._target_scaler = Scaler().fit(columns)
        if values.shape[1:] != self._target_shape:
            raise ValueError(f"y: expected shape (N, *{self._target_shape}) as before, got {values.shape}")
        return self._target_scaler.transform(columns).astype(np.float32)

    def _outputs_size(self) -> int:
        return len(self._target_scaler.mean)

    def _loss(self, output: Array, targets: Array) -> tuple[float, Array]:
        return fr.mse_loss(output, targets)

    def predict(self, X: Any) -> Array:
        """Return the numbers (N,), or (N, K) if y was.

        Raises:
            TypeError, ValueError: X is not what `fit` had.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        outputs = np.stack(self._outputs(X)).astype(np.float64)
        found = self._target_scaler.inverse_transform(outputs)
        return found.reshape(len(found), *self._target_shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
