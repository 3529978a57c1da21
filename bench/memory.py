#!/usr/bin/env python3
"""Print by how many MiB an LSTM's training raises the peak memory of a fresh process.

usage: memory.py PEER THREADS

A small problem runs first, so that what a library loads or starts once is not counted. Weights and inputs
exist before the count begins; their gradients and all that a call keeps do not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from peers import PEERS
from problems import LayerProblem

PROBLEM = LayerProblem("lstm", 100, 32, 256, 256)
CALLS = 3


def resident_mib(field: str) -> float:
    """VmRSS (now) or VmHWM (peak). getrusage would report the peak of the parent too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"memory.py: expected {field} in /proc/self/status")


def main() -> None:
    """Measure one peer."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    peer = PEERS[sys.argv[1]]
    peer.set_threads(int(sys.argv[2]))
    peer.setup(LayerProblem("lstm", 3, 2, 8, 8), "training").call()
    run = peer.setup(PROBLEM, "training")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident_mib("VmRSS")
    for _ in range(CALLS):
        run.call()
    print(f"{resident_mib('VmHWM') - before:.1f}")


if __name__ == "__main__":
    main()
