"""lstm, gru and rnn: custom derivatives around the kernels, which the compiled program calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from fusedrnn import _core
from fusedrnn.cells import CELLS, rnn_cell
from fusedrnn.checks import check_flag
from fusedrnn.interop.jax import host

__all__ = ["gru", "lstm", "rnn"]

Params = Mapping[str, Any] | Sequence[Any]


def lstm(
    x: Any,
    params: Params,
    state: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
) -> tuple[Any, tuple[Any, Any]]:
    """Run one layer of an LSTM in one direction, on the CPU.

    It may be jitted, differentiated in reverse mode, vmapped, and called inside of scan and checkpoint. There
    is no forward mode and no second derivative. Under vmap, forward is one call of the kernels unless the
    parameters are mapped or gradients follow; then it is one call for each.

    Args:
        x: (T, B, I), float32 or float64; every other float array has its dtype.
        params: {"weight_ih": (4*H, I), "weight_hh": (4*H, Hout), "bias_ih": (4*H,), "bias_hh": (4*H,),
            "weight_hr": (P, H)}, or a sequence in this order; gates i, f, g, o. Biases and weight_hr may be
            None or left out.
        state: h (B, Hout) and c (B, H), or None for zeros.
        lengths: (B,) of an integer dtype, each in 0..T; y is 0 past the end.
        resets: (T, B) bool; where true, the state is zero before step t reads it.
        reverse: run from the last step to the first.

    Returns:
        y (T, B, Hout), and the final state (h, c).

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or an unknown parameter. Lengths out of range are an error
            of the runtime.
        RuntimeError: JAX's default backend, or x, is not on the CPU.
    """
    y, final = _layer("lstm", x, params, state, lengths, resets, reverse)
    return y, final


def gru(
    x: Any,
    params: Params,
    state: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Run one layer of a GRU, with the reset gate after the matrix product; all else is as in `lstm`.

    Args:
        params: as of `lstm`, with 3*H rows in the order r, z, n, and no weight_hr.
        state: h (B, H), or None for zeros.

    Returns:
        y (T, B, H), and the final state h.
    """
    y, final = _layer("gru", x, params, state, lengths, resets, reverse)
    return y, final[0]


def rnn(
    x: Any,
    params: Params,
    state: Any = None,
    *,
    nonlinearity: str = "tanh",
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """Run one layer of an Elman network; all else is as in `lstm`.

    Args:
        params: as of `lstm`, with H rows, and no weight_hr.
        state: h (B, H), or None for zeros.
        nonlinearity: "tanh" or "relu".

    Returns:
        y (T, B, H), and the final state h.
    """
    y, final = _layer(rnn_cell(nonlinearity), x, params, state, lengths, resets, reverse)
    return y, final[0]


def _layer(cell: str, x: Any, params: Any, state: Any, lengths: Any, resets: Any, reverse: bool) -> Any:
    spec = CELLS[cell]
    x = _array("x", x)
    _check_cpu(x)
    if x.ndim != 3:
        raise ValueError(f"x: expected shape (T, B, I), got {x.shape}")
    if x.dtype not in (jnp.float32, jnp.float64):
        raise TypeError(f"x: expected float32 or float64, got {x.dtype}; use x.astype('float32')")
    steps, batch, inputs = x.shape
    given = _named(cell, params)
    for name in ("weight_ih", "weight_hh"):
        if given[name].ndim != 2:
            raise ValueError(f"{name}: expected 2 axes, got shape {given[name].shape}")
    weight = given["weight_ih"].shape
    if inputs != weight[1]:
        raise ValueError(
            f"x: expected shape (T, B, I) with I = {weight[1]} as weight_ih {weight}, got {x.shape}"
        )
    hidden = weight[0] // spec.gates
    projection = given["weight_hr"].shape[0] if "weight_hr" in given else 0
    shapes = spec.parameter_shapes(inputs, hidden, True, projection)
    widths = spec.state_widths(hidden, projection)
    if state is None:
        start = [jnp.zeros((batch, width), x.dtype) for width in widths]
    else:
        start = [_array("state", part) for part in spec.unpack_state("state", state)]
    expected = {
        **shapes,
        **{name: (batch, width) for name, width in zip(spec.state_names, widths, strict=True)},
    }
    arrays = {"x": x, **dict(zip(spec.state_names, start, strict=True)), **given}
    for name, array in arrays.items():
        if name != "x" and array.shape != expected[name]:
            raise ValueError(f"{name}: expected shape {expected[name]}, got {array.shape}")
        if array.dtype != x.dtype:
            raise TypeError(f"{name}: expected {x.dtype} as x, got {array.dtype}")
    beside = {}
    if lengths is not None:
        beside["lengths"] = _array("lengths", lengths)
        if beside["lengths"].dtype.kind not in "iu":
            raise TypeError(f"lengths: expected an integer dtype, got {beside['lengths'].dtype}")
        if beside["lengths"].dtype.itemsize < 4:  # the kernels' side reads wider ones
            beside["lengths"] = beside["lengths"].astype(jnp.int32)
        if beside["lengths"].shape != (batch,):
            raise ValueError(f"lengths: expected shape (B,) = ({batch},), got {beside['lengths'].shape}")
    if resets is not None:
        beside["resets"] = _array("resets", resets)
        if beside["resets"].dtype != bool:
            raise TypeError(f"resets: expected bool, got {beside['resets'].dtype}")
        if beside["resets"].shape != (steps, batch):
            found = beside["resets"].shape
            raise ValueError(f"resets: expected shape (T, B) = ({steps}, {batch}), got {found}")
    names = tuple(arrays), tuple(beside)
    y, *final = _network(
        (cell, check_flag("reverse", reverse), *names), tuple(arrays.values()), tuple(beside.values())
    )
    return y, tuple(final)


def _array(name: str, value: Any) -> Any:
    """Return an array of JAX's; lists and other libraries' arrays are refused, as they would be copied."""
    if not isinstance(value, (jax.Array, np.ndarray)):
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}; use jax.numpy.asarray")
    return jnp.asarray(value)


def _check_cpu(x: Any) -> None:
    platforms = {jax.default_backend()}
    if not isinstance(x, jax.core.Tracer):
        platforms = {device.platform for device in x.devices()}
    if platforms != {"cpu"}:
        other = ", ".join(sorted(platforms))
        way = "jax.config.update('jax_platforms', 'cpu')"
        raise RuntimeError(f"fusedrnn.jax: expected arrays on cpu, got {other}; use {way}")


def _named(cell: str, params: Any) -> dict[str, Any]:
    """Return the parameters that are given, in the kernels' order."""
    # Projections are an LSTM's alone.
    names = [name for name in CELLS[cell].parameter_names if cell == "lstm" or name != "weight_hr"]
    if isinstance(params, Mapping):
        unknown = [str(name) for name in params if name not in names]
        if unknown:
            raise ValueError(f"params: expected the names {', '.join(names)}, got {', '.join(unknown)}")
        given = dict(params)
    elif isinstance(params, Sequence) and not isinstance(params, str) and len(params) <= len(names):
        given = dict(zip(names, params, strict=False))
    else:
        raise TypeError(
            f"params: expected a mapping or a sequence of at most {len(names)}, got {type(params).__name__}"
        )
    found = {name: _array(name, given[name]) for name in names if given.get(name) is not None}
    missing = [name for name in ("weight_ih", "weight_hh") if name not in found]
    if missing:
        raise ValueError(f"params: expected weight_ih and weight_hh, got none for {', '.join(missing)}")
    return found


# The cell, whether it runs in reverse, and the names of the arrays with a gradient and of those without.
Options = tuple[str, bool, tuple[str, ...], tuple[str, ...]]
Arrays = tuple[Any, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _network(options: Options, arrays: Arrays, beside: Arrays) -> Arrays:
    """Return y and the final states of arrays that have been checked: x, the states and the parameters."""
    return _called("forward", options, (), _outputs(options, arrays), (*arrays, *beside))


def _network_forward(options: Options, arrays: Arrays, beside: Arrays) -> Any:
    # None and () stay what they are among the residuals, where True would become an array.
    wanted = tuple([() if given.perturbed else None for given in arrays])
    arrays, beside = (tuple([given.value for given in group]) for group in (arrays, beside))
    shapes = {**_outputs(options, arrays), "tape": (_tape_size(options, arrays),)}
    *found, tape = _called("forward", options, (), shapes, (*arrays, *beside))
    return tuple(found), (arrays, beside, found[0], tape, wanted)


def _network_backward(options: Options, saved: tuple[Any, ...], flows: Arrays) -> Any:
    arrays, beside, y, tape, wanted = saved
    dy, *dfinals = [None if isinstance(flow, SymbolicZero) else flow for flow in flows]
    given = {"y": y, "tape": tape, "dy": jnp.zeros_like(y) if dy is None else dy}
    for name, flow in zip(CELLS[options[0]].state_names, dfinals, strict=True):
        if flow is not None:
            given[f"d{name}"] = flow
    named = zip(options[2], arrays, wanted, strict=True)
    shapes = {name: array.shape for name, array, want in named if want is not None}
    found = _called("backward", options, tuple(given), shapes, (*arrays, *beside, *given.values()))
    grads = dict(zip(shapes, found, strict=True))
    return tuple([grads.get(name) for name in options[2]]), (None,) * len(beside)


# What nobody asks for is not computed, such as the gradient of x where x comes from no parameters.
_network.defvjp(_network_forward, _network_backward, symbolic_zeros=True)


def _outputs(options: Options, arrays: Arrays) -> dict[str, Any]:
    """The shapes of y and of the final states."""
    x, spec = arrays[0], CELLS[options[0]]
    states = dict(zip(spec.state_names, [state.shape for state in arrays[1 : 1 + spec.states]], strict=True))
    return {"y": (*x.shape[:2], arrays[1].shape[1]), **states}


def _tape_size(options: Options, arrays: Arrays) -> Any:
    """Elements of a tape at most: full lengths, the widest vectors; so that a program runs on every CPU."""
    x, named = arrays[0], dict(zip(options[2], arrays, strict=True))
    hidden, item = named["weight_ih"].shape[0] // CELLS[options[0]].gates, x.dtype.itemsize
    row = _core.tape_row_bytes(options[0], hidden, "weight_hr" in named, item, False)
    return (_core.TAPE_LABEL_BYTES + x.shape[0] * x.shape[1] * row) // item


def _called(
    kind: str, options: Options, after: tuple[str, ...], shapes: dict[str, Any], given: Arrays
) -> Arrays:
    """Return results of these names and shapes; `after` are the names of the last given arrays."""
    cell, reverse, *names = options
    text = host.call_text(kind, cell, reverse, (*names[0], *names[1], *after), tuple(shapes))
    results = tuple([jax.ShapeDtypeStruct(shape, given[0].dtype) for shape in shapes.values()])
    found: Arrays = jax.ffi.ffi_call(_TARGET, results, vmap_method="expand_dims")(*given, call=text)
    return found


_TARGET = "fusedrnn_network"
jax.ffi.register_ffi_target(_TARGET, _core.xla_handler(host.run), platform="cpu")
