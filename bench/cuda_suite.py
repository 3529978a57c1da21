"""The suite "cuda" of run.py: the grid on a GPU, within a time, most informative shapes first.

The measuring process writes its results after each comparison. A kernel that hangs or breaks the device takes
that process with it: the one that started it notes which it was and starts another, which goes on behind.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import report
import targets

STALL_S = 120.0  # without a sign of life; some peers compile when they are first called
LEAST_S = 5.0  # left for a process to be worth its start
OUT_OF_TIME = "out of time"
DEFAULT_PEERS = ("fusedrnn", "torch")  # others are measured where they are named
WRONG = 10.0  # times the promised error: not another rounding but another result, and not timed
EXPECTED = "float64"  # stands for a peer where what to expect cannot be computed
QUERY_S = 20.0  # between questions to nvidia-smi, each of which takes a while
SETTLE_S = 0.0  # nothing of one peer runs on when another's turn comes


def run(arguments: Namespace) -> None:
    """Measure the costs of the device, then the grid; print and save targets and tables."""
    end = time.time() + arguments.total_s
    stem = arguments.out / ("cuda" if arguments.device == "gpu" else "cuda-emulated")
    if arguments.peers:
        stem = stem.with_name(f"{stem.name}-peers")
    stem.parent.mkdir(parents=True, exist_ok=True)
    path, mark = stem.with_suffix(".json"), stem.with_suffix(".running")
    empty: dict[str, Any] = {"results": [], "failures": [], "finished": [], "features": {}}
    machine = {"threads": arguments.threads}
    write(path, {"suite": "cuda", "machine": machine, "limits": costs(arguments.device), **empty})
    no_start = ""
    while time.time() < end - LEAST_S and not no_start:
        mark.write_text("{}")
        problem = supervise(worker_command(arguments, path, end), mark, end)
        if problem in ("", OUT_OF_TIME):
            break
        failure = {**json.loads(mark.read_text()), "error": problem}
        if "peer" not in failure:
            no_start = problem
            continue
        print(f"FAILED  {failure}", flush=True)
        result = json.loads(path.read_text())
        result["failures"].append(failure)
        write(path, result)
    mark.unlink()
    result = json.loads(path.read_text())
    result["targets"] = targets.evaluate(result)
    report.save(result, stem)
    if no_start:
        raise SystemExit(f"cuda: expected a device and peers to compare with; {no_start}")


def write(path: Path, result: dict[str, Any]) -> None:
    """Replace the file as a whole: whoever is stopped leaves the old one or the new one."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)


def worker_command(arguments: Namespace, path: Path, end: float) -> list[str]:
    """This file as the process that measures."""
    settings = {
        "path": str(path),
        "end": end,
        **{name: getattr(arguments, name) for name in ("device", "peers", "cells", "modes", "rounds")},
        "sample_s": arguments.sample_ms * 1e-3,
        "budget_s": arguments.budget_s,
    }
    return [sys.executable, __file__, json.dumps(settings)]


def supervise(command: list[str], mark: Path, end: float, stall_s: float = STALL_S) -> str:
    """Why a process ended before its work was done; empty if it was. `mark` is new while it is well."""
    child = subprocess.Popen(command)
    while True:
        try:
            code = child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            return "" if code == 0 else f"the process ended with {code}"
        stalled = time.time() - mark.stat().st_mtime > stall_s
        if stalled or time.time() > end + stall_s / 4:
            child.kill()
            child.wait()
            return f"nothing for {stall_s:.0f} s" if stalled else OUT_OF_TIME


def costs(device: str) -> dict[str, float]:
    """What cuda_costs.cu measures; nothing without a GPU or a compiler for it."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if device != "gpu" or not Path(nvcc).exists():
        print(f"cuda_costs: left out, {'no GPU' if device != 'gpu' else 'no nvcc'}")
        return {}
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "cuda_costs")
        code = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ("80", "90a")]
        cuda = here.parent / "cuda"
        include = [f"-Xcompiler=-iquote,{path}" for path in (cuda / "gpu" / "include", cuda)]
        build = [nvcc, "-std=c++20", "-O2", *code, *include, str(here / "cuda_costs.cu"), "-o", program]
        said = Path(folder) / "said"
        try:
            subprocess.run(build, check=True, timeout=180)
            with said.open("w") as stdout:
                subprocess.run([program], check=True, stdout=stdout, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"cuda_costs: {error}")
        text = said.read_text().rstrip() if said.exists() else ""
    # What came before an error counts.
    found: dict[str, float] = json.loads(text if text.endswith("}") else (text or "{") + "}")
    for name, value in found.items():
        print(f"{name}: {value:g}")
    return found


class Worker:
    """Measures what is neither finished nor failed yet."""

    def __init__(self, settings: dict[str, Any]) -> None:
        # Here, so that the process that supervises never touches the device.
        import harness
        from device import Device
        from peers.cuda import CUDA_PEERS

        self.settings = settings
        self.path = Path(settings["path"])
        self.result: dict[str, Any] = json.loads(self.path.read_text())
        self.device = Device(settings["device"])
        self.plan = harness.Plan(settings["rounds"], settings["sample_s"], settings["budget_s"])
        named = settings["peers"] or [name for name in CUDA_PEERS if targets.family(name) in DEFAULT_PEERS]
        unknown = sorted(set(named) - set(CUDA_PEERS))
        if unknown:
            raise SystemExit(f"--peers: expected some of {', '.join(CUDA_PEERS)}, got {', '.join(unknown)}")
        missing = {name: CUDA_PEERS[name].missing() for name in named}
        self.peers = {name: CUDA_PEERS[name] for name in named if not missing[name]}
        self.result["missing"] = {name: reason for name, reason in missing.items() if reason}
        self.queried = time.time()
        if len(self.families(self.peers)) < min(2, len(self.families(named))):
            write(self.path, self.result)
            raise SystemExit(f"nothing to compare with: {self.result['missing']}")
        self.result["machine"] = {
            **report.machine(self.result["machine"]["threads"], self.peers),
            "device": self.device.describe(),
        }

    def run(self) -> None:
        """All jobs until the end of time."""
        from device import query
        from problems import cuda_jobs

        print(report.header(), flush=True)
        for problem, mode in cuda_jobs(tiny=not self.device.is_gpu):
            if time.time() > self.settings["end"] - LEAST_S:
                break
            name = targets.label({**problem.describe(), "mode": mode})
            wanted = (self.settings["cells"], self.settings["modes"])
            if any(choice and value not in choice for choice, value in zip(wanted, (problem.cell, mode),
                                                                           strict=True)):  # fmt: skip
                continue
            if name not in self.result["finished"]:
                self.measure(problem, mode, name)
                self.result["finished"].append(name)
                if self.device.is_gpu and time.time() > self.queried + QUERY_S:
                    self.result["machine"]["device after"] = query()
                    self.queried = time.time()
                write(self.path, self.result)

    def measure(self, problem: Any, mode: str, name: str) -> None:
        """One comparison: every peer's results against float64, then the times of those that are right."""
        import harness
        from cuda_data import Data, set_tf32

        failed = {p for f in self.result["failures"] if f["of"] == name for p in f["peer"].split(", ")}
        if EXPECTED in failed:
            return
        set_tf32(problem.precision == "tf32")
        data = self.attempt(name, EXPECTED, Data, problem, mode, self.device.torch)
        if data is None:
            return
        able = [
            p
            for p in self.peers
            if p not in failed and self.attempt(name, p, self.peers[p].refusal, data) == ""
        ]
        if len(self.families(able)) < min(2, len(self.families(self.peers))):
            return  # nothing to compare with
        expected = self.attempt(name, EXPECTED, data.expected)
        if expected is None:
            return
        runs, notes = {}, {}
        for peer_name in able:
            checked = self.attempt(name, peer_name, self.checked, self.peers[peer_name], data, expected)
            if checked is not None:
                runs[peer_name], notes[peer_name] = checked
        if not runs:
            return
        self.mark(of=name, peer=", ".join(runs))
        calls = {peer_name: run.call for peer_name, run in runs.items()}
        samples = harness.sample(calls, self.plan, self.device.seconds_per_call, SETTLE_S)
        for row in harness.rows_of(problem, mode, samples, self.result["limits"]):
            row.update(notes[row["peer"]])
            if mode == "stream":
                row["waited_s"] = self.device.waited_seconds_per_call(calls[row["peer"]], 20)
            self.result["results"].append(row)
            print(report.line(row), flush=True)

    def checked(self, peer: Any, data: Any, expected: Any) -> tuple[Any, dict[str, Any]]:
        """A run whose results are right, and its errors."""
        from cuda_data import of_promise, relative_errors

        run = peer.setup(data)
        errors = relative_errors(run.output(), expected)
        share = of_promise(errors, data.problem)
        if not share <= WRONG:
            raise ArithmeticError(f"expected errors of at most {WRONG:g} times the promise, got {errors}")
        note: dict[str, Any] = {"errors": errors, "of_promise": share}
        if hasattr(run, "ran"):
            note["kernel"] = run.ran
        return run, note

    def attempt(self, name: str, peer: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a call of a peer returns, or None where it fails."""
        self.mark(of=name, peer=peer)
        try:
            result = call(*arguments)
            self.device.synchronize()  # what goes wrong in it is not the next call's
            return result
        except Exception as error:  # of any library; the measurement goes on without it
            failure = {"of": name, "peer": peer, "error": f"{type(error).__name__}: {error}"[:500]}
            print(f"FAILED  {failure}", flush=True)
            self.result["failures"].append(failure)
            write(self.path, self.result)
            self.device.synchronize()  # raises if the device is lost: then this process is, too
            return None

    @staticmethod
    def families(peers: Iterable[str]) -> set[str]:
        """Ours and those of others."""
        return {targets.family(peer) for peer in peers}

    def mark(self, **what: str) -> None:
        """Say what is done now: if it is the last thing, it was this."""
        self.path.with_suffix(".running").write_text(json.dumps(what))


if __name__ == "__main__":
    Worker(json.loads(sys.argv[1])).run()
