"""A cell that is data: its equations as expressions, its gradients derived from them, both as programs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import cached_property
from typing import Any

from fusedrnn import _core
from fusedrnn.cell_spec import CellSpec, Initial, parameters_of
from fusedrnn.symbolic.declared import Mask, check_used
from fusedrnn.symbolic.gradient import gradients
from fusedrnn.symbolic.graph import Expression, Graph, cone, is_gate_sum
from fusedrnn.symbolic.program import Program, choose_saved, lower
from fusedrnn.symbolic.stages import (
    Stage,
    cut_rows,
    levels_of,
    listed,
    lower_stages,
    normalises_gates,
    only_sums,
)
from fusedrnn.symbolic.text import equations


class DefinedCell:
    """The equations of one step of a recurrent cell, and everything derived from them.

    Made by `define_cell` or `cell_from_json`. Immutable.

    Attributes:
        name: what messages call it.
        gates: names of the gates; weight_ih is (len(gates)*H, I).
        states: names of the states, first the hidden state, which the matrix product and the output see.
        parameters: names of the per-unit parameters, each (H,).
        gate_parameters: those of them that every gate has one of: (len(gates)*H,), symbols p.name.g.
        initial: {symbol: value} of the biases of gates, "x.f", and the parameters, "p.u" or "p.u.f", that do
            not start from zero.
        hidden_product: whether the step reads h.g of any gate; there is no weight_hh if it does not.
        split_gates: False where the step sees only the sums x.g + h.g, or no h.g.
        direct_hidden: whether the hidden state enters the step outside of the matrix product.
        bias: whether the gates have biases, bias_ih and bias_hh.
        next_states: {state: its expression after the step}.
        operations: what is done with whole rows within a step, see `fusedrnn.symbolic.stages`.
        gradients: {symbol: its gradient}, from the gradients `dnext.*` of the states after the step.
        kept: the values that forward keeps for backward.
        masks: what the symbols mask.0, mask.1, ... are.
        origin: (function, arguments) that make the cell again, where JSON does not tell it.
    """

    origin: tuple[Callable[..., "DefinedCell"], tuple[Any, ...]] | None = None

    def __init__(
        self,
        name: str,
        gates: Sequence[str],
        states: Sequence[str],
        parameters: Sequence[str],
        graph: Graph,
        next_states: Mapping[str, Expression],
        initial: Mapping[str, Initial],
        bias: bool = True,
        gate_parameters: Sequence[str] = (),
        masks: Sequence[Mask] = (),
    ) -> None:
        self.name, self.gates = name, tuple(gates)
        self.states, self.parameters = tuple(states), tuple(parameters)
        self.initial = {symbol: value for symbol, value in initial.items() if value != 0}
        self.bias, self.gate_parameters = bias, tuple(gate_parameters)
        self.masks = tuple(masks)
        self._graph = graph
        self.given = {state: next_states[state] for state in self.states}
        nodes = cone(next_states.values())
        check_used({node.name for node in nodes}, self.gates, self.unit_symbols)
        self.hidden_product = any(node.name.startswith("h.") for node in nodes)
        self.split_gates = self.hidden_product and (
            normalises_gates(nodes, self.gates) or not only_sums(nodes)
        )
        split = self.split_gates or not self.hidden_product
        roots, self.operations = cut_rows(graph, list(self.given.values()), self.gates, split)
        self.next_states = dict(zip(self.states, roots, strict=True))
        self._operands = {
            f"link.{link}": operand
            for operation in self.operations
            for link, operand in zip(operation.links, operation.operands, strict=True)
        }
        roots += self._operands.values()
        self.direct_hidden = any(node.name == f"s.{self.states[0]}" for node in cone(roots))
        self.gradients = self._differentiate(roots)
        self.kept = self._choose_kept(roots)

    @property
    def _gate_symbols(self) -> list[str]:
        kinds = ("x", "h") if self.split_gates else ("a",) if self.hidden_product else ("x",)
        return [f"{kind}.{gate}" for kind in kinds for gate in self.gates]

    @property
    def _carried_symbols(self) -> list[str]:
        return [f"s.{state}" for state in self.states] + self.unit_symbols

    @property
    def _given_symbols(self) -> list[str]:
        return self._carried_symbols + [f"mask.{k}" for k in range(len(self.masks))]

    @property
    def unit_symbols(self) -> list[str]:
        return [symbol for name in self.parameters for symbol in self.symbols_of(name)]

    def symbols_of(self, parameter: str) -> list[str]:
        """The symbols of a parameter: one, or one for each gate."""
        if parameter not in self.gate_parameters:
            return [f"p.{parameter}"]
        return [f"p.{parameter}.{gate}" for gate in self.gates]

    def _differentiate(self, roots: list[Expression]) -> dict[str, Expression]:
        graph = self._graph
        wanted = self._gate_symbols + self._carried_symbols
        if not self.direct_hidden:
            wanted.remove(f"s.{self.states[0]}")
        wanted += [name for name in self._normalised if name.startswith("link.")]
        reaching = [graph.input(f"dnext.{state}") for state in self.states]
        reaching += [graph.input(f"d{link}") for link in self._operands]
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
            if node.name.startswith(("dnext.", "dlink.")) or any(
                a.id in from_outside for a in node.arguments
            ):
                from_outside.add(node.id)
                needed.update({a.id: a for a in node.arguments if a.id not in from_outside})
        needed.update({n.id: n for n in self.gradients.values() if n.id not in from_outside})
        needed.update({operand.id: operand for operand in self._product_operands.values()})
        # The adjoint of a layer_norm reads its results.
        chosen = choose_saved(list(needed.values()), forward, self._given_symbols + self._normalised)
        return (*(self._graph.input(name) for name in self._normalised), *chosen)

    @property
    def _normalised(self) -> list[str]:
        return [name for o in self.operations if o.kind == "layer_norm" for name in o.symbols]

    @property
    def _product_operands(self) -> dict[str, Expression]:
        products = [o for o in self.operations if o.kind == "product"]
        return {f"operand.{o.number}": o.operands[0] for o in products}

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
        inputs = self._gate_symbols + self._given_symbols
        return lower(self._graph, {**after, **saved}, inputs, self._states_before)

    @property
    def _states_before(self) -> dict[str, str]:
        """By the state after the step, which may take its place."""
        return {f"next.{state}": f"s.{state}" for state in self.states}

    @cached_property
    def backward(self) -> Program:
        """From `saved.*`, states, parameters and `dnext.*` to the gradients of `forward`'s inputs."""
        roots = self._backward_roots
        inputs = [f"saved.{i}" for i in range(len(self.kept))] + self._given_symbols
        inputs += self._reaching.values()
        return lower(self._graph, roots, inputs, self._reaching)

    @property
    def _reaching(self) -> dict[str, str]:
        """By the gradient of the state before the step, which may take its place."""
        return {f"ds.{state}": f"dnext.{state}" for state in self.states}

    @property
    def _backward_roots(self) -> dict[str, Expression]:
        graph = self._graph
        saved = {node.id: graph.input(f"saved.{i}") for i, node in enumerate(self.kept)}
        roots = self.gradients | self._product_operands
        return dict(zip(roots, graph.substitute(roots.values(), saved), strict=True))

    @cached_property
    def forward_stages(self) -> tuple[tuple[Stage, ...], int]:
        """The stages of forward, one where there are no operations on rows, and their number of links."""
        if not self.operations:
            return (Stage((), self.forward),), 0
        return self._forward_stages({f"saved.{i}": node for i, node in enumerate(self.kept)})

    @cached_property
    def inference_stages(self) -> tuple[tuple[Stage, ...], int]:
        """`forward_stages` without what they keep."""
        return self._forward_stages({}) if self.operations else ((Stage((), self.inference),), 0)

    def _forward_stages(self, saved: Mapping[str, Expression]) -> tuple[tuple[Stage, ...], int]:
        after = {f"next.{state}": node for state, node in self.next_states.items()}
        known: dict[str, int] = {}
        stages: dict[int, int] = {}
        for i, operation in enumerate(self.operations):
            levels = levels_of(cone(operation.operands), known)
            stages[i] = 1 + max((levels[o.id] for o in operation.operands), default=-1)
            known |= dict.fromkeys(operation.symbols, stages[i])
        outputs = {**after, **self._operands, **saved}
        # Normalised values are written to the tape, if there is one, and read from there.
        on_tape = {}
        for name, node in saved.items():
            if node.name in self._normalised:
                on_tape[outputs.pop(name).id] = self._graph.input(name)
                known[name] = known[node.name]
        roots = dict(zip(outputs, self._graph.substitute(outputs.values(), on_tape), strict=True))
        return lower_stages(self._graph, roots, known, stages, len(self._operands), self._states_before)

    @cached_property
    def backward_stages(self) -> tuple[tuple[Stage, ...], int]:
        """The stages of backward: the adjoints of the operations in reverse, and programs."""
        if not self.operations:
            return (Stage((), self.backward),), 0
        roots = {
            name: self._graph.bare("add", self._graph.input(name), node) if name.startswith("dp.") else node
            for name, node in self._backward_roots.items()
        }
        known: dict[str, int] = {}
        stages: dict[int, int] = {}
        for i, operation in reversed(list(enumerate(self.operations))):
            results = [roots[f"d{name}"] for name in operation.symbols]
            levels = levels_of(cone(results), known)
            stages[i] = 1 + max(levels[node.id] for node in results)
            known |= {f"dlink.{link}": stages[i] for link in operation.links}
        return lower_stages(self._graph, roots, known, stages, len(self._operands), self._reaching)

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
        masks = {"masks": [astuple(mask) for mask in self.masks]} if self.masks else {}
        return masks | {
            "gates": len(self.gates),
            "states": len(self.states),
            "saved": len(self.kept),
            "links": max(s[1] for s in (self.forward_stages, self.inference_stages, self.backward_stages)),
            "split_gates": self.split_gates,
            "direct_hidden": self.direct_hidden,
            "hidden_product": self.hidden_product,
            "bias": self.bias,
            "per_unit": list(self.parameters),
            "per_unit_values": [len(self.symbols_of(name)) for name in self.parameters],
            "operations": listed(self.operations, self.gates, self.hidden_product),
            "forward": [self._numbered(stage) for stage in self.forward_stages[0]],
            "inference": [self._numbered(stage) for stage in self.inference_stages[0]],
            "backward": [self._numbered(stage) for stage in self.backward_stages[0]],
        }

    def _numbered(self, stage: Stage) -> dict[str, Any]:
        """Return a stage as the kernels take it: gates, states and parameters by number.

        Gates without a product of h are called a, as sums are: the kernels have one value of each, too.
        """
        program = stage.program
        gates = {"x": "x", "h": "h", "a": "a"} if self.hidden_product else {"x": "a"}
        names = {
            f"{derivative}{kind}.{gate}": f"{derivative}{called}.{number}"
            for derivative in ("", "d")
            for kind, called in gates.items()
            for number, gate in enumerate(self.gates)
        }
        for kind in ("s", "ds", "next", "dnext"):
            names |= {f"{kind}.{name}": f"{kind}.{n}" for n, name in enumerate(self.states)}
        for n, symbol in enumerate(self.unit_symbols):
            names |= {symbol: f"p.{n}", f"d{symbol}": f"dp.{n}"}
        names |= {name: name[1:] for name in (*program.inputs, *program.outputs) if name.startswith("dlink.")}
        return {
            "operations": list(stage.operations),
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
        if not self.bias:
            head = head.replace(" + b_ih", "").replace(" + b_hh", "")
        after = {f"{state}'": node for state, node in self._shown.items()}
        gates = f"{head}     of each gate g of {', '.join(self.gates)}"
        return "\n".join([gates, *equations(cone(after.values()), after)])

    @property
    def _shown(self) -> Mapping[str, Expression]:
        """The states after the step as they were written, where operations on rows hide it; sums as a.g."""
        if not self.operations:
            return self.next_states
        sums = (
            {}
            if self.split_gates
            else {
                node.id: self._graph.input(f"a.{node.arguments[0].name[2:]}")
                for node in cone(self.given.values())
                if is_gate_sum(node) and all(a.operation == "input" for a in node.arguments)
            }
        )
        return dict(zip(self.given, self._graph.substitute(self.given.values(), sums), strict=True))

    @property
    def _shown_operations(self) -> list[str]:
        """What the symbols of the gradients stand for, where there are operations on rows."""
        lines = equations(cone(self._operands.values()), self._operands)
        for o in self.operations:
            links = [f"link.{link}" for link in o.links] or o.symbols
            results = ", ".join(o.symbols)
            if o.kind == "layer_norm":
                lines.append(f"{results} = layer_norm({', '.join(links)})")
            else:
                lines.append(
                    f"{results}: the product with weight_hh of {links[0]}, whose gradient is d{links[0]}"
                )
        return ["", "within the step", *lines] if lines else []

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
            [
                head,
                "",
                self.equations,
                *self._shown_operations,
                "",
                "gradients, from dnext.s = dL/ds' of each state s",
                *backward,
            ]
        )

    def __repr__(self) -> str:
        return (
            f"<cell {self.name!r}: {len(self.gates)} gates, {len(self.states)} states, "
            f"{len(self.parameters)} parameters>"
        )
