"""ReduceLROnPlateau."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from fusedrnn.checks import check_choice, check_number, check_size
from fusedrnn.optim.optimizer import Optimizer
from fusedrnn.optim.schedules import Scheduler


class ReduceLROnPlateau(Scheduler):
    """Multiply the rates by `factor` when a metric has not improved for more than `patience` calls of `step`.

    Args:
        optimizer: what it sets.
        mode: whether the metric should become smaller ("min") or larger ("max").
        factor: in [0, 1).
        patience: calls of `step` without an improvement that are allowed, >= 0.
        threshold: what counts as an improvement, >= 0.
        threshold_mode: whether threshold is a share of the best value ("rel") or a difference ("abs").
        cooldown: calls of `step` after a change that are not counted, >= 0.
        min_lr: the lowest rate, >= 0.
        eps: smaller changes of the rate are left out, >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    needs_metric = True
    _saved = ("last_epoch", "base_lrs", "best", "num_bad_epochs", "cooldown_counter")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        self.mode = check_choice("mode", mode, ("min", "max"))
        self.threshold_mode = check_choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.factor = check_number("factor", factor, 0.0, math.nextafter(1.0, 0.0))
        self.patience = check_size("patience", patience, 0)
        self.threshold = check_number("threshold", threshold)
        self.cooldown = check_size("cooldown", cooldown, 0)
        self.min_lr = check_number("min_lr", min_lr)
        self.eps = check_number("eps", eps)
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad_epochs = self.cooldown_counter = 0
        super().__init__(optimizer)

    def _apply(self) -> None:
        """Leave the rates as they are: only `step` changes them."""

    def step(self, metrics: float | None = None) -> None:
        """Note a metric, and lower the rates if it has not improved for too long.

        Args:
            metrics: the metric's present value; NaN is no improvement.

        Raises:
            TypeError: metrics is not a number.
        """
        if metrics is None:
            raise TypeError("metrics: expected a number, got None; this schedule follows a metric")
        value = math.nan if metrics != metrics else check_number("metrics", metrics, -math.inf)
        self.last_epoch += 1
        if self._improves(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            lowered = [(rate, max(rate * self.factor, self.min_lr)) for rate in self.get_last_lr()]
            self._assign([new if old - new > self.eps else old for old, new in lowered])
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _improves(self, value: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "abs":
            return sign * value > sign * self.best + self.threshold
        return sign * value > sign * self.best * (1.0 + sign * self.threshold)

    def _checked(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        values = super()._checked(state_dict)
        values["best"] = check_number("best", state_dict["best"], -math.inf)
        for name in ("num_bad_epochs", "cooldown_counter"):
            values[name] = check_size(name, state_dict[name], 0)
        return values
