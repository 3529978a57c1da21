"""The tangent of a cell: a cell that carries the directional derivative of another one along its sequence.

For a step s' = F(a, s, p), with sums a = W_ih x + b_ih + W_hh h + b_hh, and directions of all that it reads,
its tangent has the states of both, d being the direction's:

    s' = F(a, s, p)     ds' = dF/da da + dF/ds ds + dF/dp dp
    da = (dW_ih x + db_ih + dW_hh h + db_hh) + (W_ih dx + W_hh dh)

Its gates are those of the last bracket first, whose product is with the hidden state dh, then those of a and
of the bracket before it, whose products are with h. So it is a cell as any other, over inputs [x; dx] and the
weights [0 W; W 0; dW 0]. Its y is the derivative of the cell's y, and its backward has second derivatives.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from fusedrnn.symbolic import sym
from fusedrnn.symbolic.cell import DefinedCell
from fusedrnn.symbolic.declared import MOST_NAMES
from fusedrnn.symbolic.define import define_cell
from fusedrnn.symbolic.gradient import gradients
from fusedrnn.symbolic.graph import Expression, Graph, cone

Symbols = Mapping[str, Expression]


@lru_cache(maxsize=64)
def tangent_cell(cell: DefinedCell) -> DefinedCell:
    """Return the tangent of a cell: gates e* g* d*, states d* s*, parameters p* d*, numbered as the cell's.

    Raises:
        ValueError: the step is not pointwise, has masks, or has so many names that the kernels have no room.
    """
    if cell.operations or cell.masks:
        what = "normalises rows or has products of its own" if cell.operations else "has masks"
        raise ValueError(
            f"cell: expected a pointwise one for second derivatives, got {cell.name}, which {what}"
        )
    units = cell.unit_symbols
    counts = {"gates": 3 * len(cell.gates), "states": 2 * len(cell.states), "parameters": 2 * len(units)}
    for kind, count in counts.items():
        if count > MOST_NAMES[kind]:
            most = MOST_NAMES[kind] * len(getattr(cell, kind)) // count if kind != "parameters" else 8
            raise ValueError(
                f"cell: expected at most {most} {kind} of a unit for second derivatives, got {cell.name}"
            )

    def step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Expression]:
        known, along = {}, {}
        for i, gate in enumerate(cell.gates):
            e, g, d = (f"{kind}{i}" for kind in "egd")
            of_h = (
                {name: sym.product(getattr(h, name), s.s0) for name in (g, d)} if cell.hidden_product else {}
            )
            own = {"x": (getattr(x, g), getattr(x, e), getattr(x, d))}
            if of_h:
                own["h"] = of_h[g], getattr(h, e), of_h[d]
                # Added half by half, so that the kernels may keep sums alone.
                own["a"] = tuple(a + b for a, b in zip(own["x"], own["h"], strict=True))
            for kind, (value, moved, changed) in own.items():
                known[f"{kind}.{gate}"], along[f"{kind}.{gate}"] = value, moved + changed
        for i, state in enumerate(cell.states):
            known[f"s.{state}"], along[f"s.{state}"] = getattr(s, f"s{i}"), getattr(s, f"d{i}")
        for i, symbol in enumerate(units):
            known[symbol], along[symbol] = getattr(p, f"p{i}"), getattr(p, f"d{i}")
        values, tangents = _directional(cell.next_states, known, along)
        return {f"s{i}": value for i, value in enumerate(values)} | {
            f"d{i}": tangent for i, tangent in enumerate(tangents)
        }

    def numbered(kinds: str, count: int) -> list[str]:
        return [f"{kind}{i}" for kind in kinds for i in range(count)]

    return define_cell(
        f"tangent of {cell.name}"[:64],
        numbered("egd", len(cell.gates)),
        numbered("ds", len(cell.states)),
        step,
        parameters=numbered("pd", len(units)),
        hidden="d0",
        bias=cell.bias,
    )


def _directional(
    roots: Mapping[str, Expression], known: Symbols, along: Symbols
) -> tuple[list[Expression], list[Expression]]:
    """Return the values of roots over other symbols, and their derivatives along these directions.

    Backward of backward, which is linear in the gradients that reach it, is forward: no rule stands twice.
    """
    scratch = Graph()
    symbols = [node.name for node in cone(roots.values()) if node.operation == "input"]
    values = _over(roots.values(), {name: scratch.input(name) for name in symbols}, scratch)
    reaching = [scratch.input(f"reaching.{i}") for i in range(len(values))]
    backward = gradients(zip(values, reaching, strict=True), [scratch.input(name) for name in symbols])
    pairs = [
        (gradient, scratch.input(f"along.{name}"))
        for name, gradient in zip(symbols, backward, strict=True)
        if gradient is not None
    ]
    zero = scratch.constant(0.0)
    tangents = [zero if found is None else found for found in gradients(pairs, reaching)]
    graph = next(iter(known.values())).graph
    given = {**known, **{f"along.{name}": along[name] for name in symbols}}
    found = _over([*values, *tangents], given, graph)
    return found[: len(values)], found[len(values) :]


def _over(roots: Any, symbols: Symbols, graph: Graph) -> list[Expression]:
    """Return expressions over other symbols, of another graph."""
    roots = list(roots)
    done: dict[int, Expression] = {}
    for node in cone(roots):
        if node.operation == "input":
            done[node.id] = symbols[node.name]
        elif node.operation == "constant":
            done[node.id] = graph.constant(node.value)
        else:
            done[node.id] = graph.make(node.operation, *(done[a.id] for a in node.arguments))
    return [done[root.id] for root in roots]
