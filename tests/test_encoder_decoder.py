"""EncoderDecoder: gradients, padding, files, training by Trainer, and answers against its own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once

BOS, EOS = 0, 1


def model(
    cell: str = "gru", hidden: int = 6, tokens: int = 8, bridge: bool = True, layers: int = 1
) -> fr.EncoderDecoder:
    states = layers * (2 if cell == "lstm" else 1)
    encoder = fr.Sequential(fr.Embedding(tokens, 5, seed=0), fr.GRU(5, hidden, bidirectional=True, seed=1))
    first = fr.Sequential(fr.Pool("mean"), fr.Linear(2 * hidden, states * hidden, seed=2), fr.Tanh())
    return fr.EncoderDecoder(
        encoder,
        fr.Embedding(tokens, 4, seed=3),
        fr.AttentionDecoder(cell, 4, hidden, 2 * hidden, num_layers=layers, seed=4),
        fr.Sequential(fr.Dropout(0.3, seed=5), fr.Linear(hidden, tokens, seed=6)),
        first if bridge else None,
        bos=BOS,
        eos=EOS,
    )


def problem() -> tuple[Any, Any, list[int]]:
    """Tokens (S, B), answers (B, L) of several lengths with a hole, and lengths with a zero."""
    rng = np.random.default_rng(0)
    x, targets = rng.integers(0, 8, (6, 4)), rng.integers(1, 8, (4, 6))
    targets[1, 3:] = targets[2] = targets[3, 1] = targets[:, 5] = -100
    return x, targets, [6, 2, 3, 0]


@pytest.mark.parametrize(("cell", "bridge"), [("gru", True), ("lstm", True), ("rnn_tanh", False)])
def test_gradients(cell: str, bridge: bool) -> None:
    x, targets, lengths = problem()
    found = fr.check_gradients(model(cell, bridge=bridge), x, targets=targets, lengths=lengths, samples=8)
    assert found.error < 1e-5, found
    assert len(found.errors) == (22 if bridge else 20)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_layers(cell: str) -> None:
    """The bridge gives the states of all of them, those of h first."""
    whole, (x, targets, lengths) = model(cell, layers=2), problem()
    found = fr.check_gradients(whole, x, targets=targets, lengths=lengths, samples=8)
    assert found.error < 1e-5, found
    memory, counts, state = whole.encode(x, lengths)
    first = whole.bridge(memory, counts)
    blocks = [first[:, 6 * i : 6 * i + 6] for i in range(first.shape[1] // 6)]
    parts = state if isinstance(state, tuple) else (state,)
    np.testing.assert_array_equal(np.concatenate(parts), np.stack(blocks))
    greedy = whole.eval().beam_search(x, lengths, beam=1, max_len=5)
    logits = whole(x, greedy.tokens[:, 0], lengths)
    np.testing.assert_array_equal(logits[:, 0].argmax(1), greedy.tokens[:, 0, 0])


def test_gradient_of_the_input() -> None:
    _, targets, lengths = problem()
    whole = model()
    whole.encoder = fr.Conv1d(3, 12, 2, stride=2, seed=0)
    x = np.random.default_rng(0).standard_normal((6, 4, 3))
    found = fr.check_gradients(whole, x, targets=targets, lengths=lengths, samples=8)
    assert found.error < 1e-5 and "x" in found.errors, found
    assert whole.attention(x.astype(np.float32), targets, lengths).shape == (4, 6, 3)
    y, tape = whole.forward(x.astype(np.float32), targets)
    assert whole.backward(tape, y, need_dx=False) is None


def test_padding_changes_nothing() -> None:
    """A row of a batch has the logits and the attention that it has alone."""
    x, targets, lengths = problem()
    whole = model().eval()
    y, alpha = whole(x, targets, lengths), whole.attention(x, targets, lengths)
    assert y.shape == (4, 6, 8) and alpha.shape == (4, 6, 6)
    for row, (length, steps) in enumerate(zip(lengths, (5, 3, 0, 5), strict=True)):
        if steps and length:
            alone = whole(x[:length, [row]], targets[[row], :steps])
            np.testing.assert_allclose(y[row, :steps], alone[0], atol=1e-6)
            own = whole.attention(x[:length, [row]], targets[[row], :steps])[0]
            np.testing.assert_allclose(alpha[row, :steps, :length], own, atol=1e-6)
            np.testing.assert_allclose(own.sum(axis=1), 1.0, atol=1e-6)
        assert not y[row, steps:].any() and not alpha[row, steps:].any()
        assert not alpha[row, :, length:].any()


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_greedy_answers_are_the_likeliest_of_the_logits(cell: str) -> None:
    x, _, lengths = problem()
    whole = model(cell).eval()
    for name, array in whole.parameters.items():
        whole.parameters[name] = 2.0 * array
    tokens, counts, scores = whole.beam_search(x, lengths, beam=1, max_len=7, length_penalty=None)
    targets = np.full((4, 7), -100)
    for row, count in enumerate(counts[:, 0]):
        targets[row, : count + 1] = tokens[row, 0, : count + 1]
    logits = whole(x, targets, lengths)
    real = targets >= 0
    assert len(np.unique(targets[real])) > 1
    np.testing.assert_array_equal(logits.argmax(axis=2)[real], targets[real])
    for row in range(4):
        loss, _ = fr.cross_entropy(logits[row], targets[row], reduction="sum")
        assert scores[row, 0] == pytest.approx(-loss, rel=1e-4)


def test_trainer_and_files(tmp_path: Path) -> None:
    """It learns to reverse, goes on from a checkpoint to the same bits, and is the same from a file."""
    rng = np.random.default_rng(0)
    inputs = [rng.integers(2, 8, rng.integers(1, 5)) for _ in range(300)]
    targets = np.full((300, 6), -100)
    for row, x in zip(targets, inputs, strict=True):
        row[: len(x) + 1] = [*x[::-1], EOS]

    def trainer(epochs: int) -> fr.training.Trainer:
        whole = model(hidden=32)
        optimizer = fr.optim.Adam(whole, lr=0.02)
        path = tmp_path / "run.safetensors"
        return fr.training.Trainer(
            whole,
            fr.cross_entropy,
            optimizer,
            clip=1.0,
            epochs=epochs,
            batch_size=20,
            checkpoint=path,
            progress=False,
        )

    train, held_out = (inputs[:260], targets[:260]), (inputs[260:], targets[260:])
    first = trainer(12)
    history = first.fit(train, held_out)
    (tmp_path / "run.safetensors").unlink()
    trainer(1).fit(train, held_out)
    again = trainer(12)
    again.fit(train, held_out, resume=True)
    np.testing.assert_array_equal(again.model.flat_parameters, first.model.flat_parameters)
    assert history["validation_loss"][-1] < 0.35
    fr.save(first.model, tmp_path / "model.safetensors")
    loaded = fr.load(tmp_path / "model.safetensors")
    x, lengths = fr.pad(inputs[260:])
    tokens, counts, _ = loaded.beam_search(x, lengths, max_len=6)
    answers = [row[:count].tolist() for row, count in zip(tokens[:, 0], counts[:, 0], strict=True)]
    right = [answer == x[::-1].tolist() for answer, x in zip(answers, inputs[260:], strict=True)]
    assert np.mean(right) > 0.7
    np.testing.assert_array_equal(tokens, first.model.beam_search(x, lengths, max_len=6).tokens)


def test_errors() -> None:
    x, targets, lengths = problem()
    whole = model()
    parts: dict[str, Any] = {
        name: getattr(whole, name) for name in ("encoder", "embedding", "decoder", "head", "bridge")
    }
    for change, kind, message in (
        ({"encoder": None}, TypeError, "encoder: expected a Module"),
        ({"embedding": fr.Linear(8, 4)}, TypeError, "embedding: expected an Embedding"),
        (
            {"embedding": fr.Embedding(8, 3)},
            ValueError,
            "embedding: expected one of the decoder's input_size",
        ),
        ({"decoder": fr.GRU(4, 6)}, TypeError, "decoder: expected an AttentionDecoder"),
        ({"bos": 8}, ValueError, "bos: expected"),
        ({"eos": -1}, ValueError, "eos: expected"),
    ):
        with pytest.raises(kind, match=f"^{message}"):
            fr.EncoderDecoder(**{**parts, "bos": 0, "eos": 1, **change})
    for wrong, kind, message in (
        (targets + 0.5, TypeError, "targets: expected"),
        (targets[0], ValueError, r"targets: expected shape \(B, L\)"),
        (np.where(targets == 2, 8, targets), ValueError, r"targets: expected each in 0..V-1 \(V = 8\)"),
        (targets[:3], ValueError, ""),
    ):
        with pytest.raises(kind, match=f"^{message}"):
            whole.forward(x, wrong, lengths)
    y, tape = whole.forward(x, targets, lengths)
    whole.zero_grad()
    for dy, kind in ((y[:, :5], ValueError), (y.astype(np.float64), TypeError)):
        with pytest.raises(kind, match=r"^dy: expected"):
            whole.backward(tape, dy)
    assert not whole.flat_grads.any()
    with pytest.raises(ValueError, match=r"^tape: expected a tape of this"):
        model().backward(tape, y)
    narrow = fr.EncoderDecoder(**{**parts, "bridge": fr.Pool("mean")}, bos=0, eos=1)
    with pytest.raises(ValueError, match=r"^bridge: expected one that gives \(B, 6\), got shape \(4, 12\)"):
        narrow(x, targets)


def test_what_it_says_of_itself() -> None:
    net = fr.EncoderDecoder(
        fr.GRU(3, 4), fr.Embedding(5, 2), fr.AttentionDecoder("gru", 2, 3, 4), fr.Linear(3, 5), bos=2, eos=3
    )
    assert repr(net).startswith("EncoderDecoder(\n  bos=2, eos=3\n  (encoder): GRU(3, 4")
