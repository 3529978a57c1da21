"""Trainer: what would go wrong quietly, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_runs import accuracy, classifier, sequences, steps, trainer

import fusedrnn as fr
from fusedrnn import optim
from fusedrnn.training import EarlyStopping, Trainer

pytestmark = pytest.mark.once


def test_a_batch_without_a_step_adds_nothing() -> None:
    """Sequences of no steps, with targets of steps, alone in a batch: in training and in validation."""
    inputs, targets = steps(6)
    empty = [np.zeros((0, 3), np.float32)], [np.zeros(0, np.int64)]

    def fitted(data: Any, held_out: Any) -> dict[str, list[float]]:
        model = fr.Sequential(fr.GRU(3, 8, seed=0), fr.Linear(8, 2, seed=1))
        optimizer = optim.SGD(model, lr=0.0)
        metrics = {"accuracy": accuracy}
        run = Trainer(
            model, fr.cross_entropy, optimizer, epochs=1, batch_size=1, progress=False, metrics=metrics
        )
        return run.fit(data, held_out)

    whole, more = (inputs, targets), (inputs + empty[0], targets + empty[1])
    for name, (value,) in fitted(more, more).items():
        assert value == pytest.approx(fitted(whole, whole)[name][0], rel=1e-12)


def test_a_callback_may_look_at_the_model_in_evaluation_mode() -> None:
    modes = []

    class Sample:
        def on_step(self, run: Trainer) -> None:
            modes.append(run.model.training)

        def on_epoch(self, run: Trainer) -> None:
            run.model.eval()

    trainer(epochs=2, callbacks=[Sample()]).fit(sequences())
    assert modes == [True] * 10


def test_a_metric_that_is_never_a_number_is_no_improvement() -> None:
    stopping = EarlyStopping(2, "share")
    run = trainer(epochs=9, early_stopping=stopping, metrics={"share": lambda output, targets: math.nan})
    run.fit(sequences(), sequences(8, 1))
    assert run.epoch == 2 and stopping.waited == 2 and not stopping.best_state


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"metrics": {"loss": accuracy}}, ValueError, "metrics: expected a name that the history"),
        ({"metrics": {"lr": accuracy}}, ValueError, "metrics: expected a name that the history"),
        ({"metrics": {"accuracy": "accuracy"}}, TypeError, r"metrics\['accuracy'\]: expected a function"),
        ({"metrics": ["accuracy"]}, TypeError, "metrics: expected a dictionary"),
        ({"callbacks": print}, TypeError, "callbacks: expected a list"),
    ],
)
def test_errors_of_metrics_and_callbacks(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        trainer(**options)


def test_a_loss_without_a_gradient() -> None:
    model = classifier()
    run = Trainer(model, lambda output, targets: 1.0, optim.SGD(model, lr=0.1), progress=False)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match=r"^loss: expected a function that returns the loss and the gradient"):
        run.fit(sequences())
    assert repr(run) == "Trainer(Sequential, <lambda>, SGD, epochs=10, epoch 0, step 0)"


def test_an_array_of_targets_of_steps_is_not_compared_with_other_steps() -> None:
    """Where batches are as large as sequences are long, shapes alone would not tell."""
    x, y = np.zeros((8, 4, 3), np.float32), np.zeros((8, 4), np.int64)

    def run(*head: fr.Module, **options: Any) -> Trainer:
        model = fr.Sequential(fr.GRU(3, 8, seed=0, **options), *head)
        settings = {"epochs": 1, "batch_size": 4, "progress": False, **options}
        return Trainer(model, fr.cross_entropy, optim.SGD(model, lr=0.1), **settings)

    with pytest.raises(ValueError, match=r"^train targets: expected a list .* use list\(targets\)"):
        run(fr.Linear(8, 2)).fit((x, y))
    run(fr.Linear(8, 2)).fit((x, list(y)))
    run(fr.Linear(8, 2), batch_first=True).fit((x, y))
    model = fr.Sequential(fr.GRU(3, 8, seed=0), fr.Pool("last"), fr.Linear(8, 4, seed=1))
    whole = Trainer(model, fr.mse_loss, optim.SGD(model, lr=0.1), epochs=1, progress=False)
    whole.fit((x, y.astype(np.float32)))


def test_a_run_does_not_end_because_another_did(tmp_path: Path) -> None:
    """One EarlyStopping for two runs: each begins without a past, unless it is resumed."""
    stopping = EarlyStopping(1)
    first = trainer(tmp_path / "run", epochs=50, early_stopping=stopping, schedule=None)
    first.optimizer.lr = 1.0
    first.fit(sequences(), sequences(10, 1))
    assert first.epoch < 50 and stopping.finished
    best = stopping.best
    second = trainer(epochs=1, early_stopping=stopping)
    second.fit(sequences(), sequences(10, 1))
    assert second.epoch == 1 and stopping.best != best
    resumed = trainer(tmp_path / "run", epochs=50, early_stopping=stopping, schedule=None)
    resumed.fit(sequences(), sequences(10, 1), resume=True)
    assert resumed.epoch == first.epoch and stopping.best == best


def test_a_callback_adds_to_the_history(tmp_path: Path) -> None:
    """A number of NumPy among them costs no checkpoint."""

    def note(run: Trainer) -> None:
        run.history.setdefault("mine", []).append(np.float32(0.5))  # type: ignore[arg-type]

    trainer(tmp_path / "run", epochs=1, callbacks=[note]).fit(sequences())
    run = trainer(tmp_path / "run", epochs=2, callbacks=[note])
    assert run.fit(sequences(), resume=True)["mine"] == [0.5, 0.5]


def test_parameters_that_the_last_step_leaves_not_finite(tmp_path: Path) -> None:
    """There is no further loss that would be NaN: `fit` returned a model of infinities, and saved it."""
    model = classifier(dropout=0.0)
    optimizer = optim.SGD(model, lr=1e38)
    run = Trainer(model, fr.cross_entropy, optimizer, epochs=1, progress=False, checkpoint=tmp_path / "run")
    model[2].parameters["bias"][...] = 3.4e38
    data = sequences(4)[0], np.full(4, 2)

    def loss(output: object, targets: object) -> tuple[float, object]:
        return 1.0, -np.ones((4, 3), np.float32)

    run.loss = loss  # type: ignore[assignment]
    with pytest.raises(ArithmeticError, match=r"step 1 \(epoch 1\): parameters are not finite: 2.bias;"):
        run.fit(data)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_no_file(tmp_path: Path) -> None:
    """It asked for resume=True, which a folder does not take either."""
    for path in (tmp_path, str(tmp_path), "", "."):
        with pytest.raises(ValueError, match=r"^checkpoint: expected the path of a file, got the folder"):
            trainer(path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^checkpoint: expected the path of a file or None, got int"):
        trainer(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^resume: expected a bool, got 'no'"):
        trainer(tmp_path / "run").fit(sequences(), resume="no")  # type: ignore[arg-type]


def test_a_model_or_optimizer_that_was_set_since() -> None:
    """The optimiser went on with the first model, and the second was measured and stayed as it was."""
    run = trainer(epochs=1)
    run.fit(sequences())
    run.epochs, run.model = 2, classifier()
    with pytest.raises(ValueError, match=r"^optimizer: expected one over the model or parts of it"):
        run.fit(sequences())
    run.optimizer = optim.Adam(run.model, lr=0.01)
    with pytest.raises(ValueError, match=r"^schedule: expected one of this optimizer"):
        run.fit(sequences())


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("batch_size", 0, ValueError, "batch_size: expected an int >= 1, got 0"),
        ("epochs", "4", TypeError, "epochs: expected an int, got '4'"),
        ("clip", -1, ValueError, "clip: expected a number"),
        ("callbacks", None, TypeError, "callbacks: expected a list"),
        ("bptt", 3, ValueError, "bptt: expected a model with a state"),
    ],
)
def test_a_setting_that_was_set_since(name: str, value: Any, kind: type[Exception], message: str) -> None:
    run = trainer(epochs=1)
    run.fit(sequences())
    setattr(run, name, value)
    with pytest.raises(kind, match=f"^{message}"):
        run.fit(sequences())


def test_settings_that_are_set_between_two_calls_do_as_the_constructor_s(tmp_path: Path) -> None:
    run = trainer(epochs=1, early_stopping=None, metrics={"old": accuracy})
    run.fit(sequences())
    came, callbacks = [], run.callbacks
    run.epochs, run.metrics, run.early_stopping = 2, {"accuracy": accuracy}, 5
    run.checkpoint = str(tmp_path / "run")
    assert "accuracy" in run.fit(sequences(), sequences(8, seed=1)) and (tmp_path / "run").exists()
    assert set(run.evaluate(sequences(8, seed=1))) == {"loss", "accuracy"}
    # The lists stay the same ones, which may have been kept.
    callbacks.append(came.append)
    run.metrics["again"] = accuracy
    run.epochs = 3
    assert len(run.fit(sequences(), sequences(8, seed=1))["again"]) == 1 and came == [run]
    # A file of another run is not written over.
    (tmp_path / "other").write_bytes(b"mine")
    run.epochs, run.checkpoint = 4, tmp_path / "other"
    with pytest.raises(ValueError, match=r"^checkpoint: expected no file yet"):
        run.fit(sequences())
    assert (tmp_path / "other").read_bytes() == b"mine"


@pytest.mark.parametrize("place", [0, 1])
def test_one_masked_array_among_others_is_refused_before_a_step(place: int) -> None:
    data = steps(6)
    data[place][4] = np.ma.masked_array(data[place][4])  # type: ignore[call-overload]
    model = fr.Sequential(fr.GRU(3, 8, seed=0), fr.Linear(8, 2, seed=1))
    run = Trainer(model, fr.cross_entropy, optim.SGD(model, lr=0.1), batch_size=1, progress=False)
    name = ("inputs", "targets")[place]
    with pytest.raises(TypeError, match=rf"^train {name}\[4\]: expected an array without a mask"):
        run.fit(data)
    assert not run.step


def test_a_loss_or_a_metric_that_was_set_since() -> None:
    """The lengths that the first loss took went to the second."""

    def with_lengths(output: Any, targets: Any, lengths: Any) -> Any:
        assert len(lengths) == len(targets)
        return fr.cross_entropy(output, targets)

    data = sequences()
    run, want = trainer(epochs=1), trainer(epochs=1)
    run.loss = with_lengths
    assert run.fit(data)["loss"] == pytest.approx(want.fit(data)["loss"], rel=1e-6)
    run.loss, run.metrics = fr.cross_entropy, {"name": lambda output, targets: "good"}
    with pytest.raises(TypeError, match=r"^metrics\['name'\]: .* a function that returns a number, got"):
        run.evaluate(data)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({"inputs": np.array([None, None])}, TypeError, "inputs: expected a list of .* array of objects"),
        ({"inputs": np.zeros(2, "f")}, ValueError, r"inputs: expected shape \(N, T, \.\.\.\), got \(2,\)"),
        ({"inputs": [np.zeros((2, 3), "f"), object()]}, TypeError, r"inputs\[1\]: expected a numpy"),
        ({"targets": np.array([None, None])}, TypeError, r"targets: expected an array \(N, \.\.\.\)"),
        ({"targets": np.int64(3)}, TypeError, r"targets: expected an array \(N, \.\.\.\)"),
    ],
)
def test_data_that_are_no_sequences(data: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = {"inputs": [np.zeros((2, 3), "f")] * 2, "targets": np.zeros(2, np.int64), **data}
    with pytest.raises(kind, match=f"^train {message}"):
        trainer().fit((given["inputs"], given["targets"]))


def test_early_stopping_watches_a_name() -> None:
    with pytest.raises(TypeError, match=r"^monitor: expected a string or None, got 3"):
        EarlyStopping(1, monitor=3)  # type: ignore[arg-type]
