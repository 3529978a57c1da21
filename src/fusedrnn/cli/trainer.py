"""Training: truncated backpropagation through time, the schedule, early stopping, and exact checkpoints.

Nothing here prints or decides where files lie. A trainer is driven by its events:

    for event in trainer.events():   # ends when training is finished; may be left at any event
        ...
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn.cli import files
from fusedrnn.cli.charlm import Array, CharLM, Config, Score, bits, read_fields
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.text import Vocabulary, fingerprint, held_out_windows, split, training_windows

CHECKPOINT_FILE = "fusedrnn training checkpoint"

_FINAL_RATE = 0.02  # of the peak learning rate, at the last step
_EVALUATE_AT_MOST = 500  # steps between two evaluations, where an epoch is longer


@dataclass(frozen=True)
class Settings:
    """How a model is trained."""

    batch: int = 32
    steps: int = 64
    lr: float = 8e-3
    epochs: int = 5
    clip: float = 1.0
    patience: int = 4
    valid_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "epochs", "patience"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected an int >= 1, got {value!r}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0.0 < value < math.inf:
                raise ValueError(f"{name}: expected a finite number > 0, got {value!r}")
        if not isinstance(self.valid_fraction, float) or not 0.0 < self.valid_fraction < 1.0:
            raise ValueError(f"valid_fraction: expected 0 < fraction < 1, got {self.valid_fraction!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed: expected an int >= 0, got {self.seed!r}")

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of update `step` of `total`: half a cosine from `lr` down."""
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / total))
        return self.lr * (_FINAL_RATE + (1.0 - _FINAL_RATE) * cosine)


@dataclass(frozen=True)
class Trained:
    """One update was made, on `characters` characters, whose loss was `bits` per character before it."""

    bits: float
    characters: int


@dataclass(frozen=True)
class Measuring:
    """A part of the held-out text was measured."""


@dataclass(frozen=True)
class Evaluated:
    """The held-out text was measured: `score`, and whether it is the best so far."""

    score: Score
    improved: bool


Event = Trained | Measuring | Evaluated


class Trainer:
    """A model in training.

    Attributes:
        model: the model in its present state.
        step: updates made so far, of `total_steps`.
        losses: training loss of every step, in bits per character.
        scores: all evaluations.
        best: the lowest score, the earliest of equal ones; None before the first evaluation.
        best_state: the state_dict that reached it.
    """

    def __init__(self, config: Config, settings: Settings, text: str) -> None:
        """Build a model for `text`, untrained.

        Raises:
            CliError: the text is too short for the settings.
        """
        parts = split(text, settings.valid_fraction)
        self.config, self.settings = config, settings
        self.fingerprint = fingerprint(text)
        self.vocabulary = Vocabulary.of(parts.training)
        if len(self.vocabulary) < 2:
            raise CliError("the text consists of replacement characters only")
        self.characters = len(parts.training), len(parts.held_out), parts.repeated
        self._windows = training_windows(
            self.vocabulary.encode(parts.training), settings.batch, settings.steps
        )
        self._held_out = held_out_windows(
            self.vocabulary.encode(parts.held_out), settings.batch, settings.steps
        )
        self.model = CharLM(config, len(self.vocabulary), settings.seed).train()
        self._optimiser = fr.optim.Adam(self.model, lr=settings.lr)
        self._state: Any = None
        self.step = 0
        self.total_steps = settings.epochs * len(self._windows)
        self.losses: list[float] = []
        self.scores: list[Score] = []
        self.best: Score | None = None
        self.best_state: dict[str, Array] | None = None
        self._waited = 0  # evaluations since the best one

    @property
    def epoch(self) -> float:
        """Passes over the training text so far."""
        return self.step / len(self._windows)

    @property
    def finished(self) -> bool:
        """Whether the last step is made and measured, or `patience` evaluations brought nothing better."""
        return not self._evaluation_due and (self.step == self.total_steps or self.stopped_early)

    @property
    def stopped_early(self) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        return self._waited >= self.settings.patience

    @property
    def _evaluation_due(self) -> bool:
        every = min(len(self._windows), _EVALUATE_AT_MOST)
        due = self.step == self.total_steps or (self.step > 0 and self.step % every == 0)
        return due and (not self.scores or self.scores[-1].step != self.step)

    def events(self) -> Generator[Event, None, None]:
        """Train until finished. After any event the trainer can be left, saved, or asked for more events.

        Raises:
            CliError: the loss is not finite.
        """
        while not self.finished:
            if self._evaluation_due:
                yield from self._evaluate()
            else:
                yield self._train()

    def _train(self) -> Trained:
        window = self.step % len(self._windows)
        if window == 0:
            self._state = None
        inputs, targets = self._windows[window]
        logits, state, tape = self.model.forward(inputs, self._state)
        loss, dlogits = fr.cross_entropy(logits, targets)
        if not math.isfinite(loss):
            raise CliError(f"training diverged: the loss is {loss} at step {self.step}; try a smaller --lr")
        self.model.zero_grad()
        self.model.backward(tape, dlogits)
        fr.clip_grad_norm(self.model, self.settings.clip)
        self._optimiser.lr = self.settings.rate(self.step, self.total_steps)
        self._optimiser.step()
        self._state = state
        self.step += 1
        self.losses.append(bits(float(loss)))
        return Trained(self.losses[-1], inputs.size)

    def _evaluate(self) -> Iterator[Measuring | Evaluated]:
        total, state = 0.0, None
        self.model.eval()
        try:
            for index in range(len(self._held_out)):
                inputs, targets = self._held_out[index]
                logits, state = self.model(inputs, state)
                total += float(fr.cross_entropy(logits, targets)[0]) * inputs.size
                yield Measuring()
        finally:
            self.model.train()
        score = Score(self.step, bits(total / self._held_out.characters))
        if not math.isfinite(total):
            raise CliError(
                f"training diverged: the held-out loss is {total} at step {self.step}; try a smaller --lr"
            )
        improved = self._record(score)
        if improved:
            self.best_state = self.model.state_dict()
        yield Evaluated(score, improved)

    def _record(self, score: Score) -> bool:
        """Note an evaluation; return whether it is the best so far."""
        self.scores.append(score)
        improved = self.best is None or score.bits < self.best.bits
        self.best, self._waited = (score, 0) if improved else (self.best, self._waited + 1)
        return improved

    # Checkpoints

    def save(self, path: Path, source: str | None) -> None:
        """Write everything that continuing needs, atomically; `source` is the text's path.

        Raises:
            CliError: the file cannot be written.
        """
        arrays, numbers = _parted(self._optimiser.state_dict())
        tensors = {
            **_prefixed("model", self.model.state_dict()),
            **_prefixed("best", self.best_state or {}),
            **_prefixed("optimiser", arrays),
            **_prefixed("carried", {str(i): array for i, array in enumerate(_states(self._state))}),
            "losses": np.array(self.losses, np.float64),
        }
        content = {
            "config": asdict(self.config),
            "settings": asdict(self.settings),
            "text": {"source": source, "sha256": self.fingerprint},
            "optimiser": numbers,
            "random": self.model.random_state(),
            "scores": [asdict(score) for score in self.scores],
        }
        files.save(path, CHECKPOINT_FILE, tensors, content)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go to the point at which the checkpoint was written.

        Raises:
            CliError: the checkpoint does not fit this trainer.
        """
        tensors, content = checkpoint.tensors, checkpoint.content
        try:
            self.model.load_state_dict(_below("model", tensors))
            self.model.load_random_state(content["random"])
            self._optimiser.load_state_dict(_joined(_below("optimiser", tensors), content["optimiser"]))
            self._state = _bare(list(_below("carried", tensors).values()))
            self.best_state = _below("best", tensors) or None
            self.losses = [float(loss) for loss in tensors["losses"]]
            for score in content["scores"]:
                self._record(read_fields(Score, score))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CliError(f"{checkpoint.path}: not a usable checkpoint: {error}") from None
        self.step = len(self.losses)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file, read but not yet applied."""

    path: Path
    config: Config
    settings: Settings
    source: str | None
    fingerprint: str
    tensors: files.Tensors
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            CliError: no such file, another kind of file, or a damaged one.
        """
        tensors, content = files.load(path, CHECKPOINT_FILE)
        try:
            config = read_fields(Config, content["config"])
            settings = read_fields(Settings, content["settings"])
            source, sha256 = content["text"]["source"], content["text"]["sha256"]
        except (KeyError, TypeError, ValueError) as error:
            raise CliError(f"{path}: not a usable checkpoint: {error}") from None
        return cls(path, config, settings, source, sha256, tensors, content)


def _prefixed(prefix: str, tensors: dict[str, Array]) -> dict[str, Array]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: files.Tensors) -> dict[str, Array]:
    """The tensors called `prefix`.something, in the order of their names."""
    start = f"{prefix}."
    return {name[len(start) :]: tensors[name] for name in sorted(tensors) if name.startswith(start)}


def _parted(state: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
    """An optimiser's state as its arrays, called "name.parameter", and the rest."""
    nested = {name: value for name, value in state.items() if isinstance(value, dict)}
    arrays = {f"{name}.{key}": array for name, value in nested.items() for key, array in value.items()}
    return arrays, {name: value for name, value in state.items() if name not in nested}


def _joined(arrays: dict[str, Array], rest: dict[str, Any]) -> dict[str, Any]:
    """The state that `_parted` took apart."""
    state = dict(rest)
    for name in dict.fromkeys(key.partition(".")[0] for key in arrays):
        state[name] = _below(name, arrays)
    return state


def _states(state: Any) -> tuple[Array, ...]:
    """A recurrent state as a tuple, whether its cell has none yet, one array, or two."""
    if state is None:
        return ()
    return tuple(state) if isinstance(state, tuple) else (state,)


def _bare(states: list[Array]) -> Any:
    """A recurrent state as the layers take it."""
    return tuple(states) if len(states) > 1 else (states[0] if states else None)
