"""LSTM, GRU and RNN as modules of PyTorch."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.compiler import is_compiling
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fusedrnn.interop.torch import ops
from fusedrnn.interop.torch.kernels import Cache, Inputs, Options, Tensor

# Beside the modules, whose copies and pickles must not have them.
_caches: WeakKeyDictionary[RNNBase, Cache] = WeakKeyDictionary()
_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}
# Of one layer and direction, by mode and batch_first.
_PLAIN = {(m, first): Options(c, 1, False, first, 0.0) for m, c in _CELLS.items() for first in (False, True)}


class _Recurrent(RNNBase):
    """What the three share. A subclass of torch.nn's LSTM would break the graphs of torch.compile."""

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the network.

        Args:
            input: (T, B, I), (B, T, I) with batch_first, (T, I), or a PackedSequence;
                of the parameters' dtype.
            hx: initial h (num_layers*D, B, Hout), for an LSTM h and c (num_layers*D, B, H); without B for
                one sequence; None for zeros.
            lengths: (B,) of an integer dtype, each in 0..T, in any order; y is 0 past the end, and the final
                state is that after the last step. Not with a PackedSequence.
            resets: bool, the leading shape of input; where true, the state is zero before the step reads
                it. Not with a PackedSequence.

        Returns:
            y (T, B, D*Hout), laid out as input, and the final state, shaped as hx.

        Raises:
            TypeError: a tensor of another dtype.
            ValueError: another dtype of input than the parameters', or number of dimensions, or lengths
                and resets that do not fit.
            RuntimeError: another shape, or a tensor that is not on the CPU.
        """
        general = lengths is not None or resets is not None or self.num_layers > 1 or self.bidirectional
        if not (general or is_compiling()):
            options = _PLAIN[self.mode, self.batch_first]
            found = ops.apply_plain(options, self._cache(), self, input, hx)
            if found is not None:
                return found
        if isinstance(input, PackedSequence):
            if lengths is not None or resets is not None:
                raise ValueError("lengths, resets: expected None with a PackedSequence")
            return self._packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead"
            )
        single = input.dim() == 2
        batch_first = self.batch_first and not single
        hx = self._state(hx, single)
        x = input.unsqueeze(1) if single else input
        if single:
            hx = None if hx is None else tuple([part.unsqueeze(1) for part in hx])
            resets = None if resets is None else resets.unsqueeze(1)
        y, finals = self._run(x, hx, lengths, resets, batch_first)
        if single:
            y, finals = y.squeeze(1), tuple([final.squeeze(1) for final in finals])
        return y, finals if self.mode == "LSTM" else finals[0]

    def _weights(self) -> list[Tensor]:
        """Return the parameters, by attribute where a parametrization or a call with others has put them."""
        own = self._parameters
        return [own.get(n) if n in own else getattr(self, n) for ns in self._all_weights for n in ns]

    def _state(self, hx: Any, single: bool) -> tuple[Tensor, ...] | None:
        """Return the state as a tuple, its number of dimensions checked."""
        if hx is None:
            return None
        dims, kind = (2, "unbatched 2-D") if single else (3, "batched 3-D")
        parts = tuple(hx) if self.mode == "LSTM" else (hx,)
        for part in parts:
            if part.dim() != dims:
                raise RuntimeError(
                    f"For {kind} input, hx should also be {dims}-D but got {part.dim()}-D tensor"
                )
        return parts

    def _run(
        self,
        x: Tensor,
        state: tuple[Tensor, ...] | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        batch_first: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        params = tuple(self._weights())
        first = params[0]
        if x.dtype is not first.dtype:
            if not torch.is_autocast_enabled("cpu"):
                raise ValueError(
                    f"RNN input dtype ({x.dtype}) does not match weight dtype ({first.dtype}). "
                    f"Convert input: input.to({first.dtype}), or convert model: model.to({x.dtype})"
                )
            # Autocast leaves recurrent networks in the dtype of their parameters.
            x = x.to(first.dtype)
            state = None if state is None else tuple([part.to(first.dtype) for part in state])
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        batch = x.shape[0 if batch_first else 1]
        if state is not None:
            rows = self.num_layers * (2 if self.bidirectional else 1)
            widths = (self.proj_size or self.hidden_size, self.hidden_size)
            for name, part, width in zip(("h", "c"), state, widths, strict=False):
                if part.shape != (rows, batch, width):
                    raise RuntimeError(
                        f"Expected hidden {name} size ({rows}, {batch}, {width}), got {list(part.shape)}"
                    )
        if lengths is not None:
            if lengths.shape != (batch,) or lengths.is_floating_point():
                raise ValueError(f"lengths: expected integers (B,) = ({batch},), got {lengths}")
            lengths = lengths.to(device="cpu", dtype=torch.int64)
        if resets is not None and (resets.shape != x.shape[:2] or resets.dtype is not torch.bool):
            raise ValueError(
                f"resets: expected torch.bool {tuple(x.shape[:2])}, got {resets.dtype} {tuple(resets.shape)}"
            )
        dropout = self.dropout if self.training and self.num_layers > 1 else 0.0
        # From torch's own generator, so that checkpointing repeats it.
        seed = torch.randint(0, 2**62, (1,), dtype=torch.int64) if dropout else None
        options = Options(_CELLS[self.mode], self.num_layers, self.bidirectional, batch_first, float(dropout))
        cache = None if is_compiling() else self._cache()
        inputs = Inputs(x, lengths, resets, seed, state or (), params)
        y, *finals = ops.apply(options, cache, inputs)
        return y, tuple(finals)

    def _cache(self) -> Cache:
        cache = _caches.get(self)
        if cache is None:
            cache = _caches[self] = Cache(_CELLS[self.mode], self._all_weights)
        return cache

    def _packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        """Run over the padded sequences, sorted as they are packed, and pack again."""
        data, batch_sizes, order, back = packed
        if data.dim() != 2:
            raise ValueError(f"input: expected packed rows of 2 dimensions, got {data.dim()}")
        x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        parts = self._state(hx, False)
        if parts is not None and order is not None:
            parts = tuple([part.index_select(1, order) for part in parts])
        y, finals = self._run(x, parts, lengths, None, False)
        rows = pack_padded_sequence(y, lengths).data
        if back is not None:
            finals = tuple([final.index_select(1, back) for final in finals])
        return PackedSequence(rows, batch_sizes, order, back), finals if self.mode == "LSTM" else finals[0]


class LSTM(_Recurrent):
    """torch.nn.LSTM with the kernels of this library: the same arguments, parameters and shapes.

    Its forward takes `lengths` and `resets` beside. On the CPU, float32 and float64. Second derivatives are
    there without proj_size, outside of torch.compile and torch.func; they run forward again.

    Args:
        input_size: size of x_t, I.
        hidden_size: size of the state, H.
        num_layers: layers stacked on each other.
        bias: whether there are biases.
        batch_first: x and y are (B, T, ...) instead of (T, B, ...).
        dropout: probability of dropping an output between layers, in training mode.
        bidirectional: run each layer in both directions and join their outputs.
        proj_size: size of h if positive, below hidden_size.
        device: of the parameters.
        dtype: of the parameters, torch.float32 or torch.float64.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, as torch.nn.LSTM.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )


class GRU(_Recurrent):
    """torch.nn.GRU with the kernels of this library; see `LSTM`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as `LSTM`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, or proj_size.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        **others: Any,
    ) -> None:
        _refuse("GRU", others)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
        )


class RNN(_Recurrent):
    """torch.nn.RNN with the kernels of this library; see `LSTM`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as `LSTM`.
        nonlinearity: "tanh" or "relu".

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, or proj_size.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        **others: Any,
    ) -> None:
        _refuse("RNN", others)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
        )


def _refuse(kind: str, others: dict[str, Any]) -> None:
    if "proj_size" in others:
        raise ValueError(f"proj_size: expected none, a {kind} has no projection, got {others['proj_size']}")
    for name in others:
        raise TypeError(f"{kind}: unexpected argument {name!r}")
