#!/usr/bin/env python3
"""Write the cells of tests/reference.py as C++, for the checks that run without Python.

usage: generate_reference.py FILE.h

The reference's own functions run once, on names of variables in place of numbers: what stands in for NumPy
here writes every operation down. So the equations exist once, and building needs no NumPy.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

statements: dict[str, str] = {}  # of the function being written: {expression: the variable that holds it}


def variable(expression: str) -> str:
    """Compute an expression once."""
    return statements.setdefault(expression, f"v{len(statements)}")


class Values:
    """One C++ expression for each gate: what stands for an array of gates * H numbers, or of (values, H)."""

    def __init__(self, gates: Sequence[str]) -> None:
        self.gates, self.shape = list(gates), len(gates)

    def map(self, write: Callable[..., str], *others: Any) -> Values:
        """The values of write(gate, other's gate, ...); numbers are the same for every gate."""
        columns = [o.gates if isinstance(o, Values) else [repr(float(o))] * self.shape for o in others]
        rows = zip(self.gates, *columns, strict=True)
        return Values([variable(write(*row)) for row in rows])

    def __getitem__(self, value: int) -> Values:
        return Values([self.gates[value]])

    def __neg__(self) -> Values:
        return self.map("-{}".format)

    def __gt__(self, other: Any) -> Values:
        return self.map("{} > {}".format, other)


def operator(sign: str) -> tuple[Callable[..., Values], Callable[..., Values]]:
    """Return an operator and its reflection."""
    return (
        lambda self, other: self.map(f"{{}} {sign} {{}}".format, other),
        lambda self, other: self.map(f"{{1}} {sign} {{0}}".format, other),
    )


for word, sign in {"add": "+", "sub": "-", "mul": "*", "truediv": "/"}.items():
    straight, reflected = operator(sign)
    setattr(Values, f"__{word}__", straight)
    setattr(Values, f"__r{word}__", reflected)


def power(self: Values, exponent: int) -> Values:
    assert exponent == 2, exponent
    return self * self


Values.__pow__ = power  # type: ignore[attr-defined]


class Names(types.ModuleType):
    """A stand-in for numpy and numpy.typing."""

    NDArray: Any = dict
    float64 = float

    @staticmethod
    def split(values: Values, parts: int) -> list[Values]:
        size = values.shape // parts
        return [Values(values.gates[i * size : (i + 1) * size]) for i in range(parts)]

    @staticmethod
    def concatenate(parts: Sequence[Values]) -> Values:
        return Values([gate for part in parts for gate in part.gates])

    @staticmethod
    def zeros(shape: int) -> Values:
        return Values(["0.0"] * shape)

    @staticmethod
    def zeros_like(values: Values) -> Values:
        return Values(["0.0"] * values.shape)

    @staticmethod
    def where(condition: Values, yes: float, no: float) -> Values:
        return condition.map("{} ? {} : {}".format, yes, no)


for function, form in {
    "tanh": "std::tanh({})",
    "cosh": "std::cosh({})",
    "exp": "std::exp({})",
    "maximum": "std::max({}, {})",
    "minimum": "std::min({}, {})",
    "clip": "std::clamp({}, {}, {})",
}.items():
    write = form.format
    setattr(Names, function, staticmethod(lambda values, *rest, write=write: values.map(write, *rest)))


def array(name: str, gates: int) -> Values:
    return Values([f"{name}[{gate} * H + u]" for gate in range(gates)])


def states(name: str, count: int) -> tuple[Values, ...]:
    return tuple(array(f"{name}[{k}]", 1) for k in range(count))


def function(head: str, outputs: Sequence[tuple[Values, Values]]) -> str:
    """A C++ function that assigns the values to the arrays, for each unit."""
    lines = [f"void {head} {{", "    for (std::int64_t u = 0; u < H; ++u) {"]
    lines += [f"        const auto {name} = {expression};" for expression, name in statements.items()]
    for to, values in outputs:
        pairs = zip(to.gates, values.gates, strict=True)
        lines += [f"        {target} = {value};" for target, value in pairs]
    statements.clear()
    return "\n".join([*lines, "    }", "}", ""])


def write_cell(name: str, cell: Any) -> str:
    """Both functions of a cell; see `Cell` in reference.cpp."""
    a, b, given = array("a", cell.gates), array("b", cell.gates), states("s", cell.states)
    units = [array(f"units[{k}]", values) for k, (_, values) in enumerate(cell.per_unit)]
    arguments = (
        "std::int64_t H, const Vector& a, const Vector& b, [[maybe_unused]] const States& s, "
        "[[maybe_unused]] const Units& units"
    )
    after = zip(states("next", cell.states), cell.step(a, b, given, *units), strict=True)
    step = function(f"{name}_step({arguments}, States& next)", list(after))
    da, db, ds, *dunits = cell.pull(a, b, given, states("d_next", cell.states), *units)
    gradients = [(array("da", cell.gates), da), (array("db", cell.gates), db)]
    gradients += zip(states("d", cell.states), ds, strict=True)
    gradients += [(array(f"dunits[{k}]", part.shape), part) for k, part in enumerate(dunits)]
    heading = (
        f"{name}_pull({arguments}, const States& d_next, Vector& da, Vector& db, States& d, "
        "[[maybe_unused]] Units& dunits)"
    )
    return step + function(heading, gradients)


def main() -> None:
    """Write the header."""
    sys.modules["numpy"] = numpy = Names("numpy")
    sys.modules["numpy.typing"] = numpy.typing = Names("numpy.typing")
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.dont_write_bytecode = True
    import reference

    cells = "".join(write_cell(name, cell) for name, cell in reference.CELLS.items())
    names = ", ".join(f'{{"{name}", {name}_step, {name}_pull}}' for name in reference.CELLS)
    file = Path(sys.argv[1])
    file.parent.mkdir(parents=True, exist_ok=True)
    text = f"// Written by generate_reference.py.\n{cells}constexpr Cell kCells[] = {{{names}}};\n"
    file.write_text(text)


if __name__ == "__main__":
    main()
