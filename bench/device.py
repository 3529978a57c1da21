"""The device of the suite "cuda": a GPU through torch, or the CPU, where kernels built to be emulated run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import harness
import torch

from fusedrnn.cuda import loader

QUERY = (
    "name", "driver_version", "pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
    "power.limit", "temperature.gpu", "memory.total",
)  # fmt: skip


class Device:
    """Where tensors are made, and how calls are timed there."""

    def __init__(self, name: str) -> None:
        if name == "gpu" and not torch.cuda.is_available():
            raise SystemExit("--device gpu: torch sees none")
        self.name = name
        self.is_gpu = name == "gpu"
        self.torch = torch.device("cuda" if self.is_gpu else "cpu")
        if not self.is_gpu:
            module = loader.load()
            if not hasattr(module, "emulate"):
                raise SystemExit("--device emulated: expected a build with FUSEDRNN_CUDA=EMULATED")
            module.emulate(architecture=90)
            torch.set_num_threads(1)

    def synchronize(self) -> None:
        """Wait until all calls are done; raises what went wrong in them."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds_per_call(self, call: Callable[[], None], repeats: int) -> float:
        """The mean time of `repeats` calls, one after another without a wait, by events of the GPU."""
        if not self.is_gpu:
            return harness.seconds_per_call(call, repeats)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(repeats):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e-3 / repeats

    def waited_seconds_per_call(self, call: Callable[[], None], repeats: int) -> float:
        """The mean time of `repeats` calls with a wait after each, by the clock of the host."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
            self.synchronize()
        return (time.perf_counter() - start) / repeats

    def describe(self) -> dict[str, Any]:
        """Name, driver, clocks and libraries, as found: nothing is set."""
        if not self.is_gpu:
            return {"name": "emulated"}
        properties = torch.cuda.get_device_properties(0)
        return {
            "name": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            **query(),
        }


def query() -> dict[str, str]:
    """What nvidia-smi says; nothing where there is none."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(QUERY, (text.strip() for text in run.stdout.split(",")), strict=False))
