"""Reverse-mode differentiation: the gradients of expressions are expressions of the same graph."""

import math
from collections.abc import Callable, Iterable, Sequence

from fusedrnn.symbolic.graph import Expression, Graph, cone

Rule = Callable[[Graph, Expression, Expression], Sequence[Expression | None]]


def _where(c: Expression, a: Expression | float, b: Expression | float) -> Expression:
    return c.graph.make("where", c, a, b)


def _of_extreme(graph: Graph, a_wins: Expression, b_wins: Expression, g: Expression) -> Sequence[Expression]:
    # Each takes what it wins; both take half where they are equal.
    return (
        _where(a_wins, g, _where(b_wins, 0.0, 0.5 * g)),
        _where(b_wins, g, _where(a_wins, 0.0, 0.5 * g)),
    )


def _multiply(graph: Graph, y: Expression, g: Expression) -> Sequence[Expression]:
    a, b = y.arguments
    return g * b, g * a


def _divide(graph: Graph, y: Expression, g: Expression) -> Sequence[Expression]:
    da = g / y.arguments[1]
    return da, -(da * y)


def _choose(graph: Graph, y: Expression, g: Expression) -> Sequence[Expression | None]:
    c = y.arguments[0]
    return None, _where(c, g, 0.0), _where(c, 0.0, g)


def _minimum(graph: Graph, y: Expression, g: Expression) -> Sequence[Expression]:
    a, b = y.arguments
    return _of_extreme(graph, a < b, b < a, g)


def _maximum(graph: Graph, y: Expression, g: Expression) -> Sequence[Expression]:
    a, b = y.arguments
    return _of_extreme(graph, b < a, a < b, g)


def _abs(graph: Graph, y: Expression, g: Expression) -> Sequence[Expression]:
    x = y.arguments[0]
    return (_where(x > 0.0, g, _where(x < 0.0, -g, g * x)),)  # 0 at 0, NaN at NaN


def _elu(graph: Graph, y: Expression, g: Expression) -> Sequence[Expression]:
    return (_where(y > 0.0, g, g * (y + 1.0)),)


# Of an operation: its value y and the gradient g of y give the gradients of its arguments, None for none.
_RULES: dict[str, Rule] = {
    "add": lambda graph, y, g: (g, g),
    "subtract": lambda graph, y, g: (g, -g),
    "multiply": _multiply,
    "divide": _divide,
    "negative": lambda graph, y, g: (-g,),
    "less": lambda graph, y, g: (None, None),
    "less_equal": lambda graph, y, g: (None, None),
    "where": _choose,
    "minimum": _minimum,
    "maximum": _maximum,
    "abs": _abs,
    # Where y is not positive it is 0 or NaN: the product gives 0 and keeps the NaN.
    "relu": lambda graph, y, g: (_where(y > 0.0, g, g * y),),
    "sqrt": lambda graph, y, g: (0.5 * g / y,),
    "exp": lambda graph, y, g: (g * y,),
    "log": lambda graph, y, g: (g / y.arguments[0],),
    "sigmoid": lambda graph, y, g: (g * (y * (1.0 - y)),),
    "tanh": lambda graph, y, g: (g * (1.0 - y * y),),
    "softplus": lambda graph, y, g: (g * graph.make("sigmoid", y.arguments[0]),),
    "elu": _elu,
    "erf": lambda graph, y, g: (
        g * (2.0 / math.sqrt(math.pi) * graph.make("exp", -(y.arguments[0] * y.arguments[0]))),
    ),
    "sin": lambda graph, y, g: (g * graph.make("cos", y.arguments[0]),),
    "cos": lambda graph, y, g: (-(g * graph.make("sin", y.arguments[0])),),
    "heaviside": lambda graph, y, g: (g * y.arguments[1], None),
}


def gradients(
    outputs: Iterable[tuple[Expression, Expression]], wanted: Iterable[Expression]
) -> list[Expression | None]:
    """Return the gradient of each node in `wanted`, None where no output depends on it.

    Args:
        outputs: pairs of an expression and the gradient that reaches it from outside.
        wanted: the symbols to differentiate by.
    """
    wanted, outputs = list(wanted), list(outputs)
    nodes = cone(node for node, _ in outputs)
    reached: dict[int, Expression] = {}

    def add(node: Expression, gradient: Expression) -> None:
        reached[node.id] = reached[node.id] + gradient if node.id in reached else gradient

    for node, gradient in outputs:
        add(node, gradient)
    # Nothing is computed for what leads to no wanted symbol.
    leads = {node.id for node in wanted}
    for node in nodes:
        if any(a.id in leads for a in node.arguments):
            leads.add(node.id)
    for node in reversed(nodes):
        if node.id in reached and node.arguments and node.id in leads:
            parts = _RULES[node.operation](node.graph, node, reached[node.id])
            for argument, part in zip(node.arguments, parts, strict=True):
                if part is not None and argument.id in leads:
                    add(argument, part)
    return [reached.get(node.id) for node in wanted]
