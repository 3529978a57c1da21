"""Cells written over symbols, for the tests of what is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn.symbolic import define_cell, sym

N = 64
Values = dict[str, Any]


def lstm_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    i, f, o = (sym.sigmoid(getattr(x, g) + getattr(h, g)) for g in "ifo")
    c = f * s.c + i * sym.tanh(x.g + h.g)
    return {"h": o * sym.tanh(c), "c": c}


def gru_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    r, z = sym.sigmoid(x.r + h.r), sym.sigmoid(x.z + h.z)
    n = sym.tanh(x.n + r * h.n)
    return {"h": (1 - z) * n + z * s.h}


def peephole_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    i = sym.sigmoid(x.i + p.i * s.c + h.i)
    f = sym.sigmoid(h.f + p.f * s.c + x.f)
    c = f * s.c + i * sym.tanh(x.g + h.g)
    return {"h": sym.sigmoid(x.o + h.o + p.o * c) * sym.tanh(c), "c": c}


def spiking_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    """Leaky integrate-and-fire: the spikes are the hidden state, the membrane is reset by them."""
    leak = sym.clip(p.leak, 0, 1)
    v = leak * s.v + x.u + h.u - s.spike * p.threshold
    return {"v": v, "spike": sym.heaviside(v - p.threshold)}


LSTM = define_cell("lstm", "i f g o", "h c", lstm_step)
GRU = define_cell("gru", "r z n", "h", gru_step)
PEEPHOLE = define_cell("peephole_lstm", "i f g o", "h c", peephole_step, parameters="i f o")
SPIKING = define_cell("lif", "u", "v spike", spiking_step, parameters="leak threshold", hidden="spike")
RNN_TANH = define_cell("rnn_tanh", "h", "h", lambda x, h, s, p: {"h": sym.tanh(x.h + h.h)})
RNN_RELU = define_cell("rnn_relu", "h", "h", lambda x, h, s, p: {"h": sym.relu(x.h + h.h)})
SHUFFLE = define_cell(
    "shuffle",
    "a",
    "h c m",
    lambda x, h, s, p: {"h": s.c, "c": s.h, "m": x.a + h.a + s.m * s.c * s.h + s.c},
)

CELLS = {cell.name: cell for cell in (LSTM, GRU, PEEPHOLE, SPIKING, RNN_TANH, RNN_RELU)}


def random_inputs(names: tuple[str, ...], seed: int = 0) -> Values:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(N) for name in names}
