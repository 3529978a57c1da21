"""Trainer: exact resumption, also after kill -9, and the file that it needs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainer_runs
from trainer_runs import bits, kill_again_and_again, sequences, trainer

import fusedrnn as fr
from fusedrnn import files, optim
from fusedrnn.training import Trainer

pytestmark = pytest.mark.once

# Exact resumption -------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


class StopAt:
    """Ends a run at a step, as an exception does; its own state is saved, too."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def on_step(self, run: Trainer) -> None:
        self.seen += 1
        if run.step == self.at:
            raise Stopped

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


@pytest.mark.parametrize("name", ["sequential", "plateau", "one_cycle"])
def test_resuming_equals_never_stopping(name: str, tmp_path: Path) -> None:
    def made(stop: int, path: Path) -> Trainer:
        run = trainer(path, callbacks=[StopAt(stop)])
        schedules: dict[str, Callable[[], optim.Scheduler | None]] = {
            "sequential": lambda: run.schedule,
            "plateau": lambda: optim.ReduceLROnPlateau(run.optimizer, patience=0),
            "one_cycle": lambda: optim.OneCycleLR(run.optimizer, 0.02, total_steps=30),
        }
        run.schedule = schedules[name]()
        return run

    data = sequences(), sequences(10, 1)
    whole = made(-1, tmp_path / "whole")
    whole.fit(*data)
    for stop in (1, 4, 9, 17, 30):
        run = made(stop, tmp_path / "parts")
        with pytest.raises(Stopped):
            run.fit(*data, resume=True)
    run = made(-1, tmp_path / "parts")
    assert run.fit(*data, resume=True) == whole.history
    assert bits(run) == bits(whole)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    again = made(-1, tmp_path / "parts")
    again.fit(*data, resume=True)
    assert bits(again) == bits(whole) and again.losses == whole.losses


def test_more_epochs_equal_as_many_from_the_start(tmp_path: Path) -> None:
    """In the same process, and from the file, also where the model went back to its best parameters."""
    data = sequences(), sequences(10, 1)
    whole = trainer(tmp_path / "whole", epochs=6)
    whole.fit(*data)
    first = trainer(tmp_path / "first", epochs=3)
    first.fit(*data)
    second = trainer(tmp_path / "first", epochs=6)
    second.fit(*data, resume=True)
    assert bits(second) == bits(whole)


def test_going_on_in_the_same_process() -> None:
    """From the last parameters, though the model was left with the best ones."""
    inputs, classes = sequences()
    held_out = sequences(10, 1)[0], (sequences(10, 1)[1] + 1) % 3
    whole, parts = trainer(epochs=6), trainer(epochs=3)
    whole.fit((inputs, classes), held_out)
    parts.fit((inputs, classes), held_out)
    early = parts.early_stopping
    assert early is not None and early.best_epoch < 3
    parts.epochs = 6
    parts.fit((inputs, classes), held_out)
    assert parts.losses == whole.losses


def test_killing_loses_nothing(tmp_path: Path) -> None:
    """kill -9 at random moments, of processes that each go on where the last one was killed."""
    path, epochs = tmp_path / "killed", 40

    def ended() -> None:
        files.load(path, "fusedrnn run of a Trainer")

    kill_again_and_again(trainer_runs.__file__, path, epochs, 3, 0.05, ended)
    resumed, whole = trainer(path, epochs=epochs), trainer(tmp_path / "whole", epochs=epochs)
    resumed.fit(sequences(), sequences(10, 1), resume=True)
    whole.fit(sequences(), sequences(10, 1))
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["full", "read-only"])
def test_the_last_checkpoint_stays(cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    run = trainer(path, epochs=2)
    run.fit(sequences())
    kept = path.read_bytes()

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC if cause == "full" else errno.EROFS, "refused")

    monkeypatch.setattr(os, "fsync" if cause == "full" else "open", refuse)
    run.epochs = 4
    with pytest.raises(OSError, match="run: cannot write: refused"):
        run.fit(sequences())
    monkeypatch.undo()
    assert path.read_bytes() == kept
    assert list(tmp_path.iterdir()) == [path]
    resumed, whole = trainer(path, epochs=4), trainer(epochs=4)
    resumed.fit(sequences(), resume=True)
    whole.fit(sequences())
    assert resumed.losses == whole.losses


def test_a_folder_that_is_not_there_costs_no_epoch(tmp_path: Path) -> None:
    run = trainer(tmp_path / "none" / "run")
    with pytest.raises(OSError, match="cannot write: No such file"):
        run.fit(sequences())
    assert run.step == 0


def decayed(path: Path) -> Trainer:
    """The run with an optimiser whose state has the same names."""
    run = trainer(path)
    run.optimizer = optim.AdamW(run.model, lr=0.02)
    run.schedule = optim.SequentialLR(run.optimizer, [optim.ExponentialLR(run.optimizer, 0.9)], [])
    return run


def test_a_checkpoint_of_something_else_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    trainer(path, epochs=1).fit(sequences())
    with pytest.raises(ValueError, match=r"^checkpoint: expected no file yet, got .*resume=True"):
        trainer(path).fit(sequences())
    other: dict[str, tuple[Callable[[], Trainer], Any]] = {
        "train: expected the data": (lambda: trainer(path), sequences(seed=3)),
        "batch_size: expected 8": (lambda: trainer(path, batch_size=4), sequences()),
        "seed: expected 0": (lambda: trainer(path, seed=4), sequences()),
        "schedule: expected SequentialLR": (lambda: trainer(path, schedule=None), sequences()),
        "early_stopping: expected EarlyStopping": (lambda: trainer(path, early_stopping=None), sequences()),
        "optimizer: expected Adam, .* got AdamW": (lambda: decayed(path), sequences()),
    }
    for message, (make, data) in other.items():
        run = make()
        before = bits(run)
        with pytest.raises(ValueError, match=f"{path}: not a checkpoint of this run: {message}"):
            run.fit(data, resume=True)
        run._digest = ""
        assert bits(run) == before
    model = fr.Sequential(fr.GRU(3, 9), fr.Pool("last"), fr.Linear(9, 3))
    bigger = Trainer(model, fr.cross_entropy, optim.Adam(model), batch_size=8, checkpoint=path)
    with pytest.raises(ValueError, match="not a checkpoint of this run"):
        bigger.fit(sequences(), resume=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="damaged"):
        trainer(path).fit(sequences(), resume=True)


def weighted(smoothing: float, *weights: float) -> Any:
    return partial(fr.cross_entropy, weight=np.array(weights, np.float32), label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("message", "first", "then"),
    [
        (r"model\.1: expected Pool\('last'\), with .* got Pool\('mean'\)", {}, {"pool": "mean"}),
        (r"model\.0: expected GRU\(3, 8, .*, got GRU\(3, 8, .*compute='bf16'", {}, {"compute": "bf16"}),
        (r"model\.0: expected GRU\(3, 8, .*dropout=0.2\), .* dropout=0.3\)", {}, {"dropout": 0.3}),
        (r"model\.3: expected none, with which it was made, got Dropout\(p=0.1\)", {}, {"more": 0.1}),
        (r"model\.3: expected Dropout\(p=0.1\), with .* got none", {"more": 0.1}, {}),
        ("loss: expected cross_entropy, .*, got mse_loss", {}, {"loss": fr.mse_loss}),
        (r"loss: expected cross_entropy, .*, got cross_entropy\(..., ", {}, {"loss": weighted(0.0, 1, 1, 2)}),
        (
            r"loss: .*label_smoothing=0.1, weight=float32 \(3,\) .*, got .*weight=float32",
            {"loss": weighted(0.1, 1, 1, 1)},
            {"loss": weighted(0.1, 1, 1, 2)},
        ),
    ],
)
def test_another_model_or_loss_is_refused_by_name(
    message: str, first: dict[str, Any], then: dict[str, Any], tmp_path: Path
) -> None:
    """Of the same shapes, which is all that the parameters tell."""
    if "bf16" in then.values() and fr.config()["bf16_isa"] is None:
        pytest.skip("this CPU has no bfloat16")

    def made(
        pool: Any = "last", compute: str = "float32", dropout: float = 0.2, more: Any = None, loss: Any = None
    ) -> Trainer:
        gru = fr.GRU(3, 8, num_layers=2, dropout=dropout, compute=compute, seed=0)
        drop = [] if more is None else [fr.Dropout(more, seed=2)]
        model = fr.Sequential(gru, fr.Pool(pool), fr.Linear(8, 3, seed=1), *drop)
        return Trainer(
            model,
            loss or fr.cross_entropy,
            optim.Adam(model),
            epochs=2,
            progress=False,
            checkpoint=tmp_path / "run",
        )

    run = made(**first)
    run.epochs = 1
    run.fit(sequences())
    other = made(**then)
    before = bits(other)
    with pytest.raises(ValueError, match=f"not a checkpoint of this run: {message}"):
        other.fit(sequences(), resume=True)
    other._digest = ""
    assert bits(other) == before
    run = made(**first)
    run.model[0].recompute = True  # type: ignore[index]
    run.fit(sequences(), resume=True)


def test_an_option_of_a_module_with_members_is_told(tmp_path: Path) -> None:
    def made(heads: int) -> Trainer:
        model = fr.Sequential(fr.SelfAttention(4, heads, seed=0), fr.Pool("last"), fr.Linear(4, 3, seed=1))
        optimizer = optim.Adam(model)
        return Trainer(
            model, fr.cross_entropy, optimizer, epochs=1, progress=False, checkpoint=tmp_path / "run"
        )

    inputs, classes = sequences()
    data = [np.ones((len(x), 4), np.float32) for x in inputs], classes
    made(1).fit(data)
    with pytest.raises(ValueError, match=r"model\.0: expected SelfAttention\(4\), with .* num_heads=2"):
        made(2).fit(data, resume=True)


def test_a_forged_checkpoint_changes_nothing(tmp_path: Path) -> None:
    """One whose checksum is right, and whose contents are not."""
    path = tmp_path / "run"
    trainer(path, epochs=1).fit(sequences())
    tensors, content = files.load(path, "fusedrnn run of a Trainer")
    forged: list[dict[str, Any]] = [
        {"position": [1, -1, 0.0, 0]},
        {"position": [1]},
        {"position": ["1", 0, 0.0, 0]},
        {"history": 3},
        {"history": {"loss": ["a"]}},
        {"random": {}},
        {"schedule": {"last_epoch": "1"}},
        {"early_stopping": {}},
        {"callbacks": {"7": {}}},
        {"settings": None},
        {"model": None},
        {"model": {"": 3}},
    ]
    for change in forged:
        files.save(path, "fusedrnn run of a Trainer", tensors, {**content, **change})
        run = trainer(path)
        before = bits(run)
        with pytest.raises(ValueError, match="not a checkpoint of this run"):
            run.fit(sequences(), resume=True)
        run._digest = ""
        assert bits(run) == before
    for name in ("losses", "model.0.weight_hh_l0"):
        files.save(path, "fusedrnn run of a Trainer", {**tensors, name: np.zeros(3, "c8")}, content)
        with pytest.raises(ValueError, match="not a checkpoint of this run"):
            trainer(path).fit(sequences(), resume=True)


def test_a_checkpoint_with_the_state_of_a_callback_that_is_not_there(tmp_path: Path) -> None:
    trainer(tmp_path / "run", epochs=1, callbacks=[StopAt(-1)]).fit(sequences())
    for callbacks in ([], [lambda run: None]):
        run = trainer(tmp_path / "run", callbacks=callbacks)
        with pytest.raises(ValueError, match=r"callbacks\[0\]: expected one with a state"):
            run.fit(sequences(), resume=True)
        assert run.epoch == 0


def test_a_run_whose_first_step_fails_leaves_no_file(tmp_path: Path) -> None:
    """With the data mended it starts, without a word about a file."""
    run = trainer(tmp_path / "run", epochs=1)
    with pytest.raises(TypeError, match=r"^x: expected dtype float32"):
        run.fit(sequences(dtype=np.float64))
    assert not list(tmp_path.iterdir())
    trainer(tmp_path / "run", epochs=1).fit(sequences())
    assert (tmp_path / "run").exists()
