"""What the commands say: about a run before and after it, and the text that a model draws."""

from __future__ import annotations

import sys
import unicodedata
from typing import Any

import typer

import fusedrnn as fr
from fusedrnn.cli import session, text
from fusedrnn.cli.charlm import load_model
from fusedrnn.cli.display import save_plot
from fusedrnn.cli.errors import CliError, printable
from fusedrnn.cli.sampling import Sampler
from fusedrnn.cli.trainer import Trainer
from fusedrnn.files import FileError

_SAMPLE_CHARACTERS = 400
_SAMPLE_TEMPERATURE = 0.7


def describe(trainer: Trainer, source: str | None, changes: list[str]) -> None:
    """Say what is trained on what, and what changed since the checkpoint."""
    training, held_out, repeated = trainer.characters
    config = trainer.config
    left_out = f", {repeated:,} repeated ones left out" if repeated else ""
    different = len(trainer.vocabulary) - 1
    typer.echo(
        f"text: {printable(source or text.BUILT_IN)}: {training + held_out + repeated:,} characters "
        f"({training:,} to train on, {held_out:,} held out{left_out}), {different} different"
    )
    if trainer.unknown:
        typer.echo(f"of those to train on, {trainer.unknown:,} are not in the model's vocabulary")
    threads = fr.get_num_threads()
    compute = trainer.model.rnn.compute
    products = "" if compute == "float32" else f" multiplied in {compute}"
    typer.echo(
        f"model: {config.cell}, {config.layers} x {config.hidden} units, "
        f"{trainer.model.num_parameters:,} parameters, {config.dtype}{products}; "
        f"{fr.config()['isa']}, {threads} {'thread' if threads == 1 else 'threads'}"
    )
    if trainer.group.size > 1:
        rows = trainer.settings.batch / trainer.group.size
        typer.echo(f"{trainer.group.size} processes, {rows:.3g} rows of {trainer.settings.batch} each")
    if trainer.step:
        typer.echo(f"continuing at step {trainer.step} of {trainer.total_steps}")
    for change in changes:
        typer.echo(f"changed: {printable(change)}")


def say_where(trainer: Trainer, paths: session.Paths, default: bool, keep: bool, other: bool) -> None:
    """Say which file is written, if no --out did, and what becomes of those of a run before."""
    said = f"out: {paths.model}{' (--out names another file)' if default else ''}"
    if keep:
        event = "has been measured" if trainer.measures else "has read its text once"
        fate = "is replaced" if trainer.proven else f"stays until the new one {event}"
        said += f"; {_present(paths)} there {fate}"
    if other:
        said += f"; the checkpoint there is kept as {paths.previous}"
    if default or keep or other:
        typer.echo(said)


def _present(paths: session.Paths) -> str:
    """What is in the place of the model file."""
    try:
        score = load_model(paths.model).score
    except (CliError, FileError):
        return "the file"
    return "the model" if score is None else f"the model of {score.bits:.3f} bits per held-out character"


def continuing(trainer: Trainer, paths: session.Paths) -> str:
    """Say how a run goes on, multiplied in what it was."""
    compute = trainer.model.rnn.compute
    chosen = "" if compute == "float32" else f" --compute {compute}"
    return f"continue with: fusedrnn train --resume {paths.checkpoint}{chosen}"


def conclude(trainer: Trainer, paths: session.Paths, outcome: session.Outcome) -> None:
    """Say how training ended, and show what the model can do; the model's path is the last line."""
    ending = outcome.ending
    if trainer.best is not None:
        best = f"{trainer.best.bits:.3f} bits per held-out character"
    else:
        best = "not measured yet" if trainer.measures else "not measured, as nothing is held out"
    if ending is session.Ending.INTERRUPTED:
        typer.echo(f"interrupted at step {trainer.step}; the best model so far is kept: {best}")
    elif ending is session.Ending.PAUSED:
        typer.echo(f"paused at step {trainer.step} of {trainer.total_steps}; best: {best}")
    else:
        early = " early: no better score for a while" if trainer.stopped_early else ""
        step = trainer.step if trainer.best is None else trainer.best.step
        typer.echo(f"finished{early}; best: {best}, at step {step}")
    if not trainer.finished:
        typer.echo(continuing(trainer, paths))
    if ending is not session.Ending.INTERRUPTED:
        save_plot(paths.plot, trainer)
        typer.echo(f"learning curve: {paths.plot}")
        typer.echo("sample:")
        sampler = Sampler(
            session.best_model(trainer),
            trainer.vocabulary,
            temperature=_SAMPLE_TEMPERATURE,
            seed=trainer.settings.seed,
        )
        stream(sampler, "", _SAMPLE_CHARACTERS)
    if not outcome.wrote_model:
        typer.echo("the model file is the one that was there before: the new model is not measured yet")
    typer.echo(f"model: {paths.model}")
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)


def stream(sampler: Sampler, prompt: str, length: int) -> None:
    """Write the prompt, then each character as soon as it is drawn."""
    # A model may have learned control characters, or been forged with them: a terminal must not obey them.
    shown = _controls_escaped if sys.stdout.isatty() else str
    sys.stdout.write(shown(prompt))
    for character in sampler.characters(prompt, length):
        sys.stdout.write(shown(character))
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def _controls_escaped(characters: str) -> str:
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in characters
    )


def table(rows: dict[str, Any]) -> None:
    """Write names and values in two columns."""
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name:<{width}}  {value}")
