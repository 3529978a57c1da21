"""Expressions over symbols: nodes of a graph in which equal expressions are one node.

A node's arguments come before it, so that the order of the nodes is an order of evaluation.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np

from fusedrnn.symbolic.operations import OPERATIONS, ROW_OPERATIONS
from fusedrnn.symbolic.text import render

Operand: TypeAlias = "Expression | float"

# Of one cell, its derivative included: what is larger takes seconds to compile.
MOST_NODES = 20_000

# NumPy's names of what an expression answers to by itself.
_UFUNCS = {
    "true_divide": "divide",
    "absolute": "abs",
    "fabs": "abs",
    **{
        name: name
        for name in (
            *("add", "subtract", "multiply", "negative", "minimum", "maximum", "sqrt"),
            *("exp", "log", "tanh", "sin", "cos", "less", "less_equal"),
        )
    },
}


class Expression:
    """A symbol, a constant, or an operation on others: made by operators and by `fusedrnn.sym`."""

    __slots__ = ("arguments", "graph", "id", "is_condition", "name", "operation", "value")

    def __init__(
        self, graph: "Graph", operation: str, arguments: tuple["Expression", ...], name: str, value: float
    ) -> None:
        self.graph, self.operation, self.arguments = graph, operation, arguments
        self.name, self.value = name, value
        self.id = len(graph.nodes)
        # Conditions are 1 or 0: `and` is a product, `or` the larger one, `not` the difference from 1.
        self.is_condition: bool = operation in ("less", "less_equal")
        if operation in ("multiply", "maximum"):
            self.is_condition = all(a.is_condition for a in arguments)
        if operation == "subtract":
            self.is_condition = arguments[0].is_constant(1.0) and arguments[1].is_condition

    def is_constant(self, value: float | None = None) -> bool:
        """Whether this is a constant: any, or the one given."""
        return self.operation == "constant" and (value is None or self.value == value)

    def __repr__(self) -> str:
        return render(self, {})

    def __add__(self, other: Operand) -> "Expression":
        return self.graph.make("add", self, other)

    def __radd__(self, other: Operand) -> "Expression":
        return self.graph.make("add", other, self)

    def __sub__(self, other: Operand) -> "Expression":
        return self.graph.make("subtract", self, other)

    def __rsub__(self, other: Operand) -> "Expression":
        return self.graph.make("subtract", other, self)

    def __mul__(self, other: Operand) -> "Expression":
        return self.graph.make("multiply", self, other)

    def __rmul__(self, other: Operand) -> "Expression":
        return self.graph.make("multiply", other, self)

    def __truediv__(self, other: Operand) -> "Expression":
        return self.graph.make("divide", self, other)

    def __rtruediv__(self, other: Operand) -> "Expression":
        return self.graph.make("divide", other, self)

    def __neg__(self) -> "Expression":
        return self.graph.make("negative", self)

    def __pos__(self) -> "Expression":
        return self

    def __abs__(self) -> "Expression":
        return self.graph.make("abs", self)

    def __pow__(self, exponent: float) -> "Expression":
        if isinstance(exponent, int) and 1 <= exponent <= 16:
            if exponent == 1:
                return self
            half = self ** (exponent // 2)
            return half * half * self if exponent % 2 else half * half
        raise ValueError(
            f"{self!r} ** {exponent!r}: expected an int exponent in [1, 16], got {exponent!r}; "
            "see fusedrnn.sym.sqrt, exp and log"
        )

    def __lt__(self, other: Operand) -> "Expression":
        return self.graph.make("less", self, other)

    def __gt__(self, other: Operand) -> "Expression":
        return self.graph.make("less", other, self)

    def __le__(self, other: Operand) -> "Expression":
        return self.graph.make("less_equal", self, other)

    def __ge__(self, other: Operand) -> "Expression":
        return self.graph.make("less_equal", other, self)

    def __and__(self, other: "Expression") -> "Expression":
        return self._condition() * other._condition()

    def __or__(self, other: "Expression") -> "Expression":
        return self.graph.make("maximum", self._condition(), other._condition())

    def __invert__(self) -> "Expression":
        return 1.0 - self._condition()

    def _condition(self) -> "Expression":
        if not self.is_condition:
            raise TypeError(f"{self!r}: expected a comparison, got a value")
        return self

    def _refuse(self, what: str) -> NoReturn:
        raise TypeError(f"{self!r}: {what}")

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        self._refuse("== and != have no use on a symbol; compare with < or <=, inside of fusedrnn.sym.where")

    def __bool__(self) -> bool:
        self._refuse(
            "has no value yet, so no if, while, and, or, not, min or max may depend on it; "
            "see fusedrnn.sym.where, minimum and maximum, and &, | and ~ of comparisons"
        )

    def __float__(self) -> float:
        self._refuse("has no value yet: expected a function of fusedrnn.sym, got one of numbers")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self._refuse("is no array: a cell is made of numbers, symbols and the functions of fusedrnn.sym")

    def __getitem__(self, _: Any) -> NoReturn:
        self._refuse("is the value of one unit and has no parts: a cell is pointwise")

    def __iter__(self) -> NoReturn:
        self._refuse("is the value of one unit and has no parts: a cell is pointwise")

    def __matmul__(self, _: Any) -> NoReturn:
        self._refuse("the step of a cell is pointwise: the matrix products are its gates")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> "Expression":
        name = _UFUNCS.get(ufunc.__name__)
        if name is None or method != "__call__" or options:
            self._refuse(
                f"numpy.{ufunc.__name__} is not pointwise on symbols; see the functions of fusedrnn.sym"
            )
        return self.graph.make(name, *inputs)

    def __array_function__(self, function: Any, *_: Any) -> NoReturn:
        self._refuse(f"numpy.{function.__name__} takes no symbols; see the functions of fusedrnn.sym")


class Graph:
    """The nodes of one cell."""

    def __init__(self) -> None:
        self.nodes: list[Expression] = []
        self._known: dict[tuple[Any, ...], Expression] = {}

    def input(self, name: str) -> Expression:
        """Return the symbol of this name."""
        return self._node("input", (), name)

    def constant(self, value: float) -> Expression:
        """Return a constant. Zeros of both signs are one."""
        return self._node("constant", (), value=float(value) + 0.0)

    def make(self, operation: str, *operands: Operand) -> Expression:
        """Return `operation` of the operands, simplified where that changes rounding at most.

        Raises:
            TypeError: an operand is neither a number nor an expression of this graph.
            ValueError: a constant is not finite, or the graph is full.
        """
        args = tuple(self._operand(operation, o, operands) for o in operands)
        simpler = self._simpler(operation, args)
        return self._node(operation, args) if simpler is None else simpler

    def bare(self, operation: str, *arguments: Expression, name: str = "") -> Expression:
        """Return `operation` of the arguments as it is, not simplified."""
        return self._node(operation, arguments, name)

    def substitute(
        self, roots: Iterable[Expression], replacement: Mapping[int, Expression]
    ) -> list[Expression]:
        """Return the roots with the nodes of these ids replaced."""
        roots = list(roots)
        done = dict(replacement)
        for node in cone(roots, stop=replacement):
            if node.id in done:
                continue
            args = tuple(done[a.id] for a in node.arguments)
            changed = any(a is not b for a, b in zip(args, node.arguments, strict=True))
            if changed and node.operation in ROW_OPERATIONS:
                done[node.id] = self.bare(node.operation, *args, name=node.name)
            else:
                done[node.id] = self.make(node.operation, *args) if changed else node
        return [done[root.id] for root in roots]

    def _operand(self, operation: str, value: Operand, operands: tuple[Operand, ...]) -> Expression:
        if isinstance(value, Expression):
            if value.graph is not self:
                raise ValueError(f"{value!r}: expected a symbol of this step, got one of another cell's")
            return value
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf if value > 0 else -math.inf
            if not math.isfinite(number):
                raise ValueError(f"{operation}: expected a finite constant, got {number}")
            return self.constant(number)
        others = ", ".join(repr(o) for o in operands if isinstance(o, Expression))
        shape = getattr(value, "shape", None)
        got = f"an array of shape {shape}" if shape else type(value).__name__
        raise TypeError(
            f"{operation}({others}): expected a number or a symbol as the other operand, got {got}"
        )

    def _node(
        self, operation: str, args: tuple[Expression, ...], name: str = "", value: float = 0.0
    ) -> Expression:
        ids = [a.id for a in args]
        if args and operation not in ROW_OPERATIONS and OPERATIONS[operation].commutative:
            ids.sort()
        key = (operation, *ids, name, value)
        known = self._known.get(key)
        if known is None:
            if len(self.nodes) >= MOST_NODES:
                raise ValueError(f"step: expected at most {MOST_NODES} operations, derivatives included")
            known = self._known[key] = Expression(self, operation, args, name, value)
            self.nodes.append(known)
        return known

    def _simpler(self, operation: str, args: tuple[Expression, ...]) -> Expression | None:
        a, b = args[0], args[-1]
        if all(x.is_constant() for x in args):
            with np.errstate(all="ignore"):
                value = float(OPERATIONS[operation].evaluate(*(x.value for x in args)))
            if math.isfinite(value):
                return self.constant(value)
        if operation == "add":
            if a.is_constant(0.0):
                return b
            if b.is_constant(0.0):
                return a
            if b.operation == "negative":
                return a - b.arguments[0]
            if a.operation == "negative":
                return b - a.arguments[0]
            for rewrite in (self._pair_gates, self._interpolate):
                for one, other in ((a, b), (b, a)):
                    if (simpler := rewrite(one, other)) is not None:
                        return simpler
        if operation == "subtract":
            if a.is_constant(0.0):
                return -b
            if b.is_constant(0.0):
                return a
            if b.operation == "negative":
                return a + b.arguments[0]
        if operation == "multiply":
            for one, other in ((a, b), (b, a)):
                if one.is_constant(1.0):
                    return other
                if one.is_constant(-1.0):
                    return -other
        if operation == "divide" and b.is_constant() and abs(math.frexp(b.value)[0]) == 0.5:
            return a * (1.0 / b.value)  # a power of two: exact
        if operation == "negative" and a.operation == "negative":
            return a.arguments[0]
        if operation == "where":
            if args[0].is_constant():
                return args[1] if args[0].value > 0 else args[2]
            return args[1] if args[1] is args[2] else None
        return None

    def _interpolate(self, rest: Expression, part: Expression) -> Expression | None:
        """`(1 - z)*a + z*b` as a + z*(b - a), which is what the compiled GRU computes, and less work."""
        if rest.operation != "multiply" or part.operation != "multiply":
            return None
        for one, a in (rest.arguments, rest.arguments[::-1]):
            if one.operation != "subtract" or not one.arguments[0].is_constant(1.0):
                continue
            share = one.arguments[1]
            # A mask is 0 or 1: it chooses, be the other value infinite.
            for z, b in (part.arguments, part.arguments[::-1]):
                if z is share and not share.name.startswith("mask."):
                    return a + share * (b - a)
        return None

    def _pair_gates(self, total: Expression, gate: Expression) -> Expression | None:
        """`total + gate` where the sum `total` holds the gate's other half: with both halves added first."""
        if total.operation != "add" or not is_gate(gate):
            return None
        partner = ("h" if gate.name[0] == "x" else "x") + gate.name[1:]
        terms: list[Expression] = []
        todo = [total]
        while todo and len(terms) < 64:
            term = todo.pop()
            if term.operation == "add" and not is_gate_sum(term):
                todo.extend(reversed(term.arguments))
            else:
                terms.append(term)
        found = [i for i, term in enumerate(terms) if term.name == partner]
        if todo or not found:
            return None
        x, h = sorted((terms[found[0]], gate), key=lambda half: half.name, reverse=True)
        terms[found[0]] = self.bare("add", x, h)
        total = terms[0]
        for term in terms[1:]:
            total = self.bare("add", total, term)
        return total


def is_gate(node: Expression) -> bool:
    """Whether this is x.g or h.g of a gate g."""
    return node.operation == "input" and node.name[:2] in ("x.", "h.")


def gate_of(node: Expression) -> str:
    """Return "x.g" or "h.g" if this is that part of a gate g, or the product that stands for it; else ""."""
    if node.operation == "product":
        return node.arguments[0].name
    return node.name if is_gate(node) else ""


def is_gate_sum(node: Expression) -> bool:
    """Whether this is x.g + h.g of one gate g."""
    if node.operation != "add":
        return False
    a, b = (gate_of(argument) for argument in node.arguments)
    return bool(a and b) and a[2:] == b[2:] and a[0] != b[0]


def cone(roots: Iterable[Expression], stop: Iterable[int] = ()) -> list[Expression]:
    """Return the roots and what they are made of, arguments first; what `stop` is made of is left out."""
    stop = frozenset(stop)
    seen: dict[int, Expression] = {}
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node.id not in seen:
            seen[node.id] = node
            if node.id not in stop:
                todo.extend(node.arguments)
    return [seen[i] for i in sorted(seen)]
