"""Cells as data: files, damaged ones too, and the errors of steps that cannot be cells."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from defined_cells import CELLS, GRU, LSTM, SHUFFLE, Values

from fusedrnn.symbolic import DefinedCell, cell_from_json, cell_to_json, define_cell, sym
from fusedrnn.symbolic.program import MOST_SLOTS

pytestmark = pytest.mark.once


@pytest.mark.parametrize("cell", [*CELLS.values(), SHUFFLE], ids=lambda cell: cell.name)
def test_json_round_trip(cell: DefinedCell) -> None:
    text = cell_to_json(cell)
    again = cell_from_json(text)
    assert cell_to_json(again) == text
    assert str(again) == str(cell)
    assert (again.states, again.split_gates, again.direct_hidden) == (
        cell.states,
        cell.split_gates,
        cell.direct_hidden,
    )
    assert again.forward == cell.forward
    assert again.backward == cell.backward


def damaged(change: Callable[[dict[str, Any]], Any]) -> str:
    content = json.loads(cell_to_json(LSTM))
    change(content)
    return json.dumps(content)


DAMAGE: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "expected JSON"),
    "NaN": ('{"format": NaN}', "NaN"),
    "list": ("[]", "expected a JSON object"),
    "nested": ("[" * 100_000, "expected JSON"),
    "long": (" " * (1 << 21), "at most"),
    "key": (damaged(lambda c: c.pop("next")), "expected a JSON object"),
    "further key": (damaged(lambda c: c.update(code="print()")), "expected a JSON object"),
    "format": (damaged(lambda c: c.update(format="pickle")), "format"),
    "version": (damaged(lambda c: c.update(version=2)), "version: expected 1, got 2"),
    "name": (damaged(lambda c: c.update(name=3)), "name"),
    "gates": (damaged(lambda c: c.update(gates="i f")), "gates: expected a list"),
    "gate": (damaged(lambda c: c["gates"].append("__class__")), "gates: expected ASCII"),
    "gate twice": (damaged(lambda c: c["gates"].append("i")), "gates: expected different names"),
    "unused gate": (damaged(lambda c: c["gates"].append("k")), "no use of x.k or h.k"),
    "many states": (
        damaged(lambda c: c["states"].extend(f"s{i}" for i in range(99))),
        "states: expected at most 8",
    ),
    "initial": (damaged(lambda c: c.update(initial=[])), "initial: expected values of gates"),
    "initial symbol": (damaged(lambda c: c["initial"].update({"s.h": 1})), "initial: expected values of"),
    "initial value": (
        damaged(lambda c: c["initial"].update({"x.f": "1"})),
        "initial: x.f: expected a number",
    ),
    "initial pair": (damaged(lambda c: c["initial"].update({"x.f": [1, 0]})), "low <= high"),
    "initial size": (damaged(lambda c: c["initial"].update({"x.f": 10**400})), "x.f: expected a finite"),
    "no nodes": (damaged(lambda c: c.update(nodes=[])), "nodes: expected a list"),
    "many nodes": (
        damaged(lambda c: c["nodes"].extend([["constant", 1.0]] * 9999)),
        "nodes: expected a list",
    ),
    "no entry": (damaged(lambda c: c["nodes"].insert(0, [])), r"nodes\[0\]: expected \["),
    "operation": (damaged(lambda c: c["nodes"].insert(0, ["eval", "1"])), r"nodes\[0\].*got 'eval'"),
    "inner operation": (damaged(lambda c: c["nodes"].append(["fma", 0, 0, 0])), "known operations"),
    "arity": (damaged(lambda c: c["nodes"].append(["tanh", 0, 0])), "expected 1 argument"),
    "later node": (damaged(lambda c: c["nodes"].insert(0, ["tanh", 0])), "index of an earlier node"),
    "negative index": (damaged(lambda c: c["nodes"].append(["tanh", -1])), "index of an earlier node"),
    "bool index": (damaged(lambda c: c["nodes"].append(["tanh", True])), "index of an earlier node"),
    "symbol": (damaged(lambda c: c["nodes"].append(["input", "dnext.h"])), "expected a declared symbol"),
    "constant": (damaged(lambda c: c["nodes"].append(["constant", "1"])), "finite constant"),
    "large constant": (damaged(lambda c: c["nodes"].append(["constant", 10**400])), "finite constant"),
    "condition": (damaged(lambda c: c["nodes"].append(["where", 0, 0, 0])), "comparison"),
    "next": (damaged(lambda c: c["next"].pop("c")), "next: expected an expression for each of h, c"),
    "next index": (damaged(lambda c: c["next"].update(c=10**6)), "next.c: expected the index"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_json(kind: str) -> None:
    text, message = DAMAGE[kind]
    with pytest.raises(ValueError, match=message):
        cell_from_json(text)


def test_json_of_any_single_change_is_a_cell_or_an_error() -> None:
    text = cell_to_json(GRU)
    rng = np.random.default_rng(0)
    for _ in range(400):
        at = int(rng.integers(len(text)))
        changed = text[:at] + chr(int(rng.integers(32, 127))) + text[at + 1 :]
        with contextlib.suppress(ValueError):
            assert cell_from_json(changed).backward.code


def define(step: Callable[[Any, Any, Any, Any], Any], **options: Any) -> DefinedCell:
    return define_cell("trial", **{"gates": "a b", "states": "h c", "parameters": "w", **options}, step=step)


def use(x: Any, h: Any, s: Any, p: Any) -> Any:
    return x.a + h.a + x.b + h.b + p.w


BAD_STEPS: dict[str, tuple[Callable[[Any, Any, Any, Any], Any], type[Exception], str]] = {
    "unknown gate": (
        lambda x, h, s, p: x.k,
        AttributeError,
        r"x\.k: expected one of the gates a, b, got 'k'",
    ),
    "unknown state": (lambda x, h, s, p: s.m, AttributeError, r"s\.m: expected one of the states h, c"),
    "if": (lambda x, h, s, p: 1 if x.a > 0 else 2, TypeError, r"0 < x\.a: has no value yet.*sym\.where"),
    "and": (lambda x, h, s, p: (x.a > 0) and (x.b > 0), TypeError, r"0 < x\.a: has no value yet"),
    "max": (lambda x, h, s, p: max(x.a, h.a), TypeError, "maximum"),
    "==": (lambda x, h, s, p: x.a == h.a, TypeError, r"x\.a: == and !="),
    "index": (lambda x, h, s, p: (x.a + h.a)[0], TypeError, r"x\.a \+ h\.a: .*pointwise"),
    "sum": (lambda x, h, s, p: sum(x.a), TypeError, r"x\.a: .*pointwise"),
    "matmul": (lambda x, h, s, p: x.a @ h.a, TypeError, r"x\.a: .*pointwise"),
    "array": (lambda x, h, s, p: x.a * np.ones(3), TypeError, r"x\.a.*array of shape \(3,\)"),
    "numpy matmul": (lambda x, h, s, p: np.matmul(x.a, h.a), TypeError, "numpy.matmul is not pointwise"),
    "numpy mean": (lambda x, h, s, p: np.mean(x.a), TypeError, r"x\.a: numpy.mean"),
    "math": (lambda x, h, s, p: math.tanh(x.a), TypeError, r"x\.a: has no value yet.*fusedrnn\.sym"),
    "string": (lambda x, h, s, p: x.a + "1", TypeError, r"add\(x\.a\): .*got str"),
    "none": (lambda x, h, s, p: sym.tanh(None), TypeError, "sym.tanh: expected a symbol"),  # type: ignore[arg-type]
    "infinite": (lambda x, h, s, p: x.a * math.inf, ValueError, "finite constant, got inf"),
    "power": (lambda x, h, s, p: x.a**0.5, ValueError, r"x\.a \*\* 0\.5: expected an int"),
    "condition": (
        lambda x, h, s, p: sym.where(x.a, 1, 2),
        TypeError,
        r"comparison as the condition, got x\.a",
    ),
    "and of values": (lambda x, h, s, p: x.a & h.a, TypeError, r"x\.a: expected a comparison"),
    "another cell's": (lambda x, h, s, p: x.a + LSTM.next_states["h"], ValueError, "another cell's"),
    "nothing": (lambda x, h, s, p: None, TypeError, "step: expected it to return .*got NoneType"),
    "not returned": (lambda x, h, s, p: {"h": use(x, h, s, p)}, ValueError, "got none for c"),
    "too much": (lambda x, h, s, p: {"h": x.a, "c": 1.0, "m": x.b}, ValueError, "got 'm' beside them"),
    "wrong value": (lambda x, h, s, p: {"h": x.a, "c": "c"}, TypeError, "step: c: expected an expression"),
    "unused gate": (lambda x, h, s, p: {"h": x.a, "c": p.w}, ValueError, r"no use of x\.b or h\.b"),
    "unused parameter": (lambda x, h, s, p: {"h": x.a + x.b, "c": s.c}, ValueError, r"no use of p\.w"),
    "set": (lambda x, h, s, p: setattr(s, "c", x.a), AttributeError, r"s\.c: cannot be set"),
    "surrogate": (lambda x, h, s, p: sym.heaviside(x.a, "boxcar"), ValueError, "surrogate: expected"),
    "surrogate_list": (lambda x, h, s, p: sym.heaviside(x.a, ["atan"]), ValueError, "surrogate: expected"),
}


@pytest.mark.parametrize("kind", BAD_STEPS)
def test_errors_of_steps(kind: str) -> None:
    step, error, message = BAD_STEPS[kind]
    with pytest.raises(error, match=message):
        define(step)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gates": "i i"}, ValueError, "gates: expected different names, got i i"),
        ({"gates": ""}, ValueError, "gates: expected at least one name"),
        ({"gates": "a-b"}, ValueError, "gates: expected ASCII identifiers.*got 'a-b'"),
        ({"states": 3}, TypeError, "states: expected names, got int"),
        ({"states": [1]}, TypeError, "states: expected names, got int"),
        ({"states": []}, ValueError, "states: expected at least one"),
        ({"parameters": "class"}, ValueError, "parameters: expected ASCII identifiers"),
        ({"gates": [f"g{i}" for i in range(33)]}, ValueError, "gates: expected at most 32 names, got 33"),
        ({"states": [f"s{i}" for i in range(9)]}, ValueError, "states: expected at most 8 names, got 9"),
        ({"parameters": [f"p{i}" for i in range(17)]}, ValueError, "parameters: expected at most 16 names"),
        ({"parameters": "bias_ih"}, ValueError, "parameters: expected other names .*, got bias_ih"),
        ({"parameters": {"w": "1"}}, TypeError, r"parameters\['w'\]: expected a number or \(low, high\)"),
        ({"parameters": {"w": True}}, TypeError, r"parameters\['w'\]: expected a number"),
        ({"parameters": {"w": (1, 0)}}, ValueError, r"parameters\['w'\]: .*low <= high"),
        ({"parameters": {"w": (1, 2, 3)}}, ValueError, r"parameters\['w'\]: expected a finite number or"),
        ({"gates": {"a": 0, "b": math.nan}}, ValueError, r"gates\['b'\]: expected a finite number"),
        ({"hidden": "x"}, ValueError, "hidden: expected one of the states h, c, got 'x'"),
    ],
)
def test_errors_of_names(options: Values, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        define(lambda x, h, s, p: {"h": use(x, h, s, p), "c": s.c}, **options)


def test_what_is_too_large_is_refused() -> None:
    def long(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
        y = x.a
        for i in range(30_000):
            y = y * s.h + float(i)
        return {"h": y}

    with pytest.raises(ValueError, match="at most 20000 operations"):
        define_cell("long", "a", "h", long)

    def wide(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
        y = x.a + h.a
        for i in range(MOST_SLOTS):
            y = sym.sin(y * (1 + 1 / (2 + i)))
        return {"h": y}

    with pytest.raises(ValueError, match=f"at a time to be at most {MOST_SLOTS}"):
        _ = define_cell("wide", "a", "h", wide).inference
