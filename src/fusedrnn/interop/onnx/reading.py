"""From an ONNX file to a `Graph`: what it holds is checked, what cannot be run is refused by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.interop.onnx.graph import Graph, Node
from fusedrnn.interop.onnx.operators import OPERATORS
from fusedrnn.interop.onnx.recurrent import GATES, RecurrentNode, recurrent_node
from fusedrnn.libraries import needed
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.layers import Linear
from fusedrnn.nn.module import Module

__all__ = ["load"]

_WEIGHTS = {"W": 1, "R": 2, "B": 3, "P": 7}
# Attributes that choose how a function of operators.py works; others have to be absent, or to say nothing.
_ATTRIBUTES = {
    "Concat": {"axis"},
    "ConstantOfShape": {"value"},
    "Cast": {"to"},
    "Dropout": {"seed", "ratio"},
    "Gather": {"axis"},
    "Gemm": {"alpha", "beta", "transA", "transB"},
    "LogSoftmax": {"axis"},
    "Reshape": {"shape", "allowzero"},
    "Slice": {"starts", "ends", "axes"},
    "Softmax": {"axis"},
    "Squeeze": {"axes"},
    "Transpose": {"perm"},
    "Unsqueeze": {"axes"},
}
# Computed at once where all inputs are constants: exporters put weights together with them.
_FOLDED = {"Cast", "Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


def load(path: str | os.PathLike[str]) -> Graph:
    """Make a module of an ONNX file.

    The file may hold RNN, LSTM and GRU nodes of every opset, forward, reverse and bidirectional, in both
    layouts, with sequence_lens, initial states, peepholes and input_forget, whose weights are constants of
    the file; and around them Add, Cast, Concat, ConstantOfShape, Dropout, Expand, Gather, Gemm, Identity,
    LogSoftmax, MatMul, Mul, Relu, Reshape, Shape, Sigmoid, Slice, Softmax, Squeeze, Sub, Tanh, Transpose and
    Unsqueeze. Weights are float32 or float64. Nothing else is run or read: no other file, no code.

    Args:
        path: the file.

    Returns:
        A `Graph`: `y = graph(x)`, in inference; its `layers` are the modules.

    Raises:
        ModuleNotFoundError: the package onnx is not installed.
        OSError: the file cannot be read.
        ValueError: it is no ONNX file, is damaged, or holds what cannot be run: the node is named.
    """
    with needed("fusedrnn.onnx", "onnx"):
        import onnx

    with open(path, "rb") as file:
        data = file.read()
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors have no common base
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{os.fspath(path)}: not a valid ONNX file: {reason}") from None
    return _Reader(model, 4 * len(data) + 2**20).graph()


class _Reader:
    """Goes through the nodes of a model once."""

    def __init__(self, model: Any, most: int) -> None:
        self._model = model
        self._folded, self._most = 0, most
        self._opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self._constants: dict[str, Array] = {}
        self._layers: dict[str, Module] = {}
        self._nodes: list[Node] = []

    def graph(self) -> Graph:
        graph = self._model.graph
        if graph.sparse_initializer:
            raise ValueError("sparse_initializer: expected none; only dense constants are read")
        for tensor in graph.initializer:
            self._constants[tensor.name] = _array(tensor)
        for index, node in enumerate(graph.node):
            label = f"{node.name or index} ({node.op_type})"
            try:
                self._add(node, label)
            except (TypeError, ValueError) as error:
                raise ValueError(f"node {label}: {error}") from error
        inputs = [value.name for value in graph.input if value.name not in self._constants]
        outputs = [value.name for value in graph.output]
        # What became a parameter of a module is not kept a second time.
        used = {name for node in self._nodes for name in node.inputs} | set(outputs)
        constants = {name: value for name, value in self._constants.items() if name in used}
        return Graph(self._nodes, self._layers, constants, inputs, outputs)

    def _add(self, node: Any, label: str) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(f"domain: expected ONNX's own, got {node.domain!r}; it cannot be run")
        attributes = {a.name: _attribute(a) for a in node.attribute}
        op, inputs, outputs = node.op_type, tuple(node.input), tuple(node.output)
        if op == "Constant":
            self._constants[outputs[0]] = _constant(attributes)
            return
        if op in GATES:
            module, around = self._recurrent(op, inputs, attributes)
            kept = tuple("" if i in _WEIGHTS.values() else name for i, name in enumerate(inputs))
            self._append(label, op, kept, outputs, attributes, module, around)
            return
        if op not in OPERATORS:
            raise ValueError(f"expected one of {', '.join([*GATES, *OPERATORS])}; {op} cannot be run")
        unknown = sorted(set(attributes) - _ATTRIBUTES.get(op, set()))
        if unknown:
            raise ValueError(f"attribute {unknown[0]}: not one that is understood")
        attributes["opset"] = self._opset
        if op in _FOLDED and all(name in self._constants for name in inputs if name):
            made = OPERATORS[op](attributes, *(self._constants.get(name) for name in inputs))
            self._folded += made.nbytes
            if self._folded > self._most:
                raise ValueError("what is computed of constants alone is many times larger than the file")
            self._constants[outputs[0]] = made
            return
        layer = self._layer(op, inputs, attributes)
        if layer is None:
            self._append(label, op, inputs, outputs, attributes)
        else:
            kept = ("", inputs[1]) if op == "Gather" else (inputs[0],)
            self._append(label, op, kept, outputs, attributes, layer)

    def _append(
        self,
        label: str,
        op: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        attributes: Mapping[str, Any],
        module: Module | None = None,
        around: RecurrentNode | None = None,
    ) -> None:
        name = ""
        if module is not None:
            name = f"{type(module).__name__.lower()}_{len(self._layers)}"
            self._layers[name] = module
        self._nodes.append(Node(label, op, inputs, outputs, attributes, name, around))

    def _recurrent(self, op: str, inputs: tuple[str, ...], attributes: Mapping[str, Any]) -> Any:
        weights = {}
        for name, place in _WEIGHTS.items():
            given = inputs[place] if place < len(inputs) else ""
            if given and given not in self._constants:
                raise ValueError(f"{name}: expected a constant of the file, got {given!r}, which is computed")
            if given:
                weights[name] = self._constants[given]
        return recurrent_node(op, attributes, weights)

    def _layer(self, op: str, inputs: tuple[str, ...], attributes: Mapping[str, Any]) -> Module | None:
        """The module that a Gather from a table or a product with a matrix is, or None."""
        matrix = self._constants.get(inputs[0 if op == "Gather" else 1]) if len(inputs) > 1 else None
        if matrix is None or matrix.ndim != 2 or not matrix.size or matrix.dtype.kind != "f":
            return None
        if op == "Gather" and attributes.get("axis", 0) == 0 and inputs[1] not in self._constants:
            embedding = Embedding(*matrix.shape, dtype=matrix.dtype.name, init=None)
            embedding.load_state_dict({"weight": matrix})
            return embedding
        if op not in ("Gemm", "MatMul"):
            return None
        bias = self._constants.get(inputs[2]) if len(inputs) > 2 else None
        usual = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1
        if not usual or attributes.get("transA", 0) or (len(inputs) > 2 and bias is None):
            return None
        weight = matrix if attributes.get("transB", 0) else matrix.T
        if bias is not None and bias.shape != weight.shape[:1]:
            return None
        outputs, width = weight.shape
        linear = Linear(width, outputs, bias=bias is not None, dtype=weight.dtype.name, init=None)
        parameters = {"weight": np.ascontiguousarray(weight)} | ({} if bias is None else {"bias": bias})
        linear.load_state_dict(parameters)
        return linear


def _array(tensor: Any) -> Array:
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise ValueError(f"{tensor.name}: expected data inside the file; other files are not read")
    try:
        array = np.array(numpy_helper.to_array(tensor))  # a copy: what the file holds is read-only
    except Exception as error:  # whatever a damaged tensor makes of the reader
        raise ValueError(f"{tensor.name}: damaged: {error}") from None
    if array.dtype not in (np.float32, np.float64, np.int32, np.int64, np.bool_):
        raise ValueError(f"{tensor.name}: expected float32, float64, int32, int64 or bool, got {array.dtype}")
    return array


def _attribute(attribute: Any) -> Any:
    from onnx import AttributeProto, helper

    if attribute.ref_attr_name:
        raise ValueError(f"attribute {attribute.name}: expected a value, got a reference")
    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        raise ValueError(f"attribute {attribute.name}: expected a value; graphs inside of nodes are not run")
    if attribute.type == AttributeProto.TENSOR:
        return _array(attribute.t)
    value = helper.get_attribute_value(attribute)
    if attribute.name == "to":
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(value))
        if kind not in (np.float32, np.float64, np.int32, np.int64, np.bool_):
            raise ValueError(f"to: expected float32, float64, int32, int64 or bool, got {kind}")
        return kind
    if isinstance(value, list | tuple):
        return [each.decode() if isinstance(each, bytes) else each for each in value]
    return value.decode() if isinstance(value, bytes) else value


def _constant(attributes: Mapping[str, Any]) -> Array:
    if len(attributes) != 1:
        raise ValueError("expected one value")
    ((name, value),) = attributes.items()
    if name not in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        raise ValueError(f"attribute {name}: not one that is understood")
    if name == "value":
        return np.asarray(value)
    return np.asarray(value, np.float32 if "float" in name else np.int64)
