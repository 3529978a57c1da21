"""JAX on the CPU: one product for all inputs, lax.scan over time, all under jit; training through vjp."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from problems import Array, LayerProblem, Problem, StreamProblem

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def available() -> bool:
    """Whether jax is installed."""
    return importlib.util.find_spec("jax") is not None


def version() -> str:
    """Version of jax."""
    import jax

    return str(jax.__version__)


def set_threads(n: int) -> None:
    """Use n threads; XLA reads these variables when jax starts. Calls run in the calling thread."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["NPROC"] = str(n)
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'true' if n > 1 else 'false'}"
    import jax

    # A call of a few microseconds is over before a dispatching thread would wake up.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def supports(problem: Problem, mode: str) -> bool:
    """Single layers over whole sequences."""
    return isinstance(problem, LayerProblem) and not isinstance(problem, StreamProblem)


def setup(problem: LayerProblem, mode: str) -> Any:
    """A run of the problem."""
    return Forward(problem) if mode == "forward" else Training(problem)


def cell_step(cell: str) -> Callable[..., Any]:
    """One step: (state, gx, gh) -> state, h first; gx and gh are the gates' input and recurrent parts."""
    import jax
    import jax.numpy as jnp

    def lstm(state: Any, gx: Any, gh: Any) -> Any:
        i, f, g, o = jnp.split(gx + gh, 4, axis=-1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(state: Any, gx: Any, gh: Any) -> Any:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(gx, 3, axis=-1), jnp.split(gh, 3, axis=-1)
        r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * h_n)
        return (n + z * (state[0] - n),)

    def rnn_tanh(state: Any, gx: Any, gh: Any) -> Any:
        return (jnp.tanh(gx + gh),)

    return {"lstm": lstm, "gru": gru, "rnn_tanh": rnn_tanh}[cell]


def layer(cell: str) -> Callable[..., Any]:
    """The function from weights (I, G*H) and (H, G*H), as JAX keeps them, biases and x to y."""
    import jax.numpy as jnp
    from jax import lax

    step = cell_step(cell)

    def run(w: Any, u: Any, b_ih: Any, b_hh: Any, x: Any) -> Any:
        # Only GRU needs the recurrent bias inside the loop.
        outside, inside = (b_ih, b_hh) if cell == "gru" else (b_ih + b_hh, 0.0)

        def scanned(state: Any, gx: Any) -> Any:
            state = step(state, gx, state[0] @ u + inside)
            return state, state[0]

        zero = jnp.zeros((x.shape[1], u.shape[0]), x.dtype)
        return lax.scan(scanned, (zero, zero) if cell == "lstm" else (zero,), x @ w + outside)[1]

    return run


class Forward:
    """Inference of one layer."""

    def __init__(self, problem: LayerProblem) -> None:
        import jax

        data = problem.data()
        arrays = [data[name].T.copy() for name in PARAMETERS] + [data["x"]]
        self.arguments = [jax.device_put(array) for array in arrays]
        self.dy = jax.device_put(data["dy"])
        self.run = jax.jit(layer(problem.cell))

    def call(self) -> None:
        """What is timed."""
        self.y = self.run(*self.arguments).block_until_ready()

    def output(self) -> dict[str, Array]:
        """y."""
        self.call()
        return {"y": np.array(self.y)}


class Training(Forward):
    """Forward and backward of one layer, every gradient."""

    def __init__(self, problem: LayerProblem) -> None:
        super().__init__(problem)
        import jax

        self.wait = jax.block_until_ready
        run = layer(problem.cell)

        def train(dy: Any, *arguments: Any) -> Any:
            y, pull_back = jax.vjp(run, *arguments)
            return y, pull_back(dy)

        self.train = jax.jit(train)

    def call(self) -> None:
        """What is timed."""
        self.y, self.grads = self.wait(self.train(self.dy, *self.arguments))

    def output(self) -> dict[str, Array]:
        """y and the gradients of x, every weight and bias."""
        self.call()
        *grads, dx = (np.array(grad) for grad in self.grads)
        return {"y": np.array(self.y), "dx": dx, **{k: g.T for k, g in zip(PARAMETERS, grads, strict=True)}}
