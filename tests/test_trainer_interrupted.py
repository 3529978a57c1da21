"""Trainer: Ctrl-C at any line of a run, and `fit` again: the bits of a run that nothing interrupted."""

from __future__ import annotations

import dis
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_runs import bits, sequences

import fusedrnn as fr
from fusedrnn import optim
from fusedrnn.training import EarlyStopping, Trainer

# A signal may come while a run gives back its handler.
pytestmark = [pytest.mark.once, pytest.mark.usefixtures("interruptible")]

DATA = sequences(12)


class Calls:
    """A callback that notes when it is called, in code into which no signal comes here."""

    def __init__(self) -> None:
        self.came: list[tuple[str, int, int]] = []

    def on_step(self, run: Trainer) -> None:
        self.came.append(("step", len(run.losses), run.epoch))

    def on_epoch(self, run: Trainer) -> None:
        self.came.append(("epoch", len(run.losses), run.epoch))


def made(checkpoint: Path | None = None) -> Trainer:
    """A run with noise, statistics, a schedule of steps, and parameters to go back to."""
    model = fr.Sequential(
        fr.GRU(3, 4, num_layers=2, dropout=0.2, seed=0),
        fr.BatchNorm(4),
        fr.Pool("last"),
        fr.Linear(4, 3, seed=1),
    )
    optimizer = optim.Adam(model, lr=0.1)
    return Trainer(
        model,
        fr.cross_entropy,
        optimizer,
        optim.OneCycleLR(optimizer, 0.1, 4),
        clip=0.5,
        early_stopping=EarlyStopping(4, monitor="loss", mode="max"),
        callbacks=[Calls(), Calls()],
        epochs=2,
        batch_size=6,
        progress=False,
        checkpoint=checkpoint,
    )


def interrupted(run: Callable[[], Any], at: int, folder: str) -> int:
    """Run with a SIGINT at one of the places in a folder's code where the interpreter looks for signals.

    These are behind calls and backward jumps, and where functions begin. Returns how many there were.
    """
    seen = 0
    codes: dict[Any, bytes] = {}

    def trace(frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(folder):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        code, before = codes.setdefault(frame.f_code, frame.f_code.co_code), "RESUME"

        def inside(frame: Any, event: str, _: Any) -> Any:
            nonlocal seen, before
            if event == "opcode":
                looks = before.startswith(("CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "RESUME"))
                before = dis.opname[code[frame.f_lasti]]
                seen += looks
                if looks and seen == at:
                    signal.raise_signal(signal.SIGINT)
            return inside

        return inside

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return seen


@pytest.mark.parametrize(("folder", "stride", "saved"), [("training", 1, False), ("", 101, True)])
def test_ctrl_c_anywhere(folder: str, stride: int, saved: bool, tmp_path: Path) -> None:
    """The step that it comes into is not taken, or taken and counted; each callback is called once for it."""
    where = os.path.join(os.path.dirname(fr.__file__), folder)

    def path(name: str) -> Path | None:
        return tmp_path / name if saved else None

    whole = made(path("whole"))
    places, came = interrupted(lambda: whole.fit(DATA), 0, where), 0
    assert places > 300
    want = bits(whole)
    for at in range(1, places + 1, stride):
        run = made(path(str(at)))
        try:
            interrupted(lambda run=run: run.fit(DATA), at, where)  # type: ignore[misc]
        except KeyboardInterrupt:
            came += 1
        run.fit(DATA)
        assert bits(run) == want, f"place {at} of {places}"
        for one, other in zip(run.callbacks, whole.callbacks, strict=True):
            assert one.came == other.came, f"place {at} of {places}"
        assert np.array_equal(run.model.flat_parameters, whole.model.flat_parameters)
    assert came > 0.95 * places // stride


def test_handlers_of_others_wait_and_stay() -> None:
    """Those that do not end the run are called once for each signal; those set meanwhile stay."""
    came, want = [], made()
    want.fit(DATA)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        run = made()
        run.callbacks.append(lambda run: signal.raise_signal(signal.SIGUSR1))
        run.fit(DATA)
        assert came == [signal.SIGUSR1] * 2 and bits(run) == bits(want)

        def late(number: int, frame: Any) -> None:
            pass

        run = made()
        run.callbacks.append(lambda run: signal.signal(signal.SIGUSR1, late))
        run.fit(DATA)
        assert signal.getsignal(signal.SIGUSR1) is late
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_outside_of_the_main_thread() -> None:
    want, run = made(), made()
    want.fit(DATA)
    thread = threading.Thread(target=run.fit, args=(DATA,))
    thread.start()
    thread.join()
    assert bits(run) == bits(want)


def test_a_step_that_fails_takes_no_noise() -> None:
    """An error in the loss, and `fit` again: the step is made as if it had not been tried."""
    whole, run = made(), made()
    whole.fit(DATA)
    calls = 0

    def loss(output: Any, targets: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("once")
        return fr.cross_entropy(output, targets)

    run.loss = loss
    with pytest.raises(OSError, match="once"):
        run.fit(DATA)
    run.fit(DATA)
    run.loss = whole.loss
    assert bits(run) == bits(whole)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_the_end_of_the_last_epoch_is_saved_by_the_next_fit(
    kind: type[BaseException], tmp_path: Path
) -> None:
    """There was no checkpoint then: all epochs were over."""
    whole, run = made(tmp_path / "whole"), made(tmp_path / "run")
    whole.fit(DATA)

    def once(run: Trainer) -> None:
        if run.epoch == 2 and not (tmp_path / "came").exists():
            (tmp_path / "came").touch()
            raise kind

    run.callbacks.append(once)
    with pytest.raises(kind):
        run.fit(DATA)
    run.fit(DATA)
    assert (tmp_path / "run").read_bytes() == (tmp_path / "whole").read_bytes()
