"""define_cell: a cell from a function over symbols."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from fusedrnn.checks import check_flag
from fusedrnn.symbolic.cell import DefinedCell
from fusedrnn.symbolic.declared import check_declared, check_initial
from fusedrnn.symbolic.graph import Expression, Graph

Names: TypeAlias = "str | Iterable[str] | Mapping[str, Any]"
Step = Callable[[Any, Any, Any, Any], Mapping[str, Expression | float]]


class Symbols:
    """The symbols of one kind that a step is called with, as attributes: `x.i`, `s.c`."""

    def __init__(
        self,
        graph: Graph,
        prefix: str,
        kind: str,
        names: Sequence[str],
        of_gates: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self._prefix, self._kind, self._names = prefix, kind, tuple(names)
        for name in names:
            each = f"{prefix}.{name}"
            gates = of_gates.get(name)
            self.__dict__[name] = graph.input(each) if gates is None else Symbols(graph, each, "gates", gates)

    def __getattr__(self, name: str) -> Expression:
        prefix, kind, names = (self.__dict__.get(k) for k in ("_prefix", "_kind", "_names"))
        if names is None or name.startswith("__"):
            raise AttributeError(name)
        some = f"one of the {kind} {', '.join(names)}" if names else f"no {kind}, since none are declared"
        raise AttributeError(f"{prefix}.{name}: expected {some}, got {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            self.__dict__[name] = value
            return
        raise AttributeError(f"{self._prefix}.{name}: cannot be set; return new states from step")


def define_cell(
    name: str,
    gates: Names,
    states: str | Iterable[str],
    step: Step,
    *,
    parameters: Names = (),
    hidden: str | None = None,
    gate_parameters: Names = (),
    bias: bool = True,
) -> DefinedCell:
    """Return a cell whose step is written as a function of symbols; its gradients are derived.

    `step(x, h, s, p)` is called once. `x.g` is W_ih x + b_ih and `h.g` is W_hh h + b_hh of each gate g, `s.n`
    each state before the step, `p.n` each per-unit parameter. It returns {state: its value after the step},
    made of symbols, numbers and the functions of `fusedrnn.sym`. Sums are taken with x.g + h.g first,
    and (1 - z)*a + z*b as a + z*(b - a).

    Args:
        name: what the cell is called.
        gates: names, as a list or one string with spaces, or {name: initial bias}.
        states: names; "h c".
        step: the equations.
        parameters: names of the parameters that every unit has of its own, or {name: initial value}. An
            initial value is a number, 0 where none is given, or (low, high) to draw from uniformly.
        hidden: the state that the matrix product and the output see; by default that called h, or the first.
        gate_parameters: names of more of them that every gate has one of, (G*H,): `p.name.g`; or {name:
            initial value}, or {name: {gate: initial value}}.
        bias: False leaves bias_ih and bias_hh out: x.g is W_ih x and h.g is W_hh h.

    Raises:
        TypeError: the step is not pointwise, branches on a symbol, or returns no mapping.
        ValueError: a name is no identifier or stands twice, a state is not returned, a gate or parameter not
        used. AttributeError: the step asks for a symbol that was not declared.
    """
    names = {
        "gates": _names("gates", gates),
        "states": _names("states", states),
        "parameters": _names("parameters", parameters) + _names("gate_parameters", gate_parameters),
    }
    of_gates = names["parameters"][len(_names("parameters", parameters)) :]
    bias = check_flag("bias", bias)
    check_declared(name, **names, gate_parameters=of_gates, bias=bias)
    initial = {
        f"{kind}.{each}": check_initial(f"{kind_name}[{each!r}]", value)
        for kind, kind_name, given in (("x", "gates", gates), ("p", "parameters", parameters))
        if isinstance(given, Mapping)
        for each, value in given.items()
    }
    if isinstance(gate_parameters, Mapping):
        for each, value in gate_parameters.items():
            for gate in names["gates"]:
                own = value.get(gate, 0.0) if isinstance(value, Mapping) else value
                initial[f"p.{each}.{gate}"] = check_initial(f"gate_parameters[{each!r}]", own)
    states_ = list(names["states"])
    if hidden is not None and hidden not in states_:
        raise ValueError(f"hidden: expected one of the states {', '.join(states_)}, got {hidden!r}")
    hidden = hidden or ("h" if "h" in states_ else states_[0])
    states_.remove(hidden)
    states_.insert(0, hidden)
    graph = Graph()
    returned = step(
        Symbols(graph, "x", "gates", names["gates"]),
        Symbols(graph, "h", "gates", names["gates"]),
        Symbols(graph, "s", "states", states_),
        Symbols(graph, "p", "parameters", names["parameters"], dict.fromkeys(of_gates, names["gates"])),
    )
    if not isinstance(returned, Mapping):
        raise TypeError(f"step: expected it to return {{state: value}}, got {type(returned).__name__}")
    missing = [state for state in states_ if state not in returned]
    unknown = [state for state in returned if state not in states_]
    if missing or unknown:
        raise ValueError(
            f"step: expected it to return the states {', '.join(states_)}, got "
            + (
                f"none for {', '.join(missing)}"
                if missing
                else f"{', '.join(map(repr, unknown))} beside them"
            )
        )
    after = {state: _value(graph, f"step: {state}", returned[state]) for state in states_}
    return DefinedCell(
        name, names["gates"], states_, names["parameters"], graph, after, initial, bias, of_gates
    )


def _value(graph: Graph, name: str, value: Any) -> Expression:
    if isinstance(value, Expression):
        if value.graph is not graph:
            raise ValueError(f"{name}: expected an expression of this step, got {value!r} of another cell's")
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")
        return graph.constant(value)
    raise TypeError(f"{name}: expected an expression or a number, got {type(value).__name__}")


def _names(kind: str, names: Names) -> tuple[str, ...]:
    if isinstance(names, str):
        return tuple(names.split())
    if not isinstance(names, Iterable):
        raise TypeError(f"{kind}: expected names, got {type(names).__name__}")
    return tuple(names)
