"""Equinox's cells over sequences."""

from __future__ import annotations

from typing import Any

import equinox
import jax.numpy as jnp

from fusedrnn.interop.jax.layers import gru, lstm

__all__ = ["RNN"]


class RNN(equinox.Module):
    """A cell of Equinox over a sequence, in one call of the kernels: what `jax.lax.scan` of it computes.

    The parameters are the cell's own. As of `fusedrnn.jax.lstm`, there is no forward mode, no second
    derivative and no GPU. Give x a batch of its own where there is one, which is faster than `jax.vmap`.

    Args:
        cell: `equinox.nn.LSTMCell` or `equinox.nn.GRUCell`.
        reverse: run from the last step to the first.

    Raises:
        TypeError: the cell is another one.
    """

    cell: Any
    reverse: bool = equinox.field(static=True)

    def __init__(self, cell: Any, *, reverse: bool = False) -> None:
        if not isinstance(cell, equinox.nn.LSTMCell | equinox.nn.GRUCell):
            raise TypeError(
                f"cell: expected equinox.nn.LSTMCell or GRUCell, got {type(cell).__name__}; "
                "see fusedrnn.jax for functions"
            )
        self.cell, self.reverse = cell, reverse

    def __call__(
        self, x: Any, state: Any = None, *, lengths: Any = None, resets: Any = None, key: Any = None
    ) -> tuple[Any, Any]:
        """Run the cell over x.

        Args:
            x: (T, I), or (T, B, I) for B sequences.
            state: the cell's: h (H,) or (B, H), of an LSTMCell (h, c); None for zeros.
            lengths: () or (B,) of an integer dtype; y is 0 past the end.
            resets: (T,) or (T, B) bool; where true, the state is zero before step t reads it.
            key: ignored, as by other layers.

        Returns:
            y (T, H) or (T, B, H), all of the cell's h, and the final state.

        Raises:
            TypeError, ValueError, RuntimeError: see `fusedrnn.jax.lstm`.
        """
        cell, one = self.cell, jnp.ndim(x) == 2

        def batched(array: Any, axis: int) -> Any:
            return jnp.expand_dims(array, axis) if one and array is not None else array

        params = {"weight_ih": cell.weight_ih, "weight_hh": cell.weight_hh}
        if cell.use_bias:
            params["bias_ih"] = cell.bias
        options = {
            "lengths": batched(lengths, 0),
            "resets": batched(resets, 1),
            "reverse": self.reverse,
        }
        x = batched(x, 1)
        if isinstance(cell, equinox.nn.LSTMCell):
            if state is not None:
                state = tuple([batched(part, 0) for part in state])
            y, final = lstm(x, params, state, **options)
            return (y[:, 0], tuple([part[0] for part in final])) if one else (y, final)
        if cell.use_bias:
            # Its bias of h is that of the candidate alone.
            params["bias_hh"] = jnp.concatenate([jnp.zeros_like(cell.bias[: -cell.hidden_size]), cell.bias_n])
        y, h = gru(x, params, batched(state, 0), **options)
        return (y[:, 0], h[0]) if one else (y, h)
