"""Scheduled sampling: what is drawn and how often, gradients of what was read, modules around it, errors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import num_threads

import fusedrnn as fr

V, I, H, M = 7, 3, 9, 5
CURRENT: dict[str, Any] = {"query": "current", "input_feeding": True, "score": "location"}


def parts(
    probability: float, dtype: str = "float64", cell: str = "gru", tied: bool = False, **options: Any
) -> tuple[fr.AttentionDecoder, fr.ScheduledSampling]:
    embedding = fr.Embedding(V, H if tied else I, dtype=dtype, seed=0)
    head = fr.Linear(H, V, dtype=dtype, seed=1, weight_of=embedding if tied else None, bias=not tied)
    head.flat_parameters[...] *= 4
    decoder = fr.AttentionDecoder(cell, embedding.embedding_dim, H, M, dtype=dtype, seed=2, **options)
    return decoder, fr.ScheduledSampling(embedding, head, probability, seed=3)


def problem(steps: int = 6, batch: int = 5, dtype: str = "float64", inputs: int = I) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(steps, batch, inputs)), rng.normal(size=(4, batch, M))
    counts, lengths = rng.integers(0, 5, batch), rng.integers(0, steps + 1, batch)
    lengths[0] = steps
    return x.astype(dtype), memory.astype(dtype), counts, lengths


def softmax(logits: Any) -> Any:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("cell", "options"), [("gru", {}), ("lstm", CURRENT)])
def test_what_is_read(cell: str, options: dict[str, Any], dtype: str) -> None:
    """The bits of a call that was given the drawn rows; dx is 0 there, and the embedding has the rest."""
    decoder, sampling = parts(0.6, dtype, cell, **options)
    given = problem(12, 37, dtype)
    x, before = given[0], given[0].copy()
    y, alpha, state, tape = decoder.forward(*given, sampling=sampling)
    np.testing.assert_array_equal(x, before)
    tokens = tape.tokens
    drawn, steps = tokens >= 0, np.arange(12)[:, None]
    assert 0 < drawn.sum() < drawn.size and tokens.max() < V
    assert not drawn[0].any() and not drawn[steps >= given[3]].any()
    read = np.where(drawn[..., None], sampling.embedding.parameters["weight"][tokens], x)
    other = copy.deepcopy(decoder)
    want_y, want_alpha, want_state, want_tape = other.forward(read, *given[1:])
    for a, b in zip((y, alpha, *state), (want_y, want_alpha, *want_state), strict=True):
        np.testing.assert_array_equal(a, b)
    dx, dmemory, _ = decoder.backward(tape, y)
    want_dx, want_dmemory, _ = other.backward(want_tape, y)
    np.testing.assert_array_equal(dmemory, want_dmemory)
    np.testing.assert_array_equal(decoder.flat_grads, other.flat_grads)
    np.testing.assert_array_equal(dx, np.where(drawn[..., None], 0, want_dx))
    table = np.zeros((V, I))
    np.add.at(table, tokens[drawn], want_dx[drawn].astype("float64"))
    tolerance = 1e-12 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(sampling.embedding.grads["weight"], table, atol=tolerance)
    assert not sampling.head.flat_grads.any()
    assert decoder.backward(tape, y, need_dx=False)[0] is None
    np.testing.assert_allclose(sampling.embedding.grads["weight"], 2 * table, atol=2 * tolerance)


@pytest.mark.parametrize("tied", [False, True])
def test_the_distribution(tied: bool) -> None:
    """Of many rows alike: shares of the tokens and of the rows that draw."""
    decoder, sampling = parts(0.7, tied=tied)
    x, memory, *_ = problem(2, 1, inputs=decoder.input_size)
    rows = 20_000
    y, _, _, tape = decoder.forward(
        np.repeat(x, rows, axis=1), np.repeat(memory, rows, axis=1), sampling=sampling
    )
    tokens = tape.tokens[1]
    # Five standard deviations.
    assert abs((tokens >= 0).mean() - 0.7) < 5 * np.sqrt(0.21 / rows)
    shares = np.bincount(tokens[tokens >= 0], minlength=V) / (tokens >= 0).sum()
    want = softmax(sampling.head(y[0, :1])[0])
    assert (np.abs(shares - want) < 5 * np.sqrt(want * (1 - want) / (0.69 * rows))).all()
    assert (want > 0.01).sum() > 3


def test_a_sure_head_and_the_ends_of_probability() -> None:
    decoder, sampling = parts(1.0, "float32")
    given = problem(dtype="float32")
    sampling.head.flat_parameters[...] *= 1e6
    y, _, _, tape = decoder.forward(*given[:3], sampling=sampling)
    np.testing.assert_array_equal(tape.tokens[1:], sampling.head(y[:-1]).argmax(-1))
    sampling.probability = 0
    y, _, _, tape = decoder.forward(*given, sampling=sampling)
    assert (tape.tokens == -1).all()
    np.testing.assert_array_equal(y, decoder(*given)[0])
    assert decoder.forward(*given)[3].tokens is None
    # Nothing sensible: any token, and no end of all things.
    sampling.probability = 1
    sampling.head.flat_parameters[...] = np.nan
    tokens = decoder.forward(*given, sampling=sampling)[3].tokens
    assert tokens.min() >= -1 and tokens.max() < V


def test_draws() -> None:
    """The same for any number of threads and again from a saved state; others in the next call."""
    results = []
    for threads in (1, 2, 3):
        decoder, sampling = parts(0.5, "float32")
        with num_threads(threads):
            y, _, _, tape = decoder.forward(*problem(30, 40, "float32"), sampling=sampling)
        results.append((y, tape.tokens))
    for y, tokens in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(tokens, results[0][1])
    saved = sampling.random_state()
    given = problem(30, 40, "float32")
    second = decoder.forward(*given, sampling=sampling)[3].tokens
    assert (second != results[0][1]).any()
    sampling.load_random_state(saved)
    np.testing.assert_array_equal(decoder.forward(*given, sampling=sampling)[3].tokens, second)


def whole(probability: float = 0.5) -> fr.EncoderDecoder:
    embedding, head = fr.Embedding(V, I, seed=0), fr.Linear(H, V, seed=1)
    return fr.EncoderDecoder(
        fr.Sequential(fr.Embedding(V, 4, seed=4), fr.GRU(4, M, seed=5)),
        embedding,
        fr.AttentionDecoder("gru", I, H, M, seed=2),
        fr.Sequential(fr.Dropout(0.2, seed=6), head),
        bos=0,
        eos=1,
        sampling=fr.ScheduledSampling(embedding, head, probability, seed=3),
    )


@pytest.mark.once
def test_encoder_decoder(tmp_path: Path) -> None:
    """In training mode alone; one set of parameters; files; gradients that a step down follows."""
    model, rng = whole(1.0), np.random.default_rng(0)
    x, targets = rng.integers(0, V, (5, 6)), rng.integers(2, V, (6, 7))
    assert not [name for name in model.parameters if name.startswith("sampling")]
    assert "sampling" in model.random_state()
    plain = model.eval().forward(x, targets)[0]
    np.testing.assert_array_equal(model(x, targets), plain)
    y, tape = model.train().forward(x, targets)
    assert (y[:, 1:] != plain[:, 1:]).any()
    loss, dy = fr.cross_entropy(y, targets)
    model.backward(tape, dy)
    assert np.isfinite(loss) and model.flat_grads.any()
    fr.save(model, tmp_path / "model.safetensors")
    again = fr.load(tmp_path / "model.safetensors")
    assert again.sampling.embedding is again.embedding and again.sampling.probability == 1.0
    np.testing.assert_array_equal(again.eval()(x, targets), plain)
    model.sampling = None
    optimizer = fr.optim.Adam(model)
    trainer = fr.training.Trainer(model, fr.cross_entropy, optimizer, epochs=1, progress=False)
    trainer.fit((list(x.T), targets))


@pytest.mark.once
def test_learning() -> None:
    """To copy what is read, with half of the inputs its own."""
    model, rng = whole(0.5), np.random.default_rng(0)
    x = rng.integers(2, V, (200, 4))
    targets = np.concatenate([x, np.ones((200, 1), int)], axis=1)
    optimizer = fr.optim.Adam(model, lr=0.02)
    trainer = fr.training.Trainer(
        model, fr.cross_entropy, optimizer, epochs=40, batch_size=20, seed=0, progress=False
    )
    trainer.fit((list(x), targets))
    found = model.eval().beam_search(x[:50].T.copy(), max_len=5)
    assert (found.tokens[:, 0, :4] == x[:50]).mean() > 0.8


@pytest.mark.once
def test_errors() -> None:
    embedding, head = fr.Embedding(V, I, seed=0), fr.Linear(H, V, seed=1)
    with pytest.raises(TypeError, match=r"embedding: expected a fusedrnn\.Embedding, got Linear"):
        fr.ScheduledSampling(head, head, 0.5)
    with pytest.raises(TypeError, match=r"head: expected a fusedrnn\.Linear, got Sequential"):
        fr.ScheduledSampling(embedding, fr.Sequential(head), 0.5)
    with pytest.raises(ValueError, match="head: expected one to the embedding's V = 7, got one to 6"):
        fr.ScheduledSampling(embedding, fr.Linear(H, 6), 0.5)
    for probability, error in ((1.5, ValueError), (-0.1, ValueError), ("0.5", TypeError)):
        with pytest.raises(error, match="probability"):
            fr.ScheduledSampling(embedding, head, probability)
    sampling = fr.ScheduledSampling(embedding, head, 0.5)
    with pytest.raises(ValueError, match="probability"):
        sampling.probability = 2
    given = problem(dtype="float32")
    for changes, message in (
        ({"hidden_size": H + 1}, "sampling: expected a head of the decoder's H = 10, got 9"),
        ({"input_size": I + 1}, "sampling: expected a table of the decoder's I = 4, got 3"),
        ({"num_layers": 2}, "sampling: expected None with num_layers = 2"),
        ({"dtype": "float64"}, "sampling: expected one of the decoder's dtype"),
    ):
        sizes = {"input_size": I, "hidden_size": H, "memory_size": M, "dtype": "float32", **changes}
        decoder = fr.AttentionDecoder("gru", **sizes)
        x, memory = np.ones((2, 3, sizes["input_size"]), sizes["dtype"]), np.ones((2, 3, M), sizes["dtype"])
        with pytest.raises(ValueError, match=message):
            decoder.forward(x, memory, sampling=sampling)
    with pytest.raises(TypeError, match="sampling: expected a ScheduledSampling or None, got float"):
        parts(0.5, "float32")[0].forward(*given, sampling=0.5)
    with pytest.raises(TypeError, match="sampling: expected a ScheduledSampling or None, got float"):
        fr.EncoderDecoder(
            fr.GRU(2, M), embedding, fr.AttentionDecoder("gru", I, H, M), head, bos=0, eos=1, sampling=0.5
        )
