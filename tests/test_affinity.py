"""Workers leave the caller's processor, and only that: what they may use stays what the process may use."""

from __future__ import annotations

import os
import sys

import pytest
from support import assert_ran, run_python

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's affinity masks"),
]

START = """
import os
import numpy as np
import fusedrnn as fr

def processor(thread):
    with open(f"/proc/self/task/{thread}/stat", encoding="ascii") as f:
        return int(f.read().rpartition(")")[2].split()[36])

allowed = sorted(os.sched_getaffinity(0))
here = allowed[0]
lstm = fr.LSTM(16, 32, seed=0)
x = np.random.default_rng(0).standard_normal((100, 8, 16), dtype=np.float32)
fr.set_num_threads(1)
want = lstm(x)[0].tobytes()
before = set(os.listdir("/proc/self/task"))
fr.set_num_threads(2)
"""

SHARED = """
left = 0
os.sched_setaffinity(0, {here})
assert lstm(x)[0].tobytes() == want
worker, = map(int, set(os.listdir("/proc/self/task")) - before)
os.sched_setaffinity(worker, allowed)
for _ in range(30):
    os.sched_setaffinity(worker, {here})
    lstm(x)  # it runs there
    os.sched_setaffinity(worker, allowed)
    assert processor(worker) == here
    for _ in range(2):
        assert lstm(x)[0].tobytes() == want
    left += processor(worker) != here
    assert sorted(os.sched_getaffinity(worker)) == allowed
    assert os.sched_getaffinity(0) == {here}
# None where workers do not step aside, most where the machine has nothing else to do.
assert left > 2, left
"""

ALONE = """
os.sched_setaffinity(0, {here})  # the worker inherits it
for _ in range(20):
    assert lstm(x)[0].tobytes() == want
for thread in os.listdir("/proc/self/task"):
    if thread not in before:
        assert os.sched_getaffinity(int(thread)) == {here} and processor(thread) == here
if os.fork() == 0:
    os._exit(lstm(x)[0].tobytes() != want)
assert os.wait()[1] == 0
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_a_worker_leaves_the_callers_processor() -> None:
    """A worker put beside the caller is elsewhere after a call, free to go wherever the process may."""
    assert_ran(run_python("-c", START + SHARED))


def test_a_worker_stays_where_it_has_to() -> None:
    """With one processor for both there is nowhere to go; mask and results stay, in a forked child too."""
    assert_ran(run_python("-c", START + ALONE))
