"""A decoder with additive attention in float64, one row and one step at a time."""

from __future__ import annotations

from typing import Any

import numpy as np


def sigmoid(x: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def cell_step(cell: str, a: Any, b: Any, state: list[Any]) -> list[Any]:
    """The states after a step, from a = W_ih x + b_ih and b = W_hh h + b_hh."""
    h, size = state[0], len(state[0])
    gates = [(a[i : i + size], b[i : i + size]) for i in range(0, len(a), size)]
    if cell == "lstm":
        i, f, g, o = (x + y for x, y in gates)
        c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        return [sigmoid(o) * np.tanh(c), c]
    if cell == "gru":
        r, z = (sigmoid(x + y) for x, y in gates[:2])
        n = np.tanh(gates[2][0] + r * gates[2][1])
        return [n + z * (h - n)]
    return [np.tanh(a + b) if cell == "rnn_tanh" else np.maximum(a + b, 0.0)]


def forward(
    cell: str, p: dict[str, Any], x: Any, memory: Any, memory_lengths: Any, lengths: Any, states: list[Any]
) -> tuple[Any, Any, list[Any]]:
    """y, alpha and the final states (B, H) of parameters without biases where they have none."""
    steps, batch = x.shape[:2]
    hidden = states[0].shape[1]
    y, alpha = np.zeros((steps, batch, hidden)), np.zeros((steps, batch, memory.shape[0]))
    final = [np.array(state) for state in states]
    bias = [p.get(name, 0.0) for name in ("bias_memory", "bias_ih_l0", "bias_hh_l0")]
    for b in range(batch):
        rows = memory[: memory_lengths[b], b]
        state = [s[b] for s in states]
        for t in range(lengths[b]):
            weights = np.zeros(0)
            if len(rows):
                query = p["weight_query"] @ state[0]
                energies = np.array(
                    [p["weight_energy"] @ np.tanh(query + p["weight_memory"] @ m + bias[0]) for m in rows]
                )
                weights = np.exp(energies - energies.max())
                weights = weights / weights.sum()
            context = weights @ rows if len(rows) else np.zeros(memory.shape[2])
            a = p["weight_ih_l0"] @ np.concatenate([x[t, b], context]) + bias[1]
            state = cell_step(cell, a, p["weight_hh_l0"] @ state[0] + bias[2], state)
            y[t, b], alpha[t, b, : len(rows)] = state[0], weights
        for to, value in zip(final, state, strict=True):
            to[b] = value
    return y, alpha, final
