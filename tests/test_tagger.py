"""Tagger: its loss with all gradients, with and without a field, errors, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_support import WIDE

import fusedrnn as fr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4, 3))
TAGS = RNG.integers(0, 5, (6, 4))
LENGTHS = np.array([6, 1, 4, 2])


def tagger(crf: bool = True) -> fr.Tagger:
    network = fr.Sequential(fr.GRU(3, 4, bidirectional=True, seed=0, **WIDE), fr.Linear(8, 5, seed=1, **WIDE))
    return fr.Tagger(network, fr.CRF(5, seed=2, **WIDE) if crf else None)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
def test_gradients_of_everything(lengths: Any) -> None:
    """By differences of the loss in random directions of all parameters, those of the field too."""
    model = tagger()

    def loss() -> float:
        return model.loss(model(X, lengths), TAGS, lengths)[0]

    scores, tape = model.forward(X, lengths)
    np.testing.assert_array_equal(scores, model.network(X, lengths))
    value, dscores = model.loss(scores, TAGS, lengths)
    assert value == model.crf.loss(scores, TAGS, lengths=lengths)[0]
    model.zero_grad()
    model.loss(scores, TAGS, lengths)
    dx = model.backward(tape, dscores)
    assert dx.shape == X.shape and model.backward(tape, dscores, need_dx=False) is None
    model.zero_grad()
    _, dscores = model.loss(scores, TAGS, lengths)
    model.backward(tape, dscores)
    flat, grads = model.flat_parameters, model.flat_grads.copy()
    for _ in range(4):
        along, sides = RNG.normal(size=flat.shape), []
        for sign in (1e-6, -1e-6):
            kept = flat.copy()
            flat[:] += sign * along
            sides.append(loss())
            flat[:] = kept
        np.testing.assert_allclose((grads * along).sum(), (sides[0] - sides[1]) / 2e-6, rtol=2e-6)


def test_a_trainer_trains_both(tmp_path: Path) -> None:
    model = tagger()
    before = model.state_dict()
    inputs = [X[:n, b] for b, n in enumerate(LENGTHS)]
    targets = [TAGS[:n, b] for b, n in enumerate(LENGTHS)]
    run = fr.training.Trainer(model, model.loss, fr.optim.Adam(model, lr=0.05), epochs=30, progress=False)
    history = run.fit((inputs, targets))
    assert history["loss"][-1] < 0.2 * history["loss"][0]
    assert all(not np.array_equal(before[name], array) for name, array in model.state_dict().items())
    fr.save(model, tmp_path / "tagger")
    again = fr.load(tmp_path / "tagger")
    assert repr(again) == repr(model)
    np.testing.assert_array_equal(again(X, LENGTHS), model(X, LENGTHS))


def test_what_it_refuses() -> None:
    plain = tagger(crf=False)
    np.testing.assert_array_equal(plain(X), plain.network(X))
    for call, text in (
        (lambda: fr.Tagger(3), "network: expected a Module"),  # type: ignore[arg-type]
        (lambda: fr.Tagger(fr.Linear(2, 2), 3), "crf: expected a CRF or None, got int"),  # type: ignore[arg-type]
        (lambda: plain.loss(plain(X), TAGS), "loss: expected a Tagger with a crf"),
    ):
        with pytest.raises(TypeError, match=f"^{text}"):
            call()
