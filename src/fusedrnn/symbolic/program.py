"""Programs: expressions as a short list of vector operations on numbered slots.

A program's slots are its constants, its inputs, its outputs and its temporaries, in this order; the
interpreter in csrc/cells/program.h runs the list over a tile.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.symbolic.graph import Expression, Graph, cone
from fusedrnn.symbolic.operations import OPERATIONS, PROGRAM_OPERATIONS

# Slots of a program: the interpreter's arrays have this length.
MOST_SLOTS = 256


@dataclass(frozen=True)
class Instruction:
    """slots[to] = operation(slots[a], ...): names of PROGRAM_OPERATIONS and indices of slots."""

    operation: str
    to: int
    operands: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A straight line of instructions. One instruction writes each output, which may be read from then on."""

    constants: tuple[float, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    temporaries: int
    code: tuple[Instruction, ...]

    def evaluate(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run the program by NumPy, in the precision of the inputs, and return its outputs by name."""
        slots: list[Any] = [*self.constants, *(inputs[name] for name in self.inputs)]
        first = len(slots)
        slots += [None] * (len(self.outputs) + self.temporaries)
        for step in self.code:
            slots[step.to] = PROGRAM_OPERATIONS[step.operation].evaluate(*(slots[i] for i in step.operands))
        return dict(zip(self.outputs, slots[first:], strict=False))

    @property
    def slots(self) -> int:
        """Their number."""
        return len(self.constants) + len(self.inputs) + len(self.outputs) + self.temporaries

    @property
    def encoded(self) -> npt.NDArray[np.int64]:
        """The instructions as the interpreter takes them, (len(code), 5): operation, to, a, b, c."""
        numbers = {name: i for i, name in enumerate(PROGRAM_OPERATIONS)}
        rows = [
            (numbers[step.operation], step.to, *step.operands, *step.operands[:1] * (3 - len(step.operands)))
            for step in self.code
        ]
        return np.array(rows, np.int64).reshape(-1, 5)

    def __str__(self) -> str:
        names = [f"{c:.9g}" for c in self.constants] + [*self.inputs, *self.outputs]
        names += [f"r{i}" for i in range(self.temporaries)]
        return "\n".join(
            f"{names[step.to]} = {step.operation}({', '.join(names[i] for i in step.operands)})"
            for step in self.code
        )


def lower(
    graph: Graph,
    outputs: Mapping[str, Expression],
    inputs: Collection[str],
    late: Mapping[str, str] = MappingProxyType({}),
) -> Program:
    """Return the program that gives `outputs` from the symbols `inputs`.

    Args:
        late: outputs that may lie where an input lies, and which: none of them is written before the last
            instruction that reads this input.

    Raises:
        ValueError: it would need more than MOST_SLOTS slots.
    """
    roots = dict(zip(outputs, _fuse(graph, list(outputs.values())), strict=True))
    order = _schedule(roots.values())
    constants = sorted({node.value for node in order if node.is_constant()})
    slots: dict[int, int] = {}
    names = {name: len(constants) + i for i, name in enumerate(inputs)}
    for node in order:
        if node.is_constant():
            slots[node.id] = constants.index(node.value)
        elif node.operation == "input":
            slots[node.id] = names[node.name]
    first_output = len(constants) + len(names)
    first_temporary = first_output + len(roots)
    to_slot = {name: first_output + i for i, name in enumerate(roots)}

    steps = [node for node in order if node.arguments]
    last_use = {a.id: at for at, node in enumerate(steps) for a in node.arguments}
    guarded = {
        node.name: node.id for node in order if node.operation == "input" and node.name in late.values()
    }
    last_read = {name: last_use.get(i, -1) for name, i in guarded.items()}
    for node in roots.values():
        if node.name in guarded:
            last_read[node.name] = len(steps)  # an output that is such an input is copied behind all steps
    made_at = {node.id: at for at, node in enumerate(steps)}
    # A value is made in its output's place where it may be; all other outputs are copied at the end.
    direct: dict[int, str] = {}
    for name, node in roots.items():
        in_time = name not in late or made_at.get(node.id, -1) >= last_read.get(late[name], -1)
        if node.arguments and in_time and node.id not in direct:
            direct[node.id] = name
    copied = {name: node for name, node in roots.items() if direct.get(node.id) != name}
    kept = {node.id for node in copied.values()}

    code: list[Instruction] = []
    free: list[int] = []
    temporaries = 0

    def take() -> int:
        nonlocal temporaries
        if free:
            return heappop(free)
        temporaries += 1
        return first_temporary + temporaries - 1

    for at, node in enumerate(steps):
        operands = tuple(slots[a.id] for a in node.arguments)
        for i in {a.id for a in node.arguments}:
            if slots[i] >= first_temporary and last_use[i] == at and i not in kept:
                heappush(free, slots[i])  # its place may take the result: a row is read before it is written
        slots[node.id] = to_slot[direct[node.id]] if node.id in direct else take()
        code.append(Instruction(node.operation, slots[node.id], operands))
    # A late output that is itself such an input: read before any of them is written.
    for i in sorted({node.id for name, node in copied.items() if name in late} & {*guarded.values()}):
        saved = take()
        code.append(Instruction("copy", saved, (slots[i],)))
        slots[i] = saved
    for name, node in sorted(copied.items(), key=lambda item: item[0] in late):
        code.append(Instruction("copy", to_slot[name], (slots[node.id],)))
    if first_temporary + temporaries > MOST_SLOTS:
        raise ValueError(
            f"step: expected constants, symbols and values at a time to be at most {MOST_SLOTS}, "
            f"got {first_temporary + temporaries}; make the cell simpler"
        )
    return Program(tuple(constants), tuple(inputs), tuple(roots), temporaries, tuple(code))


def _schedule(roots: Collection[Expression]) -> list[Expression]:
    """Depth first, so that a value is used soon after it is made."""
    order: list[Expression] = []
    seen: set[int] = set()
    todo = [(root, False) for root in reversed(list(roots))]
    while todo:
        node, arguments_done = todo.pop()
        if arguments_done:
            order.append(node)
        elif node.id not in seen:
            seen.add(node.id)
            todo.append((node, True))
            todo.extend((a, False) for a in reversed(node.arguments) if a.id not in seen)
    return order


def _fuse(graph: Graph, roots: list[Expression]) -> list[Expression]:
    """Return the roots in PROGRAM_OPERATIONS, several operations in one where the interpreter has it."""
    nodes = cone(roots)
    uses: dict[int, int] = {}
    for node in nodes:
        for a in node.arguments:
            uses[a.id] = uses.get(a.id, 0) + 1
    for root in roots:
        uses[root.id] = uses.get(root.id, 0) + 1
    done: dict[int, Expression] = {}
    for node in nodes:
        done[node.id] = _fused(graph, node, done, uses)
    return [done[root.id] for root in roots]


def _fused(
    graph: Graph, node: Expression, done: Mapping[int, Expression], uses: Mapping[int, int]
) -> Expression:
    if not node.arguments:
        return node
    args = [done[a.id] for a in node.arguments]
    if node.operation == "negative":
        return graph.bare("multiply", graph.constant(-1.0), args[0])
    if node.operation == "heaviside":
        return graph.bare("less", graph.constant(0.0), args[0])
    mask, passed = _passed(node)
    if mask is not None and passed is not None:
        return graph.bare("rest", mask, done[passed.id])
    if node.operation == "subtract" and node.arguments[1].operation == "multiply":
        value, scaled = node.arguments
        for factor, share in (scaled.arguments, scaled.arguments[::-1]):
            if factor is value:  # v - v*m, as the gradient of an interpolation comes: rounded as (1 - m)*v
                return graph.bare("rest", done[share.id], done[value.id])
    if node.operation == "multiply":
        for g, factor in (node.arguments, node.arguments[::-1]):
            slope = _slope(factor)
            if slope is not None:
                product = done[g.id].operation == g.operation == "multiply" and uses[g.id] == 1
                a, b = done[g.id].arguments if product else (done[g.id], graph.constant(1.0))
                return graph.bare(slope[0], a, b, done[slope[1].id])
    if node.operation == "add":
        for term, other in (node.arguments, node.arguments[::-1]):
            mask, passed = _passed(other)
            if (
                mask is not None
                and passed is not None
                and term.operation == "multiply"
                and uses[term.id] == 1
            ):
                kept = [a for a in term.arguments if a is not mask]
                if len(kept) == 1 and uses[other.id] == 1:
                    return graph.bare("mix", mask, done[kept[0].id], done[passed.id])
        for term, other in (node.arguments, node.arguments[::-1]):
            if done[term.id].operation == term.operation == "multiply" and uses[term.id] == 1:
                return graph.bare("fma", *done[term.id].arguments, done[other.id])
    return graph.bare(node.operation, *args)


def _passed(node: Expression) -> tuple[Expression | None, Expression | None]:
    """(m, v) of a node (1 - m)*v of a mask m."""
    if node.operation == "multiply":
        for one, value in (node.arguments, node.arguments[::-1]):
            mask = (
                one.arguments[1] if one.operation == "subtract" and one.arguments[0].is_constant(1.0) else one
            )
            if mask is not one and mask.name.startswith("mask."):
                return mask, value
    return None, None


def _slope(node: Expression) -> tuple[str, Expression] | None:
    """What `node` is a factor of: the derivative of a sigmoid, y (1 - y), or of a tanh, 1 - y y."""
    if node.operation == "multiply":
        y, rest = node.arguments
        if rest.operation == "subtract" and rest.arguments[0].is_constant(1.0) and rest.arguments[1] is y:
            return "sigmoid_slope", y
    if node.operation == "subtract" and node.arguments[0].is_constant(1.0):
        square = node.arguments[1]
        if square.operation == "multiply" and square.arguments[0] is square.arguments[1]:
            return "tanh_slope", square.arguments[0]
    return None


# What a value on the tape takes, in additions: it is written in forward and read in backward, from memory
# that no cache holds.
_SAVE_COST = 15.0
# Values among which the cheapest choice is looked for; the time grows with the square of their number.
_MOST_CUT_NODES = 400


def choose_saved(
    needed: Collection[Expression], may_save: Collection[int], free: Collection[str]
) -> list[Expression]:
    """Return which values forward keeps, so that backward has all of `needed` at the least cost.

    Each value is at hand, because it was saved or because it is computed again from values at hand. The
    cheapest choice is a minimum cut: what is at hand but not computed cuts (at hand, computed) at the price
    of the tape, what is computed cuts (computed, end) at its own.

    Args:
        may_save: ids of what forward computes.
        free: the symbols that backward has anyway.
    """
    nodes = [
        node
        for node in cone(needed)
        if not node.is_constant() and not (node.operation == "input" and node.name in free)
    ]
    if len(nodes) > _MOST_CUT_NODES:
        return _nearest(needed, may_save, {node.id for node in nodes})
    known = {node.id for node in nodes}
    flow = _Flow()
    for node in nodes:
        at_hand, computed = 2 * node.id, 2 * node.id + 1
        flow.connect(at_hand, computed, _SAVE_COST if node.id in may_save else flow.INFINITE)
        flow.connect(computed, at_hand, flow.INFINITE)
        cost = OPERATIONS[node.operation].cost if node.arguments else flow.INFINITE
        flow.connect(computed, flow.END, cost)
        for a in node.arguments:
            if a.id in known:
                flow.connect(computed, 2 * a.id, flow.INFINITE)
    for node in needed:
        if node.id in known:
            flow.connect(flow.START, 2 * node.id, flow.INFINITE)
    side = flow.start_side()
    return [node for node in nodes if 2 * node.id in side and 2 * node.id + 1 not in side]


def _nearest(
    needed: Collection[Expression], may_save: Collection[int], candidates: Collection[int]
) -> list[Expression]:
    """What is needed and may be saved; in place of what may not, what it is computed from."""
    found: dict[int, Expression] = {}
    todo, seen = list(needed), set[int]()
    while todo:
        node = todo.pop()
        if node.id in candidates and node.id not in seen:
            seen.add(node.id)
            if node.id in may_save:
                found[node.id] = node
            else:
                todo.extend(node.arguments)
    return [found[i] for i in sorted(found)]


class _Flow:
    """A minimum cut between START and END, by augmenting along shortest paths."""

    START, END = -1, -2
    INFINITE = 1e9

    def __init__(self) -> None:
        self._left: dict[int, dict[int, float]] = {self.START: {}, self.END: {}}

    def connect(self, a: int, b: int, capacity: float) -> None:
        self._left.setdefault(a, {})
        self._left.setdefault(b, {})
        self._left[a][b] = self._left[a].get(b, 0.0) + capacity
        self._left[b].setdefault(a, 0.0)

    def start_side(self) -> set[int]:
        """Return what START reaches once the flow is at its largest."""
        while True:
            before = {self.START: self.START}
            queue = [self.START]
            for at in queue:
                if self.END in before:
                    break
                for to, left in self._left[at].items():
                    if left > 0 and to not in before:
                        before[to] = at
                        queue.append(to)
            if self.END not in before:
                return set(before)
            path = [self.END]
            while path[-1] != self.START:
                path.append(before[path[-1]])
            edges = list(zip(path[1:], path, strict=False))
            amount = min(self._left[a][b] for a, b in edges)
            for a, b in edges:
                self._left[a][b] -= amount
                self._left[b][a] += amount
