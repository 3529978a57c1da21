"""Cells that are data, run by the compiled module alone, and slow float64 networks to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from support import Array

from fusedrnn import _core
from fusedrnn.symbolic import DefinedCell, define_cell, sym


def ind_rnn_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    """No matrix product of h: IndRNN (Li et al. 2018)."""
    return {"h": sym.relu(x.u + p.u * s.h)}


def min_gru_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    z = sym.sigmoid(x.z)
    return {"h": s.h + z * (x.n - s.h)}


def three_states_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    """The states exchange their places, some gates are read apart and some summed."""
    f = sym.sigmoid(x.f + h.f)
    m = f * s.m + (1 - f) * sym.tanh(x.u * h.u + s.c)
    return {"h": sym.tanh(m) * s.c + 0.5 * s.h, "c": s.m * p.a, "m": m + sym.sin(p.b * s.h)}


def memoryless_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    """Keeps nothing for backward, and h goes nowhere."""
    return {"h": x.a * 0.5}


def many_gates(count: int) -> DefinedCell:
    names = [f"g{i}" for i in range(count)]

    def step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
        total = s.h * 0.25
        for i, name in enumerate(names):
            a = getattr(x, name) + getattr(h, name)
            total = total + (sym.tanh(a) if i % 2 else sym.sigmoid(a)) * (0.5 - i / 16)
        return {"h": total}

    return define_cell(f"gates_{count}", names, "h", step)


def delay_line(count: int) -> DefinedCell:
    """h, which passes through the other states one after another; two parameters for each."""
    names = ["h", *(f"s{i}" for i in range(1, count))]
    weights = [f"{kind}{i}" for i in range(count) for kind in ("w", "b")]

    def step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
        after: dict[str, Any] = {"h": sym.tanh(x.u + h.u + getattr(s, names[-1]) * p.w0 + p.b0)}
        for i in range(1, count):
            passed = sym.tanh(getattr(s, names[i - 1])) * getattr(p, f"w{i}")
            after[names[i]] = passed + getattr(p, f"b{i}") * getattr(s, names[i])
        return after

    return define_cell(f"delay_{count}", "u", names, step, parameters=weights)


IND_RNN = define_cell("ind_rnn", "u", "h", ind_rnn_step, parameters="u")
MIN_GRU = define_cell("min_gru", "z n", "h", min_gru_step)
THREE = define_cell("three", "f u", "h c m", three_states_step, parameters="a b")
MEMORYLESS = define_cell("memoryless", "a", "h", memoryless_step)


def arguments(cell: DefinedCell) -> dict[str, Any]:
    """What `_core.define_program` takes after the key."""
    return dict(cell._native)


def register(cell: DefinedCell) -> tuple[str, dict[str, Any]]:
    """The key that the compiled module knows the cell by from now on, and its constants."""
    key = f"test:{cell.name}"
    return key, dict(_core.define_program(key, **arguments(cell)))


@dataclass
class Problem:
    """One layer and direction: parameters by name, arrays in the dtype of the kernels."""

    cell: DefinedCell
    x: Array
    params: dict[str, Array]
    state: tuple[Array, ...] | None
    dy: Array
    dstate: tuple[Array, ...]
    options: dict[str, Any]


def random_problem(
    cell: DefinedCell,
    shape: tuple[int, int, int, int],
    dtype: str,
    *,
    seed: int = 0,
    lengths: bool = False,
    resets: str = "",
    reverse: bool = False,
) -> Problem:
    """`resets`: "", "zero", "row" or "each": what takes the state's place."""
    seq_len, batch, inputs, hidden = shape
    rng = np.random.default_rng([seed, *shape])
    gates, bound = len(cell.gates), 1 / np.sqrt(max(hidden, 2))

    def draw(*sizes: int) -> Array:
        return rng.uniform(-1, 1, sizes).astype(dtype)

    params = {"weight_ih": draw(gates * hidden, inputs) * bound, "bias_ih": draw(gates * hidden)}
    if cell.hidden_product:
        params |= {"weight_hh": draw(gates * hidden, hidden) * bound, "bias_hh": draw(gates * hidden)}
    params |= {name: draw(hidden) for name in cell.parameters}
    params = {name: value.astype(dtype) for name, value in params.items()}
    options: dict[str, Any] = {"reverse": reverse}
    if lengths:
        options["lengths"] = rng.integers(0, seq_len + 1, batch)
    if resets:
        options["resets"] = rng.random((seq_len, batch)) < 0.3
    if resets in ("row", "each"):
        sizes = (hidden,) if resets == "row" else (batch, hidden)
        options["reset_state"] = tuple(draw(*sizes) for _ in cell.states)
    states = [tuple(draw(batch, hidden) for _ in cell.states) for _ in range(2)]
    x, dy = draw(seq_len, batch, inputs), draw(seq_len, batch, hidden)
    return Problem(cell, x, params, states[0], dy, states[1], options)


@dataclass
class Results:
    y: Array
    final: tuple[Array, ...]
    dx: Array
    dstate: tuple[Array, ...]
    dparams: dict[str, Array]

    def arrays(self) -> dict[str, Array]:
        named = {"y": self.y, "dx": self.dx}
        named |= {f"final {k}": value for k, value in enumerate(self.final)}
        named |= {f"dstate {k}": value for k, value in enumerate(self.dstate)}
        return named | {f"d{name}": value for name, value in self.dparams.items()}


def run(problem: Problem, **more: Any) -> Results:
    """By the kernels."""
    key, constants = register(problem.cell)
    names = [parameter[0] for parameter in constants["parameters"]]
    params = tuple(problem.params.get(name) for name in names)
    y, final, tape = _core.forward(
        key, problem.x, params, problem.state, save=True, **problem.options, **more
    )
    assert tape is not None
    dx, dstate, dparams = _core.backward(tape, problem.dy, problem.dstate)
    assert dx is not None
    grads = {name: value for name, value in zip(names, dparams, strict=True) if value is not None}
    return Results(y, final, dx, dstate, grads)


def infer(problem: Problem, **more: Any) -> tuple[Array, tuple[Array, ...]]:
    """By the kernels, without a tape."""
    key, constants = register(problem.cell)
    params = tuple(problem.params.get(parameter[0]) for parameter in constants["parameters"])
    y, final, tape = _core.forward(key, problem.x, params, problem.state, **problem.options, **more)
    assert tape is None
    return y, final


def reference(problem: Problem) -> Results:
    """In float64, step by step, by the equations of the cell as NumPy evaluates them."""
    cell, options = problem.cell, problem.options
    p = {name: value.astype(np.float64) for name, value in problem.params.items()}
    x, dy = problem.x.astype(np.float64), problem.dy.astype(np.float64)
    seq_len, batch = x.shape[:2]
    gates, hidden = len(cell.gates), dy.shape[2]
    recurrent = "weight_hh" in p
    lengths = options.get("lengths", np.full(batch, seq_len))
    resets = options.get("resets", np.zeros((seq_len, batch), bool))
    zero = tuple(np.zeros(hidden) for _ in cell.states)
    replacement = [np.float64(1) * value for value in options.get("reset_state", zero)]
    assert problem.state is not None
    state = [value.astype(np.float64) for value in problem.state]
    per_unit = {f"p.{name}": p[name] for name in cell.parameters}

    def split(values: Array, kind: str) -> dict[str, Array]:
        parts = values.reshape(batch, gates, hidden)
        return {f"{kind}.{gate}": parts[:, g] for g, gate in enumerate(cell.gates)}

    y = np.zeros((seq_len, batch, hidden))
    tape = []
    for t in range(seq_len - 1, -1, -1) if options["reverse"] else range(seq_len):
        alive = (t < lengths)[:, None]
        cut = resets[t] if not options["reverse"] else np.zeros(batch, bool)
        if options["reverse"] and t + 1 < seq_len:
            cut = resets[t + 1] & (t + 1 < lengths)
        cut = cut[:, None] & alive
        before = [np.where(cut, new, old) for new, old in zip(replacement, state, strict=True)]
        from_x = x[t] @ p["weight_ih"].T + p["bias_ih"]
        from_h = before[0] @ p["weight_hh"].T + p["bias_hh"] if recurrent else np.zeros_like(from_x)
        inputs = {f"s.{name}": value for name, value in zip(cell.states, before, strict=True)} | per_unit
        if cell.split_gates:
            inputs |= split(from_x, "x") | split(from_h, "h")
        else:
            inputs |= split(from_x + from_h, "a" if recurrent else "x")
        values = cell.forward.evaluate(inputs)
        after = [np.broadcast_to(values[f"next.{name}"], (batch, hidden)) for name in cell.states]
        state = [np.where(alive, new, old) for new, old in zip(after, state, strict=True)]
        y[t] = np.where(alive, after[0], 0)
        tape.append((t, alive, cut, before, inputs | values))
    final = tuple(state)

    d = [value.astype(np.float64) for value in problem.dstate]
    dx = np.zeros_like(x)
    grads = {name: np.zeros_like(value) for name, value in p.items()}
    kinds = ("dx", "dh") if cell.split_gates else ("da", "da") if recurrent else ("dx", "dx")
    for t, alive, cut, before, values in reversed(tape):
        reaching = [d[0] + dy[t], *d[1:]]
        inputs = values | {f"dnext.{name}": value for name, value in zip(cell.states, reaching, strict=True)}
        found = cell.backward.evaluate(inputs)

        def of(name: str, found: dict[str, Any] = found, alive: Array = alive) -> Array:
            return np.where(alive, np.broadcast_to(found.get(name, 0.0), (batch, hidden)), 0)

        da, db = (np.concatenate([of(f"{k}.{gate}") for gate in cell.gates], axis=1) for k in kinds)
        dx[t] = da @ p["weight_ih"]
        grads["weight_ih"] += da.T @ x[t]
        grads["bias_ih"] += da.sum(axis=0)
        through = 0.0
        if recurrent:
            grads["weight_hh"] += db.T @ before[0]
            grads["bias_hh"] += db.sum(axis=0)
            through = db @ p["weight_hh"]
        for name in cell.parameters:
            grads[name] += of(f"dp.{name}").sum(axis=0)
        onto = [of(f"ds.{name}") for name in cell.states]
        onto[0] = onto[0] + through
        onto = [np.where(cut, 0, value) for value in onto]
        d = [np.where(alive, new, old) for new, old in zip(onto, d, strict=True)]
    return Results(y, final, dx, tuple(d), grads)
