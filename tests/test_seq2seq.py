"""Seq2Seq: strings and lists of them to others, and from arrays; parameters and errors."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone

from fusedrnn.estimators import Seq2Seq

pytestmark = pytest.mark.once


def words(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(list("abcdef"), rng.integers(1, 5))) for _ in range(count)]


def small(**options: Any) -> Seq2Seq:
    return Seq2Seq(**{"hidden_size": 8, "embedding_size": 6, "epochs": 1, "random_state": 0, **options})


@pytest.mark.parametrize(("cell", "layers"), [("gru", 1), ("lstm", 2)])
def test_it_learns_to_reverse(cell: str, layers: int) -> None:
    X = words(400)
    y = [list(word[::-1].upper()) for word in X]
    model = small(cell=cell, hidden_size=32, epochs=12, lr=0.02, batch_size=20, label_smoothing=0.05)
    model.set_params(decoder_layers=layers).fit(X[:300], y[:300])
    assert model.model_.decoder.num_layers == layers
    assert model.score(X[300:], y[300:]) > 0.7
    assert model.predict(["ab"]) == [["B", "A"]]
    # The last token of an answer is made of the first letter.
    (alpha,) = model.attention(["abc"], [list("CBA")])
    assert alpha.shape == (4, 3)
    np.testing.assert_allclose(alpha.sum(axis=1), 1.0, atol=1e-5)
    assert pickle.loads(pickle.dumps(model)).predict(X[300:320]) == model.predict(X[300:320])


def test_answers_are_of_the_kind_that_fit_had() -> None:
    X = words(20)
    found = small().fit(X, X).predict([*X, "a" * 40, "?"])
    assert all(isinstance(answer, str) and len(answer) <= 9 for answer in found)
    found = small(max_len=2, beam=1).fit([list(x) for x in X], [[x, "."] for x in X]).predict([["a"]])
    assert isinstance(found[0], list) and len(found[0]) <= 2


def test_from_arrays() -> None:
    """Runs of high and low values, spelt out."""
    rng = np.random.default_rng(0)
    y = ["".join(rng.choice(["h", "l"], rng.integers(1, 4))) for _ in range(200)]
    X = [np.repeat([1.0 if t == "h" else -1.0 for t in answer], 2)[:, None] for answer in y]
    model = small(hidden_size=24, epochs=12, lr=0.02, batch_size=16).fit(X[:160], y[:160])
    assert model.score(X[160:], y[160:]) > 0.8
    assert model.n_features_in_ == 1


def test_partial_fit_and_refusals() -> None:
    X = words(20)
    model = clone(small()).partial_fit(X, X).partial_fit(X, X)
    assert model.n_iter_ == 2
    before = model.predict(X)
    for wrong, kind, message in (
        ((X, X[:-1]), ValueError, "Found input"),
        ((X, ["x", *X[1:]]), ValueError, r"y\[0\]: expected tokens that fit had at first, got 'x'"),
        ((X, np.zeros(20)), TypeError, "y: expected strings or lists of strings"),
        ((X, [["x"], *X[1:]]), TypeError, "y: expected strings or lists of strings, got both"),
        ((X, None), ValueError, "y: Seq2Seq requires y"),
        ((["", *X[1:]], X), ValueError, r"X\[0\]: expected at least one token"),
    ):
        with pytest.raises(kind, match=f"^{message}"):
            model.partial_fit(*wrong)
    assert model.predict(X) == before
    for options, message in (
        ({"cell": "sru"}, "cell: expected one of 'gru', 'lstm', 'rnn'"),
        ({"label_smoothing": 2.0}, "label_smoothing: expected"),
        ({"attention_size": 0}, "attention_size: expected"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            clone(model).set_params(**options).fit(X, X)
    with pytest.raises(ValueError, match=r"^beam: expected"):
        model.set_params(beam=0).predict(X)
