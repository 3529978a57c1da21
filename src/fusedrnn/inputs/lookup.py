"""Lookup: inputs that are rows of a table, as an embedding gives them, without a copy of the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array, as_array, refuse_mask
from fusedrnn.checks import as_indices, kind_error
from fusedrnn.cuda.libraries import is_device_array
from fusedrnn.listing import Listed

Indices = npt.NDArray[np.int64]
_ROWS_AT_ONCE = 4096


class TableOwner(Protocol):
    """A module whose weight is a table."""

    @property
    def parameters(self) -> Mapping[str, Array]: ...

    @property
    def _own(self) -> Mapping[str, Array]: ...


class Lookup(Listed):
    """x = table[indices], as input of RNN, LSTM, GRU and `functional.forward`.

    A recurrent layer multiplies each row of the table by W_ih once, instead of every place of the sequence,
    and adds up the gate gradients of equal indices before it multiplies them. Outputs are those of
    `table[indices]`, on the CPU bitwise; the gradient of x is that of the table.

    Args:
        table: (V, I), float32 or float64, or an array on a GPU of any dtype that layers take there. Referred
            to, not copied; that of an embedding is its weight, wherever that lies. A call that keeps a tape
            copies it into the tape, but on a GPU.
        indices: (T, B), laid out as the layer wants x, of an integer dtype, each in 0..V-1; copied.
        owner: the embedding whose weight the table is; `Embedding.lookup` gives it.

    Attributes:
        table, indices: as given, indices as int64 in host memory.
        shape, ndim, dtype: of table[indices].

    Raises:
        TypeError: table is not an array, or indices are not integers.
        ValueError: table has not two axes.
    """

    __slots__ = ("_owner", "_sizes", "_table", "indices")

    def __init__(self, table: Array, indices: npt.ArrayLike, *, owner: TableOwner | None = None) -> None:
        if not isinstance(table, np.ndarray) and not is_device_array(table):
            raise kind_error("table", table, "a numpy.ndarray")
        refuse_mask("table", table)
        if len(table.shape) != 2:
            raise ValueError(f"table: expected shape (V, I), got {tuple(table.shape)}")
        given = as_array(indices, "indices")
        self._table = table if owner is None else None
        self._sizes = int(table.shape[0]), int(table.shape[1])
        self.indices: Indices = np.array(as_indices("indices", given).reshape(given.shape))
        self._owner = owner

    @property
    def table(self) -> Array:
        """The array that rows are looked up in; that of an embedding as in its `parameters`."""
        return self._values if self._owner is None else self._owner.parameters["weight"]

    @property
    def _values(self) -> Array:
        """The table for the library's own eyes: whoever may write to it has to ask for `table`."""
        if self._table is None and self._owner is not None:
            return self._owner._own["weight"]
        return cast(Array, self._table)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of table[indices]."""
        return (*self.indices.shape, self._sizes[1])

    @property
    def ndim(self) -> int:
        """Axes of table[indices]."""
        return self.indices.ndim + 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The table's."""
        return self._values.dtype

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("copy: expected None or True: the rows are copied out of the table, got False")
        rows = self.rows()
        return rows if dtype is None else rows.astype(dtype, copy=False)

    def rows(self) -> Array:
        """Return table[indices] as a new NumPy array.

        Raises:
            TypeError: the table is not of float32 or float64.
            ValueError: an index outside 0..V-1, or the table has another shape by now.
        """
        self._check_shape()
        table = np.require(as_array(self._values), requirements=["C", "A"])
        if table.dtype not in (np.float32, np.float64):
            raise TypeError(f"table: expected float32 or float64, got {table.dtype}")
        return _core.embedding_forward(self.indices.reshape(-1), table).reshape(self.shape)

    def _check_shape(self) -> None:
        """Refuse a table whose shape was set since: rows would be of another size, or not there."""
        if tuple(self._values.shape) != self._sizes:
            raise ValueError(
                f"table: expected shape {self._sizes}, as when it was given, got {tuple(self._values.shape)}"
            )

    @property
    def _pays(self) -> bool:
        """Whether the table is so small beside the sequence that the CPU's kernels should look rows up."""
        return 2 * self._sizes[0] <= self.indices.size

    def _kept(self) -> Lookup:
        """Return this look-up as a tape keeps it: what is set on its arrays later does not reach the tape."""
        table = self._values
        if not isinstance(table, np.ndarray):
            return self
        other = Lookup.__new__(Lookup)
        other._table, other._sizes, other._owner = table.view(), self._sizes, self._owner
        # Where it pays, kernels have a copy of the indices.
        other.indices = self.indices.view() if self._pays else self.indices.copy()
        return other

    def _with_table(self, table: Array) -> Lookup:
        """Return the same lookup in another array of these rows."""
        other = Lookup(table, self.indices)
        other._owner = self._owner
        return other

    def _with_indices(self, indices: Indices) -> Lookup:
        """Return a look-up of other rows in the same table."""
        other = Lookup(self._values, indices)
        other._table, other._owner = self._table, self._owner
        return other

    def _table_gradient(self, drows: Array, out: Array | None = None) -> Array:
        """Return the gradient of the table (V, I) for that of table[indices], added to `out` if given."""
        gradient = np.zeros(self._values.shape, self._values.dtype) if out is None else out
        rows = np.ascontiguousarray(drows).reshape(-1, self._values.shape[1])
        indices = self.indices.reshape(-1)
        # A part at a time takes no memory to speak of: a recurrent layer has added gradients by now.
        for start in range(0, len(indices), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            _core.embedding_backward(indices[part], rows[part], gradient)
        return gradient

    def __repr__(self) -> str:
        return f"Lookup(table={tuple(self._values.shape)}, indices={self.indices.shape}, dtype={self.dtype})"


def array_of(x: Any) -> Any:
    """Return the array in device or host memory behind an input: x, or the table of a Lookup."""
    return x._values if isinstance(x, Lookup) else x


def is_table(x: Array | Lookup, on_gpu: bool = False) -> bool:
    """Return whether kernels take the table; those of a GPU always do, and decide what they multiply."""
    return isinstance(x, Lookup) and (on_gpu or x._pays)


def kernel_inputs(
    x: Array | Lookup, on_gpu: bool = False, keep: bool = False, as_rows: bool = False
) -> tuple[Array, Indices | None]:
    """Return x as kernels take it: an array and None, or, unless `as_rows`, a table and indices of its rows.

    For a tape (`keep`) the table is copied, since weights may change before backward; on a GPU they may not.
    """
    if not isinstance(x, Lookup):
        return x, None
    if as_rows or not is_table(x, on_gpu):
        return x.rows(), None
    x._check_shape()
    return (np.array(x._values, order="C") if keep and not on_gpu else x._values), x.indices


def kernel_gradient(x: Array | Lookup, dx: Array) -> Array:
    """Return the gradient of x from that of what `kernel_inputs` made of it on a CPU."""
    return x._table_gradient(dx) if isinstance(x, Lookup) and not is_table(x) else dx
