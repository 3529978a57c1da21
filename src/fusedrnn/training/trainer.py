"""Trainer: the loop around a model, a loss and an optimiser, with exact checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from fusedrnn.checks import check_flag, check_number, check_size
from fusedrnn.distributed import broadcast_parameters
from fusedrnn.nn.batch_norm import BatchNorm
from fusedrnn.nn.module import Module
from fusedrnn.optim.optimizer import Optimizer
from fusedrnn.optim.schedules import Scheduler
from fusedrnn.training.data import Data, SequenceData
from fusedrnn.training.early_stopping import EarlyStopping
from fusedrnn.training.losses import IGNORED
from fusedrnn.training.parts import (
    Loss,
    Metric,
    check_callbacks,
    check_checkpoint,
    check_data,
    check_group,
    check_metrics,
    check_parts,
    check_precision,
    check_stream,
)
from fusedrnn.training.progress import Lines, make_progress
from fusedrnn.training.steps import Steps, arguments_of, lengths_taken
from fusedrnn.training.whole import Whole


class Trainer(Steps):
    """Train a model on sequences.

        trainer = fr.training.Trainer(model, fr.cross_entropy, fr.optim.Adam(model), clip=1.0, epochs=20)
        history = trainer.fit((inputs, targets), validation=(inputs, targets))

    A batch's inputs go to the model as (T, B, ...), padded at the end, with `lengths` where lengths differ.
    The model's output is (B, ...) for targets of sequences, (T, B, ...) for targets of steps; of the latter,
    those steps that are no padding go to the loss, as (steps, ...). A loss that has an argument `lengths`, as
    `CRF.loss`, gets everything and the lengths instead. Parameters that such a loss trains have to be the
    model's, too. A model whose forward has an argument `targets`, as `EncoderDecoder`, gets them, too.
    Integer targets of -100, or of the ignore_index of a `functools.partial` of the loss, do not count.

    A loss with an argument `target_lengths`, as `fr.ctc_loss` and `fr.transducer_loss`, gets labels: a list
    of arrays (U_n,) of integers, as (B, U), with their lengths and those of the model's output
    (`input_lengths` or `logit_lengths`); the model gets `targets` and `target_lengths` if it has them.

    Batches hold sequences of about the same length, in an order that depends on `seed` and the epoch alone.
    With `checkpoint`, a run that was ended at any moment, also by kill -9, goes on from its last checkpoint
    to the same bits as one that was never ended: `fit(..., resume=True)`.

    With `bptt` long sequences are trained on in windows of so many steps, an update for each: the state goes
    from window to window, the gradient does not. That takes a model with a state (a network, `fr.Stateful`
    or a module of one's own with `has_state`) of one direction, and targets of steps.

    With `distributed` each of several processes, which all make the same calls, takes some of the sequences
    of each batch; updates, losses and metrics are those of the whole batch, the same on every process. Rank 0
    writes the checkpoint, which all read, and shows the progress. Dropout is drawn for each.

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
        bptt: steps of a window, or None for whole sequences.
        precision: "float32" or "float64", to which the model, the optimiser's state and all floats of the
            data are converted; None leaves them as they are.
        distributed: a group of processes, as `fusedrnn.distributed.group_of` takes it; True for the default
            group of torch.distributed; None for this process alone.
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
        bptt: int | None = None,
        precision: str | None = None,
        distributed: Any = None,
        progress: bool | None = None,
    ) -> None:
        self.model, self.loss, self.optimizer, self.schedule = model, loss, optimizer, schedule
        self.clip: float | None = clip
        self.early_stopping: Any = early_stopping
        # Of its own, and from then on the same ones, to which anybody may add.
        self.callbacks = check_callbacks(callbacks).copy()
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.metrics = check_metrics({} if metrics is None else metrics).copy()
        self.batch_first, self.bptt = batch_first, bptt
        self.checkpoint: Any = checkpoint
        self.checkpoint_steps, self.progress = checkpoint_steps, progress
        self.history: dict[str, list[float]] = {}
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.epoch = 0
        self.stop = False
        self._done, self._sum, self._count = 0, 0.0, 0
        self._whole = Whole()
        self._carried: Any = None
        self._owed = []
        # Whether an epoch is over that the checkpoint does not have yet.
        self._unsaved = False
        # The last parameters, where the model has the best ones.
        self._last: dict[str, Any] | None = None
        self._digest = ""
        # The file that this run writes.
        self._owned: Any = None
        self._check()
        self.group = check_group(distributed, self._least > 1)
        self.precision = check_precision(precision, model, optimizer)
        self._part_noise()

    def _check(self) -> None:
        """Refuse wrong settings, of the constructor or set since, and note what follows from them."""
        check_parts(self.model, self.loss, self.optimizer, self.schedule)
        self.clip = None if self.clip is None else check_number("clip", self.clip)
        if self.early_stopping is not None and not isinstance(self.early_stopping, EarlyStopping):
            self.early_stopping = EarlyStopping(check_size("early_stopping", self.early_stopping))
        self.callbacks = check_callbacks(self.callbacks)
        self.epochs = check_size("epochs", self.epochs, 0)
        self.batch_size = check_size("batch_size", self.batch_size)
        self.seed = check_size("seed", self.seed, 0)
        self.metrics = check_metrics(self.metrics)
        self.batch_first = check_flag("batch_first", self.batch_first)
        self.checkpoint = check_checkpoint(self.checkpoint)
        if self.checkpoint_steps is not None:
            self.checkpoint_steps = check_size("checkpoint_steps", self.checkpoint_steps)
        self.progress = None if self.progress is None else check_flag("progress", self.progress)
        self._loss_takes = lengths_taken(self.loss)
        known = arguments_of(self.model.forward)
        self._model_takes_lengths = "lengths" in known
        self._model_takes = tuple([name for name in ("targets", "target_lengths") if name in known])
        self._metrics_take = {name: lengths_taken(metric) for name, metric in self.metrics.items()}
        self._backward_options = {"need_dx": False} if "need_dx" in arguments_of(self.model.backward) else {}
        # A batch of one row has no variance.
        self._least = 2 if any(isinstance(module, BatchNorm) for module in self.model.modules()) else 1
        if self.batch_first and "input_lengths" in self._loss_takes:
            raise ValueError("batch_first: expected False with a loss that has input_lengths, of (T, B, V)")
        self.bptt = check_stream(self.bptt, self.model, self._loss_takes)

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
            KeyboardInterrupt: Ctrl-C, between two steps or in one, which then was not taken: the next call
                goes on as if there had been none. A callback that it came into is not called again.
        """
        self._check()
        data = self._data(train, "train")
        held_out = None if validation is None else self._data(validation, "validation")
        check_flag("resume", resume)
        self.stop = False
        with self._whole.waiting():
            self._begin(data, resume)
            shown = make_progress(self.progress if self.group.rank == 0 else False)
            try:
                with shown:
                    self.model.train()
                    self._call()
                    if self._unsaved:
                        self._save()
                    while not self.finished:
                        self._run_epoch(data, held_out, shown)
            finally:
                self.model.eval()
            if self.early_stopping is not None and self.early_stopping.best_state:
                with self._whole:
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
        self._check()
        return self._measure(self._data(data, "data"))

    def _data(self, data: Any, name: str) -> SequenceData:
        """Return the data, which the loss and the model can take."""
        ignored = getattr(self.loss, "keywords", {}).get("ignore_index", IGNORED)
        found = SequenceData(data, name, self.batch_first, "target_lengths" in self._loss_takes, ignored)
        check_data(name, found, self.model, self._model_takes_lengths, self.bptt)
        least = min(len(found) % self.batch_size or self.batch_size, len(found))
        if self.bptt is not None and least < self.group.size:
            raise ValueError(
                f"{name}: expected batches of a sequence or more for each of {self.group.size} processes "
                f"with bptt, got {len(found)} sequences in batches of {self.batch_size}"
            )
        return found

    def _begin(self, data: SequenceData, resume: bool) -> None:
        """Go to where training goes on."""
        if not self.step and self.early_stopping is not None:
            self.early_stopping.reset()
        if self._last is not None:
            with self._whole:
                self.model.load_state_dict(self._last)
                self._last = None
        if self.group.size > 1 and not self.step:
            broadcast_parameters(self.model, group=self.group)
        if self.checkpoint is None:
            if resume:
                raise ValueError("resume: expected a Trainer with checkpoint=, got one without")
            return
        digest = data.digest()
        if self._owned and digest != self._digest and self._done:
            raise ValueError("train: expected the data of the epoch that is not over, got other data")
        self._digest = digest
        # Rank 0 looks, since it is the one that writes.
        there = bool(self._over_all(self.group.rank == 0 and self.checkpoint.exists())[0])
        owned = self.checkpoint == self._owned
        if there and not owned:
            if not resume:
                raise ValueError(
                    f"checkpoint: expected no file yet, got {self.checkpoint}; give resume=True to go on "
                    "from it, or remove it"
                )
            with self._whole:
                self._read(self.checkpoint)
                self._owned = self.checkpoint
        elif not owned:
            # A folder that cannot be written to is found now rather than after an epoch. Nothing is done yet
            # that a file could keep, and one would stand in the way if the first step fails.
            with self._whole:
                self._write(self.checkpoint)
                if self.group.rank == 0:
                    self.checkpoint.unlink()
                self._owned = self.checkpoint

    def _run_epoch(self, data: SequenceData, held_out: SequenceData | None, shown: Lines) -> None:
        # Again in each epoch: a callback may have looked at the model in evaluation mode.
        self.model.train()
        order = data.shuffled(self.batch_size, self.seed, self.epoch, self._least)
        count = sum([len(self._cut(data, indices)) for indices in order])
        for batch in self._batches(data, order, self._done):
            self._train(batch)
            self._call()
            shown.step(self.epoch + 1, self.epochs, self._done, count, self._sum / max(self._count, 1))
            every = self.checkpoint_steps
            if every and self.step % every == 0 and self._done < count:
                self._save()
        self._finish_epoch(held_out)
        shown.epoch(self.epoch, self.epochs, self.history)
        self._call()
        # What a callback of one process says all do.
        self.stop = bool(self._over_all(self.stop)[0])
        self._save()

    def _finish_epoch(self, held_out: SequenceData | None) -> None:
        self._check_parameters()
        figures = {"loss": self._sum / max(self._count, 1), "lr": self.optimizer.lr}
        if held_out is not None:
            measured = self._measure(held_out)
            figures["validation_loss"] = measured.pop("loss")
            figures.update(measured)
        with self._whole:
            for name, value in figures.items():
                self.history.setdefault(name, []).append(value)
            self.epoch += 1
            self._owed, self._unsaved = self._hooked("on_epoch"), True
            self._done, self._sum, self._count, self._carried = 0, 0.0, 0, None
            if self.schedule is not None and self.schedule.needs_metric:
                followed: Any = self.schedule
                followed.step(figures.get("validation_loss", figures["loss"]))
            elif self.schedule is not None and self.schedule.every == "epoch":
                self.schedule.step()
            if self.early_stopping is not None:
                self.early_stopping.update(self.history, self.model)

    def _call(self) -> None:
        """Call what is owed; a Ctrl-C leaves the others for the next call of `fit`."""
        while self._owed:
            function, *self._owed = self._owed
            function(self)

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        parts = f"{type(self.model).__name__}, {loss}, {type(self.optimizer).__name__}"
        return f"Trainer({parts}, epochs={self.epochs}, epoch {self.epoch}, step {self.step})"

    def _save(self) -> None:
        if self.checkpoint is not None:
            self._write(self.checkpoint)
        self._unsaved = False
