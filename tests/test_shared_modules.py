"""One module in several threads, signal handlers and children of fork: gradients of all add up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import assert_ran, in_threads, num_threads, run_python

import fusedrnn as fr

# Backward passes of small integers or of one value over and over: sums are exact in any order.
TURNS, THREADS = 200, 4


def of_linear() -> tuple[Any, Callable[[], None]]:
    module = fr.Linear(256, 256, dtype="float64", seed=0)
    y, tape = module.forward(np.ones((2, 256)))
    dy = np.ones_like(y)
    return module, lambda: module.backward(tape, dy)


def of_layer_norm() -> tuple[Any, Callable[[], None]]:
    module = fr.LayerNorm(20000, dtype="float64")
    y, tape = module.forward(np.ones((2, 20000)))
    dy = np.ones_like(y)
    return module, lambda: module.backward(tape, dy)


def of_embedding() -> tuple[Any, Callable[[], None]]:
    module = fr.Embedding(2, 64, dtype="float64", seed=0)
    y, tape = module.forward(np.arange(2000) % 2)
    dy = np.ones_like(y)
    return module, lambda: module.backward(tape, dy)


def of_lookup() -> tuple[Any, Callable[[], None]]:
    module = fr.Embedding(400, 400, dtype="float64", seed=0)
    tokens, dy = module.lookup(np.arange(800) % 400), np.ones((400, 400))
    return module, lambda: module.backward(tokens, dy)


def of_cell() -> tuple[Any, Callable[[], None]]:
    module = fr.RNNCell(64, 64, nonlinearity="relu", dtype="float64", seed=0)
    module.flat_parameters[:] = 1.0
    state, tape = module.forward(np.ones((8, 64)))
    dstate = np.ones_like(state)
    return module, lambda: module.backward(tape, dstate)


def of_network(**options: Any) -> tuple[Any, Callable[[], None]]:
    module = fr.RNN(8, 64, nonlinearity="relu", dtype="float64", seed=0, **options)
    module.flat_parameters[:] = 0.0
    for name, bias in module.parameters.items():
        if name.startswith("bias"):
            bias[...] = 1.0
    y, _, tape = module.forward(np.ones((3, 8, 8)))
    dy = np.ones_like(y)
    return module, lambda: module.backward(tape, dy)


KINDS: dict[str, Callable[[], tuple[Any, Callable[[], None]]]] = {
    "linear": of_linear,
    "layer_norm": of_layer_norm,
    "embedding": of_embedding,
    "lookup": of_lookup,
    "cell": of_cell,
    "layer": of_network,
    "stack": lambda: of_network(num_layers=2, bidirectional=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_threads_add_up(kind: str) -> None:
    module, backward = KINDS[kind]()
    backward()
    want = module.flat_grads * (TURNS * THREADS)
    assert want.any()
    module.zero_grad()
    start = threading.Barrier(THREADS)

    def work() -> None:
        start.wait()
        for _ in range(TURNS):
            backward()

    with num_threads(1):
        in_threads(work, THREADS)
    assert np.array_equal(module.flat_grads, want)


HANDLER = """
import signal
import numpy as np
import fusedrnn as fr

fr.set_num_threads(1)
lstm = fr.LSTM(64, 128, 2, seed=0)
y, _, tape = lstm.forward(np.ones((400, 16, 64), "float32"))
dy = np.ones_like(y)
lstm.backward(tape, dy)
want = lstm.flat_grads.copy()
lstm.zero_grad()
errors = []

def handler(*_):
    try:
        lstm.backward(tape, dy)
    except RuntimeError as error:
        errors.append(str(error))

signal.signal(signal.SIGALRM, handler)
count = 0
while not errors:
    lstm.zero_grad()
    signal.setitimer(signal.ITIMER_REAL, 0.005)
    lstm.backward(tape, dy)
    signal.setitimer(signal.ITIMER_REAL, 0)
    count += 1
    assert count < 60
assert errors[0].startswith("backward: expected no call inside backward of the same module"), errors
assert np.array_equal(lstm.flat_grads, want)
lstm.zero_grad()
lstm.backward(tape, dy)
assert np.array_equal(lstm.flat_grads, want)
"""

FORK = """
import os, signal, threading
import numpy as np
import fusedrnn as fr

linear = fr.Linear(200, 200, seed=0)
y, tape = linear.forward(np.ones((64, 200), "float32"))
dy = np.ones_like(y)
stop = threading.Event()

def work():
    while not stop.is_set():
        linear.backward(tape, dy)

thread = threading.Thread(target=work)
thread.start()
failed = []
for _ in range(60):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        linear.zero_grad()
        linear.backward(tape, dy)
        os._exit(0 if linear.grads["bias"].min() == linear.grads["bias"].max() == 64 else 3)
    status = os.waitpid(child, 0)[1]
    if status:
        failed.append(status)
stop.set()
thread.join()
assert not failed, failed
"""


def test_a_signal_handler_gets_an_error() -> None:
    """backward inside backward of one module is refused, and the one that was interrupted is right."""
    assert_ran(run_python("-c", HANDLER))


def test_children_of_fork_take_their_turn() -> None:
    """Whoever held the module's turn in the parent."""
    assert_ran(run_python("-c", FORK))
