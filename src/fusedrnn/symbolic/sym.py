"""What the step of a user's cell is written with, beside operators.

Those are `+ - * /`, `**` with an int, `< <= > >=`, and `& | ~` of comparisons. Every function takes symbols
or numbers, at least one symbol, and returns a symbol. All but `layer_norm` and `product` are pointwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import overload

from fusedrnn.checks import check_choice
from fusedrnn.symbolic.graph import Expression, Graph, Operand

__all__ = [
    "Expression",
    "abs",
    "clip",
    "cos",
    "elu",
    "exp",
    "gelu",
    "heaviside",
    "layer_norm",
    "log",
    "maximum",
    "minimum",
    "product",
    "relu",
    "sigmoid",
    "sin",
    "softplus",
    "sqrt",
    "tanh",
    "where",
]


def __dir__() -> list[str]:
    return __all__


def _graph(name: str, *values: Operand) -> Graph:
    for value in values:
        if isinstance(value, Expression):
            return value.graph
    got = ", ".join(type(value).__name__ for value in values)
    raise TypeError(f"sym.{name}: expected a symbol among its arguments, got {got}")


def _apply(name: str, *values: Operand) -> Expression:
    return _graph(name, *values).make(name, *values)


def sigmoid(x: Expression) -> Expression:
    """Return 1 / (1 + exp(-x))."""
    return _apply("sigmoid", x)


def tanh(x: Expression) -> Expression:
    """Return the hyperbolic tangent."""
    return _apply("tanh", x)


def relu(x: Expression) -> Expression:
    """Return max(0, x), of gradient 0 at 0."""
    return _apply("relu", x)


def exp(x: Expression) -> Expression:
    """Return e to the power of x."""
    return _apply("exp", x)


def log(x: Expression) -> Expression:
    """Return the natural logarithm: NaN below 0, -inf at 0."""
    return _apply("log", x)


def sqrt(x: Expression) -> Expression:
    """Return the square root: NaN below 0."""
    return _apply("sqrt", x)


def softplus(x: Expression) -> Expression:
    """Return log(1 + exp(x)), without overflow."""
    return _apply("softplus", x)


def elu(x: Expression, alpha: float = 1.0) -> Expression:
    """Return x where x > 0 and alpha (exp(x) - 1) elsewhere."""
    value = _apply("elu", x)
    return value if alpha == 1.0 else where(x > 0, x, alpha * value)


def gelu(x: Expression, approximate: str = "none") -> Expression:
    """Return x times the normal distribution function at x, by erf or, `approximate="tanh"`, by tanh."""
    check_choice("approximate", approximate, ("none", "tanh"))
    if approximate == "tanh":
        return 0.5 * x * (1.0 + tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))
    return 0.5 * x * (1.0 + _apply("erf", math.sqrt(0.5) * x))


def sin(x: Expression) -> Expression:
    """Return the sine of x in radians."""
    return _apply("sin", x)


def cos(x: Expression) -> Expression:
    """Return the cosine of x in radians."""
    return _apply("cos", x)


def abs(x: Expression) -> Expression:
    """Return |x|, of gradient 0 at 0."""
    return _apply("abs", x)


def minimum(a: Operand, b: Operand) -> Expression:
    """Return the smaller of two, NaN where either is; equal ones take half of the gradient each."""
    return _apply("minimum", a, b)


def maximum(a: Operand, b: Operand) -> Expression:
    """Return the larger of two, NaN where either is; equal ones take half of the gradient each."""
    return _apply("maximum", a, b)


def where(condition: Expression, a: Operand, b: Operand) -> Expression:
    """Return a where the comparison holds and b elsewhere; the other one takes a gradient of exactly 0.

    Raises:
        TypeError: `condition` is no comparison, nor `&`, `|` or `~` of comparisons.
    """
    if not isinstance(condition, Expression) or not condition.is_condition:
        raise TypeError(f"sym.where: expected a comparison as the condition, got {condition!r}")
    return _apply("where", condition, a, b)


def clip(x: Expression, low: Operand, high: Operand) -> Expression:
    """Return x cut to [low, high], of gradient 1 in it, borders included, and 0 outside."""
    graph = _graph("clip", x, low, high)
    return graph.make(
        "where", graph.make("less", x, low), low, graph.make("where", graph.make("less", high, x), high, x)
    )


_SURROGATES: dict[str, tuple[float, Callable[[Expression, float], Expression]]] = {
    "atan": (2.0, lambda x, k: 0.5 * k / (1.0 + (0.5 * math.pi * k * x) ** 2)),
    "fast_sigmoid": (25.0, lambda x, k: 1.0 / (1.0 + k * abs(x)) ** 2),
    "sigmoid": (25.0, lambda x, k: k * sigmoid(k * x) * (1.0 - sigmoid(k * x))),
    "straight_through": (1.0, lambda x, k: x.graph.constant(k)),
}


def heaviside(
    x: Expression,
    surrogate: str | Callable[[Expression], Operand] = "atan",
    slope: float | None = None,
) -> Expression:
    """Return 1 where x > 0 and 0 elsewhere, a spike, with a surrogate for its gradient.

    Args:
        x: what has to be positive, the membrane potential less the threshold.
        surrogate: with k the slope, "atan" (k / 2 / (1 + (pi k x / 2)^2)), "fast_sigmoid"
            (1 / (1 + k |x|)^2), "sigmoid" (that of sigmoid(k x)), "straight_through" (k), or a function of x.
        slope: k; by default 2, 25, 25 and 1.

    Raises:
        TypeError: x is no symbol.
        ValueError: no surrogate has this name.
    """
    graph = _graph("heaviside", x)
    if callable(surrogate):
        if slope is not None:
            raise ValueError(f"slope: expected None with a function as the surrogate, got {slope}")
        return graph.make("heaviside", x, surrogate(x))
    if not isinstance(surrogate, str) or surrogate not in _SURROGATES:
        raise ValueError(
            f"surrogate: expected a function or one of {', '.join(_SURROGATES)}, got {surrogate!r}"
        )
    usual, derivative = _SURROGATES[surrogate]
    return graph.make("heaviside", x, derivative(x, usual if slope is None else float(slope)))


@overload
def layer_norm(value: Expression, /) -> Expression: ...
@overload
def layer_norm(value: Expression, second: Expression, /, *values: Expression) -> tuple[Expression, ...]: ...
def layer_norm(*values: Expression) -> Expression | tuple[Expression, ...]:
    """Return (v - mean) / sqrt(var + 1e-5) of each value v, with mean and variance over its row of H units.

    Several values share mean and variance, which are then over all of their units: `layer_norm(x.i, x.f)`.
    Gain and bias are a step's own: `p.gain * layer_norm(c) + p.bias`. Values that are equal give exactly 0.

    Args:
        values: symbols or what is made of them; all gates of x, or all of h, in their order are normalised
            where they are, and may then not be read otherwise.

    Returns:
        The normalised value; a tuple of them where there are several.

    Raises:
        TypeError: no value, or one that is no expression.

    Paper: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    if not values:
        raise TypeError("sym.layer_norm: expected at least one symbol, got none")
    graph = _graph("layer_norm", *values)
    for value in values:
        if not isinstance(value, Expression):
            raise TypeError(f"sym.layer_norm: expected symbols, got {type(value).__name__}")
        if value.graph is not graph:
            raise ValueError("sym.layer_norm: expected symbols of one step, got those of several")
    results = tuple(graph.bare("layer_norm", *values, name=str(i)) for i in range(len(values)))
    return results if len(results) > 1 else results[0]


def product(gate: Expression, operand: Expression) -> Expression:
    """Return W_hh v + b_hh of the gate, as h.g is, with v = `operand` in place of h.

    The gates of such products are the last of the cell, those of one operand beside each other.

    Args:
        gate: h.g of a gate g, which may then not be read otherwise.
        operand: what is multiplied, as in `product(h.n, r * s.h)`.

    Raises:
        TypeError: an argument that is no expression.
        ValueError: `gate` is no h.g.
    """
    for name, value in (("gate", gate), ("operand", operand)):
        if not isinstance(value, Expression):
            raise TypeError(f"sym.product: {name}: expected a symbol, got {type(value).__name__}")
    if gate.operation != "input" or not gate.name.startswith("h."):
        raise ValueError(f"sym.product: gate: expected h.g of a gate g, got {gate!r}")
    if operand.graph is not gate.graph:
        raise ValueError("sym.product: operand: expected symbols of one step, got those of several")
    return gate.graph.bare("product", gate, operand)
