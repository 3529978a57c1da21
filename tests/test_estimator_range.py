"""Estimators and scales of values of any magnitude: a power of two changes no digit of what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fusedrnn.estimators import AnomalyDetector, Forecaster, SequenceRegressor
from fusedrnn.preprocessing import Scaler

pytestmark = [pytest.mark.once, pytest.mark.parametrize("power", [996, -996])]

RNG = np.random.default_rng(0)
OPTIONS: dict[str, Any] = {"hidden_size": 4, "epochs": 2, "random_state": 0}


def test_targets_of_a_regressor(power: int) -> None:
    """Predictions were infinities: the squares of the targets left the range."""
    X, y = [RNG.standard_normal((5, 2)) for _ in range(10)], RNG.standard_normal((10, 2))
    want = SequenceRegressor(**OPTIONS).fit(X, y).predict(X)
    found = SequenceRegressor(**OPTIONS).fit(X, np.ldexp(y, power)).predict(X)
    np.testing.assert_array_equal(found, np.ldexp(want, power))


@pytest.mark.parametrize("distribution", [None, "gaussian"])
def test_series_of_a_forecaster(power: int, distribution: str | None) -> None:
    series = np.sin(np.arange(40) / 3) + 0.1 * RNG.standard_normal(40)
    series[7] = np.nan

    def forecast(values: Any) -> Any:
        model = Forecaster(horizon=2, context=8, distribution=distribution, **OPTIONS)
        return model.fit(values).predict()

    np.testing.assert_array_equal(forecast(np.ldexp(series, power)), np.ldexp(forecast(series), power))


def test_scores_of_a_detector(power: int) -> None:
    series = np.sin(np.arange(40) / 3)

    def scores(values: Any) -> Any:
        return AnomalyDetector(Forecaster(horizon=2, context=8, **OPTIONS)).fit(values).score_samples(values)

    np.testing.assert_array_equal(scores(np.ldexp(series, power)), scores(series))


@pytest.mark.parametrize("per", ["feature", "series"])
def test_scales(power: int, per: Any) -> None:
    x = RNG.standard_normal((20, 3)) + 5
    found = Scaler(per).fit_transform(np.ldexp(x, power))
    np.testing.assert_array_equal(found, Scaler(per).fit_transform(x))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-14)
