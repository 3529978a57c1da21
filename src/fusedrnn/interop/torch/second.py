"""Second derivatives of networks: their layers as functions that autograd may differentiate twice.

A network's backward is differentiated by running the network once more as a chain of such functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fusedrnn import _core, functional
from fusedrnn.interop.torch.kernels import DTYPES, Inputs, Options, Tensor, kernel_weights, numpy

# cell, lengths, resets, and whether it runs from the end
_Call = tuple[str, Any, Any, bool]


class _Layer(Function):
    """y and the final states of one layer and direction, from x, the initial states and the parameters."""

    @staticmethod
    def forward(ctx: Any, call: _Call, states: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        cell, lengths, resets, reverse = call
        x, *others = (numpy(tensor) for tensor in tensors)
        y, final, tape = functional.forward(
            *(cell, x, others[states:], _packed(others[:states]), lengths, resets), reverse=reverse
        )
        ctx.call, ctx.states, ctx.tape = call, states, tape
        ctx.save_for_backward(*tensors)
        found = final if isinstance(final, tuple) else (final,)
        return tuple(torch.tensor(array) for array in (y, *found))

    @staticmethod
    def backward(ctx: Any, *flows: Tensor) -> tuple[Any, ...]:
        return None, None, *_LayerBackward.apply(ctx.call, ctx.states, ctx.tape, *flows, *ctx.saved_tensors)


class _LayerBackward(Function):
    """The gradients of x, the initial states and the parameters, from those of y and the final states."""

    @staticmethod
    def forward(ctx: Any, call: _Call, states: int, tape: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.states = call, states
        ctx.save_for_backward(*tensors)
        dy, *dfinals = (numpy(flow) for flow in tensors[: 1 + states])
        found = functional.backward(tape, dy, _packed(dfinals))
        start = found.state if states > 1 else (found.state,)
        params = [grad for grad in found.params if grad is not None]
        return tuple(torch.from_numpy(array) for array in (found.x, *start, *params))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> tuple[Any, ...]:
        cell, lengths, resets, reverse = ctx.call
        states = ctx.states
        dy, *others = (numpy(tensor) for tensor in ctx.saved_tensors)
        dfinals, x, start, params = (
            others[:states],
            others[states],
            others[states + 1 : 2 * states + 1],
            others[2 * states + 1 :],
        )
        of_x, *rest = (numpy(direction) for direction in directions)
        along = functional.Gradients(of_x, _packed(rest[:states]), rest[states:])
        found = functional.double_backward(
            *(cell, x, params, dy, along, _packed(start), _packed(dfinals), lengths, resets),
            reverse=reverse,
        )
        ends = found.dstate if states > 1 else (found.dstate,)
        firsts = found.state if states > 1 else (found.state,)
        arrays = (found.dy, *ends, found.x, *firsts, *found.params)
        return None, None, None, *(torch.tensor(array) for array in arrays)


def _packed(states: list[Any]) -> Any:
    return states[0] if len(states) == 1 else tuple(states)


def network(options: Options, inputs: Inputs) -> tuple[Tensor, ...]:
    """Return y and the final states, which may be differentiated twice.

    Raises:
        RuntimeError: the network has projections.
    """
    cell, num_layers, bidirectional, batch_first, dropout = options
    x, lengths, resets, seed, state, params = inputs
    directions, count = 1 + bidirectional, 2 if cell == "lstm" else 1
    weights = kernel_weights(params, num_layers * directions)
    if any(group[-1] is not None for group in weights):
        raise RuntimeError(
            "fusedrnn.torch: expected a network without projections for second derivatives, got proj_size; "
            "fusedrnn.torch.restore(model) gives torch.nn's own, which have them"
        )
    steps = x.transpose(0, 1) if batch_first else x
    ends = None if lengths is None else numpy(lengths)
    borders = None if resets is None else np.ascontiguousarray(numpy(resets.T if batch_first else resets))
    hidden = weights[0][1].shape[1]
    zero = x.new_zeros(len(weights), steps.shape[1], hidden)
    start = state or (zero,) * count
    finals: list[list[Tensor]] = [[] for _ in range(count)]
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            row = layer * directions + direction
            call = cell, ends, borders, direction == 1
            given = [tensor for tensor in weights[row] if tensor is not None]
            y, *after = _Layer.apply(call, count, steps, *(part[row] for part in start), *given)
            outputs.append(y)
            for final, part in zip(finals, after, strict=True):
                final.append(part)
        steps = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if dropout > 0 and layer < num_layers - 1:
            assert seed is not None
            ones = np.ones(steps.shape, DTYPES[steps.dtype])
            steps = steps * torch.from_numpy(_core.dropout(ones, dropout, int(seed.item()), layer))
    return (steps.transpose(0, 1) if batch_first else steps), *(torch.stack(final) for final in finals)


def gradients_of_backward(
    options: Options,
    inputs: Inputs,
    dy: Tensor | None,
    dfinals: tuple[Tensor | None, ...],
    directions: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of dy, of dfinals, of x, of the states and of the parameters.

    Args:
        directions: gradients of those of x, of the states and of the parameters, None for zero.
    """
    given = (dy, *dfinals)
    if all(along is None for along in directions):
        return (None,) * (len(given) + len(directions))
    with torch.enable_grad():

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().requires_grad_()

        x, state = leaf(inputs.x), tuple(map(leaf, inputs.state))
        params = tuple(map(leaf, inputs.params))
        outputs = network(options, inputs._replace(x=x, state=state, params=params))
        flows = [
            leaf(torch.zeros_like(out) if flow is None else flow)
            for out, flow in zip(outputs, given, strict=True)
        ]
        wanted = (x, *state, *params)
        first = torch.autograd.grad(outputs, wanted, flows, create_graph=True)
        pairs = [(grad, along) for grad, along in zip(first, directions, strict=True) if along is not None]
        grads, alongs = zip(*pairs, strict=True)
    found = torch.autograd.grad(grads, (*flows, *wanted), alongs, allow_unused=True)
    # Where no gradient was given, none is returned.
    of_flows = [None if flow is None else grad for flow, grad in zip(given, found, strict=False)]
    return (*of_flows, *found[len(given) :])
