"""`Forecaster` with missing values, covariates and densities; imputation, batches by length, tokenizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone

from fusedrnn.estimators import AnomalyDetector, Forecaster
from fusedrnn.estimators.densities import DENSITIES, of_known, of_quantiles
from fusedrnn.preprocessing import Tokenizer, buckets, impute, windows

pytestmark = pytest.mark.once

SMALL: dict[str, Any] = {"hidden_size": 16, "epochs": 20, "lr": 0.02, "random_state": 0}


def wave(count: int = 500, noise: float = 0.1, seed: int = 0) -> Any:
    return np.sin(np.arange(count) * 2 * np.pi / 12) + noise * np.random.default_rng(seed).standard_normal(
        count
    )


# Missing values ---------------------------------------------------------------------------------------------


def test_missing_values() -> None:
    """A fifth is missing, a piece of two seasons, too; what comes is known all the same."""
    whole = wave(noise=0.05)
    series = whole.copy()
    series[np.random.default_rng(1).random(500) < 0.15] = np.nan
    series[100:125] = np.nan
    model = Forecaster(6, 24, season=12, **SMALL).fit(series[:400])
    contexts, wanted = windows(series[376:], 24, 6, 6)[0], windows(whole[376:], 24, 6, 6)[1]
    assert np.abs(np.stack(model.predict(list(contexts))) - wanted).mean() < 0.12
    assert -2.0 < model.score(series[350:]) < 0.0
    # The network is told: the same values with and without a gap are not the same.
    one, other = whole[:24].copy(), whole[:24].copy()
    one[-1], other[-1] = np.nan, one[-2]
    assert not np.array_equal(model.predict(one), model.predict(other))


@pytest.mark.parametrize("distribution", [None, "gaussian"])
def test_what_is_missing_is_left_out(distribution: str | None) -> None:
    """Nothing depends on what would stand in a gap, and a gap as long as a window parts two series."""
    parts = [wave(60), wave(60, seed=1)]
    options = {"distribution": distribution, **SMALL}
    gap = np.full(15, np.nan)
    model = Forecaster(3, 12, **options).fit(np.concatenate([parts[0], gap, parts[1]]))
    assert np.isfinite(model.history_["loss"]).all() and np.isfinite(model.predict()).all()
    with pytest.raises(ValueError, match=r"^X: expected windows with values before and in the horizon"):
        Forecaster(3, 12, **options).fit(np.full(50, np.nan))
    with pytest.raises(ValueError, match=r"^X\[0\]: expected a value in the last 12 steps, got NaN alone"):
        model.predict(gap)
    with pytest.raises(ValueError, match=r"^X\[0\]: expected finite values, or NaN for missing ones"):
        model.fit(np.array([1.0, np.inf] * 30))


def test_complete_series_and_those_without_a_value_or_two_have_the_same_network() -> None:
    assert Forecaster(3, 12, epochs=0).fit(wave(60)).model_.num_parameters < (
        Forecaster(3, 12, epochs=0).fit(np.r_[wave(60), np.nan]).model_.num_parameters
    )


def test_what_a_forecast_starts_from() -> None:
    """The season before, or that before it where there is a gap, or else the value last seen."""
    series = wave(400)
    gaps = series.copy()
    gaps[[390, 391, 379]] = np.nan
    found = Forecaster(12, 36, season=12, epochs=0).fit(gaps).predict()
    np.testing.assert_allclose(found, series[[388, 389, 378, 367, *range(392, 400)]])
    gaps[[367]] = np.nan
    assert Forecaster(12, 36, season=12, epochs=0).fit(gaps).predict()[3] == pytest.approx(series[389])


def test_an_anomaly_is_no_missing_value() -> None:
    series = wave(400)
    detector = AnomalyDetector(Forecaster(4, 24, **SMALL)).fit(series[:300])
    series[330:345] = np.nan
    series[370] += 4.0
    scores = detector.score_samples(series)
    assert np.isfinite(scores).all() and abs(int(scores.argmin()) - 370) < 8


# What is known ahead ----------------------------------------------------------------------------------------


def promoted(count: int, seed: int) -> Any:
    """Sales (T, 2) that a promotion doubles, which nothing but the second column foretells."""
    rng = np.random.default_rng(seed)
    on = (rng.random(count) < 0.3).astype(float)
    return np.stack([10 + 8 * on + 0.3 * rng.standard_normal(count), on], axis=1)


@pytest.mark.parametrize("distribution", [None, "gaussian"])
def test_covariates(distribution: str | None) -> None:
    series, held = promoted(600, 0), promoted(200, 1)
    model = Forecaster(5, 20, covariates=1, distribution=distribution, **SMALL).fit(series)
    x, y = windows(held, 20, 5, 5)
    given = np.concatenate([x, y], axis=1)
    found = np.stack(model.predict(list(given)))
    assert found.shape == (len(x), 5, 1)
    assert np.abs(found[..., 0] - y[..., 0]).mean() < 1.0
    assert model.score(held) > -0.3
    given[:, 20:, 0] = np.nan  # what is to be forecast is not looked at
    np.testing.assert_array_equal(np.stack(model.predict(list(given))), found)
    assert model.predict(given[0]).shape == (5, 1)
    with pytest.raises(ValueError, match=r"^X: expected series that end with the covariates of the horizon"):
        model.predict()
    with pytest.raises(ValueError, match=r"^X\[0\]: expected context \+ horizon = 25 steps at least, got 20"):
        model.predict(x[0])
    with pytest.raises(ValueError, match=r"^X\[0\]: expected more than C = 2 features, got \(600, 2\)"):
        Forecaster(5, 20, covariates=2).fit(series)
    with pytest.raises(ValueError, match=r"^covariates: expected 1, for which the network was made, got 0"):
        clone(model).set_params(warm_start=True).fit(series).set_params(covariates=0).fit(series)
    given[0, 3, 1] = np.nan
    with pytest.raises(ValueError, match=r"^X\[0\]: expected covariates, the last 1 features, without NaN"):
        model.predict(list(given))
    with pytest.raises(ValueError, match=r"^forecaster: expected one without covariates"):
        AnomalyDetector(model).fit(series)


# Samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["gaussian", "student_t"])
def test_samples_spread_as_the_paths_do(distribution: str) -> None:
    """A walk of independent steps: after h of them its deviation is the square root of h."""
    rng = np.random.default_rng(0)
    series = [np.cumsum(rng.standard_normal(120)) for _ in range(20)]
    options = {**SMALL, "epochs": 5, "lr": 0.01, "quantiles": [0.1, 0.5, 0.9]}
    model = Forecaster(8, 24, distribution=distribution, **options).fit(series)
    paths = np.stack(model.sample(num_samples=200, random_state=1))
    assert paths.shape == (20, 200, 8)
    spread = (paths - paths.mean(axis=1, keepdims=True)).std(axis=(0, 1))
    np.testing.assert_allclose(spread, np.sqrt(np.arange(1, 9)), rtol=0.3)
    np.testing.assert_array_equal(np.stack(model.sample(num_samples=200, random_state=1)), paths)
    quantiles = np.stack(model.predict_quantiles())
    assert quantiles.shape == (20, 8, 3) and (np.diff(quantiles, axis=-1) > 0).all()
    ends = np.stack(model.predict(series))
    assert np.abs(ends[:, 0] - [one[-1] for one in series]).mean() < 0.5


def test_samples_of_a_season() -> None:
    series = np.stack([wave(), wave(seed=1)], axis=1)
    model = Forecaster(18, 36, season=12, distribution="gaussian", **SMALL).fit(series[:400])
    x, y = windows(series[364:], 36, 18, 18)
    assert model.sample(x[0], 7).shape == (7, 18, 2)
    assert np.abs(np.stack(model.predict(list(x))) - y).mean() < 0.2
    untrained = Forecaster(15, 36, season=12, distribution="gaussian", epochs=0).fit(series)
    repeated = untrained.set_params()._paths(untrained._windows_of(None)[0], 1, Still())
    np.testing.assert_allclose(repeated[0, 0], series[[*range(488, 500), 488, 489, 490]])


class Still(np.random.Generator):
    """Draws nothing but the mean."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def standard_normal(self, size: Any = None, dtype: Any = None, out: Any = None) -> Any:
        return np.zeros(size)


def test_covariates_in_the_place_of_y_are_refused() -> None:
    """They would be left out without a word."""
    model = Forecaster(6, 24, hidden_size=4, epochs=1)
    series, known = wave(100), wave(100)
    calls = (model.fit, model.partial_fit, model.score)
    for call in calls:
        with pytest.raises(
            TypeError, match=r"^y: expected None, got ndarray of shape \(100,\); series are X"
        ):
            call(series, known)
    assert not hasattr(model, "model_")


def test_refused_densities() -> None:
    series = wave(100)
    for options, message in (
        ({"distribution": "cauchy"}, "distribution: expected 'gaussian', 'student_t' or None"),
        ({"distribution": ["gaussian"]}, "distribution: expected 'gaussian', 'student_t' or None"),
        ({"distribution": "gaussian", "bidirectional": True}, "bidirectional: expected False"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Forecaster(3, 12, **options).fit(series)
    with pytest.raises(ValueError, match=r"^distribution: expected one for samples"):
        Forecaster(3, 12, epochs=0).fit(series).sample()


@pytest.mark.parametrize("name", [*DENSITIES, "quantiles"])
def test_gradients_of_known_targets(name: str) -> None:
    """By differences; those of missing targets are 0, and the mean is that of the others alone."""
    loss = of_quantiles([0.2, 0.5, 0.7]) if name == "quantiles" else DENSITIES[name].loss
    rng = np.random.default_rng(0)
    output = rng.standard_normal((4, 3, 2 if name == "gaussian" else 3))
    targets = rng.standard_normal((4, 3))
    targets[1, 1] = targets[2, 0] = np.nan
    value, gradient = of_known(loss, output, targets)
    known = ~np.isnan(targets)
    assert value == pytest.approx(of_known(loss, output[known], targets[known])[0])
    differences = np.zeros_like(output)
    for index in np.ndindex(output.shape):
        step = np.zeros_like(output)
        step[index] = 1e-6
        up, down = (of_known(loss, output + sign * step, targets)[0] for sign in (1, -1))
        differences[index] = (up - down) / 2e-6
    # Student's logarithm of five degrees is a float32.
    np.testing.assert_allclose(gradient, differences, atol=1e-7)
    assert not gradient[1, 1].any()


@pytest.mark.parametrize("name", DENSITIES)
def test_draws_follow_the_density(name: str) -> None:
    """The mean loss of a density's own draws is its entropy, lower than that of any other parameters."""
    density, rng = DENSITIES[name], np.random.default_rng(0)
    output = np.broadcast_to(np.array([0.5, -0.4, 0.3])[: density.size], (40000, density.size)).copy()
    drawn = density.draw(output, rng)
    own = of_known(density.loss, output, drawn)
    assert np.abs(own[1].sum(axis=0)).max() < 0.02  # the gradient of the mean is 0 at the truth
    assert np.median(drawn) == pytest.approx(0.5, abs=0.02)


# Preparation ------------------------------------------------------------------------------------------------


def test_impute() -> None:
    nan = np.nan
    series = np.array([[nan, 1.0], [2.0, nan], [nan, nan], [nan, 4.0]], np.float32)
    values, mask, since = impute(series, fill=-1.0)
    np.testing.assert_array_equal(values, [[-1, 1], [2, 1], [2, 1], [2, 4]])
    np.testing.assert_array_equal(mask, ~np.isnan(series))
    np.testing.assert_array_equal(since, [[1, 0], [0, 1], [1, 2], [2, 0]])
    assert values.dtype == since.dtype == np.float32
    np.testing.assert_array_equal(impute(series, carry=False).values, np.nan_to_num(series))
    several = impute(np.stack([series, series[::-1]]))
    np.testing.assert_array_equal(several.values[1], [[0, 4], [0, 4], [2, 4], [2, 1]])
    assert impute(np.empty((2, 0, 3))).values.shape == (2, 0, 3)
    with pytest.raises(TypeError, match=r"^series: expected floats, got int64"):
        impute(np.ones((3, 2), np.int64))
    with pytest.raises(ValueError, match=r"^series: expected shape \(\.\.\., T, I\), got \(3,\)"):
        impute(np.ones(3))
    with pytest.raises(ValueError, match=r"^fill: expected a number that float32 holds, got 1e\+300"):
        impute(series, fill=1e300)
    long = impute(np.full((70_000, 1), nan, np.float16)).since
    assert np.isfinite(long).all() and long[-1] == np.finfo(np.float16).max


def test_buckets() -> None:
    """All of them once; in a batch of about the same length, in another order for each epoch."""
    lengths = np.random.default_rng(0).integers(1, 100, 1000)
    found = buckets(lengths, 10, seed=3)
    np.testing.assert_array_equal(np.sort(np.concatenate(found)), np.arange(1000))
    assert {len(one) for one in found} == {10}
    assert np.mean([np.ptp(lengths[one]) for one in found]) < 12
    assert any((one != other).any() for one, other in zip(found, buckets(lengths, 10, 3, 1), strict=True))
    assert [len(one) for one in buckets([3, 1, 2, 4, 5], 4, least=2)] == [5]
    assert buckets([], 4) == []
    with pytest.raises(ValueError, match=r"^lengths: expected integers"):
        buckets([0.5], 4)
    with pytest.raises(ValueError, match=r"^lengths: expected integers >= 0, got -1"):
        buckets([3, -1], 4)
    with pytest.raises(ValueError, match=r"^batch_size: expected an int >= 1"):
        buckets([1], 0)


class Letters:
    """A tokenizer of letters as Hugging Face's look."""

    class Encoding:
        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

    def encode(self, text: str) -> Encoding:
        return self.Encoding([ord(c) - 97 for c in text])

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + i) for i in ids)

    def get_vocab_size(self) -> int:
        return 26


class Pieces(Letters):
    """The same, as that of SentencePiece."""

    get_vocab_size = None
    get_piece_size = Letters.get_vocab_size

    def encode(self, text: str) -> Any:
        return super().encode(text).ids


def test_tokenizers() -> None:
    tokenizer = Tokenizer(Letters())
    numbers = tokenizer.encode("cab")
    assert numbers.dtype == np.int64 and numbers.tolist() == [2, 0, 1]
    assert tokenizer.decode(numbers) == "cab" and len(tokenizer) == 26
    assert repr(tokenizer) == "Tokenizer(of 26 tokens)"
    with pytest.raises(TypeError, match=r"^tokenizer: expected a tokenizer of"):
        Tokenizer("abc")
    with pytest.raises(TypeError, match=r"^text: expected a str"):
        tokenizer.encode(["a"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "kind", "message"),
    [
        ([1.5], TypeError, r"numbers \(T,\) of its encode, got float64 \(1,\)"),
        ([[1, 2]], TypeError, r"numbers \(T,\) of its encode, got int64 \(1, 2\)"),
        (None, TypeError, r"numbers \(T,\) of its encode, got object \(\)"),
        ([0, 26], ValueError, r"numbers in \[0, 26\) of its encode, got 0..26"),
        ([-1], ValueError, r"numbers in \[0, 26\) of its encode, got -1..-1"),
    ],
)
def test_a_tokenizer_that_gives_no_numbers(ids: Any, kind: type[Exception], message: str) -> None:
    class Wrong(Letters):
        def encode(self, text: str) -> Any:
            return ids

    with pytest.raises(kind, match=f"^tokenizer: expected {message}"):
        Tokenizer(Wrong()).encode("a")
    assert Tokenizer(Letters()).encode("").tolist() == []


def test_the_tokenizers_library() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = Tokenizer(made)
    assert tokenizer.encode("the black cat").tolist() == [0, 2, 1] and len(tokenizer) == 3
    assert tokenizer.decode([0, 1]) == "the cat"
