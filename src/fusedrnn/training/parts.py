"""What a Trainer is made of, checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fusedrnn.checks import check_size, shown
from fusedrnn.distributed import Alone, Group, TorchGroup, group_of
from fusedrnn.nn.module import Module
from fusedrnn.optim.optimizer import Optimizer
from fusedrnn.optim.schedules import Scheduler
from fusedrnn.training.data import SequenceData

Loss: TypeAlias = "Callable[..., tuple[Any, Any]]"
Metric: TypeAlias = "Callable[[Any, Any], float]"


def loss_and_gradient(found: Any) -> Any:
    """Return what a loss returned, or refuse it."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(
            "loss: expected a function that returns the loss and the gradient of the output, got one that "
            f"returns {type(found).__name__}"
        )
    return found


def number_of(name: str, found: Any) -> float:
    """Return what a metric returned, or refuse it."""
    try:
        return float(found)
    except (TypeError, ValueError):
        raise TypeError(
            f"metrics[{name!r}]: expected a function that returns a number, got one that returns "
            f"{shown(found)}"
        ) from None


def check_metrics(metrics: Any) -> dict[str, Metric]:
    """Return metrics by name: the dictionary that they are, if they are one."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics: expected a dictionary of functions by name, got {type(metrics).__name__}")
    for name, metric in metrics.items():
        if name in ("loss", "lr", "validation_loss"):
            raise ValueError(f"metrics: expected a name that the history does not have, got {name!r}")
        if not callable(metric):
            raise TypeError(
                f"metrics[{name!r}]: expected a function of (output, targets), got {type(metric).__name__}"
            )
    return metrics if isinstance(metrics, dict) else dict(metrics)


def hooks_of(callback: Any) -> tuple[Any, Any]:
    """Return a callback's methods, None for those that it has not."""
    return getattr(callback, "on_step", None), getattr(callback, "on_epoch", None)


def check_callbacks(callbacks: Any) -> list[Any]:
    """Return callbacks as a list: theirs, if they are one."""
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks: expected a list of them, got {type(callbacks).__name__}")
    found = callbacks if isinstance(callbacks, list) else list(callbacks)
    for number, callback in enumerate(found):
        if not any(callable(f) for f in (callback, *hooks_of(callback))):
            kind = type(callback).__name__
            raise TypeError(
                f"callbacks[{number}]: expected a function, or an object with on_step or on_epoch, got {kind}"
            )
    return found


def check_parts(model: Any, loss: Any, optimizer: Any, schedule: Any) -> None:
    """Refuse what is of the wrong kind, or belongs to something else."""
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a Module, got {type(model).__name__}")
    if not callable(loss):
        raise TypeError(f"loss: expected a function of (output, targets), got {type(loss).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected an Optimizer, got {type(optimizer).__name__}")
    members = {id(module) for module in model.modules()}
    if any(id(module) not in members for top in optimizer._modules for module in top.modules()):
        raise ValueError("optimizer: expected one over the model or parts of it, got one over other modules")
    if schedule is not None and not isinstance(schedule, Scheduler):
        raise TypeError(f"schedule: expected a schedule of fusedrnn.optim, got {type(schedule).__name__}")
    if schedule is not None and schedule.optimizer is not optimizer:
        raise ValueError("schedule: expected one of this optimizer, got one of another")


def check_checkpoint(path: Any) -> Path | None:
    """Return the path of a file, or None for none."""
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"checkpoint: expected the path of a file or None, got {type(path).__name__}")
    found = Path(path)
    if found.is_dir():
        raise ValueError(f"checkpoint: expected the path of a file, got the folder {found}")
    return found


def check_whole(name: str, data: SequenceData, model: Module) -> None:
    """Refuse an array (N, T, ...) of targets where a model says that it gives (T, B, ...).

    Of a batch they would be (B, T, ...), which a loss takes where T = B, and compares with other steps.
    """
    if data.per_step or type(model).output_steps is Module.output_steps:
        return
    shape = np.shape(data.targets)
    if len(shape) < 2 or (data.lengths != shape[1]).any():
        return
    if model.output_steps(data.lengths, None)[0] is not None:
        raise ValueError(
            f"{name} targets: expected a list of arrays (T, ...) with a model that gives an output for each "
            f"step, got an array {shape}, one for each sequence; use list(targets), or say in output_steps "
            "of a module of your own that it leaves no steps"
        )


def check_data(name: str, data: SequenceData, model: Module, takes_lengths: bool, bptt: int | None) -> None:
    """Refuse data that a model or windows cannot be given."""
    if not takes_lengths and (data.lengths != data.lengths[0]).any():
        raise ValueError(
            f"{name}: expected sequences of one length, as the model's forward has no argument "
            f"lengths, got {data.lengths.min()}..{data.lengths.max()}"
        )
    if not data.batch_first and not data.labels:
        check_whole(name, data, model)
    if bptt is not None and not data.per_step:
        raise ValueError(f"{name} targets: expected a list of arrays (T, ...), one for each step, with bptt")


def check_stream(bptt: Any, model: Any, loss_takes: tuple[str, ...]) -> int | None:
    """Return the steps of a window, or refuse what cannot be trained in windows."""
    if bptt is None:
        return None
    if not model.has_state:
        raise ValueError(
            f"bptt: expected a model with a state, got {type(model).__name__}; fr.Stateful(...) has that of "
            "its members"
        )
    for name, module in model.named_modules():
        if getattr(module, "bidirectional", False):
            where = f"{name}: " if name else ""
            raise ValueError(
                f"{where}expected bidirectional=False with bptt: the reverse direction starts from the end"
            )
    if loss_takes:
        raise ValueError(f"bptt: expected a loss of single steps, got one with {loss_takes[0]}")
    return check_size("bptt", bptt)


def check_group(distributed: Any, normed: bool) -> Group:
    """Return the group of processes that train together."""
    group: Group = Alone()
    if distributed is not None and distributed is not False:
        group = TorchGroup() if distributed is True else group_of(distributed)
    if group.size > 1 and normed:
        raise ValueError(
            "distributed: expected a model without BatchNorm, whose statistics would be those of a process's "
            "own sequences"
        )
    return group


def check_precision(precision: Any, model: Module, optimizer: Optimizer) -> str | None:
    """Convert a model and its optimiser; return the precision."""
    if precision is None:
        return None
    if precision not in ("float32", "float64"):
        raise ValueError(
            f"precision: expected 'float32', 'float64' or None, got {precision!r}; training in 16 bits is "
            "that of a network on a GPU that gets x in 16 bits"
        )
    model.astype(precision)
    optimizer._convert()
    return str(precision)
