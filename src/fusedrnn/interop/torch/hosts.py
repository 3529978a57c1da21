"""Networks of NumPy's side that run on the tensors of modules of PyTorch, and their ops.

One op for all of them: what a network is goes in as a text, so that graphs of torch.compile and torch.export
hold all that they need.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from functools import lru_cache
from operator import is_not
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import Function

from fusedrnn.interop.torch import kernels
from fusedrnn.interop.torch.kernels import DTYPES, Tensor, numpy
from fusedrnn.interop.torch.ops import each, refuse_forward
from fusedrnn.nn.buffers import Values
from fusedrnn.nn.hybrid import Hybrid
from fusedrnn.nn.quantum import QuantumLSTM
from fusedrnn.nn.recurrent_base import Recurrent
from fusedrnn.nn.turns import Turn
from fusedrnn.saving import made_of

_numbers = itertools.count()


class Shape(NamedTuple):
    """What the results of a network are like.

    Attributes:
        out: width of y.
        states: the name of each state, its rows (num_layers*D) and its width.
    """

    out: int
    states: list[tuple[str, int, int]]

    @classmethod
    def of(cls, net: Any) -> Shape:
        if isinstance(net, Hybrid):
            return cls(net.size, [])
        if isinstance(net, QuantumLSTM):
            return cls(net.hidden_size, [("h", 1, net.hidden_size), ("c", 1, net.hidden_size)])
        network, names = net._network, net._unmasked.state_names
        widths = zip(names, network.widths, strict=True)
        return cls(network.out_size, [(name, network.rows, width) for name, width in widths])


class Host:
    """A network of NumPy's side, whose parameters are those of tensors for the time of a call.

    Attributes:
        number: by which a process finds it.
        text: what `saving.described` says of it.
        arrays: those of the parameters of the call before, see `kernels.parameters`.
    """

    def __init__(self, text: str) -> None:
        self.number = next(_numbers)
        self.arrays: list[tuple[int, Any, Any, Any]] = []
        self.text = text
        self._nets: dict[Any, Any] = {}
        self._bound: list[Any] = []
        self._turn = Turn()
        _hosts[self.number] = self

    def net(self, dtype: Any) -> Any:
        """Return the network in the dtype of tensors."""
        found = self._nets.get(dtype)
        if found is None:
            found = made_of(self.text).astype(DTYPES[dtype])
            found._gather()
            # Others may write to its parameters, whatever their version is.
            found._buffers.values = Values(None)
            self._nets[dtype] = found
        return found

    def forward(self, given: Inputs, save: bool) -> tuple[Any, list[Any], list[Any], Any]:
        """Return y, the final states, what the buffers become in training mode, and the tape."""
        with self._turn.take():
            net = self._bind(given)
            if given.seed is not None:
                seed = int(given.seed.item())
                # Streams apart from each other, of each member that draws.
                net.load_random_state({name: (seed, i << 32) for i, name in enumerate(net.random_state())})
            named = ("lengths", given.lengths), ("mask" if isinstance(net, Hybrid) else "resets", given.marks)
            options = {name: numpy(tensor) for name, tensor in named if tensor is not None}
            if given.state:
                options["state"] = _packed([numpy(part) for part in given.state])
            run = net.forward if save else net
            found = run(numpy(given.x), **options)
            found = found if isinstance(found, tuple) else (found,)
            y, final, *tape = found if net.has_state else (found[0], (), *found[1:])
            moved = [array.copy() for array in net._saved.values()] if net.training else []
        # The tape refers to y, as autograd does, which finds where it is written to.
        y.setflags(write=True)
        return y, _parts(final), moved, tape[0] if tape else None

    def backward(
        self, given: Inputs, tape: Any, dy: Any, dstate: list[Any], need_x: bool, need_params: bool
    ) -> tuple[Any, list[Any], list[Any]]:
        """Return the gradients of x, the initial states and the parameters; without a tape run again."""
        if tape is None:
            tape = self.forward(given, True)[-1]
        with self._turn.take():
            net = tape._owner
            net.requires_grad_(need_params)
            net.zero_grad()
            flows = [dy, _packed(dstate)] if net.has_state else [dy]
            found = net.backward(tape, *flows, need_dx=need_x)
            dx, dstart = found if net.has_state else (found, ())
            sums = [sums.copy() for sums in net.grads.values()] if need_params else []
        return dx, _parts(dstart), sums

    def _bind(self, given: Inputs) -> Any:
        net = self.net(given.x.dtype)
        arrays = [np.ascontiguousarray(array) for array in kernels.parameters(given.params, self)]
        if not isinstance(net, Recurrent):
            # Tapes take their copies of parameters from where these are.
            for view, array in zip(net._tree.values(), arrays, strict=True):
                view[...] = array
        elif len(arrays) != len(self._bound) or any(map(is_not, arrays, self._bound)):
            net._own._replace(dict(zip(net._shapes, arrays, strict=True)))
            net._rebind()
            self._bound = arrays
        for array, tensor in zip(net._saved.values(), given.buffers, strict=True):
            array[...] = numpy(tensor)
        net.train(given.training)
        return net


def _packed(states: list[Any]) -> Any:
    return states[0] if len(states) == 1 else tuple(states)


def _parts(state: Any) -> list[Any]:
    return list(state) if isinstance(state, tuple) else [state]


_hosts: weakref.WeakValueDictionary[int, Host] = weakref.WeakValueDictionary()


@lru_cache(maxsize=32)
def _host_of_graph(text: str) -> Host:
    """Return a network for graphs, whose modules are gone or in another process."""
    return Host(text)


class Inputs(NamedTuple):
    """The arguments of the op.

    Attributes:
        x: (T, B, I).
        lengths: (B,) int64 or None.
        marks: (T, B) bool, the resets, of a `Hybrid` the mask; or None.
        seed: (1,) int64 of the masks, or None.
        state: of each state (num_layers*D, B, width); none of them for the network's own start.
        params, buffers: in the order of the network.
        network: what `saving.described` says of it.
        number: of the host, if it is still there.
        training: as of the module.
    """

    x: Tensor
    lengths: Tensor | None
    marks: Tensor | None
    seed: Tensor | None
    state: Sequence[Tensor]
    params: Sequence[Tensor]
    buffers: Sequence[Tensor]
    network: str
    number: int
    training: bool

    @property
    def host(self) -> Host:
        found = _hosts.get(self.number)
        # A graph that was saved may have a number that this process has given to another network.
        return found if found is not None and found.text == self.network else _host_of_graph(self.network)


_INPUTS = (
    "Tensor x, Tensor? lengths, Tensor? marks, Tensor? seed, Tensor[] state, Tensor[] params, "
    "Tensor[] buffers, str network, int number, bool training"
)
_COUNT = len(Inputs._fields)
torch.library.define("fusedrnn::recurrent", f"({_INPUTS}, bool save) -> (Tensor, Tensor, Tensor[], Tensor[])")
torch.library.define(
    "fusedrnn::recurrent_backward",
    f"({_INPUTS}, Tensor y, Tensor tape, Tensor dy, Tensor[] dstate, bool need_x, bool need_params) "
    "-> (Tensor, Tensor[], Tensor[])",
)


def _tensors(arrays: list[Any]) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def _recurrent(*args: Any) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    given = Inputs(*args[:_COUNT])
    kernels.check(given.x, given.state, given.params)
    y, finals, moved, tape = given.host.forward(given, args[-1])
    return torch.from_numpy(y), kernels.attach(tape), _tensors(finals), _tensors(moved)


@torch.library.register_fake("fusedrnn::recurrent")
def _(*args: Any) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    given = Inputs(*args[:_COUNT])
    x, shape = given.x, Shape.of(given.host.net(given.x.dtype))
    finals = [x.new_empty((rows, x.shape[1], width)) for _, rows, width in shape.states]
    moved = [torch.empty_like(buffer) for buffer in given.buffers] if given.training else []
    y = x.new_empty((x.shape[0], x.shape[1], shape.out))
    return y, x.new_empty(0, dtype=torch.uint8), finals, moved


def _recurrent_backward(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    given, (_, tape, dy, dstate, need_x, need_params) = Inputs(*args[:_COUNT]), args[_COUNT:]
    flows = numpy(dy), [numpy(part) for part in dstate]
    dx, dstart, sums = given.host.backward(given, kernels.attached(tape), *flows, need_x, need_params)
    found = torch.from_numpy(dx) if need_x else given.x.new_empty(0)
    return found, _tensors(dstart) if given.state else [], _tensors(sums)


@torch.library.register_fake("fusedrnn::recurrent_backward")
def _(*args: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    given, (_, _, _, _, need_x, need_params) = Inputs(*args[:_COUNT]), args[_COUNT:]

    def like(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]

    dx = like([given.x])[0] if need_x else given.x.new_empty(0)
    return dx, like(given.state), like(given.params) if need_params else []


class _Network(NamedTuple):
    """What is no tensor among the arguments, and how many of state and params there are."""

    text: str
    number: int
    training: bool
    states: int
    params: int


def _refuse_second(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "fusedrnn.torch: expected one derivative, got a second one of a network of NumPy's side; LSTM, GRU "
        "and RNN have it, and fusedrnn.functional.double_backward of arrays"
    )


def _gathered(network: _Network, tensors: Sequence[Any]) -> Inputs:
    """Return the op's arguments for x, lengths, marks, seed and those of all lists, one behind the other."""
    first, rest = tensors[:4], list(tensors[4:])
    states, params = network.states, network.params
    lists = rest[:states], rest[states : states + params], rest[states + params :]
    x, lengths, marks, seed = first
    return Inputs(x, lengths, marks, seed, *lists, network.text, network.number, network.training)


def _spread(given: Inputs) -> tuple[_Network, tuple[Any, ...]]:
    """Return what `_gathered` takes."""
    network = _Network(*given[-3:], len(given.state), len(given.params))
    return network, (*given[:4], *given.state, *given.params, *given.buffers)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    y, tape, _, moved = output
    ctx.network, tensors = _spread(Inputs(*inputs[:_COUNT]))
    ctx.mark_non_differentiable(tape, *moved)
    ctx.save_for_backward(y, tape, *tensors)


def _backward(ctx: Any, dy: Tensor, dtape: Any, dstate: list[Tensor], dmoved: Any) -> tuple[Any, ...]:
    y, tape, *tensors = ctx.saved_tensors
    given = _gathered(ctx.network, tensors)
    needs = ctx.needs_input_grad[0], any(ctx.needs_input_grad[5])
    dx, dstart, sums = torch.ops.fusedrnn.recurrent_backward(*given, y, tape, dy, dstate, *needs)
    params = sums if needs[1] else [None] * len(given.params)
    lists = dstart, params, [None] * len(given.buffers)
    return dx if needs[0] else None, None, None, None, *lists, None, None, None, None


torch.library.impl("fusedrnn::recurrent", "cpu", _recurrent)
torch.library.impl("fusedrnn::recurrent_backward", "cpu", _recurrent_backward)
torch.library.register_autograd("fusedrnn::recurrent", _backward, setup_context=_setup)
torch.library.register_autograd("fusedrnn::recurrent_backward", _refuse_second)


class _Run(Function):
    """The op for eager calls and torch.func, whose transforms do not go through that of an op."""

    @staticmethod
    def forward(network: _Network, save: bool, *tensors: Any) -> tuple[Tensor, ...]:
        y, tape, finals, moved = _recurrent(*_gathered(network, tensors), save)
        return y, tape, *finals, *moved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.network, _, *tensors = inputs
        y, tape, *rest = output
        moved = len(tensors) - 4 - ctx.network.states - ctx.network.params if ctx.network.training else 0
        ctx.finals = len(rest) - moved
        ctx.mark_non_differentiable(tape, *rest[ctx.finals :])
        ctx.save_for_backward(y, tape, *tensors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dtape: Any, *flows: Tensor) -> tuple[Any, ...]:
        network, dstate = ctx.network, flows[: ctx.finals]
        start = 6 + network.states
        needs = ctx.needs_input_grad[2], any(ctx.needs_input_grad[start : start + network.params])
        plain = not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active())
        gradients = _RunBackward.forward if plain else _RunBackward.apply
        dx, *found = gradients(network, needs, ctx.finals, dy, *dstate, *ctx.saved_tensors)
        rest = len(ctx.needs_input_grad) - 6 - len(found)
        return None, None, dx, None, None, None, *found, *(None,) * rest

    jvp = staticmethod(refuse_forward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return each(_Run, info, in_dims, args)


class _RunBackward(Function):
    """The gradients of x, of the initial states and of the parameters, None each where not needed."""

    @staticmethod
    def forward(network: _Network, needs: tuple[bool, bool], finals: int, *tensors: Any) -> tuple[Any, ...]:
        dy, dstate, (y, tape, *rest) = tensors[0], tensors[1 : 1 + finals], tensors[1 + finals :]
        given = _gathered(network, rest)
        dx, dstart, sums = _recurrent_backward(*given, y, tape, dy, list(dstate), *needs)
        return dx if needs[0] else None, *dstart, *(sums if needs[1] else (None,) * network.params)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None: ...

    backward = staticmethod(_refuse_second)
    jvp = staticmethod(refuse_forward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return each(_RunBackward, info, in_dims, args)


# Without the look for transforms of torch.func, and at the signature, where there are none.
_record = super(Function, _Run).apply


def run(given: Inputs) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return y, the final states and what buffers become, recorded by autograd or by what traces the call."""
    save = torch.is_grad_enabled()
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(given.x) is not Tensor:
        y, _, finals, moved = torch.ops.fusedrnn.recurrent(*given, save)
        return y, finals, moved
    kernels.check(given.x, given.state, given.params)
    network, tensors = _spread(given)
    transformed = torch._C._are_functorch_transforms_active()
    y, _, *rest = (_Run.apply if transformed else _record)(network, save, *tensors)
    count = len(rest) - (len(given.buffers) if given.training else 0)
    return y, rest[:count], rest[count:]
