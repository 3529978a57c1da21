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
from fusedrnn import distributed, files, training
from fusedrnn.cli.charlm import Array, CharLM, Config, Score, bits, is_sound, read_fields
from fusedrnn.cli.checkpoint import CHECKPOINT_FILE, Checkpoint
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.settings import Settings, check_memory
from fusedrnn.cli.text import Vocabulary, fingerprint, held_out_windows, split, training_windows
from fusedrnn.files import below, prefixed, reason
from fusedrnn.training.carried import joined, parted, rows_of
from fusedrnn.training.data import Batch

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

    Several processes that train one model have a trainer each and call the same methods in the same order.
    Each reads some of the rows; losses, scores and parameters are those of all, the same on every process.

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
        self,
        config: Config,
        settings: Settings,
        text: str,
        vocabulary: Vocabulary | None = None,
        group: distributed.Group | None = None,
    ) -> None:
        """Build a model for `text`, untrained.

        With a `vocabulary`, instead of that of the part to train on, its weights are zero until `restore`.

        Raises:
            CliError: the text is too short for the settings, this machine too small for the model, or the
                batch for the processes of `group`.
        """
        self.group: distributed.Group = distributed.Alone() if group is None else group
        if settings.batch < self.group.size:
            raise CliError(
                f"--batch: expected a row for each of {self.group.size} processes, got {settings.batch}"
            )
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
        # Makes the updates: it carries the state from window to window and joins the processes.
        self._run = training.Trainer(
            self.model,
            fr.cross_entropy,
            self._optimiser,
            clip=settings.clip,
            bptt=settings.steps,
            distributed=self.group,
        )
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
        if self.group.size > 1:
            distributed.broadcast_parameters(self.model, group=self.group)
        while not self.finished:
            if self._evaluation_due:
                yield from self._evaluate()
            else:
                yield self._train()

    def _train(self) -> Trained:
        window = self.passed % len(self._windows)
        inputs, targets = self._windows[window]
        characters, own = inputs.size, rows_of(self.group, inputs.shape[1])
        inputs, targets = inputs[:, own], targets[:, own]
        lengths = np.full(inputs.shape[1], len(inputs))
        self._optimiser.lr = self.settings.rate(self.passed, self._total)
        try:
            loss, _ = self._run._train(
                Batch(inputs, None, targets, None, inputs.size, lengths, begins=window == 0)
            )
        except training.DivergedError as error:
            raise self._diverged(error.what) from None
        self.step += 1
        self.passed += 1
        self.losses.append(bits(loss))
        return Trained(self.losses[-1], characters)

    def agree(self, *values: int) -> tuple[int, ...]:
        """The largest that any process has of each number, none of which is negative."""
        if self.group.size == 1:
            return values
        found = np.zeros((self.group.size, len(values)), np.int64)
        found[self.group.rank] = values
        self.group.sum_(found)
        return tuple(found.max(axis=0).tolist())

    def _evaluate(self) -> Iterator[Measuring | Evaluated]:
        total, state = 0.0, None
        assert self._held_out is not None
        self.model.eval()
        try:
            for index in range(len(self._held_out)):
                inputs, targets = self._held_out[index]
                own = rows_of(self.group, inputs.shape[1])
                inputs, targets = inputs[:, own], targets[:, own]
                if inputs.size:
                    logits, state = self.model(inputs, state)
                    total += float(fr.cross_entropy(logits, targets)[0]) * inputs.size
                yield Measuring()
        finally:
            self.model.train()
        (total,) = self._run._over_all(total)
        distributed.check_same(self.model, self.group)
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
        """Write everything that continuing needs, atomically, by rank 0; `source` is the text's path.

        Raises:
            FileError: the file cannot be written.
        """
        tensors = {
            **prefixed("model", self.model.state_dict()),
            **prefixed("best", self.best_state or {}),
            **prefixed("optimiser", self._optimiser.state_dict()),
            **prefixed("carried", joined(self._run._carried, self.group)),
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
        if self.group.rank == 0:
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
            self.model.load_state_dict(below("model", tensors))
            self.model.load_random_state(content["random"])
            self._run._part_noise()
            self._optimiser.load_state_dict(below("optimiser", tensors))
            self.losses = tensors["losses"].astype(np.float64, casting="safe").reshape(-1).tolist()
            self.step = len(self.losses)
            passed, windows = content["position"]["passed"], content["position"]["windows"]
            if type(passed) is not int or type(windows) is not int or passed < 0 or windows < 1:
                raise ValueError(f"position: expected counts, got {passed!r} and {windows!r}")
            if same_text:
                for score in content["scores"]:
                    self._record(read_fields(Score, score))
                self.best_state = below("best", tensors) or None
                self.passed = passed
            if same_text and self.settings.batch == checkpoint.settings.batch:
                self._run._carried = self._checked_state(below("carried", tensors))
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
        form = [True, True] if config.cell == "lstm" else True
        return parted(form if carried else False, carried, self.group)
