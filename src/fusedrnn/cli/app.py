"""The commands and their options."""

from __future__ import annotations

import enum
import importlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.numpy
import typer

import fusedrnn as fr
from fusedrnn import distributed, files
from fusedrnn.cli import demo, inspecting, report, session, text, tune
from fusedrnn.cli.charlm import Config, load_model
from fusedrnn.cli.checkpoint import Checkpoint
from fusedrnn.cli.display import make_display
from fusedrnn.cli.errors import CliError, printable
from fusedrnn.cli.reported import reported
from fusedrnn.cli.sampling import Sampler
from fusedrnn.cli.settings import Settings
from fusedrnn.cli.trainer import Trainer
from fusedrnn.compute import missing_for
from fusedrnn.saving import MODEL

app = typer.Typer(
    help="Fast recurrent networks: train a language model, look into it, run the examples, tune parameters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_CONFIG, _SETTINGS = Config(), Settings()
_DEFAULT_OUT = Path("charlm.safetensors")
_CHANGEABLE = ("batch", "lr", "epochs", "clip", "patience")  # when a run goes on


class Cell(str, enum.Enum):
    """Choices of --cell."""

    lstm = "lstm"
    gru = "gru"
    rnn = "rnn"


class DType(str, enum.Enum):
    """Choices of --dtype."""

    float32 = "float32"
    float64 = "float64"


class Compute(str, enum.Enum):
    """Choices of --compute."""

    float32 = "float32"
    bf16x3 = "bf16x3"
    bf16 = "bf16"


_PRECISIONS = {Compute.float32: "highest", Compute.bf16x3: "high", Compute.bf16: "medium"}
_CELL, _DTYPE = Cell(_CONFIG.cell), DType(_CONFIG.dtype)


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
    """Fast recurrent networks: train a language model, look into it, run the examples, tune parameters.

    Start with `fusedrnn train`, which makes a model of Python's help texts, or `fusedrnn demo`.
    """


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
    compute: Annotated[
        Compute,
        typer.Option(
            help="What float32 multiplies in; bf16 needs AMX or AVX512_BF16; bf16x3, nearly float32, AMX. "
            "Not kept: for --resume too."
        ),
    ] = Compute.float32,
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
        float,
        typer.Option(
            help="Share of the text, at its end, that is held out to measure the model; 0 for none."
        ),
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
            help="Model file to write; one that is there stays until the new model is measured. The "
            "checkpoint and the picture lie beside it; the checkpoint of the run before is kept as "
            "NAME.previous.checkpoint.safetensors.",
            show_default=str(_DEFAULT_OUT),
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint to continue from, exactly as if it had never stopped; another TEXT_FILE, "
            "--batch, --lr, --epochs, --clip or --patience may be given."
        ),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Pause when this many steps are made, counted from the start.")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.0, help="Pause after this time.")] = None,
) -> None:
    """Train a character-level language model on a text.

    Started by torchrun or mpirun, its processes share the rows of a batch:
    torchrun --nproc-per-node=2 --no-python fusedrnn train
    """
    with reported(), _launched() as group, _computing(compute):
        _set_threads(threads)
        limits = session.Limits(max_steps, max_seconds)
        checkpoint = None if resume is None else Checkpoint.read(resume)
        kept = dtype.value if checkpoint is None else checkpoint.config.dtype
        if compute is not Compute.float32 and kept != DType.float32.value:
            raise CliError(f"--compute: expected float32 with --dtype {kept}, got {compute.value}")
        changes: list[str] = []
        goes_on = False
        if checkpoint is None:
            paths = session.Paths.of(out or _DEFAULT_OUT)
            source = None if text_file is None else os.path.realpath(text_file)
            trainer = _new_trainer(ctx, _corpus(source), group)
        else:
            paths = session.Paths.of(out or session.Paths.model_beside(checkpoint.path))
            if os.path.realpath(paths.model) == os.path.realpath(checkpoint.path):
                raise CliError(f"--out: expected a name for the model, got the checkpoint: {paths.model}")
            source = checkpoint.source if text_file is None else os.path.realpath(text_file)
            trainer, changes = _continued(ctx, checkpoint, source, text_file is not None, group)
            goes_on = os.path.realpath(paths.checkpoint) == os.path.realpath(checkpoint.path)
            if os.path.realpath(paths.previous) == os.path.realpath(checkpoint.path):
                raise CliError(
                    f"--out: expected another name: {paths.checkpoint} would be kept in place of --resume"
                )
        # A run that has proven nothing yet may have left the model of an earlier one in its place.
        keep = paths.model.exists() and not (goes_on and trainer.proven)
        if group.rank == 0:
            report.describe(trainer, source, changes)
            other = paths.checkpoint.exists() and not goes_on
            report.say_where(trainer, paths, out is None and checkpoint is None, keep, other)
            if other:
                session.keep_previous(paths)
        try:
            outcome = session.run(trainer, paths, source, make_display(trainer), limits, keep)
        except distributed.LostProcessError as error:
            there = paths.checkpoint.exists()
            advice = f"; {report.continuing(trainer, paths)}" if there else ""
            raise CliError(f"{error}{advice}") from None
        if group.rank == 0:
            report.conclude(trainer, paths, outcome)


@contextmanager
def _launched() -> Iterator[distributed.Group]:
    """The processes that train together."""
    try:
        with distributed.launched() as group:
            yield group
    except ModuleNotFoundError as error:
        raise CliError(f"several processes: expected {error.name} to be installed; pip install it") from None


@contextmanager
def _computing(compute: Compute) -> Iterator[None]:
    """What networks made meanwhile multiply in."""
    before = fr.get_float32_matmul_precision()
    needed = missing_for(compute.value)
    if needed is not None:
        others = "float32 or bf16" if missing_for("bf16") is None else "float32"
        raise CliError(f"--compute: expected {others} on a CPU without {needed}, got {compute.value}")
    fr.set_float32_matmul_precision(_PRECISIONS[compute])
    try:
        yield
    finally:
        fr.set_float32_matmul_precision(before)


def _set_threads(threads: int | None) -> None:
    """Follow --threads; without it, the processes of a machine share its cores."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or 1)
    if threads is not None:
        fr.set_num_threads(threads)
    elif beside > 1 and "FUSEDRNN_NUM_THREADS" not in os.environ:
        fr.set_num_threads(max(1, fr.get_num_threads() // beside))


def _corpus(source: str | None) -> str:
    return text.built_in_text() if source is None else text.read_text(Path(source))


def _chosen(ctx: typer.Context, kind: type[Any]) -> dict[str, Any]:
    """The options that are fields of a dataclass, as plain values."""
    values = {field.name: ctx.params[field.name] for field in fields(kind)}
    return {name: value.value if isinstance(value, enum.Enum) else value for name, value in values.items()}


def _new_trainer(ctx: typer.Context, corpus: str, group: distributed.Group) -> Trainer:
    try:
        config, settings = Config(**_chosen(ctx, Config)), Settings(**_chosen(ctx, Settings))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return Trainer(config, settings, corpus, group=group)


def _continued(
    ctx: typer.Context,
    checkpoint: Checkpoint,
    source: str | None,
    text_given: bool,
    group: distributed.Group,
) -> tuple[Trainer, list[str]]:
    """The trainer of a run that goes on, and what changed: an option given is followed or refused."""
    settings, changes = checkpoint.settings, []
    kept = {**asdict(checkpoint.config), **asdict(settings)}
    for name, value in {**_chosen(ctx, Config), **_chosen(ctx, Settings)}.items():
        given = ctx.get_parameter_source(name)
        if given is None or given.name == "DEFAULT" or value == kept[name]:
            continue
        if name not in _CHANGEABLE:
            option = "--" + name.replace("_", "-")
            raise typer.BadParameter(f"{option}: the checkpoint was made with {kept[name]}, got {value}")
        try:
            settings = replace(settings, **{name: value})
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        changes.append(f"--{name} {value} (was {kept[name]})")
    corpus = _corpus(source)
    if text.fingerprint(corpus) != checkpoint.fingerprint:
        if not text_given:
            raise CliError(
                f"{source or text.BUILT_IN}: not the text that {checkpoint.path} was trained on any more; "
                "give a TEXT_FILE, this one or another, to continue with what it holds"
            )
        changes.append(f"the text (was {checkpoint.source or text.BUILT_IN}); its passes are counted anew")
    trainer = Trainer(checkpoint.config, settings, corpus, checkpoint.vocabulary, group)
    trainer.restore(checkpoint)
    return trainer, changes


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
    with reported():
        if not math.isfinite(temperature):
            raise typer.BadParameter(f"temperature: expected a finite number, got {temperature}")
        found = load_model(model)
        unknown = found.vocabulary.unknown_in(prompt)
        if unknown:
            listed = ", ".join(map(ascii, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            typer.echo(f"warning: characters that the model has never seen are skipped: {listed}", err=True)
        sampler = Sampler(found.model, found.vocabulary, temperature=temperature, top_k=top_k, seed=seed)
        report.stream(sampler, prompt, length)


@app.command()
def info(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL",
            help="A file of `fusedrnn train` or of fusedrnn.save; without it, this build and machine.",
        ),
    ] = None,
) -> None:
    """Show this build and machine, or what a model file holds."""
    with reported():
        if model is None:
            fr.show_config()
            return
        if files.kind_of(model) == MODEL:
            made = fr.load(model)
            typer.echo(repr(made))
            report.table({"parameters": made.num_parameters})
            return
        found = load_model(model)
        score = found.score
        measured = (
            {} if score is None else {"held-out bits/char": f"{score.bits:.4f}", "trained steps": score.step}
        )
        report.table(
            {
                **asdict(found.config),
                "characters": len(found.vocabulary) - 1,
                "parameters": found.model.num_parameters,
                **measured,
            }
        )


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX file.")],
    out: Annotated[
        Path | None,
        typer.Option(help="File of the weights to write.", show_default="MODEL with .safetensors at its end"),
    ] = None,
) -> None:
    """Write the weights of an ONNX file as safetensors.

    They are named as PyTorch's.
    """
    with reported():
        try:
            found = importlib.import_module("fusedrnn.interop.onnx").load(model)
        except ModuleNotFoundError as error:
            raise CliError(f"{error.name}: expected to be installed; pip install 'fusedrnn[onnx]'") from None
        except OSError as error:
            raise CliError(f"{model}: {error.strerror}") from None
        written = out or model.with_suffix(".safetensors")
        if os.path.realpath(written) == os.path.realpath(model):
            raise CliError(f"--out: expected another file than the model, got {written}")
        values = {name: np.asarray(value) for name, value in found.state_dict().items()}
        try:
            written.write_bytes(safetensors.numpy.save(values))
        except OSError as error:
            raise CliError(f"{written}: {error.strerror}") from None
        layers = {name: repr(layer) for name, layer in found.layers.items()}
        report.table(
            {
                "inputs": ", ".join(map(printable, found.inputs)),
                "outputs": ", ".join(map(printable, found.outputs)),
                **layers,
                "parameters": found.num_parameters,
                "written": written,
            }
        )


app.command()(inspecting.inspect)
app.command(context_settings={"ignore_unknown_options": True})(demo.demo)
app.command()(tune.tune)
