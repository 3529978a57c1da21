"""EarlyStopping: when training ends because nothing becomes better, and which parameters were the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from fusedrnn.arrays import Array
from fusedrnn.checks import check_choice, check_flag, check_number, check_size
from fusedrnn.listing import Listed
from fusedrnn.nn.module import Module


class EarlyStopping(Listed):
    """Stop after `patience` epochs without an improvement, and go back to the best parameters.

    Args:
        patience: epochs without an improvement after which training ends, >= 1.
        monitor: what of the history has to improve; None for "validation_loss", or "loss" without validation.
        mode: whether it should become smaller ("min") or larger ("max").
        min_delta: what counts as an improvement, >= 0.
        restore_best: whether `fit` ends with the best parameters rather than the last.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Attributes:
        best: the best value so far; NaN before the first.
        best_epoch: the number of epochs after which it was reached.
        waited: epochs since then.
    """

    def __init__(
        self,
        patience: int = 5,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        check_choice("mode", mode, ("min", "max"))
        if monitor is not None and not isinstance(monitor, str):
            raise TypeError(f"monitor: expected a string or None, got {monitor!r}")
        self.patience = check_size("patience", patience)
        self.monitor, self.mode = monitor, mode
        self.min_delta = check_number("min_delta", min_delta)
        self.restore_best = check_flag("restore_best", restore_best)
        self.reset()

    def reset(self) -> None:
        """Forget everything, as a run does that begins."""
        self.best, self.best_epoch, self.waited = math.nan, 0, 0
        self.best_state: dict[str, Array] = {}

    @property
    def finished(self) -> bool:
        """Whether training should end."""
        return self.waited >= self.patience

    def update(self, history: Mapping[str, list[float]], model: Module) -> None:
        """Note the last epoch of a history.

        Raises:
            ValueError: the history has nothing of the name that is monitored.
        """
        name = self.monitor or ("validation_loss" if "validation_loss" in history else "loss")
        if name not in history:
            raise ValueError(f"monitor: expected one of {', '.join(history)}, got {name!r}")
        value, epochs = history[name][-1], len(history[name])
        sign = 1.0 if self.mode == "max" else -1.0
        # NaN is no improvement, not even on nothing.
        if not math.isnan(value) and not sign * (value - self.best) <= self.min_delta:
            self.best, self.best_epoch, self.waited = value, epochs, 0
            if self.restore_best:
                self.best_state = model.state_dict()
        else:
            self.waited += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what continuing needs, but for the best parameters, as numbers."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any], best_state: Mapping[str, Array]) -> None:
        """Restore what `state_dict` returned, and the best parameters.

        Raises:
            KeyError, TypeError, ValueError: something else.
        """
        best = (
            state["best"]
            if state["best"] != state["best"]
            else check_number("best", state["best"], -math.inf)
        )
        epoch, waited = (check_size(name, state[name], 0) for name in ("best_epoch", "waited"))
        self.best, self.best_epoch, self.waited = best, epoch, waited
        self.best_state = dict(best_state)

    def __repr__(self) -> str:
        return f"EarlyStopping(patience={self.patience}, monitor={self.monitor!r}, mode={self.mode!r})"
