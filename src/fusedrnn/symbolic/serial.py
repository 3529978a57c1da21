"""Cells as JSON: names and a list of operations, nothing that is executed."""

from __future__ import annotations

import copyreg
import json
import math
from typing import Any, NoReturn

import numpy as np

from fusedrnn.cell_spec import Initial
from fusedrnn.symbolic.cell import DefinedCell
from fusedrnn.symbolic.declared import check_declared, check_initial
from fusedrnn.symbolic.graph import Expression, Graph, cone
from fusedrnn.symbolic.operations import OPERATIONS, USER_OPERATIONS

_FORMAT, _VERSION = "fusedrnn.cell", 1
_KEYS = ("format", "version", "name", "gates", "states", "parameters", "initial", "nodes", "next")

# Of a file; a long LSTM has 2 kB.
MOST_BYTES = 1 << 20
MOST_SAVED_NODES = 4096


def cell_to_json(cell: DefinedCell) -> str:
    """Return a cell as JSON.

    `nodes` is a list of ["input", name], ["constant", value], ["layer_norm", which of its results, index,
    ...] and [operation, index, ...], where an index is the place of an earlier node; `next` has the place of
    each state's expression; `initial` the values that gates' biases and parameters start from; `bias`, where
    the gates have none, is false; `gate_parameters` are those of the parameters that each gate has.

    Args:
        cell: what define_cell returned.

    Raises:
        TypeError: `cell` is none.
    """
    if not isinstance(cell, DefinedCell):
        raise TypeError(f"cell: expected what define_cell returns, got {type(cell).__name__}")
    # Operations on rows have taken the place of what they are made of.
    after = cell.given if cell.operations else cell.next_states
    nodes = cone(after.values())
    place = {node.id: i for i, node in enumerate(nodes)}
    listed: list[list[Any]] = []
    for node in nodes:
        if node.operation == "input":
            listed.append(["input", node.name])
        elif node.operation == "constant":
            listed.append(["constant", node.value])
        elif node.operation == "layer_norm":
            listed.append([node.operation, int(node.name), *(place[a.id] for a in node.arguments)])
        else:
            listed.append([node.operation, *(place[a.id] for a in node.arguments)])
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "name": cell.name,
        "gates": cell.gates,
        "states": cell.states,
        "parameters": cell.parameters,
        "initial": cell.initial,
        "nodes": listed,
        "next": {state: place[node.id] for state, node in after.items()},
    }
    # What cells seldom have is left out where they do not.
    if not cell.bias:
        content["bias"] = False
    if cell.gate_parameters:
        content["gate_parameters"] = cell.gate_parameters
    return json.dumps(content)


def cell_from_json(text: Any) -> DefinedCell:
    """Return the cell that `cell_to_json` wrote; nothing in the text is executed.

    Args:
        text: a str, bytes, or the array of bytes that a state_dict has.

    Raises:
        TypeError: `text` is none of these.
        ValueError: it is no cell.
    """
    if isinstance(text, np.ndarray) and text.dtype == np.uint8 and text.ndim == 1:
        text = text.tobytes()
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    if not isinstance(text, str):
        raise TypeError(f"cell: expected a str of JSON or its bytes, got {type(text).__name__}")
    if len(text) > MOST_BYTES:
        raise ValueError(f"cell: expected JSON of at most {MOST_BYTES} characters, got {len(text)}")
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cell: expected JSON of a cell, got what is none: {error}") from None
    if (
        not isinstance(content, dict)
        or set(content) - {"bias", "gate_parameters"} != set(_KEYS)
        or content["format"] != _FORMAT
        or content.get("bias", False) is not False
    ):
        raise ValueError(f"cell: expected a JSON object of format {_FORMAT!r} with {', '.join(_KEYS)}")
    if content["version"] != _VERSION:
        raise ValueError(f"cell: version: expected {_VERSION}, got {content['version']!r:.40}")
    names = {}
    for kind in ("gates", "states", "parameters"):
        names[kind] = content[kind]
        if not isinstance(names[kind], list) or not all(isinstance(n, str) for n in names[kind]):
            raise ValueError(f"cell: {kind}: expected a list of names")
    of_gates, bias = content.get("gate_parameters", []), content.get("bias", True)
    if not isinstance(of_gates, list) or not all(name in names["parameters"] for name in of_gates):
        raise ValueError("cell: gate_parameters: expected names of parameters")
    check_declared(content["name"], **names, gate_parameters=of_gates, bias=bias)
    known = [f"{kind}.{gate}" for kind in "xha" for gate in names["gates"]]
    known += [f"s.{state}" for state in names["states"]]
    for name in names["parameters"]:
        known += [f"p.{name}.{gate}" for gate in names["gates"]] if name in of_gates else [f"p.{name}"]
    graph = Graph()
    nodes = _read_nodes(graph, content["nodes"], frozenset(known))
    after = content["next"]
    if not isinstance(after, dict) or set(after) != set(names["states"]):
        raise ValueError(f"cell: next: expected an expression for each of {', '.join(names['states'])}")
    next_states = {
        state: nodes[_index(f"next.{state}", after[state], len(nodes))] for state in names["states"]
    }
    return DefinedCell(
        content["name"],
        **names,
        graph=graph,
        next_states=next_states,
        initial=_read_initial(content["initial"], [s for s in known if s[0] in "xp"]),
        bias=bias,
        gate_parameters=of_gates,
    )


def _read_initial(given: Any, symbols: list[str]) -> dict[str, Initial]:
    if not isinstance(given, dict) or not set(given) <= set(symbols):
        raise ValueError("cell: initial: expected values of gates, x.g, and parameters, p.n")
    try:
        return {symbol: check_initial(f"cell: initial: {symbol}", value) for symbol, value in given.items()}
    except TypeError as error:
        raise ValueError(str(error)) from None


def _read_nodes(graph: Graph, listed: Any, known: frozenset[str]) -> list[Expression]:
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_SAVED_NODES:
        raise ValueError(f"cell: nodes: expected a list of 1 to {MOST_SAVED_NODES} operations")
    nodes: list[Expression] = []
    for i, entry in enumerate(listed):
        where = f"nodes[{i}]"
        if not isinstance(entry, list) or not entry or not isinstance(entry[0], str):
            raise ValueError(f"cell: {where}: expected [operation, argument, ...]")
        operation, *args = entry
        arity = 1 if operation in ("input", "constant") else None
        if operation == "layer_norm":
            nodes.append(_read_layer_norm(where, args, nodes))
            continue
        if arity is None and operation in USER_OPERATIONS:
            arity = OPERATIONS[operation].arity
        if operation == "product":
            arity = 2
        if arity is None:
            raise ValueError(f"cell: {where}: expected one of the known operations, got {operation!r:.40}")
        if len(args) != arity:
            raise ValueError(f"cell: {where}: expected {arity} argument(s) of {operation}, got {len(args)}")
        if operation == "input":
            if not isinstance(args[0], str) or args[0] not in known:
                raise ValueError(f"cell: {where}: expected a declared symbol, got {args[0]!r:.40}")
            kind, _, name = args[0].partition(".")
            pair = (graph.input(f"x.{name}"), graph.input(f"h.{name}")) if kind == "a" else None
            nodes.append(graph.make("add", *pair) if pair else graph.input(args[0]))
        elif operation == "constant":
            value = args[0]
            if type(value) not in (int, float) or not abs(value) < math.inf or abs(value) > 1e308:
                raise ValueError(f"cell: {where}: expected a finite constant, got {value!r:.40}")
            nodes.append(graph.constant(value))
        else:
            operands = [nodes[_index(where, a, i)] for a in args]
            if operation == "where" and not operands[0].is_condition:
                raise ValueError(f"cell: {where}: expected a comparison as the condition of where")
            if operation == "product":
                if not operands[0].name.startswith("h."):
                    raise ValueError(f"cell: {where}: expected h.g of a gate g to be multiplied")
                nodes.append(graph.bare(operation, *operands))
                continue
            nodes.append(graph.make(operation, *operands))
    return nodes


def _read_layer_norm(where: str, args: list[Any], nodes: list[Expression]) -> Expression:
    operands = [nodes[_index(where, a, len(nodes))] for a in args[1:]]
    if not operands:
        raise ValueError(f"cell: {where}: expected values that are normalised")
    result = _index(where, args[0], len(operands))
    return operands[0].graph.bare("layer_norm", *operands, name=str(result))


def _index(where: str, value: Any, end: int) -> int:
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(
            f"cell: {where}: expected the index of an earlier node, below {end}, got {value!r:.40}"
        )
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of a cell")


# Pickled by its definition: no function of the user's is looked up or run.
copyreg.pickle(DefinedCell, lambda cell: cell.origin or (cell_from_json, (cell_to_json(cell),)))
