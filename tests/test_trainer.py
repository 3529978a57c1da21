"""Trainer: what it learns, how it diverges, errors."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from trainer_runs import accuracy, classifier, sequences, steps, trainer

import fusedrnn as fr
from fusedrnn import optim
from fusedrnn.training import DivergedError, EarlyStopping, SequenceData, Trainer

pytestmark = pytest.mark.once


# Learning ---------------------------------------------------------------------------------------------------


def test_a_classifier_learns(capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier(dropout=0.0)
    run = Trainer(
        model, fr.cross_entropy, optim.Adam(model, lr=0.02), epochs=25, metrics={"accuracy": accuracy}
    )
    history = run.fit(sequences(200), sequences(50, 1))
    assert set(history) == {"loss", "lr", "validation_loss", "accuracy"}
    assert all(len(values) == 25 for values in history.values())
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert history["accuracy"][-1] > 0.8
    assert run.step == len(run.losses) == len(run.norms) == 25 * 7
    assert not model.training
    assert run.evaluate(sequences(50, 1)) == {
        "loss": history["validation_loss"][-1],
        "accuracy": history["accuracy"][-1],
    }
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25 and lines[-1].startswith("epoch 25/25  loss 0.")


def test_targets_of_steps_leave_padding_out() -> None:
    """The loss of a padded batch is the mean over its steps, and so is the gradient."""
    inputs, targets = steps()
    model = fr.Sequential(fr.GRU(3, 8, bidirectional=True, seed=0), fr.Linear(16, 2, seed=1))
    run = Trainer(model, fr.cross_entropy, optim.SGD(model, lr=0.0), epochs=1, batch_size=20, progress=False)
    run.fit((inputs, targets))
    grads = {name: array.copy() for name, array in model.grads.items()}
    model.zero_grad()
    loss, count = 0.0, sum(len(x) for x in inputs)
    for x, y in zip(inputs, targets, strict=True):
        logits, tape = model.forward(x)
        part, dlogits = fr.cross_entropy(logits, y)
        loss += part * len(x) / count
        model.backward(tape, (dlogits * (len(x) / count)).astype(np.float32))
    assert run.losses == [pytest.approx(loss, rel=1e-5)]
    for name, array in model.grads.items():
        np.testing.assert_allclose(grads[name], array, rtol=1e-4, atol=1e-6)


def test_a_loss_with_lengths_gets_everything() -> None:
    class Tagger(fr.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = fr.Sequential(fr.LSTM(3, 8, seed=0), fr.Linear(8, 2, seed=1))
            self.crf = fr.CRF(2, seed=2)

        def forward(self, x: Any, lengths: Any = None) -> Any:
            return self.body.forward(x, lengths=lengths)

        def backward(self, tape: Any, dy: Any) -> Any:
            return self.body.backward(tape, dy)

    model = Tagger()
    before = model.crf.state_dict()
    run = Trainer(model, model.crf.loss, optim.Adam(model, lr=0.02), epochs=20, progress=False)
    history = run.fit(steps(60))
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    inputs, tags = steps(60)
    whole = [model.crf.loss(model.body(x[:, None]), y[:, None])[0] for x, y in zip(inputs, tags, strict=True)]
    assert run.evaluate((inputs, tags))["loss"] == pytest.approx(np.mean(whole), rel=1e-5)
    assert not np.array_equal(before["transitions"], model.crf.state_dict()["transitions"])


def test_a_network_alone_and_batch_first() -> None:
    x = np.random.default_rng(0).standard_normal((12, 5, 3), dtype=np.float32)
    y = list(np.tanh(x[..., :1] + x[..., 1:2]).repeat(2, axis=-1))
    found = []
    for batch_first in (False, True):
        gru = fr.GRU(3, 2, batch_first=batch_first, seed=0)
        run = Trainer(
            gru, fr.mse_loss, optim.Adam(gru, lr=0.05), epochs=20, batch_first=batch_first, progress=False
        )
        found.append(run.fit((x, y))["loss"])
        assert found[-1][-1] < 0.5 * found[-1][0]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_batches_hold_neighbours_in_length() -> None:
    rng = np.random.default_rng(0)
    inputs = [np.zeros((length, 1), np.float32) for length in rng.integers(1, 200, 640)]
    data = SequenceData((inputs, np.arange(640)))
    assert repr(data).startswith("SequenceData(640 sequences of ")
    batches = data.shuffled(32, seed=0, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(640))
    padding = [1.0 - data.lengths[b].mean() / data.lengths[b].max() for b in batches]
    assert np.mean(padding) < 0.2  # half of it if they were drawn at random
    assert [list(b) for b in batches] == [list(b) for b in data.shuffled(32, 0, 0)]
    assert [list(b) for b in batches] != [list(b) for b in data.shuffled(32, 0, 1)]
    assert [list(b) for b in batches] != [list(b) for b in data.shuffled(32, 1, 0)]
    largest = [data.lengths[b].max() for b in batches]
    assert largest != sorted(largest)


def test_schedules_of_steps_and_epochs_and_metrics() -> None:
    def rates(make: Callable[[optim.Optimizer], optim.Scheduler], epochs: int = 3) -> list[float]:
        found: list[float] = []
        model = classifier()
        optimizer = optim.SGD(model, lr=1e-3, momentum=0.9)

        class Watch:
            def on_step(self, run: Trainer) -> None:
                found.append(run.optimizer.lr)

        run = Trainer(
            model,
            fr.cross_entropy,
            optimizer,
            make(optimizer),
            callbacks=[Watch()],
            epochs=epochs,
            batch_size=20,
            progress=False,
        )
        run.fit(sequences())
        return found

    assert rates(lambda o: optim.ExponentialLR(o, 0.5)) == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4]
    cycle = rates(lambda o: optim.OneCycleLR(o, 0.01, total_steps=6))
    assert np.argmax(cycle) == 1 and cycle[-1] == pytest.approx(4e-8)
    assert rates(lambda o: optim.ReduceLROnPlateau(o, patience=0, threshold=0.9))[-1] == pytest.approx(1e-4)


def test_early_stopping_goes_back_to_the_best() -> None:
    model = classifier()
    run = Trainer(
        model,
        fr.cross_entropy,
        optim.Adam(model, lr=0.05),
        early_stopping=EarlyStopping(3),
        epochs=100,
        progress=False,
    )
    history = run.fit(sequences(12), sequences(30, 5))
    early = run.early_stopping
    assert early is not None and run.epoch == early.best_epoch + 3 < 100
    best = min(history["validation_loss"])
    assert early.best == best == history["validation_loss"][early.best_epoch - 1]
    assert run.evaluate(sequences(30, 5))["loss"] == best


def test_a_callback_can_stop() -> None:
    run = trainer(callbacks=[lambda run: setattr(run, "stop", run.epoch == 2)], early_stopping=None)
    run.fit(sequences())
    assert run.epoch == 2
    run.callbacks.clear()
    run.fit(sequences())
    assert run.epoch == 6


# Divergence -------------------------------------------------------------------------------------------------


def poisoned(data: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
    data[0][7][2, 1] = np.nan
    return data


def overflowing(output: Any, targets: Any) -> tuple[float, Any]:
    return 1.0, np.full_like(output, 3e38)


def test_a_diverged_run_says_why() -> None:
    def weights(run: Trainer) -> None:
        run.model.parameters["0.weight_hh_l0"][0, 0] = np.inf

    runs: list[tuple[Trainer, Any, str]] = [
        (trainer(), poisoned(sequences()), "the loss is nan: the inputs hold NaN"),
        (
            trainer(callbacks=[weights]),
            sequences(),
            r"epoch 2\): the loss is nan: parameters are not finite: 0.weight_hh_l0; norms of the gradients",
        ),
    ]
    model = classifier()
    runs += [
        (
            Trainer(model, overflowing, optim.Adam(model), progress=False),
            sequences(),
            r"step 1 \(epoch 1\): the norm of the gradients is (nan|inf): gradients are not finite: .*clip=1",
        ),
        (
            Trainer(model, lambda y, t: (math.nan, y), optim.Adam(model), progress=False),
            sequences(),
            "are finite; look at the loss",
        ),
    ]
    for run, data, message in runs:
        with pytest.raises(DivergedError, match=message):
            run.fit(data)
        assert np.isfinite(run.losses).all()


def test_a_diverged_step_is_not_taken() -> None:
    model = classifier()
    before = model.state_dict()
    run = Trainer(model, overflowing, optim.Adam(model), progress=False)
    with pytest.raises(ArithmeticError):
        run.fit(sequences())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert run.optimizer.step_count == 0


# Errors -----------------------------------------------------------------------------------------------------

MODEL = classifier()
ADAM = optim.Adam(MODEL)
X, Y = sequences(4)


def make(**options: Any) -> Trainer:
    given: dict[str, Any] = {"model": MODEL, "loss": fr.cross_entropy, "optimizer": ADAM, "progress": False}
    return Trainer(**{**given, **options})


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "model": (lambda: make(model=3), TypeError, "model: expected a Module"),
    "loss": (lambda: make(loss="mse"), TypeError, "loss: expected a function"),
    "optimizer": (lambda: make(optimizer=1e-3), TypeError, "optimizer: expected an Optimizer"),
    "other_optimizer": (
        lambda: make(optimizer=optim.Adam(fr.Linear(2, 2))),
        ValueError,
        "optimizer: expected one",
    ),
    "schedule": (lambda: make(schedule=0.1), TypeError, "schedule: expected"),
    "other_schedule": (
        lambda: make(schedule=optim.StepLR(optim.Adam(MODEL), 1)),
        ValueError,
        "schedule: exp",
    ),
    "clip": (lambda: make(clip=-1.0), ValueError, "clip"),
    "early_stopping": (lambda: make(early_stopping=0), ValueError, "early_stopping"),
    "callbacks": (lambda: make(callbacks=[3]), TypeError, r"callbacks\[0\]"),
    "epochs": (lambda: make(epochs=1.5), TypeError, "epochs"),
    "monitor": (
        lambda: make(early_stopping=EarlyStopping(monitor="accuracy")).fit((X, Y)),
        ValueError,
        "monitor: expected one of loss, lr, got 'accuracy'",
    ),
    "resume": (
        lambda: make().fit((X, Y), resume=True),
        ValueError,
        "resume: expected a Trainer with checkpoint=",
    ),
    "pair": (lambda: make().fit(X), TypeError, r"train: expected a pair \(inputs, targets\)"),
    "number": (lambda: make().fit((X, Y[:3])), ValueError, "train targets: expected as many"),
    "none": (lambda: make().fit(([], [])), ValueError, "train inputs: expected at least one"),
    "lists": (lambda: make().fit(([x.tolist() for x in X], Y)), TypeError, r"train inputs\[0\]: expected"),
    "features": (lambda: make().fit(([*X[:3], X[3][:, :2]], Y)), ValueError, r"train inputs\[3\]"),
    "dtypes": (lambda: make().fit(([*X[:3], X[3].astype("f8")], Y)), TypeError, r"train inputs\[3\]"),
    "steps": (
        lambda: make().fit((X, [x[1:, 0] for x in X])),
        ValueError,
        r"train targets\[0\]: expected one for",
    ),
    "pooled": (
        lambda: make().fit((X, [np.zeros(len(x), int) for x in X])),
        ValueError,
        "model: expected an output",
    ),
    "validation": (lambda: make().fit((X, Y), (X, Y[:2])), ValueError, "validation targets"),
    "no_lengths": (
        lambda: Trainer(lin := fr.Linear(3, 2), fr.mse_loss, optim.Adam(lin)).fit((X, X)),
        ValueError,
        "train: expected sequences of one length",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_a_bar_on_a_terminal() -> None:
    """With rich: drawn on a pseudo-terminal, and a line for each epoch stays."""
    import pty

    code = "import trainer_runs as t; t.trainer(progress=None, epochs=2).fit(t.sequences())"
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    text = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        if not piece:
            break
        text += piece
    assert process.wait() == 0
    os.close(master)
    assert b"epoch 2/2" in text and b"\x1b[" in text and b"loss" in text
