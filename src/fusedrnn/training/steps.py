"""What a Trainer does with a batch: a step of the optimiser, or a measurement."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.distributed import all_reduce_grads
from fusedrnn.training.carried import rows_of
from fusedrnn.training.checkpoints import Resumable
from fusedrnn.training.clip import clip_grad_norm
from fusedrnn.training.data import Batch, SequenceData
from fusedrnn.training.diagnosis import DivergedError, diagnose, names_not_finite, not_finite
from fusedrnn.training.parts import Metric, hooks_of, loss_and_gradient, number_of
from fusedrnn.training.whole import Whole

# Arguments that functions get if they have them: the lengths of inputs, of what the model makes of them (as
# ctc_loss and transducer_loss call them), and of labels.
LENGTHS = ("lengths", "input_lengths", "logit_lengths", "target_lengths")


class Steps(Resumable):
    """The part of a `Trainer` that works on batches."""

    metrics: dict[str, Metric]
    clip: float | None
    batch_first: bool
    bptt: int | None
    precision: str | None
    # Of the arguments of model, loss and each metric those that get something, and what backward gets.
    _model_takes: tuple[str, ...]
    _loss_takes: tuple[str, ...]
    _metrics_take: dict[str, tuple[str, ...]]
    _backward_options: dict[str, bool]
    # What is there as a whole or not at all.
    _whole: Whole
    # Hooks of the last step or epoch that are yet to be called.
    _owed: list[Callable[[Any], Any]]

    @property
    def step(self) -> int:
        """Updates so far."""
        return len(self.losses)

    def _hooked(self, hook: str) -> list[Callable[[Any], Any]]:
        """Return what is to be called after a step or an epoch: a callback that is a function, after this."""
        found = []
        for callback in self.callbacks:
            function = getattr(callback, hook, None)
            if function is None and hook == "on_epoch" and not any(map(callable, hooks_of(callback))):
                function = callback
            if function is not None:
                found.append(function)
        return found

    def _cut(self, data: SequenceData, indices: npt.NDArray[np.int64]) -> range:
        """Return where the windows of a batch start."""
        return range(0, int(data.lengths[indices].max()), self.bptt) if self.bptt else range(1)

    def _batches(
        self, data: SequenceData, order: list[npt.NDArray[np.int64]], skipped: int = 0
    ) -> Iterator[Batch | None]:
        """Yield this process's part of each batch or window of it: None where it has no sequence."""
        for indices in order:
            starts = self._cut(data, indices)
            if skipped >= len(starts):
                skipped -= len(starts)
                continue
            own = indices[rows_of(self.group, len(indices))]
            batch = self._cast(data.batch(own)) if len(own) else None
            for start in starts[skipped:]:
                yield batch if batch is None or self.bptt is None else data.window(batch, start, self.bptt)
            skipped = 0

    def _cast(self, batch: Batch) -> Batch:
        """Return the batch with its floats in the precision that was asked for."""
        if self.precision is None:
            return batch
        x, targets = (
            a.astype(self.precision) if a.dtype.kind == "f" else a for a in (batch.x, batch.targets)
        )
        return batch._replace(x=x, targets=targets)

    def _forward(self, batch: Batch, state: Any, keep: bool) -> tuple[Any, Any, Any]:
        """Return the model's output, its state, and the tape if it is to be kept."""
        options: dict[str, Any] = {} if batch.lengths is None else {"lengths": batch.lengths}
        options.update(self._given(self._model_takes, batch))
        before = () if state is None else (state,)
        if keep:
            results = self.model.forward(batch.x, *before, **options)
            return results[0], results[1] if self.bptt else None, results[-1]
        results = self.model(batch.x, *before, **options)
        return (*results[:2], None) if self.model.has_state else (results, None, None)

    def _given(self, names: tuple[str, ...], batch: Batch) -> dict[str, Any]:
        """Return the arguments of these names for a batch."""
        found = {name: getattr(batch, name) for name in names if hasattr(batch, name)}
        for name in set(names) - set(found):
            found[name] = self.model.output_steps(batch.steps, None)[0]
            if found[name] is None:
                raise ValueError(f"model: expected an output for each step with a loss that has {name}")
        return found

    def _compare(self, output: Any, batch: Batch) -> tuple[float, Any]:
        """Return the loss and the gradient of the output."""
        if self._loss_takes:
            given = self._given(self._loss_takes, batch)
            loss, gradient = loss_and_gradient(self.loss(output, batch.targets, **given))
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

    @staticmethod
    def _check_steps(output: Any, batch: Batch) -> None:
        counted = batch.counted
        if counted is not None and output.shape[: counted.ndim] != counted.shape:
            raise ValueError(
                f"model: expected an output for each step, as there are targets: {counted.shape} "
                f"first, got {output.shape}"
            )

    def _weight(self, batch: Batch | None) -> int:
        """Return over how much the loss of a batch is the mean: targets, or sequences if it gets lengths."""
        if batch is None:
            return 0
        return len(batch.steps) if self._loss_takes else batch.weight

    def _over_all(self, *values: float) -> list[float]:
        """Return the sums of numbers over all processes."""
        if self.group.size == 1:
            return list(values)
        array = np.array(values, np.float64)
        self.group.sum_(array)
        found: list[float] = array.tolist()
        return found

    def _train(self, batch: Batch | None) -> tuple[float, int]:
        """Take a step and count it; return its loss, and over how much that is the mean.

        One that fails or is interrupted leaves everything as it was, noise and statistics, too.
        """
        steps, noise = self.step, self.model.random_state()
        buffers = [(array, array.copy()) for _, array in self.model.named_buffers()]
        try:
            return self._update(batch)
        except BaseException:
            with self._whole:
                # Ctrl-C may come at the end of a step that was taken.
                if self.step == steps:
                    self.model.load_random_state(noise)
                    for array, values in buffers:
                        array[...] = values
            raise

    def _update(self, batch: Batch | None) -> tuple[float, int]:
        self.model.zero_grad()
        loss, weight, output, gradient = 0.0, self._weight(batch), None, None
        state, tape = self._carried, None
        if batch is not None:
            output, state, tape = self._forward(batch, None if batch.begins else state, True)
            loss, gradient = self._compare(output, batch)
        total = weight
        if self.group.size > 1:
            summed, counted = self._over_all(loss * weight, weight)
            loss, total = summed / max(counted, 1.0), int(counted)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}", batch, output)
        if batch is not None:
            self.model.backward(tape, gradient, **self._backward_options)
        if self.group.size > 1:
            all_reduce_grads(self.model, self.group, weight=weight / max(total, 1))
        norm = clip_grad_norm(self.model, math.inf if self.clip is None else self.clip)
        if not math.isfinite(norm):
            raise self._diverged(f"the norm of the gradients is {norm}", batch, output)
        with self._whole:
            # Before each step but the first: a run of more epochs goes on as if it had been one from the
            # start.
            if self.schedule is not None and self.schedule.every == "step" and self.step:
                self.schedule.step()
            self.optimizer.step()
            self._carried = state
            self.losses.append(loss)
            self.norms.append(norm)
            self._done += 1
            self._owed = self._hooked("on_step")
            self._sum += loss * total
            self._count += total
        return loss, total

    def _diverged(self, what: str, batch: Batch | None, output: Any) -> DivergedError:
        text = f"{what}, with the batch of another process"
        if batch is not None:
            text = diagnose(
                what, self.model, batch.x, batch.targets, output, self.norms, self.clip, self.optimizer.lr
            )
        where = f"step {self.step + 1} (epoch {self.epoch + 1})"
        return DivergedError(f"training diverged at {where}: {text}", what)

    def _check_parameters(self) -> None:
        """Refuse parameters that the last step of an epoch left, and of which no loss speaks any more."""
        self.model._gather()
        flat = self.model._flats()[0]
        if any(not_finite(flat[part]) for part in self.model._trained()):
            what, names = "parameters are not finite", names_not_finite(self.model.state_dict())
            way = f"try a smaller lr than {self.optimizer.lr:.3g}"
            where = f"step {self.step} (epoch {self.epoch + 1})"
            raise DivergedError(f"training diverged at {where}: {what}: {names}; {way}", what)

    def _measure(self, data: SequenceData) -> dict[str, float]:
        """Return the loss and the metrics, means over all data."""
        names = ("loss", *self.metrics)
        sums, weights = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        was_training, state = self.model.training, None
        self.model.eval()
        try:
            for batch in self._batches(data, data.ordered(self.batch_size)):
                if batch is None:
                    continue
                output, state, _ = self._forward(batch, None if batch.begins else state, False)
                state = state if self.bptt else None
                self._check_steps(output, batch)
                sums["loss"] += self._compare(output, batch)[0] * self._weight(batch)
                weights["loss"] += self._weight(batch)
                counted = ... if batch.counted is None else batch.counted
                for name, metric in self.metrics.items() if batch.weight else ():
                    given = self._given(self._metrics_take[name], batch)
                    value = number_of(name, metric(output[counted], batch.targets[counted], **given))
                    sums[name] += value * batch.weight
                    weights[name] += batch.weight
        finally:
            self.model.train(was_training)
        totals = self._over_all(*sums.values(), *weights.values())
        return {
            name: totals[number] / max(totals[len(names) + number], 1) for number, name in enumerate(names)
        }


def arguments_of(function: Any) -> Mapping[str, Any]:
    """Return the arguments of a function by name."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a compiled function
        return {}


def lengths_taken(function: Any) -> tuple[str, ...]:
    """Return which of `LENGTHS` a function has as arguments."""
    known = arguments_of(function)
    return tuple([name for name in LENGTHS if name in known])
