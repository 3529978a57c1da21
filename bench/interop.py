#!/usr/bin/env python3
"""Time fusedrnn inside of JAX and PyTorch beside what these have: lax.scan and cells of one step.

Processor time of one thread, medians of samples in turn, after outputs and gradients were compared:
`python bench/interop.py jax` or `torch`.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from problems import LayerProblem
from run import pin

ROUNDS = 21
CELLS = {"lstm": "LSTMCell", "gru": "GRUCell", "rnn_tanh": "RNNCell"}
SHAPES = {
    "jax": ((100, 1, 64), (128, 16, 64), (100, 32, 128)),
    "torch": ((100, 1, 8), (100, 1, 64), (100, 32, 128), (100, 64, 512)),
}
# Of the largest element; the sums of gradients have T * B terms in float32.
TOLERANCE = 1e-4
Call = Callable[[], list[Any]]


def compared(label: str, ours: Call, theirs: Call) -> None:
    """Print the times of both and their ratio, if their results agree."""
    for got, want in zip(ours(), theirs(), strict=True):
        error = np.abs(np.asarray(got) - np.asarray(want)).max()
        assert error <= TOLERANCE * max(1.0, np.abs(np.asarray(want)).max()), f"{label}: off by {error}"
    times: dict[Call, list[float]] = {ours: [], theirs: []}
    for _ in range(ROUNDS):
        for call, samples in times.items():
            start = time.process_time()
            call()
            samples.append(1e3 * (time.process_time() - start))
    ms, other = (statistics.median(samples) for samples in times.values())
    print(f"{label:34} {ms:8.2f} ms, beside {other:8.2f}: {other / ms:5.2f} times as fast", flush=True)


def in_jax(problem: LayerProblem) -> None:
    """A jitted layer, and the same with the gradients of its parameters."""
    import jax
    from peers import jax_

    import fusedrnn.jax as fj

    data = problem.data()
    x, dy = jax.device_put(data["x"]), jax.device_put(data["dy"])
    weights = [jax.device_put(data[name]) for name in jax_.PARAMETERS]
    turned = [jax.device_put(data[name].T.copy()) for name in jax_.PARAMETERS]
    scan, ours = jax_.layer(problem.cell), getattr(fj, problem.cell.removesuffix("_tanh"))
    runs = (lambda params: ours(x, params)[0], weights), (lambda params: scan(*params, x), turned)

    def forward(run: Any, params: Any) -> Call:
        jitted = jax.jit(run)
        return lambda: [jax.block_until_ready(jitted(params))]

    def training(run: Any, params: Any) -> Call:
        jitted = jax.jit(jax.value_and_grad(lambda params: (run(params) * dy).sum()))

        def call() -> list[Any]:
            value, grads = jax.block_until_ready(jitted(params))
            return [value, *(grads if params is weights else [grad.T for grad in grads])]

        return call

    where = f"{problem.cell} {problem.seq_len, problem.batch, problem.hidden_size}"
    compared(f"{where} forward", *(forward(*run) for run in runs))
    compared(f"{where} value_and_grad", *(training(*run) for run in runs))


def in_torch(problem: LayerProblem) -> None:
    """A loop over the steps with a cell, and the same with the gradients of its parameters."""
    import torch

    import fusedrnn.torch as ft

    data = problem.data()
    x, dy = torch.from_numpy(data["x"]), torch.from_numpy(data["dy"])
    kind, several = CELLS[problem.cell], problem.cell == "lstm"
    state_dict = {name[:-3]: torch.from_numpy(a) for name, a in data.items() if name.endswith("_l0")}

    def calls(module: Any) -> tuple[Call, Call]:
        cell = getattr(module, kind)(problem.input_size, problem.hidden_size)
        cell.load_state_dict(state_dict)

        def run() -> Any:
            state, y = None, []
            for step in x:
                state = cell(step, state)
                y.append(state[0] if several else state)
            return torch.stack(y)

        def forward() -> list[Any]:
            with torch.no_grad():
                return [run()]

        return forward, lambda: list(torch.autograd.grad(run(), list(cell.parameters()), dy))

    where = f"{kind} {problem.seq_len, problem.batch, problem.hidden_size}"
    for label, ours, theirs in zip(("forward", "training"), calls(ft), calls(torch.nn), strict=True):
        compared(f"{where} {label}", ours, theirs)


def main() -> None:
    """Run over the cells and shapes of one library."""
    (library,) = sys.argv[1:]
    pin(1)
    if library == "jax":
        from peers import jax_ as peer
    else:
        from peers import torch_ as peer
    peer.set_threads(1)
    for cell in CELLS:
        for seq_len, batch, size in SHAPES[library]:
            problem = LayerProblem(cell, seq_len, batch, size, size)
            {"jax": in_jax, "torch": in_torch}[library](problem)


if __name__ == "__main__":
    main()
