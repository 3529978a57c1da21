"""What training shows: a live line on a terminal, else plain lines; and a picture of the learning curve."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fusedrnn.cli.trainer import Evaluated, Event, Trained, Trainer
from fusedrnn.files import write_atomically

_LAST_STEPS = 50  # whose mean loss is shown
_PLAIN_SECONDS = 10.0  # between two plain lines, unless there is an evaluation to report


class Display(Protocol):
    """Shows a training run while it goes on."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def show(self, event: Event) -> None:
        """Take note of an event, and show what has changed."""


def make_display(trainer: Trainer) -> Display:
    """Return the live display on a terminal, else the plain one; on ranks above 0 one that shows nothing."""
    if trainer.group.rank:
        return NoDisplay()
    console = Console(highlight=False)
    if sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(trainer, console)
    return PlainDisplay(trainer)


class Meter:
    """Figures of a run: loss of the last steps, speed, and time left."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._first_step = trainer.step
        self._start = time.monotonic()
        self._characters = 0

    def note(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, Trained):
            self._characters += event.characters

    @property
    def figures(self) -> str:
        """Loss and score in bits per character, speed, and time left, as one line."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        steps = self._trainer.step - self._first_step
        parts = []
        measured = []
        if self._trainer.losses:
            measured.append(f"loss {np.mean(self._trainer.losses[-_LAST_STEPS:]):.3f}")
        if self._trainer.scores:
            measured.append(f"held-out {self._trainer.scores[-1].bits:.3f}")
        if measured:
            parts.append(f"{', '.join(measured)} bits/char")
        parts.append(f"{self._characters / elapsed:,.0f} chars/s")
        if steps:
            parts.append(f"{clock(elapsed / steps * (self._trainer.total_steps - self._trainer.step))} left")
        return "  ".join(parts)

    @property
    def place(self) -> str:
        """Step and epoch."""
        trainer = self._trainer
        return f"step {trainer.step}/{trainer.total_steps}  epoch {trainer.epoch:.2f}"


class NoDisplay:
    """Nothing."""

    def __enter__(self) -> NoDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def show(self, event: Event) -> None:
        """Show nothing."""


class PlainDisplay(NoDisplay):
    """A line at each evaluation, and otherwise every few seconds."""

    def __init__(self, trainer: Trainer) -> None:
        self._meter = Meter(trainer)
        self._shown = time.monotonic()

    def show(self, event: Event) -> None:
        """Print a line if it is time."""
        self._meter.note(event)
        if isinstance(event, Evaluated) or time.monotonic() - self._shown >= _PLAIN_SECONDS:
            self._shown = time.monotonic()
            print(f"{self._meter.place}  {self._meter.figures}{_mark(event)}", flush=True)


class LiveDisplay:
    """A progress bar with figures, which scrolls a line upwards at each evaluation."""

    def __init__(self, trainer: Trainer, console: Console) -> None:
        self._trainer = trainer
        self._meter = Meter(trainer)
        self._progress = Progress(
            TextColumn("{task.fields[place]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=trainer.total_steps, place="", figures="")
        self._refreshed = 0.0

    def __enter__(self) -> LiveDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Renew the bar a few times a second."""
        self._meter.note(event)
        now = time.monotonic()
        if now - self._refreshed >= 0.1 or isinstance(event, Evaluated):
            self._refreshed = now
            place, figures = self._meter.place, self._meter.figures
            self._progress.update(self._task, completed=self._trainer.step, place=place, figures=figures)
        if isinstance(event, Evaluated):
            self._progress.console.print(
                f"{self._meter.place}  {self._meter.figures}{_mark(event)}", markup=False
            )


def _mark(event: Event) -> str:
    return "  best" if isinstance(event, Evaluated) and event.improved else ""


def clock(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def save_plot(path: Path, trainer: Trainer) -> None:
    """Write the learning curve as a PNG picture: training loss and held-out score in bits per character.

    Raises:
        FileError: the file cannot be written.
    """
    # Imported here because it is slow. Without pyplot there is no window and no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    losses = np.array(trainer.losses)
    width = max(1, len(losses) // 100)
    smooth = losses[: len(losses) // width * width].reshape(-1, width).mean(axis=1)
    axes.plot((np.arange(len(smooth)) + 0.5) * width, smooth, color="tab:gray", label="training")
    steps, values = [score.step for score in trainer.scores], [score.bits for score in trainer.scores]
    if steps:
        axes.plot(steps, values, "o-", markersize=4, color="tab:blue", label="held out")
    if trainer.best is not None:
        axes.axhline(trainer.best.bits, linewidth=0.8, linestyle=":", color="tab:blue")
        axes.set_title(f"best held-out score: {trainer.best.bits:.3f} bits per character")
    axes.set_xlabel("step")
    axes.set_ylabel("bits per character")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())
