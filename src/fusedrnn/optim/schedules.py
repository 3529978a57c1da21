"""Schedules of the learning rate, with PyTorch's names, arguments and formulas."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

from fusedrnn.checks import check_mapping, check_names, check_number, check_size
from fusedrnn.listing import Listed
from fusedrnn.optim.optimizer import Optimizer


class Scheduler(Listed):
    """Base of the schedules: each sets the learning rates of an optimiser, one for all and those of groups.

    Making one sets the rate of the first step; `step()` sets the next one. Rates are computed from the number
    of steps and the base rates, those that the optimiser had when its first schedule was made, so that
    nothing adds up and a schedule that was loaded goes on with the same bits.

    Attributes:
        optimizer: the optimiser that it sets.
        last_epoch: calls of `step` so far.
        base_lrs: the optimiser's rate, then those of its groups that have one of their own.
        every: what `fusedrnn.training.Trainer` steps it for: each "epoch", or each "step" of the optimiser.
        needs_metric: whether `step` takes a metric.
    """

    every: Literal["epoch", "step"] = "epoch"
    needs_metric: ClassVar[bool] = False
    # What state_dict holds.
    _saved: ClassVar[tuple[str, ...]] = ("last_epoch", "base_lrs")

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.base_lrs: list[float] = list(optimizer.__dict__.setdefault("_base_lrs", self.get_last_lr()))
        self.last_epoch = 0
        self._apply()

    def _rates(self, step: int) -> list[float]:
        """Return the rates of a step."""
        return [self._rate(step, base) for base in self.base_lrs]

    def _rate(self, step: int, base: float) -> float:
        raise TypeError(f"{type(self).__name__}: expected a class that defines the rates, got one without")

    def _apply(self) -> None:
        self._assign(self._rates(self.last_epoch))

    def _assign(self, rates: list[float]) -> None:
        self.optimizer.lr = rates[0]
        for own, rate in zip(self._groups(), rates[1:], strict=True):
            own["lr"] = rate

    def _groups(self) -> list[dict[str, Any]]:
        """Return the settings of the groups that have a rate of their own."""
        return [own for own in self.optimizer._own_settings if "lr" in own]

    def get_last_lr(self) -> list[float]:
        """Return the present rates, in the order of `base_lrs`."""
        return [self.optimizer.lr, *(own["lr"] for own in self._groups())]

    def step(self) -> None:
        """Set the rates of the next step."""
        self.last_epoch += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """Return what continuing needs, as numbers and lists of them that JSON holds exactly."""
        return {name: _copy(getattr(self, name)) for name in self._saved}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` of such a schedule returned; the optimiser's own has its present rates.

        Raises:
            TypeError: a value of the wrong kind.
            ValueError: the names differ, or a value is out of range.
        """
        self.__dict__.update(self._checked(state_dict))

    def _checked(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a state_dict, checked."""
        check_mapping("state_dict", state_dict)
        check_names("state_dict", f"a {type(self).__name__}", self._saved, state_dict)
        base = state_dict["base_lrs"]
        if not isinstance(base, (list, tuple)) or len(base) != len(self.base_lrs):
            raise ValueError(f"base_lrs: expected a list of {len(self.base_lrs)} numbers, got {base!r}")
        rates = [check_number("base_lrs", rate) for rate in base]
        return {"last_epoch": check_size("last_epoch", state_dict["last_epoch"], 0), "base_lrs": rates}

    def _extra_repr(self) -> str:
        names = [name for name in self.__dict__ if not name.startswith("_")]
        left_out = {"optimizer", *self._saved}
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names if name not in left_out)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.optimizer).__name__}, {self._extra_repr()})"


def _copy(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


class StepLR(Scheduler):
    """lr = base * gamma^floor(t / step_size).

    Args:
        optimizer: what it sets.
        step_size: steps between two changes, >= 1.
        gamma: factor >= 0 of each.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = check_size("step_size", step_size)
        self.gamma = check_number("gamma", gamma)
        super().__init__(optimizer)

    def _rate(self, step: int, base: float) -> float:
        return base * self.gamma ** (step // self.step_size)


class MultiStepLR(Scheduler):
    """lr = base * gamma^(milestones that t has reached).

    Args:
        optimizer: what it sets.
        milestones: numbers of steps >= 0, ascending.
        gamma: factor >= 0 of each.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        self.milestones = _ascending(milestones)
        self.gamma = check_number("gamma", gamma)
        super().__init__(optimizer)

    def _rate(self, step: int, base: float) -> float:
        return base * self.gamma ** bisect_right(self.milestones, step)


class ExponentialLR(Scheduler):
    """lr = base * gamma^t.

    Args:
        optimizer: what it sets.
        gamma: factor >= 0 of each step.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = check_number("gamma", gamma)
        super().__init__(optimizer)

    def _rate(self, step: int, base: float) -> float:
        return base * self.gamma**step


class LinearLR(Scheduler):
    """Warm-up: a line from base * start_factor at t = 0 to base * end_factor at total_iters, then constant.

    Args:
        optimizer: what it sets.
        start_factor: in (0, 1].
        end_factor: in [0, 1].
        total_iters: steps until end_factor, >= 1.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3.0,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        self.start_factor = check_number("start_factor", start_factor, math.ulp(0.0), 1.0)
        self.end_factor = check_number("end_factor", end_factor, 0.0, 1.0)
        self.total_iters = check_size("total_iters", total_iters)
        super().__init__(optimizer)

    def _rate(self, step: int, base: float) -> float:
        share = min(step, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * share)


class CosineAnnealingLR(Scheduler):
    """lr = eta_min + (base - eta_min) (1 + cos(pi t / T_max)) / 2; past T_max it rises again.

    Args:
        optimizer: what it sets.
        T_max: steps of half a cosine, >= 1.
        eta_min: the lowest rate, >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Loshchilov and Hutter 2016, arXiv:1608.03983v5, without its restarts.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = check_size("T_max", T_max)
        self.eta_min = check_number("eta_min", eta_min)
        super().__init__(optimizer)

    def _rate(self, step: int, base: float) -> float:
        return half_cosine(base, self.eta_min, step / self.T_max)


class SequentialLR(Scheduler):
    """One schedule after the other: each begins anew at its milestone.

    A warm-up before a cosine:
    `SequentialLR(adam, [LinearLR(adam, 0.1, total_iters=5), CosineAnnealingLR(adam, 45)], milestones=[5])`.

    Args:
        optimizer: what it sets.
        schedulers: schedules of this optimiser; not `ReduceLROnPlateau`, which follows a metric.
        milestones: for each schedule but the first, the step at which it begins; ascending.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: schedules of another optimiser, or another number of milestones.
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: Iterable[Scheduler], milestones: Iterable[int]
    ) -> None:
        self._schedulers = list(schedulers)
        self.milestones = _ascending(milestones)
        for number, schedule in enumerate(self._schedulers):
            if not isinstance(schedule, Scheduler) or schedule.needs_metric:
                found = type(schedule).__name__
                raise TypeError(f"schedulers[{number}]: expected a schedule of steps alone, got {found}")
            if schedule.optimizer is not optimizer:
                raise ValueError(f"schedulers[{number}]: expected one of this optimizer, got one of another")
        if not self._schedulers or len(self.milestones) != len(self._schedulers) - 1:
            raise ValueError(
                "milestones: expected one for each schedule but the first "
                f"({len(self._schedulers)} schedules), got {self.milestones}"
            )
        # One for each step if one of its parts is.
        self.every = "step" if any(s.every == "step" for s in self._schedulers) else "epoch"
        super().__init__(optimizer)

    def _apply(self) -> None:
        number = bisect_right(self.milestones, self.last_epoch)
        schedule = self._schedulers[number]
        schedule.base_lrs = self.base_lrs
        schedule.last_epoch = self.last_epoch - (self.milestones[number - 1] if number else 0)
        schedule._apply()

    def _extra_repr(self) -> str:
        return f"{self._schedulers!r}, milestones={self.milestones!r}"


def half_cosine(first: float, last: float, share: float) -> float:
    """Return what is reached after a share of half a cosine from first to last."""
    return last + (first - last) * (1.0 + math.cos(math.pi * share)) / 2.0


def _ascending(milestones: Iterable[int]) -> list[int]:
    found = [check_size("milestones", step, 0) for step in milestones]
    if any(later <= earlier for earlier, later in pairwise(found)):
        raise ValueError(f"milestones: expected ascending numbers, got {found}")
    return found
