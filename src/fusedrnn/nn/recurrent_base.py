"""The base of RNN, LSTM and GRU: layers, directions and sequence options around the compiled kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array, StateLike
from fusedrnn.backend import CPU, Backend, first_array
from fusedrnn.cells import CELLS, gather_weights
from fusedrnn.checks import MOST_LAYERS, check_array, check_flag, check_number, check_size, resolve_dtype
from fusedrnn.cuda.layer import host_lengths
from fusedrnn.inference.quantized import QuantizedRecurrent
from fusedrnn.inference.stream import Stream
from fusedrnn.init import Noise, Seed, check_method, make_rng, recurrent_layer
from fusedrnn.inputs.lookup import Lookup, array_of, kernel_inputs
from fusedrnn.inputs.masks import packing_of
from fusedrnn.inputs.sequences import as_lengths
from fusedrnn.nn.module import Module
from fusedrnn.nn.plan import NetworkPlan, NetworkShape, Part, borders_of, layout_error, row_of, time_major
from fusedrnn.nn.recurrent_backward import backward_layers
from fusedrnn.nn.tape import Drop, RecurrentTape, check_tape

StateT = TypeVar("StateT")

# y, the final state, and what a tape keeps: kernel tapes, dropout, bytes of the arrays between, backend.
_Results = tuple[Array, Any, tuple[list[Any], list[Drop | None], int, Backend]]


class Recurrent(Module, Generic[StateT]):
    """Stacked, possibly bidirectional recurrent network; the base of RNN, LSTM and GRU.

    Shapes, with D = 2 if bidirectional else 1 and Hout = proj_size or hidden_size:
        x: (T, B, I), (B, T, I) with batch_first, or (T, I) for one sequence; of the module's dtype, on a GPU
            also bfloat16 or float16 beside float32: see docs/cuda.md.
        y: (T, B, D*Hout), laid out as x.
        state: h (num_layers*D, B, Hout), and c (num_layers*D, B, H) for an LSTM; no B for one sequence.

    RNN, LSTM and GRU explain the arguments, and what they raise.

    Paper: dropout between layers: Zaremba, Sutskever and Vinyals 2014, arXiv:1409.2329v5.
    """

    has_state = True
    _derived = Module._derived | {"_plan", "_plain"}
    _plan: NetworkPlan
    _plain: Callable[..., Any] | None
    _dtype: np.dtype[Any]
    _noise: Noise

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        dtype: npt.DTypeLike,
        seed: Seed,
        init: str | None,
        forget_bias: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        self._spec = CELLS[cell]
        self.input_size = check_size("input_size", input_size, 0)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.num_layers = check_size("num_layers", num_layers, maximum=MOST_LAYERS)
        self.bias = check_flag("bias", bias)
        self.batch_first = check_flag("batch_first", batch_first)
        self.dropout = check_number("dropout", dropout, 0.0, 1.0)
        self.bidirectional = check_flag("bidirectional", bidirectional)
        self.proj_size = check_size("proj_size", proj_size, 0)
        self.recompute = check_flag("recompute", recompute)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size: expected an int < hidden_size = {hidden_size}, got {proj_size}")
        if self.dropout and self.num_layers == 1:
            warnings.warn("dropout: acts between layers, so it does nothing with num_layers=1", stacklevel=3)
        method, forget = check_method(init), check_number("forget_bias", forget_bias, -np.inf)
        found, rng = resolve_dtype(dtype), make_rng(seed)
        directions = 2 if self.bidirectional else 1
        widths = self._spec.state_widths(self.hidden_size, self.proj_size)
        rows = self.num_layers * directions
        self._network = NetworkShape(self._spec, found, rows, widths, directions * widths[0])
        shapes = {}
        for layer in range(self.num_layers):
            inputs = self._network.out_size if layer else self.input_size
            for suffix in self._suffixes(layer):
                part = self._spec.parameter_shapes(inputs, self.hidden_size, self.bias, self.proj_size)
                shapes.update({name + suffix: shape for name, shape in part.items()})
        self._declare(shapes, found)
        for layer in range(self.num_layers):
            for arrays in [self._select(self._own, suffix) for suffix in self._suffixes(layer)]:
                recurrent_layer(self._spec, arrays, method, forget_bias=forget, rng=rng)
        self._noise = Noise(rng)

    def _suffixes(self, layer: int) -> list[str]:
        """Return what PyTorch appends to the parameter names of a layer, for each direction."""
        return [f"_l{layer}", f"_l{layer}_reverse"][: 2 if self.bidirectional else 1]

    def _select(self, arrays: dict[str, Array], suffix: str) -> dict[str, Array]:
        """Return the arrays of one layer and direction under their names without the suffix."""
        return {n: arrays[n + suffix] for n in self._spec.parameter_names if n + suffix in arrays}

    def _rebind(self) -> None:
        self.__dict__["_network"] = replace(self._network, dtype=self._dtype)
        layers: list[tuple[Part, ...]] = []
        width = self._network.widths[0]
        for layer in range(self.num_layers):
            parts = []
            for direction, suffix in enumerate(self._suffixes(layer)):
                weights = gather_weights(self._spec, self._select(self._own, suffix))
                grads = gather_weights(self._spec, self._select(self._own_grads, suffix))
                columns = slice(direction * width, (direction + 1) * width) if self.bidirectional else None
                cache = self._backend.kernels.WeightCache()
                row = len(self._suffixes(layer)) * layer + direction
                parts.append(Part(row, weights, grads, cache, direction == 1, columns))
            layers.append(tuple(parts))
        plain = None
        if self.num_layers == 1 and not self.bidirectional and self._backend is CPU:
            plain = _core.PlainCall(self._spec.name, layers[0][0].weights, layers[0][0].cache).__call__
        self.__dict__.update(_plan=NetworkPlan(tuple(layers)), _plain=plain)

    def __call__(
        self,
        x: Array | Lookup,
        state: StateLike | None = None,
        lengths: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
        reset_state: StateLike | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> tuple[Array, StateT]:
        """Return (y, final state) and keep no tape; y is writable.

        Args:
            x: (T, B, I), (B, T, I) with batch_first, or (T, I); or a `Lookup` of such a shape.
            state: the initial state, h or (h, c), or None for zeros.
            lengths: (B,) of an integer dtype, each in 0..T; y is 0 past the end.
            resets: (T, B) bool, laid out as x: where true, the state is replaced before step t reads it.
            reset_state: what resets put in place of the state; None for zeros.
            mask: (T, B) bool, laid out as x: false for steps that are left out.

        `forward` says more about each, and what is raised.
        """
        if mask is not None:
            self._require_cpu("mask")
            packing = packing_of(self, x, mask, lengths)
            borders = None if resets is None else packing.borders(resets, x.shape[:-1])
            y, final = self(packing.inputs(x), state, packing.lengths, borders, reset_state)
            return packing.spread(y), final
        if lengths is None and resets is None and reset_state is None and not self.batch_first:
            plain = self._plain and self._plain(x, state, self._buffers.values.version, False, False)
            if plain:
                return plain[0], plain[1]
        return self._run(x, state, lengths, resets, reset_state, False)[:2]

    def forward(
        self,
        x: Array | Lookup,
        state: StateLike | None = None,
        lengths: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
        reset_state: StateLike | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> tuple[Array, StateT, RecurrentTape]:
        """Run the network and keep what `backward` needs, in training and evaluation mode alike.

        Args:
            x: (T, B, I), (B, T, I) with batch_first, or (T, I); or a `Lookup` of such a shape.
            state: the initial state, h or (h, c), or None for zeros.
            lengths: (B,) of an integer dtype, in any order, each in 0..T. Outputs past the end are 0; the
                final state is the state after the last valid step, for length 0 the initial state.
            resets: (T, B) bool, laid out as x. Where true, the state is replaced before step t reads it; the
                reverse direction treats the same positions as borders.
            reset_state: what resets put in place of the state: zeros if None, else arrays shaped as the
                state, with or without the batch axis. A constant: it gets no gradient.
            mask: (T, B) bool, laid out as x, on the CPU: false for steps that are left out, wherever they
                are. The state passes through them, y is 0 and x gets no gradient there; a reset at one acts
                at the next step that counts. The steps that count are copied to the front first.

        Returns:
            y, the final state, and the tape. y is read-only, because the tape refers to it; copy it to change
            it. The tape refers to x and state too: leave them as they are until backward is done.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape, or lengths out of range.
            RuntimeError: a mask, and the network is on a GPU.
        """
        if mask is not None:
            self._require_cpu("mask")
            packing = packing_of(self, x, mask, lengths)
            borders = None if resets is None else packing.borders(resets, x.shape[:-1])
            steps = packing.inputs(x)
            y, final, tape = self.forward(steps, state, packing.lengths, borders, reset_state)
            tape._packing = packing
            tape.nbytes += packing.nbytes + y.nbytes + (0 if isinstance(steps, Lookup) else steps.nbytes)
            y = packing.spread(y)
            y.flags.writeable = False
            return y, final, tape
        if lengths is None and resets is None and reset_state is None and not self.batch_first:
            plain = self._plain and self._plain(x, state, self._buffers.values.version, True, self.recompute)
            if plain:
                y, final, layer = plain
                y.setflags(write=False)
                return y, final, RecurrentTape(self, y.shape, (layer,), (None,), 0)
        x = x._kept() if isinstance(x, Lookup) else x
        y, final, saved = self._run(x, state, lengths, resets, reset_state, True)
        if isinstance(y, np.ndarray):
            y.flags.writeable = False
        lookup = x if isinstance(x, Lookup) else None
        tape = RecurrentTape(self, y.shape, *saved, lookup)
        if lookup is not None and not lookup._pays:
            tape.nbytes += lookup.indices.nbytes
        return y, final, tape

    def _run(self, x: Any, state: Any, lengths: Any, resets: Any, reset_state: Any, save: bool) -> _Results:
        on = self._backend.for_input(x, self._dtype)
        try:
            if on is CPU:
                return self._run_layers(on, lengths, save, x, state, resets, reset_state)
            on.check_types(self._dtype, self._spec, state=state, reset_state=reset_state)
            return on.enter(x, partial(self._run_layers, on, lengths, save), x, state, resets, reset_state)
        except ValueError as error:
            raise layout_error(error, x.shape, self.batch_first) from None

    def _run_layers(
        self, on: Backend, lengths: Any, save: bool, x: Any, state: Any, resets: Any, reset_state: Any
    ) -> _Results:
        """Return the results for arrays of `on`, which come last."""
        xp, kernels = on.xp, on.kernels
        shape: tuple[int, ...] = x.shape if isinstance(array_of(x), on.array) else ()
        single = len(shape) == 2
        if not (single or len(shape) == 3) or shape[-1] != self.input_size:
            raise self._input_error(x)
        dtype, out_size = on.types(self._dtype)[0], self._network.out_size
        y = xp.empty((*shape[:-1], out_size), dtype)
        (steps, indices), target = kernel_inputs(x, on is not CPU, save), y
        between = 0 if steps is array_of(x) else steps.nbytes
        if single or self.batch_first:
            target = time_major(y, single, self.batch_first)
            if indices is None:
                steps = time_major(steps, single, self.batch_first)
            else:
                indices = time_major(indices, single, self.batch_first)
        seq_len, batch, _ = target.shape
        states = None if state is None else self._network.split_state("state", state, batch, single, on)
        ends = None if lengths is None else (as_lengths if on is CPU else host_lengths)(lengths)
        borders = None if resets is None else borders_of(resets, shape[:-1], single, self.batch_first, on)
        replacement = None
        if reset_state is not None:
            if resets is None:
                raise ValueError("reset_state: expected None without resets")
            replacement = self._network.split_reset_state(reset_state, batch, on)
        finals = self._network.new_states(batch, on)
        drops: list[Drop | None] = []
        calls, results = [], []
        for layer, parts in enumerate(self._plan.layers, 1):
            last = layer == self.num_layers
            out = target if last else xp.empty((seq_len, batch, out_size), dtype)
            for part in parts:
                call = kernels.ForwardCall(  # by position: names would cost as much as all the checks
                    self._spec.name,
                    steps,
                    part.weights,
                    None if states is None else row_of(states, part.row),
                    indices,
                    ends,
                    borders,
                    None if replacement is None else row_of(replacement, part.row),
                    part.reverse,
                    save,
                    self.recompute,
                    part.cache,
                    self._buffers.values.version,
                    out if part.columns is None else out[..., part.columns],
                    tuple([final[part.row] for final in finals]),
                )
                calls.append(call)
            steps, indices = out, None
            drop = None
            between += 0 if last else out.nbytes
            dropping = not last and self.training and self.dropout > 0
            # A layer begins before the one below has ended, unless it needs that end or dropout in between.
            if last or dropping or self.bidirectional:
                results += kernels.run_calls(calls)
                calls = []
            if dropping:
                drop = self._noise.take(self.dropout)
                steps = kernels.dropout(out, *drop)
                between += steps.nbytes
            drops.append(drop)
        tapes = [tape for _, _, tape in results]
        if single:
            finals = [final[:, 0] for final in finals]
        return y, self._spec.pack_state(finals), (tapes, drops, between, on)

    def _input_error(self, x: Any) -> Exception:
        """Say what is wrong with x."""
        if not isinstance(given := array_of(x), self._backend.array):
            return self._kind_error("x", given)
        order = "B, T" if self.batch_first else "T, B"
        way = "; numbers of tokens go through an Embedding first" if x.dtype.kind in "iu" else ""
        return ValueError(
            f"x: expected shape ({order}, I) or (T, I) with I = {self.input_size}, got {x.shape}{way}"
        )

    def backward(
        self,
        tape: RecurrentTape,
        dy: Array | None = None,
        dstate: StateLike | None = None,
        *,
        need_dx: bool = True,
    ) -> tuple[Array | Any, StateT]:
        """Add the gradients of the parameters to `grads`; return (dx, dstate) of the input and initial state.

        Args:
            tape: from `forward` of this module; usable again.
            dy: gradient of y, in its shape and dtype, or None for zeros if dstate is given.
            dstate: gradient of the final state, h or (h, c), each array or None for zeros.
            need_dx: False leaves out the gradient of x, and dx is None. The gradient of a `Lookup` is that of
                its table, (V, I).

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape, neither dy nor dstate, or the tape of another module.
        """
        tape = check_tape(tape, self, RecurrentTape)
        if dy is None and dstate is None:
            raise ValueError("dy: expected an array unless dstate is given, got None for both")
        on, packing = tape._on, tape._packing
        if on is not CPU:
            on.check_types(self._dtype, self._spec, dy=dy, dstate=dstate)
            run = partial(backward_layers, self, tape, need_dx)
            return on.enter(first_array(dy, dstate), run, dy, dstate)
        if packing is None:
            return backward_layers(self, tape, need_dx, dy, dstate)
        if dy is not None:
            dy = packing.take(check_array("dy", dy, packing.shape(tape.shape), self._dtype))
        dx, dstart = backward_layers(self, tape, need_dx, dy, dstate)
        return dx if dx is None or tape.lookup is not None else packing.spread(dx), dstart

    def stream(self, batch_size: int = 1) -> Stream[StateT]:
        """Return a `Stream` that runs this network one step at a time, without dropout.

        Args:
            batch_size: how many sequences go side by side.

        Raises:
            TypeError: batch_size is not an int.
            ValueError: the network is bidirectional, or batch_size is below 1.
            RuntimeError: the network is on a GPU.
        """
        self._require_cpu("stream")
        if self.bidirectional:
            raise ValueError(
                "stream: expected bidirectional=False: the reverse direction starts from the end"
            )
        return Stream(self, check_size("batch_size", batch_size, maximum=2**63 - 1))

    def quantize(self, weights: str) -> QuantizedRecurrent[StateT]:
        """Return a copy of this network for inference, with its weights in fewer bits.

        Args:
            weights: "bf16" (half the bytes, errors of 2^-9 a weight) or "int8" (a quarter of the bytes, with
                inputs and h rounded to int8 too); see docs/quantized.md.

        Raises:
            TypeError: weights is not a string, or the network is not of float32.
            ValueError: another format, or sizes past 131072 with "int8".
            RuntimeError: the network is on a GPU.
        """
        self._require_cpu("quantize")
        return QuantizedRecurrent(self, weights)

    def _extra_repr(self) -> str:
        given = {
            "proj_size": (self.proj_size, 0),
            "num_layers": (self.num_layers, 1),
            "bias": (self.bias, True),
            "batch_first": (self.batch_first, False),
            "dropout": (self.dropout, 0.0),
            "bidirectional": (self.bidirectional, False),
            "recompute": (self.recompute, False),
            "dtype": (str(self._dtype), "float32"),
        }
        options = [f"{name}={value!r}" for name, (value, default) in given.items() if value != default]
        return ", ".join([str(self.input_size), str(self.hidden_size), *options])
