"""SequenceClassifier."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, column_or_1d

import fusedrnn as fr
from fusedrnn.arrays import Array
from fusedrnn.estimators.inputs import given_classes, refuse_missing
from fusedrnn.estimators.pooled import Pooled
from fusedrnn.nn.activations import softmax


class SequenceClassifier(ClassifierMixin, Pooled):  # type: ignore[misc]
    """Classes of sequences: a recurrent network, pooled over time, and a linear layer.

    y (N,) are classes of any kind that scikit-learn takes.

    Args:
        ARGUMENTS

    Raises:
        TypeError, ValueError: `fit` raises them, also for what was wrong here.

    Attributes:
        classes_: (K,) classes.
        model_: the network, a `fusedrnn.Sequential`.
        history_: figures of each epoch.
        n_features_in_: features of X; of an array (N, T) its columns.
        n_iter_: epochs so far.
    """

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> SequenceClassifier:
        """Make one pass over sequences, from the present weights; return self.

        Args:
            X: as in `fit`.
            y: (N,) classes.
            classes: all classes, which the first call needs unless its y has them all.

        Raises:
            TypeError, ValueError, ArithmeticError: as `fit`; or a class that was not in the first call.
        """
        if not hasattr(self, "model_"):
            self._given_classes = given_classes(classes)
        return self._once(X, y)

    def fit(self, X: Any, y: Any) -> SequenceClassifier:
        """Train on sequences and their classes; return self. See `SequenceEstimator.fit`."""
        self._given_classes = None
        return super().fit(X, y)

    def _targets(self, y: Any, reset: bool) -> Any:
        if np.iterable(y) and np.asarray(y).dtype.kind != "f":
            refuse_missing("y", y)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        labels = column_or_1d(y, warn=True)
        if reset:
            given = self._given_classes
            self.classes_ = np.unique(labels) if given is None else given
        known = np.isin(labels, self.classes_)
        if not known.all():
            raise ValueError(f"y: expected classes of {self.classes_}, got {labels[~known][0]!r}")
        return np.searchsorted(self.classes_, labels).astype(np.int64)

    def _outputs_size(self) -> int:
        return len(self.classes_)

    def _loss(self, output: Array, targets: Array) -> tuple[float, Array]:
        return fr.cross_entropy(output, targets)

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities (N, K) of the classes, in the order of `classes_`.

        Raises:
            TypeError, ValueError: X is not what `fit` had.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        return softmax(np.stack(self._outputs(X)), -1)

    def predict(self, X: Any) -> Array:
        """Return the most probable classes (N,); raises what `predict_proba` does."""
        scores = np.stack(self._outputs(X))
        best: Array = self.classes_[scores.argmax(axis=1)]
        return best
