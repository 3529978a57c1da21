"""Models as files: the architecture and the weights, and nothing that is executed."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusedrnn import files
from fusedrnn.arrays import Array
from fusedrnn.cell_spec import CellSpec
from fusedrnn.compute import HasCompute, float32_where_lacking, warn_of_lacking
from fusedrnn.files import FileError, reason
from fusedrnn.nn.activations import GELU, ReLU, Sigmoid, Softmax, Tanh
from fusedrnn.nn.adaptive_softmax import AdaptiveSoftmax
from fusedrnn.nn.arguments import Unkept
from fusedrnn.nn.batch_norm import BatchNorm
from fusedrnn.nn.blocks import Concat, Residual, Sequential
from fusedrnn.nn.buffers import limited_to
from fusedrnn.nn.containers import ModuleDict, ModuleList
from fusedrnn.nn.conv import Conv1d
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.hybrid import Hybrid
from fusedrnn.nn.layers import Dropout, LayerNorm, Linear
from fusedrnn.nn.module import Module
from fusedrnn.nn.networks import LIF, MGU, SLSTM, SRU, IndRNN, LiGRU, MinGRU, MinLSTM
from fusedrnn.nn.pool import Pool
from fusedrnn.nn.quantum import QuantumLSTM
from fusedrnn.nn.recurrent import GRU, LSTM, RNN
from fusedrnn.nn.recurrent_base import Recurrent
from fusedrnn.nn.rnn_cells import GRUCell, LSTMCell, RNNCell
from fusedrnn.nn.sampled_softmax import SampledSoftmax
from fusedrnn.nn.self_attention import SelfAttention
from fusedrnn.nn.stateful import Stateful
from fusedrnn.sequence.attention import AttentionDecoder
from fusedrnn.sequence.crf import CRF
from fusedrnn.sequence.encoder_decoder import EncoderDecoder
from fusedrnn.sequence.scheduled_sampling import ScheduledSampling
from fusedrnn.sequence.tagger import Tagger
from fusedrnn.sequence.transducer import TransducerJoiner
from fusedrnn.symbolic import DefinedCell, cell_from_json, cell_to_json

MODEL = "fusedrnn model"

# What a file may name without being told: these classes check all of their arguments.
_OWN: dict[str, type[Module]] = {
    kind.__name__: kind
    for kind in (
        *(RNN, LSTM, GRU, Recurrent, MGU, IndRNN, MinGRU, MinLSTM, SRU, LiGRU, SLSTM, LIF),
        *(QuantumLSTM, RNNCell, LSTMCell, GRUCell),
        *(Linear, Embedding, LayerNorm, BatchNorm, Dropout, Conv1d, Pool, Tanh, Sigmoid, ReLU, GELU, Softmax),
        *(Module, Sequential, Stateful, Residual, Concat, ModuleList, ModuleDict),
        *(SelfAttention, Hybrid, AttentionDecoder, EncoderDecoder, CRF, Tagger, TransducerJoiner),
        *(AdaptiveSoftmax, SampledSoftmax, ScheduledSampling),
    )
}
_PREFIX = "fusedrnn."
# What parameters start from, which are loaded, and what the description says of all modules together.
_APART = ("seed", "init", "forget_bias", "compute")
_ARRAY = "argument:"
# Each takes kilobytes, however short its description is.
MOST_MODULES = 10_000


def save(model: Module, path: str | os.PathLike[str]) -> None:
    """Write a model to a file, from which `load` makes it again: its classes, their arguments, the weights.

    The file is one of safetensors, whose tensors are the `state_dict`; what the modules were made with is
    JSON in its metadata, with the modes (`train`, `eval`) and what is frozen. It is written aside and then
    put in the place of an older one: whatever happens, one of both is there.

    The package's modules are saved with their present settings and members. A class of one's own is made
    again by the arguments that it was made with: numbers, strings, None, lists, tuples, dictionaries, small
    arrays, modules and cells. It is made once here, to see that it can be. A model on a GPU is loaded on the
    CPU.

    Args:
        model: any module.
        path: of the file, say "model.safetensors".

    Raises:
        TypeError: model is not a Module, or an argument of a class of one's own is nothing of the above.
        ValueError: its constructor does not make such a model again, because it was changed afterwards, or
            there are more than 10,000 modules.
        OSError: the file cannot be written.
        ImportError: safetensors is not installed.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a Module, got {type(model).__name__}")
    writer = _Writer()
    content, state = writer.content(model), model.state_dict()
    classes = {kind.__name__: kind for kind in writer.classes}
    _check_same(model, _Reader(content, writer.arrays, classes).model())
    if taken := sorted(set(state) & set(writer.arrays)):
        raise ValueError(f"{taken[0]}: expected a parameter of another name in a file, got this one")
    files.save(Path(path), MODEL, {**state, **writer.arrays}, content)


def load(path: str | os.PathLike[str], classes: Iterable[type[Module]] = ()) -> Any:
    """Return the model that `save` wrote, with its weights, its modes, and what is frozen.

    Nothing in the file is executed: it names classes of this package, or of those given here, and their
    arguments, which are checked as everyone's. Damaged and forged files are refused; none takes much more
    memory than its size. A `compute` that the CPU does not have becomes "float32", with a warning.

    Args:
        path: of the file.
        classes: those of one's own that the model has; their constructors get what the file says.

    Raises:
        TypeError: path is none, or one of the classes is not a class of modules.
        ValueError: the file is not of a model, damaged, or has a class that is not among `classes`.
        OSError: the file cannot be read.
        ImportError: safetensors is not installed.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a path, got {type(path).__name__}; load(path) makes the model, too")
    own = _named(classes)
    tensors, content = files.load(Path(path), MODEL)
    arrays = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_ARRAY)}
    held = sum([array.size for array in tensors.values()])
    try:
        # A class of one's own may make modules that it does not keep.
        with limited_to(2 * held + 4096), float32_where_lacking() as lacking:
            model = _Reader(content, arrays, own).model()
        model.load_state_dict(tensors)
    except _Foreign as error:
        raise error.error from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise FileError(f"{path}: not a usable model: {reason(error)}") from None
    warn_of_lacking("load", lacking)
    return model


def described(model: Module) -> str:
    """Return a text from which `made_of` makes such a model again, without its weights.

    Raises:
        TypeError: an argument that it was made with is nothing that `save` could write.
    """
    writer = _Writer()
    content = writer.content(model)
    arrays = {name: (array.dtype.name, array.tolist()) for name, array in writer.arrays.items()}
    return json.dumps({"content": content, "arrays": arrays})


def made_of(text: str) -> Any:
    """Return a model of the package's own modules as `described` it."""
    found = json.loads(text)
    arrays = {name: np.array(values, dtype) for name, (dtype, values) in found["arrays"].items()}
    with float32_where_lacking() as lacking:
        model = _Reader(found["content"], arrays, {}).model()
    warn_of_lacking("load", lacking)
    return model


def _computing(model: Module) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, HasCompute)]


def _named(classes: Iterable[type[Module]]) -> dict[str, type[Module]]:
    """Return classes by name."""
    found: dict[str, type[Module]] = {}
    if isinstance(classes, type):
        raise TypeError(
            f"classes: expected a list of classes, got {classes.__name__}; use [{classes.__name__}]"
        )
    for kind in classes:
        if not (isinstance(kind, type) and issubclass(kind, Module)):
            raise TypeError(f"classes: expected classes of modules, got {kind!r:.60}")
        if found.setdefault(kind.__name__, kind) is not kind:
            raise ValueError(f"classes: expected one class called {kind.__name__}, got two")
    return found


def _check_same(model: Module, made: Module) -> None:
    """Refuse a model that another one, made of the same arguments, is not like."""
    ours = [(name, type(module).__name__, module._shapes) for name, module in model.named_modules()]
    theirs = [(name, type(module).__name__, module._shapes) for name, module in made.named_modules()]
    buffers = [[(name, array.shape) for name, array in module.named_buffers()] for module in (model, made)]
    if ours == theirs and buffers[0] == buffers[1]:
        return
    differing = [a for a in ours if a not in theirs] + [b for b in theirs if b not in ours]
    name, kind, shapes = differing[0] if differing else ("", type(model).__name__, {})
    raise ValueError(
        f"{name or 'model'}: expected a model that its constructor's arguments make again, got "
        f"{kind} {shapes}, which only one of both has; give what was changed afterwards to the constructor, "
        "or save the state_dict"
    )


class _Writer:
    """Describes modules, each once and after those that it was made with.

    Attributes:
        modules: the descriptions.
        arrays: those among the arguments.
        classes: of the user's own.
    """

    def __init__(self) -> None:
        self.modules: list[dict[str, Any]] = []
        self.arrays: dict[str, Array] = {}
        self.classes: list[type[Module]] = []
        self._places: dict[int, int] = {}

    def content(self, model: Module) -> dict[str, Any]:
        """Return the description of a model, as JSON."""
        root = self.describe(model)
        return {
            "modules": self.modules,
            "model": root,
            "dtype": model.dtype.name,
            "evaluating": [name for name, module in model.named_modules() if not module.training],
            "frozen": [name for name, module in model.named_modules() if module._frozen],
            **{
                compute: [name for name, module in _computing(model) if module.compute == compute]
                for compute in ("bf16", "bf16x3")
            },
        }

    def describe(self, module: Module) -> int:
        """Return the place of a module's description."""
        if id(module) in self._places:
            return self._places[id(module)]
        kind = type(module)
        own = _OWN.get(kind.__name__) is kind
        made_with = module._arguments() if own else module._made_with
        first, others = made_with.named(kind)
        if own:
            others = _present(module, others)
        elif kind not in self.classes:
            if kind.__name__ in {known.__name__ for known in self.classes}:
                raise ValueError(f"classes: expected one class called {kind.__name__}, got two")
            self.classes.append(kind)
        label = kind.__name__
        described = {
            "class": _PREFIX + label if own else label,
            "arguments": [self._encoded(f"{label}: {name}", value) for name, value in first],
            "options": {name: self._encoded(f"{label}: {name}", value) for name, value in others.items()},
        }
        self.modules.append(described)
        self._places[id(module)] = len(self.modules) - 1
        return len(self.modules) - 1

    def _encoded(self, name: str, value: Any) -> Any:
        """Return a value as JSON; what JSON does not have is an object of one entry."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, list):
            return [self._encoded(f"{name}[{index}]", item) for index, item in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": self._encoded(name, list(value))}
        if isinstance(value, dict):
            return {"dict": [self._encoded(name, list(item)) for item in value.items()]}
        if isinstance(value, Module):
            return {"module": self.describe(value)}
        if isinstance(value, CellSpec):
            return value.name if value.definition is None else {"cell": cell_to_json(value.definition)}
        if isinstance(value, DefinedCell):
            return {"cell": cell_to_json(value)}
        if isinstance(value, np.ndarray):
            key = f"{_ARRAY}{len(self.arrays)}"
            self.arrays[key] = value
            return {"array": key}
        if name.endswith(": seed"):
            return None
        kind = value.kind if isinstance(value, Unkept) else type(value).__name__
        raise TypeError(
            f"{name}: expected numbers, strings, None, lists, tuples, dictionaries, arrays of at most 1 MB, "
            f"modules or cells, to be saved with the model, got {kind}"
        )


def _present(module: Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a module of the package: those given, and those set since."""
    parameters = inspect.signature(type(module)).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    now = {name: _current(module, name, value) for name, value in {**defaults, **given}.items()}
    return {
        name: value
        for name, value in now.items()
        if name not in _APART and (name in given or value != defaults[name])
    }


def _current(module: Module, name: str, given: Any) -> Any:
    """Return what one of the package's own modules has now for an argument that it was made with."""
    now = given if name == "dtype" else getattr(module, name, given)
    return (
        now if now is None or isinstance(now, (bool, int, float, str, tuple, Module, DefinedCell)) else given
    )


class _Foreign(Exception):
    """What the constructor of a user's class raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Reader:
    """Makes the modules that a file describes.

    Args:
        content: the description; anything, since it comes from a file.
        arrays: those among the arguments.
        classes: of the user's own, by name.
    """

    def __init__(
        self, content: Mapping[str, Any], arrays: Mapping[str, Array], classes: Mapping[str, type[Module]]
    ) -> None:
        self._content, self._arrays, self._classes = content, arrays, classes
        self._made: list[Module] = []

    def model(self) -> Module:
        """Return the model, its weights still to be loaded.

        Raises:
            AttributeError, LookupError, RecursionError, TypeError, ValueError: the description is none.
            _Foreign: a class of the user's own refuses its arguments.
        """
        content = self._content
        if len(content["modules"]) > MOST_MODULES:
            raise ValueError(f"expected at most {MOST_MODULES} modules, got {len(content['modules'])}")
        for described in content["modules"]:
            self._made.append(self._make(described))
        model = self._module(content["model"])
        members = dict(model.named_modules())
        if content["dtype"] != model.dtype.name:
            model.astype(str(content["dtype"]))
        for name in content["evaluating"]:
            members[name].training = False
        for name in content["frozen"]:
            members[name].__dict__["_frozen"] = True
        # Files of earlier versions say it of those modules alone that were made with `compute`.
        if "bf16" in content:
            computing = dict(_computing(model))
            lower = {name: compute for compute in ("bf16", "bf16x3") for name in content.get(compute, ())}
            if missing := sorted(set(lower) - set(computing)):
                raise ValueError(f"expected a module with products, got {missing[0]!r:.60}")
            for name, module in computing.items():
                module.compute = lower.get(name, "float32")
        return model

    def _make(self, described: Any) -> Module:
        name = described["class"]
        arguments = [self._decoded(value) for value in described["arguments"]]
        options = {key: self._decoded(value) for key, value in described["options"].items()}
        if name.startswith(_PREFIX):
            kind = _OWN.get(name.removeprefix(_PREFIX))
            if kind is None:
                raise ValueError(f"expected a class of this version of fusedrnn, got {name!r:.60}")
            return kind(*arguments, **options, **_undrawn(kind))
        kind = self._classes.get(name)
        if kind is None:
            raise ValueError(
                f"expected {name!r:.60} among classes; give the class, as in load(path, classes=[{name:.60}])"
            )
        try:
            return kind(*arguments, **options)
        except Exception as error:
            raise _Foreign(error) from None

    def _module(self, place: Any) -> Module:
        if type(place) is not int or not 0 <= place < len(self._made):
            raise ValueError(f"expected the place of an earlier module, got {place!r:.40}")
        return self._made[place]

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._decoded(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((tag, inner),) = value.items()
        if tag == "tuple":
            return tuple(self._decoded(inner))
        if tag == "dict":
            return dict(self._decoded(inner))
        if tag == "module":
            return self._module(inner)
        if tag == "cell":
            return cell_from_json(inner)
        if tag == "array":
            return self._arrays[inner].copy()
        raise ValueError(f"expected a tuple, dict, module, cell or array, got {tag!r:.40}")


def _undrawn(kind: Any) -> dict[str, None]:
    """Return the option that leaves parameters at zero, if a class has it, by name or among others."""
    parameters = inspect.signature(kind.__init__).parameters
    several = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {"init": None} if several or "init" in parameters else {}
