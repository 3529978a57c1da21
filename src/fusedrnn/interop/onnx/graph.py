"""The graph of an ONNX file as a module: its nodes in their order, over fusedrnn's modules and NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.interop.onnx.operators import OPERATORS
from fusedrnn.interop.onnx.recurrent import RecurrentNode
from fusedrnn.nn.containers import ModuleDict
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.layers import Linear
from fusedrnn.nn.module import Module
from fusedrnn.nn.recurrent_base import Recurrent

__all__ = ["Graph", "Node"]


@dataclass(frozen=True)
class Node:
    """One node: `layer` names its module among the graph's layers, or is "" for a function of NumPy."""

    label: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    layer: str = ""
    around: RecurrentNode | None = None


class Graph(Module):
    """The graph of an ONNX file, for inference: `y = graph(x)`. Made by `fusedrnn.onnx.load`.

    Each RNN, LSTM and GRU node is a module of `layers`, and so is each Gather from a table (an `Embedding`)
    and each MatMul or Gemm by a matrix (a `Linear`); the other nodes are NumPy. To train, compose modules of
    `layers` anew.

    Attributes:
        inputs: names of the arrays that a call takes, in their order.
        outputs: names of the arrays that it returns.
        layers: `ModuleDict` of the modules: lstm_0, linear_1, ...
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        layers: Mapping[str, Module],
        constants: Mapping[str, Array],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.layers = ModuleDict(layers)
        self._nodes, self._constants = tuple(nodes), dict(constants)

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Return the output, or a tuple of them where there are several.

        Args:
            arrays: the inputs in the order of `inputs`, of the shapes and dtypes that the file says.
            named: inputs by their names.

        Raises:
            TypeError: other inputs than there are, or one of another dtype than a node computes with.
            ValueError: a node's inputs do not fit each other; the node is named.
        """
        given = dict(zip(self.inputs, arrays, strict=False))
        if len(arrays) > len(self.inputs) or set(given) & set(named) or {*given, *named} != set(self.inputs):
            names = [*given, *named]
            raise TypeError(f"inputs: expected {list(self.inputs)}, got {len(arrays)} arrays and {names}")
        values: dict[str, Any] = {**self._constants, **given, **named}
        for node in self._nodes:
            taken = [values[name] if name else None for name in node.inputs]
            try:
                made = self._run(node, taken)
            except (TypeError, ValueError, IndexError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"node {node.label}: {error}") from error
            values.update((name, value) for name, value in zip(node.outputs, made, strict=False) if name)
        found = tuple(values[name] for name in self.outputs)
        return found[0] if len(found) == 1 else found

    def _run(self, node: Node, taken: list[Any]) -> list[Any]:
        if not node.layer:
            return [OPERATORS[node.op](node.attributes, *taken)]
        module = self.layers[node.layer]
        if isinstance(module, Recurrent) and node.around is not None:
            padded = taken + [None] * 7
            states = 2 if node.op == "LSTM" else 1
            lengths = None if padded[4] is None else np.asarray(padded[4])
            return node.around.run(module, padded[0], lengths, padded[5 : 5 + states])
        if isinstance(module, Embedding):
            indices = np.asarray(taken[1])
            return [module(np.where(indices < 0, indices + module.num_embeddings, indices))]
        assert isinstance(module, Linear)
        return [module(np.ascontiguousarray(taken[0]))]

    def _extra_repr(self) -> str:
        return f"inputs={list(self.inputs)}, outputs={list(self.outputs)}"
