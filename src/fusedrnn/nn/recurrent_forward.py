"""Forward of a recurrent network: layers, directions and dropout around the compiled kernels."""

from __future__ import annotations

from typing import Any, TypeAlias

from fusedrnn.arrays import Array
from fusedrnn.backend import CPU, Backend
from fusedrnn.cuda.layer import host_lengths
from fusedrnn.inputs.lookup import array_of, kernel_inputs
from fusedrnn.inputs.sequences import as_lengths
from fusedrnn.nn.input_norm import Fold, Moments
from fusedrnn.nn.joining import Joints, join, lock
from fusedrnn.nn.plan import borders_of, time_major
from fusedrnn.nn.tape import Drop

# y, the final state, and what a tape keeps: kernel tapes, dropout between layers and of weights, bytes of the
# arrays between, backend, what options left.
Kept: TypeAlias = tuple[list[Any], list[Drop | None], list[Drop | None], int, Backend, Joints | None]
Results: TypeAlias = tuple[Array, Any, Kept]


def forward_layers(
    module: Any, on: Backend, lengths: Any, save: bool, x: Any, state: Any, resets: Any, reset_state: Any
) -> Results:
    """Return what `Recurrent.forward` does, for arrays of `on`, which come last."""
    xp, kernels = on.xp, on.kernels
    shape: tuple[int, ...] = x.shape if isinstance(array_of(x), on.array) else ()
    single = len(shape) == 2
    if not (single or len(shape) == 3) or shape[-1] != module.input_size:
        raise module._input_error(x)
    dtype, network = on.types(module._dtype)[0], module._network
    y = xp.empty((*shape[:-1], network.out_size), dtype)
    joints, at_input, at_output = None, None, None
    if module._joining:
        joints = module._joints(state)
        at_input, at_output = joints.locked
    norm = module._batch_norm
    (steps, indices), target = kernel_inputs(x, on is not CPU, save, norm or at_input is not None), y
    between = 0 if steps is array_of(x) else steps.nbytes
    if single or module.batch_first:
        target = time_major(y, single, module.batch_first)
        if indices is None:
            steps = time_major(steps, single, module.batch_first)
        else:
            indices = time_major(indices, single, module.batch_first)
    beyond = None
    if module._all_states:
        target, beyond = target[..., : network.outs[-1]], target[..., network.outs[-1] :]
    seq_len, batch, _ = target.shape
    if at_input:
        steps = lock(steps, at_input)
        between += steps.nbytes
    states = None if state is None else network.split_state("state", state, batch, single, on)
    if joints and state is None:
        states = module._starts(batch)
    ends = None if lengths is None else (as_lengths if on is CPU else host_lengths)(lengths)
    borders = None if resets is None else borders_of(resets, shape[:-1], single, module.batch_first, on)
    replacement = None
    if reset_state is not None:
        if resets is None:
            raise ValueError("reset_state: expected None without resets")
        replacement = network.split_reset_state(reset_state, batch, on)
    elif joints and module._learned_reset_state and resets is not None:
        replacement, joints.learned_reset = module._reset_starts(), True
    finals = network.new_states(batch, on)
    drops: list[Drop | None] = []
    weight_drops: list[Drop | None] = []
    masking, masks = 0.0, 0
    if module.training:
        masking, masks = module._weight_dropout, module._masks
    if masking:
        module._require_cpu("weight_dropout")
    uneven = network.uneven
    calls, results = [], []
    for layer, parts in enumerate(module._plan.layers, 1):
        last = layer == module.num_layers
        joins = joints and module._joins_at(layer)
        # What the kernels wrote stays as it is.
        out = (
            target
            if last and not (joins or at_output)
            else xp.empty((seq_len, batch, network.wides[layer - 1]), dtype)
        )
        folds: list[Fold] = []
        moments = Moments.of(steps, ends) if norm and module.training else None
        for part in parts:
            weights = part.weights
            if norm:
                folds.append(module._fold(part, module._suffixes(layer - 1)[len(folds)], moments))
                weights = folds[-1].weights
            mask = module._noise.take(masking) if masking else None
            weight_drops.append(mask)
            # By position: every name of an argument costs a call 200 instructions.
            call = kernels.ForwardCall(
                module._key,
                steps,
                weights,
                None if states is None else part.of(states),
                indices,
                ends,
                borders,
                None if replacement is None else part.of(replacement),
                part.reverse,
                save or beyond is not None,
                module.recompute,
                None if norm else part.cache,  # those that norm makes are packed for this call
                None if norm else module._buffers.values.version,
                out if part.columns is None else out[..., part.columns],
                None if uneven else tuple([final[part.row] for final in finals]),
                *(() if mask is None else (None, mask)),
            )
            if masks:
                call.draw_masks(*module._noise.streams(masks))
            calls.append(call)
        before, steps, indices = steps, out, None
        drop = None
        between += 0 if out is target else out.nbytes
        dropping = not last and module.training and module.dropout > 0
        # A layer begins before the one below has ended, unless it needs that end or dropout in between.
        if last or dropping or joins or norm or module.bidirectional:
            results += kernels.run_calls(calls)
            calls = []
        if joints:
            joints.outputs.append(out if module.merge == "mul" else None)
            joints.folds.append(folds)
            between += sum([fold.nbytes for fold in folds])
            if joins:
                whole = last and not at_output
                steps = target if whole else xp.empty((seq_len, batch, network.outs[layer - 1]), dtype)
                join(module.merge, out, before if module._adds_at(layer) else None, steps)
                between += 0 if whole else steps.nbytes
            if last and at_output:
                lock(steps, at_output, target)
        if dropping:
            drop = module._noise.take(module.dropout)
            steps = kernels.dropout(steps, *drop)
            between += steps.nbytes
        drops.append(drop)
    if joints and norm and module.training:
        module._learn(joints.folds)
    tapes = [tape for _, _, tape in results]
    if beyond is not None:
        for part in module._plan.layers[-1]:
            for number, columns in enumerate(part.beyond(beyond, network), 1):
                tapes[part.row].copy_states(number, columns)
    if uneven:
        parts = [part for each in module._plan.layers for part in each]
        for part, (_, ends, _) in zip(parts, results, strict=True):
            for final, end in zip(part.of(finals), ends, strict=True):
                final[...] = end
    if single:
        finals = [final[:, 0] for final in finals]
    return y, module._spec.pack_state(finals), (tapes, drops, weight_drops, between, on, joints)
