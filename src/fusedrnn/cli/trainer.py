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
from fusedrnn.cli.charlm import (
    Array,
    CharLM,
    Config,
    Score,
    bits,
    check_shapes,
    is_sound,
    read_fields,
)
from fusedrnn.cli.errors import CliError, reason
from fusedrnn.cli.settings import Settings, check_memory
from fusedrnn.cli.text import Vocabulary, fingerprint, held_out_windows, split, training_windows

CHECKPOINT_FILE = "fusedrnn training checkpoint"

_EVALUATE_AT_MOST = 500  # steps between two evaluations, where an epoch is longer


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
        passed: windows read so far in the present layout of the text, which an update reads one of.
        losses: training loss of every step, in bits per character.
        scores: all evaluations.
        best: the lowest score, the earliest of equal ones; None before the first evaluation.
        best_state: the state_dict that reached it.
    """

    def __init__(
        self, config: Config, settings: Settings, text: str, vocabulary: Vocabulary | None = None
    ) -> None:
        """Build a model for `text`, untrained.

        With a `vocabulary`, instead of that of the part to train on, its weights are zero until `restore`.

        Raises:
            CliError: the text is too short for the settings, or this machine too small for the model.
        """
        parts = split(text, settings.valid_fraction)
        self.config, self.settings = config, settings
        self.fingerprint = fingerprint(text)
        self.vocabulary = Vocabulary.of(parts.training) if vocabulary is None else vocabulary
        if len(self.vocabulary) < 2:
            raise CliError("the text consists of replacement characters only")
        self.characters = len(parts.training), len(parts.held_out), parts.repeated
        codes = self.vocabulary.encode(parts.training)
        self.unknown = int(np.count_nonzero(codes == 0))
        self._windows = training_windows(codes, settings.batch, settings.steps)
        self._held_out = None
        if parts.held_out:
            held_out = self.vocabulary.encode(parts.held_out)
            self._held_out = held_out_windows(held_out, settings.batch, settings.steps)
        check_memory(config, settings, len(self.vocabulary))
        self.model = CharLM(
            config, len(self.vocabulary), settings.seed, "default" if vocabulary is None else None
        ).train()
        self._optimiser = fr.optim.Adam(self.model, lr=settings.lr)
        self._state: Any = None
        self.step = self.passed = 0
        self.losses: list[float] = []
        self.scores: list[Score] = []
        self.best: Score | None = None
        self.best_state: dict[str, Array] | None = None
        self._waited = 0  # evaluations since the best one

    @property
    def epoch(self) -> float:
        """Passes over the training text so far."""
        return self.passed / len(self._windows)

    @property
    def _total(self) -> int:
        """Windows to read in all, in the present layout."""
        return self.settings.epochs * len(self._windows)

    @property
    def total_steps(self) -> int:
        """Updates when the last pass is over."""
        return self.step + max(0, self._total - self.passed)

    @property
    def measures(self) -> bool:
        """Whether a part of the text is held out."""
        return self._held_out is not None

    @property
    def proven(self) -> bool:
        """Whether the model was measured; where nothing is held out, whether it has read its text once."""
        return self.best is not None if self.measures else self.passed >= len(self._windows)

    @property
    def finished(self) -> bool:
        """Whether the last step is made and measured, or `patience` evaluations brought nothing better."""
        return not self._evaluation_due and (self.passed >= self._total or self.stopped_early)

    @property
    def stopped_early(self) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        return self._waited >= self.settings.patience

    @property
    def _evaluation_due(self) -> bool:
        every = min(len(self._windows), _EVALUATE_AT_MOST)
        due = self.passed >= self._total or (self.passed > 0 and self.passed % every == 0)
        return self.measures and due and (not self.scores or self.scores[-1].step != self.step)

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
        window = self.passed % len(self._windows)
        if window == 0:
            self._state = None
        inputs, targets = self._windows[window]
        logits, state, tape = self.model.forward(inputs, self._state)
        loss, dlogits = fr.cross_entropy(logits, targets)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        self.model.zero_grad()
        self.model.backward(tape, dlogits)
        fr.clip_grad_norm(self.model, self.settings.clip)
        self._optimiser.lr = self.settings.rate(self.passed, self._total)
        self._optimiser.step()
        self._state = state
        self.step += 1
        self.passed += 1
        self.losses.append(bits(float(loss)))
        return Trained(self.losses[-1], inputs.size)

    def _evaluate(self) -> Iterator[Measuring | Evaluated]:
        total, state = 0.0, None
        assert self._held_out is not None
        self.model.eval()
        try:
            for index in range(len(self._held_out)):
                inputs, targets = self._held_out[index]
                logits, state = self.model(inputs, state)
                total += float(fr.cross_entropy(logits, targets)[0]) * inputs.size
                yield Measuring()
        finally:
            self.model.train()
        if not math.isfinite(total):
            raise self._diverged(f"the held-out loss is {total}")
        score = Score(self.step, bits(total / self._held_out.characters))
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

    def check_sound(self) -> None:
        """Make sure that the model can generate, before a file is replaced by it.

        Raises:
            CliError: it cannot.
        """
        if not is_sound(self.model.state_dict()):
            raise self._diverged("the parameters are too large or not finite")

    def _diverged(self, how: str) -> CliError:
        return CliError(
            f"training diverged: {how} at step {self.step}; try a smaller --lr (--resume takes one too)"
        )

    # Checkpoints

    def save(self, path: Path, source: str | None) -> None:
        """Write everything that continuing needs, atomically; `source` is the text's path.

        Raises:
            CliError: the file cannot be written.
        """
        tensors = {
            **_prefixed("model", self.model.state_dict()),
            **_prefixed("best", self.best_state or {}),
            **_prefixed("optimiser", self._optimiser.state_dict()),
            **_prefixed("carried", {str(i): array for i, array in enumerate(_states(self._state))}),
            "losses": np.array(self.losses, np.float64),
        }
        content = {
            "config": asdict(self.config),
            "settings": asdict(self.settings),
            "text": {"source": source, "sha256": self.fingerprint},
            "vocabulary": self.vocabulary.characters,
            "position": {"passed": self.passed, "windows": len(self._windows)},
            "random": self.model.random_state(),
            "scores": [asdict(score) for score in self.scores],
        }
        files.save(path, CHECKPOINT_FILE, tensors, content)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go to the point at which the checkpoint was written.

        With another batch the passes over the text go on from the same share of it; with another text they
        and the scores begin anew. Neither takes over the recurrent state.

        Raises:
            CliError: the checkpoint does not fit this trainer.
        """
        tensors, content = checkpoint.tensors, checkpoint.content
        same_text = self.fingerprint == checkpoint.fingerprint
        try:
            self.model.load_state_dict(_below("model", tensors))
            self.model.load_random_state(content["random"])
            self._optimiser.load_state_dict(_below("optimiser", tensors))
            self.losses = tensors["losses"].astype(np.float64, casting="safe").reshape(-1).tolist()
            self.step = len(self.losses)
            passed, windows = content["position"]["passed"], content["position"]["windows"]
            if type(passed) is not int or type(windows) is not int or passed < 0 or windows < 1:
                raise ValueError(f"position: expected counts, got {passed!r} and {windows!r}")
            if same_text:
                for score in content["scores"]:
                    self._record(read_fields(Score, score))
                self.best_state = _below("best", tensors) or None
                self.passed = passed
            if same_text and self.settings.batch == checkpoint.settings.batch:
                self._state = self._checked_state(_below("carried", tensors))
            else:
                self.passed = round(self.passed * len(self._windows) / windows)
            if (self.best is None) != (self.best_state is None):
                raise ValueError("scores: expected the parameters that reached the best one")
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise CliError(f"{checkpoint.path}: not a usable checkpoint: {reason(error)}") from None

    def _checked_state(self, carried: dict[str, Array]) -> Any:
        """The recurrent state of a checkpoint, which has one of each kind that the cell carries, or none."""
        config = self.config
        shape = config.layers, self.settings.batch, config.hidden
        for name, array in carried.items():
            if array.shape != shape or array.dtype != config.dtype:
                found = f"{array.dtype} {array.shape}"
                raise ValueError(f"carried.{name}: expected {config.dtype} {shape}, got {found}")
        if len(carried) not in (0, 2 if config.cell == "lstm" else 1):
            raise ValueError(f"carried: expected a state of {config.cell}, got {len(carried)} arrays")
        return _bare(list(carried.values()))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file, read but not yet applied."""

    path: Path
    config: Config
    settings: Settings
    source: str | None
    fingerprint: str
    vocabulary: Vocabulary
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
            if not isinstance(source, str | None) or not isinstance(sha256, str):
                raise ValueError(f"text: expected a path and a checksum, got {source!r} and {sha256!r}")
            vocabulary = Vocabulary(content["vocabulary"])
            check_shapes(config, len(vocabulary), _below("model", tensors))
            if best := _below("best", tensors):
                check_shapes(config, len(vocabulary), best)
        except (LookupError, TypeError, ValueError) as error:
            raise CliError(f"{path}: not a usable checkpoint: {reason(error)}") from None
        return cls(path, config, settings, source, sha256, vocabulary, tensors, content)


def _prefixed(prefix: str, tensors: dict[str, Array]) -> dict[str, Array]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: files.Tensors) -> dict[str, Array]:
    """The tensors called `prefix`.something, in the order of their names."""
    start = f"{prefix}."
    return {name[len(start) :]: tensors[name] for name in sorted(tensors) if name.startswith(start)}


def _states(state: Any) -> tuple[Array, ...]:
    """A recurrent state as a tuple, whether its cell has none yet, one array, or two."""
    if state is None:
        return ()
    return tuple(state) if isinstance(state, tuple) else (state,)


def _bare(states: list[Array]) -> Any:
    """A recurrent state as the layers take it."""
    return tuple(states) if len(states) > 1 else (states[0] if states else None)
