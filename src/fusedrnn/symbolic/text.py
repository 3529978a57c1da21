"""Expressions as text."""

from collections.abc import Mapping, Sequence
from typing import Protocol


class Node(Protocol):
    """What is read of an expression."""

    @property
    def id(self) -> int: ...
    @property
    def operation(self) -> str: ...
    @property
    def arguments(self) -> "tuple[Node, ...]": ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float: ...


# The sign of an operation and how tightly it binds.
_INFIX = {
    "less": ("<", 1),
    "less_equal": ("<=", 1),
    "add": ("+", 2),
    "subtract": ("-", 2),
    "multiply": ("*", 3),
    "divide": ("/", 3),
}
_DEEPEST = 12


def render(node: Node, names: Mapping[int, str], depth: int = 0) -> str:
    """Return an expression as text; a node whose id has a name is that name, except at the top."""
    if depth and node.id in names:
        return names[node.id]
    if node.operation == "input":
        return node.name
    if node.operation == "constant":
        return f"{node.value:.17g}" if float(f"{node.value:.9g}") != node.value else f"{node.value:.9g}"
    if depth > _DEEPEST:
        return "..."
    parts = [render(a, names, depth + 1) for a in node.arguments]
    if node.operation in _INFIX:
        sign, tightness = _INFIX[node.operation]
        for i, argument in enumerate(node.arguments):
            if _tightness(argument, names) < tightness + i:
                parts[i] = f"({parts[i]})"
        return f"{parts[0]} {sign} {parts[1]}"
    if node.operation == "negative":
        return f"-({parts[0]})" if _tightness(node.arguments[0], names) < 4 else f"-{parts[0]}"
    if node.operation == "layer_norm" and len(parts) > 1:
        gates = [part.partition(".") for part in parts]
        which = int(node.name)
        if {kind for kind, _, _ in gates} == {gates[0][0]} and all(gate for _, _, gate in gates):
            return f"layer_norm({gates[0][0]}).{gates[which][2]}"
        return f"layer_norm({', '.join(parts)})[{which}]"
    return f"{node.operation}({', '.join(parts)})"


def _tightness(node: Node, names: Mapping[int, str]) -> int:
    if node.id in names or (node.operation == "constant" and node.value >= 0):
        return 4
    if node.operation in ("negative", "constant"):
        return 2
    return _INFIX[node.operation][1] if node.operation in _INFIX else 4


def _terms(node: Node) -> "list[Node]":
    """Return what a sum of products is made of."""
    found: list[Node] = []
    seen: set[int] = set()
    todo = [node]
    while todo:
        term = todo.pop()
        if term.id in seen:
            continue
        seen.add(term.id)
        if term.operation in ("add", "multiply"):
            todo.extend(term.arguments)
        else:
            found.append(term)
    return found


def equations(nodes: Sequence[Node], outputs: Mapping[str, Node]) -> list[str]:
    """Return `name = expression` for each output, and before them for values that are used more than once."""
    uses: dict[int, int] = {}
    depth: dict[int, int] = {}
    for node in nodes:
        depth[node.id] = 1 + max((depth[a.id] for a in node.arguments), default=0)
        for argument in node.arguments:
            uses[argument.id] = uses.get(argument.id, 0) + 1
        if depth[node.id] >= _DEEPEST:
            uses[node.id] = 2
            depth[node.id] = 1
        if node.operation in ("sigmoid", "tanh", "relu") and any(
            term.operation == "layer_norm" for term in _terms(node.arguments[0])
        ):
            uses[node.arguments[0].id] = 2
    called = {node.id: name for name, node in reversed(list(outputs.items())) if node.arguments}
    names: dict[int, str] = {}
    lines: list[str] = []
    temporaries = 0
    for node in nodes:
        if node.arguments and (uses.get(node.id, 0) > (node.id not in called) or depth[node.id] == 1):
            temporaries += node.id not in called
            name = called.get(node.id) or f"t{temporaries}"
            lines.append(f"{name} = {render(node, names)}")
            names[node.id] = name
    for name, node in outputs.items():
        if names.get(node.id) != name:
            lines.append(f"{name} = {names.get(node.id) or render(node, names)}")
    return lines
