"""LSTM, GRU and RNN as modules of PyTorch."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch.compiler import is_compiling
from torch.nn.modules.rnn import RNNBase

from fusedrnn.checks import check_choice
from fusedrnn.interop.torch import ops
from fusedrnn.interop.torch.calls import Calls, State, drawn_seed
from fusedrnn.interop.torch.kernels import Cache, Inputs, Options, Tensor

# Beside the modules, whose copies and pickles must not have them.
_caches: WeakKeyDictionary[RNNBase, Cache] = WeakKeyDictionary()
_CELLS = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}


class _Recurrent(Calls, RNNBase):
    """What the three share. A subclass of torch.nn's LSTM would break the graphs of torch.compile."""

    def _shortly(
        self, input: Any, hx: Any, lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Any, Any] | None:
        if is_compiling():
            return None
        options = self._options(self.batch_first)
        return ops.apply_shortly(options, self._cache(), self, input, hx, lengths, resets)

    def _params(self) -> tuple[Tensor, ...]:
        own = self._parameters
        names = [name for each in self._all_weights for name in each]
        return tuple([own.get(n) if n in own else getattr(self, n) for n in names])

    def _state_shapes(self) -> list[tuple[str, int, int]]:
        rows = self.num_layers * (2 if self.bidirectional else 1)
        shapes = [("h", rows, self.proj_size or self.hidden_size), ("c", rows, self.hidden_size)]
        return shapes if self.mode == "LSTM" else shapes[:1]

    def _apply_to(
        self,
        x: Tensor,
        lengths: Tensor | None,
        resets: Tensor | None,
        state: State,
        params: tuple[Tensor, ...],
        batch_first: bool,
    ) -> tuple[Tensor, State]:
        options, cache = self._options(batch_first), None if is_compiling() else self._cache()
        seed = drawn_seed() if options.dropout > 0 else None
        inputs = Inputs(x, lengths, resets, seed, state, params)
        y, *finals = ops.apply(options, cache, inputs)
        return y, tuple(finals)

    def _options(self, batch_first: bool) -> Options:
        dropout = float(self.dropout) if self.training and self.num_layers > 1 else 0.0
        return Options(_CELLS[self.mode], self.num_layers, self.bidirectional, batch_first, dropout)

    def _cache(self) -> Cache:
        cache = _caches.get(self)
        if cache is None:
            cache = _caches[self] = Cache(_CELLS[self.mode], self._all_weights, 1 + self.bidirectional)
        return cache


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
        self.nonlinearity = check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
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
