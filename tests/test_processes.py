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

FORK = """
import os, signal, sys, time
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
deadline = time.monotonic() + 60
for pid in children:
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            sys.exit("a child hung")
        time.sleep(0.02)
    if status != 0:
        sys.exit(f"a child ended with status {status}")
assert step() == want
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_fork() -> None:
    """Children of a process with running workers get the parent's bits; so does the parent afterwards."""
    assert_ran(run_python("-W", "ignore", "-c", FORK, timeout=120))


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
