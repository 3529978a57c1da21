"""Of sequence_suite.py: decoders with attention, beside a loop over the steps in torch and a scan in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from peers import jax_

import fusedrnn as fr

Call = Callable[[], dict[str, Any]]
LUONG: dict[str, Any] = {"score": "general", "query": "current", "input_feeding": True}


def decoder(
    cell: str, steps: int, batch: int, source: int, size: int, luong: bool = False
) -> tuple[dict[str, Call], float, float]:
    """The calls, multiply-adds and exponentials of a training step of a decoder: Bahdanau's, or Luong's.

    Luong's has the general score, the query after the step, and its output fed to the next.
    """
    import torch

    rng = np.random.default_rng(0)
    x, flow = (rng.standard_normal((steps, batch, size), dtype=np.float32) for _ in range(2))
    memory = rng.standard_normal((source, batch, size), dtype=np.float32)
    own = fr.AttentionDecoder(cell, size, size, size, seed=0, **(LUONG if luong else {}))
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in own.state_dict().items()}
    other = (torch.nn.GRUCell if cell == "gru" else torch.nn.LSTMCell)(2 * size, size)
    for name, parameter in other.named_parameters():
        parameter.data = weights[f"{name}_l0"].detach()
    tx, tm = (torch.tensor(array, requires_grad=True) for array in (x, memory))
    tflow = torch.tensor(flow)

    def ours() -> dict[str, Any]:
        own.zero_grad()
        _, _, _, tape = own.forward(x, memory)
        dx, dmemory, _ = own.backward(tape, flow)
        return {"dx": dx, "dmemory": dmemory, "weights": own.grads["weight_memory"]}

    def theirs() -> dict[str, Any]:
        for tensor in (tx, tm, *weights.values()):
            tensor.grad = None
        other.zero_grad()
        rows = tm.transpose(0, 1)
        keys = torch.nn.functional.linear(rows, weights["weight_memory"], weights.get("bias_memory"))
        h = c = y = torch.zeros(batch, size)
        outputs = []

        def context() -> Any:
            if luong:
                energies = torch.bmm(keys, h[..., None])[..., 0]
            else:
                query = torch.nn.functional.linear(h, weights["weight_query"])
                energies = torch.tanh(keys + query[:, None]) @ weights["weight_energy"]
            return torch.bmm(torch.softmax(energies, 1)[:, None], rows)[:, 0]

        for t in range(steps):
            inputs = torch.cat([tx[t], y if luong else context()], 1)
            h, c = (other(inputs, h), c) if cell == "gru" else other(inputs, (h, c))
            y = h
            if luong:
                joined = torch.cat([context(), h], 1)
                y = torch.tanh(torch.nn.functional.linear(joined, weights["weight_output"]))
            outputs.append(y)
        torch.stack(outputs).backward(tflow)
        key_gradient = weights["weight_memory"].grad
        return {"dx": tx.grad.numpy(), "dmemory": tm.grad.numpy(), "weights": key_gradient.numpy()}

    gates = 3 if cell == "gru" else 4
    extra = 2 if luong else 1
    products = steps * batch * size * (size * (3 * gates + extra) + source) + batch * source * size * size
    # tanh once forward and once backward, of an output alone where the score is a product.
    exponentials = steps * batch * size if luong else 2 * steps * batch * source * size
    calls: dict[str, Call] = {"fusedrnn": ours, "torch": theirs}
    if jax_.available():
        calls["jax"] = by_scan(cell, own.state_dict(), x, memory, flow, luong)
    return calls, 3 * products / 2, exponentials / 8


def by_scan(cell: str, weights: dict[str, Any], x: Any, memory: Any, flow: Any, luong: bool) -> Call:
    """A training step of it in JAX: keys and inputs are projected before the scan, all under jit."""
    import jax
    import jax.numpy as jnp

    size = x.shape[2]
    step = jax_.cell_step(cell)

    def run(x: Any, rows: Any, p: dict[str, Any]) -> Any:
        keys = rows @ p["weight_memory"] + p.get("bias_memory", 0.0)
        inputs = x @ p["weight_ih_l0"][:size] + p["bias_ih_l0"]

        def context(h: Any) -> Any:
            if luong:
                energies = jnp.einsum("bsh,bh->bs", keys, h)
            else:
                energies = jnp.tanh(keys + (h @ p["weight_query"])[:, None]) @ p["weight_energy"]
            return jnp.einsum("bs,bsm->bm", jax.nn.softmax(energies, 1), rows)

        def advance(carry: Any, gx: Any) -> Any:
            state, y = carry
            fed = y if luong else context(state[0])
            gh = state[0] @ p["weight_hh_l0"] + p["bias_hh_l0"]
            state = step(state, gx + fed @ p["weight_ih_l0"][size:], gh)
            y = state[0]
            if luong:
                y = jnp.tanh(jnp.concatenate([context(y), y], 1) @ p["weight_output"])
            return (state, y), y

        zero = jnp.zeros((x.shape[1], size), x.dtype)
        state = (zero, zero) if cell == "lstm" else (zero,)
        return jax.lax.scan(advance, (state, zero), inputs)[1]

    @jax.jit
    def train(x: Any, memory: Any, p: dict[str, Any], flow: Any) -> Any:
        _, pullback = jax.vjp(lambda x, m, p: run(x, m.swapaxes(0, 1), p), x, memory, p)
        return pullback(flow)

    # Transposed weights are faster: for one row more than twice.
    given = [
        jax.device_put(value) for value in (x, memory, {k: v.T.copy() for k, v in weights.items()}, flow)
    ]

    def theirs() -> dict[str, Any]:
        dx, dmemory, grads = jax.block_until_ready(train(*given))
        return {
            "dx": np.asarray(dx),
            "dmemory": np.asarray(dmemory),
            "weights": np.asarray(grads["weight_memory"]).T,
        }

    return theirs
