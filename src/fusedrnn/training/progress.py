"""What `Trainer.fit` shows: a live bar of rich on a terminal, else a line for each epoch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any


def summary(history: Mapping[str, list[float]]) -> str:
    """Return the last epoch's figures as one line."""
    return "  ".join(f"{name.replace('_', ' ')} {values[-1]:.4g}" for name, values in history.items())


class Lines:
    """A line at the end of each epoch."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def step(self, epoch: int, epochs: int, done: int, of: int, loss: float) -> None:
        """Note a step: `done` of an epoch's steps, and the mean loss of the epoch so far."""

    def epoch(self, epoch: int, epochs: int, history: Mapping[str, list[float]]) -> None:
        """Show an epoch."""
        seconds = math.ceil(time.monotonic() - self._start)
        print(f"epoch {epoch}/{epochs}  {summary(history)}  {seconds} s", flush=True)


class Nothing(Lines):
    """Nothing."""

    def epoch(self, epoch: int, epochs: int, history: Mapping[str, list[float]]) -> None:
        """Show nothing."""


class Bar(Lines):
    """A live bar for the steps of an epoch, and a line above it for each epoch that is over."""

    def __init__(self, progress: Any) -> None:
        super().__init__()
        self._progress = progress
        self._task = progress.add_task("", total=1, figures="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, epoch: int, epochs: int, done: int, of: int, loss: float) -> None:
        """Move the bar."""
        self._progress.update(
            self._task,
            description=f"epoch {epoch}/{epochs}",
            completed=done,
            total=of,
            figures=f"loss {loss:.4g}",
        )


def make_progress(wanted: bool | None) -> Lines:
    """Return what shows the progress: nothing if not wanted, a bar where rich is there and can draw one."""
    if wanted is False:
        return Nothing()
    if not sys.stdout.isatty():
        return Lines()
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return Lines()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    return Bar(Progress(*columns, transient=True))
