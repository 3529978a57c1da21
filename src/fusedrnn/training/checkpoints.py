"""What a run needs to go on exactly, and the file that holds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusedrnn import files
from fusedrnn.checks import check_size
from fusedrnn.distributed import Group
from fusedrnn.files import FileError, below, prefixed, reason
from fusedrnn.listing import Listed
from fusedrnn.nn.module import Module
from fusedrnn.optim.optimizer import Optimizer
from fusedrnn.optim.schedules import Scheduler
from fusedrnn.training.carried import form_of, joined, parted
from fusedrnn.training.description import loss_text, model_text
from fusedrnn.training.early_stopping import EarlyStopping
from fusedrnn.training.parts import Loss

KIND = "fusedrnn run of a Trainer"
_SERIES = ("losses", "norms")
_SETTINGS = ("batch_size", "seed", "bptt")


class Resumable(Listed):
    """The state of a `Trainer`: everything that changes while it runs."""

    model: Module
    loss: Loss
    optimizer: Optimizer
    schedule: Scheduler | None
    early_stopping: EarlyStopping | None
    callbacks: list[Any]
    history: dict[str, list[float]]
    losses: list[float]
    norms: list[float]
    epoch: int
    batch_size: int
    seed: int
    bptt: int | None
    group: Group
    # Batches of the present epoch, or their windows, that are done, the sum of their losses, and of targets.
    _done: int
    _sum: float
    _count: int
    # The state that the next window starts from, of this process's sequences.
    _carried: Any
    # SHA-256 of the training data.
    _digest: str

    def _state(self) -> tuple[files.Tensors, dict[str, Any]]:
        """Return the arrays, and everything else as JSON holds it."""
        early = self.early_stopping
        tensors = {
            **prefixed("model", self.model.state_dict()),
            **prefixed("optimizer", self.optimizer.state_dict()),
            **prefixed("best", early.best_state if early is not None else {}),
            **prefixed("carried", joined(self._carried, self.group)),
            **{name: np.array(getattr(self, name), np.float64) for name in _SERIES},
        }
        callbacks = {
            str(number): callback.state_dict()
            for number, callback in enumerate(self.callbacks)
            if hasattr(callback, "state_dict")
        }
        content = {
            "data": self._digest,
            "kinds": self._kinds(),
            "model": model_text(self.model),
            "settings": {name: getattr(self, name) for name in _SETTINGS},
            "carried": form_of(self._carried),
            "position": [self.epoch, self._done, self._sum, self._count],
            "history": {name: [float(v) for v in values] for name, values in self.history.items()},
            "random": self.model.random_state(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "early_stopping": None if early is None else early.state_dict(),
            "callbacks": callbacks,
        }
        return tensors, content

    def _kinds(self) -> dict[str, str]:
        """Return the loss, and the classes of its parts."""
        parts = {name: getattr(self, name) for name in ("optimizer", "schedule", "early_stopping")}
        kinds = {name: "none" if part is None else type(part).__name__ for name, part in parts.items()}
        return {"loss": loss_text(self.loss), **kinds}

    def _write(self, path: Path) -> None:
        """Replace a file by one of the present state: all of it gets there, or the old file stays.

        Raises:
            FileError: it cannot be written.
        """
        tensors, content = self._state()
        if self.group.rank == 0:
            files.save(path, KIND, tensors, content)

    def _read(self, path: Path) -> None:
        """Go to the state that a file holds; what does not fit leaves everything as it was.

        Raises:
            FileError: no such file, another kind of file, or a damaged one.
            ValueError: of other data, settings or parts.
        """
        tensors, content = files.load(path, KIND)
        before = self._state()
        try:
            self._check_same(content)
            self._apply(tensors, content)
            self._part_noise()
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            self._apply(*before)
            raise FileError(f"{path}: not a checkpoint of this run: {reason(error)}") from None

    def _part_noise(self) -> None:
        """Give each process dropout of its own; rank 0 keeps what a run of one process has."""
        moved = {
            name: ((seed + self.group.rank * 0x9E3779B97F4A7C15) % 2**64, offset)
            for name, (seed, offset) in self.model.random_state().items()
        }
        if self.group.rank:
            self.model.load_random_state(moved)

    def _check_same(self, content: Mapping[str, Any]) -> None:
        """Refuse a run that could not go on to the same bits."""
        if content["data"] != self._digest:
            raise ValueError("train: expected the data that it was made with, got other data")
        for name in _SETTINGS:
            saved = content["settings"][name]
            if saved != getattr(self, name):
                raise ValueError(
                    f"{name}: expected {saved}, with which it was made, got {getattr(self, name)}"
                )
        model, saved = model_text(self.model), content["model"]
        for name in [*model, *(name for name in saved if name not in model)]:
            made, now = saved.get(name, "none"), model.get(name, "none")
            if made != now:
                where = f"model.{name}" if name else "model"
                raise ValueError(f"{where}: expected {made}, with which it was made, got {now}")
        for name, kind in self._kinds().items():
            if content["kinds"][name] != kind:
                raise ValueError(
                    f"{name}: expected {content['kinds'][name]}, as it was made with, got {kind}"
                )
        for number in content["callbacks"]:
            if not hasattr(dict(enumerate(self.callbacks)).get(int(number)), "load_state_dict"):
                raise ValueError(
                    f"callbacks[{number}]: expected one with a state, as it was made with, got none"
                )

    def _apply(self, tensors: Mapping[str, Any], content: Mapping[str, Any]) -> None:
        epoch, done, total, count = content["position"]
        position = check_size("epoch", epoch, 0), check_size("done", done, 0), float(total)
        counted = check_size("count", count, 0)
        history = {str(name): [float(v) for v in values] for name, values in content["history"].items()}
        carried = parted(content["carried"], below("carried", tensors), self.group)
        series = {name: tensors[name].astype(np.float64, casting="safe").tolist() for name in _SERIES}
        self.model.load_state_dict(below("model", tensors))
        self.model.load_random_state(content["random"])
        self.optimizer.load_state_dict(below("optimizer", tensors))
        if self.schedule is not None:
            self.schedule.load_state_dict(content["schedule"])
        if self.early_stopping is not None:
            self.early_stopping.load_state_dict(content["early_stopping"], below("best", tensors))
        for number, state in content["callbacks"].items():
            self.callbacks[int(number)].load_state_dict(state)
        self.history.clear()
        self.history.update(history)
        self.losses, self.norms = series["losses"], series["norms"]
        self.epoch, self._done, self._sum = position
        self._count, self._carried = counted, carried
