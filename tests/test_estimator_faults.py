"""Estimators: a fit that diverges, is refused or interrupted leaves what was fitted before; odd input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone

from fusedrnn.estimators import (
    AnomalyDetector,
    Forecaster,
    Seq2Seq,
    SequenceClassifier,
    SequenceRegressor,
    SequenceTagger,
    TextGenerator,
)
from fusedrnn.training import DivergedError, Trainer

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
X = [RNG.standard_normal((RNG.integers(3, 9), 2)) for _ in range(12)]
Y = np.array([x[:, 0].sum() for x in X])
SERIES = np.sin(np.arange(60) / 3)
OPTIONS: dict[str, Any] = {"hidden_size": 4, "epochs": 2, "batch_size": 4, "dropout": 0.2, "random_state": 0}

CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "classifier": (SequenceClassifier(**OPTIONS), (X, Y > 0)),
    "regressor": (SequenceRegressor(**OPTIONS), (X, Y)),
    "tagger": (SequenceTagger(**OPTIONS), (X, [x[:, 0] > 0 for x in X])),
    "seq2seq": (Seq2Seq(**OPTIONS, embedding_size=4), (["ab", "ba", "bb", "a"], ["ba", "ab", "bb", "a"])),
    "generator": (TextGenerator(**OPTIONS), (["abab", "ba", "bb"],)),
    "forecaster": (Forecaster(horizon=2, context=8, **OPTIONS), (SERIES,)),
}


def held(model: Any) -> dict[str, Any]:
    """Everything that training changes."""
    state = {**model.model_.state_dict(), **{f"of {k}": v for k, v in model.optimizer_.state_dict().items()}}
    noise, history = model.model_.random_state(), {k: list(v) for k, v in model.history_.items()}
    return {
        **{name: array.tobytes() for name, array in state.items()},
        "rest": (noise, history, model.n_iter_),
    }


@pytest.mark.parametrize("again", ["warm_start", "partial_fit"])
@pytest.mark.parametrize("name", CASES)
def test_a_fit_that_diverges_leaves_the_network_of_before(name: str, again: str) -> None:
    """Which was trained in place, until its weights were NaN."""
    model, data = clone(CASES[name][0]), CASES[name][1]
    model.set_params(warm_start=True).fit(*data)
    model.set_params(lr=1e37, clip=None, schedule=None, epochs=20)
    network, call = model.model_, model.fit if again == "warm_start" else model.partial_fit
    for _ in range(20):
        before = held(model)
        try:
            call(*data)
        except DivergedError:
            break
    else:
        pytest.fail("it did not diverge")
    assert held(model) == before and model.model_ is network


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("at", [1, 2])
def test_ctrl_c_in_a_fit(name: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first epoch all is as before; after it the network is that of so many epochs."""
    model, data = clone(CASES[name][0]).set_params(warm_start=True, epochs=1, schedule=None), CASES[name][1]
    model.fit(*data)
    one = held(model)
    model.fit(*data)
    two = held(model)
    model = clone(model).fit(*data)
    whole, calls = Trainer._run_epoch, 0

    def run_epoch(self: Trainer, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            self._train(next(iter(self._batches(arguments[0], [np.arange(2)]))))
            raise KeyboardInterrupt
        whole(self, *arguments)

    monkeypatch.setattr(Trainer, "_run_epoch", run_epoch)
    model.epochs = 2
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data)
    found = held(model)
    assert found["rest"][2] == at and (found == one) == (at == 1)
    if at == 2:
        assert found["rest"][1] == two["rest"][1]
    monkeypatch.undo()
    model.partial_fit(*data)


def test_a_detector_whose_fit_is_refused_changes_nothing() -> None:
    """It was left with a forecaster, and without a threshold or with one of other series."""
    detector = AnomalyDetector(Forecaster(horizon=2, context=8, hidden_size=4, epochs=1), smooth=2)
    with pytest.raises(ValueError, match=r"^X: expected series of context \+ horizon"):
        detector.fit([SERIES, SERIES[:4]])
    assert not hasattr(detector, "forecaster_")
    detector.fit(SERIES)
    before = detector.score_samples(SERIES), detector.forecaster_
    with pytest.raises(ValueError, match=r"^X: expected series of context \+ horizon"):
        detector.fit([7.0 * SERIES, SERIES[:4]])
    np.testing.assert_array_equal(detector.score_samples(SERIES), before[0])
    assert detector.forecaster_ is before[1]


def test_scores_of_a_series_shorter_than_what_smooths_them() -> None:
    """There were as many as the kernel has steps."""
    detector = AnomalyDetector(Forecaster(horizon=2, context=8, hidden_size=4, epochs=1), smooth=100).fit(
        SERIES
    )
    assert detector.score_samples(SERIES).shape == detector.predict(SERIES).shape == SERIES.shape
    short = AnomalyDetector(detector.forecaster, smooth=len(SERIES)).fit(SERIES)
    assert short.score_samples(SERIES).shape == SERIES.shape


def test_series_with_a_mask_or_without_a_value() -> None:
    """A mask was left out without a word, and its values taken."""
    model = Forecaster(horizon=2, context=8, hidden_size=4, epochs=1).fit(SERIES)
    masked = np.ma.array(SERIES, mask=SERIES > 0.9)
    for call in (model.fit, model.predict, model.score):
        with pytest.raises(TypeError, match=r"^X\[0\]: expected an array without a mask"):
            call(masked)
    with pytest.raises(ValueError, match=r"^X: expected windows with a value in 8 steps"):
        model.score(np.full(40, np.nan))


@pytest.mark.parametrize("none", [None, [], ()])
def test_no_sequences(none: Any) -> None:
    model = SequenceClassifier(**OPTIONS)
    with pytest.raises(ValueError, match=r"^X: expected at least one sequence, got"):
        model.fit(none, [])
    with pytest.raises(ValueError, match=r"^X: expected at least one sequence, got"):
        model.fit(X, Y > 0).predict(none)


@pytest.mark.parametrize(
    ("other", "got"),
    [
        ({0: SERIES, 1: SERIES}, r"dict; use list\(X.values\(\)\)"),
        ({0: SERIES}.values(), r"dict_values; use list\(X\)"),
        ({1.0, 2.0}, "set"),
        ((row for row in X), r"generator; use list\(X\)"),
        (map(len, X), r"map; use list\(X\)"),
        (b"abab", "b'abab'"),
        (5, "int"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", CASES)
def test_neither_a_list_nor_an_array(name: str, other: Any, got: str) -> None:
    """Named, with what is taken, in fit and after it; NumPy would make an object of it."""
    model, data = CASES[name]
    message = f"^X: expected (a list|an array|a string) .*, got {'' if name == 'generator' else got}"
    with pytest.raises(TypeError, match=message):
        clone(model).fit(other, *data[1:])
    fitted = clone(model).fit(*data)
    for call in ("predict", "score"):
        if (name, call) != ("generator", "score"):
            with pytest.raises(TypeError, match=message):
                getattr(fitted, call)(other, *(data[1:] if call == "score" else ()))
    if name == "forecaster":
        with pytest.raises(TypeError, match=message):
            AnomalyDetector(clone(model)).fit(other)


def test_lists_of_what_has_no_order() -> None:
    model = SequenceClassifier(**OPTIONS)
    for item, got in (({1: 2.0}, r"dict; use list\(X\[0\].values\(\)\)"), ({1.0, 2.0}, "set")):
        with pytest.raises(TypeError, match=rf"^X\[0\]: expected an array \(T, I\), got {got}$"):
            model.fit([item] * 12, Y > 0)
        with pytest.raises(TypeError, match=rf"^X\[1\]: expected an array \(T,\) or .*, got {got[:3]}"):
            Forecaster(horizon=2, context=8, **OPTIONS).fit([SERIES, item])


def test_arrays_of_strings() -> None:
    """Texts and answers may be what lists are made of by tolist(), as columns of pandas."""
    texts = ["abab", "ba", "bb", "ab"]
    want = TextGenerator(**OPTIONS).fit(texts).score(texts)
    assert TextGenerator(**OPTIONS).fit(np.array(texts)).score(np.array(texts)) == want
    model, answers = Seq2Seq(**OPTIONS, embedding_size=4), np.array(["x", "y", "x", "y"])
    assert model.fit(texts, answers).score(texts, answers) == model.score(texts, answers.tolist())


def test_tables_and_columns_of_pandas() -> None:
    pd = pytest.importorskip("pandas")
    model = SequenceClassifier(**OPTIONS)
    for columns in (
        [pd.DataFrame(x) for x in X],
        [pd.DataFrame(x[:3]) for x in X],
        [pd.Series(x[:, 0]) for x in X],
    ):
        with pytest.raises(
            ValueError, match=r"^X: expected a list .*; use \[numpy.asarray\(x\) for x in X\]"
        ):
            model.fit(columns, Y > 0)
    for column in (pd.Series(["ab"] * 12), pd.Series(X)):
        with pytest.raises(ValueError, match=r"^X: expected a list .*, got Series of .*; use X.tolist\(\)"):
            model.fit(column, Y > 0)
    for missing in (pd.NA, None):
        with pytest.raises(ValueError, match=r"^y\[1\]: expected a class or tag, got"):
            model.fit(X, pd.Series(["a", missing, "b"] * 4, dtype="string"))
    odd = pd.Series(np.where(Y > 0, "up", "down"), index=range(7, 19))
    want = model.fit(X, odd.to_numpy()).predict_proba(X)
    np.testing.assert_array_equal(model.fit(X, odd).predict_proba(X), want)
    SequenceRegressor(**OPTIONS, patience=1).fit(X, pd.Series(Y, index=range(7, 19)))
