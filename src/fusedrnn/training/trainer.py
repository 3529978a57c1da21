"""Trainer: the loop around a model, a loss and an optimiser, with exact checkpoints."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusedrnn.checks import check_flag, check_number, check_size
from fusedrnn.nn.module import Module
from fusedrnn.optim.optimizer import Optimizer
from fusedrnn.optim.schedules import Scheduler
from fusedrnn.training.checkpoints import Resumable
from fusedrnn.training.clip import clip_grad_norm
from fusedrnn.training.data import Batch, Data, SequenceData
from fusedrnn.training.diagnosis import DivergedError, diagnose
from fusedrnn.training.early_stopping import EarlyStopping
from fusedrnn.training.parts import Loss, Metric, check_metrics, check_parts, check_whole, loss_and_gradient
from fusedrnn.training.progress import Lines, make_progress


class Trainer(Resumable):
    """Train a model on sequences.

        trainer = fr.training.Trainer(model, fr.cross_entropy, fr.optim.Adam(model), clip=1.0, epochs=20)
        history = trainer.fit((inputs, targets), validation=(inputs, targets))

    A batch's inputs go to the model as (T, B, ...), padded at the end, with `lengths` where lengths differ.
    The model's output is (B, ...) for targets of sequences, (T, B, ...) for targets of steps; of the latter,
    those steps that are no padding go to the loss, as (steps, ...). A loss that has an argument `lengths`, as
    `CRF.loss`, gets everything and the lengths instead. Parameters that such a loss trains have to be the
    model's, too. A model whose forward has an argument `targets`, as `EncoderDecoder`, gets them, too.

    Batches hold sequences of about the same length, in an order that depends on `seed` and the epoch alone.
    With `checkpoint`, a run that was ended at any moment, also by kill -9, goes on from its last checkpoint
    to the same bits as one that was never ended: `fit(..., resume=True)`.

    Args:
        model: a module with the protocol of `Module`; its state, if it has one, starts from zeros.
        loss: (output, targets) -> (loss, gradient of the output), the mean over the targets, as
            `fr.cross_entropy` and `fr.mse_loss` are.
        optimizer: over the model or parts of it.
        schedule: one of `fusedrnn.optim`, of this optimiser; stepped for each epoch, or each step of the
            optimiser, as its `every` says. One that follows a metric gets the validation loss.
        clip: the largest norm of the gradients, as in `clip_grad_norm`; None for no limit.
        early_stopping: an `EarlyStopping`, or its patience.
        callbacks: each called with the trainer after every epoch, or an object with `on_step(trainer)` or
            `on_epoch(trainer)`. Setting `trainer.stop = True` ends training after that epoch. What their
            `state_dict()` returns, if they have one, is saved as JSON, and goes to `load_state_dict`.
        epochs: passes over the data, all in all.
        batch_size: sequences in a batch.
        seed: of the order of the sequences.
        metrics: {name: (output, targets) -> number}, measured with the validation loss; other names than
            those that the history has.
        batch_first: the model takes (B, T, ...).
        checkpoint: path of a file that is replaced after each epoch; needs safetensors.
        checkpoint_steps: steps between two checkpoints within an epoch, or None.
        progress: False shows nothing; None and True a bar on a terminal, if rich is there, else lines.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, or an optimiser or a schedule of something else.

    Attributes:
        history: {"loss": mean of each epoch, "lr": ..., "validation_loss": ..., metrics}.
        losses: loss of each step, before its update.
        norms: norm of all gradients of each step, before clipping.
        epoch: passes that are over.
        step: updates so far.
        stop: whether to end after this epoch.
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        schedule: Scheduler | None = None,
        clip: float | None = None,
        early_stopping: EarlyStopping | int | None = None,
        callbacks: Iterable[Any] = (),
        *,
        epochs: int = 10,
        batch_size: int = 32,
        seed: int = 0,
        metrics: Mapping[str, Metric] | None = None,
        batch_first: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_steps: int | None = None,
        progress: bool | None = None,
    ) -> None:
        check_parts(model, loss, optimizer, schedule)
        self.model, self.loss, self.optimizer, self.schedule = model, loss, optimizer, schedule
        self.clip = None if clip is None else check_number("clip", clip)
        if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
            early_stopping = EarlyStopping(check_size("early_stopping", early_stopping))
        self.early_stopping = early_stopping
        if not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks: expected a list of them, got {type(callbacks).__name__}")
        self.callbacks = list(callbacks)
        for number, callback in enumerate(self.callbacks):
            if not any(callable(f) for f in (callback, *_hooks(callback))):
                kind = type(callback).__name__
                raise TypeError(
                    f"callbacks[{number}]: expected a function, or an object with on_step or on_epoch, "
                    f"got {kind}"
                )
        self.epochs = check_size("epochs", epochs, 0)
        self.batch_size = check_size("batch_size", batch_size)
        self.seed = check_size("seed", seed, 0)
        self.metrics = check_metrics({} if metrics is None else metrics)
        self.batch_first = check_flag("batch_first", batch_first)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.checkpoint_steps = (
            None if checkpoint_steps is None else check_size("checkpoint_steps", checkpoint_steps)
        )
        self.progress = None if progress is None else check_flag("progress", progress)
        self.history: dict[str, list[float]] = {}
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.epoch = 0
        self.stop = False
        self._done, self._sum, self._count = 0, 0.0, 0
        # The last parameters, where the model has the best ones.
        self._last: dict[str, Any] | None = None
        self._digest = ""
        self._owns_file = False
        self._loss_takes_lengths = "lengths" in _parameters(loss)
        self._model_takes_lengths = "lengths" in _parameters(model.forward)
        self._model_takes_targets = "targets" in _parameters(model.forward)
        self._backward_options = {"need_dx": False} if "need_dx" in _parameters(model.backward) else {}

    @property
    def step(self) -> int:
        """Updates so far."""
        return len(self.losses)

    @property
    def finished(self) -> bool:
        """Whether all epochs are over, or something ended training before."""
        early = self.early_stopping is not None and self.early_stopping.finished
        return self.epoch >= self.epochs or (self._done == 0 and (self.stop or early))

    def fit(
        self, train: Data, validation: Data | None = None, *, resume: bool = False
    ) -> dict[str, list[float]]:
        """Train until finished, and leave the model in evaluation mode; return the history.

        Calling it again goes on where the last call ended, to more `epochs` if there are.

        Args:
            train: (inputs, targets). Inputs are a list of arrays (T_n, ...) or one array (N, T, ...), floats
                or whatever the model takes. Targets are an array (N, ...), one for each sequence, or a list
                of arrays (T_n, ...), one for each step.
            validation: the same, to measure after each epoch.
            resume: go on from the file `checkpoint`, if it is there.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: an argument of the wrong shape; `resume` without a checkpoint, or one of other data or
                settings; a checkpoint that is there and was not to be gone on from.
            ArithmeticError: the loss or a gradient is not finite; it says why. The step was not taken.
            OSError: the checkpoint cannot be read or written; the one before stays.
        """
        data = SequenceData(train, "train", self.batch_first)
        held_out = None if validation is None else SequenceData(validation, "validation", self.batch_first)
        for name, found in (("train", data), ("validation", held_out)):
            if (
                found is not None
                and not self._model_takes_lengths
                and (found.lengths != found.lengths[0]).any()
            ):
                raise ValueError(
                    f"{name}: expected sequences of one length, as the model's forward has no argument "
                    f"lengths, got {found.lengths.min()}..{found.lengths.max()}"
                )
            if found is not None and not self.batch_first:
                check_whole(name, found, self.model)
        self.stop = False
        self._begin(data, resume)
        shown = make_progress(self.progress)
        try:
            with shown:
                while not self.finished:
                    self._run_epoch(data, held_out, shown)
        finally:
            self.model.eval()
        if self.early_stopping is not None and self.early_stopping.best_state:
            self._last = self.model.state_dict()
            self.model.load_state_dict(self.early_stopping.best_state)
        return self.history

    def evaluate(self, data: Data) -> dict[str, float]:
        """Return {"loss": mean over the targets, metrics}, measured in evaluation mode.

        Args:
            data: (inputs, targets), as `fit` takes them.

        Raises:
            TypeError, ValueError: as `fit`.
        """
        return self._measure(SequenceData(data, "data", self.batch_first))

    def _begin(self, data: SequenceData, resume: bool) -> None:
        """Go to where training goes on."""
        if not self.step and self.early_stopping is not None:
            self.early_stopping.reset()
        if self._last is not None:
            self.model.load_state_dict(self._last)
            self._last = None
        if self.checkpoint is None:
            if resume:
                raise ValueError("resume: expected a Trainer with checkpoint=, got one without")
            return
        digest = data.digest()
        if self._owns_file and digest != self._digest and self._done:
            raise ValueError("train: expected the data of the epoch that is not over, got other data")
        self._digest = digest
        if self.checkpoint.exists() and not self._owns_file:
            if not resume:
                raise ValueError(
                    f"checkpoint: expected no file yet, got {self.checkpoint}; give resume=True to go on "
                    "from it, or remove it"
                )
            self._read(self.checkpoint)
        elif not self._owns_file:
            # A folder that cannot be written to is found now rather than after an epoch. Nothing is done yet
            # that a file could keep, and one would stand in the way if the first step fails.
            self._write(self.checkpoint)
            self.checkpoint.unlink()
        self._owns_file = True

    def _run_epoch(self, data: SequenceData, held_out: SequenceData | None, shown: Lines) -> None:
        # Again in each epoch: a callback may have looked at the model in evaluation mode.
        self.model.train()
        batches = data.shuffled(self.batch_size, self.seed, self.epoch)
        while self._done < len(batches):
            batch = data.batch(batches[self._done])
            loss = self._train(batch)
            self._done += 1
            weight = self._weight(batch)
            self._sum += loss * weight
            self._count += weight
            self._call("on_step")
            shown.step(self.epoch + 1, self.epochs, self._done, len(batches), self._sum / max(self._count, 1))
            every = self.checkpoint_steps
            if every and self.step % every == 0 and self._done < len(batches):
                self._save()
        self._finish_epoch(held_out)
        shown.epoch(self.epoch, self.epochs, self.history)
        self._call("on_epoch")
        self._save()

    def _finish_epoch(self, held_out: SequenceData | None) -> None:
        figures = {"loss": self._sum / max(self._count, 1), "lr": self.optimizer.lr}
        if held_out is not None:
            measured = self._measure(held_out)
            figures["validation_loss"] = measured.pop("loss")
            figures.update(measured)
        for name, value in figures.items():
            self.history.setdefault(name, []).append(value)
        self.epoch += 1
        self._done, self._sum, self._count = 0, 0.0, 0
        if self.schedule is not None and self.schedule.needs_metric:
            followed: Any = self.schedule
            followed.step(figures.get("validation_loss", figures["loss"]))
        elif self.schedule is not None and self.schedule.every == "epoch":
            self.schedule.step()
        if self.early_stopping is not None:
            self.early_stopping.update(self.history, self.model)

    def _compare(self, output: Any, batch: Batch) -> tuple[float, Any]:
        """Return the loss and the gradient of the output."""
        if self._loss_takes_lengths:
            loss, gradient = loss_and_gradient(self.loss(output, batch.targets, lengths=batch.lengths))
        elif not batch.weight:
            # Sequences without a step: a mean over nothing is none.
            return 0.0, np.zeros_like(output)
        elif batch.counted is None:
            loss, gradient = loss_and_gradient(self.loss(output, batch.targets))
        else:
            self._check_steps(output, batch)
            loss, counted = loss_and_gradient(self.loss(output[batch.counted], batch.targets[batch.counted]))
            gradient = np.zeros_like(output)
            gradient[batch.counted] = counted
        return float(loss), gradient

    def _options(self, batch: Batch) -> dict[str, Any]:
        """Return what the model takes beside x."""
        options: dict[str, Any] = {} if batch.lengths is None else {"lengths": batch.lengths}
        if self._model_takes_targets:
            options["targets"] = batch.targets
        return options

    @staticmethod
    def _check_steps(output: Any, batch: Batch) -> None:
        if batch.counted is not None and output.shape[:2] != batch.counted.shape:
            raise ValueError(
                f"model: expected an output for each step, as there are targets: {batch.counted.shape} "
                f"first, got {output.shape}"
            )

    def _train(self, batch: Batch) -> float:
        """Take a step; return its loss."""
        self.model.zero_grad()
        results = self.model.forward(batch.x, **self._options(batch))
        output, tape = results[0], results[-1]
        loss, gradient = self._compare(output, batch)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}", batch, output)
        self.model.backward(tape, gradient, **self._backward_options)
        norm = clip_grad_norm(self.model, math.inf if self.clip is None else self.clip)
        if not math.isfinite(norm):
            raise self._diverged(f"the norm of the gradients is {norm}", batch, output)
        # Before each step but the first: a run of more epochs goes on as if it had been one from the start.
        if self.schedule is not None and self.schedule.every == "step" and self.step:
            self.schedule.step()
        self.optimizer.step()
        self.losses.append(loss)
        self.norms.append(norm)
        return loss

    def _diverged(self, what: str, batch: Batch, output: Any) -> DivergedError:
        text = diagnose(
            what, self.model, batch.x, batch.targets, output, self.norms, self.clip, self.optimizer.lr
        )
        return DivergedError(f"training diverged at step {self.step + 1} (epoch {self.epoch + 1}): {text}")

    def _measure(self, data: SequenceData) -> dict[str, float]:
        sums, total, targets = dict.fromkeys(("loss", *self.metrics), 0.0), 0, 0
        was_training = self.model.training
        self.model.eval()
        try:
            for indices in data.ordered(self.batch_size):
                batch = data.batch(indices)
                output = self.model(batch.x, **self._options(batch))
                output = output[0] if self.model.has_state else output
                weight = self._weight(batch)
                sums["loss"] += self._compare(output, batch)[0] * weight
                total += weight
                self._check_steps(output, batch)
                counted = ... if batch.counted is None else batch.counted
                for name, metric in self.metrics.items() if batch.weight else ():
                    value = float(metric(output[counted], batch.targets[counted]))
                    sums[name] += value * batch.weight
                targets += batch.weight
        finally:
            self.model.train(was_training)
        return {name: value / max(total if name == "loss" else targets, 1) for name, value in sums.items()}

    def _weight(self, batch: Batch) -> int:
        """Return over how much the loss of a batch is the mean: targets, or sequences if it gets lengths."""
        return batch.x.shape[0 if self.batch_first else 1] if self._loss_takes_lengths else batch.weight

    def _call(self, hook: str) -> None:
        for callback in self.callbacks:
            function = getattr(callback, hook, None)
            if function is None and hook == "on_epoch" and not any(map(callable, _hooks(callback))):
                function = callback
            if function is not None:
                function(self)

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        parts = f"{type(self.model).__name__}, {loss}, {type(self.optimizer).__name__}"
        return f"Trainer({parts}, epochs={self.epochs}, epoch {self.epoch}, step {self.step})"

    def _save(self) -> None:
        if self.checkpoint is not None:
            self._write(self.checkpoint)


def _hooks(callback: Any) -> tuple[Any, Any]:
    return getattr(callback, "on_step", None), getattr(callback, "on_epoch", None)


def _parameters(function: Any) -> Mapping[str, Any]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a compiled function
        return {}
