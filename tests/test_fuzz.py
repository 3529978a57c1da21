"""Random sequences of public calls, and objects that threads share, each in a process of its own.

FUSEDRNN_FUZZ_SECONDS and FUSEDRNN_FUZZ_SEED say for how long and from where; by default briefly and the same.
"""

from __future__ import annotations

import os

from support import assert_ran, run_python

SECONDS = float(os.environ.get("FUSEDRNN_FUZZ_SECONDS", "10"))
SEED = os.environ.get("FUSEDRNN_FUZZ_SEED", "0")


def test_sequences() -> None:
    """No crash, no hang, no wrong result: the end of the output says which sequence to repeat."""
    options = f"{os.environ.get('ASAN_OPTIONS', '')}:allocator_may_return_null=1"
    arguments = ("--seed", SEED, "--seconds", str(SECONDS), "--limit", "30")
    done = run_python("fuzz_sequences.py", *arguments, timeout=SECONDS + 240, ASAN_OPTIONS=options)
    assert_ran(done)
    assert done.stdout.splitlines()[-1].startswith("done:")


def test_shared_objects() -> None:
    done = run_python("share_objects.py", timeout=240)
    assert_ran(done)
    assert done.stdout.endswith("done\n")
