"""TextGenerator: what it learns, draws and measures, and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone

from fusedrnn.estimators import TextGenerator, text_generator

pytestmark = pytest.mark.once

TEXT = "the cat sat on the mat. the dog ran off. " * 40


def small(**options: Any) -> TextGenerator:
    return TextGenerator(
        **{"hidden_size": 24, "embedding_size": 8, "lr": 0.03, "batch_size": 4, "random_state": 0, **options}
    )


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_characters(cell: str) -> None:
    model = small(cell=cell, epochs=16).fit(TEXT)
    assert model.predict(["the ca", "the dog ra"]).tolist() == ["t", "n"]
    assert model.perplexity(TEXT) < 1.5
    drawn = model.generate("the c", 60, temperature=0.2, random_state=0)
    assert drawn.startswith("at") and len(drawn) == 60 and set(drawn) <= set(TEXT)
    assert drawn == model.generate("the c", 60, temperature=0.2, random_state=0)
    assert drawn != model.generate("the c", 60, temperature=3.0, random_state=0)
    greedy = "the d"
    for _ in range(6):
        greedy += str(model.predict(greedy)[0])
    assert greedy == "the d" + model.generate("the d", 6, top_k=1)


def test_a_prompt_counts_as_a_whole() -> None:
    model = small(epochs=20).fit("xa1. ya2. " * 60)
    assert model.generate("ya2. xa", 2, top_k=1) == "1."
    assert model.generate("xa1. ya", 2, top_k=1) == "2."


def test_words_and_ends_of_texts() -> None:
    texts = ["The cat's on the mat (it sleeps), happily.", "A dog ran off!"] * 20
    model = small(level="word", epochs=8).fit(texts)
    assert model.tokens("it's (so)!") == ["it's", "(", "so", ")", "!"]
    model.set_params(level="character")  # of the next fit
    assert {model.generate(random_state=seed, temperature=0.5) for seed in range(6)} == set(texts)
    assert model.predict(["The cat's on the", "A dog ran off!"]).tolist() == ["mat", ""]
    chances = model.predict_proba("A")
    assert chances.shape == (1, len(model.classes_)) and chances.sum() == pytest.approx(1.0, abs=1e-5)
    assert model.classes_[chances[0].argmax()] == "dog"


def test_the_score_is_that_of_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many steps of a text, by the probabilities that predict_proba gives one after another."""
    model = small(epochs=1, window=7).fit(TEXT[:200])
    text = "the cat ? sat"
    places = [*model.vocabulary_.encode(text), 0]
    logs = [np.log(model.predict_proba(text[:i])[0, place]) for i, place in enumerate(places)]
    assert model.score(text) == pytest.approx(np.mean(logs), abs=1e-5)
    monkeypatch.setattr(text_generator, "_STEPS", 3)
    assert model.score(text) == pytest.approx(np.mean(logs), abs=1e-5)


def test_vocabulary_partial_fit_and_errors() -> None:
    model = small(vocabulary_size=3, epochs=1).partial_fit(TEXT).partial_fit("xyz")
    assert model.n_iter_ == 2 and len(model.classes_) == 5 and model.classes_[1] is None
    for seed in range(5):
        assert set(model.generate("the", 50, random_state=seed)) <= set(model.classes_[2:])
    for wrong, kind, message in (
        (3, TypeError, "X: expected a string or a list of strings, got int"),
        (["a", 3], TypeError, "X: expected a string or a list of strings, got a list of other things"),
        ([], ValueError, "X: expected at least one text"),
    ):
        for call in (clone(model).fit, model.score, model.predict):
            with pytest.raises(kind, match=f"^{message}"):
                call(wrong)
    with pytest.raises(ValueError, match=r"^X: expected at least one token"):
        clone(model).fit(["", ""])
    for options, message in (({"level": "letter"}, "level: expected"), ({"window": 0}, "window: expected")):
        with pytest.raises(ValueError, match=f"^{message}"):
            clone(model).set_params(**options).fit(TEXT)
    with pytest.raises(TypeError, match=r"^prompt: expected a string"):
        model.generate(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^length: expected"):
        model.generate("", 0)
