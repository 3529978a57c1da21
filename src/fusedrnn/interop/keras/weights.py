"""Keras's weights in the order and shapes of modules: transposed, with gates i f g o and r z n."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.layers import LayerNorm, Linear
from fusedrnn.nn.module import Module
from fusedrnn.nn.recurrent import GRU, LSTM, RNN

# Keras's blocks in the order of ours: i f c o as i f g o, and z r h as r z n.
_GATES = {LSTM: (0, 1, 2, 3), GRU: (1, 0, 2), RNN: (0,)}
# What Keras calls the layer that a module is, in the names of groups.
GROUPS = {
    Embedding: "embedding",
    GRU: "gru",
    LSTM: "lstm",
    LayerNorm: "layer_normalization",
    Linear: "dense",
    RNN: "simple_rnn",
}


class Names:
    """The groups of a file in the order of its layers: lstm, lstm_1 and so on."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def next(self, kind: str) -> str:
        """Return the group of the next layer of a kind."""
        count = self._used.get(kind, 0)
        self._used[kind] = count + 1
        return f"{kind}_{count}" if count else kind


class Weights:
    """The arrays of a file, each of which is taken once."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    def shape(self, group: str) -> tuple[int, ...]:
        """Return the shape of the first array of a group.

        Raises:
            ValueError: there is none.
        """
        return self._find(group, 0).shape

    def take(self, group: str, **shapes: tuple[int, ...]) -> list[Array]:
        """Return the arrays of a group in their order, which are to have these shapes.

        Raises:
            ValueError: another number of arrays, or other shapes.
        """
        arrays = []
        for index, (name, shape) in enumerate(shapes.items()):
            array = self._find(group, index)
            if array.shape != shape:
                raise ValueError(f"{group}: expected a {name} of shape {shape}, got {array.shape}")
            arrays.append(array)
            del self._arrays[f"{group}/vars/{index}"]
        return arrays

    def check_all_taken(self) -> None:
        """Raise ValueError if arrays are left."""
        if self._arrays:
            names = ", ".join(sorted(self._arrays)[:4])
            raise ValueError(f"weights: expected a module for every array, got none for {names}")

    def _find(self, group: str, index: int) -> Array:
        array = self._arrays.get(f"{group}/vars/{index}")
        if array is None:
            there = sorted({name.split("/")[0] for name in self._arrays})
            raise ValueError(f"{group}: expected an array {index}, got none; layers that are left: {there}")
        return array


def recurrent_parameters(
    module: RNN | LSTM | GRU, weights: Weights, cells: list[str], layer: int, width: int
) -> dict[str, Array]:
    """Return the parameters of one layer of a network.

    Args:
        cells: the groups of its directions.
        layer: its number.
        width: of its inputs.
    """
    kind = next(kind for kind in _GATES if isinstance(module, kind))
    gates = _GATES[kind]
    hidden = module._network.layers[layer][0]
    rows = len(gates) * hidden
    after = kind is GRU and module._cell_options.get("reset_after", True)
    found = {}
    for cell, suffix in zip(cells, ("", "_reverse"), strict=False):
        shapes: dict[str, tuple[int, ...]] = {"kernel": (width, rows), "recurrent_kernel": (hidden, rows)}
        if module.bias:
            shapes["bias"] = (2, rows) if after else (rows,)
        kernel, recurrent, *rest = weights.take(cell, **shapes)
        arrays = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
        if rest:
            both = rest[0] if after else np.stack([rest[0], np.zeros_like(rest[0])])
            arrays |= {"bias_ih": both[0], "bias_hh": both[1]}
        for name, array in arrays.items():
            blocks = array.reshape(len(gates), hidden, *array.shape[1:])[list(gates)]
            found[f"{name}_l{layer}{suffix}"] = np.ascontiguousarray(blocks.reshape(array.shape))
    return found


def layer_parameters(module: Module, weights: Weights, group: str) -> dict[str, Array]:
    """Return the parameters of an Embedding, Linear or LayerNorm from its group."""
    if isinstance(module, Embedding):
        (table,) = weights.take(group, embeddings=(module.num_embeddings, module.embedding_dim))
        return {"weight": table}
    if isinstance(module, Linear):
        bias = {"bias": (module.out_features,)} if module.bias else {}
        kernel, *rest = weights.take(group, kernel=(module.in_features, module.out_features), **bias)
        return {"weight": np.ascontiguousarray(kernel.T)} | ({"bias": rest[0]} if rest else {})
    assert isinstance(module, LayerNorm)
    shapes = dict.fromkeys(module._own, module.normalized_shape)
    return dict(zip(shapes, weights.take(group, **shapes), strict=True))
