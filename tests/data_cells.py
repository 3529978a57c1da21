"""What the networks over cells that are data compute, written by hand, for reference.py to run.

As there: sigmoid goes through tanh, derivatives are taken from pre-activations, and test_data_cells.py checks
them by central differences. A cell without a product of h is given one with weights of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import reference
from reference import Array, Cell, State, relu, relu_slope, sigmoid, sigmoid_slope, tanh_slope

import fusedrnn as fr

Units = tuple[Array, ...]


def _lstm(peephole: bool = False, coupled: bool = False, clip: float = np.inf) -> Cell:
    """c' = cut(s(f) c + s(i) tanh(g)), h' = s(o) tanh(c'), where s(i) = 1 - s(f) if coupled."""
    gates = 3 if coupled else 4

    def parts(a: Array, b: Array, state: State, units: Units) -> tuple[Array, ...]:
        total = np.split(a + b, gates)
        f, g, o = total[-3:]
        weights = [unit[0] for unit in units] if peephole else [np.zeros(f.size)] * gates
        w_f, w_o = (weights[0], weights[1]) if coupled else (weights[1], weights[2])
        f = f + w_f * state[1]
        i = -f if coupled else total[0] + weights[0] * state[1]
        raw = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
        c = np.clip(raw, -clip, clip)
        return i, f, g, o + w_o * c, raw, c, w_f, w_o, np.zeros(f.size) if coupled else weights[0]

    def step(a: Array, b: Array, state: State, *units: Array) -> State:
        *_, o, _, c, _, _, _ = parts(a, b, state, units)
        return sigmoid(o) * np.tanh(c), c

    def pull(a: Array, b: Array, state: State, d_next: State, *units: Array) -> tuple[Any, ...]:
        i, f, g, o, raw, c, w_f, w_o, w_i = parts(a, b, state, units)
        dh, dc = d_next
        do = dh * np.tanh(c) * sigmoid_slope(o)
        dc = dc + dh * sigmoid(o) * tanh_slope(c) + do * w_o
        draw = dc * (np.abs(raw) <= clip)
        di = draw * np.tanh(g) * sigmoid_slope(i)
        df = draw * state[1] * sigmoid_slope(f)
        dg = draw * sigmoid(i) * tanh_slope(g)
        if coupled:
            df, di = df - di, np.zeros_like(di)
        dz = np.concatenate([*([] if coupled else [di]), df, dg, do])
        dstate = np.zeros(state[0].shape), draw * sigmoid(f) + df * w_f + di * w_i
        dunits = [*([] if coupled else [di * state[1]]), df * state[1], do * c]
        return dz, dz, dstate, *(dunits if peephole else [])

    names = ["peephole_f", "peephole_o"] if coupled else ["peephole_i", "peephole_f", "peephole_o"]
    return Cell(gates, 2, step, pull, tuple((name, 1) for name in names) if peephole else ())


def _mgu_step(a: Array, b: Array, state: State) -> State:
    """h' = h + s(f) (tanh(n) - h), n = a_n + s(f) b_n."""
    (a_f, a_n), (b_f, b_n) = np.split(a, 2), np.split(b, 2)
    f = sigmoid(a_f + b_f)
    return (state[0] + f * (np.tanh(a_n + f * b_n) - state[0]),)


def _mgu_pull(a: Array, b: Array, state: State, d_next: State) -> tuple[Any, ...]:
    (a_f, a_n), (b_f, b_n) = np.split(a, 2), np.split(b, 2)
    f = sigmoid(a_f + b_f)
    n = a_n + f * b_n
    dn = d_next[0] * f * tanh_slope(n)
    df = (d_next[0] * (np.tanh(n) - state[0]) + dn * b_n) * sigmoid_slope(a_f + b_f)
    return np.concatenate([df, dn]), np.concatenate([df, dn * f]), (d_next[0] * sigmoid(-(a_f + b_f)),)


def _indrnn(f: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Cell:
    """h' = f(a + u h)."""

    def step(a: Array, b: Array, state: State, u: Array) -> State:
        return (f(a + u[0] * state[0]),)

    def pull(a: Array, b: Array, state: State, d_next: State, u: Array) -> tuple[Any, ...]:
        dz = d_next[0] * slope(a + u[0] * state[0])
        return dz, np.zeros_like(b), (dz * u[0],), dz * state[0]

    return Cell(1, 1, step, pull, (("u", 1),))


def _min_gru_step(a: Array, b: Array, state: State) -> State:
    """h' = h + s(z) (n - h)."""
    z, n = np.split(a, 2)
    return (state[0] + sigmoid(z) * (n - state[0]),)


def _min_gru_pull(a: Array, b: Array, state: State, d_next: State) -> tuple[Any, ...]:
    z, n = np.split(a, 2)
    dz = d_next[0] * (n - state[0]) * sigmoid_slope(z)
    da = np.concatenate([dz, d_next[0] * sigmoid(z)])
    return da, np.zeros_like(b), (d_next[0] * sigmoid(-z),)


def _min_lstm_step(a: Array, b: Array, state: State) -> State:
    """h' = (s(f) h + s(i) n) / (s(f) + s(i))."""
    f, i, n = np.split(a, 3)
    return ((sigmoid(f) * state[0] + sigmoid(i) * n) / (sigmoid(f) + sigmoid(i)),)


def _min_lstm_pull(a: Array, b: Array, state: State, d_next: State) -> tuple[Any, ...]:
    f, i, n = np.split(a, 3)
    total = sigmoid(f) + sigmoid(i)
    after = _min_lstm_step(a, b, state)[0]
    df = d_next[0] * (state[0] - after) / total * sigmoid_slope(f)
    di = d_next[0] * (n - after) / total * sigmoid_slope(i)
    da = np.concatenate([df, di, d_next[0] * sigmoid(i) / total])
    return da, np.zeros_like(b), (d_next[0] * sigmoid(f) / total,)


def _sru_step(a: Array, b: Array, state: State, v_f: Array, v_r: Array) -> State:
    """c' = n + s(f + v_f c) (c - n), h' = k + s(r + v_r c) (c' - k)."""
    n, f, r, k = np.split(a, 4)
    c = n + sigmoid(f + v_f[0] * state[1]) * (state[1] - n)
    return k + sigmoid(r + v_r[0] * state[1]) * (c - k), c


def _sru_pull(a: Array, b: Array, state: State, d_next: State, v_f: Array, v_r: Array) -> tuple[Any, ...]:
    n, f, r, k = np.split(a, 4)
    f, r = f + v_f[0] * state[1], r + v_r[0] * state[1]
    c_next = n + sigmoid(f) * (state[1] - n)
    dh, dc = d_next
    dc = dc + dh * sigmoid(r)
    dr = dh * (c_next - k) * sigmoid_slope(r)
    df = dc * (state[1] - n) * sigmoid_slope(f)
    da = np.concatenate([dc * sigmoid(-f), df, dr, dh * sigmoid(-r)])
    dstate = np.zeros(state[0].shape), dc * sigmoid(f) + df * v_f[0] + dr * v_r[0]
    return da, np.zeros_like(b), dstate, df * state[1], dr * state[1]


def _li_gru_step(a: Array, b: Array, state: State) -> State:
    """h' = n + s(z) (h - n), n = max(0, a_n + b_n)."""
    z, n = np.split(a + b, 2)
    return (relu(n) + sigmoid(z) * (state[0] - relu(n)),)


def _li_gru_pull(a: Array, b: Array, state: State, d_next: State) -> tuple[Any, ...]:
    z, n = np.split(a + b, 2)
    dz = d_next[0] * (state[0] - relu(n)) * sigmoid_slope(z)
    da = np.concatenate([dz, d_next[0] * sigmoid(-z) * relu_slope(n)])
    return da, da, (d_next[0] * sigmoid(z),)


def _slstm(exponential: bool) -> Cell:
    """h' = s(o) C' / N' of C' = F C + e^i tanh(z), N' = F N + e^i, with C = c e^m and N = n e^m.

    Where n is not positive F is 0, and m' = i; else m' is the larger of log F + m and i.
    """

    def parts(a: Array, b: Array, state: State) -> tuple[Array, ...]:
        i, f, z, o = np.split(a + b, 4)
        _, c, n, m = state
        log_rate = f if exponential else -np.logaddexp(0.0, -f)
        forget = np.where(n > 0, np.exp(log_rate), 0.0)
        total_c = forget * c * np.exp(m) + np.exp(i) * np.tanh(z)
        total_n = forget * n * np.exp(m) + np.exp(i)
        late = (n > 0) & (log_rate + m > i)
        return i, f, z, o, forget, total_c, total_n, late, np.where(late, log_rate + m, i)

    def step(a: Array, b: Array, state: State) -> State:
        _, _, _, o, _, total_c, total_n, _, m = parts(a, b, state)
        return sigmoid(o) * total_c / total_n, total_c * np.exp(-m), total_n * np.exp(-m), m

    def pull(a: Array, b: Array, state: State, d_next: State) -> tuple[Any, ...]:
        i, f, z, o, forget, total_c, total_n, late, m_next = parts(a, b, state)
        _, c, n, m = state
        dh, dc, dn, dm = d_next
        quotient, shrunk = total_c / total_n, np.exp(-m_next)
        d_total_c = dh * sigmoid(o) / total_n + dc * shrunk
        d_total_n = -dh * sigmoid(o) * quotient / total_n + dn * shrunk
        dm = dm - dc * total_c * shrunk - dn * total_n * shrunk
        through = d_total_c * c + d_total_n * n
        d_log = forget * np.exp(m) * through + late * dm
        dz = np.concatenate(
            [
                np.exp(i) * (d_total_c * np.tanh(z) + d_total_n) + ~late * dm,
                d_log * (1.0 if exponential else sigmoid(-f)),
                d_total_c * np.exp(i) * tanh_slope(z),
                dh * quotient * sigmoid_slope(o),
            ]
        )
        scale = forget * np.exp(m)
        return dz, dz, (np.zeros(state[0].shape), d_total_c * scale, d_total_n * scale, d_log)

    return Cell(4, 4, step, pull)


def _lif(
    surrogate: Callable[[Array], Array],
    beta: float | None = None,
    threshold: float = 1.0,
    recurrent: bool = False,
) -> Cell:
    """v' = beta v + a - threshold [v > threshold], h' = [v' > threshold]."""

    def potential(a: Array, b: Array, state: State, units: Units) -> tuple[Array, Array]:
        leak = np.clip(units[0][0], 0.0, 1.0) if beta is None else np.full(a.shape, beta)
        current = a + b if recurrent else a
        return leak * state[1] + current - threshold * (state[1] > threshold), leak

    def step(a: Array, b: Array, state: State, *units: Array) -> State:
        v, _ = potential(a, b, state, units)
        return (v > threshold) * 1.0, v

    def pull(a: Array, b: Array, state: State, d_next: State, *units: Array) -> tuple[Any, ...]:
        v, leak = potential(a, b, state, units)
        dv = d_next[1] + d_next[0] * surrogate(v - threshold)
        db = dv if recurrent else np.zeros_like(b)
        dstate = np.zeros(state[0].shape), dv * leak
        if beta is not None:
            return dv, db, dstate
        within = (units[0][0] >= 0.0) & (units[0][0] <= 1.0)
        return dv, db, dstate, dv * state[1] * within

    return Cell(1, 2, step, pull, (("beta", 1),) if beta is None else ())


def _atan(x: Array) -> Array:
    return 1.0 / (1.0 + (np.pi * x) ** 2)


def _fast_sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + 5.0 * np.abs(x)) ** 2


@dataclass(frozen=True)
class DataCell:
    """A network over a cell that is data, and what it should compute."""

    reference: Cell
    make: Callable[..., Any]
    hidden_product: bool = True
    smooth: bool = True


def _made(network: Any, **options: Any) -> Callable[..., Any]:
    return lambda *sizes, **others: network(*sizes, **{**options, **others})


CELLS: dict[str, DataCell] = {
    "peephole": DataCell(_lstm(peephole=True), _made(fr.LSTM, peephole=True)),
    "coupled": DataCell(_lstm(coupled=True), _made(fr.LSTM, coupled_gates=True)),
    "clipped": DataCell(_lstm(clip=0.25), _made(fr.LSTM, cell_clip=0.25), smooth=False),
    "every_option": DataCell(
        _lstm(peephole=True, coupled=True, clip=2.0),
        _made(fr.LSTM, peephole=True, coupled_gates=True, cell_clip=2.0),
    ),
    "mgu": DataCell(Cell(2, 1, _mgu_step, _mgu_pull), fr.MGU),
    "indrnn_relu": DataCell(_indrnn(relu, relu_slope), fr.IndRNN, False, smooth=False),
    "indrnn_tanh": DataCell(_indrnn(np.tanh, tanh_slope), _made(fr.IndRNN, nonlinearity="tanh"), False),
    "min_gru": DataCell(Cell(2, 1, _min_gru_step, _min_gru_pull), fr.MinGRU, False),
    "min_lstm": DataCell(Cell(3, 1, _min_lstm_step, _min_lstm_pull), fr.MinLSTM, False),
    "sru": DataCell(Cell(4, 2, _sru_step, _sru_pull, (("v_f", 1), ("v_r", 1))), fr.SRU, False),
    "ligru": DataCell(
        Cell(2, 1, _li_gru_step, _li_gru_pull), _made(fr.LiGRU, batch_norm=False), smooth=False
    ),
    "slstm": DataCell(_slstm(exponential=False), fr.SLSTM),
    "lif": DataCell(_lif(_atan), fr.LIF, False, smooth=False),
    "lif_recurrent": DataCell(
        _lif(_fast_sigmoid, beta=0.75, threshold=0.5, recurrent=True),
        _made(
            fr.LIF,
            beta=0.75,
            learn_beta=False,
            threshold=0.5,
            surrogate="fast_sigmoid",
            slope=5,
            recurrent=True,
        ),
        smooth=False,
    ),
}
# Run by one test alone.
SLSTM_EXP = DataCell(_slstm(exponential=True), _made(fr.SLSTM, forget_gate="exp"))
reference.DATA.update({name: cell.reference for name, cell in CELLS.items()})
