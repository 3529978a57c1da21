"""Schedules against rates that PyTorch's formulas give, and exact resumption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

import fusedrnn as fr
from fusedrnn import optim

pytestmark = pytest.mark.once

Make = Callable[[optim.Optimizer], optim.Scheduler]


def adam(lr: float = 0.5) -> optim.Adam:
    return optim.Adam(fr.Linear(2, 2, seed=0), lr=lr)


def rates(schedule: optim.Scheduler, count: int, metrics: list[float] | None = None) -> list[float]:
    """The rates of so many steps."""
    found = []
    for index in range(count):
        found.append(schedule.optimizer.lr)
        if index < count - 1:
            step: Any = schedule.step
            step(*[] if metrics is None else [metrics[index]])
    return found


# Rates from lr = 0.5, twelve digits of what torch.optim.lr_scheduler sets (Noam: of the paper's equation 3).
SCHEDULES: dict[str, tuple[Make, list[float]]] = {
    "step": (lambda o: optim.StepLR(o, 3, 0.5), [*3 * [0.5], *3 * [0.25], *3 * [0.125]]),
    "multi_step": (lambda o: optim.MultiStepLR(o, [2, 5]), [0.5, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005]),
    "exponential": (
        lambda o: optim.ExponentialLR(o, 0.9),
        [0.5, 0.45, 0.405, 0.3645, 0.32805, 0.295245],
    ),
    "linear": (
        lambda o: optim.LinearLR(o, 0.25, 1.0, 4),
        [0.125, 0.21875, 0.3125, 0.40625, 0.5, 0.5, 0.5],
    ),
    "cosine": (
        lambda o: optim.CosineAnnealingLR(o, 6, 0.1),
        [0.5, 0.473205080757, 0.4, 0.3, 0.2, 0.126794919243, 0.1, 0.126794919243, 0.2],
    ),
    "one_cycle": (
        lambda o: optim.OneCycleLR(o, 0.4, total_steps=10),
        [
            0.016,
            0.208,
            0.4,
            0.380193852805,
            0.32469826158,
            0.244504808775,
            0.155496791225,
            0.0753033384201,
            0.0198077471946,
            1.6e-06,
        ],
    ),
    "three_phases": (
        lambda o: optim.OneCycleLR(
            o, 0.4, 12, 0.4, "linear", three_phase=True, div_factor=10, final_div_factor=100
        ),
        [
            0.04,
            0.134736842105,
            0.229473684211,
            0.324210526316,
            0.381052631579,
            0.286315789474,
            0.191578947368,
            0.0968421052632,
            0.0353411764706,
            0.0236941176471,
            0.0120470588235,
            0.0004,
        ],
    ),
    "warm_up_and_cosine": (
        lambda o: optim.SequentialLR(
            o, [optim.LinearLR(o, 0.1, total_iters=3), optim.CosineAnnealingLR(o, 5)], [3]
        ),
        [0.05, 0.2, 0.35, 0.5, 0.452254248594, 0.327254248594, 0.172745751406, 0.0477457514063, 0.0],
    ),
    "noam": (
        lambda o: optim.NoamLR(o, 16, 4),
        [0.5 * 0.25 * factor for factor in (1 / 8, 2 / 8, 3 / 8, 1 / 2, 5**-0.5, 6**-0.5)],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates(name: str) -> None:
    make, want = SCHEDULES[name]
    assert rates(make(adam()), len(want)) == pytest.approx(want, rel=1e-11, abs=1e-15)


@pytest.mark.parametrize(
    ("options", "metrics", "want"),
    [
        (
            {"patience": 1, "factor": 0.5, "cooldown": 1, "min_lr": 0.1},
            [5, 4, 4, 4, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3],
            [*4 * [0.5], *3 * [0.25], *4 * [0.125], *3 * [0.1]],
        ),
        (
            {"mode": "max", "patience": 0, "factor": 0.5, "threshold": 0.5, "threshold_mode": "abs"},
            [1, 1.4, 1.6, 2, 2.2, 2.2],
            [0.5, 0.5, 0.25, 0.25, 0.125, 0.125],
        ),
    ],
)
def test_plateau(options: dict[str, Any], metrics: list[float], want: list[float]) -> None:
    assert rates(optim.ReduceLROnPlateau(adam(), **options), len(want), metrics) == want


def test_plateau_takes_nan_for_no_improvement() -> None:
    assert rates(optim.ReduceLROnPlateau(adam(), patience=0), 3, [math.nan] * 3) == pytest.approx(
        [0.5, 0.05, 0.005]
    )


def test_one_cycle_moves_the_momentum() -> None:
    want = [0.95, 0.9, 0.85, 0.854951556605, 0.868825509907]
    one, two = adam(), optim.SGD(fr.Linear(2, 2), lr=0.1, momentum=0.5)
    first, second = optim.OneCycleLR(one, 0.4, 10), optim.OneCycleLR(two, 0.4, 10)
    for momentum in want:
        assert one.betas == (pytest.approx(momentum), 0.999)
        assert two.momentum == pytest.approx(momentum)
        first.step()
        second.step()
    optim.OneCycleLR(two, 0.4, 10, cycle_momentum=False)
    assert two.momentum == pytest.approx(0.888873953302)


@pytest.mark.parametrize("name", [*SCHEDULES, "plateau"])
def test_a_loaded_schedule_goes_on_with_the_same_bits(name: str) -> None:
    """Through JSON; the optimiser is restored beside it."""

    def made(optimizer: optim.Optimizer) -> optim.Scheduler:
        if name == "plateau":
            return optim.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
        return SCHEDULES[name][0](optimizer)

    metrics = [3.0, 2.0, 2.0, 2.0, 1.0, 1.0] if name == "plateau" else None
    whole = made(adam())
    want = rates(whole, 6, metrics)
    first = made(adam())
    rates(first, 4, metrics)
    text = json.dumps(first.state_dict())
    second = made(adam(0.125))
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(json.loads(text))
    assert rates(second, 3, metrics and metrics[3:]) == want[3:]
    assert second.state_dict() == whole.state_dict()


def test_groups_with_a_rate_of_their_own() -> None:
    body, head = fr.GRU(2, 3), fr.Linear(3, 2)
    optimizer = optim.Adam([{"params": body, "lr": 0.02}, {"params": head}], lr=0.2)
    schedule = optim.StepLR(optimizer, 1, 0.5)
    schedule.step()
    assert schedule.get_last_lr() == [0.1, 0.01]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "kind": (lambda: optim.StepLR(fr.Linear(2, 2), 3), TypeError, "optimizer: expected an Optimizer"),  # type: ignore[arg-type]
    "step_size": (lambda: optim.StepLR(adam(), 0), ValueError, "step_size"),
    "gamma": (lambda: optim.ExponentialLR(adam(), -0.5), ValueError, "gamma"),
    "T_max": (lambda: optim.CosineAnnealingLR(adam(), 2.5), TypeError, "T_max"),  # type: ignore[arg-type]
    "milestones": (lambda: optim.MultiStepLR(adam(), [3, 3]), ValueError, "milestones: expected ascending"),
    "strategy": (lambda: optim.OneCycleLR(adam(), 1.0, 9, anneal_strategy="x"), ValueError, "anneal"),  # type: ignore[arg-type]
    "past_the_end": (lambda: rates(optim.OneCycleLR(adam(), 1.0, 4), 6), ValueError, "total_steps: expected"),
    "parts": (
        lambda: optim.SequentialLR(o := adam(), [optim.StepLR(o, 1)], [3]),
        ValueError,
        "milestones: expected one for each",
    ),
    "other": (
        lambda: optim.SequentialLR(adam(), [optim.StepLR(adam(), 1)], []),
        ValueError,
        "schedulers\\[0\\]: expected one of this",
    ),
    "plateau_inside": (
        lambda: optim.SequentialLR(o := adam(), [optim.ReduceLROnPlateau(o)], []),
        TypeError,
        "schedulers\\[0\\]",
    ),
    "mode": (lambda: optim.ReduceLROnPlateau(adam(), "least"), ValueError, "mode"),  # type: ignore[arg-type]
    "no_metric": (lambda: optim.ReduceLROnPlateau(adam()).step(), TypeError, "metrics"),
    "names": (lambda: optim.StepLR(adam(), 1).load_state_dict({}), ValueError, "state_dict"),
    "state": (
        lambda: optim.StepLR(adam(), 1).load_state_dict({"last_epoch": -1, "base_lrs": [0.5]}),
        ValueError,
        "last_epoch",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=f"^{message}"):
        call()


def test_repr() -> None:
    assert repr(optim.StepLR(adam(), 3)) == "StepLR(Adam, step_size=3, gamma=0.1)"
