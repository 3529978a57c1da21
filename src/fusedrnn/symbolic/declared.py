"""What a cell declares, checked: its names and the values that parameters start from."""

import keyword
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from fusedrnn.cell_spec import Initial

# What the kernels have room for.
MOST_NAMES = {"gates": 32, "states": 8, "parameters": 16}
MOST_UNIT_VALUES = 64  # of all parameters of a unit
# Per-unit parameters stand beside these.
WEIGHTS = ("weight_ih", "weight_hh", "weight_hr")
BIASES = ("bias_ih", "bias_hh")


@dataclass(frozen=True)
class Mask:
    """A value of every unit that is one of two by chance, the symbol mask.k of a cell.

    Attributes:
        p: the probability of `drawn`; the value is `other` else, and `expected` where nothing is drawn.
        each_step: whether each step has a mask of its own, not each row of the batch one for all steps.
    """

    p: float
    drawn: float
    other: float
    expected: float
    each_step: bool


def check_declared(
    name: str,
    gates: Sequence[str],
    states: Sequence[str],
    parameters: Sequence[str],
    gate_parameters: Sequence[str] = (),
    bias: bool = True,
) -> None:
    """Refuse names that are none, stand twice or are too many."""
    if not isinstance(name, str) or not name or len(name) > 64 or not name.isprintable():
        raise ValueError(f"name: expected a printable name of at most 64 characters, got {name!r:.80}")
    for kind, names in {"gates": gates, "states": states, "parameters": parameters}.items():
        for n in names:
            if not isinstance(n, str):
                raise TypeError(f"{kind}: expected names, got {type(n).__name__}")
            if not n.isidentifier() or not n.isascii() or keyword.iskeyword(n) or n[0] == "_" or len(n) > 32:
                raise ValueError(
                    f"{kind}: expected ASCII identifiers of at most 32 characters without a leading _, "
                    f"got {n!r:.80}"
                )
        if len(set(names)) != len(names):
            raise ValueError(f"{kind}: expected different names, got {' '.join(names)}")
        if not names and kind != "parameters":
            raise ValueError(f"{kind}: expected at least one name, got none")
        if len(names) > MOST_NAMES[kind]:
            raise ValueError(f"{kind}: expected at most {MOST_NAMES[kind]} names, got {len(names)}")
    for n in parameters:
        if n in WEIGHTS or (bias and n in BIASES):
            raise ValueError(f"parameters: expected other names than those of the weights, got {n}")

    values = len(parameters) + len(gate_parameters) * (len(gates) - 1)
    if values > MOST_UNIT_VALUES:
        raise ValueError(f"parameters: expected at most {MOST_UNIT_VALUES} values of a unit, got {values}")


def check_initial(name: str, value: Any) -> Initial:
    """Return an initial value, a number or (low, high), or refuse it."""
    pair = isinstance(value, (tuple, list))
    numbers = tuple(value) if pair else (value,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"{name}: expected a number or (low, high), got {value!r:.40}")
    if len(numbers) != 1 + pair or not all(abs(number) <= 1e308 for number in numbers):
        raise ValueError(f"{name}: expected a finite number or (low, high), got {value!r:.40}")
    if numbers[0] > numbers[-1]:
        raise ValueError(f"{name}: expected (low, high) with low <= high, got {value!r:.40}")
    return (float(numbers[0]), float(numbers[1])) if pair else float(numbers[0])


def check_used(used: Collection[str], gates: Sequence[str], parameters: Sequence[str]) -> None:
    """Refuse gates and symbols of parameters that the step makes no use of."""
    for gate in gates:
        if f"x.{gate}" not in used and f"h.{gate}" not in used:
            raise ValueError(f"gates: expected step to use all of them, got no use of x.{gate} or h.{gate}")
    for symbol in parameters:
        if symbol not in used:
            raise ValueError(f"parameters: expected step to use all of them, got no use of {symbol}")
