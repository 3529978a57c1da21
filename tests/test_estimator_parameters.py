"""Estimators: parameters that are set after fit, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from test_estimators import classes, sequences

import fusedrnn as fr
from fusedrnn.estimators import (
    Forecaster,
    Seq2Seq,
    SequenceClassifier,
    SequenceRegressor,
    SequenceTagger,
    TextGenerator,
)

pytestmark = pytest.mark.once


def test_warm_start_takes_the_present_learning_rate() -> None:
    X = sequences(20)
    model = SequenceClassifier(hidden_size=4, schedule="cosine", lr=0.1, epochs=2, warm_start=True)
    model.fit(X, classes(X)).set_params(lr=0.01).fit(X, classes(X))
    assert model.history_["lr"] == pytest.approx([0.1, 0.05, 0.01, 0.005])


@pytest.mark.parametrize("way", ["fit", "partial_fit"])
def test_training_on_refuses_parameters_of_another_network(way: str) -> None:
    """They would do nothing; those of training are taken."""
    X = sequences(12)
    y = classes(X)
    model = SequenceClassifier(hidden_size=4, epochs=1, warm_start=way == "fit", random_state=0).fit(X, y)
    before, go_on = model.predict_proba(X), getattr(model, way)
    with pytest.raises(ValueError, match=r"^hidden_size: expected 4, with which the network was made, got 6"):
        model.set_params(hidden_size=6) and go_on(X, y)
    for name, value in (("cell", "lstm"), ("dropout", 0.5), ("pooling", "max"), ("scale", False)):
        model.set_params(hidden_size=4, **{name: value})
        with pytest.raises(ValueError, match=f"^{name}: expected .* got {value!r}; fit with"):
            go_on(X, y)
        model.set_params(**{name: SequenceClassifier().get_params()[name]})
    np.testing.assert_array_equal(model.predict_proba(X), before)
    assert model.set_params(batch_size=4, clip=0.1, lr=0.1, random_state=3) and go_on(X, y).n_iter_ == 2
    assert model.set_params(hidden_size=6, warm_start=False).fit(X, y).model_["rnn"].hidden_size == 6


@pytest.mark.parametrize("crf", [False, True])
def test_a_tagger_keeps_the_field_that_it_was_fitted_with(crf: bool) -> None:
    X = sequences(10)
    y = [(x[:, 0] > 0).astype(int) for x in X]
    model = SequenceTagger(crf=crf, hidden_size=8, epochs=2, random_state=0).fit(X, y)
    before = model.predict_proba(X)
    model.set_params(crf=not crf)
    for one, other in zip(before, model.predict_proba(X), strict=True):
        np.testing.assert_array_equal(one, other)
    model.predict(X)
    with pytest.raises(ValueError, match=f"^crf: expected {crf}, with which the network was made"):
        model.partial_fit(X, y)
    model.set_params(crf=crf).partial_fit(X, y)


def test_a_forecaster_keeps_the_plan_that_it_was_fitted_with() -> None:
    series = np.sin(np.arange(100) / 3)[:, None]
    model = Forecaster(horizon=4, context=12, hidden_size=4, epochs=1, warm_start=True).fit(series)
    found = model.predict()
    assert found.shape == (4, 1)
    model.set_params(horizon=6, context=20, season=5, quantiles=[0.1, 0.5, 0.9])
    np.testing.assert_array_equal(model.predict(series), found)
    np.testing.assert_array_equal(model.predict(), found)
    with pytest.raises(ValueError, match=r"^horizon: expected 4, for which the network was made, got 6"):
        model.fit(series)
    with pytest.raises(ValueError, match=r"^quantiles: expected \[0.5\], for which"):
        model.set_params(horizon=4).partial_fit(series)
    assert model.set_params(warm_start=False).fit(series).predict_quantiles().shape == (4, 1, 3)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"cell": ["gru"]}, ValueError, "cell: expected 'rnn'"),
        ({"hidden_size": [8, 4]}, TypeError, "hidden_size: expected an int"),
        ({"lr": 0.0}, ValueError, "lr: expected a number in"),
        ({"scale": "no"}, TypeError, "scale: expected a bool"),
        ({"warm_start": "no"}, TypeError, "warm_start: expected a bool"),
        ({"crf": "no"}, TypeError, "crf: expected a bool"),
        ({"patience": 0}, ValueError, "patience: expected an int >= 1, got 0"),
        ({"patience": 1, "validation_fraction": "a"}, TypeError, "validation_fraction: expected a number"),
    ],
)
def test_errors_of_parameters(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    X = sequences(6)
    with pytest.raises(kind, match=f"^{message}"):
        SequenceTagger(**options).fit(X, [np.zeros(len(x), int) for x in X])


def test_a_token_that_fit_had_not_is_a_vector_of_zeros() -> None:
    """It was drawn at random and never trained, so that an unknown word could say anything."""
    X, y = ["ab", "ba", "bb", "aa"] * 3, ["a", "b", "b", "a"] * 3
    model = SequenceClassifier(hidden_size=4, epochs=2, random_state=0).fit(X, y)
    table = model.model_["embedding"].state_dict()["weight"]
    assert not table[1].any() and table[2:].all()
    np.testing.assert_array_equal(model.predict_proba(["a?"]), model.predict_proba(["a!"]))


@pytest.mark.parametrize(
    ("quantiles", "kind"), [(0.5, TypeError), ([0.0, 0.5], ValueError), ([0.5, 1.0], ValueError)]
)
def test_errors_of_quantiles(quantiles: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^quantiles: expected .* in \(0, 1\)"):
        Forecaster(context=4, quantiles=quantiles).fit(np.arange(20.0))


def test_errors_of_sequences() -> None:
    X, model = sequences(6), SequenceClassifier(hidden_size=4, epochs=1)
    objects = np.empty(6, object)
    objects[:] = X
    for wrong in ([x.tolist() for x in X], objects, np.array(["abc", "b"] * 3), ["abc", X[0]] * 3):
        with pytest.raises(ValueError, match=r"^X: expected a list of arrays \(T, I\), of strings or"):
            clone(model).fit(wrong, classes(X))
    tokens = clone(model).fit(["ab", "b"] * 3, classes(X))
    with pytest.raises(ValueError, match=r"^X\[0\]: expected at least one token"):
        tokens.predict([""])
    tagger = SequenceTagger(hidden_size=4, epochs=1)
    y = [np.zeros(len(x), int) for x in X]
    short = [y[0], y[1][1:], *y[2:]]
    with pytest.raises(ValueError, match=r"^y\[1\]: expected one for each step"):
        tagger.fit(X, short)
    with pytest.raises(ValueError, match=r"^y\[1\]: expected one for each step"):
        tagger.fit(X, y).score(X, short)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        tagger.score(X, y[:3])
    with pytest.raises(ValueError, match=r"^X\[0\]: expected shape .* or a list of them"):
        Forecaster().fit([1.0, 2.0, 3.0])


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor, Seq2Seq])
def test_sequences_without_a_feature(kind: Any) -> None:
    for X in ([np.zeros((4, 0))] * 4, np.zeros((4, 3, 0))):
        with pytest.raises(ValueError, match=r"^X\[0\]: expected shape \(T, I\) with a feature or more"):
            kind(epochs=1).fit(X, ["a", "b"] * 2 if kind is Seq2Seq else [0, 1] * 2)


@pytest.mark.parametrize("missing", [None, np.nan, np.float32("nan")])
@pytest.mark.parametrize("others", ["a", 1])
def test_labels_that_are_none(missing: Any, others: Any) -> None:
    """NumPy makes the string "nan" of one beside strings, which then was a class."""
    X = sequences(6)
    for index in (0, 4):
        tags = [[others] * len(x) for x in X]
        tags[index][2] = missing
        with pytest.raises(ValueError, match=rf"^y\[{index}\]\[2\]: expected a class or tag, got"):
            SequenceTagger(epochs=1).fit(X, tags)
        labels = [others] * 6
        labels[index] = missing
        with pytest.raises(
            ValueError, match=rf"^(y\[{index}\]: expected a class or tag|Input y contains NaN)"
        ):
            SequenceClassifier(epochs=1).fit(X, labels)
    for model in (SequenceClassifier(), SequenceTagger()):
        with pytest.raises(ValueError, match=r"^classes\[1\]: expected a class or tag, got"):
            model.partial_fit(X, [others] * 6, classes=[others, missing])


def test_tags_of_two_kinds() -> None:
    X = sequences(4)
    for row in ([1] * len(X[1]), ["a"] * (len(X[1]) - 1) + [1]):
        tags = [["a"] * len(x) for x in X]
        tags[1] = row
        with pytest.raises(TypeError, match=r"^y: expected tags of one kind, got strings and others"):
            SequenceTagger(epochs=1).fit(X, tags)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({}, lambda X, y: (X, [*y[:-1], np.nan])),
        ({"schedule": "x"}, lambda X, y: ([10.0 * x[:, :2] for x in X], y)),
        ({"hidden_size": 0}, lambda X, y: (["ab"] * len(X), y)),
    ],
)
def test_a_fit_that_is_refused_changes_nothing(options: dict[str, Any], wrong: Any) -> None:
    """Neither the network nor the scales, so that predictions are those of before."""
    X = sequences(8)
    y = [float(x[:, 0].sum()) for x in X]
    model = SequenceRegressor(hidden_size=4, epochs=1, random_state=0).fit(X, y)
    before = model.predict(X)
    with pytest.raises(ValueError, match=r"^(Input y|schedule|hidden_size)"):
        model.set_params(**options).fit(*wrong(X, y))
    np.testing.assert_array_equal(model.predict(X), before)


def test_a_forecaster_whose_fit_is_refused_changes_nothing() -> None:
    series = np.sin(np.arange(60) / 3)
    model = Forecaster(horizon=2, context=8, hidden_size=4, epochs=1).fit(series)
    before = model.predict()
    for options, wrong in (({}, np.zeros((5, 2))), ({"schedule": "x", "context": 9}, 7.0 * series)):
        with pytest.raises(ValueError, match=r"^(X|schedule)"):
            model.set_params(**options).fit(wrong)
        np.testing.assert_array_equal(model.predict(), before)
        np.testing.assert_array_equal(model.predict(series), before)


@pytest.mark.parametrize("kind", ["classifier", "regressor", "tagger", "seq2seq", "generator"])
def test_rare_tokens_are_unknown(kind: str) -> None:
    """With min_count those seen less often are as any that was never seen; without, told apart."""
    X = [["a", "b", "a"], ["b", "a", "rare"], ["a", "b", "b"]] * 3 + [["b", "scarce"]]
    made: dict[str, Any] = {
        "classifier": (SequenceClassifier, [x.count("a") > 1 for x in X]),
        "regressor": (SequenceRegressor, [float(x.count("a")) for x in X]),
        "tagger": (SequenceTagger, [[token == "a" for token in x] for x in X]),
        "seq2seq": (Seq2Seq, ["".join(x[:1]) for x in X]),
        "generator": (TextGenerator, None),
    }
    kind_of, y = made[kind]
    texts: Any = [" ".join(x) for x in X] if kind == "generator" else X
    options: dict[str, Any] = {"level": "word"} if kind == "generator" else {}
    for least, told in ((1, ["rare", "scarce"]), (2, ["rare"]), (4, [])):
        model = kind_of(hidden_size=4, epochs=1, min_count=least, random_state=0, **options).fit(texts, y)
        known = model._vocabulary.tokens
        assert sorted(known) == sorted(["a", "b", *told])
        assert model._vocabulary.encode(["scarce", "never"]).tolist()[1] == 1
        assert clone(model).min_count == least
    with pytest.raises(ValueError, match=r"^min_count: expected an int >= 1"):
        kind_of(min_count=0, **options).fit(texts, y)


@pytest.mark.parametrize("crf", [False, True])
def test_the_model_of_a_tagger_is_loaded_again(crf: bool, tmp_path: Path) -> None:
    """By name, without a class of its own being given."""
    X = sequences(10)
    model = SequenceTagger(crf=crf, hidden_size=8, epochs=1, random_state=0)
    model.fit(X, [(x[:, 0] > 0).astype(int) for x in X])
    fr.save(model.model_, tmp_path / "tagger")
    again = fr.load(tmp_path / "tagger")
    assert isinstance(again, fr.Tagger) and (again.crf is not None) == crf
    before = model.predict_proba(X)
    model.model_ = again
    for one, other in zip(before, model.predict_proba(X), strict=True):
        np.testing.assert_array_equal(one, other)
