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

SUFFIX = ".safetensors"
CHECKPOINT_SUFFIX = ".checkpoint.safetensors"

_CHECKPOINT_SECONDS = 60.0  # between two checkpoints, unless an evaluation comes first


@dataclass(frozen=True)
class Paths:
    """Where a run leaves its files."""

    model: Path
    checkpoint: Path
    plot: Path

    @classmethod
    def of(cls, out: Path) -> Paths:
        """Return the paths that belong to a model file.

        Raises:
            CliError: the name is not a model's, or nothing can be written there.
        """
        if not out.name.endswith(SUFFIX) or out.name == SUFFIX:
            raise CliError(f"--out: expected a name that ends in {SUFFIX}, got {out}")
        if out.is_dir():
            raise CliError(f"--out: {out} is a folder")
        if not out.parent.is_dir():
            raise CliError(f"--out: no such folder: {out.parent}")
        if not os.access(out.parent, os.W_OK):
            raise CliError(f"--out: cannot write in {out.parent}")
        stem = out.name[: -len(SUFFIX)]
        return cls(out, out.with_name(stem + CHECKPOINT_SUFFIX), out.with_name(stem + ".png"))

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


def run(trainer: Trainer, paths: Paths, source: str | None, display: Display, limits: Limits) -> Ending:
    """Train until finished, interrupted, or a limit is reached; keep the best model and a checkpoint on disk.

    Raises:
        CliError: a file cannot be written, or the loss is not finite.
    """
    ending = Ending.FINISHED
    saved = time.monotonic()
    with _interrupts() as interrupted, display, closing(trainer.events()) as events:
        for event in events:
            display.show(event)
            if isinstance(event, Evaluated) and event.improved:
                save_best(trainer, paths)
            if isinstance(event, Evaluated) or time.monotonic() - saved >= _CHECKPOINT_SECONDS:
                trainer.save(paths.checkpoint, source)
                saved = time.monotonic()
            if interrupted.is_set() or limits.reached(trainer):
                ending = Ending.INTERRUPTED if interrupted.is_set() else Ending.PAUSED
                break
    if trainer.finished:
        ending = Ending.FINISHED if ending is Ending.PAUSED else ending
    save_best(trainer, paths)
    trainer.save(paths.checkpoint, source)
    return ending


def save_best(trainer: Trainer, paths: Paths) -> None:
    """Write the best model; before the first evaluation, the model as it is."""
    state = trainer.model.state_dict() if trainer.best_state is None else trainer.best_state
    save_model(paths.model, trainer.config, trainer.vocabulary, trainer.best, state)


def best_model(trainer: Trainer) -> CharLM:
    """Return a model with the best parameters; before the first evaluation, with the present ones."""
    state = trainer.model.state_dict() if trainer.best_state is None else trainer.best_state
    return build(trainer.config, trainer.vocabulary, state).eval()


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, to take effect between two steps; the second one is immediate."""
    flag = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    # Signals can be caught in the main thread only; and a process told to ignore them goes on doing so.
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield flag
        return

    def note(number: int, frame: FrameType | None) -> None:
        flag.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
