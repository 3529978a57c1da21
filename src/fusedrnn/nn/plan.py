"""The plan of a recurrent network: its layers and directions, and how states lie in its arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import Array, StateLike, as_regular
from fusedrnn.backend import CPU, Backend
from fusedrnn.cells import CellSpec, Weights
from fusedrnn.checks import check_array, check_number, check_size
from fusedrnn.nn.buffers import Buffers
from fusedrnn.nn.turns import Turn

_BOOL = np.dtype(np.bool_)


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """The sizes of a network's states and outputs.

    Attributes:
        spec: its cell.
        dtype: that of its parameters.
        rows: num_layers*D, of every state array.
        widths: of the state arrays, Hout and, for an LSTM, H; of the widest layer.
        layers: the same of each layer.
        wides: D*Hout of each layer, the outputs of all directions beside each other.
        outs: what each layer gives: that, or Hout where directions are merged.
        out_size: the width of y: what the last one gives, and its other states with `all_states`.
        uneven: whether layers differ. Units past the width of a layer are zero in its states, and not read.
    """

    spec: CellSpec
    dtype: np.dtype[Any]
    rows: int
    widths: tuple[int, ...]
    layers: tuple[tuple[int, ...], ...]
    wides: tuple[int, ...]
    outs: tuple[int, ...]
    out_size: int
    uneven: bool

    @classmethod
    def of(
        cls,
        spec: CellSpec,
        dtype: np.dtype[Any],
        layers: list[tuple[int, ...]],
        directions: int,
        merges: bool,
    ) -> NetworkShape:
        """Return the sizes of a network of such layers."""
        widths = tuple(max(each) for each in zip(*layers, strict=True))
        wides = tuple(directions * each[0] for each in layers)
        outs = tuple(each[0] for each in layers) if merges else wides
        rows, uneven = directions * len(layers), len(set(layers)) > 1
        return cls(spec, dtype, rows, widths, tuple(layers), wides, outs, outs[-1], uneven)

    def new_states(self, batch: int, on: Backend) -> list[Any]:
        """Return arrays for the states of all layers and directions."""
        types, rows = on.types(self.dtype), self.rows
        make = on.xp.zeros if self.uneven else on.xp.empty
        return [make((rows, batch, width), types[i > 0]) for i, width in enumerate(self.widths)]

    def split_state(
        self, name: str, state: StateLike, batch: int, single: bool = False, on: Backend = CPU
    ) -> tuple[Array | None, ...]:
        """Return the checked state arrays as (num_layers*D, B, width) views."""
        parts = self.spec.unpack_state(name, state)
        types, kind = on.types(self.dtype), on.array
        for index, width in enumerate(self.widths):
            part, dtype = parts[index], types[index > 0]
            shape = (self.rows, width) if single else (self.rows, batch, width)
            # Checked here without a call when all is well: this runs at every step of a loop over time.
            if part is None or (isinstance(part, kind) and part.shape == shape and part.dtype == dtype):
                continue
            symbols = "(num_layers*D, H)" if single else "(num_layers*D, B, H)"
            check_array(name + self.spec.state_labels[index], part, shape, dtype, symbols, kind)
        return tuple([None if part is None else part[:, None] for part in parts]) if single else parts

    def split_reset_state(self, state: StateLike, batch: int, on: Backend) -> tuple[Array, ...]:
        """Return the checked replacement states, (num_layers*D, width) or (num_layers*D, B, width)."""
        parts, kind = self.spec.unpack_state("reset_state", state), on.array
        for index, (part, width) in enumerate(zip(parts, self.widths, strict=True)):
            name, dtype = "reset_state" + self.spec.state_labels[index], on.types(self.dtype)[index > 0]
            each = isinstance(part, kind) and part.ndim == 3
            leading = (self.rows, batch) if each else (self.rows,)
            symbols = "(num_layers*D, B, H)" if each else "(num_layers*D, H)"
            check_array(name, part, (*leading, width), dtype, symbols, kind)
        return parts


@dataclass(frozen=True, slots=True)
class Part:
    """One layer and direction.

    Attributes:
        row: its row in the state arrays.
        weights, grads: its parameters and their gradients, as kernels take them; see `sums`.
        cache: its packed weights.
        reverse: whether it runs from the end.
        columns: those of the layer's output that it writes; None for all.
        widths: of its states, where those of others are wider; else None.
    """

    row: int
    weights: Weights
    grads: Weights
    cache: _core.WeightCache
    reverse: bool
    columns: slice | None
    widths: tuple[int, ...] | None = None

    def of(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Return its entries of state arrays."""
        row, widths = self.row, self.widths
        if widths is None:
            return tuple([None if array is None else array[row] for array in arrays])
        pairs = zip(arrays, widths, strict=True)
        return tuple([None if array is None else array[row, ..., :width] for array, width in pairs])

    def beyond(self, states: Any, network: NetworkShape) -> list[Any]:
        """Return its columns of the last layer's states beyond h, (T, B, D*H) each beside each other."""
        widths, directions = network.layers[-1], network.rows // len(network.layers)
        found, start = [], 0
        for width in widths[1:]:
            at = start + width * (directions - 1) * self.reverse
            found.append(states[..., at : at + width])
            start += width * directions
        return found

    def sums(self, frozen: bool) -> Weights:
        """Return the gradients that backward adds to: none of a frozen network."""
        return (None,) * len(self.grads) if frozen else self.grads


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """What runs in a call: the parts of each layer, one for each direction.

    Attributes:
        layers: the parts, from the first layer on.
    """

    layers: tuple[tuple[Part, ...], ...]

    def weights(self) -> list[list[Weights]]:
        """Return the parameters of each layer and direction."""
        return [[part.weights for part in parts] for parts in self.layers]


class Network(Protocol):
    """What backward, streams and quantized networks read of a recurrent network."""

    _network: NetworkShape
    _plan: NetworkPlan
    # What the kernels call the cell.
    _key: str
    # One call for the commonest case, a layer of one direction on the CPU, else None.
    _plain: Callable[..., Any] | None
    _turn: Turn
    _buffers: Buffers
    _start: int
    _size: int
    _frozen: bool
    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int
    bias: bool
    batch_first: bool
    bidirectional: bool
    proj_size: int

    @property
    def residual(self) -> bool: ...

    @property
    def merge(self) -> str: ...

    _own_grads: Any
    _num_heads: int
    _all_states: bool

    @property
    def _learned_names(self) -> list[str]: ...

    @property
    def _reset_names(self) -> list[str]: ...

    def _suffixes(self, layer: int) -> list[str]: ...

    def _adds_at(self, layer: int) -> bool:
        """Whether this layer, from 1 on, adds its input to its output."""

    def _settled(self, part: Part) -> Weights:
        """The parameters that one layer and direction has in evaluation mode."""

    def _constant_start(self) -> tuple[Array, ...] | None:
        """The initial states (num_layers*D, 1, H) that do not change from call to call; None for zeros."""

    def _add_starts(self, names: list[str], dstates: list[Any]) -> None:
        """Add gradients (num_layers*D, B, H) to those of parameters."""


def check_forget_bias(spec: CellSpec, value: float | None) -> float | None:
    """Return the initial bias of the gate f, None for the cell's own.

    Raises:
        TypeError: not a number.
        ValueError: not finite, or the cell has no such gate.
    """
    if value is None:
        return None
    bias = check_number("forget_bias", value, -np.inf)
    if "f" not in spec.gate_names:
        raise ValueError(f"forget_bias: expected None, since {spec.label} has no gate f, got {bias}")
    return bias


def check_projection(spec: CellSpec, proj_size: int, hidden_size: int | tuple[int, ...]) -> int:
    """Return the size of a projection, 0 for none.

    Raises:
        TypeError: not an int.
        ValueError: out of range, or the cell has no projection.
    """
    size = check_size("proj_size", proj_size, 0)
    takes = any(p.role == "projection" and p.need != "refused" for p in spec.parameters)
    if size and spec.definition is not None and not (takes and "weight_hh" in spec.parameter_names):
        reason = "has no weight_hh"
        if not takes:
            reason = "works unit by unit on h or on what weight_hh multiplies, not on a projection"
        raise ValueError(f"proj_size: expected 0, since {spec.label} {reason}, got {size}")
    if size and not takes:
        raise ValueError(f"proj_size: expected 0, since {spec.label} has no projection, got {size}")
    if size and isinstance(hidden_size, tuple):
        raise ValueError(f"proj_size: expected 0 with a hidden_size for each layer, got {size}")
    if not isinstance(hidden_size, tuple) and size >= hidden_size:
        raise ValueError(f"proj_size: expected an int < hidden_size = {hidden_size}, got {size}")
    return size


def time_major(array: Array, single: bool, batch_first: bool) -> Array:
    """Return the time-major view (T, B, ...) of an array in the caller's layout."""
    if single:
        return array[:, None]
    return array.swapaxes(0, 1) if batch_first else array


def layout_error(error: ValueError, shape: tuple[int, ...], batch_first: bool) -> ValueError:
    """Return an error about what has to fit the batch of x, with how x was read."""
    message = str(error)
    about = message.startswith(("state", "reset_state", "lengths")) and ": expected shape" in message
    if len(shape) != 3 or not about:
        return error
    read, other = ("(B, T, I)", "(T, B, I)") if batch_first else ("(T, B, I)", "(B, T, I)")
    return ValueError(f"{error}; x is {read} = {tuple(shape)}, with batch_first={not batch_first} {other}")


def borders_of(resets: Any, shape: tuple[int, ...], single: bool, batch_first: bool, on: Backend) -> Array:
    """Return the time-major view of checked resets, of this shape in the caller's layout."""
    given = as_regular("resets", resets) if on is CPU else resets
    symbols = "(T,)" if single else "(B, T)" if batch_first else "(T, B)"
    return time_major(check_array("resets", given, shape, _BOOL, symbols, on.array), single, batch_first)
