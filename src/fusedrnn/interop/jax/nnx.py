"""Flax's cells over sequences."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fusedrnn.interop.jax.layers import gru, lstm, rnn

__all__ = ["RNN"]


class RNN(nnx.RNN):
    """`flax.nnx.RNN` whose steps are one call of the kernels, with its constructor, parameters and results.

    As of `fusedrnn.jax.lstm`, there is no forward mode, no second derivative and no GPU. `unroll`,
    `state_axes` and `broadcast_rngs` say nothing here. Where `seq_lengths` are given, outputs past
    the end are 0.

    Args:
        cell: `nnx.LSTMCell`, `OptimizedLSTMCell`, `GRUCell` or `SimpleCell`, with their usual activations (of
            a SimpleCell also relu), without residual.
        options: as of `flax.nnx.RNN`: time_major, return_carry, reverse, keep_order, rngs.

    Raises:
        TypeError: the cell is another one.
        ValueError: it has another activation, or a residual.
    """

    def __init__(self, cell: Any, **options: Any) -> None:
        _parameters(cell)
        super().__init__(cell, **options)

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """Run the cell over a batch of sequences.

        Args:
            inputs: (B, T, I), with time_major (T, B, I); more axes of the batch, or none, are taken too.
            initial_carry: the cell's: (c, h) of an LSTM, h of the others; None for zeros, or what the cell's
                carry_init makes.
            seq_lengths: (B,) of an integer dtype.
            return_carry, time_major, reverse, keep_order, rngs: as of `flax.nnx.RNN`.

        Returns:
            The outputs, with return_carry the final carry before them.

        Raises:
            TypeError, ValueError, RuntimeError: see `fusedrnn.jax.lstm`.
        """
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        function, params = _parameters(self.cell)
        x = inputs if time_major else jnp.moveaxis(inputs, -2, 0)
        batch = x.shape[1:-1]
        if initial_carry is None and self.cell.carry_init is not None:
            source = self.rngs if rngs is None else rngs
            if isinstance(source, nnx.Rngs):
                source = source.carry.fork()
            initial_carry = self.cell.initialize_carry((*batch, x.shape[-1]), source)
        carry = jax.tree.map(lambda part: part.reshape(-1, part.shape[-1]), initial_carry)
        lengths = None if seq_lengths is None else jnp.reshape(seq_lengths, -1)
        # (c, h) there, (h, c) here.
        state = carry[::-1] if isinstance(carry, tuple) else carry
        flat = x.reshape(x.shape[0], -1, x.shape[-1])
        y, final = function(flat, params, state, lengths=lengths, reverse=reverse)
        final = final[::-1] if isinstance(final, tuple) else final
        if reverse and not keep_order:
            # In the order in which the steps ran.
            steps, ends = jnp.arange(y.shape[0])[:, None], y.shape[0] if lengths is None else lengths
            order = jnp.where(steps < ends, ends - 1 - steps, steps)
            y = jnp.take_along_axis(y, jnp.broadcast_to(order, y.shape[:2])[..., None], 0)
        y = y.reshape(-1, *batch, y.shape[-1])
        y = y if time_major else jnp.moveaxis(y, 0, -2)
        final = jax.tree.map(lambda part: part.reshape(*batch, part.shape[-1]), final)
        return (final, y) if (self.return_carry if return_carry is None else return_carry) else y


def _parameters(cell: Any) -> tuple[Any, dict[str, Any]]:
    """The function that runs a cell, and its parameters in our names and orders."""
    kinds = (nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell)
    if type(cell) not in kinds:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"cell: expected one of nnx's {names}, got {type(cell).__name__}")
    usual = [("activation_fn", nnx.tanh), ("gate_fn", nnx.sigmoid)][
        : 1 if type(cell) is nnx.SimpleCell else 2
    ]
    relu = type(cell) is nnx.SimpleCell and cell.activation_fn is nnx.relu
    for name, function in usual:
        if getattr(cell, name) is not function and not relu:
            raise ValueError(f"{name}: expected {function.__name__}, got {getattr(cell, name)}")
    if getattr(cell, "residual", False):
        raise ValueError("residual: expected False, got True")
    inputs: tuple[Any, ...]
    hidden: tuple[Any, ...]
    if type(cell) is nnx.LSTMCell:
        inputs, hidden = (cell.ii, cell.if_, cell.ig, cell.io), (cell.hi, cell.hf, cell.hg, cell.ho)
    else:
        inputs, hidden = (cell.dense_i,), (cell.dense_h,)
    params = {
        "weight_ih": jnp.concatenate([part.kernel[...] for part in inputs], -1).T,
        "weight_hh": jnp.concatenate([part.kernel[...] for part in hidden], -1).T,
    }
    # One bias each: of h in LSTMs, of x elsewhere.
    for name, parts in (("bias_ih", inputs), ("bias_hh", hidden)):
        if parts[0].bias is not None:
            params[name] = jnp.concatenate([part.bias[...] for part in parts])
    if type(cell) is nnx.SimpleCell:
        return (lambda *given, **more: rnn(*given, nonlinearity="relu" if relu else "tanh", **more)), params
    return (gru if type(cell) is nnx.GRUCell else lstm), params
