"""Networks whose step works on whole rows, written out in NumPy: what test_row_cells.py compares with.

A step takes {name: array} of one layer and direction, x (B, I) and the states (B, H), and returns the states
after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from reference import sigmoid

import fusedrnn as fr

Array = npt.NDArray[Any]
Step = Callable[[dict[str, Array], Array, list[Array]], list[Array]]


def normalised(v: Array) -> Array:
    """(v - mean) / sqrt(var + 1e-5) of each row."""
    centred = v - v.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)


def _gates(p: dict[str, Array], x: Array, h: Array) -> tuple[Array, Array]:
    from_x = p["gain_ih"] * normalised(x @ p["weight_ih"].T) + p.get("bias_ih", 0.0)
    return from_x, p["gain_hh"] * normalised(h @ p["weight_hh"].T)


def _rnn(activation: Callable[[Array], Array]) -> Step:
    return lambda p, x, state: [activation(sum(_gates(p, x, state[0])))]


def _lstm(p: dict[str, Array], x: Array, state: list[Array]) -> list[Array]:
    h, c = state
    i, f, g, o = np.split(sum(_gates(p, x, h)), 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(p["gain_c"] * normalised(c) + p.get("bias_c", 0.0)), c]


def _gru(p: dict[str, Array], x: Array, state: list[Array]) -> list[Array]:
    (h,) = state
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (np.split(part, 3, axis=1) for part in _gates(p, x, h))
    z = sigmoid(x_z + h_z)
    n = np.tanh(x_n + sigmoid(x_r + h_r) * (h_n + p.get("bias_hn", 0.0)))
    return [(1 - z) * n + z * h]


def _gru_before(p: dict[str, Array], x: Array, state: list[Array]) -> list[Array]:
    (h,) = state
    w_r, w_z, w_n = np.split(p["weight_hh"], 3)
    b_r, b_z, b_n = np.split(p.get("bias_hh", np.zeros(len(p["weight_hh"]))), 3)
    x_r, x_z, x_n = np.split(x @ p["weight_ih"].T + p.get("bias_ih", 0.0), 3, axis=1)
    r, z = sigmoid(x_r + h @ w_r.T + b_r), sigmoid(x_z + h @ w_z.T + b_z)
    n = np.tanh(x_n + (r * h) @ w_n.T + b_n)
    return [(1 - z) * n + z * h]


def _own_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    """Two values normalised together, products of two operands, and one of them normalised."""
    a, c = fr.sym.layer_norm(fr.sym.tanh(x.a + h.a), p.u * s.c)
    b = fr.sym.product(h.b, a * s.h)
    d = fr.sym.layer_norm(fr.sym.product(h.d, b + c))
    e = fr.sym.product(h.e, b + c)
    new = fr.sym.sigmoid(x.b + b) * (s.c + d)
    return {"h": fr.sym.tanh(new + x.d * e + x.e), "c": fr.sym.tanh(new) - 0.5 * s.h}


def _own(p: dict[str, Array], x: Array, state: list[Array]) -> list[Array]:
    h, c = state
    x_a, x_b, x_d, x_e = np.split(x @ p["weight_ih"].T + p.get("bias_ih", 0.0), 4, axis=1)
    w_a, w_b, w_d, w_e = np.split(p["weight_hh"], 4)
    b_a, b_b, b_d, b_e = np.split(p.get("bias_hh", np.zeros(len(p["weight_hh"]))), 4)
    both = normalised(np.concatenate([np.tanh(x_a + h @ w_a.T + b_a), p["u"] * c], axis=1))
    a, m = np.split(both, 2, axis=1)
    b = (a * h) @ w_b.T + b_b
    d, e = normalised((b + m) @ w_d.T + b_d), (b + m) @ w_e.T + b_e
    new = sigmoid(x_b + b) * (c + d)
    return [np.tanh(new + x_d * e + x_e), np.tanh(new) - 0.5 * h]


OWN = fr.define_cell("rows", "a b d e", "h c", _own_step, parameters={"u": 1.0})


@dataclass(frozen=True)
class RowCell:
    """A network, its number of states, and what a step computes."""

    make: Callable[..., Any]
    states: int
    step: Step


def _made(network: Any, **options: Any) -> Callable[..., Any]:
    return lambda *sizes, **others: network(*sizes, **options, **others)


CELLS = {
    "gru_before": RowCell(_made(fr.GRU, reset_after=False), 1, _gru_before),
    "rnn": RowCell(_made(fr.RNN, layer_norm=True), 1, _rnn(np.tanh)),
    "rnn_relu": RowCell(
        _made(fr.RNN, layer_norm=True, nonlinearity="relu"), 1, _rnn(lambda v: np.maximum(v, 0.0))
    ),
    "lstm": RowCell(_made(fr.LSTM, layer_norm=True), 2, _lstm),
    "gru": RowCell(_made(fr.GRU, layer_norm=True), 1, _gru),
    "own": RowCell(_made(fr.Recurrent, cell=OWN), 2, _own),
}


def run_layer(
    step: Step,
    params: dict[str, Array],
    x: Array,
    state: list[Array],
    reverse: bool,
    lengths: Array,
    resets: Array,
    reset_state: list[Array],
) -> tuple[Array, list[Array]]:
    """y (T, B, H), zero past the ends of rows, and the states after their last steps."""
    seq_len = len(x)
    y = np.zeros((*x.shape[:2], state[0].shape[1]))
    for t in range(seq_len - 1, -1, -1) if reverse else range(seq_len):
        alive = t < lengths
        cut = resets[t] & alive
        if reverse:
            cut = resets[t + 1] & (t + 1 < lengths) if t + 1 < seq_len else np.zeros_like(alive)
        before = [np.where(cut[:, None], new, old) for new, old in zip(reset_state, state, strict=True)]
        after = step(params, x[t], before)
        state = [np.where(alive[:, None], new, old) for new, old in zip(after, state, strict=True)]
        y[t] = np.where(alive[:, None], after[0], 0.0)
    return y, state


def run_network(
    step: Step,
    layers: list[dict[str, Array]],
    directions: int,
    x: Array,
    states: list[Array],
    lengths: Array,
    resets: Array,
    reset_states: list[Array],
) -> tuple[Array, list[Array]]:
    """The same for stacked layers; states (rows, B, H) with a row for each layer and direction."""
    final = [np.zeros_like(state) for state in states]
    for row in range(0, len(layers), directions):
        found = []
        for k in range(row, row + directions):
            y, after = run_layer(
                step,
                layers[k],
                x,
                [state[k] for state in states],
                k > row,
                lengths,
                resets,
                [state[k] for state in reset_states],
            )
            found.append(y)
            for to, value in zip(final, after, strict=True):
                to[k] = value
        x = np.concatenate(found, axis=2)
    return x, final
