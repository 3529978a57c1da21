"""A cell that is data: its equations as expressions, its gradients derived from them, both as programs."""

import keyword
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from fusedrnn.symbolic.gradient import gradients
from fusedrnn.symbolic.graph import Expression, Graph, cone, is_gate, is_gate_sum
from fusedrnn.symbolic.program import Program, choose_saved, lower
from fusedrnn.symbolic.text import equations

# Gates, states and parameters together.
MOST_SYMBOLS = 64

Step = Callable[[Any, Any, Any, Any], Mapping[str, Expression | float]]


class Symbols:
    """The symbols of one kind that a step is called with, as attributes: `x.i`, `s.c`."""

    def __init__(self, graph: Graph, prefix: str, kind: str, names: Sequence[str]) -> None:
        self._prefix, self._kind, self._names = prefix, kind, tuple(names)
        for name in names:
            self.__dict__[name] = graph.input(f"{prefix}.{name}")

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


class DefinedCell:
    """The equations of one step of a recurrent cell, and everything derived from them.

    Made by `define_cell` or `cell_from_json`. Immutable.

    Attributes:
        name: what messages call it.
        gates: names of the gates; weight_ih is (len(gates)*H, I).
        states: names of the states, first the hidden state, which the matrix product and the output see.
        parameters: names of the per-unit parameters, each (H,).
        split_gates: False where the step sees only the sums x.g + h.g.
        direct_hidden: whether the hidden state enters the step outside of the matrix product.
        next_states: {state: its expression after the step}.
        gradients: {symbol: its gradient}, from the gradients `dnext.*` of the states after the step.
        kept: the values that forward keeps for backward.
    """

    def __init__(
        self,
        name: str,
        gates: Sequence[str],
        states: Sequence[str],
        parameters: Sequence[str],
        graph: Graph,
        next_states: Mapping[str, Expression],
    ) -> None:
        self.name, self.gates = name, tuple(gates)
        self.states, self.parameters = tuple(states), tuple(parameters)
        self._graph = graph
        nodes = cone(next_states.values())
        _check_used(nodes, self)
        self.split_gates = not _only_sums(nodes)
        roots = [next_states[state] for state in self.states]
        if not self.split_gates:
            sums = {
                node.id: graph.input(f"a.{node.arguments[0].name[2:]}") for node in nodes if is_gate_sum(node)
            }
            roots = graph.substitute(roots, sums)
        self.next_states = dict(zip(self.states, roots, strict=True))
        self.direct_hidden = any(node.name == f"s.{self.states[0]}" for node in cone(roots))
        self.gradients = self._differentiate(roots)
        self.kept = self._choose_kept(roots)

    @property
    def _gate_symbols(self) -> list[str]:
        kinds = ("x", "h") if self.split_gates else ("a",)
        return [f"{kind}.{gate}" for kind in kinds for gate in self.gates]

    @property
    def _carried_symbols(self) -> list[str]:
        return [f"s.{state}" for state in self.states] + [f"p.{name}" for name in self.parameters]

    def _differentiate(self, roots: list[Expression]) -> dict[str, Expression]:
        graph = self._graph
        wanted = self._gate_symbols + self._carried_symbols
        if not self.direct_hidden:
            wanted.remove(f"s.{self.states[0]}")
        reaching = [graph.input(f"dnext.{state}") for state in self.states]
        found = gradients(zip(roots, reaching, strict=True), [graph.input(name) for name in wanted])
        return {
            f"d{name}": graph.constant(0.0) if gradient is None else gradient
            for name, gradient in zip(wanted, found, strict=True)
        }

    def _choose_kept(self, roots: list[Expression]) -> tuple[Expression, ...]:
        forward = {node.id for node in cone(roots)}
        from_outside: set[int] = set()
        needed: dict[int, Expression] = {}
        for node in cone(self.gradients.values()):
            if node.name.startswith("dnext.") or any(a.id in from_outside for a in node.arguments):
                from_outside.add(node.id)
                needed.update({a.id: a for a in node.arguments if a.id not in from_outside})
        needed.update({n.id: n for n in self.gradients.values() if n.id not in from_outside})
        return tuple(choose_saved(list(needed.values()), forward, self._carried_symbols))

    @cached_property
    def forward(self) -> Program:
        """From gates, states and parameters to `next.*` and, for backward, `saved.*`."""
        saved = {f"saved.{i}": node for i, node in enumerate(self.kept)}
        return self._forward(saved)

    @cached_property
    def inference(self) -> Program:
        """`forward` without what it keeps."""
        return self._forward({})

    def _forward(self, saved: Mapping[str, Expression]) -> Program:
        after = {f"next.{state}": node for state, node in self.next_states.items()}
        before = [f"s.{state}" for state in self.states]
        inputs = self._gate_symbols + self._carried_symbols
        return lower(self._graph, {**after, **saved}, inputs, late=after, read_before=before)

    @cached_property
    def backward(self) -> Program:
        """From `saved.*`, states, parameters and `dnext.*` to the gradients of `forward`'s inputs."""
        graph = self._graph
        saved = {node.id: graph.input(f"saved.{i}") for i, node in enumerate(self.kept)}
        roots = dict(zip(self.gradients, graph.substitute(self.gradients.values(), saved), strict=True))
        reaching = [f"dnext.{state}" for state in self.states]
        inputs = [f"saved.{i}" for i in range(len(self.kept))] + self._carried_symbols + reaching
        late = [name for name in roots if name.startswith("ds.")]
        return lower(graph, roots, inputs, late=late, read_before=reaching)

    def __str__(self) -> str:
        heads = [
            f"{self.name}: gates {' '.join(self.gates)}; states {' '.join(self.states)}"
            + (f"; parameters {' '.join(self.parameters)}" if self.parameters else ""),
            "x.g = W_ih x + b_ih, h.g = W_hh h + b_hh"
            if self.split_gates
            else "a.g = W_ih x + b_ih + W_hh h + b_hh",
        ]
        after = {f"{state}'": node for state, node in self.next_states.items()}
        forward = equations(cone(after.values()), after)
        backward = equations(cone(self.gradients.values()), self.gradients)
        return "\n".join(
            [*heads, "", *forward, "", "gradients, from dnext.s = dL/ds' of each state s", *backward]
        )

    def __repr__(self) -> str:
        return (
            f"<cell {self.name!r}: {len(self.gates)} gates, {len(self.states)} states, "
            f"{len(self.parameters)} parameters>"
        )


def define_cell(
    name: str,
    gates: str | Iterable[str],
    states: str | Iterable[str],
    step: Step,
    *,
    parameters: str | Iterable[str] = (),
    hidden: str | None = None,
) -> DefinedCell:
    """Return a cell whose step is written as a function of symbols; its gradients are derived.

    `step(x, h, s, p)` is called once. `x.g` is W_ih x + b_ih and `h.g` is W_hh h + b_hh of each gate g, `s.n`
    each state before the step, `p.n` each per-unit parameter. It returns {state: its value after the step},
    made of symbols, numbers and the functions of `fusedrnn.sym`. Sums are taken with x.g + h.g first.

    Args:
        name: what the cell is called.
        gates: names, as a list or one string with spaces.
        states: names; "h c".
        step: the equations.
        parameters: names of the parameters that every unit has of its own.
        hidden: the state that the matrix product and the output see; by default that called h, or the first.

    Raises:
        TypeError: the step is not pointwise, branches on a symbol, or returns no mapping.
        ValueError: a name is no identifier or stands twice, a state is not returned, a gate or parameter not
        used. AttributeError: the step asks for a symbol that was not declared.
    """
    names = {
        "gates": _names("gates", gates),
        "states": _names("states", states),
        "parameters": _names("parameters", parameters),
    }
    check_declared(name, **names)
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
        Symbols(graph, "p", "parameters", names["parameters"]),
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
    return DefinedCell(name, names["gates"], states_, names["parameters"], graph, after)


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


def _names(kind: str, names: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        return tuple(names.split())
    if not isinstance(names, Iterable):
        raise TypeError(f"{kind}: expected names, got {type(names).__name__}")
    return tuple(names)


def check_declared(name: str, gates: Sequence[str], states: Sequence[str], parameters: Sequence[str]) -> None:
    """Refuse names that are none, stand twice or are too many."""
    if not isinstance(name, str) or not name or len(name) > 64 or not name.isprintable():
        raise ValueError(f"name: expected a printable name of at most 64 characters, got {name!r:.80}")
    for kind, names in {"gates": gates, "states": states, "parameters": parameters}.items():
        for n in names:
            if not isinstance(n, str):
                raise TypeError(f"{kind}: expected names, got {type(n).__name__}")
            if not n.isidentifier() or not n.isascii() or keyword.iskeyword(n) or n[0] == "_" or len(n) > 32:
                raise ValueError(
                    f"{kind}: expected ASCII identifiers of at most 32 characters without a leading _, "
                    f"got {n!r:.80}"
                )
        if len(set(names)) != len(names):
            raise ValueError(f"{kind}: expected different names, got {' '.join(names)}")
        if not names and kind != "parameters":
            raise ValueError(f"{kind}: expected at least one name, got none")
    count = len(gates) + len(states) + len(parameters)
    if count > MOST_SYMBOLS:
        raise ValueError(
            f"gates, states, parameters: expected at most {MOST_SYMBOLS} names together, got {count}"
        )


def _check_used(nodes: Iterable[Expression], cell: DefinedCell) -> None:
    used = {node.name for node in nodes}
    for gate in cell.gates:
        if f"x.{gate}" not in used and f"h.{gate}" not in used:
            raise ValueError(f"gates: expected step to use all of them, got no use of x.{gate} or h.{gate}")
    for name in cell.parameters:
        if f"p.{name}" not in used:
            raise ValueError(f"parameters: expected step to use all of them, got no use of p.{name}")


def _only_sums(nodes: Iterable[Expression]) -> bool:
    """Whether nothing but x.g + h.g reads the gates."""
    return not any(is_gate(a) for node in nodes if not is_gate_sum(node) for a in node.arguments)
