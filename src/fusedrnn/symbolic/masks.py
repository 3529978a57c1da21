"""Cells with masks: recurrent dropout and zoneout as changes of a cell's equations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from fusedrnn.symbolic.cell import DefinedCell
from fusedrnn.symbolic.declared import Mask
from fusedrnn.symbolic.graph import Expression, Graph, cone
from fusedrnn.symbolic.operations import ROW_OPERATIONS
from fusedrnn.symbolic.serial import cell_from_json, cell_to_json


@lru_cache(maxsize=256)
def masked(cell: DefinedCell, zoneout: tuple[float, ...], recurrent_dropout: float) -> DefinedCell:
    """Return the cell with masks.

    What the products with weight_hh take is multiplied by 0 with probability `recurrent_dropout`, by
    1/(1-p) else, with one mask for all gates and steps of a sequence. A state k is what it was before the
    step with probability zoneout[k], of each unit and step: m*s + (1-m)*s', which is the expectation with
    m = p.

    Args:
        cell: one without masks.
        zoneout: a probability for each state.
        recurrent_dropout: the probability of dropping a unit of h.
    """
    graph, after = _copied(cell)
    masks: list[Mask] = []

    def draw(mask: Mask) -> Expression:
        masks.append(mask)
        return graph.input(f"mask.{len(masks) - 1}")

    roots = [after[state] for state in cell.states]
    if recurrent_dropout:
        kept = 1.0 / (1.0 - recurrent_dropout) if recurrent_dropout < 1.0 else 1.0
        factor = draw(Mask(recurrent_dropout, 0.0, kept, 1.0, each_step=False))
        roots = _masked_products(graph, roots, factor, graph.input(f"s.{cell.states[0]}"))
    for k, (state, p) in enumerate(zip(cell.states, zoneout, strict=True)):
        if p:
            stays = draw(Mask(p, 1.0, 0.0, p, each_step=True))
            roots[k] = stays * graph.input(f"s.{state}") + (1.0 - stays) * roots[k]
    names = ["recurrent dropout"] * (recurrent_dropout > 0) + ["zoneout"] * any(zoneout)
    made = DefinedCell(
        f"{cell.name} with {' and '.join(names)}",
        cell.gates,
        cell.states,
        cell.parameters,
        graph,
        dict(zip(cell.states, roots, strict=True)),
        cell.initial,
        cell.bias,
        cell.gate_parameters,
        masks,
    )
    made.origin = masked, (cell, zoneout, recurrent_dropout)
    return made


def _copied(cell: DefinedCell) -> tuple[Graph, dict[str, Expression]]:
    """The equations in a graph of their own, so that it always has the same nodes in the same order."""
    copy = cell_from_json(cell_to_json(cell))
    return copy._graph, copy.given


def _masked_products(
    graph: Graph, roots: Sequence[Expression], factor: Expression, hidden: Expression
) -> list[Expression]:
    """Return the roots with the operand of every product with weight_hh multiplied by `factor`."""
    nodes = cone(roots)
    gates = {node.arguments[0].id for node in nodes if node.operation == "product"}
    done: dict[int, Expression] = {}
    for node in nodes:
        args = [done[a.id] for a in node.arguments]
        if node.operation == "product":
            done[node.id] = graph.bare("product", node.arguments[0], factor * args[1])
        elif node.name.startswith("h.") and node.operation == "input" and node.id not in gates:
            done[node.id] = graph.bare("product", node, factor * hidden)
        elif not args:
            done[node.id] = node
        elif node.operation in ROW_OPERATIONS or node.operation == "add":
            # As it was: sums have their order, and what is normalised its number.
            done[node.id] = graph.bare(node.operation, *args, name=node.name)
        else:
            done[node.id] = graph.make(node.operation, *args)
    return [done[root.id] for root in roots]
