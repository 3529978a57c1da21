"""Cells of the literature as data. Each function returns the same cell for the same arguments."""

from functools import lru_cache
from typing import Any

from fusedrnn.symbolic import sym
from fusedrnn.symbolic.cell import DefinedCell
from fusedrnn.symbolic.define import define_cell

After = dict[str, sym.Expression]


@lru_cache
def lstm(peephole: bool, coupled_gates: bool, cell_clip: float | None) -> DefinedCell:
    """An LSTM with peepholes, with i = 1 - f, with c cut to [-cell_clip, cell_clip]."""

    def gate(name: str, x: Any, h: Any, p: Any, c: Any) -> sym.Expression:
        total = getattr(x, name) + getattr(h, name)
        return sym.sigmoid(total + getattr(p, f"peephole_{name}") * c if peephole else total)

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        f = gate("f", x, h, p, s.c)
        i = 1 - f if coupled_gates else gate("i", x, h, p, s.c)
        c = f * s.c + i * sym.tanh(x.g + h.g)
        if cell_clip is not None:
            c = sym.clip(c, -cell_clip, cell_clip)
        return {"h": gate("o", x, h, p, c) * sym.tanh(c), "c": c}

    gates = {"i": 0.0, "f": 1.0, "g": 0.0, "o": 0.0}
    if coupled_gates:
        del gates["i"]
    name = "lstm" + "_peephole" * peephole + "_coupled" * coupled_gates + "_clip" * (cell_clip is not None)
    parameters = [f"peephole_{each}" for each in gates if each != "g"] if peephole else []
    return define_cell(name, gates, "h c", step, parameters=parameters)


def _layer_norm_gates(x: Any, h: Any, p: Any, gates: str, bias: bool) -> tuple[list[Any], list[Any]]:
    """The parts of x, with bias_ih, and of h of each gate, each part normalised over all gates together."""
    parts = []
    for part, gain in ((x, p.gain_ih), (h, p.gain_hh)):
        one, *more = (getattr(part, gate) for gate in gates)
        values = sym.layer_norm(one, *more) if more else (sym.layer_norm(one),)
        parts.append([getattr(gain, gate) * value for gate, value in zip(gates, values, strict=True)])
    if bias:
        parts[0] = [getattr(p.bias_ih, gate) + value for gate, value in zip(gates, parts[0], strict=True)]
    return parts[0], parts[1]


def _layer_norm_parameters(bias: bool, forget: bool = False) -> dict[str, Any]:
    gains: dict[str, Any] = {"gain_ih": 1.0, "gain_hh": 1.0}
    return gains | ({"bias_ih": {"f": 1.0} if forget else 0.0} if bias else {})


@lru_cache
def layer_norm_rnn(nonlinearity: str, bias: bool) -> DefinedCell:
    """An Elman network whose products are normalised."""
    activation = sym.relu if nonlinearity == "relu" else sym.tanh

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        (from_x,), (from_h,) = _layer_norm_gates(x, h, p, "h", bias)
        return {"h": activation(from_x + from_h)}

    return define_cell(
        f"rnn_{nonlinearity}_layer_norm",
        "h",
        "h",
        step,
        gate_parameters=_layer_norm_parameters(bias),
        bias=False,
    )


@lru_cache
def layer_norm_lstm(bias: bool) -> DefinedCell:
    """An LSTM whose products and c are normalised."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        i, f, g, o = (a + b for a, b in zip(*_layer_norm_gates(x, h, p, "ifgo", bias), strict=True))
        c = sym.sigmoid(f) * s.c + sym.sigmoid(i) * sym.tanh(g)
        scaled = p.gain_c * sym.layer_norm(c)
        return {"h": sym.sigmoid(o) * sym.tanh(scaled + p.bias_c if bias else scaled), "c": c}

    parameters = {"gain_c": 1.0} | ({"bias_c": 0.0} if bias else {})
    gate_parameters = _layer_norm_parameters(bias, forget=True)
    return define_cell(
        "lstm_layer_norm",
        "i f g o",
        "h c",
        step,
        parameters=parameters,
        gate_parameters=gate_parameters,
        bias=False,
    )


@lru_cache
def layer_norm_gru(bias: bool) -> DefinedCell:
    """A GRU whose products are normalised, with the reset gate after that of h."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = _layer_norm_gates(x, h, p, "rzn", bias)
        r, z = sym.sigmoid(x_r + h_r), sym.sigmoid(x_z + h_z)
        n = sym.tanh(x_n + r * (h_n + p.bias_hn if bias else h_n))
        return {"h": (1 - z) * n + z * s.h}

    gate_parameters = _layer_norm_parameters(bias)
    return define_cell(
        "gru_layer_norm",
        "r z n",
        "h",
        step,
        parameters="bias_hn" if bias else (),
        gate_parameters=gate_parameters,
        bias=False,
    )


@lru_cache
def rnn(nonlinearity: str) -> DefinedCell:
    """An Elman network."""
    activation = sym.relu if nonlinearity == "relu" else sym.tanh

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        return {"h": activation(x.h + h.h)}

    return define_cell(f"rnn_{nonlinearity}", "h", "h", step)


@lru_cache
def gru() -> DefinedCell:
    """A GRU with the reset gate after the product."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        r, z = sym.sigmoid(x.r + h.r), sym.sigmoid(x.z + h.z)
        n = sym.tanh(x.n + r * h.n)
        return {"h": n + z * (s.h - n)}

    return define_cell("gru", "r z n", "h", step)


def compiled(name: str) -> DefinedCell:
    """A compiled cell as data."""
    if name == "lstm":
        return lstm(peephole=False, coupled_gates=False, cell_clip=None)
    return gru() if name == "gru" else rnn(name.removeprefix("rnn_"))


@lru_cache
def gru_reset_before() -> DefinedCell:
    """A GRU whose reset gate acts on h before the product of the candidate."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        r, z = sym.sigmoid(x.r + h.r), sym.sigmoid(x.z + h.z)
        n = sym.tanh(x.n + sym.product(h.n, r * s.h))
        return {"h": (1 - z) * n + z * s.h}

    return define_cell("gru_reset_before", "r z n", "h", step)


@lru_cache
def mgu() -> DefinedCell:
    """Minimal gated unit."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        f = sym.sigmoid(x.f + h.f)
        return {"h": (1 - f) * s.h + f * sym.tanh(x.n + f * h.n)}

    return define_cell("mgu", "f n", "h", step)


@lru_cache
def indrnn(nonlinearity: str) -> DefinedCell:
    """Independently recurrent network."""
    activation = sym.relu if nonlinearity == "relu" else sym.tanh

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        return {"h": activation(x.h + p.u * s.h)}

    return define_cell(f"indrnn_{nonlinearity}", "h", "h", step, parameters={"u": (0.0, 1.0)})


@lru_cache
def min_gru() -> DefinedCell:
    """A GRU whose gates do not see h."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        z = sym.sigmoid(x.z)
        return {"h": (1 - z) * s.h + z * x.n}

    return define_cell("mingru", "z n", "h", step)


@lru_cache
def min_lstm() -> DefinedCell:
    """An LSTM whose gates do not see h, add up to 1, and need no c."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        # sigmoid(x.f) / (sigmoid(x.f) + sigmoid(x.i)), of which both may underflow.
        f = sym.sigmoid(sym.softplus(-x.i) - sym.softplus(-x.f))
        return {"h": f * s.h + (1 - f) * x.n}

    return define_cell("minlstm", {"f": 1.0, "i": 0.0, "n": 0.0}, "h", step)


@lru_cache
def sru() -> DefinedCell:
    """Simple recurrent unit."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        f = sym.sigmoid(x.f + p.v_f * s.c)
        r = sym.sigmoid(x.r + p.v_r * s.c)
        c = f * s.c + (1 - f) * x.n
        return {"h": r * c + (1 - r) * x.k, "c": c}

    return define_cell("sru", "n f r k", "h c", step, parameters="v_f v_r")


@lru_cache
def li_gru() -> DefinedCell:
    """A GRU without a reset gate, whose candidate is rectified."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        z = sym.sigmoid(x.z + h.z)
        return {"h": z * s.h + (1 - z) * sym.relu(x.n + h.n)}

    return define_cell("ligru", "z n", "h", step)


@lru_cache
def slstm(forget_gate: str) -> DefinedCell:
    """An LSTM with exponential gates, which m keeps within range, and n that c is divided by."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        i, f, z, o = (getattr(x, gate) + getattr(h, gate) for gate in "ifzo")
        # With n = 0 there is nothing to remember, and m is i alone.
        past = (f if forget_gate == "exp" else -sym.softplus(-f)) + sym.where(s.n > 0, s.m, -1e30)
        m = sym.maximum(past, i)
        keep, write = sym.exp(past - m), sym.exp(i - m)
        c, n = keep * s.c + write * sym.tanh(z), keep * s.n + write
        return {"h": sym.sigmoid(o) * (c / n), "c": c, "n": n, "m": m}

    gates = {"i": 0.0, "f": 1.0, "z": 0.0, "o": 0.0}
    return define_cell(f"slstm_{forget_gate}", gates, "h c n m", step)


@lru_cache
def lif(
    beta: float, learn_beta: bool, threshold: float, surrogate: str, slope: float | None, recurrent: bool
) -> DefinedCell:
    """Leaky integrate-and-fire neurons: h are the spikes, v the membrane potentials."""

    def step(x: Any, h: Any, s: Any, p: Any) -> After:
        leak = sym.clip(p.beta, 0, 1) if learn_beta else beta
        current = x.u + h.u if recurrent else x.u
        # No gradient passes through the reset: a comparison has none.
        v = leak * s.v + current - sym.where(s.v > threshold, threshold, 0)
        return {"h": sym.heaviside(v - threshold, surrogate, slope), "v": v}

    return define_cell("lif", "u", "h v", step, parameters={"beta": beta} if learn_beta else ())
