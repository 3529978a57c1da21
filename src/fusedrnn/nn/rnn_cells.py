"""RNNCell, LSTMCell and GRUCell: one step with PyTorch's names, on the same kernels as whole sequences."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array, StateLike
from fusedrnn.backend import CPU
from fusedrnn.cells import CELLS, Weights, gather_weights, rnn_cell
from fusedrnn.checks import (
    check_array,
    check_flag,
    check_number,
    check_reset_after,
    check_size,
    resolve_dtype,
)
from fusedrnn.init import Seed, check_method, make_rng, recurrent_layer
from fusedrnn.nn.crossing import crosses_back
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import RecurrentTape, check_tape

StateT = TypeVar("StateT")

# indices, lengths, resets, reset_state and reverse of a kernel's call: names would cost it more than it does.
_NO_OPTIONS = (None, None, None, None, False)


class RecurrentCell(Module, Generic[StateT]):
    """One step of a recurrent cell; the base of RNNCell, LSTMCell and GRUCell.

    Shapes: x (B, I) or (I,), states (B, H) or (H,); of the module's dtype.
    """

    _derived = Module._derived | {"_weights", "_weight_grads", "_cache"}
    _fixed = frozenset(("input_size", "hidden_size", "bias"))
    _weights: Weights
    _weight_grads: Weights
    _cache: _core.WeightCache
    _dtype: np.dtype[Any]

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        bias: bool,
        dtype: npt.DTypeLike,
        seed: Seed,
        init: str | None,
        forget_bias: float | None = None,
    ) -> None:
        super().__init__()
        self._spec = CELLS[cell]
        self.input_size = check_size("input_size", input_size, 0)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.bias = check_flag("bias", bias)
        method = check_method(init)
        forget = None if forget_bias is None else check_number("forget_bias", forget_bias, -np.inf)
        found, rng = resolve_dtype(dtype), make_rng(seed)
        self._declare(self._spec.parameter_shapes(self.input_size, self.hidden_size, self.bias), found)
        recurrent_layer(self._spec, self._own, method, forget_bias=forget, rng=rng)

    def _rebind(self) -> None:
        self.__dict__.update(
            _weights=gather_weights(self._spec, self._own),
            _weight_grads=gather_weights(self._spec, self._own_grads),
            _cache=self._backend.kernels.WeightCache(),
        )

    def __call__(self, x: Array, state: StateLike | None = None) -> StateT:
        """Return the next state, h or (h, c), and keep no tape; raises what `forward` does.

        Args:
            x: (B, I) or (I,).
            state: h (B, H), or (h, c); without B if x is (I,); None for zeros.
        """
        return cast(StateT, self._step(x, state, False)[0])

    def forward(self, x: Array, state: StateLike | None = None) -> tuple[StateT, RecurrentTape]:
        """Run one step and keep what `backward` needs.

        Args:
            x: (B, I) or (I,).
            state: h (B, H), or (h, c); without B if x is (I,); None for zeros.

        Returns:
            The next state, h or (h, c), and the tape, which refers to x and state.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape.
        """
        final, y, tape = self._step(x, state, True)
        assert tape is not None
        # The kernel tape refers to its output, which nobody else holds.
        return final, RecurrentTape(self, (*x.shape[:-1], self.hidden_size), [tape], [None], [None], y.nbytes)

    def _step(
        self, x: Array, state: StateLike | None, save: bool
    ) -> tuple[Any, Array, _core.LayerTape | None]:
        backend = self._backend
        if backend is not CPU:
            return backend.enter(x, self._run, x, state, save)
        return self._run(x, state, save)

    def _run(
        self, x: Array, state: StateLike | None, save: bool
    ) -> tuple[Any, Array, _core.LayerTape | None]:
        backend = self._backend
        if not isinstance(x, backend.array):
            raise self._kind_error("x", x)
        if not 1 <= x.ndim <= 2 or x.shape[-1] != self.input_size:
            raise ValueError(f"x: expected shape (B, I) or (I,) with I = {self.input_size}, got {x.shape}")
        single = x.ndim == 1
        steps = x[None, None] if single else x[None]
        start = None if state is None else self._batched("state", state, x.shape[:-1])
        y, final, tape = backend.kernels.forward(
            self._spec.name,
            steps,
            self._weights,
            start,
            *_NO_OPTIONS,
            save,
            False,
            self._cache,
            self._buffers.values.version,
        )
        if single:
            final = tuple([part[0] for part in final])
        return self._spec.pack_state(final), y, tape

    def _batched(self, name: str, state: StateLike, leading: tuple[int, ...]) -> tuple[Array | None, ...]:
        """Return the checked state arrays as (B, H) views."""
        parts = self._spec.unpack_state(name, state)
        symbols = "(B, H)" if leading else "(H,)"
        for label, part in zip(self._spec.state_labels, parts, strict=True):
            if part is not None:
                shape = (*leading, self.hidden_size)
                check_array(name + label, part, shape, self._dtype, symbols, self._backend.array)
        return parts if leading else tuple([None if part is None else part[None] for part in parts])

    @crosses_back
    def backward(
        self, tape: RecurrentTape, dstate: StateLike, *, need_dx: bool = True
    ) -> tuple[Array | Any, StateT]:
        """Add the gradients of the parameters to `grads`; return (dx, dstate) of the input and given state.

        Args:
            tape: from `forward` of this module; usable again.
            dstate: gradient of the next state, h or (h, c), each array or None for zeros.
            need_dx: False leaves out the gradient of x, and dx is None.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape, or the tape of another module.
        """
        tape = check_tape(tape, self, RecurrentTape)
        backend = self._backend
        leading = tape.shape[:-1]
        final = self._batched("dstate", dstate, leading)
        sums = (None,) * len(self._weight_grads) if self._frozen else self._weight_grads
        with self._turn.take():
            dx, start, _ = backend.kernels.backward(tape.layers[0], None, final, sums, need_dx)
        if dx is not None:
            dx = dx[0] if leading else dx[0, 0]
        if not leading:
            start = tuple([part[0] for part in start])
        return dx, self._spec.pack_state(start)

    def _extra_repr(self) -> str:
        options = [] if self.bias else ["bias=False"]
        if self._dtype != np.float32:
            options.append(f"dtype='{self._dtype}'")
        return ", ".join([str(self.input_size), str(self.hidden_size), *options])


class RNNCell(RecurrentCell[Array]):
    """One Elman step, h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or max(0, ...) with nonlinearity="relu".

    `h = cell(x, h)`, with x (B, I) or (I,) and h (B, H) or (H,); `h, tape = cell.forward(x, h)` and
    `dx, dh = cell.backward(tape, dh)` to train. Parameters: weight_ih (H, I), weight_hh (H, H), bias_ih (H,),
    bias_hh (H,).

    Args:
        input_size: size of x_t, I >= 0.
        hidden_size: size of the state, H >= 1.
        bias: whether there are biases.
        nonlinearity: "tanh" or "relu".
        dtype: of parameters, inputs and states: "float32" or "float64".
        seed: int, numpy.random.Generator or None, for initialisation.
        init: "default" (orthogonal weight_hh) or "torch" (as PyTorch draws them), see
            `fusedrnn.init.recurrent_layer`; None leaves all parameters at zero, for weights that are loaded
            next.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Elman 1990, Finding structure in time.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__(rnn_cell(nonlinearity), input_size, hidden_size, bias, dtype, seed, init)

    @property
    def nonlinearity(self) -> str:
        """The function of a step, by name."""
        return self._spec.name.removeprefix("rnn_")

    def _extra_repr(self) -> str:
        options = super()._extra_repr()
        return options if self.nonlinearity == "tanh" else f"{options}, nonlinearity={self.nonlinearity!r}"


class LSTMCell(RecurrentCell[tuple[Array, Array]]):
    """One LSTM step, c' = f*c + i*g, h' = o*tanh(c'); gates in the order i, f, g, o.

    `h, c = cell(x, (h, c))`, with x (B, I) or (I,), h and c (B, H) or (H,); to train,
    `state, tape = cell.forward(x, state)` and `dx, dstate = cell.backward(tape, dstate)`. Parameters:
    weight_ih (4*H, I), weight_hh (4*H, H), bias_ih (4*H,), bias_hh (4*H,).

    Args:
        input_size: size of x_t, I >= 0.
        hidden_size: size of the state, H >= 1.
        bias: whether there are biases.
        dtype: of parameters, inputs and states: "float32" or "float64".
        seed: int, numpy.random.Generator or None, for initialisation.
        init: "default" (orthogonal weight_hh, forget_bias) or "torch" (as PyTorch draws them), see
            `fusedrnn.init.recurrent_layer`; None leaves all parameters at zero, for weights that are loaded
            next.
        forget_bias: initial bias of the forget gate, put into bias_ih; used by init="default" only.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        forget_bias: float = 1.0,
    ) -> None:
        super().__init__("lstm", input_size, hidden_size, bias, dtype, seed, init, forget_bias)


class GRUCell(RecurrentCell[Array]):
    """One GRU step with the reset gate after the matrix product; gates in the order r, z, n.

    `h = cell(x, h)`, with x (B, I) or (I,) and h (B, H) or (H,); `h, tape = cell.forward(x, h)` and
    `dx, dh = cell.backward(tape, dh)` to train. Parameters: weight_ih (3*H, I), weight_hh (3*H, H), bias_ih
    (3*H,), bias_hh (3*H,).

    Args:
        input_size: size of x_t, I >= 0.
        hidden_size: size of the state, H >= 1.
        bias: whether there are biases.
        reset_after: only True, the form with the reset gate after the matrix product, is built.
        dtype: of parameters, inputs and states: "float32" or "float64".
        seed: int, numpy.random.Generator or None, for initialisation.
        init: "default" (orthogonal weight_hh) or "torch" (as PyTorch draws them), see
            `fusedrnn.init.recurrent_layer`; None leaves all parameters at zero, for weights that are loaded
            next.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Cho et al. 2014, arXiv:1406.1078v1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        check_reset_after(reset_after)
        super().__init__("gru", input_size, hidden_size, bias, dtype, seed, init)
