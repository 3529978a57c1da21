"""Recurrent layers as functions that JAX transforms; `fusedrnn.jax` is the public name."""

from fusedrnn.interop.jax.layers import gru, lstm, rnn

__all__ = ["gru", "lstm", "rnn"]


def __dir__() -> list[str]:
    return __all__
