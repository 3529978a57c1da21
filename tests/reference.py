"""Slow, obvious float64 recurrent networks that everything else is tested against.

One row and one time step at a time. The equations are written differently from the kernels on purpose:
sigmoid goes through tanh, and every derivative is taken from the pre-activations (1/cosh**2), never from
saved activations. test_reference.py checks the gradients here by central differences.

Shapes: x (T, B, I), y (T, B, P), h (B, P), c (B, H); P is the projection size, or H without a projection.
Parameters of one direction: weight_ih (G*H, I), weight_hh (G*H, P), bias_ih, bias_hh, weight_hr (P, H), then
what the cell has for each unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Params = tuple[Any, ...]
State = tuple[Array, ...]

PARAM_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def sigmoid(z: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * z)


def tanh_slope(z: Array) -> Array:
    return 1.0 / np.cosh(np.clip(z, -300.0, 300.0)) ** 2


def sigmoid_slope(z: Array) -> Array:
    return 0.25 * tanh_slope(0.5 * z)


def relu(z: Array) -> Array:
    return np.maximum(z, 0.0)


def relu_slope(z: Array) -> Array:
    return np.where(z > 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Cell:
    """One step of one row. `a` and `b` (G*H,) are the shares of input and state in the pre-activations.

    `per_unit` names the parameters that step and pull get besides, and how many values of each unit they are:
    (values, H) each. pull then ends with their gradients.
    """

    gates: int
    states: int
    step: Callable[..., State]
    pull: Callable[..., tuple[Any, ...]]
    per_unit: tuple[tuple[str, int], ...] = ()

    @property
    def param_names(self) -> tuple[str, ...]:
        return (*PARAM_NAMES, *(name for name, _ in self.per_unit))

    def widths(self, hidden: int, proj: int = 0) -> tuple[int, ...]:
        return (proj or hidden, *[hidden] * (self.states - 1))


def _simple_cell(f: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Cell:
    """h' = f(a + b)."""

    def step(a: Array, b: Array, state: State) -> State:
        return (f(a + b),)

    def pull(a: Array, b: Array, state: State, d_next: State) -> tuple[Array, Array, State]:
        dz = d_next[0] * slope(a + b)
        return dz, dz, (np.zeros_like(state[0]),)

    return Cell(1, 1, step, pull)


def _lstm_step(a: Array, b: Array, state: State) -> State:
    """c' = s(f) c + s(i) tanh(g), h' = s(o) tanh(c')."""
    i, f, g, o = np.split(a + b, 4)
    c_next = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c_next), c_next


def _lstm_pull(a: Array, b: Array, state: State, d_next: State) -> tuple[Array, Array, State]:
    i, f, g, o = np.split(a + b, 4)
    dh_next, dc_next = d_next
    c = state[1]
    c_next = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    dc_total = dc_next + dh_next * sigmoid(o) * tanh_slope(c_next)
    dz = np.concatenate(
        [
            dc_total * np.tanh(g) * sigmoid_slope(i),
            dc_total * c * sigmoid_slope(f),
            dc_total * sigmoid(i) * tanh_slope(g),
            dh_next * np.tanh(c_next) * sigmoid_slope(o),
        ]
    )
    return dz, dz, (np.zeros(state[0].shape), dc_total * sigmoid(f))


def _gru_step(a: Array, b: Array, state: State) -> State:
    """h' = n + s(z) (h - n), n = tanh(a_n + s(r) b_n): the reset gate acts after the matrix product."""
    ar, az, an = np.split(a, 3)
    br, bz, bn = np.split(b, 3)
    n = np.tanh(an + sigmoid(ar + br) * bn)
    return (n + sigmoid(az + bz) * (state[0] - n),)


def _gru_pull(a: Array, b: Array, state: State, d_next: State) -> tuple[Array, Array, State]:
    ar, az, an = np.split(a, 3)
    br, bz, bn = np.split(b, 3)
    r, z = sigmoid(ar + br), sigmoid(az + bz)
    u = an + r * bn
    du = d_next[0] * sigmoid(-(az + bz)) * tanh_slope(u)
    dr = du * bn * sigmoid_slope(ar + br)
    dz = d_next[0] * (state[0] - np.tanh(u)) * sigmoid_slope(az + bz)
    return np.concatenate([dr, dz, du]), np.concatenate([dr, dz, du * r]), (d_next[0] * z,)


CELLS: dict[str, Cell] = {
    "lstm": Cell(4, 2, _lstm_step, _lstm_pull),
    "gru": Cell(3, 1, _gru_step, _gru_pull),
    "rnn_tanh": _simple_cell(np.tanh, tanh_slope),
    "rnn_relu": _simple_cell(relu, relu_slope),
}
# Those of data_cells.py.
DATA: dict[str, Cell] = {}


def cell_of(name: str) -> Cell:
    return CELLS[name] if name in CELLS else DATA[name]


@dataclass
class Step:
    """What one step of one row read and computed."""

    t: int
    state: State
    was_reset: bool
    a: Array
    b: Array
    raw_h: Array
    after: State


@dataclass
class Tape:
    cell: str
    x: Array
    params: Params
    rows: list[list[Step]]


def _float64(arrays: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(None if a is None else np.asarray(a, dtype=np.float64) for a in arrays)


def _row_of(reset_state: Any, index: int, row: int, width: int) -> Array:
    """The state that row `row` gets at a reset: zero, or `reset_state` of shape (width,) or (B, width)."""
    if reset_state is None or reset_state[index] is None:
        return np.zeros(width)
    value = np.asarray(reset_state[index], dtype=np.float64)
    return value[row] if value.ndim == 2 else value


def _reads_reset(resets: Any, row: int, t: int, length: int, reverse: bool) -> bool:
    """Whether step t starts a segment, in the direction of travel.

    A true resets[t] is a border between t-1 and t. Backwards, the row's last valid step always reads the
    initial state.
    """
    if resets is None:
        return False
    if not reverse:
        return bool(resets[t, row])
    return t + 1 < length and bool(resets[t + 1, row])


def forward(
    cell: str,
    x: Any,
    params: Params,
    state: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    reset_state: Any = None,
    reverse: bool = False,
) -> tuple[Array, State, Tape]:
    """One layer, one direction: outputs, the state after each row's last step, the record for backward."""
    x = np.asarray(x, dtype=np.float64)
    params = _float64(params)
    w, u, bias_ih, bias_hh, projection, *units = params
    seq_len, batch = x.shape[:2]
    spec = cell_of(cell)
    hidden = w.shape[0] // spec.gates
    widths = spec.widths(hidden, u.shape[1])
    units = [values.reshape(-1, hidden) for values in units]
    y = np.zeros((seq_len, batch, widths[0]))
    final = tuple(np.zeros((batch, width)) for width in widths)
    rows = []
    for row in range(batch):
        length = seq_len if lengths is None else int(lengths[row])
        given = (None,) * spec.states if state is None else state
        now: State = tuple(
            np.zeros(width) if s is None else np.asarray(s, dtype=np.float64)[row]
            for s, width in zip(given, widths, strict=True)
        )
        steps = []
        for t in range(length - 1, -1, -1) if reverse else range(length):
            was_reset = _reads_reset(resets, row, t, length, reverse)
            if was_reset:
                now = tuple(_row_of(reset_state, k, row, width) for k, width in enumerate(widths))
            a = w @ x[t, row] + (0.0 if bias_ih is None else bias_ih)
            b = u @ now[0] + (0.0 if bias_hh is None else bias_hh)
            after = spec.step(a, b, now, *units)
            h = after[0] if projection is None else projection @ after[0]
            steps.append(Step(t, now, was_reset, a, b, after[0], (h, *after[1:])))
            now = steps[-1].after
            y[t, row] = h
        for k, value in enumerate(now):
            final[k][row] = value
        rows.append(steps)
    return y, final, Tape(cell, x, params, rows)


def backward(
    tape: Tape, dy: Any = None, dstate: Any = None, beyond: Sequence[Any] = ()
) -> tuple[Array, State, Params]:
    """dx, the gradient of the initial state, and those of the parameters (None where there is none).

    `beyond` are gradients (T, B, H) of the states beyond h after each step.
    """
    spec = cell_of(tape.cell)
    w, u, _, _, projection, *units = tape.params
    hidden = w.shape[0] // spec.gates
    units = [values.reshape(-1, hidden) for values in units]
    seq_len, batch = tape.x.shape[:2]
    widths = spec.widths(hidden, u.shape[1])
    dy = np.zeros((seq_len, batch, widths[0])) if dy is None else np.asarray(dy, dtype=np.float64)
    given = (None,) * spec.states if dstate is None else dstate
    dx = np.zeros_like(tape.x)
    dstate0 = tuple(np.zeros((batch, width)) for width in widths)
    grads = tuple(None if p is None else np.zeros_like(p) for p in tape.params)
    dw, du, dbias_ih, dbias_hh, dprojection, *dunits = grads
    for row in range(batch):
        d: State = tuple(
            np.zeros(width) if s is None else np.asarray(s, dtype=np.float64)[row]
            for s, width in zip(given, widths, strict=True)
        )
        for step in reversed(tape.rows[row]):
            dh = d[0] + dy[step.t, row]
            d = (
                (d[0], *(part + more[step.t, row] for part, more in zip(d[1:], beyond, strict=True)))
                if beyond
                else d
            )
            if projection is not None:
                dprojection += np.outer(dh, step.raw_h)
                dh = dh @ projection
            da, db, pointwise, *parts = spec.pull(step.a, step.b, step.state, (dh, *d[1:]), *units)
            for total, part in zip(dunits, parts, strict=True):
                total += part.reshape(-1)
            dw += np.outer(da, tape.x[step.t, row])
            du += np.outer(db, step.state[0])
            if dbias_ih is not None:
                dbias_ih += da
            if dbias_hh is not None:
                dbias_hh += db
            dx[step.t, row] = da @ w
            d = (pointwise[0] + db @ u, *pointwise[1:])
            if step.was_reset:
                d = tuple(np.zeros_like(part) for part in d)
        for k, part in enumerate(d):
            dstate0[k][row] = part
    return dx, dstate0, grads


def stack_forward(
    cell: str,
    x: Any,
    layers: Sequence[Sequence[Params]],
    state: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    reset_state: Any = None,
) -> tuple[Array, State, list[list[Tape]]]:
    """layers[k]: one parameter tuple a direction; states are stacked (num_layers*D, B, .) as in torch.nn.

    reset_state, where given, is shaped as the state.
    """
    directions = len(layers[0])
    finals: list[State] = []
    tapes: list[list[Tape]] = []
    for k, layer in enumerate(layers):
        ys = []
        tapes.append([])
        for d, params in enumerate(layer):
            at = k * directions + d
            y, final, tape = forward(
                cell,
                x,
                params,
                None if state is None else tuple(s[at] for s in state),
                lengths=lengths,
                resets=resets,
                reset_state=None if reset_state is None else tuple(s[at] for s in reset_state),
                reverse=d == 1,
            )
            ys.append(y)
            finals.append(final)
            tapes[-1].append(tape)
        x = np.concatenate(ys, axis=2)
    return x, tuple(np.stack(parts) for parts in zip(*finals, strict=True)), tapes


def stack_backward(
    tapes: Sequence[Sequence[Tape]], dy: Any, dstate: Any = None
) -> tuple[Array, State, list[list[Params]]]:
    """dx, the initial states' gradients stacked as the states are, the parameters' by layer and direction."""
    directions = len(tapes[0])
    dstates: list[State] = [()] * (len(tapes) * directions)
    dparams: list[list[Params]] = [[] for _ in tapes]
    for k in range(len(tapes) - 1, -1, -1):
        dx = np.zeros_like(tapes[k][0].x)
        for d, (tape, part) in enumerate(zip(tapes[k], np.split(dy, directions, axis=2), strict=True)):
            at = k * directions + d
            dlast = None if dstate is None else tuple(s[at] for s in dstate)
            dx_part, dstates[at], grads = backward(tape, part, dlast)
            dx += dx_part
            dparams[k].append(grads)
        dy = dx
    return dy, tuple(np.stack(parts) for parts in zip(*dstates, strict=True)), dparams
