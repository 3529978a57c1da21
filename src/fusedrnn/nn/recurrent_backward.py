"""Backward of a recurrent network: layers, directions and dropout around the compiled kernels."""

from typing import Any

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import StateLike
from fusedrnn.backend import CPU, NOTHING
from fusedrnn.cells import Weights
from fusedrnn.checks import check_array
from fusedrnn.inputs.lookup import is_table
from fusedrnn.nn.heads import clear_apart
from fusedrnn.nn.joining import lock, split
from fusedrnn.nn.plan import Network, Part, time_major
from fusedrnn.nn.tape import RecurrentTape


def backward_layers(
    module: Network, tape: RecurrentTape, need_dx: bool, dy: Any, dstate: StateLike | None
) -> tuple[Any, Any]:
    """Do what `Recurrent.backward` does, with arrays of `tape._on`.

    Several layers or directions add to the gradients together or, with KeyboardInterrupt or an error, not at
    all; where that takes a moment only, KeyboardInterrupt comes after it. On the CPU all memory is taken
    before, so that MemoryError comes first.
    """
    on, network = tape._on, module._network
    shape, single, batch_first = tape.shape, len(tape.shape) == 2, tape._batch_first
    batch = 1 if single else shape[0 if batch_first else 1]
    dtype = on.types(network.dtype)[0]
    flow = None
    if dy is not None:
        flow = time_major(check_array("dy", dy, shape, dtype, kind=on.array), single, batch_first)
    beyond = None
    if module._all_states and flow is not None:
        flow, beyond = flow[..., : network.outs[-1]], flow[..., network.outs[-1] :]
    dfinals = None if dstate is None else network.split_state("dstate", dstate, batch, single, on)
    if module._plain is not None and tape.lookup is None and not single and not batch_first:
        final = None if dfinals is None else module._plan.layers[0][0].of(dfinals)
        with module._turn.take():
            sums = module._plan.layers[0][0].sums(module._frozen)
            dx, parts, _ = _core.backward(tape.layers[0], flow, final, sums, need_dx)
        return dx, network.spec.pack_state([part[None] for part in parts])
    dstarts = network.new_states(batch, on)
    lookup = tape.lookup
    joints, merge = tape._joints, module.merge
    locked = (None, None) if joints is None else joints.locked
    if flow is not None and locked[1]:
        flow = lock(flow, locked[1])
    as_rows = locked[0] or (joints is not None and joints.folds and joints.folds[0])
    looked_up = lookup is not None and is_table(lookup, on is not CPU) and not as_rows
    gradient: Any = None
    if need_dx and lookup is not None:
        gradient = (on.xp.empty if looked_up else on.xp.zeros)(tuple(lookup._values.shape), dtype)
    inputs, rows = gradient, None
    if need_dx and not looked_up:
        rows = on.xp.empty((*shape[:-1], module.input_size), dtype)
        inputs = time_major(rows, single, batch_first)
    folds = [] if joints is None else [fold for each in joints.folds for fold in each]
    dresets = None
    if joints is not None and joints.learned_reset and not module._frozen:
        dresets = [np.zeros_like(dstart) for dstart in dstarts]
    sums_of: dict[int, Weights] = {}
    for part in (part for parts in module._plan.layers for part in parts):
        sums = part.sums(module._frozen)
        sums_of[part.row] = folds[part.row].apart(sums, module._frozen) if folds else sums
    targets = [inputs, *_between(module, tape, dtype)]
    stages: list[list[Any]] = []
    # Of each layer, the last one first: the gradient of what its outputs make, and those of the outputs.
    flows: list[tuple[Any, Any]] = []
    for layer in reversed(range(module.num_layers)):
        each = flow
        if flow is not None and merge != "concat":
            each = on.xp.empty((*flow.shape[:2], network.wides[layer]), dtype)
        flows.append((flow, each))
        stages.append(_calls(module, tape, layer, each, dfinals, targets[layer], sums_of, dresets, beyond))
        flow = targets[layer]
    work = on.kernels.StagedCalls(stages)
    # Dropout is a call of its own, and so is what lies between layers.
    whole = on is CPU and joints is None and not any(tape.dropout)
    # One call that adds to the gradients has no others that it could come without.
    alone = on is CPU and len(sums_of) == 1
    with (
        module._turn.take(),
        NOTHING if alone or (whole and work.run_if_short()) else _AllOrNothing(module, on),
    ):
        for layer, (flow, each) in zip(reversed(range(module.num_layers)), flows, strict=True):
            if each is not flow:
                split(merge, joints.outputs[layer], flow, each)
            for part, (_, starts, _) in zip(module._plan.layers[layer], work.run(), strict=True):
                for dstart, start in zip(dstarts, starts, strict=True):
                    dstart[part.row, :, : start.shape[1]] = start
                if folds:
                    suffix = module._suffixes(layer)[part.row - module._plan.layers[layer][0].row]
                    grads = None if module._frozen else module._own_grads
                    folds[part.row].unfold(sums_of[part.row], grads, suffix, targets[layer])
            if joints is not None and flow is not None and module._adds_at(layer + 1):
                targets[layer] += flow
            drop = tape.dropout[layer - 1] if layer else None
            if drop is not None:
                on.kernels.dropout(targets[layer], *drop, out=targets[layer])
        if joints is not None and joints.learned and not module._frozen:
            module._add_starts(module._learned_names, dstarts)
        if module._num_heads > 1 and not module._frozen:
            for layer in range(module.num_layers):
                for suffix in module._suffixes(layer):
                    clear_apart(module._own_grads["weight_hh" + suffix], module._num_heads)
        if dresets is not None:
            module._add_starts(module._reset_names, dresets)
    if locked[0] and inputs is not None:
        lock(inputs, locked[0], inputs)
    if single:
        dstarts = [dstart[:, 0] for dstart in dstarts]
    if lookup is not None and rows is not None:
        rows = lookup._table_gradient(rows, out=gradient)
    return gradient if rows is None else rows, network.spec.pack_state(dstarts)


class _AllOrNothing:
    """Gradients of a module that are as before if what adds to them is interrupted, by Ctrl-C or an error."""

    def __init__(self, module: Network, on: Any) -> None:
        start = module._start
        self._grads = module._buffers.grads[start : start + module._size]
        # After zero_grad there is nothing to keep; to see that takes less than a copy, but a GPU would wait.
        zeros = on is CPU and not self._grads.view(np.bool_).any()
        self._before = 0 if zeros else self._grads.copy()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._grads[...] = self._before


def _between(module: Network, tape: RecurrentTape, dtype: Any) -> list[Any]:
    """Return arrays for the gradients of the outputs of all layers but the last: one of two, in turn."""
    lead = (tape.layers[0].seq_len, tape.layers[0].batch)
    outs = module._network.outs[:-1]
    count = len(outs) if module._network.uneven else min(2, len(outs))
    arrays = [tape._on.xp.empty((*lead, out), dtype) for out in outs[:count]]
    return [arrays[index % count] for index in range(len(outs))]


def _calls(
    module: Network,
    tape: RecurrentTape,
    layer: int,
    flow: Any,
    dfinals: Any,
    target: Any,
    sums_of: dict[int, Weights],
    dresets: Any,
    beyond: Any,
) -> list[Any]:
    """Return the calls of one layer, which write the gradient of its input to `target`, if given."""
    return [
        tape._on.kernels.BackwardCall(
            tape.layers[part.row],
            flow if flow is None or part.columns is None else flow[..., part.columns],
            None if dfinals is None else part.of(dfinals),
            sums_of[part.row],
            target is not None,
            target,
            part.reverse,
            *_around(module, part, layer, dresets, beyond),
        )
        for part in module._plan.layers[layer]
    ]


def _around(module: Network, part: Part, layer: int, dresets: Any, beyond: Any) -> tuple[Any, ...]:
    """Return where the gradients of states at resets go, and those of states beyond h, if there are any."""
    given = None if dresets is None else part.of(dresets)
    if beyond is not None and layer == module.num_layers - 1:
        return given, (None, *part.beyond(beyond, module._network))
    return () if given is None else (given,)
