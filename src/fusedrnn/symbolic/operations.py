"""The operations of expressions and programs: what each computes and what it costs.

`PROGRAM_OPERATIONS` are the interpreter's, in the order of csrc/cells/program_list.h. The others are
rewritten into them when a program is made (see program.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn import _core


@dataclass(frozen=True)
class Operation:
    """One pointwise operation.

    Attributes:
        arity: number of arguments.
        evaluate: its value by NumPy, of arrays or numbers.
        cost: the time it takes over a tile of 32 rows, in additions, as measured with AVX2 in float32.
        commutative: whether its two arguments may change places without a change of a bit.
    """

    arity: int
    evaluate: Callable[..., Any]
    cost: float = 1.0
    commutative: bool = False


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e / (1 + e), 1 / (1 + e))


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


PROGRAM_OPERATIONS: dict[str, Operation] = {
    "copy": Operation(1, lambda a: a),
    "add": Operation(2, np.add, commutative=True),
    "subtract": Operation(2, np.subtract),
    "multiply": Operation(2, np.multiply, commutative=True),
    "divide": Operation(2, np.divide, 1.7),
    "fma": Operation(3, lambda a, b, c: a * b + c, 1.4),
    # With a mask a, which keeps b or passes c, and its gradient.
    "mix": Operation(3, lambda a, b, c: a * b + (1 - a) * c, 1.7),
    "rest": Operation(2, lambda a, b: (1 - a) * b, 1.3),
    # The gradient a b through a sigmoid and a tanh of value y.
    "sigmoid_slope": Operation(3, lambda a, b, y: a * b * (y * (1 - y)), 1.7),
    "tanh_slope": Operation(3, lambda a, b, y: a * b * (1 - y * y), 1.7),
    "less": Operation(2, lambda a, b: np.less(a, b) + 0.0, 1.3),
    "less_equal": Operation(2, lambda a, b: np.less_equal(a, b) + 0.0, 2),
    "where": Operation(3, lambda c, a, b: np.where(np.greater(c, 0), a, b), 1.5),
    "minimum": Operation(2, np.minimum, 1.5, commutative=True),
    "maximum": Operation(2, np.maximum, 1.5, commutative=True),
    "abs": Operation(1, np.abs),
    "relu": Operation(1, lambda a: np.maximum(a, 0)),
    "sqrt": Operation(1, np.sqrt, 2.5),
    "exp": Operation(1, np.exp, 5),
    "log": Operation(1, np.log, 14),
    "sigmoid": Operation(1, _sigmoid, 9),
    "tanh": Operation(1, np.tanh, 6.5),
    "softplus": Operation(1, lambda a: np.logaddexp(a, 0), 11),
    "elu": Operation(1, lambda a: np.where(np.greater(a, 0), a, np.expm1(np.minimum(a, 0))), 4.5),
    "erf": Operation(1, _erf, 13),
    "sin": Operation(1, np.sin, 7),
    "cos": Operation(1, np.cos, 7),
}

OPERATIONS: dict[str, Operation] = {
    **PROGRAM_OPERATIONS,
    "negative": Operation(1, np.negative),
    # The second argument is the surrogate: what stands for the derivative, and has no part in the value.
    "heaviside": Operation(2, lambda a, _: np.less(0, a) + 0.0),
}

# Not pointwise: what the kernels do with whole rows, between the stages of a step (see stages.py).
ROW_OPERATIONS = ("product", "layer_norm")

# What a user's cell, or a file, may be made of.
USER_OPERATIONS = tuple(
    name for name in OPERATIONS if name not in ("copy", "fma", "mix", "rest", "sigmoid_slope", "tanh_slope")
)


def _check_agreement() -> None:
    """Refuse to start when this file and the compiled module number operations differently."""
    declared = [(name, operation.arity) for name, operation in PROGRAM_OPERATIONS.items()]
    if declared != list(_core.program_operations.items()):
        raise RuntimeError(
            f"fusedrnn.symbolic.operations and the compiled fusedrnn._core do not agree: {declared} and "
            f"{list(_core.program_operations.items())}"
        )


_check_agreement()
