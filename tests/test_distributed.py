"""Several processes that train one model: groups, gradients, parameters, and `fusedrnn train` by all of them.

Processes are threads here whose group adds up over a barrier; test_with_torch starts real ones.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import pseudo_text

import fusedrnn as fr
from fusedrnn import distributed
from fusedrnn.cli import session
from fusedrnn.cli.charlm import Config
from fusedrnn.cli.checkpoint import Checkpoint
from fusedrnn.cli.display import NoDisplay
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.settings import Settings
from fusedrnn.cli.trainer import Evaluated, Trainer

pytestmark = pytest.mark.once

TEXT = pseudo_text(60)
CONFIG, SETTINGS = Config(hidden=12, embedding=6), Settings(batch=5, steps=16, epochs=2, lr=0.01)


class Threads:
    """The group of `size` threads; `of(rank)` is that of one of them."""

    def __init__(self, size: int) -> None:
        self.size, self.calls = size, 0
        self._barrier = threading.Barrier(size, timeout=60)
        self._given: list[Any] = [None] * size

    def of(self, rank: int) -> distributed.Group:
        group = Rank()
        group.rank, group.size, group.all = rank, self.size, self
        return group

    def exchange(self, rank: int, array: Any) -> list[Any]:
        self._given[rank] = array.copy()
        self._barrier.wait()
        given = list(self._given)
        self._barrier.wait()
        assert len({(a.shape, a.dtype) for a in given}) == 1
        return given

    def run(self, work: Callable[[distributed.Group], Any]) -> list[Any]:
        """Call work(group) in each thread; return what the ranks return, or raise what one raises."""
        found: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def call(rank: int) -> None:
            try:
                found[rank] = work(self.of(rank))
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=call, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        real = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        for error in real or errors:
            raise error
        return found


class Rank:
    rank: int
    size: int
    all: Threads

    def sum_(self, array: Any) -> None:
        assert array.flags.c_contiguous
        array[...] = sum(self.all.exchange(self.rank, array))

    def broadcast_(self, array: Any, root: int = 0) -> None:
        array[...] = self.all.exchange(self.rank, array)[root]


def trained(group: distributed.Group, steps: int = 40, **settings: Any) -> Trainer:
    trainer = Trainer(CONFIG, Settings(**{**vars(SETTINGS), **settings}), TEXT, group=group)
    for _ in trainer.events():
        if trainer.step == steps:
            break
    return trainer


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_agree_and_equal_one_process(size: int) -> None:
    alone = trained(distributed.Alone())
    ranks = Threads(size).run(trained)
    for trainer in ranks:
        assert trainer.losses == ranks[0].losses and trainer.scores == ranks[0].scores
        for name, array in trainer.model.state_dict().items():
            assert np.array_equal(array, ranks[0].model.state_dict()[name]), name
            np.testing.assert_allclose(array, alone.model.state_dict()[name], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(ranks[0].losses, alone.losses, rtol=1e-4)
    assert len(alone.scores) > 0
    np.testing.assert_allclose(
        [score.bits for score in ranks[0].scores], [score.bits for score in alone.scores], rtol=1e-4
    )


def test_dropout_differs_between_ranks_and_begins_as_that_of_one_process() -> None:
    config = Config(hidden=12, embedding=6, layers=2, dropout=0.5)
    one = Trainer(config, SETTINGS, TEXT).model.random_state()
    ranks = Threads(2).run(lambda group: Trainer(config, SETTINGS, TEXT, group=group).model.random_state())
    assert ranks[0] == one and one.keys() == ranks[1].keys()
    assert all(ranks[1][name][0] != seed for name, (seed, _) in one.items())


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (3, 2)])
def test_a_checkpoint_of_other_processes(sizes: tuple[int, int], tmp_path: Path) -> None:
    path, before = tmp_path / "c", sizes[0]

    def write(group: distributed.Group) -> Trainer:
        trainer = trained(group, 20)
        trainer.save(path, None)
        return trainer

    def go_on(group: distributed.Group) -> Trainer:
        checkpoint = Checkpoint.read(path)
        trainer = Trainer(checkpoint.config, checkpoint.settings, TEXT, checkpoint.vocabulary, group)
        trainer.restore(checkpoint)
        for _ in trainer.events():
            if trainer.step == 40:
                break
        return trainer

    written = Threads(before).run(write) if before > 1 else [write(distributed.Alone())]
    states = Checkpoint.read(path).tensors["carried.0"]
    assert states.shape == (1, SETTINGS.batch, CONFIG.hidden)
    joined = np.concatenate([trainer._run._carried[0] for trainer in written], axis=1)
    assert np.array_equal(states, joined)
    again = Threads(sizes[1]).run(go_on)[0] if sizes[1] > 1 else go_on(distributed.Alone())
    np.testing.assert_allclose(again.losses, trained(distributed.Alone()).losses, rtol=1e-4)


def test_what_one_is_told_all_do(tmp_path: Path) -> None:
    """Only rank 1 has a limit; only rank 0 writes."""

    def work(group: distributed.Group) -> session.Outcome:
        folder = tmp_path / str(group.rank)
        folder.mkdir()
        trainer = Trainer(CONFIG, SETTINGS, TEXT, group=group)
        limits = session.Limits(steps=7 if group.rank == 1 else None)
        paths = session.Paths.of(folder / "m.safetensors")
        return session.run(trainer, paths, None, NoDisplay(), limits, False)

    outcomes = Threads(2).run(work)
    assert [outcome.ending for outcome in outcomes] == [session.Ending.PAUSED] * 2
    assert len(Checkpoint.read(tmp_path / "0" / "m.checkpoint.safetensors").tensors["losses"]) == 7
    assert list((tmp_path / "1").iterdir()) == []


def test_a_batch_smaller_than_the_group() -> None:
    with pytest.raises(CliError, match="--batch: expected a row for each of 6 processes, got 5"):
        Trainer(CONFIG, SETTINGS, TEXT, group=Threads(6).of(0))


def test_a_loss_that_is_not_finite_ends_all() -> None:
    def work(group: distributed.Group) -> None:
        trainer = Trainer(CONFIG, SETTINGS, TEXT, group=group)
        events = trainer.events()
        next(events)
        if group.rank == 1:
            trainer.model.output.parameters["bias"][:] = np.nan
        with pytest.raises(CliError, match="training diverged: the loss is nan at step 1"):
            next(events)

    Threads(2).run(work)


def test_parameters_that_part_are_found() -> None:
    def work(group: distributed.Group) -> None:
        trainer = Trainer(CONFIG, SETTINGS, TEXT, group=group)
        for event in trainer.events():
            if group.rank == 1:
                trainer.model.output.parameters["bias"][0] += 1e-6
            assert not isinstance(event, Evaluated)

    with pytest.raises(
        RuntimeError, match=r"expected the same parameters on every rank, got others .* on \[1\]"
    ):
        Threads(3).run(work)


# Functions


def model(seed: int) -> fr.Sequential:
    return fr.Sequential(fr.GRU(3, 4, seed=seed), fr.Linear(4, 2, seed=seed))


def test_broadcast_parameters() -> None:
    def work(group: distributed.Group) -> Any:
        net = model(group.rank)
        net.buffer("seen", 3, init=float(group.rank))
        distributed.broadcast_parameters(net, root=1, group=group)
        return net.state_dict()

    for state in Threads(3).run(work):
        assert np.array_equal(state["seen"], np.full(3, 1.0))
        for name, array in model(1).state_dict().items():
            assert np.array_equal(state[name], array), name


@pytest.mark.parametrize("weights", [None, (0.25, 0.75)])
def test_all_reduce_grads(weights: tuple[float, float] | None) -> None:
    def work(group: distributed.Group) -> Any:
        net = model(0)
        net.flat_grads[:] = np.arange(net.flat_grads.size) * (1.0 + group.rank)
        weight = None if weights is None else weights[group.rank]
        distributed.all_reduce_grads(net, group, weight=weight)
        return net.flat_grads.copy()

    first, second = Threads(2).run(work)
    assert np.array_equal(first, second)
    factor = 1.5 if weights is None else 0.25 + 1.5
    np.testing.assert_allclose(first, np.arange(first.size) * factor, rtol=1e-6)


def test_alone_nothing_changes() -> None:
    net = model(0)
    net.flat_grads[:] = 3.0
    before = net.state_dict()
    distributed.broadcast_parameters(net)
    distributed.all_reduce_grads(net)
    distributed.check_same(net)
    assert (net.flat_grads == 3.0).all()
    assert all(np.array_equal(before[name], array) for name, array in net.state_dict().items())
    with distributed.launched() as group:
        assert (group.rank, group.size) == (0, 1)


def test_an_mpi_communicator(monkeypatch: pytest.MonkeyPatch) -> None:
    class Communicator:
        """Of two ranks that hold the same."""

        def Get_rank(self) -> int:
            return 1

        def Get_size(self) -> int:
            return 2

        def Reduce(self, array: Any, result: Any, root: int) -> None:
            result[...] = 2 * array

        def Bcast(self, array: Any, root: int) -> None:
            assert array.flags.writeable

    Communicator.__module__ = "mpi4py.MPI"
    group = distributed.group_of(Communicator())
    assert isinstance(group, distributed.MPIGroup) and (group.rank, group.size) == (1, 2)
    net = model(0)
    net.flat_grads[:] = 3.0
    distributed.all_reduce_grads(net, Communicator())
    assert (net.flat_grads == 3.0).all()
    library = types.ModuleType("mpi4py.MPI")
    library.COMM_WORLD = Communicator()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mpi4py", types.ModuleType("mpi4py"))
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", library)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with distributed.launched() as found:
        assert isinstance(found, distributed.MPIGroup)


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"module: expected a fusedrnn\.Module, got ndarray"):
        distributed.all_reduce_grads(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"group: expected a fusedrnn\.distributed\.Group, .* got int"):
        distributed.all_reduce_grads(model(0), 3)
    with pytest.raises(ValueError, match=r"root: expected a rank in 0..0, got 1"):
        distributed.broadcast_parameters(model(0), root=1)


# torch.distributed


def launch(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start `fusedrnn train` on two processes."""
    program = folder / "train.py"
    program.write_text("from fusedrnn.cli import main\nmain()\n")
    (folder / "text.txt").write_text(TEXT)
    small = ["--hidden", 12, "--embedding", 6, "--batch", 4, "--steps", 16, "--out", folder / "m.safetensors"]
    words = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--monitor-interval=3",  # where a process died, the other one has the time to say so
        program,
        "train",
        folder / "text.txt",
        *small,
    ]
    return subprocess.Popen(
        [sys.executable, *map(str, (*words, *arguments))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_with_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    process = launch(tmp_path, "--epochs", 1, "--max-steps", 12)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "2 processes, 2 rows of 4 each\n" in said and said.count("paused at step 12") == 1
    losses = Checkpoint.read(tmp_path / "m.checkpoint.safetensors").tensors["losses"]
    alone = trained(distributed.Alone(), 12, batch=4, epochs=1, lr=Settings().lr)
    np.testing.assert_allclose(losses, alone.losses, rtol=1e-4)


def test_a_rank_that_dies_ends_the_others(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    process = launch(tmp_path, "--epochs", 1000000)
    assert process.stdout is not None
    said = ""
    try:
        while "step " not in said:  # the first evaluation of a run that never ends
            line = process.stdout.readline()
            assert line, said
            said += line
        ranks = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
        )
        os.kill(max(map(int, ranks.stdout.split())), signal.SIGKILL)
        rest, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "Error: another process of this run has ended or cannot be reached (" in rest
    assert f"continue with: fusedrnn train --resume {tmp_path / 'm.checkpoint.safetensors'}\n" in rest
