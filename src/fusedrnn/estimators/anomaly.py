"""AnomalyDetector."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted

from fusedrnn.arrays import Array
from fusedrnn.checks import check_number, check_size
from fusedrnn.estimators.forecaster import Forecaster
from fusedrnn.estimators.unchanged import unchanged_by_errors
from fusedrnn.estimators.windowed import series_of
from fusedrnn.preprocessing import windows


class AnomalyDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Steps of a series that a forecaster, which learned what is normal, did not expect.

    A step's error is that of all forecasts which reach it, in units of the errors usual in training; steps
    are judged by the mean error of `smooth` steps around them.

    X is one series (T,) or (T, I), or a list of them, without anomalies for `fit`; y is not used.

    Args:
        forecaster: a `Forecaster`, of which a copy is trained; None for one of horizon 8 and context 64.
        smooth: steps, >= 1.
        contamination: the share of steps of the series of `fit` that lies above the threshold, in [0, 0.5].

    Raises:
        TypeError, ValueError: `fit` raises them, also for what was wrong here.

    Attributes:
        forecaster_: the trained `Forecaster`.
        offset_: the threshold: -score of a step at it.
        n_features_in_: I.

    Paper: Malhotra et al. 2015, Long short term memory networks for anomaly detection in time series.
    """

    def __init__(
        self, forecaster: Forecaster | None = None, smooth: int = 8, contamination: float = 0.001
    ) -> None:
        self.forecaster = forecaster
        self.smooth = smooth
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> AnomalyDetector:
        """Train on series without anomalies; return self.

        Args:
            X: a series (T,) or (T, I) of numbers, NaN where one is missing, or a list of them.
            y: not used.

        Raises:
            TypeError, ValueError, ArithmeticError: as `Forecaster.fit`.
        """
        smooth, share = check_size("smooth", self.smooth), check_number("contamination", self.contamination)
        if not 0.0 <= share <= 0.5:
            raise ValueError(f"contamination: expected a number in [0, 0.5], got {self.contamination!r}")
        model = Forecaster(8, 64) if self.forecaster is None else self.forecaster
        if not isinstance(model, Forecaster):
            raise TypeError(f"forecaster: expected a Forecaster or None, got {type(model).__name__}")
        if model.covariates:
            raise ValueError(f"forecaster: expected one without covariates, got {model.covariates}")
        with unchanged_by_errors(self):
            self.forecaster_ = clone(model).fit(X)
            self.n_features_in_ = self.forecaster_.n_features_in_
            self._smooth, self._unit = smooth, 1.0
            errors = self._errors(X)
            self._unit = float(np.mean(np.concatenate([values[self._known :] for values in errors]))) or 1.0
            scores = np.concatenate([values[self._known :] for values in self._scores(X)])
            self.offset_ = float(-np.quantile(scores, 1.0 - share))
        return self

    @property
    def _known(self) -> int:
        """The first steps, which are context alone."""
        steps: int = self.forecaster_._plan.context
        return steps

    def _errors(self, X: Any) -> list[Array]:
        """Return the mean absolute error of the forecasts of each step (T,), 0 where there is none."""
        context, horizon = self.forecaster_._plan[:2]
        found = []
        for values in series_of(X, self.forecaster_.n_features_in_, 0):
            x, y = windows(values, context, 1, horizon)
            if not len(x):
                raise ValueError(
                    f"X: expected series of context + horizon = {context + horizon} steps, got {len(values)}"
                )
            forecasts: Any = self.forecaster_.predict(list(x))
            gaps = np.abs(np.stack(forecasts) - y).mean(axis=-1)
            known = ~np.isnan(gaps)  # a missing value is no anomaly
            gaps[~known] = 0.0
            sums, counts = np.zeros((2, len(values)))
            for ahead in range(horizon):
                sums[context + ahead : context + ahead + len(gaps)] += gaps[:, ahead]
                counts[context + ahead : context + ahead + len(gaps)] += known[:, ahead]
            found.append(sums / np.maximum(counts, 1))
        return found

    def _scores(self, X: Any) -> list[Array]:
        kernel = np.full(self._smooth, 1.0 / self._smooth)
        # Not "same", which of a kernel longer than the series is as long as the kernel.
        before = (self._smooth - 1) // 2
        return [
            np.convolve(values / self._unit, kernel)[before : before + len(values)]
            for values in self._errors(X)
        ]

    def score_samples(self, X: Any) -> Array | list[Array]:
        """Return minus the error of each step (T,), or a list of them for a list: the lower, the stranger.

        The first `context` steps have nothing before them and count as expected, 0.

        Raises:
            TypeError, ValueError: X is not what `fit` had, or too short.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "forecaster_")
        found = []
        for values in self._scores(X):
            values[: self._known] = 0.0
            found.append(-values)
        return found if isinstance(X, (list, tuple)) else found[0]

    def decision_function(self, X: Any) -> Array | list[Array]:
        """Return `score_samples` above the threshold: below 0 for anomalies.

        Raises:
            TypeError, ValueError, sklearn.exceptions.NotFittedError: as `score_samples`.
        """
        found: Any = self.score_samples(X)
        if isinstance(found, list):
            return [values - self.offset_ for values in found]
        shifted: Array = found - self.offset_
        return shifted

    def predict(self, X: Any) -> Array | list[Array]:
        """Return -1 for each step that is an anomaly and 1 for the others, int64 (T,) or a list of them.

        Raises:
            TypeError, ValueError, sklearn.exceptions.NotFittedError: as `score_samples`.
        """
        found: Any = self.decision_function(X)
        if isinstance(found, list):
            return [np.where(values < 0, -1, 1) for values in found]
        return np.where(found < 0, -1, 1)
