"""A recurrent decoder with attention as a module of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import Function

from fusedrnn.compute import check_compute, float32_where_lacking, warn_of_lacking
from fusedrnn.interop.torch.host import as_array, check_tensor, on_host, outside_graphs, register
from fusedrnn.interop.torch.kernels import DTYPES, Tensor, attach, attached
from fusedrnn.interop.torch.ops import each, refuse_forward, refuse_second
from fusedrnn.sequence.attention import AttentionDecoder as HostDecoder


class AttentionDecoder(nn.Module):
    """Recurrent decoder that looks at a memory in every step, `fusedrnn.AttentionDecoder` in PyTorch.

    One call runs all steps, forward and backward. Equations, parameters, their names and shapes are those of
    `fusedrnn.AttentionDecoder`.

    Args:
        cell: "lstm", "gru", "rnn_tanh" or "rnn_relu".
        input_size: I.
        hidden_size: H.
        memory_size: M.
        attention_size: A; H if None.
        device: of the parameters.
        dtype: of the parameters, torch.float32 or torch.float64.
        options: other arguments of `fusedrnn.AttentionDecoder` by their names, as bias=False.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Bahdanau, Cho and Bengio 2014, arXiv:1409.0473.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        memory_size: int,
        attention_size: int | None = None,
        *,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.cell = cell
        self.input_size, self.hidden_size, self.memory_size = input_size, hidden_size, memory_size
        self.attention_size, self.options = attention_size, options
        kept = dtype or torch.get_default_dtype()
        # Calls make a module each: it is to multiply in what was chosen here, whatever is chosen then.
        found: Any = DTYPES.get(kept, DTYPES[torch.float32])
        options["compute"] = check_compute(options.get("compute"), found)
        host = self._host("float64", seed=int(torch.randint(2**62, ())))
        for name, array in host.state_dict().items():
            register(self, name, torch.from_numpy(array).to(device, kept))

    @outside_graphs
    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        memory_lengths: Any = None,
        lengths: Any = None,
        state: Any = None,
    ) -> tuple[Tensor, Tensor, Any]:
        """Run all steps.

        Args:
            x: (T, B, I) in the parameters' dtype, on the CPU: with teacher forcing those of the right answer.
            memory: (S, B, M), say the outputs of an encoder.
            memory_lengths: (B,) of an integer dtype, each in 0..S; all S if None. Past them alpha is 0.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.
            state: h (num_layers, B, H), of an LSTM (h, c); zero if None.

        Returns:
            y: (T, B, H), 0 past a sequence's end.
            alpha: (T, B, S), how much each step looks at each row of the memory; 0 past the ends.
            state: after each sequence's last step, in the shapes of the argument.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range.
            RuntimeError: a tensor that is not on the CPU, or a second derivative.
        """
        parts = () if state is None else tuple(state) if isinstance(state, tuple) else (state,)
        for name, tensor in (("x", x), ("memory", memory), *(("state", part) for part in parts)):
            check_tensor(name, tensor)
        names = tuple(name for name, _ in self.named_parameters())
        named = ("memory_lengths", memory_lengths), ("lengths", lengths)
        counts = [None if n is None else torch.as_tensor(on_host(name, n)) for name, n in named]
        tensors = x, memory, *parts, *self.parameters()
        tracked = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        save = tracked or torch._C._are_functorch_transforms_active()
        y, alpha, *finals, _ = _Decoder.apply(_Call(self, names, len(parts), save), *counts, *tensors)
        return y, alpha, tuple(finals) if self.cell == "lstm" else finals[0]

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of the repr."""
        return self._host("float32")._extra_repr()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        with float32_where_lacking() as lacking:
            self.options["compute"] = check_compute(self.options.get("compute", "float32"), np.dtype("f4"))
        warn_of_lacking("pickle", lacking)

    def _host(self, dtype: Any, seed: int | None = None) -> HostDecoder:
        sizes = self.input_size, self.hidden_size, self.memory_size, self.attention_size
        init = self.options.get("init", "default") if seed is not None else None
        options = {**self.options, "init": init, "seed": seed, "dtype": dtype}
        if dtype == "float64":
            del options["compute"]
        return HostDecoder(self.cell, *sizes, **options)


class _Call:
    """A module of the kernels for one call, which keeps the parameters of the time, and its tape."""

    def __init__(self, module: AttentionDecoder, names: tuple[str, ...], states: int, save: bool) -> None:
        self.module, self.names, self.states, self.save = module, names, states, save

    def run(self, tensors: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return the results, arrays, and the kernels' module with its tape."""
        memory_lengths, lengths, x, memory, *rest = [as_array(t) for t in tensors]
        host = self.module._host(rest[-1].dtype)
        host.load_state_dict(dict(zip(self.names, rest[self.states :], strict=True)))
        state: Any = tuple(rest[: self.states]) or None
        if state is not None and self.module.cell != "lstm":
            (state,) = state
        given = x, memory, memory_lengths, lengths, state
        if not self.save:
            return host(*given), None
        *found, tape = host.forward(*given)
        return found, (host, tape)


class _Decoder(Function):
    """y, alpha, the final states and the tensor that holds the tape."""

    @staticmethod
    def forward(call: _Call, *tensors: Any) -> tuple[Tensor, ...]:
        (y, alpha, state), tape = call.run(tensors)
        states = state if isinstance(state, tuple) else (state,)
        # What a tape refers to is read-only: the tensor, which may be written to, has a copy.
        found = [array if array.flags.writeable else array.copy() for array in (y, alpha, *states)]
        return *[torch.from_numpy(array) for array in found], attach(tape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *tensors = inputs
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[-1], *tensors)

    @staticmethod
    def backward(ctx: Any, *flows: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[3], any(ctx.needs_input_grad[5 + ctx.call.states :])
        return (
            None,
            None,
            None,
            *_DecoderBackward.apply(ctx.call, len(flows) - 1, needs, *flows[:-1], *ctx.saved_tensors),
        )

    jvp = staticmethod(refuse_forward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return each(_Decoder, info, in_dims, args)


class _DecoderBackward(Function):
    """The gradients of the tensors of a call; forward runs once more where the tape is gone."""

    @staticmethod
    def forward(call: _Call, count: int, needs: tuple[bool, bool], *tensors: Any) -> tuple[Any, ...]:
        flows, handle, inputs = tensors[:count], tensors[count], tensors[count + 1 :]
        host, tape = attached(handle) or call.run(inputs)[1]
        dy, dalpha, *dstate = [None if f is None else f.numpy(force=True) for f in flows]
        host.requires_grad_(needs[1])
        host.zero_grad()
        flow: Any = tuple(dstate) if len(dstate) > 1 else dstate[0]
        dx, dmemory, dinitial = host.backward(tape, dy, dalpha, flow, need_dx=needs[0])
        starts = dinitial if isinstance(dinitial, tuple) else (dinitial,)
        found = [dx, dmemory, *starts[: call.states]]
        # Copies: the next backward through this call, if there is one, writes to the same memory.
        found += [host.grads[name].copy() if needs[1] else None for name in call.names]
        return tuple([None if array is None else torch.from_numpy(array) for array in found])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None: ...

    backward = staticmethod(refuse_second)
    jvp = staticmethod(refuse_forward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return each(_DecoderBackward, info, in_dims, args)
