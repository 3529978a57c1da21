"""One recurrent layer and direction on a GPU, for `fusedrnn.functional`: any library's arrays in and out."""

from typing import Any

import numpy.typing as npt

from fusedrnn.cells import Weights
from fusedrnn.cuda import loader
from fusedrnn.cuda.libraries import Library, library_of
from fusedrnn.cuda.modes import get_float32_mode, get_kernel
from fusedrnn.inputs.lookup import array_of, kernel_inputs
from fusedrnn.inputs.sequences import as_lengths


def host_lengths(lengths: Any) -> npt.NDArray[Any] | None:
    """Return lengths as int64 in host memory, where they decide what is launched.

    Raises:
        RuntimeError: they are on a GPU.
    """
    if lengths is None:
        return None
    device = getattr(lengths, "__dlpack_device__", None)
    if device is not None and device()[0] != 1:
        raise RuntimeError(
            "lengths: expected an array in host memory, where they decide what is launched, "
            f"got a {type(lengths).__name__} on a GPU"
        )
    return as_lengths(lengths)


def call_forward(
    library: Library,
    cell: str,
    x: Any,
    weights: Weights,
    state: tuple[Any, ...] | None,
    lengths: Any,
    **options: Any,
) -> Any:
    """Return what `_cuda.forward` does, with the modes and in the memory and stream of the caller."""
    return loader.load().forward(
        cell,
        x,
        weights,
        state,
        lengths=host_lengths(lengths),
        float32_mode=get_float32_mode(),
        kernel=get_kernel(),
        empty=library.empty,
        stream=library.stream,
        **options,
    )


def forward(
    cell: str,
    x: Any,
    weights: Weights,
    state: tuple[Any, ...] | None,
    *,
    lengths: Any,
    resets: Any,
    reset_state: tuple[Any, ...] | None,
    reverse: bool,
    recompute: bool,
) -> tuple[Any, tuple[Any, ...], Any, int]:
    """Return y, the final state, the kernels' tape and the bytes copied for it."""
    table, indices = kernel_inputs(x, on_gpu=True)
    library = library_of(table)
    y, final, tape = call_forward(
        library,
        cell,
        table,
        weights,
        state,
        lengths,
        indices=indices,
        resets=resets,
        reset_state=reset_state,
        reverse=reverse,
        save=True,
        recompute=recompute,
    )
    _finish(library)
    return library.adopt(y), tuple([library.adopt(part) for part in final]), tape, 0


def backward(
    tape: Any, x: Any, dy: Any, dstate: tuple[Any, ...] | None, need_dx: bool
) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """Return the gradients of x (or None), of the initial state and of the parameters, of x's library."""
    library = library_of(array_of(x))
    dx, start, grads = loader.load().backward(
        tape, dy, dstate, need_dx=need_dx, empty=library.empty, stream=library.stream
    )
    _finish(library)

    def adopt(array: Any) -> Any:
        return None if array is None else library.adopt(array)

    return adopt(dx), tuple([adopt(part) for part in start]), tuple([adopt(grad) for grad in grads])


def _finish(library: Library) -> None:
    if library.synchronous:
        loader.load().synchronize(library.device, library.stream)
