"""Options that every recurrent network has: how they are checked, shown, and made part of its cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypedDict, cast

import numpy as np

from fusedrnn.cells import CellSpec
from fusedrnn.checks import check_number
from fusedrnn.nn.module import Module
from fusedrnn.symbolic import DefinedCell, library
from fusedrnn.symbolic.masks import masked

Zoneout = float | Sequence[float]


class Options(TypedDict, total=False):
    """Options that RNN, LSTM, GRU and `Network` hand on; `Recurrent` explains them."""

    recurrent_dropout: float
    zoneout: Zoneout


class WithOptions(Module):
    """What a recurrent network was made with."""

    # {name: value} of a subclass's options that are not the default, for its repr.
    _cell_options: Mapping[str, Any] = MappingProxyType({})
    # Whether the class does not say what the cell is.
    _saves_program = True
    # The cell, and the one that runs: with masks, if there are any.
    _unmasked: CellSpec
    _spec: CellSpec
    _masks: int
    _dtype: np.dtype[Any]
    input_size: int
    hidden_size: int
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

    def _draws_anew(self) -> str:
        """The name of an option by which a second call of the same arguments differs, or ""."""
        if not self.training:
            return ""
        drawing = {
            "dropout": self.dropout if self.num_layers > 1 else 0.0,
            "weight_dropout": self.weight_dropout,
            "recurrent_dropout": self.recurrent_dropout,
            "zoneout": any(self.zoneout),
        }
        return next((name for name, p in drawing.items() if p), "")

    def _extra_repr(self) -> str:
        zoneout = self.zoneout[0] if len(set(self.zoneout)) == 1 else self.zoneout
        given = {
            "proj_size": (self.proj_size, 0),
            "num_layers": (self.num_layers, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0),
            "bidirectional": (self.bidirectional, False),
            "recompute": (self.recompute, False),
            "weight_dropout": (self.weight_dropout, 0.0),
            "recurrent_dropout": (self.recurrent_dropout, 0.0),
            "zoneout": (zoneout, 0.0),
            "dtype": (str(self._dtype), "float32"),
        }
        changed = {name: value for name, (value, default) in given.items() if value != default}
        options = [f"{name}={value!r}" for name, value in {**changed, **self._cell_options}.items()]
        shown = self._unmasked.label if self._unmasked.definition else repr(self._unmasked.name)
        cell = [shown] if self._saves_program else []
        return ", ".join([*cell, str(self.input_size), str(self.hidden_size), *options])


def _check_product(name: str, spec: CellSpec, value: float) -> float:
    """Return a probability that acts on the product of h."""
    p = check_number(name, value, 0.0, 1.0)
    if p and "weight_hh" not in spec.parameter_names:
        raise ValueError(f"{name}: expected 0, since {spec.label} has no weight_hh, got {p}")
    return p


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
