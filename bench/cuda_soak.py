#!/usr/bin/env python3
"""Run the CUDA kernels for long: the same call again and again beside other work, and very long sequences.

usage: cuda_soak.py PART... [options]

repeats   results of thousands of calls are those of the first, bit by bit: other streams keep multiprocessors
          busy for random times, memory is NaN before it is used, calls start after random pauses
long      100,000 steps against float64
tiny      every cell, precision and kernel once, small: for compute-sanitizer to watch; nothing is compared

Everything is written to RESULTS/cuda-soak.json; the status is 0 only if nothing failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda_data import Data, of_promise, relative_errors
from device import Device
from peers.cuda import FusedRun, Tensors, chosen, float32_mode
from problems import CUDA_CELLS, CUDA_PRECISIONS, CudaProblem

import fusedrnn as fr
from fusedrnn.cuda.modes import KERNELS

# (cell, T, B, H, precision); each on every kernel that can run it
REPEATED = (
    ("lstm", 64, 16, 256, "bf16"), ("lstm", 64, 20, 1024, "bf16"), ("lstm", 64, 3, 768, "fp16"),
    ("gru", 64, 33, 512, "bf16"), ("lstm", 64, 16, 256, "tf32"), ("rnn_tanh", 64, 64, 384, "ieee"),
    ("lstm", 64, 1, 512, "ieee"), ("gru", 64, 7, 200, "tf32"),
)  # fmt: skip
LONG = (
    ("lstm", 1, 256, "bf16"),
    ("lstm", 16, 512, "bf16"),
    ("gru", 1, 384, "tf32"),
    ("lstm", 1, 256, "ieee"),
)
LONG_FACTOR = 10.0  # times what is promised for up to 512 steps
NOISE_SIZES = (128, 512, 1024, 2048)
PAUSE_CYCLES = 200_000


def runs_of(problem: CudaProblem, mode: str, device: Device, kernels: list[str]) -> Iterator[FusedRun]:
    """A run on each of the kernels that can run the problem."""
    data = Data(problem, mode, device.torch)
    for kernel in kernels:
        try:
            chosen(data, kernel)
        except RuntimeError as error:
            if "cannot run this" not in str(error):
                raise
            continue
        yield FusedRun(data, kernel)


class Noise:
    """Work of random sizes in other streams, so that blocks of a launch start and run at unequal times."""

    def __init__(self, device: Device) -> None:
        self.streams = [torch.cuda.Stream() for _ in range(3)] if device.is_gpu else []
        self.matrices = [torch.randn(n, n, device=device.torch) for n in NOISE_SIZES] if device.is_gpu else []
        self.random = random.Random(5)

    def make(self) -> None:
        """One piece of work somewhere, and a pause in the caller's stream."""
        if not self.streams:
            return
        with torch.cuda.stream(self.random.choice(self.streams)):
            if self.random.random() < 0.5:
                matrix = self.random.choice(self.matrices)
                torch.mm(matrix, matrix)
            else:
                torch.cuda._sleep(self.random.randrange(PAUSE_CYCLES))
        if self.random.random() < 0.3:
            torch.cuda._sleep(self.random.randrange(PAUSE_CYCLES))


def poison(like: Tensors) -> None:
    """Give memory full of NaN back to the allocator, for the next call to find."""
    for tensor in like.values():
        torch.full_like(tensor, float("nan"))


def repeats(device: Device, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each case until its number of calls or its share of the time is reached."""
    noise = Noise(device)
    cases = REPEATED if device.is_gpu else [(cell, 3, 2, 16, "ieee") for cell in CUDA_CELLS]
    end = time.monotonic() + options.budget_s
    for place, (cell, T, B, H, precision) in enumerate(cases):
        problem = CudaProblem(cell, T, B, H, H, precision)
        runs = list(runs_of(problem, "training", device, options.kernels))
        for index, run in enumerate(runs):
            first = {name: tensor.clone() for name, tensor in run.output().items()}
            now = time.monotonic()
            share = (end - now) / (len(cases) - place) / (len(runs) - index)
            calls = differing = 0
            while calls < options.repeats and time.monotonic() < now + share:
                poison(first)
                noise.make()
                output = run.output()
                differing += not all(torch.equal(output[name], want) for name, want in first.items())
                calls += 1
            yield {
                "part": "repeats", **problem.describe(), "kernel": run.ran, "calls": calls,
                "failed": f"{differing} of {calls} differ" if differing or not calls else "",
            }  # fmt: skip


def long(device: Device, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Forward over very many steps."""
    for cell, B, H, precision in LONG if device.is_gpu else [("lstm", 1, 16, "ieee")]:
        problem = CudaProblem(cell, options.steps, B, H, H, precision)
        expected = Data(problem, "forward", device.torch).expected()
        for run in runs_of(problem, "forward", device, options.kernels):
            start = time.monotonic()
            errors = relative_errors(run.output(), expected)
            share = of_promise(errors, dataclasses.replace(problem, seq_len=1))
            failed = "" if share <= LONG_FACTOR else f"{share:.3g} times the promise"
            yield {
                "part": "long", **problem.describe(), "kernel": run.ran, "errors": errors,
                "seconds": time.monotonic() - start, "failed": failed,
            }  # fmt: skip


def tiny(device: Device, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Forward and backward with lengths and resets, once each."""
    T, B, H = 4, 3, 40
    lengths = np.array([4, 2, 3])
    resets = torch.tensor(np.random.default_rng(0).random((T, B)) < 0.3, device=device.torch)
    for cell in CUDA_CELLS:
        for precision in CUDA_PRECISIONS if device.is_gpu else ("ieee",):
            problem = CudaProblem(cell, T, B, H, H, precision)
            for run in runs_of(problem, "training", device, options.kernels):
                with fr.cuda.set_kernel(run.kernel), fr.cuda.set_float32_mode(float32_mode(run.data)):
                    y, _, tape = fr.functional.forward(
                        cell, run.x, run.params, lengths=lengths, resets=resets
                    )
                    fr.functional.backward(tape, run.data.dy)
                finite = bool(torch.isfinite(y.float()).all())
                failed = "" if finite else "y is not finite"
                yield {"part": "tiny", **problem.describe(), "kernel": tape._layer.kernel, "failed": failed}


PARTS = {"repeats": repeats, "long": long, "tiny": tiny}


def until_broken(part: str, device: Device, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The cases of a part; an exception is the last."""
    try:
        yield from PARTS[part](device, options)
    except Exception as error:  # whatever a kernel did to the device
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        yield {"part": part, "kernel": options.kernels[0], "failed": text[:500]}


def main() -> None:
    """Run the parts; print and store each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=tuple(PARTS))
    parser.add_argument("--device", choices=("gpu", "emulated"), default="gpu")
    parser.add_argument(
        "--kernels",
        nargs="+",
        choices=KERNELS,
        default=list(KERNELS),
        help="default: all that can run a case",
    )
    parser.add_argument("--repeats", type=int, default=2000, help="calls of a case; default: %(default)s")
    parser.add_argument("--budget-s", type=float, default=120.0, help="of repeats; default: %(default)s")
    parser.add_argument("--steps", type=int, default=100_000, help="of long; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = Device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "cuda-soak.json"
    # Kernels may be run in processes of their own: the device is lost to a process in which one has failed.
    before = json.loads(path.read_text())["cases"] if path.exists() else []
    kept = [c for c in before if c["part"] not in options.parts or c["kernel"] not in options.kernels]
    found = device.describe()
    cases: list[dict[str, Any]] = []
    for part in options.parts:
        for case in until_broken(part, device, options):
            print(f"{'FAIL' if case['failed'] else 'pass'}  {case}", flush=True)
            cases.append(case)
            path.write_text(json.dumps({"device": found, "cases": kept + cases}, indent=1) + "\n")
    failed = sum(bool(case["failed"]) for case in cases)
    print(f"{len(cases)} cases, {failed} failed")
    sys.exit(1 if failed or not cases else 0)


if __name__ == "__main__":
    main()
