"""`fusedrnn tune`: Optuna over an estimator on data in a file, or over the language model."""

from __future__ import annotations

import enum
import importlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fusedrnn.cli.charlm import Config
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.reported import reported
from fusedrnn.cli.settings import Settings
from fusedrnn.cli.text import read_text
from fusedrnn.cli.trainer import Evaluated, Trainer
from fusedrnn.files import write_atomically


class Kind(str, enum.Enum):
    """Choices of --estimator."""

    classifier = "classifier"
    regressor = "regressor"
    tagger = "tagger"


_CLASSES = {"classifier": "SequenceClassifier", "regressor": "SequenceRegressor", "tagger": "SequenceTagger"}


def tune(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A .npz file with X (N, T, I), padded by NaN at the end, and y; or a UTF-8 text.",
        ),
    ],
    estimator: Annotated[Kind, typer.Option(help="What to tune on a .npz file.")] = Kind.classifier,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, with those of the file before.")] = 20,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data of a trial.")] = 10,
    folds: Annotated[int, typer.Option(min=2, help="Parts of cross-validation, on a .npz file.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the models and the search.")] = 0,
    out: Annotated[Path, typer.Option(help="File of the study; a picture lies beside it.")] = Path("tune.db"),
) -> None:
    """Look for better parameters with Optuna.

    A run that was ended goes on when it is started again.
    """
    with reported():
        try:
            optuna = importlib.import_module("optuna")
        except ModuleNotFoundError:
            raise CliError("optuna: expected to be installed; pip install optuna") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        text = data.suffix != ".npz"
        score = (
            _language_model(data, epochs, seed) if text else _estimator(data, estimator, epochs, folds, seed)
        )
        what = "text" if text else f"{estimator.value}, folds {folds}"
        name = f"{data.name}, {what}, epochs {epochs}, seed {seed}"
        study = _study(optuna, out, "minimize" if text else "maximize", name, seed)
        done = sum(trial.state.is_finished() for trial in study.trials)
        if done:
            typer.echo(f"{out}: goes on after {done} trials")
        if done < trials:
            study.optimize(
                lambda trial: score(trial, optuna.TrialPruned),
                n_trials=trials - done,
                callbacks=[_say],
                catch=(ArithmeticError,),
            )
        completed = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        if not completed:
            raise CliError(f"{out}: no trial was completed; raise --trials")
        picture = out.with_suffix(".png")
        _draw(picture, study, completed, "bits per character" if text else "score")
        typer.echo(f"best: {study.best_value:.4f} with {json.dumps(study.best_params)}")
        typer.echo(f"study: {out}; picture: {picture}")


def _study(optuna: Any, out: Path, direction: str, name: str, seed: int) -> Any:
    """Open or make the study. SQLite commits each trial: nothing but the one under way can be lost."""
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{os.fspath(out)}",
            study_name=name,
            direction=direction,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        )
    except Exception as error:  # whatever SQLAlchemy has for a file that is none of its own
        raise CliError(f"{out}: not a study that can be opened: {str(error).splitlines()[0]}") from None
    # Of how many trials there are, so that a run that goes on does not draw what it drew before.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _say(study: Any, trial: Any) -> None:
    if trial.state.name == "COMPLETE":
        said = f"{trial.value:.4f}"
    else:
        said = "pruned" if trial.state.name == "PRUNED" else "diverged"
    typer.echo(f"trial {trial.number}: {said} with {json.dumps(trial.params)}")


def _estimator(data: Path, kind: Kind, epochs: int, folds: int, seed: int) -> Callable[[Any, Any], float]:
    """Return a function that scores a trial: the mean over folds, pruned between them."""
    try:
        estimators = importlib.import_module("fusedrnn.estimators")
        selection = importlib.import_module("sklearn.model_selection")
    except ModuleNotFoundError:
        raise CliError("scikit-learn: expected to be installed; pip install 'fusedrnn[estimators]'") from None
    x, y = _arrays(data)
    make = getattr(estimators, _CLASSES[kind.value])
    splitter = selection.StratifiedKFold if kind is Kind.classifier else selection.KFold
    try:
        parts = list(splitter(folds, shuffle=True, random_state=seed).split(x, y))
        make(epochs=0).fit(x, y)  # which says what is wrong before there is a study
    except (TypeError, ValueError) as error:
        raise CliError(f"{data}: {error}") from None

    def score(trial: Any, pruned: type[Exception]) -> float:
        parameters = {
            "cell": trial.suggest_categorical("cell", ["gru", "lstm"]),
            "hidden_size": trial.suggest_int("hidden_size", 8, 128, log=True),
            "bidirectional": trial.suggest_categorical("bidirectional", [False, True]),
            "dropout": trial.suggest_float("dropout", 0.0, 0.6),
            "lr": trial.suggest_float("lr", 1e-3, 3e-2, log=True),
        }
        if kind is not Kind.tagger:
            parameters["pooling"] = trial.suggest_categorical("pooling", ["last", "mean", "max"])
        scores = []
        for number, (train, test) in enumerate(parts):
            model = make(**parameters, epochs=epochs, random_state=seed)
            scores.append(float(model.fit(x[train], y[train]).score(x[test], y[test])))
            trial.report(float(np.mean(scores)), number)
            if trial.should_prune():
                raise pruned
        return float(np.mean(scores))

    return score


def _arrays(data: Path) -> tuple[Any, Any]:
    try:
        with open(data, "rb") as file, np.load(file, allow_pickle=False) as found:
            x, y = found["X"], found["y"]
    except OSError as error:
        raise CliError(f"{data}: {error.strerror or error}") from None
    except (
        AttributeError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise CliError(f"{data}: expected arrays X and y, without objects: {error}") from None
    if x.ndim not in (2, 3) or not y.ndim or len(x) != len(y):
        raise CliError(f"{data}: expected X (N, T, I) or (N, T) and y of N, got {x.shape} and {y.shape}")
    return x, y


def _language_model(data: Path, epochs: int, seed: int) -> Callable[[Any, Any], float]:
    """Return a function that trains a model of a text, and gives its best bits per held-out character."""
    corpus = read_text(data)

    def score(trial: Any, pruned: type[Exception]) -> float:
        config = Config(
            cell=trial.suggest_categorical("cell", ["gru", "lstm"]),
            hidden=trial.suggest_int("hidden", 32, 256, log=True),
            embedding=trial.suggest_int("embedding", 8, 64, log=True),
            dropout=trial.suggest_float("dropout", 0.0, 0.5),
        )
        settings = Settings(
            lr=trial.suggest_float("lr", 1e-3, 2e-2, log=True),
            batch=trial.suggest_categorical("batch", [16, 32, 64]),
            epochs=epochs,
            seed=seed,
        )
        trainer = Trainer(config, settings, corpus)
        if not trainer.measures:
            raise CliError(f"{data}: too short to hold a part out")
        for event in trainer.events():
            if isinstance(event, Evaluated):
                trial.report(trainer.scores[-1].bits, len(trainer.scores))
                if trial.should_prune():
                    raise pruned
        trial.set_user_attr("settings", json.dumps({**asdict(config), **asdict(settings)}))
        return min(found.bits for found in trainer.scores)

    return score


def _draw(path: Path, study: Any, completed: list[Any], label: str) -> None:
    """Write the value of each trial and the best so far."""
    from fusedrnn.interpret.figures import new_figure

    figure = new_figure(8.0, 4.5)
    axes = figure.add_subplot()
    numbers, values = [trial.number for trial in completed], np.array([trial.value for trial in completed])
    lowest = study.direction.name == "MINIMIZE"
    axes.plot(numbers, values, "o", markersize=4, color="tab:gray", label="trial")
    best = (np.minimum if lowest else np.maximum).accumulate(values)
    axes.step(numbers, best, where="post", color="tab:blue", label="best so far")
    axes.set(xlabel="trial", ylabel=label, title=f"best: {study.best_value:.4f}")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(path, picture.getvalue())
