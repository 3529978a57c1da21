"""Forecaster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils.validation import check_is_fitted

import fusedrnn as fr
from fusedrnn.arrays import Array
from fusedrnn.checks import check_number, check_size
from fusedrnn.estimators.base import SequenceEstimator
from fusedrnn.losses.regression import quantile_loss
from fusedrnn.preprocessing import windows


class _Plan(NamedTuple):
    """What a network was fitted for, whatever the parameters were set to since."""

    context: int
    horizon: int
    season: int | None
    levels: list[float]


class Forecaster(SequenceEstimator):
    """The next `horizon` values of series: points, or quantiles.

    Every window of `context` steps is scaled by its own mean and deviation; a recurrent network reads it, and
    a linear layer gives all steps ahead at once, as differences from the last season's values, or from the
    last value without one. Points are medians (absolute error), or of `quantiles` the middle one.

    X is one series (T,) or (T, I), or a list of them, of which all features are forecast; y is not used.

    Args:
        horizon: steps ahead, >= 1.
        context: steps that are read.
        season: steps of a season, or None.
        quantiles: numbers in (0, 1), ascending, or None for points alone.
        ARGUMENTS

    Raises:
        TypeError, ValueError: `fit` raises them, also for what was wrong here.

    Attributes:
        model_: the network, a `fusedrnn.Sequential`.
        history_: figures of each epoch.
        n_features_in_: I.
        n_iter_: epochs so far.
    """

    _plan: _Plan

    horizon: int
    context: int
    season: int | None
    quantiles: Sequence[float] | None

    def __init__(
        self,
        horizon: int = 1,
        context: int = 48,
        season: int | None = None,
        quantiles: Sequence[float] | None = None,
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        *,
        lr: float = 0.005,
        schedule: str | None = "one_cycle",
        epochs: int = 10,
        batch_size: int = 64,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self._set_parameters(locals())

    def fit(self, X: Any, y: Any = None) -> Forecaster:
        """Train on all windows of one or more series; return self.

        Args:
            X: a series (T,) or (T, I) of finite numbers, or a list of them, long enough for a
                window and its horizon.
            y: not used.

        Raises:
            TypeError: an argument or a parameter of the wrong kind.
            ValueError: one out of range or of another shape, or series that are too short.
            ArithmeticError: training diverged; it says why.
        """
        with self._unchanged_by_errors():
            self._fit(X, self._goes_on(), self.epochs, self.schedule, self.patience)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Forecaster:
        """Make one pass over the windows of series, from the present weights; return self.

        Args:
            X: as in `fit`.
            y: not used.

        Raises:
            TypeError, ValueError, ArithmeticError: as `fit`.
        """
        with self._unchanged_by_errors():
            self._fit(X, hasattr(self, "model_"), 1, None, None)
        return self

    def _fit(self, X: Any, again: bool, epochs: int, schedule: str | None, patience: int | None) -> None:
        plan = self._plan_of_parameters()
        for name, old, new in zip(_Plan._fields, self._plan, plan, strict=True) if again else ():
            if name in ("horizon", "levels") and old != new:
                name = "quantiles" if name == "levels" else name
                raise ValueError(f"{name}: expected {old}, for which the network was made, got {new}")
        context, horizon = plan[:2]
        series = self._series(X, not again)
        self._plan = plan
        pairs = [windows(x, context, 1, horizon) for x in series]
        x, y = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        if not len(x):
            raise ValueError(
                f"X: expected series of context + horizon = {context + horizon} steps at least, "
                f"got {max(len(values) for values in series)}"
            )
        scaled, base, _, deviation = self._prepare(x)
        self._vocabulary = None
        if not again:
            # Differences are small where the season repeats well: the network's output is of size 1.
            size = np.abs((y - base) / deviation).mean(axis=(0, 1))
            self._unit = np.where(size > 0.0, size, 1.0)
            self._start(list(scaled[:1]))
        targets = ((y - base) / (deviation * self._unit)).astype(np.float32)
        self._last_series = [values[-context:].copy() for values in series]
        self._single = not isinstance(X, (list, tuple))
        self._ranks = _ranks(X)
        self._train(list(scaled), targets, epochs, schedule, patience)

    def _plan_of_parameters(self) -> _Plan:
        context, horizon = check_size("context", self.context), check_size("horizon", self.horizon)
        if self.season is not None and check_size("season", self.season) > context:
            raise ValueError(f"season: expected at most context = {context} steps, got {self.season}")
        given = [0.5] if self.quantiles is None else self.quantiles
        if not np.iterable(given):
            raise TypeError(f"quantiles: expected a list of numbers in (0, 1) or None, got {given!r}")
        levels = [check_number(f"quantiles[{i}]", level, 0.0, 1.0) for i, level in enumerate(given)]
        if not levels or levels != sorted(set(levels)) or {0.0, 1.0} & set(levels):
            raise ValueError(f"quantiles: expected ascending numbers in (0, 1), got {self.quantiles!r}")
        return _Plan(context, horizon, self.season, levels)

    def _series(self, X: Any, reset: bool) -> list[Array]:
        """Return X as a list of float64 arrays (T, I)."""
        found = []
        for index, values in enumerate(X if isinstance(X, (list, tuple)) else [X]):
            array = np.asarray(values)
            if array.dtype.kind not in "fiub":
                raise TypeError(f"X[{index}]: expected a series of numbers, got {array.dtype}")
            array = array.astype(np.float64)
            array = array[:, None] if array.ndim == 1 else array
            if array.ndim != 2:
                raise ValueError(
                    f"X[{index}]: expected shape (T,) or (T, I), got {array.shape}; X is an array (T,) or "
                    "(T, I), or a list of them"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"X[{index}]: expected finite values, got NaN or infinity")
            found.append(array)
        if not found:
            raise ValueError("X: expected at least one series, got none")
        if reset:
            self.n_features_in_ = found[0].shape[1]
        for index, array in enumerate(found):
            if array.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X[{index}]: expected I = {self.n_features_in_} features, got {array.shape}"
                )
        return found

    def _prepare(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Return scaled windows (N, context, I), the bases (N, horizon, I), mean and deviation."""
        mean = x.mean(axis=1, keepdims=True)
        deviation = x.std(axis=1, keepdims=True)
        deviation = np.where(deviation > 1e-12 * np.maximum(np.abs(mean), 1e-300), deviation, 1.0)
        back = self._back
        base = x[:, x.shape[1] - back + np.arange(self._plan.horizon) % back]
        return ((x - mean) / deviation).astype(np.float32), base, mean, deviation

    @property
    def _back(self) -> int:
        """How many steps ago the value is that a forecast starts from."""
        return self._plan.season or 1

    def _make_model(self, inputs: int, seed: int) -> fr.Module:
        layers, size = self._body(inputs, seed)
        layers["pool"] = fr.Pool("last", size)
        # Zero: an untrained network forecasts the last season.
        layers["head"] = fr.Linear(size, self._plan.horizon * inputs * len(self._plan.levels), init=None)
        return fr.Sequential(layers)

    def _loss(self, output: Array, targets: Array) -> tuple[float, Array]:
        levels = self._plan.levels
        loss, gradient = quantile_loss(output.reshape(*targets.shape, len(levels)), targets, levels)
        return loss, gradient.reshape(output.shape)

    def predict_quantiles(self, X: Any = None) -> Array | list[Array]:
        """Return the quantiles (horizon, I, Q) of the values after each series, without I of (T,).

        Args:
            X: series to go on from, of `context` steps at least; None for those of `fit`.

        Raises:
            TypeError, ValueError: X is not what `fit` had, or too short.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "model_")
        series = self._last_series if X is None else self._series(X, False)
        context = self._plan.context
        for index, values in enumerate(series):
            if len(values) < context:
                raise ValueError(
                    f"X[{index}]: expected context = {context} steps at least, got {len(values)}"
                )
        x, base, _, deviation = self._prepare(np.stack([values[-context:] for values in series]))
        output = self.model_.eval()(np.ascontiguousarray(x.swapaxes(0, 1)))
        # Sorted: quantiles must not cross.
        steps = np.sort(output.reshape(*base.shape, len(self._plan.levels)).astype(np.float64), axis=-1)
        found = list(base[..., None] + (deviation * self._unit)[..., None] * steps)
        single = self._single if X is None else not isinstance(X, (list, tuple))
        ranks = self._ranks if X is None else _ranks(X)
        found = [values if rank > 1 else values[:, 0] for values, rank in zip(found, ranks, strict=True)]
        return found[0] if single else found

    def predict(self, X: Any = None) -> Array | list[Array]:
        """Return the values (horizon,) or (horizon, I) after each series; a list of them for a list.

        Args:
            X: series to go on from, of `context` steps at least; None for those of `fit`.

        Raises:
            TypeError, ValueError, sklearn.exceptions.NotFittedError: as `predict_quantiles`.
        """
        found = self.predict_quantiles(X)
        middle = len(self._plan.levels) // 2
        return [values[..., middle] for values in found] if isinstance(found, list) else found[..., middle]

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the mean absolute scaled error of forecasts of all windows of series.

        The errors are divided by those of repeating the last season, or the last value, within the series: -1
        is as good as that, 0 without an error.

        Args:
            X: series as in `fit`.
            y: not used.

        Raises:
            TypeError, ValueError, sklearn.exceptions.NotFittedError: as `predict`.
        """
        check_is_fitted(self, "model_")
        series, errors = self._series(X, False), []
        (context, horizon, *_), back = self._plan, self._back
        for values in series:
            x, y = windows(values, context, horizon, horizon)
            if not len(x):
                raise ValueError(
                    f"X: expected context + horizon = {context + horizon} steps at least, got {len(values)}"
                )
            found: Any = self.predict(list(x))
            scale = np.abs(values[back:] - values[:-back]).mean(axis=0)
            errors.append(float((np.abs(y - np.stack(found)) / np.where(scale > 0, scale, 1.0)).mean()))
        return -float(np.mean(errors))


def _ranks(X: Any) -> list[int]:
    """Return the number of axes of each series."""
    return [np.ndim(values) for values in (X if isinstance(X, (list, tuple)) else [X])]
