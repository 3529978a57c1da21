"""One run of `fusedrnn train`: which files it writes and when, and what ends it."""

from __future__ import annotations

import enum
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fusedrnn.cli.charlm import CharLM, build, save_model
from fusedrnn.cli.display import Display
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.trainer import Evaluated, Trainer
from fusedrnn.files import FileError, open_regular, write_atomically

SUFFIX = ".safetensors"
CHECKPOINT_SUFFIX = ".checkpoint.safetensors"
_PREVIOUS = ".previous"

# Ctrl-C, a cluster that takes the machine back, a terminal that is gone.
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_CHECKPOINT_SECONDS = 60.0  # between two checkpoints, unless an evaluation comes first


@dataclass(frozen=True)
class Paths:
    """Where a run leaves its files."""

    model: Path
    checkpoint: Path
    plot: Path
    previous: Path  # the checkpoint of the run before, which can be continued, too

    @classmethod
    def of(cls, out: Path) -> Paths:
        """Return the paths that belong to a model file.

        Raises:
            CliError: the name is not a model's, or nothing can be written there.
        """
        if not out.name.endswith(SUFFIX) or out.name == SUFFIX:
            raise CliError(f"--out: expected a name that ends in {SUFFIX}, got {out}")
        if not out.parent.is_dir():
            raise CliError(f"--out: no such folder: {out.parent}")
        if not os.access(out.parent, os.W_OK):
            raise CliError(f"--out: cannot write in {out.parent}")
        stem = out.name[: -len(SUFFIX)]
        longest = os.pathconf(out.parent, "PC_NAME_MAX") - len(_PREVIOUS + CHECKPOINT_SUFFIX)
        if len(os.fsencode(stem)) > longest:
            raise CliError(
                f"--out: expected a name of at most {longest} bytes before {SUFFIX}, got {out.name}"
            )
        if out.is_dir():
            raise CliError(f"--out: {out} is a folder")
        checkpoint, previous = (out.with_name(stem + add + CHECKPOINT_SUFFIX) for add in ("", _PREVIOUS))
        return cls(out, checkpoint, out.with_name(stem + ".png"), previous)

    @classmethod
    def model_beside(cls, checkpoint: Path) -> Path:
        """Return the model file that belongs to a checkpoint."""
        stem = checkpoint.name.removesuffix(CHECKPOINT_SUFFIX)
        return checkpoint.with_name(stem.removesuffix(SUFFIX) + SUFFIX)


@dataclass(frozen=True)
class Limits:
    """What ends a run before the training is finished; it can be continued later."""

    steps: int | None = None
    seconds: float | None = None
    _start: float = field(default_factory=time.monotonic)

    def reached(self, trainer: Trainer) -> bool:
        """Whether to stop here."""
        if self.steps is not None and trainer.step >= self.steps:
            return True
        return self.seconds is not None and time.monotonic() - self._start >= self.seconds


class Ending(enum.Enum):
    """How a run ended."""

    FINISHED = enum.auto()
    PAUSED = enum.auto()
    INTERRUPTED = enum.auto()


@dataclass(frozen=True)
class Outcome:
    """How a run ended; by which signal, if by one; and whether the model file is its own."""

    ending: Ending
    signal: int | None
    wrote_model: bool


def run(
    trainer: Trainer, paths: Paths, source: str | None, display: Display, limits: Limits, keep_model: bool
) -> Outcome:
    """Train until finished, interrupted, or a limit is reached; keep the best model and a checkpoint on disk.

    Several processes go through the same steps: what one of them is told, to end or to save, all do; rank 0
    writes the files.

    Args:
        trainer: what to train.
        paths: where the files lie.
        source: the path of the text, for the checkpoint.
        display: shows how it goes.
        limits: what ends the run early.
        keep_model: leave the model file alone until the trainer's model is proven.

    Raises:
        FileError: a file cannot be written.
        CliError: training diverged.
        OSError: nothing can be shown any more; what was trained is saved.
    """
    saved = time.monotonic()
    lost: OSError | None = None
    wrote_model = False

    def save(model: bool) -> None:
        nonlocal saved, wrote_model
        trainer.check_sound()
        if model and (trainer.proven or not keep_model):
            state = trainer.model.state_dict() if trainer.best_state is None else trainer.best_state
            if trainer.group.rank == 0:
                save_model(paths.model, trainer.config, trainer.vocabulary, trainer.best, state)
            wrote_model = True
        trainer.save(paths.checkpoint, source)
        saved = time.monotonic()

    with _signals() as received:
        try:
            with display, closing(trainer.events()) as events:
                for event in events:
                    due = time.monotonic() - saved >= _CHECKPOINT_SECONDS
                    ends = bool(received) or limits.reached(trainer)
                    now_due, stop = trainer.agree(due, ends)
                    improved = isinstance(event, Evaluated) and event.improved
                    if isinstance(event, Evaluated) or now_due:
                        save(model=improved or not trainer.measures)
                    display.show(event)
                    if stop:
                        break
        except FileError:
            raise
        except OSError as error:  # of the terminal that hung up, or the full disk under standard output
            lost = error
            if trainer.group.size > 1:
                raise  # which ends the others
        save(model=True)
        (ending,) = trainer.agree(received[0] if received else 0)
    if lost is not None:
        raise lost
    if ending:
        return Outcome(Ending.INTERRUPTED, ending, wrote_model)
    return Outcome(Ending.FINISHED if trainer.finished else Ending.PAUSED, None, wrote_model)


def keep_previous(paths: Paths) -> None:
    """Copy the checkpoint of an earlier run, in whose place that of another run is about to come.

    Raises:
        FileError: it cannot be read, or its copy not written.
    """
    with open_regular(paths.checkpoint) as file:
        write_atomically(paths.previous, file.read())


def best_model(trainer: Trainer) -> CharLM:
    """Return a model with the best parameters; before the first evaluation, with the present ones."""
    state = trainer.model.state_dict() if trainer.best_state is None else trainer.best_state
    return build(trainer.config, trainer.vocabulary, state).eval()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the first of the signals that end a process, to take effect between two steps.

    The second one of a kind is immediate.
    """
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in _ENDING_SIGNALS}
    # Signals can be caught in the main thread only; and a process told to ignore one goes on doing so.
    if threading.current_thread() is not threading.main_thread():
        before = {}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
