"""Random sequences of public calls, in which modules move to the GPU and back, too."""

from __future__ import annotations

from cuda_support import needs_emulator
from support import assert_ran, run_python


@needs_emulator
def test_sequences_with_moves() -> None:
    done = run_python("fuzz_sequences.py", "--seed", "1", "--seconds", "20", "--limit", "60", timeout=240)
    assert_ran(done)
    assert done.stdout.splitlines()[-1].startswith("done:")
