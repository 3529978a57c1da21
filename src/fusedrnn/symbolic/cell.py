"""A cell that is data: its equations as expressions, its gradients derived from them, both as programs."""

import hashlib
import json
import keyword
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from fusedrnn import _core
from fusedrnn.cell_spec import CellSpec, Initial, parameters_of
from fusedrnn.symbolic.gradient import gradients
from fusedrnn.symbolic.graph import Expression, Graph, cone, is_gate, is_gate_sum
from fusedrnn.symbolic.program import Program, choose_saved, lower
from fusedrnn.symbolic.text import equations

# What the kernels have room for.
MOST_NAMES = {"gates": 32, "states": 8, "parameters": 16}
# Per-unit parameters stand beside these.
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class DefinedCell:
    """The equations of one step of a recurrent cell, and everything derived from them.

    Made by `define_cell` or `cell_from_json`. Immutable.

    Attributes:
        name: what messages call it.
        gates: names of the gates; weight_ih is (len(gates)*H, I).
        states: names of the states, first the hidden state, which the matrix product and the output see.
        parameters: names of the per-unit parameters, each (H,).
        initial: {symbol: value} of the biases of gates, "x.f", and the parameters, "p.u", that do not start
            from zero.
        hidden_product: whether the step reads h.g of any gate; there is no weight_hh if it does not.
        split_gates: False where the step sees only the sums x.g + h.g, or no h.g.
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
        initial: Mapping[str, Initial],
    ) -> None:
        self.name, self.gates = name, tuple(gates)
        self.states, self.parameters = tuple(states), tuple(parameters)
        self.initial = {symbol: value for symbol, value in initial.items() if value != 0}
        self._graph = graph
        nodes = cone(next_states.values())
        _check_used(nodes, self)
        self.hidden_product = any(node.name.startswith("h.") for node in nodes)
        self.split_gates = self.hidden_product and not _only_sums(nodes)
        roots = [next_states[state] for state in self.states]
        if self.hidden_product and not self.split_gates:
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
        kinds = ("x", "h") if self.split_gates else ("a",) if self.hidden_product else ("x",)
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

    @cached_property
    def spec(self) -> CellSpec:
        """What networks and `functional.forward` know of the cell; made when it is first asked for.

        Raises:
            ValueError: the kernels have no room for the cell.
        """
        key = f"{self.name}:{self.digest[:16]}"
        constants = _core.define_program(key, **self._native)
        return CellSpec(
            name=key,
            gates=len(self.gates),
            gate_names=self.gates,
            states=len(self.states),
            state_names=self.states,
            saved=len(self.kept),
            split_gates=self.split_gates,
            equations=self.equations,
            paper="",
            parameters=parameters_of(constants),
            initial=tuple(self.initial.items()),
            definition=self,
        )

    @cached_property
    def digest(self) -> str:
        """The same for cells that compute the same by the same operations, whatever they are called."""
        text = json.dumps(self._native, default=lambda array: array.tolist())
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _native(self) -> dict[str, Any]:
        """The cell as the kernels take it."""
        return {
            "gates": len(self.gates),
            "states": len(self.states),
            "saved": len(self.kept),
            "split_gates": self.split_gates,
            "direct_hidden": self.direct_hidden,
            "hidden_product": self.hidden_product,
            "per_unit": list(self.parameters),
            "forward": self._numbered(self.forward),
            "inference": self._numbered(self.inference),
            "backward": self._numbered(self.backward),
        }

    def _numbered(self, program: Program) -> dict[str, Any]:
        """Return a program as the kernels take it: gates, states and parameters by number.

        Gates without a product of h are called a, as sums are: the kernels have one value of each, too.
        """
        gates = {"x": "x", "h": "h", "a": "a"} if self.hidden_product else {"x": "a"}
        names = {
            f"{derivative}{kind}.{gate}": f"{derivative}{called}.{number}"
            for derivative in ("", "d")
            for kind, called in gates.items()
            for number, gate in enumerate(self.gates)
        }
        for kinds, listing in ((("s", "ds", "next", "dnext"), self.states), (("p", "dp"), self.parameters)):
            names |= {f"{kind}.{name}": f"{kind}.{n}" for kind in kinds for n, name in enumerate(listing)}
        return {
            "constants": list(program.constants),
            "slots": program.slots,
            "code": program.encoded,
            "inputs": [names.get(name, name) for name in program.inputs],
            "outputs": [names.get(name, name) for name in program.outputs],
        }

    @property
    def equations(self) -> str:
        """The step, a line for each value that is used more than once and for each state after it."""
        head = "a.g = W_ih x + b_ih + W_hh h + b_hh"
        if self.split_gates:
            head = "x.g = W_ih x + b_ih     h.g = W_hh h + b_hh"
        elif not self.hidden_product:
            head = "x.g = W_ih x + b_ih"
        after = {f"{state}'": node for state, node in self.next_states.items()}
        gates = f"{head}     of each gate g of {', '.join(self.gates)}"
        return "\n".join([gates, *equations(cone(after.values()), after)])

    def __copy__(self) -> "DefinedCell":
        return self

    def __deepcopy__(self, memo: object) -> "DefinedCell":
        return self

    def __str__(self) -> str:
        head = f"{self.name}: gates {' '.join(self.gates)}; states {' '.join(self.states)}"
        if self.parameters:
            head += f"; parameters {' '.join(self.parameters)}"
        backward = equations(cone(self.gradients.values()), self.gradients)
        return "\n".join(
            [head, "", self.equations, "", "gradients, from dnext.s = dL/ds' of each state s", *backward]
        )

    def __repr__(self) -> str:
        return (
            f"<cell {self.name!r}: {len(self.gates)} gates, {len(self.states)} states, "
            f"{len(self.parameters)} parameters>"
        )


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
        if len(names) > MOST_NAMES[kind]:
            raise ValueError(f"{kind}: expected at most {MOST_NAMES[kind]} names, got {len(names)}")
    for n in parameters:
        if n in WEIGHTS:
            raise ValueError(f"parameters: expected other names than those of the weights, got {n}")


def check_initial(name: str, value: Any) -> Initial:
    """Return an initial value, a number or (low, high), or refuse it."""
    pair = isinstance(value, (tuple, list))
    numbers = tuple(value) if pair else (value,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"{name}: expected a number or (low, high), got {value!r:.40}")
    if len(numbers) != 1 + pair or not all(abs(number) <= 1e308 for number in numbers):
        raise ValueError(f"{name}: expected a finite number or (low, high), got {value!r:.40}")
    if numbers[0] > numbers[-1]:
        raise ValueError(f"{name}: expected (low, high) with low <= high, got {value!r:.40}")
    return (float(numbers[0]), float(numbers[1])) if pair else float(numbers[0])


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
