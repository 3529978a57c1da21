"""A stream serves one use at a time, and what a caller does to its output array does not reach it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import assert_ran, in_threads, run_python

import fusedrnn as fr


def stream_of(weights: str, batch: int, hidden: int = 16, layers: int = 2) -> Any:
    module = fr.LSTM(4, hidden, layers, seed=0, init="torch")
    return (module if weights == "float32" else module.quantize(weights)).stream(batch)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_threads_do_not_meet(weights: str) -> None:
    """Each use is done whole or refused: the refused steps are those that are missing at the end."""
    step, x = stream_of(weights, 4, 256), np.ones((4, 4), np.float32)
    done, refused = [], []

    def use() -> None:
        for i in range(200):
            try:
                step(x)
                done.append(1)
                if i % 10 == 0:
                    assert step.state[0].shape == (2, 4, 256)
                    if weights == "float32":
                        step.refresh()
            except RuntimeError as error:
                refused.append(str(error))

    in_threads(use, 3)
    alone = stream_of(weights, 4, 256)
    for _ in done:
        alone(x)
    for got, want in zip(step.state, alone.state, strict=True):
        assert np.array_equal(got, want)
    assert all("expected one use at a time" in text for text in refused)


IN_A_HANDLER = """
import signal
import time
import numpy as np
from test_stream_users import stream_of

for weights in "float32", "int8":
    # The kernels look for signals 50 times a second: a step has to take longer than that, on any machine.
    for batch in 64, 256, 1024, 4096:
        step, x = stream_of(weights, batch, 512, 8), np.ones((batch, 4), "float32")
        step(x)
        begin = time.perf_counter()
        step(x)
        duration = time.perf_counter() - begin
        if duration > 0.06:
            break
    other = stream_of(weights, batch, 512, 8)
    other(x)
    seen = []

    def handle(number, frame):
        uses = [lambda: step(x), step.reset, lambda: step.state, lambda: setattr(step, "state", (None, None))]
        if weights == "float32":
            uses.append(step.refresh)
        for use in uses:
            try:
                use()
                seen.append("passed")
            except RuntimeError as error:
                seen.append(str(error)[:36])

    signal.signal(signal.SIGALRM, handle)
    # A signal that comes a little before or after the step finds the stream free.
    for attempt in range(200):
        step.reset()
        seen.clear()
        signal.setitimer(signal.ITIMER_REAL, duration / 10)
        step(x)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if set(seen) == {"stream: expected one use at a time, "}:
            break
    else:
        raise SystemExit(f"never in the middle: {seen}")
    for got, want in zip(step.state, other.state):
        assert np.array_equal(got, want)
"""


def test_a_signal_handler_in_the_middle_of_a_step() -> None:
    assert_ran(run_python("-c", IN_A_HANDLER))


AFTER_A_FORK = """
import os, threading
import numpy as np
from test_stream_users import stream_of

for weights in "float32", "int8":
    x = np.ones((256, 4), "float32")
    want = stream_of(weights, 256, 2048, 1)(x).copy()
    step = stream_of(weights, 256, 2048, 1)
    thread = threading.Thread(target=step, args=(x,))
    thread.start()
    while thread.is_alive():
        try:
            step.reset()
        except RuntimeError:
            break
    else:
        raise SystemExit("the step was too short")
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(step(x), want) else 1)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    assert np.array_equal(step.state[0][-1], want)
"""


def test_a_fork_while_another_thread_steps() -> None:
    """The child has not that thread: its stream is free, and in the state before the step."""
    assert_ran(run_python("-W", "ignore::DeprecationWarning", "-c", AFTER_A_FORK))


OUTPUT = """
import numpy as np
from test_stream_users import stream_of

for weights in "float32", "int8":
    for batch in 1, 2:
        x = np.ones((batch, 4), "float32")
        step, other = stream_of(weights, batch), stream_of(weights, batch)
        y = step(x)
        for shape in (1000, 100000), (0,):
            try:
                step(x).resize(shape)
                raise SystemExit("resized")
            except ValueError:
                pass
        y.shape = (-1,)
        y.dtype = "f2"
        y.flags.writeable = False
        for _ in range(3):
            other(x)
        step(x)
        other(x)
        assert np.array_equal(step.state[0], other.state[0])
        try:
            step(np.ones((batch, 4), "f2"))
            raise SystemExit("took float16")
        except TypeError:
            pass
        del step
        assert y.sum() is not None
"""


def test_the_output_may_be_changed() -> None:
    assert_ran(run_python("-W", "ignore::DeprecationWarning", "-c", OUTPUT))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("attribute", "value"), [("shape", (-1, 1)), ("shape", (1, 1, -1)), ("dtype", "i4"), ("strides", (0, 0))]
)
@pytest.mark.parametrize("weights", ["float32", "int8"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_changed_output_does_not_come_back(batch: int, weights: str, attribute: str, value: Any) -> None:
    """What is set on it stays with it: the next step returns an array as before, in the same memory."""
    lstm = fr.LSTM(4, 8, seed=0)
    network: Any = lstm if weights == "float32" else lstm.quantize(weights)
    step, other = network.stream(batch), network.stream(batch)
    for x in (np.ones((batch, 4), np.float32), np.ones(4, np.float32))[: 3 - batch]:
        y = step(x)
        want = other(x)
        assert step(x) is y
        other(x)
        setattr(y, attribute, value[: y.ndim] if attribute == "strides" else value)
        got, want = step(x), other(x)
        assert got is not y and got.shape == want.shape and got.dtype == want.dtype
        assert np.array_equal(got, want) and np.shares_memory(got, y)


OUT_OF_MEMORY = """
import resource
import numpy as np
import fusedrnn as fr

def used():
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[0]) * resource.getpagesize()

module = fr.GRU(16, 512, 2, seed=0, init="torch")  # layers of 3 and 6 MB
x = np.ones((1, 16), "float32")
step = module.stream()
want = module.stream()(x).copy()
small = fr.GRU(16, 512, seed=1, init="torch")
kept = [small.stream() for _ in range(20)]  # no spare buffer is left
module.flat_parameters[:] *= 2
limit = resource.getrlimit(resource.RLIMIT_AS)
failed = 0
for tenths in range(200):
    resource.setrlimit(resource.RLIMIT_AS, (used() + tenths * 2**20 // 10, limit[1]))
    try:
        step.refresh()
        break
    except MemoryError:
        failed += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    kept.append(small.stream())  # in what was freed, if it was
    step.reset()
    assert np.array_equal(step(x), want), tenths
assert failed
"""


def test_a_refresh_without_memory_changes_nothing() -> None:
    assert_ran(run_python("-c", OUT_OF_MEMORY))
