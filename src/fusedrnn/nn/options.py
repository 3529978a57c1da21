"""Options that every recurrent network has: how they are checked, shown, and made part of its cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypedDict, cast

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.cells import CellSpec, Weights
from fusedrnn.checks import MOST_LAYERS, check_choice, check_flag, check_number, check_size
from fusedrnn.compute import HasCompute
from fusedrnn.init import Noise
from fusedrnn.nn import input_norm
from fusedrnn.nn.heads import between
from fusedrnn.nn.joining import MERGES, Joints
from fusedrnn.nn.module import Module
from fusedrnn.nn.plan import NetworkShape, Part
from fusedrnn.symbolic import DefinedCell, library
from fusedrnn.symbolic.masks import masked

Zoneout = float | Sequence[float]


class Options(TypedDict, total=False):
    """Options that RNN, LSTM, GRU and `Network` hand on; `Recurrent` explains them."""

    recurrent_dropout: float
    zoneout: Zoneout
    locked_dropout: float | tuple[float, float]
    residual: bool
    merge: str
    learned_state: bool
    init_state: Any
    learned_reset_state: bool
    batch_norm: bool
    num_heads: int
    all_states: bool
    compute: str | None


class WithOptions(HasCompute, Module):
    """What a recurrent network was made with."""

    # {name: value} of a subclass's options that are not the default, for its repr.
    _cell_options: Mapping[str, Any] = MappingProxyType({})
    # What batch_norm is where it is not given, for its repr.
    _usual_batch_norm = False
    # Whether the class does not say what the cell is.
    _saves_program = True
    # The cell, and the one that runs: with masks, if there are any.
    _unmasked: CellSpec
    _spec: CellSpec
    _masks: int
    _dtype: np.dtype[Any]
    _noise: Noise
    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    recompute: bool
    _weight_dropout: float
    _recurrent_dropout: float
    _zoneout: tuple[float, ...]
    # The name of an option that lies between layers or around them, or "".
    _joining: str
    _learned_state: bool
    _learned_reset_state: bool
    _num_heads: int
    _all_states: bool
    _start_kind: str
    _compute: str
    _network: NetworkShape

    def _set_regularisers(self, given: CellSpec, weight: float, recurrent: float, zoneout: Zoneout) -> None:
        self._unmasked = given
        self._weight_dropout = _check_product("weight_dropout", given, weight)
        self._recurrent_dropout = _check_product("recurrent_dropout", given, recurrent)
        self._zoneout = _check_zoneout(given, zoneout)
        self._spec, self._masks = given, 0
        if self._recurrent_dropout or any(self._zoneout):
            cell = given.definition or library.compiled(given.name)
            cell = masked(cell, self._zoneout, self._recurrent_dropout)
            self._spec, self._masks = cell.spec, len(cell.masks)

    def _set_joining(
        self, locked: float | tuple[float, float], residual: bool, merge: str, batch_norm: bool
    ) -> None:
        self._locked_dropout = _check_locked(locked)
        self._residual = check_flag("residual", residual)
        self._merge = _check_merge(merge, self.bidirectional)
        self._batch_norm = _check_batch_norm(self._unmasked, batch_norm)
        joining = {
            "residual": self.residual,
            "merge": merge != "concat",
            "learned_state": self._learned_state,
            "init_state": self._start_kind != "zeros",
            "learned_reset_state": self._learned_reset_state,
            "locked_dropout": any(self._locked_dropout),
            "batch_norm": self.batch_norm,
            "num_heads": self._num_heads > 1,
            "all_states": self._all_states,
        }
        self._joining = next((name for name, given in joining.items() if given), "")

    def _set_sizes(self, hidden_size: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
        """Set hidden_size and num_layers; return the size of each layer."""
        if not isinstance(hidden_size, (tuple, list)):
            self.num_layers = num_layers
            self.hidden_size = check_size("hidden_size", cast(int, hidden_size))
            return (self.hidden_size,) * num_layers
        sizes = tuple(check_size(f"hidden_size[{k}]", size) for k, size in enumerate(hidden_size))
        if not sizes or num_layers not in (1, len(sizes)):
            raise ValueError(
                f"hidden_size: expected a number, or one for each layer, got {len(sizes)} with "
                f"num_layers={num_layers}"
            )
        self.num_layers = check_size("the length of hidden_size", len(sizes), maximum=MOST_LAYERS)
        self.hidden_size = sizes if len(set(sizes)) > 1 else sizes[0]
        return sizes

    def _check_residual(self) -> None:
        if self._residual and not any(self._adds_at(layer) for layer in range(2, self.num_layers + 1)):
            outs = ", ".join(str(out) for out in self._network.outs)
            raise ValueError(
                "residual: expected False without two layers of equal widths, since it adds the input of the "
                f"second to its output, got True with {outs}"
            )

    def _beside(self) -> str:
        """The name of an option by which the network is more than its stacked layers, or ""."""
        chosen = {
            "residual": self.residual,
            "merge": self.merge != "concat",
            "learned_state": self._learned_state,
            "init_state": self._start_kind == "given",
            "learned_reset_state": self._learned_reset_state,
            "batch_norm": self.batch_norm,
            "all_states": self._all_states,
            "a hidden_size for each layer": isinstance(self.hidden_size, tuple),
        }
        return next((name for name, given in chosen.items() if given), "")

    def _joints(self, state: Any) -> Joints:
        """What a call does beside its layers, its masks drawn."""
        self._require_cpu(self._joining)
        p = self.locked_dropout if self.training else (0.0, 0.0)
        drops = [self._noise.take(each) if each else None for each in p]
        return Joints([], (drops[0], drops[1]), self._learned_state and state is None)

    def _joins_at(self, layer: int) -> bool:
        """Whether what the kernels write is not yet the output of this layer, from 1 on."""
        return self.merge != "concat" or self._adds_at(layer)

    def _adds_at(self, layer: int) -> bool:
        """Whether this layer, from 1 on, adds its input to its output."""
        outs = self._network.outs
        return self.residual and layer > 1 and outs[layer - 1] == outs[layer - 2]

    def _suffixes(self, layer: int) -> list[str]:
        """Return what PyTorch appends to the parameter names of a layer, for each direction."""
        return [f"_l{layer}", f"_l{layer}_reverse"][: 2 if self.bidirectional else 1]

    def _norm_shapes(self, suffix: str, rows: int) -> dict[str, tuple[int, ...]]:
        """The parameters of batch_norm, and with them its buffers, of one layer and direction."""
        if not self.batch_norm:
            return {}
        self.buffer(input_norm.MEAN + suffix, rows, dtype=self._network.dtype)
        self.buffer(input_norm.VAR + suffix, rows, 1.0, dtype=self._network.dtype)
        return {input_norm.GAIN + suffix: (rows,)}

    def _fold(self, part: Part, suffix: str, moments: input_norm.Moments | None) -> input_norm.Fold:
        """The batch_norm of one layer and direction in a call."""
        own = {**self._own, **self._saved}
        return input_norm.Fold.of(self._spec, part.weights, own, suffix, moments)

    def _learn(self, folds: list[list[input_norm.Fold]]) -> None:
        """Let the running means and variances move to those of a call."""
        with self._turn.take():
            for layer, each in enumerate(folds):
                for fold, suffix in zip(each, self._suffixes(layer), strict=True):
                    fold.learn(self._saved, suffix)

    def _settled(self, part: Part) -> Weights:
        """The parameters that one layer and direction has in evaluation mode."""
        if not self.batch_norm:
            return part.weights
        layer, reverse = divmod(part.row, 2 if self.bidirectional else 1)
        return self._fold(part, self._suffixes(layer)[reverse], None).weights

    @property
    def locked_dropout(self) -> tuple[float, float]:
        """The probabilities, of the input and of the output, that the network was made with."""
        return self._locked_dropout

    @property
    def residual(self) -> bool:
        """Whether layers from the second on add their input to their output."""
        return self._residual

    @property
    def merge(self) -> str:
        """How the outputs of two directions are joined."""
        return self._merge

    @property
    def all_states(self) -> bool:
        """Whether y has all states of every step."""
        return self._all_states

    @property
    def num_heads(self) -> int:
        """The number of blocks of weight_hh."""
        return self._num_heads

    def _still(self) -> dict[str, Array]:
        if self._num_heads == 1:
            return {}
        names = [name for name in self._shapes if name.startswith("weight_hh")]
        return {name: between(self._shapes[name], self._num_heads) for name in names}

    def _check_values(self, values: Mapping[str, Array]) -> None:
        for name, mask in self._still().items():
            if values[name][mask].any():
                raise ValueError(
                    f"{name}: expected zeros between the {self._num_heads} heads, got weights of units of "
                    "different heads"
                )

    @property
    def batch_norm(self) -> bool:
        """Whether the products with the input are normalised over the steps of a batch."""
        return self._batch_norm

    @property
    def weight_dropout(self) -> float:
        """The probability that the network was made with."""
        return self._weight_dropout

    @property
    def recurrent_dropout(self) -> float:
        """The probability that the network was made with."""
        return self._recurrent_dropout

    @property
    def zoneout(self) -> tuple[float, ...]:
        """The probabilities of the states that the network was made with."""
        return self._zoneout

    @property
    def cell(self) -> str | DefinedCell:
        """The cell: what `define_cell` returned, or the name of a compiled one."""
        return self._unmasked.definition or self._unmasked.name

    def _compute_changed(self) -> None:
        self._rebind()

    def _draws_anew(self) -> str:
        """The name of an option by which a second call of the same arguments differs, or ""."""
        if not self.training:
            return ""
        drawing = {
            "dropout": self.dropout if self.num_layers > 1 else 0.0,
            "weight_dropout": self.weight_dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "zoneout": any(self.zoneout),
            "locked_dropout": any(self.locked_dropout),
            "init_state": self._start_kind == "normal" and not self._learned_state,
            "batch_norm": self.batch_norm,
        }
        return next((name for name, p in drawing.items() if p), "")

    def _extra_repr(self) -> str:
        zoneout = self.zoneout[0] if len(set(self.zoneout)) == 1 else self.zoneout
        given = {
            "proj_size": (self.proj_size, 0),
            "num_layers": (1 if isinstance(self.hidden_size, tuple) else self.num_layers, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0),
            "bidirectional": (self.bidirectional, False),
            "recompute": (self.recompute, False),
            "weight_dropout": (self.weight_dropout, 0.0),
            "recurrent_dropout": (self.recurrent_dropout, 0.0),
            "zoneout": (zoneout, 0.0),
            "locked_dropout": (self.locked_dropout, (0.0, 0.0)),
            "residual": (self.residual, False),
            "merge": (self.merge, "concat"),
            "learned_state": (self._learned_state, False),
            "init_state": (... if self._start_kind == "given" else self._start_kind, "zeros"),
            "learned_reset_state": (self._learned_reset_state, False),
            "batch_norm": (self.batch_norm, self._usual_batch_norm),
            "num_heads": (self._num_heads, 1),
            "all_states": (self._all_states, False),
            "compute": (self.compute, "float32"),
            "dtype": (str(self._dtype), "float32"),
        }
        changed = {name: value for name, (value, default) in given.items() if value != default}
        shown = {name: "..." if value is ... else repr(value) for name, value in changed.items()}
        shown |= {name: repr(value) for name, value in self._cell_options.items()}
        options = [f"{name}={value}" for name, value in shown.items()]
        called = self._unmasked.label if self._unmasked.definition else repr(self._unmasked.name)
        cell = [called] if self._saves_program else []
        return ", ".join([*cell, str(self.input_size), str(self.hidden_size), *options])


def _check_product(name: str, spec: CellSpec, value: float) -> float:
    """Return a probability that acts on the product of h."""
    p = check_number(name, value, 0.0, 1.0)
    if p and "weight_hh" not in spec.parameter_names:
        raise ValueError(f"{name}: expected 0, since {spec.label} has no weight_hh, got {p}")
    return p


def check_all_states(spec: CellSpec, value: bool) -> bool:
    """Return whether y has all states.

    Raises:
        TypeError: not a bool.
        ValueError: true, and the cell has no other state than h.
    """
    if check_flag("all_states", value) and spec.states == 1:
        name = spec.state_names[0]
        raise ValueError(f"all_states: expected False, since {spec.label} has one state, {name}, got True")
    return value


def _check_batch_norm(spec: CellSpec, value: bool) -> bool:
    if not check_flag("batch_norm", value):
        return False
    if all(p.role != "input_bias" for p in spec.parameters):
        raise ValueError(
            f"batch_norm: expected False, since {spec.label} has products without biases, which it "
            "normalises itself or takes as they are, got True"
        )
    if input_norm.GAIN in spec.parameter_names:
        raise ValueError(
            f"batch_norm: expected False, since {spec.label} has a parameter {input_norm.GAIN}, got True"
        )
    return True


def _check_locked(value: float | tuple[float, float]) -> tuple[float, float]:
    """Return the probabilities of the input and of the output."""
    if not isinstance(value, (tuple, list)):
        p = check_number("locked_dropout", value, 0.0, 1.0)
        return p, p
    if len(value) != 2:
        raise ValueError(
            f"locked_dropout: expected a number, or one for the input and one for y, got {len(value)}"
        )
    first, second = (check_number(f"locked_dropout[{k}]", p, 0.0, 1.0) for k, p in enumerate(value))
    return first, second


def _check_merge(value: str, bidirectional: bool) -> str:
    if not isinstance(value, str):
        raise TypeError(f"merge: expected a string, got {type(value).__name__}")
    check_choice("merge", value, MERGES)
    if value != "concat" and not bidirectional:
        raise ValueError(f"merge: expected 'concat' with bidirectional=False, got {value!r}")
    return value


def _check_zoneout(spec: CellSpec, value: Zoneout) -> tuple[float, ...]:
    """Return a probability for each state."""
    if not isinstance(value, (tuple, list)):
        return (check_number("zoneout", cast(float, value), 0.0, 1.0),) * spec.states
    if len(value) != spec.states:
        names = ", ".join(spec.state_names)
        raise ValueError(
            f"zoneout: expected a number, or one for each state ({names}), got {len(value)} numbers"
        )
    return tuple(check_number(f"zoneout[{k}]", p, 0.0, 1.0) for k, p in enumerate(value))
