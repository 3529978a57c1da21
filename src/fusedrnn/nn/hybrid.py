"""Hybrid: recurrent layers one after the other, and attention in one of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.checks import (
    MOST_LAYERS,
    check_array,
    check_choice,
    check_flag,
    check_number,
    check_size,
    resolve_dtype,
)
from fusedrnn.init import Seed, check_method, make_rng
from fusedrnn.inputs.masks import counted_steps, only_counted
from fusedrnn.inputs.rows import check_sequence
from fusedrnn.nn.activations import GELU
from fusedrnn.nn.blocks import Residual, Sequential
from fusedrnn.nn.layers import Dropout, LayerNorm, Linear
from fusedrnn.nn.members import BlockTape
from fusedrnn.nn.module import Module, changed_options
from fusedrnn.nn.module_stream import ModuleStream, Step
from fusedrnn.nn.recurrent import GRU, LSTM, RNN
from fusedrnn.nn.self_attention import SelfAttention
from fusedrnn.nn.tape import SavedTape, check_tape

_CELLS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class Hybrid(Module):
    """Recurrent layers with attention in one of them, as in SHA-RNN.

        x = n + drop(cell(n))           n = LayerNorm(x), in each of the layers
        x = n + drop(attention(n))      n = LayerNorm(x), in attention_layer alone, between the other two
        x = n + drop(boom(n))           n = LayerNorm(x), in each of the layers
        boom(n) = the sum of `expansion` pieces, each (E,), of GELU(W n + b)

    x and y are (T, B, E), (B, T, E) with batch_first, or (T, E) for one sequence. A step sees itself and
    those before it; the attention, a causal `SelfAttention`, needs no code of places, since a recurrent
    network is before it. States start from zeros at each call. Only steps that count, those within `lengths`
    and where `mask` is true, are looked at; y is 0 at others.

    Parameters: those of the members of `parts`, a `Sequential`.

    Args:
        size: E >= 1, of x, of y and of each state.
        num_layers: 1 or more.
        cell: "lstm", "gru" or "rnn".
        num_heads: of the attention; the paper has a single one.
        attention_layer: number of the layer that has it, from 0; the last but one if None.
        expansion: pieces of boom, 1 or more; 0 leaves it out.
        dropout: probability of dropping an output of cell, attention and boom in training. May be changed.
        batch_first: x and y are (B, T, E). May be changed.
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: as of the layers; None leaves all parameters at zero, for weights that are loaded next.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Merity 2019, Single headed attention RNN, arXiv:1911.11423; without the gates of its attention,
    and with one normalisation before each part.
    """

    _host_only = True
    _fixed = frozenset(("size", "num_layers", "cell", "num_heads", "attention_layer", "expansion"))

    def __init__(
        self,
        size: int,
        num_layers: int = 2,
        cell: str = "lstm",
        num_heads: int = 1,
        attention_layer: int | None = None,
        expansion: int = 4,
        dropout: float = 0.0,
        batch_first: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        self.size = check_size("size", size)
        self.num_layers = check_size("num_layers", num_layers, maximum=MOST_LAYERS)
        self.cell = check_choice("cell", cell, _CELLS)
        last = self.num_layers - 1
        chosen = max(last - 1, 0) if attention_layer is None else attention_layer
        self.attention_layer = check_size("attention_layer", chosen, 0, maximum=last)
        self.expansion = check_size("expansion", expansion, 0)
        self._batch_first = check_flag("batch_first", batch_first)
        self._dropout = check_number("dropout", dropout, 0.0, 1.0)
        check_method(init)
        rng, found = make_rng(seed), resolve_dtype(dtype)
        drawn: dict[str, Any] = {"dtype": found, "seed": rng, "init": init}
        cores: list[Module] = []
        for layer in range(self.num_layers):
            cores.append(_CELLS[cell](size, size, batch_first=batch_first, **drawn))
            if layer == self.attention_layer:
                cores.append(SelfAttention(size, num_heads, True, batch_first=batch_first, **drawn))
            if self.expansion:
                cores.append(Boom(size, self.expansion, **drawn))
        parts: list[Module] = []
        for core in cores:
            parts += [LayerNorm(size, dtype=found), Residual(Sequential(core, Dropout(dropout, seed=rng)))]
        self.num_heads = num_heads
        self.parts = Sequential(*parts)

    @property
    def batch_first(self) -> bool:
        """Whether x and y are (B, T, E); can be set."""
        return self._batch_first

    @batch_first.setter
    def batch_first(self, value: bool) -> None:
        self._batch_first = check_flag("batch_first", value)
        for module in self.parts.modules():
            if hasattr(module, "batch_first"):
                module.batch_first = value

    @property
    def dropout(self) -> float:
        """Probability of dropping an output of cell, attention and boom; can be set."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        self._dropout = check_number("dropout", value, 0.0, 1.0)
        for module in self.parts.modules():
            if isinstance(module, Dropout):
                module.p = self._dropout

    def __call__(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> Array:
        """Return y in the shape of x, and keep no tape; arguments and errors are those of `forward`."""
        counts = self._counted(x, lengths, mask)
        return only_counted(counts, self.parts(only_counted(counts, x), lengths, mask))

    def forward(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> tuple[Array, SavedTape]:
        """Return y in the shape of x, and the tape, which refers to x.

        Args:
            x: (T, B, E), (B, T, E) with batch_first, or (T, E).
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.
            mask: bool, laid out as x without its last axis: true for steps that count; all if None.

        Raises:
            TypeError: x is not an array of the module's dtype, or an argument of another wrong kind.
            ValueError: an argument of the wrong shape, or lengths out of range.
        """
        counts = self._counted(x, lengths, mask)
        y, tape = self.parts.forward(only_counted(counts, x), lengths, mask)
        return only_counted(counts, y), SavedTape(self, y.shape, (tape, counts), tape.nbytes)

    def _counted(self, x: Array, lengths: Any, mask: Any) -> Any:
        """Check x; return which of its steps count, or None where all do."""
        axis = check_sequence(x, "E", self.size, self.dtype, self.batch_first)
        if lengths is None and mask is None:
            return None
        return counted_steps(mask, lengths, x.shape[:-1], axis)

    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Add to the gradients of all parameters; return dx in the shape of x, or None without need_dx.

        Steps that do not count get exactly 0.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        inner, counts = tape.saved
        check_array("dy", dy, tape.shape, self.dtype)
        check_flag("need_dx", need_dx)
        dx = self.parts.backward(inner, only_counted(counts, dy), need_dx=need_dx)
        return only_counted(counts, dx) if need_dx else None

    def stream(self, batch_size: int = 1, max_len: int = 1024) -> HybridStream:
        """Return a `HybridStream` that runs this model one step at a time, without dropout.

        Args:
            batch_size: how many sequences go side by side.
            max_len: how many steps the attention holds, that of the call among them.

        Raises:
            TypeError: an argument is not an int.
            ValueError: an argument is below 1.
        """
        return HybridStream(self, batch_size, max_len)

    def __repr__(self) -> str:
        changed = changed_options(
            num_layers=(self.num_layers, 2),
            cell=(self.cell, "lstm"),
            num_heads=(self.num_heads, 1),
            attention_layer=(self.attention_layer, max(self.num_layers - 2, 0)),
            expansion=(self.expansion, 4),
            dropout=(self.dropout, 0.0),
            batch_first=(self.batch_first, False),
            dtype=(str(self.dtype), "float32"),
        )
        return f"{type(self).__name__}({self.size}{changed})"


class HybridStream(ModuleStream):
    """A `Hybrid` one step at a time: `y_t = step(x_t)`; made by `hybrid.stream()`.

    Up to max_len steps y is, but for rounding, what the call over the whole sequence gives; later the
    attention forgets the oldest step for each that comes. `state` has those of the layers and of the
    attention. After the weights changed, call `refresh`. A stream serves one thread at a time.

    Attributes:
        batch_size: B.
        max_len: how many steps the attention holds.
    """

    __slots__ = ()

    def _first(self) -> Step:
        return self.member("parts", self._module.parts)


class Boom(Module):
    """y = the sum of `pieces` pieces, each (E,), of GELU(W x + b): a feed-forward layer of one matrix.

    Args:
        size: E.
        pieces: how many.
        dtype, seed, init: of its `Linear`.
    """

    _host_only = True
    _stepwise = True

    def __init__(
        self,
        size: int,
        pieces: int,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        self.pieces = pieces
        self.linear = Linear(size, pieces * size, dtype=dtype, seed=seed, init=init)
        self.gelu = GELU()

    def _added(self, wide: Array) -> Array:
        # Piece by piece: sums along an axis of NumPy may take another order where the others are short.
        size = self.linear.in_features
        y: Array = wide[..., :size].copy()
        for start in range(size, wide.shape[-1], size):
            y += wide[..., start : start + size]
        return y

    def __call__(self, x: Array) -> Array:
        """Return y in the shape of x (..., E)."""
        return self._added(self.gelu(self.linear(x)))

    def forward(self, x: Array) -> tuple[Array, BlockTape]:
        """Return y in the shape of x (..., E), and the tape."""
        wide, linear = self.linear.forward(x)
        wide, gelu = self.gelu.forward(wide)
        return self._added(wide), BlockTape(self, (linear, gelu))

    def backward(self, tape: BlockTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Add to the gradients; return dx in the shape of x, or None without need_dx."""
        linear, gelu = check_tape(tape, self, BlockTape).tapes
        dwide = np.concatenate([dy] * self.pieces, axis=-1)
        return self.linear.backward(linear, self.gelu.backward(gelu, dwide), need_dx=need_dx)

    def __repr__(self) -> str:
        return f"Boom({self.linear.in_features}, {self.pieces})"
