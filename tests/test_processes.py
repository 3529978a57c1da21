"""Threads and the process: fork, exit while they run, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import TESTS, assert_ran, run_python

pytestmark = pytest.mark.once

# await_child(pid): the end of a child; that of a child which hangs or ends with another status is the test's.
AWAIT = """
import os, signal, sys, time

def await_child(pid, *others):
    deadline = time.monotonic() + 30
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.write(2, b"a child hung")
            os._exit(1)
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(status)
    if code != 0 and code not in others:
        os.write(2, f"a child ended with status {code}".encode())
        os._exit(1)
    return code
"""

FORK = (
    AWAIT
    + """
import numpy as np
import fusedrnn as fr

fr.set_num_threads(2)
lstm = fr.LSTM(16, 64, 2, bidirectional=True, seed=0)
x = np.random.default_rng(0).normal(size=(20, 16, 16)).astype("float32")

def step():
    lstm.zero_grad()
    y, _, tape = lstm.forward(x)
    lstm.backward(tape, np.ones_like(y))
    return y.tobytes() + lstm.flat_grads.tobytes()

want = step()
children = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        fr.set_num_threads(2)
        os._exit(0 if step() == want and step() == want else 3)
    children.append(pid)
for pid in children:
    await_child(pid)
assert step() == want
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_fork() -> None:
    """Children of a process with running workers get the parent's bits; so does the parent afterwards."""
    assert_ran(run_python("-W", "ignore", "-c", FORK, timeout=120))


FORK_BESIDE_THREADS = (
    AWAIT
    + """
import threading
import numpy as np
import fusedrnn as fr

fr.set_num_threads(2)
lstm = fr.LSTM(2, 4, seed=0)
lstm.parameters  # from here on nobody counts the changes of the weights
x = np.ones((1, 1, 2), "float32")
lstm(x)

def forever():
    while True:
        lstm(x)

for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
for _ in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        lstm(x)
        lstm.forward(x)
        os._exit(0)
    await_child(pid)
os._exit(0)
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_fork_beside_threads() -> None:
    """Whatever locks other threads hold, children of a fork can use the modules that they were using."""
    assert_ran(run_python("-W", "ignore", "-c", FORK_BESIDE_THREADS, "300", timeout=300))


FORK_IN_A_HANDLER = (
    AWAIT
    + """
import numpy as np
import fusedrnn as fr

kind, threads = sys.argv[1], int(sys.argv[2])
fr.set_num_threads(threads)
small = fr.LSTM(4, 8, seed=0)
small_x = np.ones((3, 2, 4), "float32")
small_want = small(small_x)[0]
child = None

def check_small():
    if not np.array_equal(small(small_x)[0], small_want):
        os._exit(3)

def handler(*_):
    global child
    child = os.fork()
    check_small()  # in the middle of the other call

def results(steps):
    x = np.ones((steps, 4, 64), "float32")
    if kind == "linear":
        return fr.Linear(64, 640, seed=0)(np.ones((100 * steps, 64), "float32"))
    network = fr.LSTM(64, 320, bidirectional=kind == "directions", init="torch", seed=0)
    if kind != "backward":
        return network(x)[0]
    y, _, tape = network.forward(x)
    network.backward(tape, np.ones_like(y))
    return network.flat_grads.copy()

signal.signal(signal.SIGPROF, handler)
steps = 1000
while True:
    start = time.process_time()
    want = results(steps)
    if time.process_time() - start > 0.6:
        break
    steps *= 2
TOO_LATE = 5
for delay in (0.15, 0.1, 0.2, 0.12, 0.18, 0.08, 0.22, 0.13):
    child, failure = None, ""
    signal.setitimer(signal.ITIMER_PROF, delay)
    try:
        got = results(steps)
    except RuntimeError as error:
        failure = str(error)
    if child is None:
        sys.exit("no signal came in time")
    if child == 0:
        done = failure.startswith("fork: expected a call") if failure else np.array_equal(got, want)
        fr.set_num_threads(2)
        check_small()
        if not done or not np.array_equal(results(steps), want):
            os._exit(4)
        if threads == 1:
            os._exit(0 if not failure else 4)
        os._exit(0 if failure else TOO_LATE)  # the call ended before the handler began
    assert failure == "" and np.array_equal(got, want)
    if await_child(child, TOO_LATE) == 0:
        break
else:
    sys.exit("no handler ran in the middle of a call")
assert np.array_equal(results(steps), want)
"""
)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["layer", "directions", "backward", "linear"])
def test_fork_in_a_handler_during_a_call(kind: str, threads: int) -> None:
    """The parent's call goes on. The child's does, too, or says that it has lost the threads it ran on.

    Both can call whatever they like, in the handler and afterwards.
    """
    assert_ran(run_python("-W", "ignore", "-c", FORK_IN_A_HANDLER, kind, str(threads), timeout=120))


EXIT = """
import sys, threading, time
import numpy as np
import fusedrnn as fr

fr.set_num_threads(2)
lstm = fr.LSTM(8, 64, seed=0)
x = np.zeros((400, 4, 8), "float32")

def inference():
    lstm(x)

def training():
    y, _, tape = lstm.forward(x)
    lstm.backward(tape, np.ones_like(y))

def forever(call):
    while True:
        call()

for _ in range(3):
    threading.Thread(target=forever, args=[globals()[sys.argv[1]]], daemon=True).start()
time.sleep(0.1)
"""


@pytest.mark.parametrize("call", ["inference", "training"])
def test_exit_with_running_threads(call: str) -> None:
    """The interpreter ends cleanly while daemon threads are inside calls, wherever in them they are."""
    for _ in range(6):
        assert_ran(run_python("-c", EXIT, call, timeout=60))


INTERRUPT = """
import sys, time
import numpy as np
import fusedrnn as fr

cell, phase = sys.argv[1:]
fr.set_num_threads(2)
rng = np.random.default_rng(0)
hidden, batch = 640, 4
rows = {"lstm": 4, "gru": 3}.get(cell, 1) * hidden
weights = lambda *shape: rng.uniform(-0.02, 0.02, shape).astype("float32")
params = (weights(rows, 1), weights(rows, hidden), weights(rows), weights(rows), None)

def forward(steps):
    x = np.broadcast_to(np.float32(1.0), (steps, batch, 1))
    return fr.functional.forward(cell, x, params)

def seconds(steps):
    start = time.perf_counter()
    forward(steps)
    return time.perf_counter() - start

# The fastest of several: a disturbed estimate would make the call too short.
each = min(seconds(10) for _ in range(8)) / 10
# Long enough to be interrupted for certain, short enough for the memory of the tape.
steps = min(int(10.0 / each), 20_000)
if phase == "forward":
    call = lambda: forward(steps)
elif phase == "directions":
    both = fr.LSTM(1, hidden, bidirectional=True, seed=0)
    call = lambda: both(np.ones((steps, batch, 1), "float32"))
else:
    y, _, tape = forward(min(int(3.0 / each), 10_000))
    dy = np.broadcast_to(np.float32(1.0), y.shape)
    call = lambda: fr.functional.backward(tape, dy)
print("started", flush=True)
try:
    call()
except KeyboardInterrupt:
    print("interrupted", time.process_time(), flush=True)
else:
    print("finished", flush=True)
small = fr.GRU(4, 8, seed=0)
y, _, tape = small.forward(np.ones((3, 2, 4), "float32"))
small.backward(tape, np.ones_like(y))
print("usable", bool(np.isfinite(y).all() and np.isfinite(small.flat_grads).all()), flush=True)
"""


def processor_seconds(pid: int) -> float:
    """What a process has had of the processor's time, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("cell", "phase"),
    [("lstm", "forward"), ("gru", "forward"), ("lstm", "backward"), ("lstm", "directions")],
)
def test_ctrl_c(cell: str, phase: str) -> None:
    """SIGINT ends a long call with KeyboardInterrupt within a second, and the library stays usable.

    A second of the processor: a busy machine gives the child less of it in the same time.
    """
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPT, cell, phase], stdout=subprocess.PIPE, text=True, cwd=TESTS
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline().strip() == "started"
            time.sleep(0.5)
            used = processor_seconds(child.pid)
            child.send_signal(signal.SIGINT)
            word, until = child.stdout.readline().split()
            assert word == "interrupted"
            assert float(until) - used < 1.0
            assert child.stdout.readline().strip() == "usable True"
            assert child.wait(timeout=60) == 0
        finally:
            child.kill()
