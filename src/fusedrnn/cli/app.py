"""The commands and their options."""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer

import fusedrnn as fr
from fusedrnn.cli import session, text
from fusedrnn.cli.charlm import Config, load_model
from fusedrnn.cli.display import make_display, save_plot
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.sampling import Sampler
from fusedrnn.cli.trainer import Checkpoint, Settings, Trainer

app = typer.Typer(
    help="Fast recurrent networks: train a character-level language model, and generate text from it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_CONFIG, _SETTINGS = Config(), Settings()
_DEFAULT_OUT = Path("charlm.safetensors")
_SAMPLE_CHARACTERS = 400
_SAMPLE_TEMPERATURE = 0.7


class Cell(str, enum.Enum):
    """Choices of --cell."""

    lstm = "lstm"
    gru = "gru"
    rnn = "rnn"


class DType(str, enum.Enum):
    """Choices of --dtype."""

    float32 = "float32"
    float64 = "float64"


_CELL, _DTYPE = Cell(_CONFIG.cell), DType(_CONFIG.dtype)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn what a user can put right into one line on standard error and exit status 1."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        raise typer.Exit(130) from None
    except MemoryError:
        typer.echo("Error: not enough memory for this model or text", err=True)
    # The library's own complaints are ValueErrors that name the argument.
    except (CliError, ValueError, OverflowError) as error:
        typer.echo(f"Error: {error}", err=True)
    else:
        return
    raise typer.Exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(fr.__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fast recurrent networks: train a character-level language model, and generate text from it."""


@app.command()
def train(
    ctx: typer.Context,
    text_file: Annotated[
        Path | None,
        typer.Argument(metavar="TEXT_FILE", help="UTF-8 text; without it, the help texts of Python."),
    ] = None,
    cell: Annotated[Cell, typer.Option(help="Kind of recurrent layer.")] = _CELL,
    hidden: Annotated[int, typer.Option(min=1, help="Units of each layer.")] = _CONFIG.hidden,
    layers: Annotated[
        int, typer.Option(min=1, help="Recurrent layers on top of each other.")
    ] = _CONFIG.layers,
    embedding: Annotated[int, typer.Option(min=1, help="Size of the character vectors.")] = _CONFIG.embedding,
    dropout: Annotated[
        float, typer.Option(min=0.0, help="Probability of dropping a layer's output; below 1.")
    ] = _CONFIG.dropout,
    dtype: Annotated[DType, typer.Option(help="Precision.")] = _DTYPE,
    batch: Annotated[int, typer.Option(min=1, help="Rows of text read side by side.")] = _SETTINGS.batch,
    steps: Annotated[
        int, typer.Option(min=1, help="Characters through which gradients flow back; the state goes on.")
    ] = _SETTINGS.steps,
    lr: Annotated[float, typer.Option(help="Highest learning rate; it falls along a cosine.")] = _SETTINGS.lr,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the text.")] = _SETTINGS.epochs,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = _SETTINGS.clip,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop after this many evaluations without a better score.")
    ] = _SETTINGS.patience,
    valid_fraction: Annotated[
        float, typer.Option(help="Share of the text, at its end, that is held out to measure the model.")
    ] = _SETTINGS.valid_fraction,
    seed: Annotated[int, typer.Option(min=0, help="Makes the run repeatable.")] = _SETTINGS.seed,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads; the results do not depend on it.", show_default="the cores there are"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Model file to write or replace; the checkpoint and the picture lie beside it.",
            show_default=str(_DEFAULT_OUT),
        ),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Checkpoint to continue from, exactly as if it had never stopped.")
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Pause when this many steps are made, counted from the start.")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.0, help="Pause after this time.")] = None,
) -> None:
    """Train a character-level language model on a text."""
    with _reported():
        if threads is not None:
            fr.set_num_threads(threads)
        limits = session.Limits(max_steps, max_seconds)
        checkpoint = None if resume is None else Checkpoint.read(resume)
        if checkpoint is None:
            paths = session.Paths.of(out or _DEFAULT_OUT)
            source = None if text_file is None else str(text_file.resolve())
            trainer = _new_trainer(ctx, _corpus(source))
        else:
            paths = session.Paths.of(out or session.Paths.model_beside(checkpoint.path))
            source = checkpoint.source if text_file is None else str(text_file.resolve())
            _refuse_changes(ctx, checkpoint)
            trainer = _continued(checkpoint, _corpus(source), source)
        _describe(trainer, source)
        ending = session.run(trainer, paths, source, make_display(trainer), limits)
        _conclude(trainer, paths, ending)


def _corpus(source: str | None) -> str:
    return text.built_in_text() if source is None else text.read_text(Path(source))


def _chosen(ctx: typer.Context, kind: type[Any]) -> dict[str, Any]:
    """The options that are fields of a dataclass, as plain values."""
    values = {field.name: ctx.params[field.name] for field in fields(kind)}
    return {name: value.value if isinstance(value, enum.Enum) else value for name, value in values.items()}


def _new_trainer(ctx: typer.Context, corpus: str) -> Trainer:
    try:
        config, settings = Config(**_chosen(ctx, Config)), Settings(**_chosen(ctx, Settings))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return Trainer(config, settings, corpus)


def _refuse_changes(ctx: typer.Context, checkpoint: Checkpoint) -> None:
    """A run continues as it began: an option given with another value is an error, not ignored."""
    kept = {**asdict(checkpoint.config), **asdict(checkpoint.settings)}
    for name, value in {**_chosen(ctx, Config), **_chosen(ctx, Settings)}.items():
        source = ctx.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT" and value != kept[name]:
            option = "--" + name.replace("_", "-")
            raise typer.BadParameter(f"{option}: the checkpoint was made with {kept[name]}, got {value}")


def _continued(checkpoint: Checkpoint, corpus: str, source: str | None) -> Trainer:
    if text.fingerprint(corpus) != checkpoint.fingerprint:
        raise CliError(f"{source or text.BUILT_IN}: not the text that {checkpoint.path} was trained on")
    trainer = Trainer(checkpoint.config, checkpoint.settings, corpus)
    trainer.restore(checkpoint)
    return trainer


def _describe(trainer: Trainer, source: str | None) -> None:
    training, held_out, repeated = trainer.characters
    config = trainer.config
    left_out = f", {repeated:,} repeated ones left out" if repeated else ""
    typer.echo(
        f"text: {source or text.BUILT_IN}: {training + held_out + repeated:,} characters "
        f"({training:,} to train on, {held_out:,} held out{left_out}), "
        f"{len(trainer.vocabulary) - 1} different"
    )
    typer.echo(
        f"model: {config.cell}, {config.layers} x {config.hidden} units, "
        f"{trainer.model.num_parameters:,} parameters, {config.dtype}; "
        f"{fr.config()['isa']}, {fr.get_num_threads()} threads"
    )
    if trainer.step:
        typer.echo(f"continuing at step {trainer.step} of {trainer.total_steps}")


def _conclude(trainer: Trainer, paths: session.Paths, ending: session.Ending) -> None:
    """Say how training ended, and show what the model can do; the model's path is the last line."""
    best = (
        "not measured yet" if trainer.best is None else f"{trainer.best.bits:.3f} bits per held-out character"
    )
    if ending is session.Ending.INTERRUPTED:
        typer.echo(f"interrupted at step {trainer.step}; the best model so far is kept: {best}")
    elif ending is session.Ending.PAUSED:
        typer.echo(f"paused at step {trainer.step} of {trainer.total_steps}; best: {best}")
    else:
        early = " early: no better score for a while" if trainer.stopped_early else ""
        typer.echo(f"finished{early}; best: {best}, at step {trainer.best.step if trainer.best else 0}")
    if not trainer.finished:
        typer.echo(f"continue with: fusedrnn train --resume {paths.checkpoint}")
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
        _stream(sampler, "", _SAMPLE_CHARACTERS)
    typer.echo(f"model: {paths.model}")
    if ending is session.Ending.INTERRUPTED:
        raise typer.Exit(130)


def _stream(sampler: Sampler, prompt: str, length: int) -> None:
    """Write the prompt, then each character as soon as it is drawn."""
    sys.stdout.write(prompt)
    for character in sampler.characters(prompt, length):
        sys.stdout.write(character)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that `fusedrnn train` wrote.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    length: Annotated[int, typer.Option(min=0, help="Characters to generate.")] = 500,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Above 1 more varied, below 1 safer, 0 always the likeliest.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option(min=0, help="Draw among this many likeliest characters; 0 for all.")
    ] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="For a repeatable text.", show_default="a new text each time")
    ] = None,
) -> None:
    """Write text, character by character as the model draws it."""
    with _reported():
        if not math.isfinite(temperature):
            raise typer.BadParameter(f"temperature: expected a finite number, got {temperature}")
        found = load_model(model)
        unknown = found.vocabulary.unknown_in(prompt)
        if unknown:
            listed = ", ".join(map(ascii, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            typer.echo(f"warning: characters that the model has never seen are skipped: {listed}", err=True)
        sampler = Sampler(found.model, found.vocabulary, temperature=temperature, top_k=top_k, seed=seed)
        _stream(sampler, prompt, length)


@app.command()
def info(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="MODEL", help="A model file; without it, this build and machine."),
    ] = None,
) -> None:
    """Show what this build and machine can do, or what a model file holds."""
    with _reported():
        if model is None:
            fr.show_config()
            return
        found = load_model(model)
        score = found.score
        measured = (
            {} if score is None else {"held-out bits/char": f"{score.bits:.4f}", "trained steps": score.step}
        )
        _table(
            {
                **asdict(found.config),
                "characters": len(found.vocabulary) - 1,
                "parameters": found.model.num_parameters,
                **measured,
            }
        )


def _table(rows: dict[str, Any]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        typer.echo(f"{name:<{width}}  {value}")
