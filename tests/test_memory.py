"""Running out of memory is MemoryError and changes nothing; nothing is leaked, by calls that fail either."""

from __future__ import annotations

from support import assert_ran, run_python

LIMITED = """
import resource
import numpy as np
import fusedrnn as fr

def used():
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[0]) * resource.getpagesize()

fr.set_num_threads(2)
lstm = fr.LSTM(16, 128, 2, bidirectional=True, seed=0)
x = np.random.default_rng(0).normal(size=(200, 32, 16)).astype("float32")
state = tuple(np.zeros((4, 32, 128), "float32") for _ in range(2))
want, _, tape = lstm.forward(x[:4], tuple(s.copy() for s in state))
dy = np.ones((200, 32, 256), "float32")
before = [a.tobytes() for a in (x, dy, *state, lstm.flat_parameters)]
failed = passed = 0
ceiling = resource.getrlimit(resource.RLIMIT_AS)[1]
for megabytes in range(0, 400, 4):
    lstm.zero_grad()
    resource.setrlimit(resource.RLIMIT_AS, (used() + megabytes * 2**20, ceiling))
    step = "forward"
    try:
        y, final, kept = lstm.forward(x, state)
        step = "backward"
        lstm.backward(kept, dy)
        passed += 1
    except MemoryError:
        failed += 1
        assert step == "backward" or not lstm.flat_grads.any()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    y = final = kept = None
    assert [a.tobytes() for a in (x, dy, *state, lstm.flat_parameters)] == before
assert failed > 5 and passed > 5, (failed, passed)
assert np.array_equal(lstm(x[:4], state)[0], want)
"""

LEAKS = """
import gc, resource
import numpy as np
import fusedrnn as fr
from entries import ENTRIES

def resident():
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

def everything():
    module = fr.GRU(16, 64, 2, bidirectional=True, seed=0)
    x = np.ones((100, 16, 16), "float32")
    for _ in range(3):
        y, _, tape = module.forward(x)
        module.backward(tape, np.ones_like(y))
        try:
            module.backward(tape, np.ones((100, 16, 3), "float32"))
        except ValueError:
            pass
    fr.LSTM(16, 256, seed=0).stream(4)(np.ones((4, 16), "float32"))
    for name, make in ENTRIES.items():
        if name == "measure_limits":
            continue
        entry = make()
        for _ in range(20):
            entry.call()
            try:
                entry.call(surplus=1)
            except TypeError:
                pass

for _ in range(5):
    everything()
start = resident()
for _ in range(25):
    everything()
# Each round allocates tens of megabytes: one lost tape, cache or stream per round would show.
assert resident() - start < 8 * 2**20, (start, resident())
"""


def test_out_of_memory() -> None:
    """At any limit a call finishes or raises MemoryError with its inputs unchanged; afterwards all is well."""
    assert_ran(run_python("-c", LIMITED))


def test_no_leaks() -> None:
    assert_ran(run_python("-c", LEAKS))
