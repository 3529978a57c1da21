"""From Keras's configuration to modules; what cannot be run is refused by name."""

from __future__ import annotations

import os
from typing import Any

from fusedrnn.interop.keras.files import read
from fusedrnn.interop.keras.model import ACTIVATIONS, Activated, Embedded, Masking, Model, RecurrentStep, Step
from fusedrnn.interop.keras.weights import GROUPS, Names, Weights, layer_parameters, recurrent_parameters
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.layers import LayerNorm, Linear
from fusedrnn.nn.module import Module
from fusedrnn.nn.recurrent import GRU, LSTM, RNN

__all__ = ["load", "load_weights"]

# What says nothing about the results of inference.
_IGNORED = {
    "activity_regularizer",
    "batch_input_shape",
    "batch_shape",
    "dropout",
    "dtype",
    "implementation",
    "input_dtype",
    "name",
    "noise_shape",
    "optional",
    "rate",
    "recurrent_dropout",
    "seed",
    "shape",
    "trainable",
    "unit_forget_bias",
    "unroll",
    "use_cudnn",
}
_IGNORED_ENDS = ("_constraint", "_initializer", "_regularizer")
_RECURRENT: dict[str, type[LSTM | GRU | RNN]] = {"GRU": GRU, "LSTM": LSTM, "SimpleRNN": RNN}
_BLOCKS = {GRU: 3, LSTM: 4, RNN: 1}


class _Layer:
    """The configuration of one layer, of which every entry is either read or known to say nothing."""

    def __init__(self, entry: Any) -> None:
        if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict):
            raise ValueError("expected a layer with a config")
        self.kind, self._config = str(entry.get("class_name")), dict(entry["config"])
        self.name = self._config.get("name")
        self.label = f"{str(self.name)[:60]!r} ({self.kind[:60]})"
        module = entry.get("module", "keras.layers")
        if module != "keras.layers" or entry.get("registered_name") not in (None, self.kind):
            raise self.refuse(
                f"expected one of keras.layers, got one of {str(module)[:60]!r}; it cannot be run"
            )
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"layer {self.label}: expected a name")
        self.dtype = self._dtype()

    def refuse(self, what: str) -> ValueError:
        """Return the error for what cannot be read."""
        return ValueError(f"layer {self.label}: {what}")

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        """Return an entry of a kind; it must be there if there is no default."""
        value = self._config.pop(name, default)
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise self.refuse(f"{name}: expected {kind.__name__}, got {str(value)[:60]!r}")
        return value

    def choose(self, name: str, default: Any, *choices: Any) -> Any:
        """Return an entry that is one of some values."""
        value = self._config.pop(name, default)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            expected = " or ".join(map(repr, choices))
            raise self.refuse(f"{name}: expected {expected}, got {str(value)[:60]!r}; it cannot be run")
        return value

    def inner(self, name: str) -> _Layer | None:
        """Return the layer inside of a wrapper."""
        entry = self._config.pop(name, None)
        return None if entry is None else _Layer(entry)

    def finish(self) -> None:
        """Refuse entries that nobody has read, unless they say nothing."""
        for name, value in self._config.items():
            known = name in _IGNORED or name.endswith(_IGNORED_ENDS)
            if not known and value is not None and value is not False:
                raise self.refuse(f"{name[:60]}: not an option that is understood")

    def _dtype(self) -> str:
        found = self._config.get("dtype", "float32")
        if isinstance(found, dict):
            inner = found.get("config")
            found = inner.get("name") if isinstance(inner, dict) else None
        if found not in ("float32", "float64") and self.kind not in ("InputLayer",):
            raise self.refuse(f"dtype: expected float32 or float64, got {str(found)[:60]!r}")
        return str(found)


class _Builder:
    """Goes through the layers of a Sequential once."""

    def __init__(self, weights: Weights) -> None:
        self._weights, self._names = weights, Names()
        self.steps: list[Step] = []
        self.modules: dict[str, Module] = {}

    def add(self, layer: _Layer) -> None:
        kind, label = layer.kind, layer.label
        if kind == "InputLayer":
            layer.choose("sparse", False, False, None)
            layer.choose("ragged", False, False, None)
        elif kind in ("Dropout", "SpatialDropout1D", "GaussianDropout", "GaussianNoise"):
            layer.take("stddev", float, 0.0)
        elif kind == "Activation":
            self.steps.append(Activated(label, activation=_activation(layer)))
        elif kind == "Masking":
            self.steps.append(Masking(label, value=layer.take("mask_value", float, 0.0)))
        elif kind in _RECURRENT:
            self._recurrent(layer, layer, "")
        elif kind == "Bidirectional":
            self._bidirectional(layer)
        elif kind == "Embedding":
            self._embedding(layer)
        elif kind == "Dense":
            self._dense(layer, layer, self._names.next("dense"))
        elif kind == "TimeDistributed":
            self._time_distributed(layer)
        elif kind == "LayerNormalization":
            self._layer_norm(layer)
        else:
            raise layer.refuse("not a layer that can be run")
        layer.finish()

    def _put(self, layer: _Layer, module: Module, parameters: Any) -> str:
        name = str(layer.name).replace(".", "_")
        if name in self.modules:
            raise layer.refuse("expected a name of its own")
        module.load_state_dict(parameters)
        self.modules[name] = module
        return name

    def _embedding(self, layer: _Layer) -> None:
        group = self._names.next("embedding")
        sizes = layer.take("input_dim", int), layer.take("output_dim", int)
        self._expect(layer, group, sizes)
        module = Embedding(*sizes, dtype=layer.dtype, init=None)
        name = self._put(layer, module, layer_parameters(module, self._weights, group))
        self.steps.append(Embedded(layer.label, name, layer.take("mask_zero", bool, False)))

    def _dense(self, layer: _Layer, dense: _Layer, group: str) -> None:
        units, bias = dense.take("units", int), dense.take("use_bias", bool, True)
        width = self._expect(dense, group, (None, units))[0]
        module = Linear(width, units, bias, dtype=dense.dtype, init=None)
        name = self._put(layer, module, layer_parameters(module, self._weights, group))
        self.steps.append(Activated(layer.label, name, _activation(dense)))

    def _time_distributed(self, layer: _Layer) -> None:
        group, inner = self._names.next("time_distributed"), layer.inner("layer")
        if inner is None or inner.kind != "Dense":
            raise layer.refuse(f"layer: expected Dense, got {inner and inner.label}; it cannot be run")
        self._dense(layer, inner, f"{group}/layer")
        inner.finish()

    def _layer_norm(self, layer: _Layer) -> None:
        group = self._names.next("layer_normalization")
        axis = layer.take("axis", list, [-1]) if isinstance(layer._config.get("axis"), list) else None
        if (axis or [layer.take("axis", int, -1)]) != [-1]:
            raise layer.refuse(f"axis: expected -1, got {str(axis)[:60]}; it cannot be run")
        layer.choose("center", True, True)
        layer.choose("scale", True, True)
        layer.choose("rms_scaling", False, False)
        module = LayerNorm(
            self._expect(layer, group, (None,)), layer.take("epsilon", float, 1e-3), dtype=layer.dtype
        )
        name = self._put(layer, module, layer_parameters(module, self._weights, group))
        self.steps.append(Activated(layer.label, name))

    def _recurrent(self, layer: _Layer, cell: _Layer, backward: str, merge: str = "concat") -> None:
        """Add a recurrent layer, in both directions if `backward` is the group of the second."""
        kind = _RECURRENT[cell.kind]
        if backward:
            groups = [f"{backward}/{each}_layer/cell" for each in ("forward", "backward")]
        else:
            groups = [f"{self._names.next(GROUPS[kind])}/cell"]
        units, bias = cell.take("units", int), cell.take("use_bias", bool, True)
        options: dict[str, Any] = {}
        if kind is RNN:
            options["nonlinearity"] = cell.choose("activation", "tanh", "tanh", "relu")
        else:
            cell.choose("activation", "tanh", "tanh")
            cell.choose("recurrent_activation", "sigmoid", "sigmoid")
        if kind is GRU:
            options["reset_after"] = cell.take("reset_after", bool, True)
        for name in ("stateful", "return_state", "time_major"):
            cell.choose(name, False, False)
        sequences, backwards = (cell.take(n, bool, False) for n in ("return_sequences", "go_backwards"))
        zeros = cell.take("zero_output_for_mask", bool, False)
        if backward:
            if backwards:
                raise layer.refuse("go_backwards: expected False of the layer inside; it cannot be run")
            zeros = sequences  # as Bidirectional sets it
        width = self._expect(cell, groups[0], (None, _BLOCKS[kind] * units))[0]
        module = kind(
            width,
            units,
            bias=bias,
            batch_first=True,
            bidirectional=bool(backward),
            dtype=cell.dtype,
            init=None,
            **options,
        )
        parameters = recurrent_parameters(module, self._weights, groups, 0, width)
        name = self._put(layer, module, parameters)
        self.steps.append(RecurrentStep(layer.label, name, sequences, backwards, zeros, merge))

    def _bidirectional(self, layer: _Layer) -> None:
        group = self._names.next("bidirectional")
        merge = layer.choose("merge_mode", "concat", "concat", "sum", "mul", "ave")
        forward, backward = layer.inner("layer"), layer.inner("backward_layer")
        if forward is None or forward.kind not in _RECURRENT:
            raise layer.refuse(f"layer: expected LSTM, GRU or SimpleRNN, got {forward and forward.label}")
        if backward is not None:
            differing = _differing(forward, backward)
            if differing:
                raise layer.refuse(f"backward_layer: expected the options of layer, got another {differing}")
        self._recurrent(layer, forward, group, merge)
        forward.finish()

    def _expect(self, layer: _Layer, group: str, shape: tuple[int | None, ...]) -> tuple[int, ...]:
        """Return the shape of a group's first array, which is held against the configuration.

        Before a module is made: so it takes no more memory than the file.
        """
        found = self._weights.shape(group)
        same = len(found) == len(shape) and all(
            b is None or a == b for a, b in zip(found, shape, strict=True)
        )
        if not same:
            raise layer.refuse(f"{group}: expected an array of shape {shape}, got {found}")
        return found


def _activation(layer: _Layer) -> str:
    return str(layer.choose("activation", "linear", *ACTIVATIONS))


def _differing(forward: _Layer, backward: _Layer) -> str:
    """The first option in which the layers of two directions differ, or ""."""
    if forward.kind != backward.kind:
        return "class_name"
    first, second = forward._config, backward._config
    for name in map(str, sorted({*first, *second} - _IGNORED - {"go_backwards"})):
        if not name.endswith(_IGNORED_ENDS) and first.get(name) != second.get(name):
            return name
    return "" if backward._config.get("go_backwards") is True else "go_backwards"


def load(path: str | os.PathLike[str]) -> Model:
    """Make a module of a .keras file that holds a Sequential.

    Layers may be InputLayer, Embedding, Masking, SimpleRNN, LSTM, GRU (in both forms), Bidirectional, Dense,
    TimeDistributed(Dense), LayerNormalization and Activation, with activations linear, relu, sigmoid, softmax
    and tanh where Keras has a choice, and the usual ones inside of cells; those of dropout do nothing in
    inference. Masks are passed on as Keras does. Nothing of a file is executed: there is no pickle, and
    Lambda and classes of one's own are refused.

    Args:
        path: the file, as Keras 3 writes it.

    Returns:
        A `Model`: `y = model(x)`, in inference; its `layers` are the modules.

    Raises:
        ModuleNotFoundError: the package h5py is not installed.
        OSError: the file cannot be read.
        ValueError: it is no such file, is damaged, or holds what cannot be run: the layer is named.
    """
    config, arrays = read(path)
    try:
        if config is None:
            raise ValueError("expected a .keras file with a configuration; see load_weights")
        kind = config.get("class_name") if isinstance(config, dict) else None
        if kind != "Sequential" or config.get("registered_name") not in (None, "Sequential"):
            raise ValueError(f"class_name: expected Sequential, got {str(kind)[:60]}; it cannot be run")
        inner = config.get("config")
        entries = inner.get("layers") if isinstance(inner, dict) else None
        if not isinstance(entries, list):
            raise ValueError("config: expected layers")
        weights = Weights(arrays)
        builder = _Builder(weights)
        for entry in entries:
            builder.add(_Layer(entry))
        weights.check_all_taken()
        return Model(builder.steps, builder.modules)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def load_weights(model: Module, path: str | os.PathLike[str]) -> None:
    """Copy the weights of a .weights.h5 or .keras file into modules that fit its layers.

    Each Embedding, Linear, LayerNorm, RNN, LSTM and GRU of the tree takes the next layer of its kind: the
    second LSTM takes what Keras calls lstm_1, a bidirectional one the next Bidirectional. A network of
    several layers takes as many. All is checked before anything is written.

    Args:
        model: a module of the above, or one that is made of them.
        path: the file, as Keras 3 writes it, of a Sequential or a functional model.

    Raises:
        ModuleNotFoundError: the package h5py is not installed.
        OSError: the file cannot be read.
        TypeError: model is not a Module.
        ValueError: no such file, or a damaged one; or layers and modules do not fit each other.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a Module, got {type(model).__name__}")
    weights, names = Weights(read(path)[1]), Names()
    state = {}
    try:
        for prefix, module in model.named_modules():
            found = _parameters_of(module, weights, names)
            state.update({f"{prefix}.{name}" if prefix else name: array for name, array in found.items()})
        weights.check_all_taken()
        model.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _parameters_of(module: Module, weights: Weights, names: Names) -> dict[str, Any]:
    """Return a module's own parameters from the next groups of its kind."""
    if not module._shapes:
        return {}
    kind = next((kind for kind in GROUPS if type(module) is kind), None)
    if kind is None or (isinstance(module, LSTM) and module.proj_size) or module._tied:
        raise ValueError(f"model: expected modules that Keras has, too, got {module!r}")
    if not isinstance(module, (RNN, LSTM, GRU)):
        return layer_parameters(module, weights, names.next(GROUPS[kind]))
    if (
        module.learned_state
        or module.batch_norm
        or set(module._cell_options) - {"reset_after", "nonlinearity"}
    ):
        raise ValueError(f"model: expected modules that Keras has, too, got {module!r}")
    found: dict[str, Any] = {}
    for layer in range(module.num_layers):
        if module.bidirectional:
            group = names.next("bidirectional")
            cells = [f"{group}/forward_layer/cell", f"{group}/backward_layer/cell"]
        else:
            cells = [f"{names.next(GROUPS[kind])}/cell"]
        width = module._network.outs[layer - 1] if layer else module.input_size
        found |= recurrent_parameters(module, weights, cells, layer, width)
    return found
