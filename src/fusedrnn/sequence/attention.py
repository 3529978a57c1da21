"""A recurrent decoder with attention."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cells import CELLS
from fusedrnn.checks import check_array, check_flag, check_size, kind_error, resolve_dtype
from fusedrnn.init import Seed, check_method, make_rng, recurrent_layer, torch_uniform, xavier_uniform
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import Tape, check_tape
from fusedrnn.sequence.host import host_array, integers

State: TypeAlias = "Array | tuple[Array, ...]"

# Of the kernels' parameters, in their order.
_ATTENTION = ("weight_query", "weight_memory", "bias_memory", "weight_energy")
_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_NAMES = (*_ATTENTION, *(f"{name}_l0" for name in _CELL), "weight_output")


class DecoderTape(Tape):
    """Tape of an `AttentionDecoder`: what the kernels saved, and the memory with its keys.

    Attributes:
        nbytes: bytes that stay allocated because of this tape, but for the input and the parameters.
    """

    __slots__ = ("core", "shape")

    def __init__(self, owner: AttentionDecoder, core: _core.DecoderTape, shape: tuple[int, ...]) -> None:
        Tape.__init__(self, owner, core.nbytes)
        self.core = core
        self.shape = shape

    def _about(self) -> str:
        return f"shape={self.shape}, "


class AttentionDecoder(Module):
    """Recurrent decoder that looks at a memory in every step: one call runs all steps.

        alpha_t = softmax over s of weight_energy . tanh(W_query h_(t-1) + W_memory memory_s + bias_memory)
        c_t     = sum_s alpha_(t,s) memory_s
        h_t     = cell([x_t; c_t], h_(t-1))

    T, B, I, H stand for steps, batch, input size and hidden size, S for the steps of the memory, M and A for
    the sizes of the memory and of the attention. Parameters: weight_query (A, H), weight_memory (A, M),
    bias_memory (A,), weight_energy (A,), and the cell's with PyTorch's names and gate order, as those of a
    network whose input is [x; context]: weight_ih_l0 (G*H, I + M), weight_hh_l0 (G*H, H), bias_ih_l0 and
    bias_hh_l0 (G*H,).

    Args:
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        input_size: I.
        hidden_size: H.
        memory_size: M.
        attention_size: A; H if None.
        score: "additive" (Bahdanau), the energies above.
        query: "previous", the state before the step, whose context enters every gate.
        bias: whether there are biases.
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default": the cell's as in all networks, Xavier uniform for the attention's weights and 0 for
            its bias. "torch": uniform as in torch.nn. None leaves all parameters at zero.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Bahdanau, Cho and Bengio 2014, arXiv:1409.0473.
    """

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
        bias: bool = True,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        if not isinstance(cell, str) or cell not in CELLS:
            kind = f"'{cell}'" if isinstance(cell, str) else type(cell).__name__
            raise (ValueError if isinstance(cell, str) else TypeError)(
                f"cell: expected one of {', '.join(CELLS)}, got {kind}"
            )
        for name, value, only in (("score", score, "additive"), ("query", query, "previous")):
            if value != only:
                raise ValueError(f"{name}: expected {only!r}, got {value!r}")
        self.cell, self.score, self.query = cell, score, query
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.memory_size = check_size("memory_size", memory_size)
        given = hidden_size if attention_size is None else attention_size
        self.attention_size = check_size("attention_size", given)
        self.bias = check_flag("bias", bias)
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        spec = CELLS[cell]
        i, h, m, a = self.input_size, self.hidden_size, self.memory_size, self.attention_size
        gates = spec.gates * h
        sizes = ((a, h), (a, m), (a,), (a,), (gates, i + m), (gates, h), (gates,), (gates,))
        shapes = dict(zip(_NAMES[:-1], sizes, strict=True))
        if not self.bias:
            shapes = {name: shape for name, shape in shapes.items() if not name.startswith("bias")}
        self._declare(shapes, found)
        if method is None:
            return
        for name in _ATTENTION:
            array = self._own.get(name)
            if array is None or (method == "default" and name == "bias_memory"):
                continue
            fan = {"weight_query": h, "weight_energy": a}.get(name, m)
            if method == "torch":
                torch_uniform(array, fan, rng=rng)
            else:
                xavier_uniform(array if array.ndim == 2 else array[None], rng=rng)
        recurrent_layer(
            spec, {n: self._own[f"{n}_l0"] for n in _CELL if f"{n}_l0" in self._own}, method, rng=rng
        )

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
    ) -> tuple[Array, Array, State, DecoderTape]:
        """Run all steps and keep what `backward` needs.

        Args:
            x: (T, B, I), the inputs, with teacher forcing those of the right answer.
            memory: (S, B, M), say the outputs of an encoder.
            memory_lengths: (B,) of an integer dtype, each in 0..S; all S if None. Past them alpha is exactly
                0; with 0 the context is 0.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.
            state: h (1, B, H), of an LSTM (h, c); zero if None.

        Returns:
            y: (T, B, H), 0 past a sequence's end.
            alpha: (T, B, S), how much each step looks at each row of the memory; 0 past the ends.
            state: after each sequence's last step, in the shapes of the argument.
            tape: for `backward`. It refers to x: do not write to it before.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range.
            RuntimeError: an array, or this module, on a GPU.
        """
        y, alpha, found, core = self._run(x, memory, memory_lengths, lengths, state, keep=True)
        assert core is not None
        return y, alpha, found, DecoderTape(self, core, y.shape)

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
        batch = tape.shape[1]
        flow = None if dy is None else host_array("dy", dy)
        extra = None if dalpha is None else host_array("dalpha", dalpha)
        states = self._states("dstate", dstate, batch)
        sums = self._sums()
        grads = tuple(sums.get(name) for name in _NAMES) if sums else None
        with self._turn.take():
            dx, dmemory, dinitial = _core.decoder_backward(
                tape.core, flow, extra, states, grads, check_flag("need_dx", need_dx)
            )
        return dx, dmemory, self._as_state(dinitial)

    def stream(self, memory: Array, memory_lengths: npt.ArrayLike | None = None) -> DecoderStream:
        """Return a step for generation: the keys and the packed weights are made once.

        Args:
            memory: (S, B, M).
            memory_lengths: (B,) of an integer dtype, each in 0..S; all S if None.

        Raises:
            TypeError, ValueError, RuntimeError: as `forward`.
        """
        return DecoderStream(self, self._prepare(memory, memory_lengths, keep=True))

    def _prepare(self, memory: Any, memory_lengths: Any, keep: bool) -> _core.DecoderMemory:
        self._require_cpu("AttentionDecoder")
        array = host_array("memory", memory)
        shape = (*array.shape[:2], self.memory_size)
        check_array("memory", array, shape, self._dtype, "(S, B, M)")
        counts = None if memory_lengths is None else integers("memory_lengths", memory_lengths)
        own = self._kept_parameters() if keep else self._own
        params = tuple(own.get(name) for name in _NAMES)
        return _core.decoder_prepare(self.cell, array, counts, params, self.score, False, False)

    def _run(
        self, x: Any, memory: Any, memory_lengths: Any, lengths: Any, state: Any, keep: bool
    ) -> tuple[Array, Array, State, _core.DecoderTape | None]:
        self._require_cpu("AttentionDecoder")
        inputs = host_array("x", x)
        check_array("x", inputs, (*inputs.shape[:2], self.input_size), self._dtype, "(T, B, I)")
        counts = None if lengths is None else integers("lengths", lengths)
        states = self._states("state", state, inputs.shape[1])
        prepared = self._prepare(memory, memory_lengths, keep)
        y, alpha, found, core = _core.decoder_forward(prepared, inputs, counts, states, None, keep)
        return y, alpha, self._as_state(found), core

    def _states(self, name: str, state: Any, batch: int) -> tuple[Array | None, ...] | None:
        """Return states (1, B, H) as (B, H)."""
        if state is None:
            return None
        several = CELLS[self.cell].states > 1
        if several and not isinstance(state, tuple):
            raise kind_error(name, state, "a tuple (h, c)")
        parts = state if several else (state,)
        arrays: list[Any] = []
        for i, part in enumerate(parts):
            own = f"{name}[{i}]" if several else name
            if part is None:
                arrays.append(None)
                continue
            array = host_array(own, part)
            check_array(own, array, (1, batch, self.hidden_size), self._dtype, "(1, B, H)")
            arrays.append(array[0])
        return tuple(arrays)

    def _as_state(self, arrays: tuple[Array, ...]) -> State:
        found = tuple(array[None] for array in arrays)
        return found if len(found) > 1 else found[0]

    def _extra_repr(self) -> str:
        sizes = f"{self.input_size}, {self.hidden_size}, {self.memory_size}"
        attention = (
            "" if self.attention_size == self.hidden_size else f", attention_size={self.attention_size}"
        )
        bias = "" if self.bias else ", bias=False"
        dtype = "" if self._dtype == np.float32 else f", dtype='{self._dtype}'"
        return f"'{self.cell}', {sizes}{attention}{bias}{dtype}"


class DecoderStream:
    """One step of an `AttentionDecoder` at a time, over a memory whose keys are made once.

    The parameters are those of the time when it was made.

    Attributes:
        batch_size: B of the memory.
        state: after the last step: h (1, N, H), of an LSTM (h, c); at first None, which is zero. It may be
            set.
    """

    __slots__ = ("_decoder", "_prepared", "batch_size", "state")

    def __init__(self, decoder: AttentionDecoder, prepared: _core.DecoderMemory) -> None:
        self._decoder = decoder
        self._prepared = prepared
        self.batch_size = prepared.batch
        self.state: State | None = None

    def __call__(self, x: Array, rows: npt.ArrayLike | None = None) -> tuple[Array, Array]:
        """Advance by one step and return y (N, H) and alpha (N, S).

        Args:
            x: (N, I); N = B without rows.
            rows: (N,) of an integer dtype: which row of the memory each row of x looks at, as hypotheses of a
                beam search that share one.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range.
        """
        decoder = self._decoder
        inputs = host_array("x", x)
        check_array("x", inputs, (*inputs.shape[:1], decoder.input_size), decoder._dtype, "(N, I)")
        places = None if rows is None else integers("rows", rows)
        states = decoder._states("state", self.state, inputs.shape[0])
        y, alpha, found, _ = _core.decoder_forward(self._prepared, inputs[None], None, states, places, False)
        self.state = decoder._as_state(found)
        return y[0], alpha[0]

    def reset(self) -> None:
        """Set the state to zero."""
        self.state = None

    def __repr__(self) -> str:
        return f"DecoderStream({self._decoder!r}, batch_size={self.batch_size})"
