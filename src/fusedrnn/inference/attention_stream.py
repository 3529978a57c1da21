"""AttentionStream: attention of one step at a time, with the keys and values of those before in a ring."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.backend import CPU
from fusedrnn.checks import check_array
from fusedrnn.compute import rounded
from fusedrnn.inference.stream import Resettable
from fusedrnn.inputs.rows import as_rows, check_floats
from fusedrnn.nn.activations import softmax

# Rows from which on it pays to pack a weight, as the kernel does.
_PACKED = 8


class AttentionState(NamedTuple):
    """What an `AttentionStream` remembers.

    Attributes:
        keys: (B, num_heads, max_len, E / num_heads).
        values: in the shape of keys.
        seen: (B,) int64, the steps of each sequence; step t lies at place t % max_len.
    """

    keys: Array
    values: Array
    seen: npt.NDArray[np.int64]


class AttentionStream(Resettable):
    """A causal `SelfAttention` one step at a time: `y_t = step(x_t)`; made by `attention.stream()`.

    A step looks at itself and the max_len - 1 steps before it: up to max_len steps y is, but for rounding,
    what the call over the whole sequence gives, later the oldest step makes room for the newest. A step costs
    two products with the keys and values held, whatever came before them. The weights are copied when the
    stream is made; after they change, call `refresh`. A stream serves one thread at a time.

    Attributes:
        batch_size: B.
        max_len: how many steps are held.
    """

    __slots__ = ("_module", "_state", "_weights", "max_len")
    _weights: list[Any]

    def __init__(self, module: Any, batch_size: int, max_len: int) -> None:
        self._module, self.batch_size, self.max_len = module, batch_size, max_len
        heads, width = module.num_heads, module.embed_dim // module.num_heads
        keys, values = (np.zeros((batch_size, heads, max_len, width), module.dtype) for _ in range(2))
        self._state = AttentionState(keys, values, np.zeros(batch_size, np.int64))
        self.refresh()

    def __call__(self, x: Array) -> Array:
        """Advance by one step; return y in the shape of x.

        Args:
            x: (B, E), or (E,) if batch_size is 1; of the module's dtype.

        Raises:
            TypeError: x is not an array of the module's dtype.
            ValueError: x has another shape.
        """
        keys, values, seen = self._state
        size, batch = self._module.embed_dim, self.batch_size
        check_floats("x", x, keys.dtype)
        if x.shape != (batch, size) and not (batch == 1 and x.shape == (size,)):
            bare = " or (E,)" if batch == 1 else ""
            raise ValueError(f"x: expected shape (B, E) = ({batch}, {size}){bare}, got {x.shape}")
        weight, bias, out_weight, out_bias = self._weights
        compute = self._module.compute
        products = _product(as_rows("x", x, (size,), CPU), weight, bias, compute)
        q, k, v = products.reshape(batch, 3, *keys.shape[1::2]).swapaxes(0, 1)
        rows, places = np.arange(batch), seen % self.max_len
        keys[rows, :, places], values[rows, :, places] = rounded(k, compute), rounded(v, compute)
        seen += 1
        held = min(int(seen.max(initial=0)), self.max_len)
        # Sums of einsum, which do not depend on threads as those of a BLAS may.
        q = rounded(q * q.dtype.type(self._module._scale), compute)
        scores = np.einsum("bhd,bhsd->bhs", q, keys[:, :, :held])
        if seen.min(initial=held) < held:
            # Of sequences that began later, places that are still empty.
            scores[np.broadcast_to(np.arange(held) >= seen[:, None, None], scores.shape)] = -np.inf
        attention = rounded(softmax(scores, -1), compute)
        context = np.einsum("bhs,bhsd->bhd", attention, values[:, :, :held]).reshape(batch, size)
        return _product(context, out_weight, out_bias, compute).reshape(x.shape)

    def _reset(self, rows: npt.NDArray[np.int64] | None) -> None:
        if rows is not None and len(rows) and not 0 <= rows.min() <= rows.max() < self.batch_size:
            raise ValueError(f"rows: expected values in [0, B) = [0, {self.batch_size}), got {rows}")
        # Zeros, as 0 times a NaN that is left behind would be none.
        for array in self._state:
            array[... if rows is None else rows] = 0

    @property
    def state(self) -> AttentionState:
        """A copy of what is remembered; can be set."""
        return AttentionState(*[array.copy() for array in self._state])

    @state.setter
    def state(self, value: AttentionState) -> None:
        own = self._state
        if not isinstance(value, tuple) or len(value) != len(own):
            raise TypeError(f"state: expected an AttentionState, got {type(value).__name__}")
        for name, array, given in zip(own._fields, own, value, strict=True):
            check_array(f"state.{name}", given, array.shape, array.dtype)
        if (value[2] < 0).any():
            raise ValueError(f"state.seen: expected numbers >= 0, got {value[2].min()}")
        for array, given in zip(own, value, strict=True):
            array[...] = given

    def refresh(self) -> None:
        """Read the module's weights again; the state stays."""
        inner, outer = self._module._own, self._module.out_proj._own
        found = [
            *(inner["in_proj_weight"], inner.get("in_proj_bias")),
            *(outer["weight"], outer.get("bias")),
        ]
        self._weights = [None if array is None else array.copy() for array in found]

    def __repr__(self) -> str:
        return f"AttentionStream({self._module!r}, batch_size={self.batch_size}, max_len={self.max_len})"


def _product(rows: Array, weight: Array, bias: Array | None, compute: str) -> Array:
    """Return rows weight^T + bias, of few rows without a packed copy of the weight."""
    y: Array
    if len(rows) >= _PACKED or compute != "float32":
        y = CPU.kernels.linear_forward(rows, weight, bias, compute=compute)
        return y
    y = np.einsum("bi,oi->bo", rows, weight)
    return y if bias is None else np.add(y, bias, out=y)
