"""One recurrent layer and direction on the CPU, for `fusedrnn.functional`: the twin of `cuda.layer`."""

from typing import Any

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cells import Weights
from fusedrnn.inputs.lookup import Lookup, array_of, kernel_gradient, kernel_inputs
from fusedrnn.inputs.sequences import as_lengths


def forward(
    cell: str,
    x: Array | Lookup,
    weights: Weights,
    state: tuple[Any, ...] | None,
    *,
    lengths: Any,
    resets: Any,
    reset_state: tuple[Any, ...] | None,
    reverse: bool,
    recompute: bool,
    tape_out: Array | None = None,
) -> tuple[Array, tuple[Array, ...], _core.LayerTape, int]:
    """Return y, the final state, the kernels' tape and the bytes copied for it."""
    inputs, indices = kernel_inputs(x, keep=True)
    y, final, tape = _core.forward(
        cell,
        inputs,
        weights,
        state,
        indices=indices,
        lengths=None if lengths is None else as_lengths(lengths),
        resets=resets,
        reset_state=reset_state,
        reverse=reverse,
        save=True,
        recompute=recompute,
        tape_out=tape_out,
    )
    assert tape is not None
    y.flags.writeable = False
    copied = 0 if inputs is array_of(x) else inputs.nbytes
    return y, final, tape, copied + (x.indices.nbytes if isinstance(x, Lookup) and not x._pays else 0)


def backward(
    tape: _core.LayerTape, x: Array | Lookup, dy: Any, dstate: tuple[Any, ...] | None, need_dx: bool
) -> tuple[Array | None, tuple[Array, ...], tuple[Any, ...]]:
    """Return the gradients of x (or None), of the initial state and of the parameters."""
    tape.check_unchanged()
    dx, start, grads = _core.backward(tape, dy, dstate, need_dx=need_dx)
    return None if dx is None else kernel_gradient(x, dx), start, grads
