"""Recurrent policies: sequences in which episodes begin, and the example of reinforcement learning."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fusedrnn.torch as ft  # noqa: E402

pytestmark = pytest.mark.once

EXAMPLE = Path(__file__).parents[1] / "examples" / "ppo.py"


class Policy(torch.nn.Module):
    """Stands for those of sb3-contrib, which tests do not install: a function of its own runs the LSTM."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(3, size, num_layers=2)
        self.optimizer = torch.optim.SGD(self.parameters(), 0.1)

    @staticmethod
    def _process_sequence(features: Any, states: Any, starts: Any, lstm: Any) -> Any:
        """Each sequence for itself, step by step."""
        count = states[0].shape[1]
        rows, ends = [], []
        for i, (x, begins) in enumerate(
            zip(features.view(count, -1, 3), starts.view(count, -1), strict=True)
        ):
            state = tuple(part[:, i : i + 1] for part in states)
            for x_t, start in zip(x, begins, strict=True):
                y, state = lstm(x_t[None, None], tuple((1 - start) * part for part in state))
                rows.append(y[0])
            ends.append(state)
        return torch.cat(rows), tuple(torch.cat(parts, 1) for parts in zip(*ends, strict=True))

    def forward(self, features: Any, states: Any, starts: Any) -> Any:
        return self._process_sequence(features, states, starts, self.lstm)


Fused = ft.recurrent_policy(Policy)


def test_policy_with_beginnings_inside() -> None:
    """The same outputs, states and gradients as one step at a time, in one call."""
    stock, fused = Policy(4), Fused(4)
    assert type(fused.lstm) is ft.LSTM and isinstance(fused, Policy) and Fused.__name__ == "FusedPolicy"
    fused.load_state_dict(stock.state_dict())
    features, starts = torch.randn(10, 3), torch.tensor([0, 0, 1, 0, 0, 1, 0, 0, 0, 1.0])
    found = []
    for policy in (stock, fused):
        states = torch.ones(2, 2, 4, requires_grad=True), torch.full((2, 2, 4), 0.5, requires_grad=True)
        y, (h, c) = policy(features, states, starts)
        (y.square().sum() + h.sum() + 2 * c.sum()).backward()
        found.append([y, h, c, *[s.grad for s in states], *[p.grad for p in policy.parameters()]])
        assert not states[0].grad[:, 1].any() and states[0].grad[:, 0].any()
    torch.testing.assert_close(found[1], found[0])
    assert all(
        a is b for a, b in zip(fused.optimizer.param_groups[0]["params"], fused.parameters(), strict=True)
    )


def test_what_is_no_policy() -> None:
    with pytest.raises(TypeError, match=r"policy: expected a class of torch.nn.Module, got Policy\("):
        ft.recurrent_policy(Policy(4))
    with pytest.raises(TypeError, match="policy: expected a class with _process_sequence, got LSTM"):
        ft.recurrent_policy(torch.nn.LSTM)


def test_ppo() -> None:
    """The example, shortened: episodes as those of torch.nn's step by step, and after a while longer ones."""
    pytest.importorskip("gymnasium")
    names = runpy.run_path(str(EXAMPLE))
    assert len([line for line in EXAMPLE.read_text().splitlines() if line]) <= 80
    curves = [names["train"](kind, 3, envs=4, steps=24)[0] for kind in (ft.LSTM, names["StepByStep"])]
    assert curves[0] == curves[1] and len(set(curves[0])) == 3
    curve, _ = names["train"](ft.LSTM, 9, envs=32, steps=64)
    assert max(curve[-2:]) > 1.5 * curve[0]
