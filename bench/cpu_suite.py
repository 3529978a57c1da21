"""What the targets ask of a CPU: each suite in a process of its own, and one table of verdicts at the end.

A process each, because cores are pinned and libraries read their number of threads when they start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import table
import targets

PARTS = (("grid", 1), ("grid", 2), ("odd", 1), ("features", 1), ("model", 1), ("model", 2))


def run(threads: int | None, options: list[str], out: Path) -> None:
    """Measure the parts, or those on `threads` threads; save their table and verdicts as out/cpu.txt.

    Args:
        threads: 1, 2 or None.
        options: what else run.py is called with.
        out: the folder of the results.
    """
    cores = len(os.sched_getaffinity(0))
    text = []
    script = str(Path(__file__).with_name("run.py"))
    for suite, count in PARTS:
        if threads not in (None, count):
            continue
        if count > cores:
            text += [f"{suite} on {count} threads: not timed, there is one core"]
            continue
        print(f"\n{suite} on {count} threads", flush=True)
        command = [sys.executable, script, "--suite", suite, "--threads", str(count), "--out", str(out)]
        subprocess.run([*command, *options], check=True)
        result = json.loads((out / f"{suite}-{count}.json").read_text())
        text += [f"{suite} on {count} threads", *targets.lines(result["targets"])]
    grids = [out / f"grid-{count}.json" for count in (1, 2)]
    if threads is None and cores > 1:
        text = [*table.lines(*[json.loads(path.read_text()) for path in grids]), "", *text]
    print("\n" + "\n".join(text))
    (out / "cpu.txt").write_text("\n".join(text) + "\n")
    print(f"\nsaved {out}/cpu.txt")
