"""The kernels on the memory of tensors: forward and backward of a whole network, without autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch

from fusedrnn import _core
from fusedrnn.nn.plan import time_major

Tensor: TypeAlias = torch.Tensor


class Options(NamedTuple):
    """What a network is, besides its tensors.

    Attributes:
        cell: its name, see `fusedrnn.CELLS`.
        batch_first: x and y are (B, T, ...).
        dropout: between layers; 0 outside of training.
    """

    cell: str
    num_layers: int
    bidirectional: bool
    batch_first: bool
    dropout: float


class Inputs(NamedTuple):
    """The tensors of a call.

    Attributes:
        x: (T, B, I), or (B, T, I) with batch_first.
        lengths: (B,) int64 or None.
        resets: bool, x's leading shape, or None.
        seed: (1,) int64 of the dropout, or None.
        state: h, or h and c; none of them for zeros.
        params: of each layer and direction, in the order of torch.nn.
    """

    x: Tensor
    lengths: Tensor | None
    resets: Tensor | None
    seed: Tensor | None
    state: tuple[Tensor, ...]
    params: tuple[Tensor, ...]


class Sizes(NamedTuple):
    """Shapes that follow from those of the inputs: of y and of each final state."""

    y: tuple[Any, ...]
    states: list[tuple[Any, ...]]


def sizes_of(options: Options, x: Tensor, params: tuple[Tensor, ...]) -> Sizes:
    """Return the shapes of the outputs; sizes of x may be symbols."""
    directions = 1 + options.bidirectional
    hidden, out = params[1].shape[0] // GATES[options.cell], params[1].shape[1]
    batch = x.shape[0 if options.batch_first else 1]
    rows = options.num_layers * directions
    widths = [out, hidden] if options.cell == "lstm" else [out]
    return Sizes((x.shape[0], x.shape[1], directions * out), [(rows, batch, width) for width in widths])


GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


TORCH = _core.Torch(torch)


class HasArrays(Protocol):
    """What keeps arrays of parameters from call to call."""

    arrays: list[tuple[int, Any, Any, Any]]


class Tape(NamedTuple):
    """The kernels' tapes of layers and directions, and of each layer the dropout on its output, or None."""

    layers: Sequence[_core.LayerTape]
    drops: tuple[tuple[float, int, int] | None, ...]


class Cache:
    """What a module keeps from call to call: packed weights, arrays of its parameters, its calls."""

    __slots__ = ("arrays", "cell", "network", "weights")

    def __init__(self, cell: str, names: list[list[str]], directions: int) -> None:
        self.cell = cell
        self.weights = [_core.WeightCache() for _ in names]
        self.arrays: list[tuple[int, Any, Any, Any]] = []
        self.network = _core.TensorNetwork(TORCH, cell, directions, names, self.weights, Tape)


def attach(tape: Any) -> Tensor:
    """Return a tensor without elements whose storage holds the tape.

    The storage, and the tape with it, lives as long as autograd keeps the tensor. Whoever saves a copy
    instead, as hooks on saved tensors may, gets a tensor without a tape, and backward runs forward once more.
    """
    handle = torch.empty(0, dtype=torch.uint8)
    if tape is not None:
        handle.untyped_storage()._fusedrnn_tape = tape
    return handle


def attached(handle: Tensor) -> Any:
    """Return the tape that the tensor's storage holds, if any."""
    return getattr(handle.untyped_storage(), "_fusedrnn_tape", None)


def check(x: Tensor, state: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """Raise TypeError or RuntimeError for tensors that the kernels cannot read."""
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected torch.float32 or torch.float64, got {x.dtype}; use x.float()")
    for name, tensors in (("state", state), ("params", params)):
        for tensor in tensors:
            if tensor.dtype is not x.dtype:
                raise TypeError(f"{name}: expected {x.dtype} as x, got {tensor.dtype}")
    for tensor in (x, *state, *params):
        if not tensor.is_cpu:
            raise RuntimeError(
                f"x: expected tensors on the CPU, got one on {tensor.device}; use .cpu(), or there "
                "torch.nn's own module (fusedrnn.torch.restore(model)) or one of fusedrnn itself after "
                "to('cuda'), which takes such tensors"
            )


def kernel_weights(params: tuple[Any, ...], parts: int) -> list[tuple[Any, ...]]:
    """Return the parameters of each layer and direction in the kernels' order, None where there is none."""
    count = len(params) // parts
    groups = [params[i * count : (i + 1) * count] for i in range(parts)]
    if count < 4:
        groups = [(*group[:2], None, None, *group[2:]) for group in groups]
    return [(*group, None)[:5] for group in groups]


def forward(
    options: Options, inputs: Inputs, save: bool, cache: Cache | None = None
) -> tuple[tuple[Tensor, ...], Any]:
    """Return y and the final states and, with `save`, the tape.

    Args:
        cache: of the module, or None to pack the weights for this call.
    """
    check(inputs.x, inputs.state, inputs.params)
    sizes, dtype = sizes_of(options, inputs.x, inputs.params), DTYPES[inputs.x.dtype]
    # NumPy's memory: an array and a tensor on it take a third of the time that it takes the other way round.
    y, finals = np.empty(sizes.y, dtype), [np.empty(shape, dtype) for shape in sizes.states]
    tape = run(options, inputs, y, finals, save, cache)
    return tuple([torch.from_numpy(array) for array in (y, *finals)]), tape


def run(
    options: Options, inputs: Inputs, y: Any, ends: list[Any], save: bool, cache: Cache | None = None
) -> Any:
    """Write the results of forward to arrays, y and the final states; return the tape."""
    cell, num_layers, bidirectional, batch_first, dropout = options
    resets = None if inputs.resets is None else time_major(inputs.resets.numpy(), False, batch_first)
    directions = 1 + bidirectional
    drops: list[tuple[float, int, int] | None] = [None] * num_layers
    if dropout > 0:
        assert inputs.seed is not None
        seed = int(inputs.seed.item())
        drops[:-1] = [(dropout, seed, layer) for layer in range(num_layers - 1)]
    tapes = _core.run_network(
        cell,
        directions,
        kernel_weights(parameters(inputs.params, cache), num_layers * directions),
        [] if cache is None else cache.weights,
        time_major(numpy(inputs.x), False, batch_first),
        tuple([numpy(s) for s in inputs.state]),
        None if inputs.lengths is None else inputs.lengths.numpy(),
        resets,
        tuple(drops),
        save,
        time_major(y, False, batch_first),
        tuple(ends),
    )
    return Tape(tapes, tuple(drops)) if save else None


def backward(
    options: Options,
    inputs: Inputs,
    y: Tensor,
    tape: Any,
    dy: Tensor | None,
    dfinals: tuple[Tensor | None, ...],
    need_dx: bool = True,
    need_params: bool = True,
) -> list[Tensor | None]:
    """Return the gradients of x (or None), of the initial states, and of the parameters (or None each).

    Without a tape, forward runs once more.
    """
    if tape is None:
        sizes = sizes_of(options, inputs.x, inputs.params)
        again = [np.empty(shape, DTYPES[y.dtype]) for shape in (sizes.y, *sizes.states)]
        tape = run(options, inputs, again[0], again[1:], True)
    needs = need_dx, bool(inputs.state), need_params
    return TORCH.backward(tape.layers, tape.drops, (dy, *dfinals), *needs, options.batch_first)


class _Memory:
    """What NumPy makes an array from."""

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor  # which the array keeps
        strides = None if tensor.is_contiguous() else tuple([n * tensor.itemsize for n in tensor.stride()])
        self.__array_interface__ = {
            "shape": tuple(tensor.shape),
            "strides": strides,
            "typestr": _CODES[tensor.dtype],
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


_CODES = {torch.float32: np.dtype(np.float32).str, torch.float64: np.dtype(np.float64).str}


def parameters(tensors: Sequence[Tensor], cache: HasArrays | None = None) -> tuple[Any, ...]:
    """Return arrays on the memory of parameters, which their owners may still resize.

    Tensor.numpy() forbids that to the storage for good, and fully_shard frees parameters so between calls.
    The arrays must not be read after the call. In the cache are those of the call before, for tensors that
    are where they were.
    """
    known = [] if cache is None else cache.arrays
    if len(known) != len(tensors):
        known = [_NOWHERE] * len(tensors)
    found = [
        kept
        if kept[0] == p.data_ptr() and kept[1] is p.dtype and kept[2] == p.shape and p.is_contiguous()
        else (p.data_ptr(), p.dtype, p.shape, np.asarray(_Memory(p)))
        for p, kept in zip([p.resolve_neg() if p.is_neg() else p for p in tensors], known, strict=True)
    ]
    if cache is not None:
        cache.arrays = [kept if kept[3].flags.c_contiguous else _NOWHERE for kept in found]
    return tuple([kept[3] for kept in found])


_NOWHERE = (-1, None, None, None)


def numpy(tensor: Tensor) -> Any:
    """Return an array on the tensor's memory; of its values where these are negated as they are read."""
    return tensor.numpy(force=True)
