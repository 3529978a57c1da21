"""What weights in fewer bits cost a language model, in bits per character."""

from __future__ import annotations

import numpy as np
import pytest

import fusedrnn as fr

TEXT = "the quick brown fox jumps over the lazy dog while seven wise owls watch from a hollow oak; "


@pytest.fixture(scope="module")
def model() -> tuple[fr.Embedding, fr.LSTM, fr.Linear, np.ndarray]:
    """A model of sentences that are made of the words of one, and such a text."""
    rng = np.random.default_rng(0)
    text = " ".join(rng.choice(TEXT.split(), 4000))
    characters = sorted(set(text))
    codes = np.array([characters.index(c) for c in text])
    embedding = fr.Embedding(len(characters), 16, seed=1)
    lstm, head = fr.LSTM(16, 96, seed=2), fr.Linear(96, len(characters), seed=3)
    optimizers = [fr.optim.Adam(module, lr=5e-3) for module in (embedding, lstm, head)]
    for _ in range(120):
        starts = rng.integers(0, len(codes) - 34, 16)
        window = codes[starts + np.arange(33)[:, None]]
        x = embedding.lookup(window[:-1])
        y, _, tape = lstm.forward(x)
        logits, head_tape = head.forward(y)
        _, dlogits = fr.cross_entropy(logits, window[1:])
        dx, _ = lstm.backward(tape, head.backward(head_tape, dlogits))
        embedding.backward(x, dx)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return embedding, lstm, head, codes[:8000].reshape(8, 1000).T


@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_bits_per_character(weights: str, model: tuple[fr.Embedding, fr.LSTM, fr.Linear, np.ndarray]) -> None:
    embedding, lstm, head, codes = model
    x = embedding(codes[:-1])

    def bits(y: np.ndarray) -> float:
        return float(fr.cross_entropy(head(y), codes[1:])[0]) / np.log(2)

    want = bits(lstm(x)[0])
    assert want < 2.5  # it has learned: 4.1 bits are those of the characters alone
    y = lstm.quantize(weights)(x)[0]
    assert not np.array_equal(y, lstm(x)[0])
    assert abs(bits(y) - want) < 1e-4
