"""Tapes of `fusedrnn.functional`, and tapes in memory of a caller, who may copy, store and send them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn import _core, host_layer
from fusedrnn.arrays import Array, StateLike
from fusedrnn.cells import CellSpec, Weights, gather_weights, resolve_cell
from fusedrnn.checks import check_flag, check_size, kind_error, resolve_dtype
from fusedrnn.compute import check_compute, kernel_key
from fusedrnn.inputs.lookup import Lookup
from fusedrnn.inputs.masks import Packing
from fusedrnn.inputs.rows import check_floats
from fusedrnn.inputs.sequences import as_lengths
from fusedrnn.listing import Listed
from fusedrnn.nn.plan import check_projection
from fusedrnn.symbolic import DefinedCell

Params = Mapping[str, Array] | Sequence[Array | None]
Memory = npt.NDArray[np.uint8]


class FunctionalTape(Listed):
    """What `forward` keeps for `backward`; usable more than once.

    It refers to x, state and y, and on a GPU to the parameters, too: do not write to them before backward
    (`fusedrnn.set_detect_changes` finds where that happens on the CPU).

    Attributes:
        nbytes: bytes that stay allocated because of this tape alone, without the arrays the caller holds.
    """

    __slots__ = ("_layer", "_layers", "_names", "_packing", "_spec", "_x", "nbytes")

    def __init__(
        self,
        spec: CellSpec,
        x: Array | Lookup,
        layers: Any,
        layer: Any,
        names: list[str] | None,
        copied: int,
    ) -> None:
        self._packing: Packing | None = None
        self._spec = spec
        self._x = x
        self._layers = layers
        self._layer = layer
        self._names = names
        self.nbytes = layer.nbytes + copied

    def __repr__(self) -> str:
        layer = self._layer
        sizes = f"seq_len={layer.seq_len}, batch={layer.batch}, nbytes={self.nbytes}"
        return f"FunctionalTape({self._spec.label}, {sizes})"


def weights_of(spec: CellSpec, params: Params) -> tuple[Weights, list[str] | None]:
    """Return the parameters in the kernels' order, and their names if they were given by name."""
    names = spec.parameter_names
    required = [p.name for p in spec.parameters if p.need == "required"]
    if isinstance(params, Mapping):
        unknown = [name for name in params if name not in names]
        missing = [name for name in required if params.get(name) is None]
        if unknown or missing:
            raise ValueError(
                f"params: expected the names {', '.join(names)}, got others; "
                f"missing: {', '.join(missing) or 'none'}; "
                f"unexpected: {', '.join(map(str, unknown)) or 'none'}"
            )
        return gather_weights(spec, params), list(params)
    if not isinstance(params, Sequence) or isinstance(params, str):
        raise TypeError(f"params: expected a mapping or a sequence, got {type(params).__name__}")
    least = 1 + max(names.index(name) for name in required)
    if not least <= len(params) <= len(names):
        raise ValueError(f"params: expected {least} to {len(names)} arrays, got {len(params)}")
    return gather_weights(spec, dict(zip(names, params, strict=False))), None  # type: ignore[arg-type]


def tape_bytes(
    cell: str | CellSpec | DefinedCell,
    seq_len: int,
    batch_size: int,
    hidden_size: int,
    proj_size: int = 0,
    *,
    dtype: npt.DTypeLike = "float32",
    recompute: bool = False,
) -> int:
    """Return how many bytes of `tape_out` are enough for `forward`, on every CPU and with any lengths.

    Args:
        cell, recompute: as in the call of `forward`.
        seq_len: T >= 0.
        batch_size: B >= 0.
        hidden_size: H.
        proj_size: P, or 0 without weight_hr.
        dtype: of x, "float32" or "float64".

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, or an unknown cell.
    """
    spec = resolve_cell(cell)
    check_size("hidden_size", hidden_size)
    projected = check_projection(spec, proj_size, hidden_size) > 0
    rows = check_size("seq_len", seq_len, 0) * check_size("batch_size", batch_size, 0)
    item = resolve_dtype(dtype).itemsize
    row = _core.tape_row_bytes(spec.name, hidden_size, projected, item, check_flag("recompute", recompute))
    return _core.TAPE_LABEL_BYTES + rows * row


def tape_from_arrays(
    cell: str | CellSpec | DefinedCell,
    x: Array,
    params: Params,
    y: Array,
    tape: Memory,
    state: StateLike | None = None,
    lengths: npt.ArrayLike | None = None,
    resets: npt.NDArray[np.bool_] | None = None,
    reset_state: StateLike | None = None,
    *,
    reverse: bool = False,
    recompute: bool = False,
    compute: str | None = None,
) -> FunctionalTape:
    """Return the tape of an earlier call of `forward`, which need not have been in this process.

    Nothing runs again. The arrays are those of that call, or have their values, and are not written to; those
    of the tape must fit, and the CPU's instruction set be the same.

    Args:
        cell, x, params, state, lengths, resets, reset_state, reverse, recompute, compute: as in that call; x
            is no `Lookup`.
        y: (T, B, Hout), which it returned.
        tape: its tape_out, (n,) uint8, or the bytes of it as an array.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape, or a tape of another version of this library, another
            instruction set, or a call of other sizes, options or lengths.
    """
    spec = resolve_cell(cell)
    weights, names = weights_of(spec, params)
    if reset_state is not None and resets is None:
        raise ValueError("reset_state: expected None without resets")
    memory = as_elements("tape", tape, x)
    layer = _core.tape_from_arrays(
        kernel_key(spec, check_compute(compute, x.dtype)),
        x,
        weights,
        y,
        memory,
        None if state is None else spec.unpack_state("state", state),
        lengths=None if lengths is None else as_lengths(lengths),
        resets=resets,
        reset_state=None if reset_state is None else spec.unpack_state("reset_state", reset_state),
        reverse=check_flag("reverse", reverse),
        recompute=recompute,
    )
    return FunctionalTape(spec, x, host_layer, layer, names, 0)


def as_elements(name: str, given: Memory, x: Any) -> Array:
    """Return the memory that a caller has given for a tape as an array of x's dtype."""
    check_floats("x", x, None)
    if not isinstance(given, np.ndarray):
        raise kind_error(name, given, "a numpy.ndarray of uint8")
    if given.dtype != np.uint8:
        raise TypeError(f"{name}: expected uint8, got {given.dtype}; use {name}.view('uint8')")
    if given.ndim != 1 or not given.flags.c_contiguous:
        raise ValueError(f"{name}: expected shape (n,), C-contiguous, got {given.shape}")
    return given[: given.size - given.size % x.itemsize].view(x.dtype)
