"""Backward of a recurrent network: layers, directions and dropout around the compiled kernels."""

from typing import TYPE_CHECKING, Any, NamedTuple

from fusedrnn import _core
from fusedrnn.backend import CPU
from fusedrnn.cells import Array, StateLike, Weights
from fusedrnn.checks import check_array
from fusedrnn.lookup import is_table
from fusedrnn.tape import RecurrentTape

if TYPE_CHECKING:
    from fusedrnn.recurrent_base import Recurrent


class Part(NamedTuple):
    """One layer and direction.

    Attributes:
        row: its row in the state arrays.
        weights, grads: its parameters and their gradients, as kernels take them.
        cache: its packed weights.
        reverse: whether it runs from the end.
        columns: those of the layer's output that it writes; None for all.
    """

    row: int
    weights: Weights
    grads: Weights
    cache: _core.WeightCache
    reverse: bool
    columns: slice | None


def row_of(arrays: tuple[Array | None, ...], row: int) -> tuple[Array | None, ...]:
    """Return the entries of one layer and direction."""
    return tuple([None if array is None else array[row] for array in arrays])


def backward_layers(
    module: "Recurrent[Any]", tape: RecurrentTape, need_dx: bool, dy: Any, dstate: StateLike | None
) -> tuple[Any, Any]:
    """Do what `Recurrent.backward` does, with arrays of `tape.on`.

    On the CPU all memory is taken before the first gradient is added to: MemoryError leaves them as before.
    """
    on, spec = tape.on, module._spec
    shape, single = tape.shape, len(tape.shape) == 2
    batch = tape.layers[0].batch
    dtype = on.types(module._dtype)[0]
    flow = None
    if dy is not None:
        flow = module._time_major(check_array("dy", dy, shape, dtype, kind=on.array), single)
    dfinals = None if dstate is None else module._split_state("dstate", dstate, batch, single, on)
    if module._plain is not None and tape.lookup is None and not single and not module.batch_first:
        final = None if dfinals is None else row_of(dfinals, 0)
        with module._turn.take():
            dx, parts, _ = _core.backward(
                tape.layers[0], flow, final, dparams=module._plan[0][0].grads, need_dx=need_dx
            )
        return dx, spec.pack_state([part[None] for part in parts])
    dstarts = module._new_states(batch, on)
    lookup = tape.lookup
    looked_up = lookup is not None and is_table(lookup, on is not CPU)
    gradient: Any = None
    if need_dx and lookup is not None:
        gradient = (on.xp.empty if looked_up else on.xp.zeros)(tuple(lookup.table.shape), dtype)
    inputs, rows = gradient, None
    if need_dx and not looked_up:
        rows = on.xp.empty((*shape[:-1], module.input_size), dtype)
        inputs = module._time_major(rows, single)
    targets = [inputs, *_between(module, tape, dtype)]
    stages: list[list[Any]] = []
    for layer in reversed(range(module.num_layers)):
        stages.append(_calls(module, tape, layer, flow, dfinals, targets[layer]))
        flow = targets[layer]
    work = on.kernels.StagedCalls(stages)
    with module._turn.take():
        for layer in reversed(range(module.num_layers)):
            for part, (_, starts, _) in zip(module._plan[layer], work.run(), strict=True):
                for dstart, start in zip(dstarts, starts, strict=True):
                    dstart[part.row] = start
            drop = tape.dropout[layer - 1] if layer else None
            if drop is not None:
                on.kernels.dropout(targets[layer], *drop, out=targets[layer])
    if single:
        dstarts = [dstart[:, 0] for dstart in dstarts]
    if lookup is not None and rows is not None:
        rows = lookup.table_gradient(rows, out=gradient)
    return gradient if rows is None else rows, spec.pack_state(dstarts)


def _between(module: "Recurrent[Any]", tape: RecurrentTape, dtype: Any) -> list[Any]:
    """Return arrays for the gradients of the outputs of all layers but the last: one of two, in turn."""
    shape = (tape.layers[0].seq_len, tape.layers[0].batch, module._out_size)
    count = module.num_layers - 1
    arrays = [tape.on.xp.empty(shape, dtype) for _ in range(min(2, count))]
    return [arrays[index % 2] for index in range(count)]


def _calls(
    module: "Recurrent[Any]", tape: RecurrentTape, layer: int, flow: Any, dfinals: Any, target: Any
) -> list[Any]:
    """Return the calls of one layer, which write the gradient of its input to `target`, if given."""
    return [
        tape.on.kernels.BackwardCall(
            tape.layers[part.row],
            flow if flow is None or part.columns is None else flow[..., part.columns],
            None if dfinals is None else row_of(dfinals, part.row),
            dparams=part.grads,
            need_dx=target is not None,
            dx=target,
            accumulate_dx=part.reverse,
        )
        for part in module._plan[layer]
    ]
