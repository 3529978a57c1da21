"""Trainer: labels with lengths of their own, as of CTC; targets that do not count; odd batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from trainer_runs import accuracy, classifier, sequences, steps

import fusedrnn as fr
from fusedrnn import optim
from fusedrnn.training import SequenceData, Trainer

pytestmark = pytest.mark.once


def spelled(count: int = 24, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Runs of one-hot steps, two to four of each label, and the labels: 1 to 3, none in some."""
    rng = np.random.default_rng(seed)
    inputs, labels = [], []
    for _ in range(count):
        word = rng.integers(1, 4, rng.integers(0, 5))
        shown = np.concatenate([[0], *([label] * rng.integers(2, 5) + [0] for label in word)]).astype(int)
        inputs.append(np.eye(4, dtype=np.float32)[shown])
        labels.append(word.astype(np.int64))
    return inputs, labels


class Transducer(fr.Module):
    """An encoder, a network over the labels so far, and a joiner."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = fr.GRU(4, 8, batch_first=True, seed=0)
        self.embedding = fr.Embedding(4, 8, seed=1)
        self.predictor = fr.GRU(8, 8, batch_first=True, seed=2)
        self.joiner = fr.Linear(8, 4, seed=3)

    def forward(self, x: Any, lengths: Any = None, targets: Any = None, target_lengths: Any = None) -> Any:
        assert (target_lengths <= targets.shape[1]).all()
        encoded, _, encoder = self.encoder.forward(np.ascontiguousarray(x.swapaxes(0, 1)), lengths=lengths)
        began = np.concatenate([np.zeros_like(targets[:, :1]), targets], axis=1)
        if not targets.shape[1]:
            began = np.zeros((len(targets), 1), np.int64)
        vectors, embedding = self.embedding.forward(began)
        predicted, _, predictor = self.predictor.forward(vectors)
        joined = np.tanh(encoded[:, :, None] + predicted[:, None])
        logits, joiner = self.joiner.forward(joined)
        return logits, (encoder, embedding, predictor, joiner, joined)

    def backward(self, tape: Any, dy: Any) -> None:
        encoder, embedding, predictor, joiner, joined = tape
        flow = self.joiner.backward(joiner, dy) * (1 - joined**2)
        self.encoder.backward(encoder, flow.sum(axis=2))
        dvectors, _ = self.predictor.backward(predictor, flow.sum(axis=1))
        self.embedding.backward(embedding, dvectors)


def test_ctc_as_it_is() -> None:
    """The loss of an epoch is the mean over sequences, and the lengths are those behind a strided layer."""
    inputs, labels = spelled()
    model = fr.Sequential(
        fr.Conv1d(4, 16, 3, stride=2, padding=1, seed=0), fr.ReLU(), fr.GRU(16, 16, seed=1), fr.Linear(16, 4)
    )
    loss = partial(fr.ctc_loss, zero_infinity=True)
    run = Trainer(model, loss, optim.SGD(model, lr=0.0), epochs=1, batch_size=7, progress=False)
    want = []
    for x, y in zip(inputs, labels, strict=True):
        logits = model(x[:, None])
        want.append(loss(logits, y[None], [len(logits)], [len(y)])[0])
    assert run.fit((inputs, labels))["loss"] == [pytest.approx(np.mean(want), rel=1e-5)]
    assert run.evaluate((inputs, labels))["loss"] == pytest.approx(np.mean(want), rel=1e-5)


def test_ctc_learns_to_read() -> None:
    inputs, labels = spelled(60)
    model = fr.Sequential(fr.GRU(4, 16, bidirectional=True, seed=0), fr.Linear(32, 4, seed=1))

    def right(output: Any, targets: Any, input_lengths: Any, target_lengths: Any) -> float:
        found, _ = fr.ctc_decode(output, input_lengths)
        pairs = zip(found, targets, target_lengths, strict=True)
        return float(np.mean([list(word) == list(y[:n]) for word, y, n in pairs]))

    run = Trainer(
        model,
        fr.ctc_loss,
        optim.Adam(model, lr=0.02),
        epochs=15,
        batch_size=12,
        metrics={"right": right},
        progress=False,
    )
    history = run.fit((inputs, labels), spelled(30, 1))
    assert history["right"][-1] > 0.9 > 0.4 > history["right"][0]


def test_a_transducer_learns() -> None:
    inputs, labels = spelled(40)
    model = Transducer()
    loss = partial(fr.transducer_loss, blank=0)
    run = Trainer(model, loss, optim.Adam(model, lr=0.02), epochs=20, batch_size=8, progress=False)
    before = run.evaluate((inputs, labels))["loss"]
    alone = []
    for x, y in zip(inputs, labels, strict=True):
        logits, _ = model.forward(x[:, None], targets=y[None], target_lengths=np.array([len(y)]))
        alone.append(loss(logits, y[None], [len(x)], [len(y)])[0])
    assert before == pytest.approx(np.mean(alone), rel=1e-5)
    assert run.fit((inputs, labels))["loss"][-1] < 0.2 * before


def test_errors_of_labels() -> None:
    inputs, labels = spelled(4)
    model = fr.Sequential(fr.GRU(4, 4, seed=0))
    run = Trainer(model, fr.ctc_loss, optim.SGD(model, lr=0.1), progress=False)
    for data, kind, text in (
        ((inputs, labels[:3]), ValueError, "train targets: expected as many as sequences"),
        (
            (inputs, [y.astype("f4") for y in labels]),
            TypeError,
            r"train targets: expected arrays of integers",
        ),
        ((inputs, [y[:, None] for y in labels]), TypeError, r"train targets: expected arrays of integers"),
        ((inputs, "abcd"), TypeError, "train targets: expected a list of arrays"),
    ):
        with pytest.raises(kind, match=f"^{text}"):
            run.fit(data)
    pooled = fr.Sequential(model, fr.Pool("last"))
    with pytest.raises(
        ValueError, match=r"^model: expected an output for each step with a loss that has inp"
    ):
        Trainer(pooled, fr.ctc_loss, optim.SGD(pooled, lr=0.1), progress=False).fit((inputs, labels))
    with pytest.raises(ValueError, match=r"^batch_first: expected False with a loss that has input_lengths"):
        Trainer(model, fr.ctc_loss, optim.SGD(model, lr=0.1), batch_first=True)


# Targets that do not count ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("even", [False, True])
def test_the_mean_of_an_epoch_is_over_targets_that_count(even: bool, ignored: int) -> None:
    inputs, targets = steps(12)
    if even:
        inputs, targets = [x[:4] for x in inputs], [y[:4] for y in targets]
    rng = np.random.default_rng(0)
    targets = [np.where(rng.random(len(y)) < 0.5, ignored, y) for y in targets]
    targets[3][:] = ignored
    model = fr.Sequential(fr.GRU(3, 8, seed=0), fr.Linear(8, 2, seed=1))
    loss = fr.cross_entropy if ignored == -100 else partial(fr.cross_entropy, ignore_index=ignored)
    run = Trainer(
        model,
        loss,
        optim.SGD(model, lr=0.0),
        epochs=1,
        batch_size=1,
        metrics={"accuracy": accuracy},
        progress=False,
    )
    history = run.fit((inputs, targets), (inputs, targets))
    total, right, count = 0.0, 0, 0
    for x, y in zip(inputs, targets, strict=True):
        logits = model(x)
        total += fr.cross_entropy(logits, y, ignore_index=ignored, reduction="sum")[0]
        right += int((logits.argmax(-1) == y)[y != ignored].sum())
        count += int((y != ignored).sum())
    assert history["loss"] == [pytest.approx(total / count, rel=1e-5)]
    assert history["validation_loss"] == [pytest.approx(total / count, rel=1e-5)]
    assert history["accuracy"] == [pytest.approx(right / count, rel=1e-12)]


def test_classes_of_sequences_that_do_not_count() -> None:
    inputs, classes = sequences(21)
    classes[::2] = -100
    model = classifier(dropout=0.0)
    run = Trainer(
        model,
        fr.cross_entropy,
        optim.SGD(model, lr=0.0),
        epochs=1,
        batch_size=4,
        metrics={"accuracy": accuracy},
        progress=False,
    )
    found = run.evaluate((inputs, classes))
    some = run.evaluate((inputs[1::2], classes[1::2]))
    assert found["loss"] == pytest.approx(some["loss"], rel=1e-6)
    assert found["accuracy"] == pytest.approx(some["accuracy"], rel=1e-12)


def test_weights_of_classes_in_more_axes() -> None:
    """Of (N, K) classes every one counts."""
    y = np.array([[0, 1, -100], [2, -100, -100], [1, 1, 1]])
    data = SequenceData(([np.zeros((n, 2)) for n in (3, 2, 4)], y))
    assert [data.batch(np.array([n])).weight for n in range(3)] == [2, 1, 3]
    per_step = SequenceData(
        ([np.zeros((n, 2)) for n in (3, 2)], [np.full((3, 2), -100), np.ones((2, 2), int)])
    )
    assert per_step.batch(np.array([0, 1])).weight == 4


# A last batch of one sequence ------------------------------------------------------------------------------


def test_a_sequence_left_alone_joins_the_batch_before_where_there_is_batch_norm() -> None:
    def sizes(norm: bool, count: int) -> list[int]:
        head = (fr.BatchNorm(8),) if norm else ()
        model = fr.Sequential(fr.GRU(3, 8, seed=0), fr.Pool("last"), *head, fr.Linear(8, 3, seed=1))
        found: list[int] = []

        def loss(output: Any, targets: Any) -> Any:
            found.append(len(output))
            return fr.cross_entropy(output, targets)

        run = Trainer(model, loss, optim.Adam(model), epochs=1, batch_size=4, progress=False)
        run.fit(sequences(count))
        return sorted(found)

    assert sizes(True, 9) == [4, 5] and sizes(False, 9) == [1, 4, 4] and sizes(True, 10) == [2, 4, 4]
    with pytest.raises(ValueError, match=r"^x: expected two rows that count or more in training mode"):
        sizes(True, 1)
