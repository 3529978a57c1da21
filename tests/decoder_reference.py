"""A decoder with attention in float64, one row and one step at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


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


def energy(p: dict[str, Any], query: Any, row: Any, place: int, past: list[Any]) -> Any:
    """That of one row of the memory; `past` are the attentions of all steps before."""
    if "weight_energy" not in p:
        return query @ (p["weight_memory"] @ row if "weight_memory" in p else row)
    inside = p["weight_query"] @ query + p["weight_memory"] @ row + p.get("bias_memory", 0.0)
    if "weight_filter" in p and past:
        half = p["weight_filter"].shape[1] // 2
        window = np.pad(past[-1], half)[place : place + 2 * half + 1]
        inside = inside + p["weight_location"] @ (p["weight_filter"] @ window)
    if "weight_coverage" in p and past:
        inside = inside + p["weight_coverage"] * sum(alpha[place] for alpha in past)
    return p["weight_energy"] @ np.tanh(inside)


def window(p: dict[str, Any], query: Any, rows: Any, centres: Any) -> tuple[Any, Any]:
    """Of a mixture of windows, whose centres (K,) move."""
    heights, widths, moves = np.exp(p["weight_window"] @ query + p.get("bias_window", 0.0)).reshape(3, -1)
    centres += moves
    gaps = centres - np.arange(1, len(rows) + 1)[:, None]
    weights = (heights * np.exp(-widths * gaps**2)).sum(1)
    return weights, weights @ rows


def attend(p: dict[str, Any], query: Any, rows: Any, past: list[Any]) -> tuple[Any, Any]:
    """The weights of a memory's rows, and their context."""
    if not len(rows):
        return np.zeros(0), np.zeros(rows.shape[1])
    energies = np.array([energy(p, query, row, place, past) for place, row in enumerate(rows)])
    weights = np.exp(energies - energies.max())
    weights = weights / weights.sum()
    return weights, weights @ rows


def forward(
    cell: str, p: dict[str, Any], x: Any, memory: Any, memory_lengths: Any, lengths: Any, states: list[Any]
) -> tuple[Any, Any, list[Any]]:
    """y, alpha and the final states (L, B, H). What a decoder is follows from which parameters it has."""
    y, alpha, final = first_layer(cell, p, x, memory, memory_lengths, lengths, [s[0] for s in states])
    found = [[part] for part in final]
    for layer in range(1, len(states[0])):
        own = {name: p.get(f"upper.{name}_l{layer - 1}", 0.0) for name in NAMES}
        y, final = layer_above(cell, own, y, lengths, [s[layer] for s in states])
        for to, part in zip(found, final, strict=True):
            to.append(part)
    return y, alpha, [np.stack(parts) for parts in found]


def layer_above(
    cell: str, p: dict[str, Any], x: Any, lengths: Any, states: list[Any]
) -> tuple[Any, list[Any]]:
    """y and the final states (B, H) of an ordinary layer."""
    y, final = np.zeros((*x.shape[:2], states[0].shape[1])), [np.array(state) for state in states]
    for b, length in enumerate(lengths):
        state = [s[b] for s in states]
        for t in range(length):
            a = p["weight_ih"] @ x[t, b] + p["bias_ih"]
            state = cell_step(cell, a, p["weight_hh"] @ state[0] + p["bias_hh"], state)
            y[t, b] = state[0]
        for to, value in zip(final, state, strict=True):
            to[b] = value
    return y, final


def first_layer(
    cell: str, p: dict[str, Any], x: Any, memory: Any, memory_lengths: Any, lengths: Any, states: list[Any]
) -> tuple[Any, Any, list[Any]]:
    """y, alpha and the final states (B, H) of the layer that attends."""
    steps, batch = x.shape[:2]
    hidden = states[0].shape[1]
    y, alpha = np.zeros((steps, batch, hidden)), np.zeros((steps, batch, memory.shape[0]))
    final = [np.array(state) for state in states]
    bias_x, bias_h = (p.get(name, 0.0) for name in ("bias_ih_l0", "bias_hh_l0"))
    feeds = p["weight_ih_l0"].shape[1] > x.shape[2]
    for b in range(batch):
        rows = memory[: memory_lengths[b], b]
        state, output, past = [s[b] for s in states], np.zeros(hidden), []
        centres = np.zeros(len(p.get("weight_window", ())) // 3)

        def look(query: Any, rows: Any = rows, past: Any = past, centres: Any = centres) -> tuple[Any, Any]:
            return window(p, query, rows, centres) if len(centres) else attend(p, query, rows, past)

        for t in range(lengths[b]):
            weights, fed = np.zeros(0), output if feeds else np.zeros(0)
            if "weight_output" not in p:
                weights, fed = look(state[0])
            a = p["weight_ih_l0"] @ np.concatenate([x[t, b], fed]) + bias_x
            state = cell_step(cell, a, p["weight_hh_l0"] @ state[0] + bias_h, state)
            output = state[0]
            if "weight_output" in p:
                weights, context = look(state[0])
                output = np.tanh(p["weight_output"] @ np.concatenate([context, state[0]]))
            past.append(weights)
            y[t, b], alpha[t, b, : len(rows)] = output, weights
        for to, value in zip(final, state, strict=True):
            to[b] = value
    return y, alpha, final
