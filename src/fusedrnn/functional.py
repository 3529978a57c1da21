"""Recurrent layers as plain functions: arrays in, arrays and a tape out, and no module.

Arrays are NumPy's, or on a GPU PyTorch's, CuPy's, JAX's or another library's that speaks DLPack or
`__cuda_array_interface__`; all of a call are on one device, and results are arrays of the library of x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedrnn import _core, host_layer
from fusedrnn.arrays import Array, StateLike
from fusedrnn.cells import CellSpec, resolve_cell
from fusedrnn.checks import check_array
from fusedrnn.compute import check_compute, kernel_key
from fusedrnn.devices import layers_on
from fusedrnn.functional_tape import (
    FunctionalTape,
    Memory,
    Params,
    as_elements,
    tape_bytes,
    tape_from_arrays,
    weights_of,
)
from fusedrnn.inputs.lookup import Lookup, array_of
from fusedrnn.inputs.masks import Packing
from fusedrnn.inputs.rows import check_floats
from fusedrnn.second_order import cell_as_data, checked, directions_of, tangent_weights, weight_gradients
from fusedrnn.symbolic import DefinedCell
from fusedrnn.symbolic.tangent import tangent_cell

__all__ = [
    "FunctionalTape",
    "Gradients",
    "SecondGradients",
    "backward",
    "double_backward",
    "forward",
    "sigmoid",
    "tanh",
    "tape_bytes",
    "tape_from_arrays",
]


def __dir__() -> list[str]:
    return __all__


class Gradients(NamedTuple):
    """What `backward` returns: x as given to forward (of a Lookup the table) or None, state, params."""

    x: Array | None
    state: Any
    params: Any


def forward(
    cell: str | CellSpec | DefinedCell,
    x: Array | Lookup,
    params: Params,
    state: StateLike | None = None,
    lengths: npt.ArrayLike | None = None,
    resets: npt.NDArray[np.bool_] | None = None,
    reset_state: StateLike | None = None,
    *,
    reverse: bool = False,
    recompute: bool = False,
    mask: npt.ArrayLike | None = None,
    compute: str | None = None,
    tape_out: Memory | None = None,
) -> tuple[Array, Any, FunctionalTape]:
    """Run one layer in one direction. The equations are in `fusedrnn.CELLS[cell].equations`.

    Args:
        cell: "lstm", "gru", "rnn_tanh", "rnn_relu", or what `fusedrnn.define_cell` returns.
        x: (T, B, I), float32 or float64, or a `Lookup` of this shape; every other float array has its dtype.
            On a GPU also bfloat16 or float16, with c float32; see `fusedrnn.cuda.set_float32_mode`.
        params: {"weight_ih": (G*H, I), "weight_hh": (G*H, Hout), "bias_ih": (G*H,), "bias_hh": (G*H,),
            "weight_hr": (P, H)}, or a sequence in this order. Biases and weight_hr (LSTM only) may be None
            or left out. Per-unit parameters of a defined cell follow by their names, (H,) each; where its
            step reads no h.g, there are no weight_hh and bias_hh.
        state: initial h (B, Hout), or a tuple of h and the cell's other states (B, H); None for zeros.
        lengths: (B,) of an integer dtype in host memory, each in 0..T; y is 0 past the end.
        resets: (T, B) bool; where true, the state is replaced before step t reads it.
        reset_state: what resets put there, shaped as the state with or without B; None for zeros.
        reverse: run from the last step to the first.
        recompute: the tape leaves out the gates, and backward computes them once more: on the CPU to the same
            bits, on a GPU within the accuracy of the arithmetic.
        mask: (T, B) bool, on the CPU: false for steps that are left out, wherever they are. The state passes
            through them, y is 0 and x gets no gradient there; a reset at one acts at the next step that
            counts. The steps that count are copied to the front first.
        compute: "float32", or "bf16x3" or "bf16" for products of two or one bfloat16 a factor with sums in
            float32, as `fusedrnn.Recurrent` says; None for what `fusedrnn.set_float32_matmul_precision` says.
        tape_out: (n,) uint8, C-contiguous, `tape_bytes` or more, on the CPU: memory for the tape.
            It may be copied, stored and sent with y; `tape_from_arrays` makes a tape of them. Not with a
            `Lookup` or a mask.

    Returns:
        y (T, B, Hout), read-only because the tape refers to it; the final state; the tape.

        On a GPU nothing keeps y from being written: it and the weights must stay unchanged until backward was
        called. The call goes into the stream of the library of x and returns before it is done.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an unknown cell or parameter name, a wrong shape, or lengths out of range.
        RuntimeError: arrays on different devices, a mask beside x on a GPU, or a GPU that cannot be used; the
            message says why.
    """
    spec = resolve_cell(cell)
    weights, names = weights_of(spec, params)
    if reset_state is not None and resets is None:
        raise ValueError("reset_state: expected None without resets")
    if tape_out is not None and (mask is not None or isinstance(x, Lookup)):
        raise ValueError("tape_out: expected None with a Lookup or a mask, got memory")
    if mask is not None:
        return _forward_masked(
            spec,
            x,
            params,
            state,
            mask,
            lengths,
            resets,
            reset_state,
            reverse=reverse,
            recompute=recompute,
            compute=compute,
        )
    layers = layers_on(array_of(x))
    key = spec.name
    if layers is host_layer:
        # What is no array at all is refused further on.
        key = kernel_key(spec, check_compute(compute, getattr(array_of(x), "dtype", np.dtype(np.float32))))
    elif compute not in (None, "float32"):
        raise RuntimeError(f"compute: expected None or 'float32' with arrays on a GPU, got {compute!r}")
    elif tape_out is not None:
        raise RuntimeError("tape_out: expected None with arrays on a GPU, got memory")
    x = x._kept() if isinstance(x, Lookup) else x
    beside = {} if tape_out is None else {"tape_out": as_elements("tape_out", tape_out, x)}
    y, final, layer, copied = layers.forward(
        key,
        x,
        weights,
        None if state is None else spec.unpack_state("state", state),
        lengths=lengths,
        resets=resets,
        reset_state=None if reset_state is None else spec.unpack_state("reset_state", reset_state),
        reverse=reverse,
        recompute=recompute,
        **beside,
    )
    return y, spec.pack_state(final), FunctionalTape(spec, x, layers, layer, names, copied)


def _forward_masked(
    cell: CellSpec,
    x: Array | Lookup,
    params: Params,
    state: StateLike | None,
    mask: npt.ArrayLike,
    lengths: npt.ArrayLike | None,
    resets: npt.ArrayLike | None,
    reset_state: StateLike | None,
    **options: Any,
) -> tuple[Array, Any, FunctionalTape]:
    """Do what `forward` does with a mask."""
    given = array_of(x)
    if layers_on(given) is not host_layer:
        raise RuntimeError(f"mask: expected x on cpu with it, got a {type(given).__name__} on a GPU")
    if not isinstance(given, np.ndarray):
        raise TypeError(f"x: expected a numpy.ndarray or a Lookup, got {type(given).__name__}")
    if len(x.shape) != 3:
        raise ValueError(f"x: expected shape (T, B, I), got {x.shape}")
    leading = x.shape[:-1]
    packing = Packing(mask, lengths, leading, 0)
    borders = None if resets is None else packing.borders(resets, leading)
    steps = packing.inputs(x)
    y, final, tape = forward(cell, steps, params, state, packing.lengths, borders, reset_state, **options)
    tape._packing = packing
    tape.nbytes += packing.nbytes + y.nbytes + (0 if isinstance(steps, Lookup) else steps.nbytes)
    y = packing.spread(y)
    y.flags.writeable = False
    return y, final, tape


def backward(
    tape: FunctionalTape, dy: Array | None = None, dstate: StateLike | None = None, *, need_dx: bool = True
) -> Gradients:
    """Return the gradients of x, the initial state and the parameters of one `forward` call.

    Args:
        tape: from `forward`.
        dy: gradient of y (T, B, Hout), or None for zeros if dstate is given.
        dstate: gradient of the final state, h or (h, c), each array or None for zeros.
        need_dx: False leaves out the gradient of x, and x is None.

    Returns:
        Gradients with x, state and params; params is a dict if forward was given one, else a tuple.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: a wrong shape, or neither dy nor dstate.
        RuntimeError: `fusedrnn.set_detect_changes` is on, and x, y, state or resets have changed.
    """
    if not isinstance(tape, FunctionalTape):
        raise TypeError(
            f"tape: expected a FunctionalTape, got {type(tape).__name__}; "
            "it is the last of what forward returns"
        )
    if dy is None and dstate is None:
        raise ValueError("dy: expected an array unless dstate is given, got None for both")
    spec = tape._spec
    final = None if dstate is None else spec.unpack_state("dstate", dstate)
    packing, layer = tape._packing, tape._layer
    if packing is not None and dy is not None:
        packed = layer.seq_len, layer.batch, layer.proj_size or layer.hidden_size
        dy = packing.take(check_array("dy", dy, packing.shape(packed), layer.dtype))
    dx, start, grads = tape._layers.backward(layer, tape._x, dy, final, need_dx)
    if packing is not None and dx is not None and not isinstance(tape._x, Lookup):
        dx = packing.spread(dx)
    named = dict(zip(spec.parameter_names, grads, strict=True))
    params = grads if tape._names is None else {name: named[name] for name in tape._names}
    return Gradients(dx, spec.pack_state(start), params)


class SecondGradients(NamedTuple):
    """What `double_backward` returns: of x, state and params as `backward`, and of dy and dstate."""

    x: Array
    state: Any
    params: Any
    dy: Array
    dstate: Any


def double_backward(
    cell: str | CellSpec | DefinedCell,
    x: Array,
    params: Params,
    dy: Array,
    directions: Gradients,
    state: StateLike | None = None,
    dstate: StateLike | None = None,
    lengths: npt.ArrayLike | None = None,
    resets: npt.NDArray[np.bool_] | None = None,
    reset_state: StateLike | None = None,
    *,
    reverse: bool = False,
) -> SecondGradients:
    """Return the gradients of what `backward` returns: second derivatives, on the CPU.

    Where `backward` gives g = (dx, dstate, dparams) of the sum of dy*y and dstate*state, this gives the
    gradients of the sum of directions*g, by all that g depends on. Those of x, state and params are the
    Hessian of the first sum times the directions; that of dy is the derivative of y along the directions
    (and that of dstate of the state). A gradient penalty |dx|^2 has directions 2*dx. For the Hessian of a
    loss of y add what `backward` gives for the loss's own Hessian times that derivative as dy.

    It runs the cell with its derivative beside it, a cell of three times the gates, forward and backward.

    Args:
        cell, x, params, state, lengths, resets, reset_state, reverse: as in the call of `forward`.
        dy: (T, B, H), as given to `backward`, and dstate.
        directions: (x, state, params), shaped as what `backward` returned; each, each array and each name of
            a mapping may be None or left out for zero.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: a wrong shape, an unknown cell or name, a projection, or a cell that is not pointwise.
    """
    spec = resolve_cell(cell)
    along = tangent_cell(data := cell_as_data(spec))
    given, names = weights_of(spec, params)
    check_floats("x", x, None)
    if x.ndim != 3:
        raise ValueError(f"x: expected shape (T, B, I), got {x.shape}")
    weights = checked(spec, dict(zip(spec.parameter_names, given, strict=True)), x)
    if not isinstance(directions, tuple) or len(directions) != 3:
        raise TypeError(f"directions: expected (x, state, params), got {type(directions).__name__}")
    of_x, of_state, of_params = directions
    moved = directions_of(of_params, spec.parameter_names, weights)
    batch, hidden = x.shape[1], weights["weight_ih"].shape[0] // spec.gates

    def states(name: str, value: Any) -> tuple[Array, ...]:
        zero = np.zeros((batch, hidden), x.dtype)
        if value is None:
            return (zero,) * spec.states
        return tuple(
            zero if part is None else check_array(f"{name}{label}", part, zero.shape, x.dtype, "(B, H)")
            for part, label in zip(spec.unpack_state(name, value), spec.state_labels, strict=True)
        )

    step_x = np.zeros_like(x) if of_x is None else check_array("directions.x", of_x, x.shape, x.dtype)
    flow = check_array("dy", dy, (*x.shape[:2], hidden), x.dtype, "(T, B, H)")
    start = states("directions.state", of_state) + states("state", state)
    end = states("dstate", dstate) + (None,) * spec.states
    reset = None if reset_state is None else spec.unpack_state("reset_state", reset_state)
    y, final, tape = forward(
        *(along, np.concatenate([x, step_x], axis=2), tangent_weights(data, weights, moved), start),
        *(
            lengths,
            resets,
            None if reset is None else (*(None if s is None else np.zeros_like(s) for s in reset), *reset),
        ),
        reverse=reverse,
    )
    dx, dstart, grads = backward(tape, flow, end)
    assert dx is not None
    found = weight_gradients(data, weights, grads)
    given_names = spec.parameter_names[: len(params)] if names is None else names
    ordered = {name: found.get(name) for name in given_names}
    return SecondGradients(
        np.ascontiguousarray(dx[:, :, : x.shape[2]]),
        spec.pack_state(dstart[spec.states :]),
        ordered if names is not None else tuple(ordered.values()),
        y,
        spec.pack_state(final[: spec.states]),
    )


def sigmoid(x: npt.ArrayLike) -> Array:
    """Return 1 / (1 + exp(-x)) elementwise, in the dtype and shape of x (float32 or float64).

    Raises:
        TypeError: another dtype.
    """
    return _core.sigmoid(np.require(x, requirements=["C", "A"]))


def tanh(x: npt.ArrayLike) -> Array:
    """Return the hyperbolic tangent elementwise, in the dtype and shape of x (float32 or float64).

    Raises:
        TypeError: another dtype.
    """
    return _core.tanh(np.require(x, requirements=["C", "A"]))
