"""What stands around recurrent nodes, in NumPy: functions of attributes and inputs, None where left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.losses.gamma import log_softmax, sigmoid

__all__ = ["OPERATORS"]

Attributes = Mapping[str, Any]


def _axes(attributes: Attributes, given: Any) -> tuple[int, ...] | None:
    """Axes are an attribute up to opset 12 and an input from 13 on."""
    axes = attributes.get("axes") if given is None else given.tolist()
    return None if axes is None else tuple(axes)


def _squeeze(attributes: Attributes, x: Array, axes: Any = None) -> Array:
    return np.squeeze(x, _axes(attributes, axes))


def _unsqueeze(attributes: Attributes, x: Array, axes: Any = None) -> Array:
    found = _axes(attributes, axes)
    if found is None:
        raise ValueError("axes: expected some, got none")
    return np.expand_dims(x, found)


def _reshape(attributes: Attributes, x: Array, shape: Any = None) -> Array:
    wanted = list(attributes["shape"]) if shape is None else shape.tolist()
    if not attributes.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def _gemm(attributes: Attributes, a: Array, b: Array, c: Any = None) -> Array:
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    y: Array = np.matmul(a, b) * a.dtype.type(attributes.get("alpha", 1.0))
    if c is not None:
        y = y + c * a.dtype.type(attributes.get("beta", 1.0))
    return y


def _softmax(attributes: Attributes, x: Array) -> Array:
    return np.exp(_log_softmax(attributes, x))


def _log_softmax(attributes: Attributes, x: Array) -> Array:
    # Before opset 13 the axes from `axis` on are one; `axis` is 1 there where it is not given.
    if attributes["opset"] >= 13:
        axis: Any = attributes.get("axis", -1)
    else:
        axis = tuple(range(attributes.get("axis", 1) % x.ndim, x.ndim))
    return log_softmax(x, axis)


def _gather(attributes: Attributes, x: Array, indices: Any) -> Array:
    return np.asarray(np.take(x, indices, axis=attributes.get("axis", 0)))


def _slice(attributes: Attributes, x: Array, *given: Any) -> Array:
    starts: Any
    ends: Any
    axes: Any
    steps: Any
    if given:
        starts, ends, axes, steps = ([None if a is None else a.tolist() for a in given] + [None] * 4)[:4]
    else:
        starts, ends, axes, steps = attributes["starts"], attributes["ends"], attributes.get("axes"), None
    axes = range(len(starts)) if axes is None else axes
    cut: list[Any] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        cut[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    return np.asarray(x[tuple(cut)])


def _concat(attributes: Attributes, *arrays: Array) -> Array:
    return np.concatenate(arrays, attributes["axis"])


def _constant_of_shape(attributes: Attributes, shape: Any) -> Array:
    value = attributes.get("value", np.zeros(1, np.float32))
    return np.full(shape.tolist(), value.reshape(()), value.dtype)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda _, a, b: a + b,
    "Cast": lambda attributes, x: x.astype(attributes["to"]),
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Dropout": lambda _, x, *rest: x,
    "Expand": lambda _, x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist()))),
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": lambda _, x: x,
    "LogSoftmax": _log_softmax,
    "MatMul": lambda _, a, b: np.matmul(a, b),
    "Mul": lambda _, a, b: a * b,
    "Relu": lambda _, x: np.maximum(x, x.dtype.type(0)),
    "Reshape": _reshape,
    "Shape": lambda _, x: np.asarray(x.shape, np.int64),
    "Sigmoid": lambda _, x: sigmoid(x),
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": lambda _, a, b: a - b,
    "Tanh": lambda _, x: np.tanh(x),
    "Transpose": lambda attributes, x: np.transpose(x, attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
}
