"""AnomalyDetector: what it finds, its threshold, and what it refuses."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from fusedrnn.estimators import AnomalyDetector, Forecaster, SequenceRegressor

pytestmark = pytest.mark.once

STEPS = np.arange(500)
BEATS = np.sin(STEPS * 2 * np.pi / 25) + 0.05 * np.random.default_rng(0).standard_normal(500)


def detector(**options: Any) -> AnomalyDetector:
    model = Forecaster(3, 30, hidden_size=8, epochs=4, random_state=0)
    return AnomalyDetector(model, smooth=4, contamination=0.02, **options)


@pytest.fixture(scope="module")
def trained() -> AnomalyDetector:
    return detector().fit(BEATS[:400])


def test_a_step_is_judged_by_all_forecasts_that_reach_it(trained: AnomalyDetector) -> None:
    """By hand, for one step: the forecasts from 1, 2 and 3 steps before, in units of training's errors."""
    trained_errors = trained._errors(BEATS[:400])[0][30:]
    assert trained_errors.mean() == pytest.approx(trained._unit, rel=1e-9)
    gaps = [abs(trained.forecaster_.predict(BEATS[: 100 - k])[k] - BEATS[100]) for k in range(3)]
    assert trained._errors(BEATS)[0][100] == pytest.approx(np.mean(gaps), rel=1e-5)
    scores = trained.score_samples(BEATS)
    around = [trained._errors(BEATS)[0][t] for t in range(98, 102)]
    assert -scores[100] == pytest.approx(np.mean(around) / trained._unit, rel=1e-5)
    assert not scores[:30].any()


def test_it_finds_what_is_new(trained: AnomalyDetector) -> None:
    strange = BEATS.copy()
    strange[450:456] = 0.0
    assert 446 <= trained.score_samples(strange).argmin() <= 460
    found = trained.predict(strange)
    assert set(np.unique(found)) == {-1, 1} and (found[446:460] == -1).any() and (found[:30] == 1).all()
    assert np.array_equal(found < 0, trained.decision_function(strange) < 0)
    # The threshold leaves the share of the training steps that was asked for.
    assert np.mean(trained.predict(BEATS[:400])[30:] == -1) == pytest.approx(0.02, abs=0.006)


def test_lists_several_features_and_copies(trained: AnomalyDetector) -> None:
    both = trained.predict([BEATS, BEATS[100:300]])
    assert [len(values) for values in both] == [500, 200] and np.array_equal(both[0], trained.predict(BEATS))
    again = pickle.loads(pickle.dumps(trained))
    assert np.array_equal(again.score_samples(BEATS), trained.score_samples(BEATS))
    wide = clone(trained).fit(np.stack([BEATS, BEATS[::-1]], -1))
    assert wide.n_features_in_ == 2 and wide.score_samples(np.stack([BEATS, BEATS], -1)).shape == (500,)
    assert not hasattr(trained.forecaster, "model_")  # a copy was trained


def test_errors(trained: AnomalyDetector) -> None:
    with pytest.raises(NotFittedError):
        detector().predict(BEATS)
    with pytest.raises(ValueError, match=r"X: expected series of context \+ horizon = 33 steps, got 20"):
        trained.predict(BEATS[:20])
    with pytest.raises(ValueError, match=r"contamination: expected a number in \[0, 0.5\], got 0.6"):
        AnomalyDetector(contamination=0.6).fit(BEATS)
    with pytest.raises(ValueError, match="smooth: expected"):
        AnomalyDetector(smooth=0).fit(BEATS)
    with pytest.raises(TypeError, match="forecaster: expected a Forecaster or None, got SequenceRegressor"):
        AnomalyDetector(SequenceRegressor()).fit(BEATS)
