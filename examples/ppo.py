"""Recurrent PPO on CartPole without its velocities (pip install gymnasium torch). ppo.py [UPDATES]"""

import sys
import time

import gymnasium
import numpy as np
import torch
from torch import nn

import fusedrnn.torch as ft


class StepByStep(nn.LSTM):
    """What torch.nn's takes where episodes begin inside of a sequence."""

    def forward(self, x, state, resets):
        outputs = []
        for x_t, reset in zip(x, resets, strict=True):
            keep = (~reset)[:, None].to(x.dtype)
            y, state = super().forward(x_t[None], tuple(keep * part for part in state))
            outputs.append(y)
        return torch.cat(outputs), state


def masked(seen):
    """Position and angle, the angle in tenths of a radian; the two velocities are left out."""
    return torch.tensor(seen[:, [0, 2]]) * torch.tensor([1.0, 10.0])


class Policy(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.lstm, self.head = kind(2, 64), nn.Linear(64, 3)

    def forward(self, x, state, resets):
        y, state = self.lstm(x, state, resets=resets)
        out = self.head(y)
        return torch.distributions.Categorical(logits=out[..., :2], validate_args=False), out[..., 2], state


def train(kind, updates, envs=16, steps=128, epochs=4, gamma=0.98):
    """Return the mean length of the episodes that end in each update, and the seconds of all updates."""
    torch.manual_seed(0)
    policy = Policy(kind)
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    mode = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
    world = gymnasium.make_vec("CartPole-v1", num_envs=envs, vectorization_mode="sync", vector_kwargs=mode)
    seen, starts = world.reset(seed=0)[0], np.ones(envs, bool)
    state, lengths, curve, seconds = (torch.zeros(1, envs, 64),) * 2, np.zeros(envs), [], 0.0
    for _ in range(updates):
        first, rows, ended = state, [], []
        for _ in range(steps):
            x, resets = masked(seen), torch.tensor(starts)
            with torch.no_grad():
                pi, value, state = policy(x[None], state, resets[None])
                action = pi.sample()
            seen, reward, over, cut, _ = world.step(action[0].numpy())
            starts, lengths = over | cut, lengths + 1
            ended += lengths[starts].tolist()
            lengths[starts] = 0
            reward = torch.tensor(reward, dtype=torch.float32) / 10
            rows.append(
                (x, resets, action[0], pi.log_prob(action)[0], value[0], reward, torch.tensor(starts))
            )
        x, resets, actions, old, values, rewards, done = (torch.stack(row) for row in zip(*rows, strict=True))
        with torch.no_grad():
            following = policy(masked(seen)[None], state, done[-1:])[1]
        advantages, gain = torch.zeros_like(rewards), 0
        for t, next_value in zip(range(steps)[::-1], torch.cat([values[1:], following]).flip(0), strict=True):
            live = 1 - done[t].float()
            gain = rewards[t] + gamma * live * next_value - values[t] + gamma * 0.95 * live * gain
            advantages[t] = gain
        returns, started = advantages + values, time.process_time()
        for rows in [r for _ in range(epochs) for r in torch.randperm(envs).chunk(4)]:
            pi, value, _ = policy(x[:, rows], tuple(part[:, rows] for part in first), resets[:, rows])
            ratio = (pi.log_prob(actions[:, rows]) - old[:, rows]).exp()
            gain = (advantages[:, rows] - advantages[:, rows].mean()) / advantages[:, rows].std()
            gain = torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
            loss = (value - returns[:, rows]).square().mean() - gain - 0.01 * pi.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            optimizer.step()
        seconds += time.process_time() - started
        curve.append(np.mean(ended) if ended else float(steps))
    return curve, seconds


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in (ft.LSTM, StepByStep):
        curve, seconds = train(kind, int(sys.argv[1]) if len(sys.argv) > 1 else 60)
        print(f"{kind.__module__:33} {seconds:6.1f} s in updates;", *(f"{n:.0f}" for n in curve[4::5]))
