"""LSTMCell, GRUCell and RNNCell, one step at a time, as modules of PyTorch."""

from __future__ import annotations

from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd import Function

from fusedrnn.interop.torch import kernels, ops
from fusedrnn.interop.torch.kernels import GATES, TORCH, Cache, Inputs, Options, Tensor

# To the kernels, a cell is a network of one layer and its call a sequence of one step.
_OPTIONS = {cell: Options(cell, 1, False, False, 0.0) for cell in GATES}


class _Cell(nn.Module):
    """What the three share."""

    input_size: int
    hidden_size: int
    bias: bool
    _cell: str
    _states: ClassVar[tuple[str, ...]] = ("hx",)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Run one step.

        Args:
            input: (B, I) or (I,), of the parameters' dtype.
            hx: h (B, H), for an LSTMCell the tuple of h and c; without B if input is (I,); None for zeros.

        Returns:
            The next state, shaped as hx.

        Raises:
            TypeError: an argument of the wrong kind, or parameters that are not float32 or float64.
            ValueError: another number of dimensions than 1 or 2.
            RuntimeError: another shape, another dtype than the parameters', or a tensor not on the CPU.
        """
        options, cache = _OPTIONS[self._cell], None
        if not torch.compiler.is_compiling():
            cache = self._cache()
            # Hooks on saved tensors take what they want from the general way.
            if ops.is_common() and not (torch.is_grad_enabled() and ops.has_hooks()):
                record = _record if torch.is_grad_enabled() else None
                found = cache.network.step(self, input, hx, record, options)
                if found is not None:
                    return found
        params = tuple([getattr(self, name) for name in self._names()])
        x, *state = self._checked(params[0].dtype, input, hx)
        axes = 3 - x.dim()
        given = Inputs(_lifted(x, axes), None, None, None, tuple([_lifted(s, axes) for s in state]), params)
        _, *finals = ops.apply(options, cache, given)
        found = tuple([_lowered(final, axes) for final in finals])
        return found if len(found) > 1 else found[0]

    def _checked(self, dtype: torch.dtype, input: Any, hx: Any) -> list[Tensor]:
        """Return x and the given states, after the checks that torch.nn has."""
        kind, names, size = type(self).__name__, self._states, self.hidden_size
        if len(names) > 1 and not (hx is None or isinstance(hx, (tuple, list))):
            raise TypeError(f"hx: expected a tuple of h and c, got {type(hx).__name__}")
        parts = () if hx is None else hx if len(names) > 1 else (hx,)
        for name, part in zip(("input", *names), (input, *parts), strict=False):
            if not isinstance(part, Tensor):
                raise TypeError(f"{name}: expected a torch.Tensor, got {type(part).__name__}")
            if part.dim() not in (1, 2):
                name = "hidden" if name == "hx" else name
                raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {part.dim()}D instead")
        if hx is not None and len(parts) != len(names):
            raise RuntimeError(f"hx: expected {len(names)} hidden states, got {len(parts)}")
        if input.shape[-1] != self.input_size:
            got, want = input.shape[-1], self.input_size
            raise RuntimeError(f"input has inconsistent input_size: got {got} expected {want}")
        for i, part in enumerate(parts):
            if part.dim() != input.dim():
                raise RuntimeError(f"hidden{i}: expected {input.dim()}D as input, got {part.dim()}D")
            if part.shape[0] != input.shape[0] and part.dim() == 2:
                got, want = part.shape[0], input.shape[0]
                raise RuntimeError(f"Input batch size {want} doesn't match hidden{i} batch size {got}")
            if part.shape[-1] != size:
                got = part.shape[-1]
                raise RuntimeError(f"hidden{i} has inconsistent hidden_size: got {got}, expected {size}")
        for name, part in zip(("input", *names), (input, *parts), strict=False):
            if part.dtype is not dtype and not torch.is_autocast_enabled("cpu"):
                raise RuntimeError(f"{name}: expected {dtype} as the parameters, got {part.dtype}")
        # Autocast leaves recurrent networks in the dtype of their parameters.
        return [part.to(dtype) for part in (input, *parts)]

    def _names(self) -> list[str]:
        return ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][: 4 if self.bias else 2]

    def _cache(self) -> Cache:
        cache = _caches.get(self)
        if cache is None or cache.cell != self._cell:
            cache = _caches[self] = Cache(self._cell, [self._names()], 1)
        return cache


# Beside the modules, whose copies and pickles must not have them.
_caches: WeakKeyDictionary[_Cell, Cache] = WeakKeyDictionary()


def _lifted(tensor: Any, axes: int) -> Any:
    """Return it with so many axes in front, those of the step and of one sequence."""
    return None if tensor is None else tensor[(None,) * axes]


def _lowered(tensor: Any, axes: int) -> Any:
    return None if tensor is None else tensor.reshape(tensor.shape[axes:])


class _Step(Function):
    """The next state of a cell; the context holds the tape until backward."""

    boxed_grads_call = False  # torch looks for it at each backward, and writes an error where it is not

    @staticmethod
    def forward(
        ctx: Any, options: Options, found: Any, states: int, x: Any, *rest: Any
    ) -> tuple[Tensor, ...]:
        outputs, ctx.tape = found
        ctx.options, ctx.states = options, states
        ctx.set_materialize_grads(False)
        # The tape refers to h. There are no lengths, resets and seed.
        ctx.save_for_backward(x, outputs[0], *rest[3:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *flows: Tensor | None) -> tuple[Any, ...]:
        x, h, *rest = ctx.saved_tensors
        states, tape, axes = ctx.states, ctx.tape, 3 - x.dim()
        if not ops.keeps_graph():
            ctx.tape = None
        needs = ctx.needs_input_grad
        need_x, need_params = needs[3], True in needs[7 + states :]
        if torch.is_grad_enabled():  # by what has derivatives
            x, h, *others = [_lifted(tensor, axes) for tensor in (x, h, *flows, *rest[:states])]
            finals, state = others[: len(flows)], others[len(flows) :]
            given = x, None, None, None, h, kernels.attach(tape), *state, *rest[states:]
            found = ops.Backward.apply(
                *(ctx.options, states, len(flows), (need_x, need_params), None, *finals, *given)
            )
            first, after = found[: 1 + states], found[1 + states :]
            dx, *others = *[_lowered(flow, axes) for flow in first], *after
        else:
            dx, *others = TORCH.backward(
                *(tape.layers, tape.drops, flows, need_x, states > 0, need_params, False, axes)
            )
        return None, None, None, dx, None, None, None, *others

    jvp = staticmethod(ops.refuse_forward)


# As that of a network, without the look for transforms of torch.func.
_record = super(Function, _Step).apply


class LSTMCell(_Cell, nn.LSTMCell):
    """torch.nn.LSTMCell with the kernels of this library: the same arguments, parameters and shapes.

    c' = f*c + i*g, h' = o*tanh(c'), gates in the order i, f, g, o. On the CPU, float32 and float64. Second
    derivatives are there outside of torch.compile and torch.func; they run forward again.

    Args:
        input_size: size of x_t, I.
        hidden_size: size of the state, H.
        bias: whether there are biases.
        device: of the parameters.
        dtype: of the parameters, torch.float32 or torch.float64.

    Paper: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000.
    """

    _cell = "lstm"
    _states = ("hx[0]", "hx[1]")


class GRUCell(_Cell, nn.GRUCell):
    """torch.nn.GRUCell with the kernels of this library, gates in the order r, z, n; see `LSTMCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as `LSTMCell`.

    Paper: Cho et al. 2014, arXiv:1406.1078v1.
    """

    _cell = "gru"


class RNNCell(_Cell, nn.RNNCell):
    """torch.nn.RNNCell with the kernels of this library; see `LSTMCell`.

    h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or max(0, ...) with nonlinearity="relu".

    Args:
        input_size, hidden_size, bias, device, dtype: as `LSTMCell`.
        nonlinearity: "tanh" or "relu"; another is a RuntimeError at the call, as torch's.

    Paper: Elman 1990, Finding structure in time.
    """

    @property
    def _cell(self) -> str:  # type: ignore[override]
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"nonlinearity: expected 'tanh' or 'relu', got {self.nonlinearity!r}")
        return f"rnn_{self.nonlinearity}"
