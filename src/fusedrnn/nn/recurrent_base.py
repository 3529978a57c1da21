"""Recurrent: layers, directions and sequence options around the kernels of any cell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array, StateLike
from fusedrnn.backend import CPU, first_array
from fusedrnn.cells import CellSpec, gather_weights, resolve_cell
from fusedrnn.checks import MOST_LAYERS, check_array, check_flag, check_number, check_size, resolve_dtype
from fusedrnn.compute import check_compute, kernel_key
from fusedrnn.init import Noise, Seed, check_method, make_rng, recurrent_layer
from fusedrnn.inputs.lookup import Lookup, array_of
from fusedrnn.inputs.masks import packing_of
from fusedrnn.nn.heads import check_heads, draw_heads
from fusedrnn.nn.input_norm import GAIN
from fusedrnn.nn.module import Module
from fusedrnn.nn.options import Zoneout, check_all_states
from fusedrnn.nn.plan import (
    NetworkPlan,
    NetworkShape,
    Part,
    check_forget_bias,
    check_projection,
    layout_error,
)
from fusedrnn.nn.recurrent_backward import backward_layers
from fusedrnn.nn.recurrent_forward import Results, forward_layers
from fusedrnn.nn.serving import Served, StateT
from fusedrnn.nn.tape import RecurrentTape, check_tape
from fusedrnn.symbolic import DefinedCell


class Recurrent(Served[StateT]):
    """Stacked, possibly bidirectional network of any cell: a compiled one, or one of `define_cell`.

    `y, state = rnn(x)`; to train, `y, state, tape = rnn.forward(x)` and `dx, _ = rnn.backward(tape, dy)`.
    x is (T, B, I), (B, T, I) with batch_first, or (T, I) for one sequence, on a GPU also of 16 bits: see
    docs/cuda.md; y (T, B, D*Hout), laid out as x, with D = 2 if bidirectional else 1 and Hout = proj_size or
    hidden_size.
    The state is h (num_layers*D, B, Hout) for a cell with one state, else a tuple of h and the others in the
    cell's order, each (num_layers*D, B, H); no B for one sequence. With a list as hidden_size, one for each
    layer, it is as wide as the widest layer, zero past the units of the others.

    Parameters, with the suffix _l{k}{_reverse}: weight_ih (G*H, I or D*Hout), with G blocks of H rows in the
    order of the cell's gates, weight_hh (G*H, Hout), bias_ih (G*H,), bias_hh (G*H,), and for each per-unit
    parameter u of the cell u (H,). A cell whose step reads no h.g has no weight_hh and no bias_hh.

    Args:
        cell: what `define_cell` returns, or the name of a compiled cell, see `fusedrnn.CELLS`.
        input_size: size of x_t, I >= 0.
        hidden_size: size of the state, H >= 1; or a list of them, one for each layer.
        num_layers: layers stacked on each other.
        bias: whether there are biases.
        batch_first: x and y are (B, T, ...) instead of (T, B, ...); states are not affected.
        dropout: probability of dropping an output between layers, in training mode.
        bidirectional: run each layer in both directions and join their outputs.
        proj_size: size of h if positive, below hidden_size; 0 for no projection. For cells that read h
            through weight_hh alone.
        dtype: of parameters, inputs and states: "float32" or "float64".
        seed: int, numpy.random.Generator or None, for initialisation and dropout.
        init: "default" (orthogonal weight_hh, biases as the cell says) or "torch" (as PyTorch draws them),
            see `fusedrnn.init.recurrent_layer`; None leaves all parameters at zero, for weights that are
            loaded next.
        forget_bias: initial bias of the gate f in place of what the cell says; used by init="default" only.
        recompute: tapes leave out the gates, and backward computes them once more: a fifth of a layer's
            memory or less for about a third more time. Gradients keep their bits on the CPU, and the accuracy
            of the arithmetic on a GPU. May be changed at any time.
        weight_dropout: probability of dropping an element of weight_hh for one call, in training mode, on the
            CPU; the others are scaled by 1/(1-p). Merity, Keskar and Socher 2017, arXiv:1708.02182.
        recurrent_dropout: probability of dropping a unit of h where weight_hh multiplies it, in training
            mode; the others are scaled by 1/(1-p). One mask for each sequence, all of its steps and all
            gates; elsewhere in the step h is whole. Gal and Ghahramani 2016, arXiv:1512.05287.
        zoneout: probability that a unit's state stays as it was before a step, in training mode;
            in evaluation mode the state is the expectation, p*s + (1-p)*s'. One for each state in their
            order, or one for all. Krueger et al. 2016, arXiv:1606.01305.
        locked_dropout: probability of dropping a feature of x and of y in all steps of a sequence, in
            training mode; the others are scaled by 1/(1-p). Or a pair, one for x and one for y.
        residual: whether each layer from the second on adds its input to its output; states stay without.
        merge: what the outputs of two directions make, after each layer: "concat", "sum", "mean" or "mul",
            with which y is (T, B, Hout).
        learned_state: whether the initial state is a parameter, which calls without a state start from:
            h0 (num_layers*D, 1, Hout) and the others alike. Resets go to zeros or reset_state.
        init_state: what calls without a state start from, or a learned state at first: "zeros"; "normal",
            N(0, 1), drawn anew in each call in training mode and zeros in evaluation mode, but once where
            learned; or a state (num_layers*D, Hout), saved as the buffers init_h and alike.
        learned_reset_state: whether calls with resets and no reset_state have parameters put in place of the
            state: reset_h (num_layers*D, 1, Hout) and the others alike, zero at first.
        batch_norm: whether W_ih x is normalised, without b_ih, over all steps of the batch that count, gates
            and units apart, and multiplied by gain_ih (G*H,), 1 at first. In evaluation mode by the buffers
            running_mean and running_var (G*H,), which move by a tenth in each call in training mode. Laurent
            et al. 2016, arXiv:1510.01378.
        num_heads: blocks of weight_hh, which is zero between units of different heads, and its gradient too.
        all_states: whether y has behind h the other states of the last layer after each step, c of an LSTM,
            each (T, B, D*H). Gradients of them go into backward with dy.
        compute: "float32", or "bf16" for products of operands rounded to bfloat16 with sums in float32, in
            forward and backward, on the CPU and where it has AMX or AVX512_BF16; all else stays float32.
            "bf16x3" takes each operand as the sum of two bfloat16, which is as near to float32 as 16 bits
            are, and needs AMX. None for what `set_float32_matmul_precision` says. May be changed at any time.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: dropout between layers: Zaremba, Sutskever and Vinyals 2014, arXiv:1409.2329v5.
    """

    has_state = True
    _derived = Module._derived | {"_key", "_plan", "_plain"}
    _fixed = frozenset(("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size"))
    _key: str
    _plan: NetworkPlan
    _plain: Callable[..., Any] | None
    _noise: Noise

    def __init__(
        self,
        cell: str | CellSpec | DefinedCell,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        forget_bias: float | None = None,
        recompute: bool = False,
        weight_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: Zoneout = 0.0,
        locked_dropout: float | tuple[float, float] = 0.0,
        residual: bool = False,
        merge: str = "concat",
        learned_state: bool = False,
        init_state: Any = "zeros",
        learned_reset_state: bool = False,
        batch_norm: bool = False,
        num_heads: int = 1,
        all_states: bool = False,
        compute: str | None = None,
    ) -> None:
        super().__init__()
        self._set_regularisers(resolve_cell(cell), weight_dropout, recurrent_dropout, zoneout)
        self._saved_cell = self._unmasked.definition if self._saves_program else None
        self.input_size = check_size("input_size", input_size, 0)
        num_layers = check_size("num_layers", num_layers, maximum=MOST_LAYERS)
        sizes = self._set_sizes(hidden_size, num_layers)
        self.bias = check_flag("bias", bias)
        self.batch_first = check_flag("batch_first", batch_first)
        self.dropout = check_number("dropout", dropout, 0.0, 1.0)
        self.bidirectional = check_flag("bidirectional", bidirectional)
        self.proj_size = check_projection(self._spec, proj_size, self.hidden_size)
        self.recompute = check_flag("recompute", recompute)
        self._all_states = check_all_states(self._spec, all_states)
        self._num_heads = check_heads(self._spec, num_heads, sizes, self.proj_size)
        self._set_starts(init_state, learned_state, learned_reset_state)
        self._set_joining(locked_dropout, residual, merge, batch_norm)
        if self.dropout and self.num_layers == 1:
            text = "dropout: acts between layers, so it does nothing with num_layers=1"
            warnings.warn(text, stacklevel=2 if type(self) is Recurrent else 3)
        method = check_method(init)
        forget_bias = check_forget_bias(self._spec, forget_bias)
        found, rng = resolve_dtype(dtype), make_rng(seed)
        self._compute = check_compute(compute, found)
        directions = 2 if self.bidirectional else 1
        layers = [self._spec.state_widths(size, self.proj_size) for size in sizes]
        network = NetworkShape.of(self._spec, found, layers, directions, self.merge != "concat")
        if self._all_states:
            beyond = directions * sum(network.layers[-1][1:])
            network = replace(network, out_size=network.out_size + beyond)
        self._network = network
        self._check_residual()
        shapes = {}
        for layer, size in enumerate(sizes):
            inputs = network.outs[layer - 1] if layer else self.input_size
            for suffix in self._suffixes(layer):
                part = self._spec.parameter_shapes(inputs, size, self.bias, self.proj_size)
                shapes.update({name + suffix: shape for name, shape in part.items()})
                shapes.update(self._norm_shapes(suffix, self._spec.gates * size))
        self._declare({**shapes, **self._start_shapes()}, found)
        for layer in range(self.num_layers):
            for arrays in [self._select(self._own, suffix) for suffix in self._suffixes(layer)]:
                recurrent_layer(self._spec, arrays, method, forget_bias=forget_bias, rng=rng)
                if self._num_heads > 1:
                    draw_heads(arrays["weight_hh"], self._num_heads, method, rng)
        for name in self._own if method is not None else ():
            if name.startswith(GAIN + "_l") and self.batch_norm:
                self._own[name] = 1.0
        self._fill_starts(rng, method is None)
        self._noise = Noise(rng)

    def _select(self, arrays: dict[str, Array], suffix: str) -> dict[str, Array]:
        """Return the arrays of one layer and direction under their names without the suffix."""
        return {n: arrays[n + suffix] for n in self._spec.parameter_names if n + suffix in arrays}

    def _rebind(self) -> None:
        self.__dict__["_network"] = replace(self._network, dtype=self._dtype)
        layers: list[tuple[Part, ...]] = []
        for layer, widths in enumerate(self._network.layers):
            parts, width = [], widths[0]
            own = widths if widths != self._network.widths else None
            for direction, suffix in enumerate(self._suffixes(layer)):
                weights = gather_weights(self._spec, self._select(self._own, suffix))
                grads = gather_weights(self._spec, self._select(self._own_grads, suffix))
                columns = slice(direction * width, (direction + 1) * width) if self.bidirectional else None
                cache = self._backend.kernels.WeightCache()
                row = len(self._suffixes(layer)) * layer + direction
                parts.append(Part(row, weights, grads, cache, direction == 1, columns, own))
            layers.append(tuple(parts))
        plain, key = None, kernel_key(self._spec, self.compute if self._backend is CPU else "float32")
        optional = self.weight_dropout or self._masks or self._joining
        single = self.num_layers == 1 and not self.bidirectional and not optional
        if single and self._backend is CPU:
            plain = _core.PlainCall(key, layers[0][0].weights, layers[0][0].cache).__call__
        self.__dict__.update(_key=key, _plan=NetworkPlan(tuple(layers)), _plain=plain)

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
                return y, final, RecurrentTape(self, y.shape, (layer,), (None,), (None,), 0)
        x = x._kept() if isinstance(x, Lookup) else x
        y, final, saved = self._run(x, state, lengths, resets, reset_state, True)
        if isinstance(y, np.ndarray):
            y.flags.writeable = False
        lookup = x if isinstance(x, Lookup) else None
        tape = RecurrentTape(self, y.shape, *saved, lookup, self.batch_first)
        if lookup is not None and not lookup._pays:
            tape.nbytes += lookup.indices.nbytes
        return y, final, tape

    def _run(self, x: Any, state: Any, lengths: Any, resets: Any, reset_state: Any, save: bool) -> Results:
        on = self._backend.for_input(x, self._dtype)
        try:
            if on is CPU:
                return forward_layers(self, on, lengths, save, x, state, resets, reset_state)
            if self.compute != "float32":
                self._require_cpu("compute")
            on.check_types(self._dtype, self._spec, state=state, reset_state=reset_state)
            run = partial(forward_layers, self, on, lengths, save)
            return on.enter(x, run, x, state, resets, reset_state)
        except ValueError as error:
            raise layout_error(error, x.shape, self.batch_first) from None

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
