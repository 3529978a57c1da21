"""A recurrent decoder with attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cells import CELLS
from fusedrnn.checks import check_array, check_flag, check_size, kind_error, resolve_dtype
from fusedrnn.compute import HasCompute, check_compute
from fusedrnn.init import Seed, check_method, make_rng
from fusedrnn.nn.module import Module
from fusedrnn.nn.recurrent_base import Recurrent
from fusedrnn.nn.tape import check_tape
from fusedrnn.sequence.decoder_options import NAMES, check_options, initialise, parameter_shapes
from fusedrnn.sequence.decoder_stream import PAST, DecoderStream, State
from fusedrnn.sequence.decoder_tape import DecoderTape, Drawn
from fusedrnn.sequence.host import host_array, integers
from fusedrnn.sequence.scheduled_sampling import ScheduledSampling


class AttentionDecoder(HasCompute, Module):
    """Recurrent decoder that looks at a memory in every step: one call runs all steps.

    With query="previous" (Bahdanau) the query q_t is h_(t-1) and the context enters every gate; with
    query="current" (Luong) it is h_t, and the output is the attentional vector:

        c_t = context(h_(t-1))   h_t = cell([x_t; c_t], h_(t-1))   y_t = h_t
        h_t = cell(x_t, h_(t-1))   c_t = context(h_t)   y_t = tanh(W_output [c_t; h_t])

    with input_feeding the latter's cell takes [x_t; y_(t-1)], y before the first step being 0. The context is

        alpha_t = softmax over s of e_t   c_t = sum_s alpha_(t,s) memory_s

    and the energies e_(t,s) are, by `score`,

        "additive"  weight_energy . tanh(W_query q_t + W_memory memory_s + bias_memory)
        "location"  the same with W_location f_(t,s) inside tanh: f_(t,s) are the filters' values at s, the
                    convolution of weight_filter with alpha_(t-1), zeros past its ends
        "dot"       q_t . memory_s
        "general"   q_t . W_memory memory_s

    With "window" there are no energies, and alpha does not sum to 1: of K windows that move along the memory

        [a; b; d] = exp(W_window q_t + bias_window)   kappa_t = kappa_(t-1) + d, 0 before the first step
        alpha_(t,s) = sum over k of a_k exp(-b_k (kappa_(t,k) - s)^2)   s = 1, 2, ..., the rows of the memory

    With coverage, weight_coverage * (sum over t' < t of alpha_(t',s)) is added inside tanh.

    All of this is the first layer. Those above it are recurrent layers of the same cell, each over the
    outputs of the layer below, and the last one's are returned as y. The query is the first layer's state, as
    in GNMT, whose layers above look at c_t besides: here they do not.

    T, B, I, H stand for steps, batch, input size and hidden size, S for the steps of the memory, M and A for
    the sizes of the memory and of the attention, C and K for filters and their width. Parameters:
    weight_query (A, H), weight_memory (A, M), bias_memory (A,) and weight_energy (A,), with "general"
    weight_memory (H, M) alone, with "window" weight_window (3*K, H) and bias_window (3*K,) alone;
    weight_location (A, C), weight_filter (C, K); weight_coverage (A,); weight_output (H, M + H); and the
    cell's with PyTorch's names and gate order: weight_ih_l0 (G*H, I + F), weight_hh_l0 (G*H, H), bias_ih_l0
    and bias_hh_l0 (G*H,), F being M, with query="current" 0, with input_feeding H; and of the layers above
    those of the network `upper`, upper.weight_ih_l0 being of the second layer.

    Args:
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        input_size: I.
        hidden_size: H.
        memory_size: M; H with "dot".
        attention_size: A; H if None. With "dot" and "general" it is H.
        score: "additive", "location", "dot", "general" or "window", as above.
        query: "previous" or "current", the state before or after the step.
        input_feeding: whether a step is fed the output before it; with query="current".
        coverage: whether energies know where all steps before looked; with "additive" and "location".
        location_filters: C.
        location_kernel_size: K of the filters, odd.
        num_windows: K of the windows.
        num_layers: how many layers there are.
        bias: whether there are biases.
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default": the cell's as in all networks, Xavier uniform for the attention's weights and 0 for
            its bias. "torch": uniform as in torch.nn. None leaves all parameters at zero.
        compute: "float32", or "bf16x3" or "bf16" for products with weights, as `LSTM`'s; energies, contexts
            and what a search adds up of them stay float32. May be changed at any time.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, or options that have no meaning together.

    Papers: Bahdanau, Cho and Bengio 2014, arXiv:1409.0473; Luong, Pham and Manning 2015, arXiv:1508.04025;
    Chorowski et al. 2015, arXiv:1506.07503 (location); See, Liu and Manning 2017, arXiv:1704.04368
    (coverage); Graves 2013, arXiv:1308.0850 (window); Wu et al. 2016, arXiv:1609.08144 (layers).
    """

    _fixed = frozenset(("cell", "input_size", "hidden_size", "memory_size", "num_layers", "bias"))
    _derived = Module._derived | {"_packed"}
    _dtype: np.dtype[Any]

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        attention_size: int | None = None,
        score: str = "additive",
        query: str = "previous",
        *,
        input_feeding: bool = False,
        coverage: bool = False,
        location_filters: int = 10,
        location_kernel_size: int = 31,
        num_windows: int = 10,
        num_layers: int = 1,
        bias: bool = True,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        compute: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(cell, str) or cell not in CELLS:
            kind = f"'{cell}'" if isinstance(cell, str) else type(cell).__name__
            raise (ValueError if isinstance(cell, str) else TypeError)(
                f"cell: expected one of {', '.join(CELLS)}, got {kind}"
            )
        self.cell = cell
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.memory_size = check_size("memory_size", memory_size)
        self._options = options = check_options(
            *(score, query, input_feeding, coverage, attention_size, location_filters, location_kernel_size),
            *(num_windows, self.hidden_size, self.memory_size),
        )
        self.bias = check_flag("bias", bias)
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        spec, sizes = CELLS[cell], (self.input_size, self.hidden_size, self.memory_size)
        self._compute = check_compute(compute, found)
        self._declare(parameter_shapes(spec, options, *sizes, self.bias), found)
        if method is not None:
            initialise(spec, self._own, method, rng=rng)
        self.num_layers = check_size("num_layers", num_layers)
        # The layers above run after all steps of the first: they need nothing of the attention.
        self.upper: Recurrent[Any] | None = None
        if self.num_layers > 1:
            self.upper = Recurrent(
                *(cell, self.hidden_size, self.hidden_size, self.num_layers - 1, self.bias),
                dtype=found, seed=rng, init=method, compute=self.compute,
            )  # fmt: skip

    def _compute_changed(self) -> None:
        if self.upper is not None:
            self.upper.compute = self.compute

    @property
    def score(self) -> str:
        """What the energies are."""
        return self._options.score

    @property
    def query(self) -> str:
        """Which state the query is."""
        return self._options.query

    @property
    def attention_size(self) -> int:
        """A."""
        return self._options.attention_size

    def __call__(
        self,
        x: Array,
        memory: Array,
        memory_lengths: npt.ArrayLike | None = None,
        lengths: npt.ArrayLike | None = None,
        state: State | None = None,
    ) -> tuple[Array, Array, State]:
        """Return y, alpha and the state as `forward`, without a tape."""
        return self._run(x, memory, memory_lengths, lengths, state, keep=False)[:3]

    def forward(
        self,
        x: Array,
        memory: Array,
        memory_lengths: npt.ArrayLike | None = None,
        lengths: npt.ArrayLike | None = None,
        state: State | None = None,
        *,
        sampling: ScheduledSampling | None = None,
    ) -> tuple[Array, Array, State, DecoderTape]:
        """Run all steps and keep what `backward` needs.

        Args:
            x: (T, B, I), the inputs, with teacher forcing those of the right answer.
            memory: (S, B, M), say the outputs of an encoder.
            memory_lengths: (B,) of an integer dtype, each in 0..S; all S if None. Past them alpha is exactly
                0; with 0 the context is 0.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.
            state: h (num_layers, B, H), of an LSTM (h, c); zero if None.
            sampling: what replaces some of x by tokens drawn from y; with one layer.

        Returns:
            y: (T, B, H), 0 past a sequence's end; read-only with several layers, since the tape refers to it.
            alpha: (T, B, S), how much each step looks at each row of the memory; 0 past the ends.
            state: after each sequence's last step, in the shapes of the argument.
            tape: for `backward`. It refers to x: do not write to it before. Its `tokens` (T, B) are those
                that were drawn, -1 where x stayed; None without sampling.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range.
            RuntimeError: an array, or this module, on a GPU.
        """
        if sampling is not None and not isinstance(sampling, ScheduledSampling):
            raise kind_error("sampling", sampling, "a ScheduledSampling or None")
        if sampling is not None and self.num_layers > 1:
            raise ValueError(
                f"sampling: expected None with num_layers = {self.num_layers}, whose outputs come after all "
                "steps, got one"
            )
        y, alpha, found, core, upper, tokens = self._run(
            x, memory, memory_lengths, lengths, state, keep=True, sampling=sampling
        )
        drawn = None if sampling is None else Drawn(sampling, tokens)
        return y, alpha, found, DecoderTape(self, core, upper, drawn, y.shape, alpha.shape)

    def backward(
        self,
        tape: DecoderTape,
        dy: Array | None,
        dalpha: Array | None = None,
        dstate: State | None = None,
        *,
        need_dx: bool = True,
    ) -> tuple[Array | None, Array, State]:
        """Add to the gradients of the parameters; return dx, dmemory and dstate.

        Args:
            tape: from `forward`.
            dy: (T, B, H), or None for zero.
            dalpha: (T, B, S), or None for zero.
            dstate: gradients of the final state, in its shapes; None for zero.
            need_dx: whether to compute dx.

        Returns:
            dx: (T, B, I), 0 past a sequence's end; None without need_dx.
            dmemory: (S, B, M), 0 past its end.
            dstate: gradients of the initial state.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape, or the tape of another module.
        """
        tape = check_tape(tape, self, DecoderTape)
        self._require_cpu("AttentionDecoder.backward")
        check_flag("need_dx", need_dx)
        flow = None if dy is None else host_array("dy", dy)
        extra = None if dalpha is None else host_array("dalpha", dalpha)
        states = self._states("dstate", dstate, tape.shape[1])
        sums = self._sums()
        grads = tuple(map(sums.get, NAMES)) if sums else None
        above: tuple[Array, ...] | None = None
        if self.upper is not None:
            # All is checked before the layers above add to their gradients.
            if flow is None:
                flow = np.zeros(tape.shape, self._dtype)
            check_array("dy", flow, tape.shape, self._dtype, "(T, B, H)")
            if extra is not None:
                check_array("dalpha", extra, tape.alpha_shape, self._dtype, "(T, B, S)")
            flow, dupper = self.upper.backward(tape.upper, flow, self._above(states))
            above = dupper if isinstance(dupper, tuple) else (dupper,)
        drawn = tape.drawn
        with self._turn.take():
            dx, dmemory, dinitial = _core.decoder_backward(
                tape.core, flow, extra, self._first(states), grads, need_dx or drawn is not None
            )
        if drawn is not None:
            assert dx is not None
            drawn.backward(dx)
        return dx if need_dx else None, dmemory, self._as_state(dinitial, above)

    def stream(self, memory: Array, memory_lengths: npt.ArrayLike | None = None) -> DecoderStream:
        """Return a step for generation: the keys and the packed weights are made once.

        Args:
            memory: (S, B, M).
            memory_lengths: (B,) of an integer dtype, each in 0..S; all S if None.

        Raises:
            TypeError, ValueError, RuntimeError: as `forward`.
        """
        return DecoderStream(self, self._prepare(memory, memory_lengths))

    def _prepare(
        self, memory: Any, memory_lengths: Any, table: Any = None, contexts: bool = False, steps: int = 0
    ) -> _core.DecoderMemory:
        self._require_cpu("AttentionDecoder")
        array = host_array("memory", memory)
        shape = (*array.shape[:2], self.memory_size)
        check_array("memory", array, shape, self._dtype, "(S, B, M)")
        counts = None if memory_lengths is None else integers("memory_lengths", memory_lengths)
        return _core.decoder_prepare(self._weights(), array, counts, table, contexts, steps)

    def _weights(self) -> _core.PackedDecoder:
        """Return the weights in panels: the same until the parameters change."""
        own = self._kept_parameters()
        held: tuple[Any, str, _core.PackedDecoder] | None = self.__dict__.get("_packed")
        if held is None or held[0] is not own or held[1] != self.compute:
            options = self._options
            kind = "additive" if options.additive else options.score
            params = tuple(own.get(name) for name in NAMES)
            packed = _core.decoder_pack(
                self.cell, params, self.memory_size, kind,
                options.current, options.input_feeding, self.compute,
            )  # fmt: skip
            held = (own, self.compute, packed)
            self.__dict__["_packed"] = held
        return held[2]

    def _run(
        self,
        x: Any,
        memory: Any,
        memory_lengths: Any,
        lengths: Any,
        state: Any,
        keep: bool,
        sampling: ScheduledSampling | None = None,
    ) -> tuple[Array, Array, State, Any, Any, Any]:
        """Return y, alpha, the state, the tapes of the first layer and of those above, and drawn tokens."""
        self._require_cpu("AttentionDecoder")
        inputs = host_array("x", x)
        check_array("x", inputs, (*inputs.shape[:2], self.input_size), self._dtype, "(T, B, I)")
        counts = None if lengths is None else integers("lengths", lengths)
        states = self._states("state", state, inputs.shape[1])
        prepared = self._prepare(memory, memory_lengths, steps=len(inputs))
        first = self._first(states)
        carry = None if first is None else (*first, *PAST)
        draws = None if sampling is None else sampling._draws(self.compute)
        y, alpha, found, core, tokens = _core.decoder_forward(
            prepared, inputs, counts, carry, None, keep, draws, None
        )
        found = found[: CELLS[self.cell].states]
        if self.upper is None:
            return y, alpha, self._as_state(found), core, None, tokens
        run = self.upper.forward if keep else self.upper.__call__
        y, final, *tapes = run(y, self._above(states), counts)
        above = final if isinstance(final, tuple) else (final,)
        return y, alpha, self._as_state(found, above), core, tapes[0] if tapes else None, tokens

    def _states(self, name: str, state: Any, batch: int) -> tuple[Array | None, ...] | None:
        """Return states (num_layers, B, H), each or None, of a state as the caller gives it."""
        if state is None:
            return None
        several = CELLS[self.cell].states > 1
        if several and not isinstance(state, tuple):
            raise kind_error(name, state, "a tuple (h, c)")
        arrays: list[Array | None] = []
        for i, part in enumerate(state if several else (state,)):
            own = f"{name}[{i}]" if several else name
            array = None if part is None else host_array(own, part)
            if array is not None:
                shape = (self.num_layers, batch, self.hidden_size)
                check_array(own, array, shape, self._dtype, "(num_layers, B, H)")
            arrays.append(array)
        return tuple(arrays)

    @staticmethod
    def _first(states: tuple[Array | None, ...] | None) -> tuple[Array | None, ...] | None:
        """Return those of the first layer, (B, H)."""
        return None if states is None else tuple(None if part is None else part[0] for part in states)

    @staticmethod
    def _above(states: tuple[Array | None, ...] | None) -> Any:
        """Return those of the layers above, as `upper` takes them."""
        if states is None:
            return None
        parts = tuple(None if part is None else part[1:] for part in states)
        return parts if len(parts) > 1 else parts[0]

    def _as_state(self, first: tuple[Array, ...], above: tuple[Array, ...] | None = None) -> State:
        """Return the states of the first layer (B, H) and of those above as the caller gets them."""
        if above is None:
            return first[0][None] if len(first) == 1 else tuple(array[None] for array in first)
        found = tuple(np.concatenate((own[None], rest)) for own, rest in zip(first, above, strict=True))
        return found if len(found) > 1 else found[0]

    def _extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}, {self.memory_size}"
        layers = "" if self.num_layers == 1 else f", num_layers={self.num_layers}"
        bias = "" if self.bias else ", bias=False"
        dtype = "" if self._dtype == np.float32 else f", dtype='{self._dtype}'"
        compute = "" if self.compute == "float32" else f", compute='{self.compute}'"
        return f"'{self.cell}', {sizes}{self._options.text(self.hidden_size)}{layers}{bias}{dtype}{compute}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._extra_repr()})"
