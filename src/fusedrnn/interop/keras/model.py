"""A Sequential of a Keras file as a module: masks, outputs and directions as Keras has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.functional import sigmoid
from fusedrnn.nn.activations import softmax
from fusedrnn.nn.containers import ModuleDict
from fusedrnn.nn.module import Module

__all__ = ["Model"]

Mask: TypeAlias = "Array | None"


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "softmax": lambda x: softmax(x, -1),
    "tanh": np.tanh,
}


@dataclass(frozen=True)
class Step:
    """What one layer of Keras does: `run` takes x and the mask beside it, and returns both.

    Attributes:
        label: the layer's name and class, for errors.
        layer: the name of its module, or "".
    """

    label: str
    layer: str = ""

    def run(self, module: Any, x: Array, mask: Mask) -> tuple[Array, Mask]:
        """Return y and the mask for the next layer."""
        return x, mask


@dataclass(frozen=True)
class Activated(Step):
    """A function, after that of a module if there is one."""

    activation: str = "linear"

    def run(self, module: Any, x: Array, mask: Mask) -> tuple[Array, Mask]:
        y = x if module is None else module(np.ascontiguousarray(x))
        return ACTIVATIONS[self.activation](y), mask


@dataclass(frozen=True)
class Embedded(Step):
    """A look-up; where `masked`, the mask leaves out token 0."""

    masked: bool = False

    def run(self, module: Any, x: Array, mask: Mask) -> tuple[Array, Mask]:
        return module(x), np.not_equal(x, 0) if self.masked else mask


@dataclass(frozen=True)
class Masking(Step):
    """Leaves out the steps whose values all are `value`."""

    value: float = 0.0

    def run(self, module: Any, x: Array, mask: Mask) -> tuple[Array, Mask]:
        kept = np.any(np.not_equal(x, self.value), -1)
        return x * kept[..., None].astype(x.dtype), kept


@dataclass(frozen=True)
class RecurrentStep(Step):
    """A recurrent layer.

    Attributes:
        sequences: whether it returns all outputs, not only the last.
        backwards: whether it reads x from the end, and returns its outputs in that order.
        zeros: whether outputs of steps that are left out are zero, not those of the step before.
        merge: what becomes of the outputs of two directions.
    """

    sequences: bool = False
    backwards: bool = False
    zeros: bool = False
    merge: str = "concat"

    def run(self, module: Any, x: Array, mask: Mask) -> tuple[Array, Mask]:
        steps, kept = x, mask
        if self.backwards:
            steps, kept = x[:, ::-1], None if mask is None else mask[:, ::-1]
        y, state = module(steps, mask=kept)
        h = state[0] if isinstance(state, tuple) else state
        if not self.sequences:
            parts = list(h)
            if self.zeros and kept is not None:
                parts = [part * kept[:, -1:] for part in parts]
            return self._merged(parts), None
        if kept is not None and not self.zeros:
            y = _repeated(y, kept)
        return self._merged(np.split(y, 2, -1)) if module.bidirectional else y, mask

    def _merged(self, parts: Sequence[Array]) -> Array:
        if len(parts) == 1:
            return parts[0]
        if self.merge == "concat":
            return np.concatenate(parts, -1)
        first, second = parts
        if self.merge == "mul":
            return first * second
        return first + second if self.merge == "sum" else (first + second) / 2


def _repeated(y: Array, kept: Array) -> Array:
    """Return y with the outputs of steps that are left out in place of zeros: those of the step before."""
    places = np.where(kept, np.arange(kept.shape[1]), -1)
    last = np.maximum.accumulate(places, 1)
    found = np.take_along_axis(y, np.maximum(last, 0)[..., None], 1)
    return np.where((last < 0)[..., None], y.dtype.type(0), found)


class Model(Module):
    """A Sequential of Keras for inference: `y = model(x)`. Made by `fusedrnn.keras.load`.

    To train, compose the modules of `layers` anew.

    Attributes:
        layers: `ModuleDict` of the modules, by the names of Keras's layers: RNN, LSTM, GRU (batch first),
            Embedding, Linear and LayerNorm. Layers without weights are functions beside them.
    """

    def __init__(self, steps: Sequence[Step], layers: Mapping[str, Module]) -> None:
        super().__init__()
        self.layers = ModuleDict(layers)
        self._steps = tuple(steps)

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """Return what Keras's model does.

        Args:
            x: (B, T, I) in the modules' dtype, or (B, T) of an integer dtype where the first layer is an
                Embedding; batch first, as in Keras.
            mask: (B, T) bool, false for steps that are left out, or None. Embedding(mask_zero=True) and
                Masking make one of x.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape; the layer is named.
        """
        y = x
        for step in self._steps:
            module = self.layers[step.layer] if step.layer else None
            try:
                y, mask = step.run(module, y, mask)
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {step.label}: {error}") from error
        return y
