"""Steps of several stages: pointwise programs, and between them operations on whole rows.

Two things in a step are not pointwise: a product with weight_hh of something other than h
(`sym.product`), and `sym.layer_norm`. A step that has any is cut there. Forward runs, stage by stage,
operations on rows and then a program; so does backward with the adjoints of the operations.

A value that a later stage reads is a link: `link.k`, in memory of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusedrnn.symbolic.graph import Expression, Graph, cone, gate_of, is_gate_sum
from fusedrnn.symbolic.program import Program, lower


@dataclass(frozen=True)
class RowOperation:
    """One operation on rows.

    Attributes:
        kind: "product": gates of h from another operand; "layer_norm": values that are normalised in place.
        symbols: what the programs call its results: gates, or links.
        operands: what it takes, written to links; none where gates themselves are normalised.
        link: the first of these links.
        number: among the operations of its kind.
    """

    kind: str
    symbols: tuple[str, ...]
    operands: tuple[Expression, ...]
    link: int
    number: int

    @property
    def links(self) -> range:
        """The numbers of the links of its operands."""
        return range(self.link, self.link + len(self.operands))


@dataclass(frozen=True)
class Stage:
    """Operations on rows, by their index in the cell's list, and then a program."""

    operations: tuple[int, ...]
    program: Program


def cut_rows(
    graph: Graph, roots: Sequence[Expression], gates: Sequence[str], split: bool
) -> tuple[list[Expression], tuple[RowOperation, ...]]:
    """Return the roots with the results of row operations as symbols, and these operations.

    Args:
        gates: names of the gates in their order.
        split: False where the step sees sums x.g + h.g only: they become symbols a.g.
    """
    nodes = cone(roots)
    replaced = {}
    for node in nodes:
        if not split and is_gate_sum(node):
            replaced[node.id] = graph.input(f"a.{gate_of(node.arguments[0])[2:]}")
    kind = "h" if split else "a"
    products: dict[int, list[Expression]] = {}  # by operand
    norms: dict[tuple[int, ...], list[Expression]] = {}  # by operands
    for node in nodes:
        if node.operation == "product":
            products.setdefault(node.arguments[1].id, []).append(node)
            if split:
                replaced[node.id] = graph.input(gate_of(node))
        elif node.operation == "layer_norm":
            norms.setdefault(tuple(a.id for a in node.arguments), []).append(node)
    _check_products(products.values(), nodes, gates)

    found: list[tuple[int, str, tuple[str, ...], tuple[Expression, ...], int]] = []
    links = 0
    for same in products.values():
        first = links
        links += 1
        called = sorted((gate_of(node)[2:] for node in same), key=list(gates).index)
        symbols = tuple(f"{kind}.{gate}" for gate in called)
        found.append((same[0].id, "product", symbols, (same[0].arguments[1],), first))
    for same in norms.values():
        values = same[0].arguments
        in_place = _whole_gates(values, gates)
        symbols = tuple(a.name if in_place else f"link.{links + i}" for i, a in enumerate(values))
        found.append((same[0].id, "layer_norm", symbols, () if in_place else values, links))
        if not in_place:
            links += len(values)
        else:
            _check_raw(values, nodes)
        for node in same:
            replaced[node.id] = graph.input(symbols[int(node.name)])
    numbers = {"product": 0, "layer_norm": 0}
    operations = []
    for _, operation, symbols, operands, link in sorted(found):
        taken = tuple(graph.substitute(operands, replaced))
        operations.append(RowOperation(operation, symbols, taken, link, numbers[operation]))
        numbers[operation] += 1
    return graph.substitute(roots, replaced), tuple(operations)


def listed(
    operations: Sequence[RowOperation], gates: Sequence[str], hidden_product: bool
) -> npt.NDArray[np.int64]:
    """Of each: kind, of what (gates of x, of h, links), the first, count, link, number, saved value."""
    rows = []
    saved = 0
    for o in operations:
        kind, _, name = o.symbols[0].partition(".")
        of = {"x": 0, "h": 1, "a": 1, "link": 2}[kind]
        first = int(name) if of == 2 else gates.index(name)
        normalises = o.kind == "layer_norm"
        place = of if hidden_product or of == 2 else 1
        rows.append([int(normalises), place, first, len(o.symbols), o.link, o.number, saved])
        saved += len(o.symbols) * normalises
    return np.array(rows, np.int64).reshape(-1, 7)


def normalises_gates(nodes: Collection[Expression], gates: Sequence[str]) -> bool:
    """Whether all gates of x, or all of h, are normalised together: in place, before any sum of them."""
    return any(node.operation == "layer_norm" and _whole_gates(node.arguments, gates) for node in nodes)


def _whole_gates(values: Sequence[Expression], gates: Sequence[str]) -> bool:
    names = [value.name for value in values if value.operation == "input"]
    return any(names == [f"{kind}.{gate}" for gate in gates] for kind in "xh")


def _check_raw(values: Sequence[Expression], nodes: Collection[Expression]) -> None:
    known = {value.id: value for value in values}
    for node in nodes:
        if node.operation != "layer_norm":
            for a in node.arguments:
                if a.id in known:
                    raise ValueError(
                        f"step: expected {a.name} to be read normalised only, as its layer_norm is used, "
                        "got both"
                    )


def _check_products(
    products: Collection[list[Expression]], nodes: Collection[Expression], gates: Sequence[str]
) -> None:
    taken: list[str] = []
    for same in products:
        for name in (gate_of(node) for node in same):
            if name in taken:
                raise ValueError(f"step: expected one product of {name}, got two of different operands")
            taken.append(name)
            if any(
                a.name == name
                for node in nodes
                if node.operation != "product"
                for a in node.arguments
                if a.operation == "input"
            ):
                raise ValueError(f"step: expected either {name} or a product of it, got both")
    listed = [f"h.{gate}" for gate in gates]
    if products and sorted(taken, key=listed.index) != listed[len(listed) - len(taken) :]:
        raise ValueError(
            "gates: expected those whose product takes another operand to be the last, "
            f"got {', '.join(name[2:] for name in taken)} of {' '.join(gates)}"
        )
    for same in products:
        places = sorted(listed.index(gate_of(node)) for node in same)
        if places != list(range(places[0], places[0] + len(places))):
            raise ValueError("gates: expected those with the same operand to stand together")


def levels_of(nodes: Collection[Expression], known: Mapping[str, int]) -> dict[int, int]:
    """Return of each node, by id, the first stage in which it can be computed.

    Args:
        nodes: arguments first.
        known: of symbols that are not there from the beginning.
    """
    levels: dict[int, int] = {}
    for node in nodes:
        own = known.get(node.name, 0) if node.operation == "input" else 0
        levels[node.id] = max([own, *(levels[a.id] for a in node.arguments)])
    return levels


def lower_stages(
    graph: Graph,
    outputs: Mapping[str, Expression],
    known: Mapping[str, int],
    operations: Mapping[int, int],
    links: int,
    late: Mapping[str, str],
) -> tuple[tuple[Stage, ...], int]:
    """Return the stages that give `outputs`, and the number of links.

    A value is computed in the stage that needs it. If an earlier one has it anyway it is handed on: on the
    tape where it is kept, else as a link.

    Args:
        known: the stage of symbols that operations on rows give.
        operations: {index of an operation: its stage}.
        links: that operations take or give; values that are handed on get numbers after them.
        late: as that of `lower`: no late output is written before the last stage that reads an input of it.
    """
    nodes = cone(outputs.values())
    levels = levels_of(nodes, known)
    guarded = {node.id for node in nodes if node.operation == "input" and node.name in late.values()}
    last = 0
    while True:
        at = {name: max(levels[node.id], last if name in late else 0) for name, node in outputs.items()}
        count = 1 + max([*at.values(), *operations.values()])
        roots: list[dict[str, Expression]] = [
            {name: node for name, node in outputs.items() if at[name] == stage} for stage in range(count)
        ]
        taken, total = _hand_on(graph, roots, levels, links)
        readers = [
            stage
            for stage in range(count)
            for node in cone(roots[stage].values(), stop=taken[stage])
            if node.id in guarded
            or any(a.id in guarded for a in node.arguments if node.id not in taken[stage])
        ]
        if max(readers, default=0) <= last:
            break
        last = max(readers)
    stages = []
    for stage in range(count):
        found = graph.substitute(roots[stage].values(), taken[stage])
        inputs = list(dict.fromkeys(node.name for node in cone(found) if node.operation == "input"))
        named = dict(zip(roots[stage], found, strict=True))
        program = lower(graph, named, inputs, late)
        stages.append(Stage(tuple(i for i, level in operations.items() if level == stage), program))
    return tuple(stages), total


def _hand_on(
    graph: Graph, roots: list[dict[str, Expression]], levels: Mapping[int, int], links: int
) -> tuple[list[dict[int, Expression]], int]:
    """Add to the roots of each stage what later ones take of it; return that by stage, as symbols."""
    computed = [{node.id for node in cone(own.values()) if node.arguments} for own in roots]
    kept = {node.id: name for own in roots for name, node in own.items() if name.startswith("saved.")}
    carriers: dict[int, str] = {}
    taken: list[dict[int, Expression]] = [{} for _ in roots]
    for stage in range(len(roots) - 1, 0, -1):
        earlier = {i for own in computed[:stage] for i in own if levels[i] < stage}
        for node in cone(roots[stage].values(), stop=earlier):
            if node.id not in earlier:
                continue
            maker = next(i for i, own in enumerate(computed) if node.id in own and levels[node.id] <= i)
            if node.id not in carriers:
                name = kept.get(node.id, "")
                if name not in roots[maker]:
                    name = f"link.{links}"
                    links += 1
                    roots[maker][name] = node
                carriers[node.id] = name
            taken[stage][node.id] = graph.input(carriers[node.id])
    return taken, links


def only_sums(nodes: Iterable[Expression]) -> bool:
    """Whether nothing but x.g + h.g reads the gates, where products of other operands stand for h.g."""
    return not any(
        gate_of(a)
        for node in nodes
        if not is_gate_sum(node)
        for i, a in enumerate(node.arguments)
        if i or node.operation != "product"
    )
