"""All networks of NumPy's side as modules of PyTorch: one class around them, and their names."""

from __future__ import annotations

import copy
import inspect
from functools import lru_cache
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fusedrnn.nn.networks as hosts
from fusedrnn.interop.torch.calls import Calls, State, drawn_seed
from fusedrnn.interop.torch.host import register
from fusedrnn.interop.torch.hosts import Host, Inputs, Shape, run
from fusedrnn.interop.torch.kernels import DTYPES, Tensor
from fusedrnn.nn import recurrent
from fusedrnn.nn.heads import between
from fusedrnn.nn.hybrid import Hybrid as HostHybrid
from fusedrnn.nn.quantum import QuantumLSTM as HostQuantumLSTM
from fusedrnn.nn.recurrent_base import Recurrent as HostRecurrent
from fusedrnn.saving import described


class _Signature:
    """That of the class in `fusedrnn`, with torch's `device` and `dtype` in place of dtype and seed."""

    def __get__(self, instance: Any, kind: Any) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        own = inspect.signature(kind._kind).parameters.values()
        kept = [p for p in own if p.name not in ("dtype", "seed")]
        last = [kept.pop()] if kept[-1].kind is inspect.Parameter.VAR_KEYWORD else []
        named = inspect.Parameter.KEYWORD_ONLY
        ours = [inspect.Parameter(name, named, default=None) for name in ("device", "dtype")]
        return inspect.Signature([*kept, *ours, *last])


@lru_cache(maxsize=64)
def _options(kind: Any) -> frozenset[str]:
    """Return the names of arguments that say what a network is; batch_first says how it is called."""
    given = [
        p
        for base in kind._kind.__mro__
        if "__init__" in vars(base)
        for p in inspect.signature(base.__init__).parameters.values()
    ]
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return frozenset(p.name for p in given if p.kind not in several) - {
        "self",
        "batch_first",
        "dtype",
        "seed",
    }


class _Hosted(Calls, nn.Module):
    """What all networks share, whatever the class of NumPy's side."""

    __signature__ = _Signature()
    _kind: ClassVar[Any]
    # Attributes that are those of the class of NumPy's side.
    _settings: ClassVar[tuple[str, ...]]

    def __init__(self, *arguments: Any, device: Any = None, dtype: Any = None, **options: Any) -> None:
        super().__init__()
        if "seed" in options:
            raise TypeError("seed: expected none, use torch.manual_seed")
        kept = dtype or torch.get_default_dtype()
        # Others are for what is converted before it is called.
        found: Any = DTYPES.get(kept, DTYPES[torch.float32])
        net: Any = self._kind(*arguments, **options, dtype=found, seed=int(torch.randint(2**62, ())))
        for name in ("batch_first", *self._settings):
            setattr(self, name, getattr(net, name))
        self._shown = repr(net).removeprefix(type(net).__name__)[1:-1]
        net._gather()
        self._names = list(net._tree)
        for name, array in net._tree.items():
            register(self, name, torch.from_numpy(array.copy()).to(device, kept))
        for name, array in net._saved.items():
            self.register_buffer(name, torch.from_numpy(array).to(device, kept))
        self._shape = Shape.of(net)
        self._draws, self._moving = self._randomness(net)
        net.batch_first = False  # calls turn what is
        self._text = described(net)
        self._take_host()

    @staticmethod
    def _randomness(net: Any) -> tuple[bool, list[str]]:
        """Return whether calls draw anything in training mode, and the buffers that move with them."""
        return False, []

    def _state_shapes(self) -> list[tuple[str, int, int]]:
        return self._shape.states

    def _params(self) -> tuple[Tensor, ...]:
        return tuple([attrgetter(name)(self) for name in self._names])

    def _apply_to(
        self,
        x: Tensor,
        lengths: Tensor | None,
        resets: Tensor | None,
        state: State,
        params: tuple[Tensor, ...],
        batch_first: bool,
    ) -> tuple[Tensor, State]:
        if batch_first:
            x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
        # Copies of those that move with the next call, which autograd would take for a change of its own.
        moves = self._moving if self.training else []
        buffers = [
            getattr(self, name).clone() if name in moves else getattr(self, name) for name in self._buffers
        ]
        seed = drawn_seed() if self._draws and self.training else None
        given = Inputs(
            *(x, lengths, resets, seed, list(state), list(params), buffers),
            *(self._text, self._number, self.training),
        )
        y, finals, moved = run(given)
        for name, values in zip(self._moving, moved, strict=False):
            getattr(self, name).copy_(values)
        return y.transpose(0, 1) if batch_first else y, tuple(finals)

    def _take_host(self) -> None:
        self._host = Host(self._text)
        self._number = self._host.number

    def __setattr__(self, name: str, value: Any) -> None:
        # torch.nn's modules read such attributes at each call; here they would be set, and do nothing.
        if name in _options(type(self)) and "_text" in self.__dict__:
            raise AttributeError(
                f"{name}: expected as an argument, {type(self).__name__}(..., {name}={value!r:.40}), "
                "since a network is what it was made as; got an assignment"
            )
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hosted:
        # Of its own, since torch gives one without `__setstate__` to modules with parametrizations.
        made = self.__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(_Hosted.__getstate__(self), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_host"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._take_host()

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of the repr."""
        return self._shown


class Recurrent(_Hosted):
    """`fusedrnn.Recurrent` as a module of PyTorch: a network of any cell; the base of those of other names.

    Equations, parameters, their names, shapes and first values, and the options are those of the class of the
    same name in `fusedrnn`; calls are those of torch.nn.LSTM. What is drawn in training mode, the masks of
    dropouts and zoneout and `init_state="normal"`, comes from a seed of torch's generator: torch.manual_seed
    repeats it. The running mean and variance of `batch_norm` and a given `init_state` are buffers.
    `load_state_dict` refuses weights between the heads of `num_heads`. On the CPU, float32 and float64; no
    second derivatives.

    Args:
        arguments, options: as of the class in `fusedrnn`, but for dtype and seed.
        device: of the parameters.
        dtype: of the parameters, torch.float32 or torch.float64.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    _kind: ClassVar[Any] = HostRecurrent
    _settings = (
        *("input_size", "hidden_size", "num_layers", "bias", "dropout", "bidirectional", "proj_size"),
        "num_heads",
    )
    num_heads: int

    @staticmethod
    def _randomness(net: Any) -> tuple[bool, list[str]]:
        return bool(net._draws_anew()), list(net._saved) if net.batch_norm else []

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Refuse weights between heads, and leave such a parameter as torch does one of another shape."""
        for name, own in self._parameters.items() if self.num_heads > 1 else ():
            key = prefix + name
            value = state_dict.get(key) if name.startswith("weight_hh") else None
            if own is None or not isinstance(value, Tensor) or value.shape != own.shape or value.is_meta:
                continue
            if value[torch.from_numpy(between(tuple(own.shape), self.num_heads))].any():
                error_msgs.append(
                    f"{key}: expected zeros between the {self.num_heads} heads, got weights of units of "
                    "different heads"
                )
                state_dict = {**state_dict, key: own}
        super()._load_from_state_dict(
            *(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        )


class MGU(Recurrent):
    """`fusedrnn.MGU` in PyTorch, see `Recurrent`."""

    _kind = hosts.MGU


class IndRNN(Recurrent):
    """`fusedrnn.IndRNN` in PyTorch, see `Recurrent`."""

    _kind = hosts.IndRNN


class MinGRU(Recurrent):
    """`fusedrnn.MinGRU` in PyTorch, see `Recurrent`."""

    _kind = hosts.MinGRU


class MinLSTM(Recurrent):
    """`fusedrnn.MinLSTM` in PyTorch, see `Recurrent`."""

    _kind = hosts.MinLSTM


class SRU(Recurrent):
    """`fusedrnn.SRU` in PyTorch, see `Recurrent`."""

    _kind = hosts.SRU


class LiGRU(Recurrent):
    """`fusedrnn.LiGRU` in PyTorch, see `Recurrent`."""

    _kind = hosts.LiGRU


class SLSTM(Recurrent):
    """`fusedrnn.SLSTM` in PyTorch, see `Recurrent`."""

    _kind = hosts.SLSTM


class LIF(Recurrent):
    """`fusedrnn.LIF` in PyTorch, see `Recurrent`."""

    _kind = hosts.LIF


class VariantLSTM(Recurrent):
    """`fusedrnn.LSTM` in PyTorch with all of its options, peepholes and others; see `Recurrent`."""

    _kind = recurrent.LSTM


class VariantGRU(Recurrent):
    """`fusedrnn.GRU` in PyTorch with all of its options, reset_after and others; see `Recurrent`."""

    _kind = recurrent.GRU


class VariantRNN(Recurrent):
    """`fusedrnn.RNN` in PyTorch with all of its options, layer_norm and others; see `Recurrent`."""

    _kind = recurrent.RNN


class QuantumLSTM(_Hosted):
    """`fusedrnn.QuantumLSTM` in PyTorch: gates that are simulated quantum circuits; see `Recurrent`.

    Its calls take no resets, and copy its parameters.
    """

    _kind = HostQuantumLSTM
    _settings = ("input_size", "hidden_size", "qubits", "layers")
    _takes_marks = False


class Hybrid(_Hosted):
    """`fusedrnn.Hybrid` in PyTorch: recurrent layers, and attention in one of them; see `Recurrent`.

    Calls have no states, and copy the parameters.
    """

    _kind = HostHybrid
    _settings = ("size", "num_layers", "cell", "num_heads", "attention_layer", "expansion", "dropout")
    _marks = "mask"

    @property
    def input_size(self) -> int:  # type: ignore[override]
        """E, that of x."""
        return self.size

    @staticmethod
    def _randomness(net: Any) -> tuple[bool, list[str]]:
        return net.dropout > 0, []

    def forward(  # type: ignore[override]
        self,
        input: Tensor | PackedSequence,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Any:
        """Run the network.

        Args:
            input: (T, B, E), (B, T, E) with batch_first, (T, E), or a PackedSequence; of the parameters'
                dtype.
            lengths: (B,) of an integer dtype, each in 0..T, in any order; not with a PackedSequence.
            mask: bool, the leading shape of input: true for steps that count; not with a PackedSequence.

        Returns:
            y, laid out as input, 0 at steps that do not count.

        Raises:
            TypeError, ValueError, RuntimeError: as those of `Recurrent`.
        """
        return super().forward(input, lengths=lengths, resets=mask)[0]
