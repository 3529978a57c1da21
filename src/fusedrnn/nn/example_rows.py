"""What the gradients of parameters are made of, for each example of a batch apart."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.backend import CPU
from fusedrnn.checks import check_array
from fusedrnn.inputs.lookup import Lookup
from fusedrnn.nn.batch_norm import BatchNorm
from fusedrnn.nn.blocks import Sequential
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.layers import Linear
from fusedrnn.nn.members import BlockTape, backward_member
from fusedrnn.nn.module import Module
from fusedrnn.nn.plan import time_major
from fusedrnn.nn.recurrent_base import Recurrent
from fusedrnn.nn.tape import RecurrentTape, SavedTape, Tape, check_tape

_DENSE = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}


@dataclass(frozen=True, slots=True)
class Products:
    """Gradients that are sums over steps: of weights flow x^T, of biases the flow.

    Attributes:
        module: whose parameters they are.
        flows: (B, T, O).
        weights: name and x (B, T, I) of each weight (O, I).
        biases: the names of the biases.
    """

    module: Module
    flows: Array
    weights: tuple[tuple[str, Array], ...]
    biases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """The gradient of a table whose rows were looked up: flows (B, T, D) at indices (B, T), -1 for none."""

    module: Module
    flows: Array
    indices: Array


Piece = Products | Places


def pieces_of(tape: Any, dy: Any, batch_first: bool) -> list[Piece]:
    """Return what the gradients of all parameters that are not frozen are made of.

    Raises:
        TypeError, ValueError, RuntimeError: as `fusedrnn.per_example.norms`.
    """
    if not isinstance(tape, (Tape, Lookup)):
        raise TypeError(
            f"tape: expected a Tape, got {type(tape).__name__}; it is the last of what forward returns"
        )
    owner: Any = tape._owner
    if owner is None:
        raise ValueError("tape: expected a lookup of an Embedding, got one of a table")
    owner._require_cpu("per_example")
    return list(_walk(owner, tape, dy, _Layout(_is_batch_first(owner, batch_first))))


@dataclass(frozen=True, slots=True)
class _Layout:
    batch_first: bool

    def rows(self, array: Array) -> Array:
        """Return (B, T, width) of an array whose examples lie along its first axis, or its second."""
        if array.ndim > 2 and not self.batch_first:
            array = array.swapaxes(0, 1)
        shape = array.shape[0], math.prod(array.shape[1:-1]), array.shape[-1]
        return np.ascontiguousarray(array).reshape(shape)


def _is_batch_first(owner: Module, otherwise: bool) -> bool:
    found = {module.batch_first for module in owner.modules() if isinstance(module, Recurrent)}
    return found.pop() if len(found) == 1 else otherwise


def _walk(module: Module, tape: Any, dy: Any, layout: _Layout) -> Iterator[Piece]:
    if isinstance(module, Sequential):
        pairs = check_tape(tape, module, BlockTape)._pairs(list(module))
        for index, (member, part) in reversed(list(enumerate(pairs))):
            before = pairs[index - 1][1] if index else None
            if isinstance(member, Recurrent) and isinstance(before, Lookup):
                # The rows that the embedding was asked for, in place of the gradient of its table.
                dy = yield from _recurrent(member, part, dy)
                yield from _lookup(pairs[0][0], before, dy, layout)
                return
            dy = yield from _step(member, part, dy, layout)
        return
    yield from _step(module, tape, dy, layout)


def _step(module: Module, tape: Any, dy: Any, layout: _Layout) -> Generator[Piece, None, Any]:
    """Yield the pieces of one module; return dx."""
    if isinstance(module, Sequential):
        raise ValueError("Sequential: expected no Sequential inside of another for per_example")
    if isinstance(module, Recurrent):
        return (yield from _recurrent(module, tape, dy))
    if isinstance(module, Linear):
        return (yield from _linear(module, tape, dy, layout))
    if isinstance(module, Embedding):
        yield from _lookup(module, tape, dy, layout)
        return None
    if isinstance(module, BatchNorm) or any(part._own for part in module.modules()):
        raise ValueError(
            "tape: expected one of recurrent networks, Linear, Embedding and modules without parameters, "
            f"got one of {type(module).__name__}, whose gradients per_example does not take apart"
        )
    return backward_member(module, tape, dy, True)


def _linear(module: Linear, tape: Any, dy: Any, layout: _Layout) -> Generator[Piece, None, Any]:
    tape = check_tape(tape, module, SavedTape)
    check_array("dy", dy, tape.shape, module._dtype)
    if module._tied:
        raise ValueError("weight_of: expected a Linear with a weight of its own for per_example")
    x, kept, _ = tape.saved
    flows = np.ascontiguousarray(dy).reshape(-1, module.out_features)
    dx = _core.linear_backward(x, kept["weight"], flows, None, None, True)
    assert dx is not None
    lead = tape.shape[:-1]
    if not module._frozen:
        rows = layout.rows(x.reshape(*lead, -1))
        yield Products(
            module,
            layout.rows(flows.reshape(*lead, -1)),
            (("weight", rows),),
            ("bias",) if module.bias else (),
        )
    return dx.reshape(*lead, module.in_features)


def _lookup(module: Any, tape: Any, dy: Any, layout: _Layout) -> Iterator[Piece]:
    if isinstance(tape, Lookup):
        indices = tape.indices
        check_array("dy", dy, (*indices.shape, module.embedding_dim), module._dtype, "(T, B, D)")
    else:
        tape = check_tape(tape, module, SavedTape)
        check_array("dy", dy, tape.shape, module._dtype)
        indices = tape.saved[0].reshape(tape.shape[:-1])
    if module._frozen:
        return
    flows, places = layout.rows(dy), layout.rows(indices[..., None])[..., 0]
    if module.padding_idx is not None:
        places = np.where(places == module.padding_idx, -1, places)
    yield Places(module, flows, places)


def _recurrent(module: Any, tape: Any, dy: Any) -> Generator[Piece, None, Any]:
    tape = check_tape(tape, module, RecurrentTape)
    _check_plain(module, tape)
    flow = time_major(check_array("dy", dy, tape.shape, module._network.dtype), False, tape._batch_first)
    for layer in reversed(range(module.num_layers)):
        below: Any = None
        for part in module._plan.layers[layer]:
            own = flow if part.columns is None else flow[..., part.columns]
            dx, _, (x, h, dgx, dgh) = _core.backward_rows(tape.layers[part.row], own)
            if tape.lookup is not None and layer == 0:
                weight = part.weights[module._network.spec.parameter_names.index("weight_ih")]
                rows = _core.linear_backward(
                    x.reshape(-1, x.shape[-1]), weight, dgx.reshape(-1, dgx.shape[-1]), None, None, True
                )
                assert rows is not None
                dx = rows.reshape(x.shape).swapaxes(0, 1)
            below = dx if below is None else below + dx
            if not module._frozen:
                yield from _products(module, layer, part.reverse, x, h, dgx, dgh)
        flow = below
        drop = tape.dropout[layer - 1] if layer else None
        if drop is not None:
            flow = _core.dropout(np.ascontiguousarray(flow), *drop)
    return flow.swapaxes(0, 1) if tape._batch_first else flow


def _products(
    module: Any, layer: int, reverse: bool, x: Array, h: Array, dgx: Array, dgh: Array
) -> Iterator[Piece]:
    end = f"_l{layer}{'_reverse' if reverse else ''}"
    biases = [f"bias_ih{end}", f"bias_hh{end}"] if module.bias else []
    weights = [(f"weight_ih{end}", x), (f"weight_hh{end}", h)]
    if dgh is dgx:
        yield Products(module, dgx, tuple(weights), tuple(biases))
        return
    yield Products(module, dgx, (weights[0],), tuple(biases[:1]))
    yield Products(module, dgh, (weights[1],), tuple(biases[1:]))


def _check_plain(module: Any, tape: RecurrentTape) -> None:
    spec = module._network.spec
    given = {p.name for p in spec.parameters if p.need != "refused"} - {"weight_hr"}
    if spec.definition is not None or not given <= _DENSE or module.proj_size:
        raise ValueError(
            "tape: expected one of an RNN, LSTM or GRU without projection for per_example, "
            f"got one of {module!r}"
        )
    if len(tape.shape) == 2:
        raise ValueError("x: expected a batch of sequences for per_example, got one without a batch axis")
    if tape._packing is not None:
        raise ValueError("mask: expected a forward without mask for per_example; lengths may be given")
    if tape._joints is not None or any(tape.weight_dropout) or tape._on is not CPU:
        raise ValueError(
            "tape: expected a network without options of its layers (weight_dropout, locked_dropout, "
            f"residual, merge, learned_state) for per_example, got {module!r}"
        )
