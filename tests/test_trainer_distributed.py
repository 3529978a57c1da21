"""Trainer: several processes that train one model, as threads with a group and as processes of torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_distributed import Threads
from test_trainer_labels import spelled
from test_trainer_resume import Stopped
from trainer_runs import accuracy, bits, sequences, steps

import fusedrnn as fr
from fusedrnn import distributed, files, optim
from fusedrnn.training import DivergedError, Trainer

pytestmark = pytest.mark.once


class Stop:
    """Ends a run at a step; says at the end of an epoch that training ends, if it is that of a rank."""

    def __init__(self, at: int = -1, rank: int = -1) -> None:
        self.at, self.rank = at, rank

    def on_step(self, run: Trainer) -> None:
        if run.step == self.at:
            raise Stopped

    def on_epoch(self, run: Trainer) -> None:
        run.stop = run.group.rank == self.rank


def made(kind: str, group: Any, seed: int = 0, **options: Any) -> Trainer:
    """A run, over 21 sequences: the last batch has a single one."""
    model: Any
    loss: Any = fr.cross_entropy
    if kind == "stream":
        model = fr.Stateful(fr.LSTM(3, 8, seed=seed), fr.Linear(8, 2, seed=1))
        options = {"bptt": 5, **options}
    elif kind == "labels":
        model, loss = fr.Sequential(fr.GRU(4, 8, seed=seed), fr.Linear(8, 4, seed=1)), fr.ctc_loss
    else:
        model = fr.Sequential(fr.GRU(3, 8, seed=seed), fr.Pool("mean"), fr.Linear(8, 3, seed=1))
    metrics = {} if kind == "labels" else {"accuracy": accuracy}
    settings = {"epochs": 2, "batch_size": 4, "clip": 1.0, "metrics": metrics, "progress": False, **options}
    adam = optim.Adam(model, lr=0.02)
    schedule = optim.ReduceLROnPlateau(adam, patience=0)
    return Trainer(model, loss, adam, schedule, distributed=group, **settings)


def data_of(kind: str) -> Any:
    if kind == "labels":
        return spelled(21), spelled(7, 1)
    if kind == "stream":
        return steps(22), steps(6, 1)
    return sequences(21), sequences(7, 1)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["sequences", "stream", "labels"])
def test_ranks_agree_and_equal_one_process(kind: str, size: int) -> None:
    """Whatever the weights were at first: those of rank 0 count."""
    train, held_out = data_of(kind)
    if kind == "stream" and size == 3:
        train = tuple([part[:21] for part in train])
    batch = {"batch_size": 7} if kind == "stream" and size == 3 else {}
    alone = made(kind, None, **batch)
    alone.fit(train, held_out)

    def work(group: Any) -> Trainer:
        run = made(kind, group, seed=group.rank, **batch)
        run.fit(train, held_out)
        return run

    ranks = Threads(size).run(work)
    for run in ranks:
        assert run.losses == ranks[0].losses and run.norms == ranks[0].norms
        assert run.history == ranks[0].history
        for name, array in run.model.state_dict().items():
            np.testing.assert_array_equal(array, ranks[0].model.state_dict()[name])
            np.testing.assert_allclose(array, alone.model.state_dict()[name], rtol=2e-3, atol=2e-5)
    np.testing.assert_allclose(ranks[0].losses, alone.losses, rtol=1e-4)
    for name, values in alone.history.items():
        np.testing.assert_allclose(ranks[0].history[name], values, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sequences", "stream"])
def test_a_checkpoint_of_two_processes(kind: str, tmp_path: Path) -> None:
    """Of rank 0; both go on from it to the same bits, and so does one process within rounding."""
    train, held_out = data_of(kind)
    options: dict[str, Any] = {"checkpoint_steps": 1}

    def work(name: str, stop: int) -> list[Trainer]:
        def fit(group: Any) -> Trainer:
            run = made(kind, group, checkpoint=tmp_path / name, callbacks=[Stop(stop)], **options)
            run.fit(train, held_out, resume=True)
            return run

        return Threads(2).run(fit)

    whole = work("whole", -1)[0]
    for stop in (3, 10):
        with pytest.raises(Stopped):
            work("parts", stop)
    alone = made(kind, None, checkpoint=tmp_path / "alone", **options)
    (tmp_path / "alone").write_bytes((tmp_path / "parts").read_bytes())
    alone.fit(train, held_out, resume=True)
    np.testing.assert_allclose(alone.losses, whole.losses, rtol=1e-4)
    resumed = work("parts", -1)
    assert all(run.losses == whole.losses and run.history == whole.history for run in resumed)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_dropout_differs_between_ranks_and_goes_on_exactly(tmp_path: Path) -> None:
    def dropping(group: Any, epochs: int) -> Trainer:
        model = fr.Sequential(fr.GRU(3, 8, 2, dropout=0.5, seed=0), fr.Pool("last"), fr.Linear(8, 3, seed=1))
        adam = optim.Adam(model, lr=0.02)
        path = tmp_path / "run" if epochs < 3 else None
        return Trainer(
            model,
            fr.cross_entropy,
            adam,
            epochs=epochs,
            distributed=group,
            checkpoint=path,
            progress=False,
        )

    def work(group: Any) -> Any:
        whole, first = dropping(group, 4), dropping(group, 2)
        noise = whole.model.random_state()
        whole.fit(sequences(21))
        first.fit(sequences(21))
        second = dropping(group, 2)
        second.epochs = 4
        second.fit(sequences(21), resume=True)
        assert bits(second)["losses"] == bits(whole)["losses"]
        return noise

    one, two = Threads(2).run(work)
    assert one == dropping(None, 3).model.random_state() and one != two


def test_what_one_is_told_all_do() -> None:
    def work(group: Any) -> int:
        run = made("sequences", group, callbacks=[Stop(rank=1)], epochs=9)
        run.fit(sequences(21))
        return run.epoch

    assert Threads(2).run(work) == [1, 1]


def test_a_loss_that_is_not_finite_ends_all() -> None:
    inputs, classes = sequences(8)

    def work(group: Any) -> None:
        run = made("sequences", group, batch_size=8)
        (order,) = run._data((inputs, classes), "train").shuffled(8, 0, 0)
        poisoned = [x.copy() for x in inputs]
        poisoned[order[-1]][0] = np.nan  # among the rows of rank 1
        with pytest.raises(DivergedError, match=r"diverged at step 1 .*the loss is nan") as error:
            run.fit((poisoned, classes))
        assert ("the inputs hold NaN" in str(error.value)) == (group.rank == 1)

    Threads(2).run(work)


def test_more_processes_than_sequences_in_a_batch() -> None:
    """A process without any adds nothing, and waits for the others."""
    alone = made("sequences", None, batch_size=2)
    alone.fit(sequences(5))

    def work(group: Any) -> list[float]:
        run = made("sequences", group, batch_size=2)
        run.fit(sequences(5))
        return run.losses

    for losses in Threads(3).run(work):
        np.testing.assert_allclose(losses, alone.losses, rtol=1e-4)
    with pytest.raises(ValueError, match=r"^train: expected batches of a sequence or more for each of 3"):
        Threads(3).run(lambda group: made("stream", group).fit(steps(21)))


def test_what_it_refuses() -> None:
    model = fr.Sequential(fr.GRU(3, 4), fr.Pool("last"), fr.BatchNorm(4))
    with pytest.raises(ValueError, match=r"^distributed: expected a model without BatchNorm"):
        Trainer(model, fr.mse_loss, optim.SGD(model), distributed=Threads(2).of(0))
    with pytest.raises(TypeError, match=r"^group: expected a fusedrnn\.distributed\.Group"):
        Trainer(model, fr.mse_loss, optim.SGD(model), distributed=3)
    assert Trainer(model, fr.mse_loss, optim.SGD(model), distributed=distributed.Alone()).group.size == 1


PROGRAM = """
import sys
import test_trainer_distributed as t
from fusedrnn import distributed

with distributed.launched() as group:
    kind = sys.argv[1]
    run = t.made(kind, group, checkpoint=sys.argv[2], progress=None)
    run.fit(*t.data_of(kind))
    distributed.check_same(run.model, group)
"""


@pytest.mark.parametrize("kind", ["sequences", "stream"])
def test_with_torch(kind: str, tmp_path: Path) -> None:
    """Two processes with gloo, each with half of each batch."""
    pytest.importorskip("torch")
    (tmp_path / "train.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "train.py", kind, "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2  loss") == 1
    alone = made(kind, None)
    alone.fit(*data_of(kind))
    tensors, content = files.load(tmp_path / "run", "fusedrnn run of a Trainer")
    np.testing.assert_allclose(tensors["losses"], alone.losses, rtol=1e-4)
    np.testing.assert_allclose(
        content["history"]["validation_loss"], alone.history["validation_loss"], rtol=1e-4
    )
    for name, array in alone.model.state_dict().items():
        np.testing.assert_allclose(tensors[f"model.{name}"], array, rtol=2e-3, atol=2e-5)
