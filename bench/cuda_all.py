#!/usr/bin/env python3
"""Everything that is done with a GPU, stage by stage, each within its time: build, check, measure.

A kernel that breaks the device ends the process that ran it, so each command is small.

usage: cuda_all.py [STAGE...] [--total-s SECONDS] [--out FOLDER]        all stages, in about twenty minutes

build     fusedrnn, into build/gpu; the others use it
grid      run.py --suite cuda: what exchanges and launches cost, then our kernels and torch
tests     pytest -m gpu
sanitize  compute-sanitizer over small calls of each kernel
soak      repeats beside other work, bit by bit, and 100,000 steps
peers     run.py --suite cuda against FlashRNN and TorchRL, where they are installed

Needs a driver, nvcc, torch, and pytest, hypothesis, cmake, ninja, pybind11 and scikit-build-core; no network.
FOLDER (bench/results) gets the results, what each stage printed (cuda-all.log), and how it ended
(cuda-all.json). A stage that fails or runs out of time does not keep the next from running; SECONDS ends
all of it, and a measurement that has less time than it wants measures less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "gpu"
BENCH = ROOT / "bench"
SANITIZERS = ("memcheck", "racecheck", "synccheck")
TOTAL_S = "TOTAL_S"  # in a command: the seconds that it has, less CLOSING_S to end in
CLOSING_S = 45.0
LEAST_S = 20.0  # with less left, a command is not started


def stages(out: Path) -> dict[str, list[tuple[float, list[str]]]]:
    """The commands of each stage, with the seconds each may take."""
    python = sys.executable
    soak = [python, str(BENCH / "cuda_soak.py")]
    run = [python, str(BENCH / "run.py"), "--suite", "cuda", "--total-s", TOTAL_S, "--out", str(out)]
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    peers = ["--peers", "fusedrnn", "flashrnn", "torchrl"]
    return {
        "build": [
            (300, [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index",
                   "--upgrade", "-q", "--target", str(BUILD / "site"), "-C", f"build-dir={BUILD / 'objects'}",
                   "-C", "cmake.define.FUSEDRNN_CUDA=ON", str(ROOT)]),
        ],
        "grid": [(500, run)],
        "tests": [
            (90, [python, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", str(file)])
            for file in sorted((ROOT / "tests").glob("test_cuda_*.py")) if "DEVICES" in file.read_text()
        ],
        "sanitize": [
            (75, ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", sanitizer, "--tool", tool,
                  "--error-exitcode", "9", *soak, "tiny", "--out", tempfile.gettempdir()])
            for tool in SANITIZERS
        ],
        "soak": [
            (60, [*soak, part, "--kernels", kernel, "--budget-s", "30", "--out", str(out)])
            for part in ("repeats", "long") for kernel in ("cluster", "persistent", "step")
        ],
        "peers": [(460, [*run, *peers])],
    }  # fmt: skip


def run_within(seconds: float, command: list[str], log: Any) -> int | str:
    """The status of a command, whose output goes to the log; it and all it started end with its time."""
    if seconds < LEAST_S + (CLOSING_S if TOTAL_S in command else 0):
        return "left out: out of time"
    command = [f"{seconds - CLOSING_S:g}" if part == TOTAL_S else part for part in command]
    paths = [str(BUILD / "site"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "CMAKE_BUILD_PARALLEL_LEVEL": str(len(os.sched_getaffinity(0))),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the tests have torch, too, in one process
    }
    environment.pop("FUSEDRNN_CUDA_KERNEL", None)
    try:
        child = subprocess.Popen(
            command,
            cwd=tempfile.gettempdir(),
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    except OSError as error:
        return str(error)
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return f"stopped after {seconds:.3g} s"


def main() -> None:
    """Run the stages asked for; print how each ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(stages(Path()))
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(names)}; default: all")
    parser.add_argument(
        "--total-s", type=float, default=math.inf, metavar="SECONDS", help="of all stages; default: no limit"
    )
    parser.add_argument("--out", type=Path, default=BENCH / "results", help="default: bench/results")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.stages) - set(names))
    if unknown:
        parser.error(f"expected stages of {', '.join(names)}, got {', '.join(unknown)}")
    end = time.monotonic() + arguments.total_s
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    summary = out / "cuda-all.json"
    before: list[dict[str, Any]] = json.loads(summary.read_text()) if summary.exists() else []
    done: list[dict[str, Any]] = []
    for stage, commands in stages(out).items():
        if arguments.stages and stage not in arguments.stages:
            continue
        for limit_s, command in commands:
            with (out / "cuda-all.log").open("a") as log:
                log.write(f"\n==== {stage}: {' '.join(command)}\n")
                log.flush()
                start = time.monotonic()
                status = run_within(min(limit_s, end - start), command, log)
            said = (out / "cuda-all.log").read_text(errors="replace").strip().splitlines()[-1]
            seconds = round(time.monotonic() - start, 1)
            done.append({"stage": stage, "status": status, "seconds": seconds, "said": said[:200]})
            print(done[-1], flush=True)
            summary.write_text(json.dumps(before + done, indent=1) + "\n")
    lines = (out / "cuda-all.log").read_text(errors="replace").splitlines()
    print("\n".join(lines[-60:]))
    sys.exit(any(entry["status"] != 0 for entry in done))


if __name__ == "__main__":
    main()
