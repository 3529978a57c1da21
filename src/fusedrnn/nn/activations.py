"""Tanh, Sigmoid, ReLU, GELU and Softmax as modules."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_choice
from fusedrnn.inputs.rows import check_floats, contiguous
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import SavedTape, check_tape
from fusedrnn.symbolic.graph import Graph
from fusedrnn.symbolic.program import Program, lower


class Activation(Module, ABC):
    """Base of the modules without parameters that keep the shape of x, which is float32 or float64."""

    _host_only = True
    _stepwise = True

    def __init__(self) -> None:
        super().__init__()

    def __call__(self, x: Array) -> Array:
        """Return y in the shape of x, float32 or float64."""
        check_floats("x", x, None)
        return self._apply(x, False)[0]

    def forward(self, x: Array) -> tuple[Array, SavedTape]:
        """Return y in the shape of x, and the tape. y may be read-only: the tape refers to it then.

        Raises:
            TypeError: x is not a float32 or float64 array.
        """
        check_floats("x", x, None)
        y, kept = self._apply(x, True)
        # A view, whose shape nobody else can change.
        tape = SavedTape(self, y.shape, (x.dtype, kept[...]), 0 if kept is x or kept is y else kept.nbytes)
        if kept is y:
            y.flags.writeable = False
        return y, tape

    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Return dx in the shape of x, or None without need_dx.

        Raises:
            TypeError: dy is not an array of the dtype of y.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        dtype, kept = tape.saved
        check_array("dy", dy, tape.shape, dtype)
        # Sums of another layout would have other bits.
        return self._gradient(kept, contiguous(dy)) if need_dx else None

    @abstractmethod
    def _apply(self, x: Array, save: bool) -> tuple[Array, Array]:
        """Return y, and what `_gradient` reads."""

    @abstractmethod
    def _gradient(self, kept: Array, dy: Array) -> Array:
        """Return dx."""


class Tanh(Activation):
    """y = tanh(x)."""

    def _apply(self, x: Array, save: bool) -> tuple[Array, Array]:
        y: Array = _core.tanh(contiguous(x))
        return y, y

    def _gradient(self, kept: Array, dy: Array) -> Array:
        dx: Array = dy * (1 - kept * kept)
        return dx


class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x))."""

    def _apply(self, x: Array, save: bool) -> tuple[Array, Array]:
        y: Array = _core.sigmoid(contiguous(x))
        return y, y

    def _gradient(self, kept: Array, dy: Array) -> Array:
        dx: Array = dy * (kept * (1 - kept))
        return dx


class ReLU(Activation):
    """y = max(x, 0); the gradient at 0 is 0."""

    def _apply(self, x: Array, save: bool) -> tuple[Array, Array]:
        y: Array = np.maximum(x, 0)
        return y, y > 0 if save else y

    def _gradient(self, kept: Array, dy: Array) -> Array:
        # Of bits: a product would make NaN of infinities, and where takes eight times as long.
        kind = np.dtype(f"i{dy.itemsize}")
        dx: Array = (dy.view(kind) & -kept.view(np.int8).astype(kind)).view(dy.dtype)
        return dx


class GELU(Activation):
    """y = x * Phi(x), where Phi is the distribution function of the standard normal distribution.

    The tape refers to x.

    Args:
        approximate: "none", or "tanh" for 0.5 * x * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3))).

    Raises:
        ValueError: another string.

    Paper: Hendrycks and Gimpel 2016, arXiv:1606.08415.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = check_choice("approximate", approximate, ("none", "tanh"))

    def _apply(self, x: Array, save: bool) -> tuple[Array, Array]:
        return _run(_gelu(self.approximate), x), x

    def _gradient(self, kept: Array, dy: Array) -> Array:
        return dy * _run(_gelu(self.approximate, True), kept)

    def _extra_repr(self) -> str:
        return "" if self.approximate == "none" else f"approximate={self.approximate!r}"


@cache
def _gelu(approximate: str, slope: bool = False) -> Program:
    """Return the program of GELU, or of its derivative."""
    graph = Graph()
    x, make = graph.input("x"), graph.make

    def times(*factors: Any) -> Any:
        product = factors[0]
        for factor in factors[1:]:
            product = make("multiply", product, factor)
        return product

    if approximate == "tanh":
        square = times(x, x)
        root = math.sqrt(2 / math.pi)
        inner = times(x, make("add", times(square, 0.044715 * root), root))
        bend = make("tanh", inner)
        phi = make("add", times(bend, 0.5), 0.5)
        growth = make("add", times(square, 3 * 0.044715 * root), root)
        density = times(make("subtract", 1.0, times(bend, bend)), growth, 0.5)
    else:
        phi = make("add", times(make("erf", times(x, math.sqrt(0.5))), 0.5), 0.5)
        density = times(make("exp", times(x, x, -0.5)), 1 / math.sqrt(2 * math.pi))
    y = make("add", phi, times(x, density)) if slope else times(x, phi)
    return lower(graph, {"y": y}, ["x"])


def _run(program: Program, x: Array) -> Array:
    """Return the program's output for every element of x."""
    constants = np.array(program.constants, x.dtype)
    rows = contiguous(x).reshape(1, -1)
    y: Array = _core.run_program(program.encoded, constants, rows, 1, program.temporaries)
    return y.reshape(x.shape)


class Softmax(Activation):
    """y = exp(x) / sum over the axis of exp(x), all of it: padded steps are not left out.

    Args:
        axis: along which y adds up to 1; negative counts from the end.

    Raises:
        TypeError: axis is not an int.
    """

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        try:
            self.axis = operator.index(axis)
        except TypeError:
            raise TypeError(f"axis: expected an int, got {axis!r}") from None

    def _apply(self, x: Array, save: bool) -> tuple[Array, Array]:
        if not -x.ndim <= self.axis < x.ndim:
            raise ValueError(f"x: expected an array with axis {self.axis}, got shape {x.shape}")
        y = softmax(x, self.axis)
        return y, y

    def _gradient(self, kept: Array, dy: Array) -> Array:
        return softmax_gradient(kept, dy, self.axis)

    def _step_in(self, stream: Any, name: str) -> Any:
        # Another axis is not the same in a step.
        return self if self.axis == -1 else None

    def _extra_repr(self) -> str:
        return f"axis={self.axis}"


def softmax(x: Array, axis: int) -> Array:
    """Return exp(x) / sum of exp(x) along an axis; of nothing but -inf zeros, of NaN and inf NaN."""
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        y: Array = _core.exp(contiguous(x - np.where(np.isneginf(top), 0, top).astype(x.dtype)))
        total = y.sum(axis=axis, keepdims=True)
        y /= np.where(total == 0, 1, total).astype(x.dtype)
    return y


def softmax_gradient(y: Array, dy: Array, axis: int) -> Array:
    """Return the gradient of x, of that of softmax's y."""
    product = y * dy
    dx: Array = product - y * product.sum(axis=axis, keepdims=True)
    return dx
