"""Estimators: scikit-learn's own checks, what they learn, inputs, pipelines and searches."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import fusedrnn as fr
from fusedrnn.estimators import Forecaster, SequenceClassifier, SequenceRegressor, SequenceTagger
from fusedrnn.preprocessing import Scaler, Vocabulary, windows

pytestmark = pytest.mark.once


# An array (N, T) is N series with one feature.
@parametrize_with_checks(
    [
        SequenceClassifier(hidden_size=8, epochs=30, lr=0.02, random_state=0),
        SequenceRegressor(hidden_size=8, epochs=30, lr=0.02, random_state=0),
    ]
)
def test_the_checks_of_scikit_learn(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def sequences(count: int = 80, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rng.integers(3, 12), 3)) for _ in range(count)]


def classes(X: list[Any]) -> Any:
    return np.array(["up" if x[:, 0].sum() > 0 else "down" for x in X])


SMALL: dict[str, Any] = {"hidden_size": 12, "epochs": 20, "lr": 0.02, "random_state": 0}


@pytest.fixture(scope="module")
def fitted() -> SequenceClassifier:
    X = sequences()
    return SequenceClassifier(**SMALL).fit(X, classes(X))


def test_a_classifier(fitted: SequenceClassifier) -> None:
    X = sequences(40, 1)
    assert fitted.score(X, classes(X)) > 0.85
    assert list(fitted.classes_) == ["down", "up"]
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (40, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(fitted.classes_[probabilities.argmax(axis=1)], fitted.predict(X))
    assert fitted.n_features_in_ == 3 and fitted.n_iter_ == 20 == len(fitted.history_["loss"])


def test_padding_makes_no_difference(fitted: SequenceClassifier) -> None:
    """Ragged lists, and arrays padded with NaN."""
    X = sequences(20, 1)
    padded, _ = fr.pad(X, batch_first=True, value=np.nan)
    np.testing.assert_array_equal(fitted.predict_proba(X), fitted.predict_proba(padded))
    again = clone(fitted).set_params(epochs=2).fit(padded, classes(X))
    ragged = clone(fitted).set_params(epochs=2).fit(X, classes(X))
    np.testing.assert_array_equal(again.predict_proba(X), ragged.predict_proba(X))


def test_copies(fitted: SequenceClassifier) -> None:
    X = sequences(10, 1)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    again.partial_fit(X, classes(X))
    assert clone(fitted).get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "model_")
    same = clone(fitted).fit(sequences(), classes(sequences()))
    np.testing.assert_array_equal(same.predict_proba(X), fitted.predict_proba(X))


def test_partial_fit_and_warm_start() -> None:
    X = sequences()
    y = classes(X)
    model = SequenceClassifier(**SMALL)
    for _ in range(15):
        model.partial_fit(X[:40], y[:40], classes=["down", "level", "up"])
        model.partial_fit(X[40:], y[40:])
    assert model.score(X, y) > 0.85 and model.predict_proba(X).shape == (80, 3)
    with pytest.raises(ValueError, match=r"^y: expected classes of"):
        model.partial_fit(X, ["sideways"] * 80)
    warm = SequenceClassifier(**{**SMALL, "epochs": 3}, warm_start=True).fit(X, y)
    first = warm.history_["loss"][0]
    warm.fit(X, y)
    assert warm.n_iter_ == 6 and warm.history_["loss"][3] < first
    assert warm.set_params(warm_start=False).fit(X, y).n_iter_ == 3


def test_patience_ends_training() -> None:
    X = sequences()
    model = SequenceClassifier(**{**SMALL, "epochs": 100}, schedule=None, patience=2).fit(X, classes(X))
    assert model.n_iter_ < 100 and "validation_loss" in model.history_
    with pytest.raises(ValueError, match="validation_fraction: expected a share"):
        SequenceClassifier(patience=2, validation_fraction=1.0).fit(X, classes(X))


def test_tokens() -> None:
    words = ["abba", "baba", "bbba", "aab", "ba", "bbab"] * 8
    y = [word[0] for word in words]
    model = SequenceClassifier(**SMALL).fit(words, y)
    assert model.score(words, y) == 1.0
    assert list(model.predict(["azzz", "bzz"])) == ["a", "b"]
    lists = [list(word) for word in words]
    np.testing.assert_array_equal(
        SequenceClassifier(**SMALL).fit(lists, y).predict_proba(lists), model.predict_proba(words)
    )
    with pytest.raises(TypeError, match=r"^X: expected strings"):
        model.predict(sequences(2))
    with pytest.raises(ValueError, match=r"^X\[1\]: expected at least one token"):
        model.predict(["a", ""])


def test_a_regressor() -> None:
    X = sequences()
    y = np.array([[x[:, 0].sum(), 1000 + x[-1, 1]] for x in X])
    model = SequenceRegressor(**{**SMALL, "epochs": 40}).fit(X, y)
    assert model.score(X, y) > 0.8
    assert model.predict(X).shape == (80, 2)
    with pytest.raises(ValueError, match=r"^y: expected shape"):
        model.partial_fit(X, y[:, 0])


@pytest.mark.parametrize("crf", [False, True])
def test_a_tagger(crf: bool) -> None:
    """Whether the sum so far is positive; in a pipeline's way, and through pickle."""
    X = sequences()
    y = [np.where(x[:, 0].cumsum() > 0, "P", "N") for x in X]
    model = SequenceTagger(crf, **SMALL).fit(X, y)
    assert model.score(X, y) > 0.9
    tags, probabilities = model.predict(X), model.predict_proba(X)
    for x, row, each in zip(X, tags, probabilities, strict=True):
        assert len(x) == len(row) == len(each)
        np.testing.assert_allclose(each.sum(axis=1), 1.0, rtol=1e-4)
    again = pickle.loads(pickle.dumps(model)).partial_fit(X, y)
    assert again.score(X, y) > 0.9
    with pytest.raises(ValueError, match=r"^y\[0\]: expected one for each step"):
        model.fit(X, [row[1:] for row in y])
    words = [["the", "cat", "sat"], ["a", "dog"]] * 10
    tagged = [["D", "N", "V"], ["D", "N"]] * 10
    assert SequenceTagger(crf, **SMALL).fit(words, tagged).score(words, tagged) == 1.0


def test_a_string_is_no_list_of_words() -> None:
    """Its characters would all be unknown, and tagged nevertheless."""
    model = SequenceTagger(hidden_size=4, epochs=1)
    for bad, index in ((["the cat sat"], 0), (["the", "cat"], 0), ([["the"], "cat"], 1)):
        fit = model.fit([["the", "cat"]], [["D", "N"]])
        with pytest.raises(
            TypeError, match=rf"^X\[{index}\]: expected a list of tokens, as in fit, got the s"
        ):
            fit.predict(bad)
    with pytest.raises(TypeError, match=r"^X\[1\]: expected a list of tokens"):
        model.fit([["the", "cat"], "sat"], [["D", "N"], ["V"] * 3])
    letters = model.fit([["a", "b"]], [["D", "N"]])
    assert np.array_equal(letters.predict(["ab"]), letters.predict([["a", "b"]]))


def wave(count: int = 400, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    steps = np.arange(count)
    return np.sin(steps * 2 * np.pi / 12) * (1 + 0.3 * np.sin(steps / 20)) + 0.1 * rng.standard_normal(count)


def test_a_forecaster() -> None:
    series = wave()
    model = Forecaster(6, 36, quantiles=[0.1, 0.5, 0.9], **SMALL).fit(series[:300])
    assert model.score(series[260:]) > -0.6
    assert model.predict().shape == (6,) and model.predict_quantiles().shape == (6, 3)
    assert (np.diff(model.predict_quantiles(), axis=-1) >= 0).all()
    np.testing.assert_array_equal(model.predict(), model.predict(series[:300]))
    x, y = windows(series[264:], 36, horizon=6)
    low, _, high = np.moveaxis(np.stack(model.predict_quantiles(list(x))), -1, 0)
    assert 0.5 < np.mean((low <= y) & (y <= high)) < 0.98
    np.testing.assert_allclose(
        model.predict(1e6 * series[:300] - 1e3), 1e6 * model.predict() - 1e3, rtol=1e-3, atol=1e4
    )


def test_an_untrained_forecaster_repeats_the_season() -> None:
    both = np.stack([wave(), wave(seed=1)], axis=1)
    model = Forecaster(15, 36, season=12, epochs=0).fit([both, both[:200]])
    first, second = model.predict()
    np.testing.assert_allclose(first, both[[*range(388, 400), 388, 389, 390]])
    assert second.shape == (15, 2)
    assert Forecaster(3, 10, epochs=0).fit(both[:, 0]).predict(np.arange(20.0)).tolist() == [19.0] * 3
    for bad, message in (
        ({"season": 48}, "season: expected at most"),
        ({"quantiles": [0.9, 0.1]}, "quantiles: expected ascending"),
        ({"context": 500}, "X: expected series of context"),
        ({"horizon": 0}, "horizon: expected"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Forecaster(**{"horizon": 3, "context": 36, **bad}).fit(both)


def test_a_search_improves_on_the_default() -> None:
    """On data that no part of the search has seen."""
    X, held_out = sequences(), sequences(200, 1)
    poor = SequenceClassifier(hidden_size=2, epochs=2, lr=1e-4, random_state=0)
    search = GridSearchCV(poor, {"lr": [1e-4, 0.03], "hidden_size": [2, 8], "epochs": [2, 15]}, cv=2)
    search.fit(X, classes(X))
    default = clone(poor).fit(X, classes(X)).score(held_out, classes(held_out))
    assert search.best_params_["lr"] == 0.03
    assert search.score(held_out, classes(held_out)) > default + 0.2


def test_pipelines() -> None:
    X = sequences()
    first = FunctionTransformer(lambda X: [x[:, :1] for x in X])
    model = make_pipeline(first, SequenceClassifier(**SMALL))
    assert cross_val_score(model, X, classes(X), cv=2).mean() > 0.85


BAD: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "features": (
        lambda m: m.predict([np.zeros((4, 2))]),
        ValueError,
        r"X\[0\]: expected shape \(T, I\) with I = 3",
    ),
    "table": (lambda m: m.predict(np.zeros((4, 3))), ValueError, "X"),
    "nan": (lambda m: m.predict([np.full((4, 3), np.nan)]), ValueError, r"X\[0\]: expected finite"),
    "empty": (lambda m: m.predict([np.zeros((0, 3))]), ValueError, r"X\[0\]: expected at least one step"),
    "dtype": (lambda m: m.predict([np.zeros((4, 3), "U1")]), TypeError, r"X\[0\]: expected an array of num"),
    "strings": (lambda m: m.predict(["abc"]), TypeError, "X: expected arrays of numbers"),
    "cell": (lambda m: SequenceClassifier("tcn").fit(sequences(), classes(sequences())), ValueError, "cell"),
    "schedule": (
        lambda m: SequenceClassifier(schedule="x").fit(sequences(), classes(sequences())),
        ValueError,
        "schedule",
    ),
    "pooling": (
        lambda m: SequenceClassifier(pooling="x").fit(sequences(), classes(sequences())),
        ValueError,
        "pooling",
    ),
    "epochs": (lambda m: SequenceRegressor(epochs=-1).fit(sequences(), np.zeros(80)), ValueError, "epochs"),
    "dropout": (lambda m: SequenceRegressor(dropout=2).fit(sequences(), np.zeros(80)), ValueError, "dropout"),
    "tags": (lambda m: SequenceTagger().fit(sequences(), [0] * 80), TypeError, r"y\[0\]: expected a seq"),
    "range": (lambda m: m.predict([np.full((4, 3), 1e39)]), ValueError, r"X\[0\]: expected finite"),
    "unfitted": (lambda m: SequenceTagger().predict(sequences()), NotFittedError, "This SequenceTagger"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str, fitted: SequenceClassifier) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=f"^{message}"):
        call(fitted)


def test_scikit_learn_is_imported_when_it_is_asked_for() -> None:
    code = "import sys, fusedrnn as fr; assert 'sklearn' not in sys.modules; fr.estimators.Forecaster()"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor, SequenceTagger, Forecaster])
def test_every_parameter_is_explained(kind: Any) -> None:
    said = re.findall(r"^ {8}(\w+): ", kind.__doc__.split("Args:")[1].split("Raises:")[0], re.MULTILINE)
    assert said == list(inspect.signature(kind).parameters)


# Preprocessing ----------------------------------------------------------------------------------------------


def test_a_scaler() -> None:
    X = [x * [1.0, 10.0, 0.0] + [5.0, -3.0, 0.1] for x in sequences()]
    scaler = Scaler()
    scaled = scaler.fit_transform(X)
    steps = np.concatenate(scaled)
    np.testing.assert_allclose(steps.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(steps.std(axis=0), [1.0, 1.0, 0.0], atol=1e-12)
    for x, back in zip(X, scaler.inverse_transform(scaled), strict=True):
        np.testing.assert_allclose(back, x)
    for x in Scaler("series").fit_transform([x[:, :2] for x in X]):
        np.testing.assert_allclose(x.std(axis=0), 1.0)
    gaps = np.array([[[1.0], [np.nan], [3.0]]])
    np.testing.assert_array_equal(Scaler().fit_transform(gaps), [[[-1.0], [np.nan], [1.0]]])
    with pytest.raises(RuntimeError, match=r"^Scaler: expected one after fit"):
        Scaler().transform(X)
    with pytest.raises(ValueError, match=r"^sequences: expected I = 3"):
        scaler.transform([np.zeros((2, 2))])
    with pytest.raises(ValueError, match=r"^per"):
        Scaler("step")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^sequences: expected arrays"):
        Scaler().fit(None)  # type: ignore[arg-type]


def test_windows() -> None:
    x, y = windows(np.arange(10), 4, 2, 3)
    assert x.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]] and y.tolist() == [[4, 5, 6], [6, 7, 8]]
    assert windows(np.zeros((10, 2)), 3)[0].shape == (8, 3, 2)
    x, y = windows(np.zeros((3, 2)), 4, horizon=2)
    assert x.shape == (0, 3, 2) or x.shape[0] == 0 == y.shape[0]
    for bad in (0, -1):
        with pytest.raises(ValueError, match=r"^size"):
            windows(np.arange(10), bad)


def test_a_vocabulary() -> None:
    vocabulary = Vocabulary(["abracadabra", "xyz"], most=4)
    assert vocabulary.tokens == ["a", "b", "r", "c"] and len(vocabulary) == 6
    assert vocabulary.encode("crab?").tolist() == [5, 4, 2, 3, 1]
    assert vocabulary.decode([5, 4, 2, 3, 1]) == ["c", "r", "a", "b", None]
    assert "a" in vocabulary and "x" not in vocabulary
    for bad in (-1, 6):
        with pytest.raises(IndexError, match=rf"^numbers\[1\]: expected one in \[0, 6\), got {bad}"):
            vocabulary.decode([2, bad])
    assert Vocabulary(["abracadabra"], least=2).tokens == ["a", "b", "r"]


def test_quantile_loss() -> None:
    rng = np.random.default_rng(0)
    target = rng.standard_normal(20000)
    pred = np.zeros((20000, 3))
    levels = [0.1, 0.5, 0.9]
    for _ in range(400):
        loss, gradient = fr.quantile_loss(pred, target, levels)
        pred = pred - 2.0 * gradient.sum(axis=0)
    np.testing.assert_allclose(pred[0], np.quantile(target, levels), atol=0.02)
    small, value = rng.standard_normal((4, 2, 2)), rng.standard_normal((4, 2))
    loss, gradient = fr.quantile_loss(small, value, [0.2, 0.7])
    moved = small.copy()
    moved[1, 1, 0] += 1e-6
    change = (fr.quantile_loss(moved, value, [0.2, 0.7])[0] - loss) / 1e-6
    assert change == pytest.approx(gradient[1, 1, 0], rel=1e-5)
    for arguments, message in (
        ((small, value, [0.2]), "pred: expected shape"),
        ((small, value[:2], [0.2, 0.7]), "target"),
        ((small, value, [0.2, 1.7]), r"quantiles\[1\]"),
        ((small, value, [0.0, 0.7]), r"quantiles\[0\]"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            fr.quantile_loss(*arguments)
