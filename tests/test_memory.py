"""Running out of memory is MemoryError and changes nothing; nothing is leaked, by calls that fail either."""

from __future__ import annotations

import pytest
from support import assert_ran, run_python

pytestmark = pytest.mark.once

SETUP = """
import resource
import sys
import numpy as np
import fusedrnn as fr

def used():
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[0]) * resource.getpagesize()

fr.set_num_threads(2)
ceiling = resource.getrlimit(resource.RLIMIT_AS)[1]
failed = passed = 0
"""

LIMITED = """
lstm = fr.LSTM(16, 64, 2, bidirectional=True, seed=0)
x = np.random.default_rng(0).normal(size=(200, 32, 16)).astype("float32")
state = tuple(np.zeros((4, 32, 64), "float32") for _ in range(2))
want, _, tape = lstm.forward(x[:4], tuple(s.copy() for s in state))
dy = np.ones((200, 32, 128), "float32")
before = [a.tobytes() for a in (x, dy, *state, lstm.flat_parameters)]
for megabytes in range(0, 60, 4):
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
assert failed > 2 and passed > 2, (failed, passed)
assert np.array_equal(lstm(x[:4], state)[0], want)
"""

STACKED = """
rng = np.random.default_rng(0)
kind, shape = sys.argv[1], (250, 16)
module = fr.GRU(64, 64, 3, bidirectional=True, dropout=0.1 if kind == "dropout" else 0.0, seed=0)
x = rng.normal(size=(*shape, 64)).astype("float32")
if kind == "lookup":  # too many rows for the kernels to look them up
    x = fr.Lookup(rng.normal(size=(15_000, 64)).astype("float32"), rng.integers(0, 15_000, shape))
y, final, tape = module.forward(x)
dy = np.ones_like(y)
module.backward(tape, dy)
want = module.flat_grads.copy()
for step in range(50):
    module.zero_grad()
    # A request that fails empties the store of freed buffers: then calls take their memory from the system.
    for size in (0, step * 2**18):
        resource.setrlimit(resource.RLIMIT_AS, (used() + size, ceiling))
        try:
            fr._core.Stream("gru", [], 2**40)
        except MemoryError:
            pass
    try:
        module.backward(tape, dy)
        passed += 1
    except MemoryError:
        failed += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    assert np.array_equal(module.flat_grads, want) or not module.flat_grads.any(), step
assert failed > 5 and passed > 5, (failed, passed)
"""

LEAKS = """
import ctypes, gc, resource
import numpy as np
import fusedrnn as fr
from entries import ENTRIES

libc = ctypes.CDLL(None)
FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS.split()]

exact = hasattr(libc, "mallinfo2")
if exact:
    libc.mallinfo2.restype = Mallinfo

def in_use():
    # Where the C library does not count, the resident set has to do: it grows by fragmentation, too.
    gc.collect()
    if exact:
        info = libc.mallinfo2()
        return info.uordblks + info.hblkhd
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * resource.getpagesize()

def everything():
    module = fr.GRU(16, 64, 2, bidirectional=True, seed=0)
    x = np.ones((20, 16, 16), "float32")
    for _ in range(3):
        y, _, tape = module.forward(x)
        module.backward(tape, np.ones_like(y))
        try:
            module.backward(tape, np.ones((20, 16, 3), "float32"))
        except ValueError:
            pass
    fr.LSTM(16, 256, seed=0, init="torch").stream(4)(np.ones((4, 16), "float32"))
    for name, make in ENTRIES.items():
        if name == "measure_limits":
            continue
        entry = make()
        for _ in range(3):
            entry.call()
        try:
            entry.call(surplus=1)
        except TypeError:
            pass

# The first rounds fill caches of the interpreter and of NumPy.
for _ in range(30):
    everything()
start = in_use()
for _ in range(15):
    everything()
# A round allocates megabytes in hundreds of pieces; one small object lost in each would show.
assert in_use() - start < (20_000 if exact else 64 * 2**20), (start, in_use())
"""


def test_out_of_memory() -> None:
    """At any limit a call finishes or raises MemoryError, its inputs unchanged; afterwards all is well."""
    assert_ran(run_python("-c", SETUP + LIMITED))


@pytest.mark.parametrize("kind", ["stack", "dropout", "lookup"])
def test_backward_adds_all_or_nothing(kind: str) -> None:
    """At any limit the gradients of all layers are added, or, with MemoryError, none."""
    assert_ran(run_python("-c", SETUP + STACKED, kind))


def test_no_leaks() -> None:
    assert_ran(run_python("-c", LEAKS))
