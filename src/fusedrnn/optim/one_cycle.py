"""OneCycleLR and NoamLR: schedules over the steps of a whole run."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from fusedrnn.checks import check_choice, check_flag, check_number, check_size
from fusedrnn.optim.adam import Adam
from fusedrnn.optim.optimizer import Optimizer
from fusedrnn.optim.schedules import Scheduler, half_cosine
from fusedrnn.optim.sgd import SGD


class OneCycleLR(Scheduler):
    """Up from max_lr / div_factor to max_lr in the first pct_start of the steps, then down to almost nothing.

    The momentum (of Adam, b1) goes the opposite way, if cycle_momentum. The base rates are not used: max_lr
    holds for all groups. `Trainer` steps it for each step of the optimiser.

    Args:
        optimizer: what it sets.
        max_lr: the highest rate, > 0.
        total_steps: steps of the whole run, >= 2; one more is an error.
        pct_start: share of the steps in which the rate rises, in [0, 1].
        anneal_strategy: "cos" or "linear".
        cycle_momentum: whether the momentum is set, too.
        base_momentum: the momentum where the rate is highest, in [0, 1).
        max_momentum: the momentum at both ends, in [0, 1).
        div_factor: max_lr by the first rate, > 0.
        final_div_factor: the first rate by the last, > 0.
        three_phase: go down as slowly as up, then from the first rate to the last.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Smith and Topin 2017, arXiv:1708.07120v3.
    """

    every = "step"

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        check_choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        below_one = math.nextafter(1.0, 0.0)
        smallest = math.ulp(0.0)
        self.max_lr = check_number("max_lr", max_lr, smallest)
        self.total_steps = check_size("total_steps", total_steps, 2)
        self.pct_start = check_number("pct_start", pct_start, 0.0, 1.0)
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = check_flag("cycle_momentum", cycle_momentum)
        self.base_momentum = check_number("base_momentum", base_momentum, 0.0, below_one)
        self.max_momentum = check_number("max_momentum", max_momentum, 0.0, below_one)
        self.div_factor = check_number("div_factor", div_factor, smallest)
        self.final_div_factor = check_number("final_div_factor", final_div_factor, smallest)
        self.three_phase = check_flag("three_phase", three_phase)
        super().__init__(optimizer)

    def _between(self, step: int, low: float, high: float, last: float) -> float:
        """Return the value of a step, for a curve from low to high and on to last."""
        if step >= self.total_steps:
            raise ValueError(
                f"total_steps: expected at most {self.total_steps - 1} calls of step, as it was made for "
                f"{self.total_steps} steps, got {step}"
            )
        peak = self.pct_start * self.total_steps - 1
        corners = [(0.0, low), (peak, high), (self.total_steps - 1, last)]
        if self.three_phase:
            corners.insert(2, (2 * peak, low))
        for (start, first), (end, second) in pairwise(corners):
            if step <= end or end == self.total_steps - 1:
                share = (step - start) / (end - start) if end > start else 1.0
                if self.anneal_strategy == "linear":
                    return first + (second - first) * share
                return half_cosine(first, second, share)
        raise AssertionError("the last corner is at the last step")

    def _rates(self, step: int) -> list[float]:
        first = self.max_lr / self.div_factor
        rate = self._between(step, first, self.max_lr, first / self.final_div_factor)
        return [rate] * len(self.base_lrs)

    def _assign(self, rates: list[float]) -> None:
        super()._assign(rates)
        if self.cycle_momentum:
            step, optimizer = self.last_epoch, self.optimizer
            momentum = self._between(step, self.max_momentum, self.base_momentum, self.max_momentum)
            if isinstance(optimizer, Adam):
                optimizer.betas = (momentum, optimizer.betas[1])
            elif isinstance(optimizer, SGD):
                optimizer.momentum = momentum


class NoamLR(Scheduler):
    """lr = base * model_size^-0.5 * min(n^-0.5, n * warmup_steps^-1.5), n = t + 1: give the optimiser lr=1.

    `Trainer` steps it for each step of the optimiser.

    Args:
        optimizer: what it sets.
        model_size: width of the model, >= 1.
        warmup_steps: steps in which the rate rises, >= 1.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Vaswani et al. 2017, arXiv:1706.03762v7, equation 3.
    """

    every = "step"

    def __init__(self, optimizer: Optimizer, model_size: int, warmup_steps: int) -> None:
        self.model_size = check_size("model_size", model_size)
        self.warmup_steps = check_size("warmup_steps", warmup_steps)
        super().__init__(optimizer)

    def _rate(self, step: int, base: float) -> float:
        n = step + 1
        scale: float = min(1.0 / math.sqrt(n), n / self.warmup_steps**1.5)
        return base * scale / math.sqrt(self.model_size)
