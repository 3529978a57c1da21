"""What the grids of shapes do not show: padding, resets, recomputed tapes, memory and quantized streaming.

Each function returns named numbers, which are printed, saved and held against the targets.
"""

from __future__ import annotations

import inspect
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import harness
import numpy as np
from peers import fusedrnn_, torch_
from problems import LayerProblem, StreamProblem

import fusedrnn as fr

RAGGED = LayerProblem("lstm", 100, 32, 128, 128)
LARGE = LayerProblem("lstm", 100, 32, 256, 256)
RESET_SHARE = 0.03
QUANTIZED_TOLERANCE = 0.05  # of the largest output: int8 is a rounding of the weights and inputs to 1 of 127


def measure(peers: dict[str, ModuleType], threads: int, plan: harness.Plan) -> dict[str, float]:
    """All of them, one after the other in each visit; of every number the median of the visits, printed."""
    visit = plan.visit()
    parts = (
        lambda: ragged(peers, visit),
        lambda: recompute(visit),
        lambda: memory(peers, threads),
        lambda: quantized(visit),
    )
    visits: list[dict[str, float]] = []
    for _ in range(harness.VISITS):
        visits.append({name: value for part in parts for name, value in part().items()})
    numbers = {name: statistics.median(found[name] for found in visits) for name in visits[0]}
    for name, value in numbers.items():
        print(f"{name}: {value:.3g}", flush=True)
    return numbers


def medians(runs: dict[str, Any], plan: harness.Plan) -> dict[str, float]:
    """The median time of each run; every run must have run before."""
    samples = harness.sample({name: run.call for name, run in runs.items()}, plan)
    return {name: statistics.median(times) for name, times in samples.items()}


def ragged(peers: dict[str, ModuleType], plan: harness.Plan) -> dict[str, float]:
    """Training with lengths uniform in 1..T, and with resets, against full lengths and packed sequences."""
    rng = np.random.default_rng(9)
    T, B = RAGGED.seq_len, RAGGED.batch
    lengths = rng.integers(1, T + 1, B)
    resets = rng.random((T, B)) < RESET_SHARE
    runs: dict[str, Any] = {
        "full": fusedrnn_.Training(RAGGED),
        "lengths": fusedrnn_.Training(RAGGED, lengths=lengths),
        "resets": fusedrnn_.Training(RAGGED, resets=resets),
    }
    if "torch" in peers:
        runs["packed"] = torch_.PackedTraining(RAGGED, lengths)
    outputs = {name: run.output() for name, run in runs.items()}
    if "packed" in runs:
        both = {name: outputs[name] for name in ("lengths", "packed")}
        harness.check_agreement(both, RAGGED.tolerance, "lengths")
    time = medians(runs, plan)
    numbers = {
        "valid steps with lengths / all steps": float(lengths.mean()) / T,
        "time with lengths / full length": time["lengths"] / time["full"],
        "time with resets / without": time["resets"] / time["full"],
    }
    if "packed" in time:
        numbers["torch's packed time / time with lengths"] = time["packed"] / time["lengths"]
    return numbers


def recompute(plan: harness.Plan) -> dict[str, float]:
    """What a tape that is computed again costs in time and saves in memory."""
    runs: dict[str, Any] = {"saved": fusedrnn_.Training(LARGE)}
    if "recompute" in inspect.signature(fr.LSTM).parameters:
        runs["recomputed"] = fusedrnn_.Training(LARGE, recompute=True)
    else:
        print("recompute: not there")
    outputs = {name: run.output() for name, run in runs.items()}
    harness.check_agreement(outputs, LARGE.tolerance, "recompute")
    numbers = {f"tape of LSTM {LARGE.hidden_size}, MiB": runs["saved"].tape.nbytes / 2**20}
    if "recomputed" in runs:
        time = medians(runs, plan)
        numbers["recompute: time / saved"] = time["recomputed"] / time["saved"]
        numbers["recompute: saved tape / tape"] = runs["saved"].tape.nbytes / runs["recomputed"].tape.nbytes
    return numbers


def memory(peers: dict[str, ModuleType], threads: int) -> dict[str, float]:
    """Growth of the peak memory by training, each peer in a process of its own."""
    script = Path(__file__).with_name("memory.py")
    numbers = {}
    for name in ("fusedrnn", "torch"):
        if name in peers:
            command = [sys.executable, str(script), name, str(threads)]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            numbers[f"training memory of {name}, MiB"] = float(run.stdout)
    return numbers


def quantized(plan: harness.Plan) -> dict[str, float]:
    """Speed of a streamed step with weights of 16 and 8 bits over float32."""
    if not hasattr(fr.LSTM, "quantize"):
        print("quantize: not there")
        return {}
    numbers = {}
    for hidden in (256, 512):
        problem = StreamProblem("lstm", 1, 1, hidden, hidden)
        runs: dict[str, Any] = {"float32": fusedrnn_.Stream(problem)}
        for kind in ("bf16", "int8"):
            runs[kind] = fusedrnn_.Stream(problem, kind)
        outputs = {name: run.output() for name, run in runs.items()}
        harness.check_agreement(outputs, QUANTIZED_TOLERANCE, f"quantized {hidden}")
        time = medians(runs, plan)
        for kind in ("bf16", "int8"):
            numbers[f"quantized {kind} H {hidden}: float32 time / time"] = time["float32"] / time[kind]
    return numbers
