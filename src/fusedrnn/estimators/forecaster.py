"""Forecaster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

import fusedrnn as fr
from fusedrnn.arrays import Array
from fusedrnn.checks import check_size, shown
from fusedrnn.estimators.base import SequenceEstimator
from fusedrnn.estimators.densities import DENSITIES, of_known, of_quantiles
from fusedrnn.estimators.plan import Plan
from fusedrnn.estimators.unchanged import unchanged_by_errors
from fusedrnn.estimators.windowed import (
    Windows,
    context_inputs,
    known_before,
    laid_out,
    prepared,
    ranks_of,
    repeated,
    series_of,
    split,
    starts,
    step_inputs,
)
from fusedrnn.preprocessing import Scaler, windows

# Paths that quantiles are those of, where a network emits densities.
_PATHS = 200


def _refuse_y(y: Any) -> None:
    """Refuse what would be left out without a word: covariates, say."""
    if y is not None:
        raise TypeError(
            f"y: expected None, got {shown(y)}; series are X alone, and what is known ahead its last "
            "features, as in Forecaster(covariates=1).fit(np.column_stack([series, known]))"
        )


class Forecaster(SequenceEstimator):
    """The next `horizon` values of series: points, quantiles, or samples of what may come.

    Every window of `context` steps is scaled by its own mean and deviation, and a recurrent network reads it.
    A linear layer gives all steps ahead at once, as differences from the last season's values, or from the
    last value without one. Points are medians (absolute error), or of `quantiles` the middle one.

    With a `distribution` the network gives the density of the next value, and reads it in turn: `sample`
    draws paths step by step, and quantiles are those of 200 of them.

    X is one series (T,) or (T, I + C), or a list of them, of which the first I features are forecast; y is
    None. NaN is a missing value: the last one seen stands in its place, the network is told for how long,
    if series of `fit` had some, and no loss is taken there.

    Args:
        horizon: steps ahead, >= 1.
        context: steps that are read.
        season: steps of a season, or None.
        quantiles: numbers in (0, 1), ascending, or None for points alone.
        ARGUMENTS
        covariates: C, the last features of X, which are known ahead (hours, prices, holidays) and not
            forecast. The series of `predict` end with `horizon` steps of them, whose other values are
            ignored.
        distribution: "gaussian" or "student_t", or None for quantiles.

    Raises:
        TypeError, ValueError: `fit` raises them, also for what was wrong here.

    Attributes:
        model_: the network, a `fusedrnn.Sequential`; with a distribution a `fusedrnn.Stateful`.
        history_: figures of each epoch.
        n_features_in_: I + C.
        n_iter_: epochs so far.

    Papers: Salinas et al. 2017, DeepAR, arXiv:1704.04110; Wen et al. 2017, A multi-horizon quantile
        recurrent forecaster, arXiv:1711.11053.
    """

    _plan: Plan

    horizon: int
    context: int
    season: int | None
    quantiles: Sequence[float] | None
    covariates: int
    distribution: str | None

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
        covariates: int = 0,
        distribution: str | None = None,
    ) -> None:
        self._set_parameters(locals())

    def fit(self, X: Any, y: Any = None) -> Forecaster:
        """Train on all windows of one or more series; return self.

        Args:
            X: a series (T,) or (T, I + C) of numbers, NaN where one is missing, or a list of them, long
                enough for a window and its horizon.
            y: None.

        Raises:
            TypeError: an argument or a parameter of the wrong kind.
            ValueError: one out of range or of another shape, or series that are too short.
            ArithmeticError: training diverged; it says why.
        """
        _refuse_y(y)
        again = self._goes_on()
        with unchanged_by_errors(self, again):
            self._fit(X, again, self.epochs, self.schedule, self.patience)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Forecaster:
        """Make one pass over the windows of series, from the present weights; return self.

        Args:
            X: as in `fit`.
            y: None.

        Raises:
            TypeError, ValueError, ArithmeticError: as `fit`.
        """
        _refuse_y(y)
        again = self._goes_on(always=True)
        with unchanged_by_errors(self, again):
            self._fit(X, again, 1, None, None)
        return self

    def _fit(self, X: Any, again: bool, epochs: int, schedule: str | None, patience: int | None) -> None:
        plan = Plan.of(self)
        for name, old, new in zip(Plan._fields, self._plan, plan, strict=True) if again else ():
            if name not in ("context", "season") and old != new:
                raise ValueError(f"{name}: expected {old!r}, for which the network was made, got {new!r}")
        series = series_of(X, self.n_features_in_ if again else None, plan.covariates)
        self.n_features_in_ = series[0].shape[1]
        self._plan = plan
        whole = plan.context + plan.horizon
        x = np.concatenate([windows(values, whole)[0] for values in series])
        if not len(x):
            raise ValueError(
                f"X: expected series of context + horizon = {whole} steps at least, "
                f"got {max(len(values) for values in series)}"
            )
        # Windows of which nothing is known before the horizon, or nothing in it, teach nothing.
        y = x[..., : self._targets_in]
        there = ~np.isnan(y)
        x = x[known_before(y, plan.context) & there[:, plan.context :].any(axis=(1, 2))]
        if not len(x):
            raise ValueError("X: expected windows with values before and in the horizon, got NaN in all")
        self._vocabulary = None
        if not again:
            self._gaps = not there.all()
            known = np.concatenate([values[:, self._targets_in :] for values in series])
            self._known = Scaler().fit(known) if plan.covariates else None
        seen = self._prepare(x)
        inputs, targets = self._inputs(seen), self._differences(seen, x)
        if not again:
            # Differences are small where the season repeats well: the network's output is of size 1.
            size = np.nanmean(np.abs(targets), axis=(0, 1))
            self._unit = np.where(size > 0.0, size, 1.0)
            self._start(list(inputs[:1]))
        targets = (targets / self._unit).astype(np.float32)
        self._last_series = [values[-plan.context :].copy() for values in series]
        self._ranks, self._single = ranks_of(X), not isinstance(X, (list, tuple))
        self._per_step = self._reads_ahead
        self._train(list(inputs), list(targets) if self._per_step else targets, epochs, schedule, patience)

    @property
    def _targets_in(self) -> int:
        """I, how many features are forecast."""
        return self.n_features_in_ - self._plan.covariates

    @property
    def _reads_ahead(self) -> bool:
        """Whether the network has an output for each step that it reads."""
        return self._plan.distribution is not None or self._plan.covariates > 0

    def _prepare(self, x: Array) -> Windows:
        """Return windows (N, context + horizon, I + C) scaled."""
        count = self._targets_in
        known = x[..., count:]
        if self._known is not None:
            known = self._known.transform(known)
        return prepared(x[..., :count], self._plan.context, self._plan.back, known)

    def _inputs(self, seen: Windows) -> Array:
        plan = self._plan
        if plan.distribution is None:
            return context_inputs(seen, plan.context, self._gaps)
        return step_inputs(seen, 0, plan.context + plan.horizon - 1, self._gaps, plan.season)

    def _differences(self, seen: Windows, x: Array) -> Array:
        """Return what the network is to say, NaN where it is not known: (N, horizon, I), or for each step."""
        context, count = self._plan.context, self._targets_in
        if self._plan.distribution is not None:
            scaled = np.where(seen.mask, seen.values, np.nan)
            return scaled[:, 1:] - starts(seen, 0, x.shape[1] - 1, self._plan.season)
        ahead = (x[:, context:, :count] - seen.base) / seen.deviation
        if not self._reads_ahead:
            return ahead
        return np.concatenate([np.full((len(x), context, count), np.nan), ahead], axis=1)

    def _make_model(self, inputs: int, seed: int) -> fr.Module:
        layers, size = self._body(inputs, seed)
        plan, count = self._plan, self._targets_in
        # Zero: an untrained network forecasts the last season.
        if plan.distribution is not None:
            layers["head"] = fr.Linear(size, count * DENSITIES[plan.distribution].size, init=None)
            return fr.Stateful(layers)
        if plan.covariates:
            layers["head"] = fr.Linear(size, count * len(plan.quantiles), init=None)
        else:
            layers["pool"] = fr.Pool("last", size)
            layers["head"] = fr.Linear(size, plan.horizon * count * len(plan.quantiles), init=None)
        return fr.Sequential(layers)

    def _loss(self, output: Array, targets: Array) -> tuple[float, Array]:
        name, parts = self._plan.distribution, split(output, targets.shape)
        loss = of_quantiles(self._plan.quantiles) if name is None else DENSITIES[name].loss
        value, gradient = of_known(loss, parts, targets)
        return value, gradient.reshape(output.shape)

    def _windows_of(self, X: Any) -> tuple[Array, list[int], bool]:
        """Return the last windows (N, context + horizon, I + C), the axes of series, and whether X is one."""
        check_is_fitted(self, "model_")
        context, horizon, *_, covariates, _ = self._plan
        if X is None and covariates:
            raise ValueError("X: expected series that end with the covariates of the horizon, got None")
        series = self._last_series if X is None else series_of(X, self.n_features_in_, covariates)
        least = context + (horizon if covariates else 0)
        found = np.full((len(series), context + horizon, self.n_features_in_), np.nan)
        for index, values in enumerate(series):
            if len(values) < least:
                wanted = f"context{' + horizon' if covariates else ''} = {least}"
                raise ValueError(f"X[{index}]: expected {wanted} steps at least, got {len(values)}")
            found[index, :least] = values[-least:]
            found[index, context:, : self._targets_in] = np.nan
        there = known_before(found[..., : self._targets_in], context)
        if not there.all():
            index = int(there.argmin())
            raise ValueError(f"X[{index}]: expected a value in the last {context} steps, got NaN alone")
        return (
            (found, self._ranks, self._single)
            if X is None
            else (found, ranks_of(X), not isinstance(X, (list, tuple)))
        )

    def sample(self, X: Any = None, num_samples: int = 100, random_state: Any = None) -> Array | list[Array]:
        """Return paths (num_samples, horizon, I) of the values after each series, without I of (T,).

        Args:
            X: as in `predict_quantiles`.
            num_samples: paths for each series, >= 1.
            random_state: int, Generator or None, for numpy.random.default_rng.

        Raises:
            TypeError, ValueError: X is not what `fit` had, or too short; there is no distribution.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        x, ranks, single = self._windows_of(X)
        if self._plan.distribution is None:
            raise ValueError("distribution: expected one for samples, as 'gaussian', got None")
        found = self._paths(x, check_size("num_samples", num_samples), np.random.default_rng(random_state))
        return laid_out(found, ranks, single, -1)

    def _paths(self, x: Array, count: int, rng: np.random.Generator) -> Array:
        """Return paths (N, count, horizon, I) after the contexts of windows."""
        plan, model, seen = self._plan, self.model_.eval(), self._prepare(x)
        density, state = DENSITIES[str(plan.distribution)], None
        if plan.context > 1:
            before = step_inputs(seen, 0, plan.context - 1, self._gaps, plan.season)
            _, state = model(np.ascontiguousarray(before.swapaxes(0, 1)))
        state = repeated(state, count)
        paths = Windows(*[np.repeat(part, count, axis=0) for part in seen])
        for step in range(plan.context - 1, x.shape[1] - 1):
            inputs = step_inputs(paths, step, step + 1, self._gaps, plan.season)
            output, state = model(np.ascontiguousarray(inputs.swapaxes(0, 1)), state)
            start = starts(paths, step, step + 1, plan.season)[:, 0]
            paths.values[:, step + 1] = start + self._unit * density.draw(split(output[0], start.shape), rng)
            paths.mask[:, step + 1], paths.since[:, step + 1] = True, 0
        ahead = paths.values[:, plan.context :] * paths.deviation + paths.mean
        return ahead.reshape(len(x), count, *ahead.shape[1:])

    def predict_quantiles(self, X: Any = None) -> Array | list[Array]:
        """Return the quantiles (horizon, I, Q) of the values after each series, without I of (T,).

        Args:
            X: series to go on from, of `context` steps at least, or None for those of `fit`. With
                covariates the last `horizon` steps are those to forecast, whatever values stand there: append
                steps of NaN and the covariates that are known.

        Raises:
            TypeError, ValueError: X is not what `fit` had, or too short.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        x, ranks, single = self._windows_of(X)
        if self._plan.distribution is None:
            found = self._quantiles(x)
        else:  # a few series at a time: there are many paths of each
            rng, pieces = np.random.default_rng(self._seed), np.array_split(x, -(-len(x) // 64))
            paths = [
                np.quantile(self._paths(some, _PATHS, rng), self._plan.quantiles, axis=1) for some in pieces
            ]
            found = np.moveaxis(np.concatenate(paths, axis=1), 0, -1)
        return laid_out(found, ranks, single, 1)

    def _quantiles(self, x: Array) -> Array:
        """Return the quantiles (N, horizon, I, Q) that the network gives for windows."""
        seen = self._prepare(x)
        output = self.model_.eval()(np.ascontiguousarray(self._inputs(seen).swapaxes(0, 1)))
        if self._reads_ahead:
            output = output[self._plan.context :].swapaxes(0, 1)
        # Sorted: quantiles must not cross.
        steps = np.sort(split(output, seen.base.shape).astype(np.float64), axis=-1)
        found: Array = seen.base[..., None] + (seen.deviation * self._unit)[..., None] * steps
        return found

    def predict(self, X: Any = None) -> Array | list[Array]:
        """Return the values (horizon,) or (horizon, I) after each series; a list of them for a list.

        Args:
            X: as in `predict_quantiles`.

        Raises:
            TypeError, ValueError, sklearn.exceptions.NotFittedError: as `predict_quantiles`.
        """
        found = self.predict_quantiles(X)
        middle = len(self._plan.quantiles) // 2
        return [values[..., middle] for values in found] if isinstance(found, list) else found[..., middle]

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the mean absolute scaled error of forecasts of all windows of series.

        The errors are divided by those of repeating the last season, or the last value, within the series: -1
        is as good as that, 0 without an error.

        Args:
            X: series as in `fit`.
            y: None.

        Raises:
            TypeError, ValueError, sklearn.exceptions.NotFittedError: as `predict`.
        """
        _refuse_y(y)
        check_is_fitted(self, "model_")
        (context, horizon, *_, covariates, _), back, errors = self._plan, self._plan.back, []
        for values in series_of(X, self.n_features_in_, covariates):
            whole = windows(values, context + horizon, horizon)[0]
            if not len(whole):
                raise ValueError(
                    f"X: expected context + horizon = {context + horizon} steps at least, got {len(values)}"
                )
            whole = whole[known_before(whole[..., : self._targets_in], context)]
            if not len(whole):
                raise ValueError(
                    f"X: expected windows with a value in {context} steps, got NaN in all of one"
                )
            found: Any = self.predict(list(whole if covariates else whole[:, :context]))
            y, targets = whole[:, context:, : self._targets_in], values[:, : self._targets_in]
            scale = np.nanmean(np.abs(targets[back:] - targets[:-back]), axis=0)
            errors.append(float(np.nanmean(np.abs(y - np.stack(found)) / np.where(scale > 0, scale, 1.0))))
        return -float(np.mean(errors))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
