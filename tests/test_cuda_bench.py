"""The scripts that measure on a GPU: what of them runs without one, on the emulator and torch's CPU."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from cuda_support import EMULATED, MODULE, needs_emulator

import fusedrnn as fr

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`import_module` with bench/ on the path; settings of the process that scripts change are restored."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    with fr.cuda.set_kernel(None), fr.cuda.set_float32_mode("ieee"):
        yield load
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = tf32
    if EMULATED:
        MODULE.emulate()  # type: ignore[union-attr]


def script(name: str, *arguments: str) -> str:
    """What a script prints; it has to succeed."""
    run = subprocess.run(
        [sys.executable, str(BENCH / name), *arguments], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@needs_emulator
def test_the_grid_times_each_kernel_beside_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    quick = ("--cells", "lstm", "gru", "--rounds", "3", "--sample-ms", "0.1", "--budget-s", "0.1")
    script("run.py", "--suite", "cuda", "--device", "emulated", *quick, "--out", str(tmp_path))
    result = json.loads((tmp_path / "cuda-emulated.json").read_text())
    assert result["failures"] == []
    assert result["missing"] == {}
    rows = result["results"]
    peers = {row["peer"] for row in rows}
    assert peers == {"fusedrnn", "fusedrnn persistent", "fusedrnn step", "torch"}
    assert {row["kernel"] for row in rows if row["peer"] == "fusedrnn"} == {"cluster", "persistent"}
    assert all(
        row["peer"] == f"fusedrnn {row['kernel']}" for row in rows if row["peer"].startswith("fusedrnn ")
    )
    assert {row["mode"] for row in rows} == {"forward", "training", "stream"}
    assert all(row["samples"] == 3 and row["errors"]["y"] < 1e-2 for row in rows)
    assert all("gradients" in row["errors"] for row in rows if row["mode"] == "training")
    cases = {verdict["target"]: verdict["cases"] for verdict in result["targets"]}
    assert cases["bf16, tf32 and ieee over torch"] == 8  # 2 cells, 2 precisions, 2 modes
    assert cases["errors over their promise"] == sum(row["peer"] != "torch" for row in rows)
    assert (tmp_path / "cuda-emulated.txt").read_text().count("\n") > len(rows)
    if importlib.util.find_spec("matplotlib") is None:
        return
    picture = tmp_path / "picture.svg"
    script("plot.py", str(tmp_path / "cuda-emulated.json"), str(picture))
    assert "tf32" in picture.read_text() or picture.stat().st_size > 10_000


# Stands for a library whose forward is wrong and whose training takes the process with it.
BROKEN = """
import os

def lstm_triton(x, *rest, input_precision):
    if x.requires_grad:
        os._exit(3)
    return x * 0, None, None, None
"""


@needs_emulator
def test_peers_that_are_missing_or_broken_cost_one_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "flashrnn.py").write_text("raise ImportError('left out')")
    broken = tmp_path / "torchrl" / "modules" / "tensordict_module"
    broken.mkdir(parents=True)
    (broken / "_rnn_triton.py").write_text(BROKEN)
    (tmp_path / "torchrl-0.dist-info").mkdir()
    (tmp_path / "torchrl-0.dist-info" / "METADATA").write_text("Name: torchrl\nVersion: 0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    script(
        "run.py", "--suite", "cuda", "--device", "emulated", "--peers", "fusedrnn", "flashrnn", "torchrl",
        "--cells", "lstm", "--rounds", "3", "--sample-ms", "0.1", "--out", str(tmp_path),
    )  # fmt: skip
    result = json.loads((tmp_path / "cuda-emulated-peers.json").read_text())
    assert result["missing"] == {"flashrnn": "ImportError: left out"}
    failures = [(failure["of"].split()[1], failure["peer"]) for failure in result["failures"]]
    assert failures == [("forward", "torchrl"), ("training", "torchrl")] * 2
    wrong, died = (result["failures"][i]["error"] for i in range(2))
    assert wrong == "ArithmeticError: expected errors of at most 10 times the promise, got {'y': 1.0}"
    assert died == "the process ended with 3"
    assert [(row["mode"], row["peer"]) for row in result["results"]] == [("forward", "fusedrnn")] * 2


@needs_emulator
def test_peers_of_which_none_is_there_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "flashrnn.py").write_text("raise ImportError('left out')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    arguments = ["--suite", "cuda", "--device", "emulated", "--peers", "fusedrnn", "flashrnn"]
    command = [sys.executable, str(BENCH / "run.py"), *arguments, "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1
    assert "nothing to compare with: {'flashrnn': 'ImportError: left out'}" in run.stderr
    result = json.loads((tmp_path / "cuda-emulated-peers.json").read_text())
    assert (result["results"], result["missing"]) == ([], {"flashrnn": "ImportError: left out"})


@needs_emulator
def test_a_shape_whose_float64_fails_costs_one_entry(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, data = module("cuda_suite"), module("cuda_data")
    path = tmp_path / "cuda.json"
    empty: dict[str, Any] = {"limits": {}, "results": [], "failures": [], "finished": []}
    path.write_text(json.dumps({"machine": {"threads": 1}, **empty}))
    real = data.Data.expected

    def expected(self: Any) -> Any:
        if self.mode == "training":
            raise MemoryError("no room")
        return real(self)

    monkeypatch.setattr(data.Data, "expected", expected)
    settings = {
        "path": str(path), "end": time.time() + 60, "device": "emulated", "peers": None, "cells": ["lstm"],
        "modes": ["forward", "training"], "rounds": 3, "sample_s": 1e-4, "budget_s": 0.1,
    }  # fmt: skip
    suite.Worker(settings).run()
    result = json.loads(path.read_text())
    failed = [(f["of"].split()[1], f["peer"], f["error"]) for f in result["failures"]]
    assert failed == [("training", "float64", "MemoryError: no room")] * 2
    assert {row["mode"] for row in result["results"]} == {"forward"}
    assert len(result["finished"]) == 4


@needs_emulator
def test_the_soak_runs_every_kernel(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    options = ("--device", "emulated", "--repeats", "3", "--budget-s", "30", "--steps", "6")
    script("cuda_soak.py", "tiny", "repeats", "long", *options, "--out", str(tmp_path))
    cases = json.loads((tmp_path / "cuda-soak.json").read_text())["cases"]
    ran = {(case["part"], case["kernel"]) for case in cases}
    assert ran >= {(part, k) for part in ("tiny", "repeats", "long") for k in ("persistent", "step")}
    assert {case["calls"] for case in cases if case["part"] == "repeats"} == {3}


@needs_emulator
def test_a_call_that_differs_is_counted(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, soak = pytest.importorskip("torch"), module("cuda_soak")
    real, calls = soak.FusedRun.output, 0

    def output(run: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(run)
        if calls == 3:
            result["dx"] = torch.nextafter(result["dx"], torch.tensor(9.0))
        return result

    monkeypatch.setattr(soak.FusedRun, "output", output)
    device = SimpleNamespace(is_gpu=False, torch=torch.device("cpu"))
    options = argparse.Namespace(kernels=["step"], repeats=3, budget_s=90.0)
    assert next(soak.repeats(device, options))["failed"] == "1 of 3 differ"


def test_the_grid_starts_with_what_is_known(module: Any) -> None:
    jobs = module("problems").cuda_jobs()
    assert len(jobs) == len(set(jobs)) == 2 * (1 + 3 * 4 * 6 * 4) + 6
    first = [(p.cell, p.precision, p.seq_len, p.batch, p.hidden_size) for p, _ in jobs[:4:2]]
    assert first == [("lstm", "fp16", 1024, 16, 768), ("lstm", "bf16", 512, 16, 768)]


def test_the_floor_is_the_table_and_between(module: Any) -> None:
    problem = module("problems").CudaProblem

    def us(batch: int, hidden: int) -> float:
        floor_s: float = problem("lstm", 10, batch, hidden, hidden, "bf16").floor_s("forward", {})
        return floor_s * 1e5

    assert us(16, 1024) == pytest.approx(0.75)
    assert us(1, 128) == pytest.approx(0.40)
    assert us(1, 512) < us(16, 512) < us(16, 768) < us(16, 1024)
    at_512 = 0.50 + 0.70 * 63 / 127
    assert us(64, 768) == pytest.approx(at_512 + (1.30 - at_512) * math.log2(1.5))
    assert problem("lstm", 1, 1, 8, 8, "ieee").floor_s("stream", {"launch us": 2.5}) == pytest.approx(2.5e-6)
    assert problem("gru", 10, 1, 256, 256, "bf16").floor_s("forward", {}) is None


def test_errors_are_relative_to_the_promise(module: Any) -> None:
    torch, data = pytest.importorskip("torch"), module("cuda_data")
    problem = module("problems").CudaProblem("lstm", 2, 1, 8, 8, "bf16")
    want = {"y": torch.ones(4), "dx": torch.ones(4), "weight": torch.ones(4)}
    nan = torch.tensor([1.0, 1.0, 1.0, math.nan])
    assert data.of_promise(data.relative_errors(want, want), problem) == 0
    for name, promise in (("y", 1e-2), ("dx", 3e-2), ("weight", 3e-2)):
        errors = data.relative_errors({**want, name: 1.1 * want[name]}, want)
        assert data.of_promise(errors, problem) == pytest.approx(0.1 / promise)
        assert math.isnan(data.of_promise(data.relative_errors({**want, name: nan}, want), problem))
    longer = module("problems").CudaProblem("lstm", 1024, 1, 8, 8, "bf16")
    assert data.of_promise({"y": 1e-2}, longer) == pytest.approx(0.5)


def test_a_process_that_dies_or_hangs_is_noted(module: Any, tmp_path: Path) -> None:
    supervise = module("cuda_suite").supervise
    mark = tmp_path / "mark"

    def said(code: str, seconds: float = 90, stall_s: float = 90) -> str:
        mark.write_text("{}")
        text: str = supervise([sys.executable, "-c", code], mark, time.time() + seconds, stall_s)
        return text

    assert said("pass") == ""
    assert said("import sys; sys.exit(7)") == "the process ended with 7"
    assert said("import os; os.kill(os.getpid(), 9)") == "the process ended with -9"
    assert said("import time; time.sleep(90)", stall_s=1) == "nothing for 1 s"
    assert said("import time; time.sleep(90)", seconds=-30) == "out of time"


def test_stages_go_on_after_one_that_fails(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = module("cuda_all")
    for commands in everything.stages(tmp_path).values():
        for seconds, command in commands:
            assert (
                everything.LEAST_S + everything.CLOSING_S * (everything.TOTAL_S in command) <= seconds <= 500
            )
            assert all(Path(part).exists() for part in command if part.endswith(".py"))
    monkeypatch.setattr(everything, "LEAST_S", 0.1)
    monkeypatch.setattr(everything, "CLOSING_S", 0.0)
    python = sys.executable
    monkeypatch.setattr(
        everything,
        "stages",
        lambda out: {
            "build": [(20.0, [str(tmp_path / "no-such-command")]), (20.0, [python, "-c", "print('seen')"])],
            "grid": [(0.5, [python, "-c", "import time; time.sleep(60)"])],
            "peers": [(60.0, [python, "-c", "import sys; print(sys.argv[1])", everything.TOTAL_S])],
        },
    )
    monkeypatch.setattr(sys, "argv", ["cuda_all.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        everything.main()
    assert ended.value.code
    entries = json.loads((tmp_path / "cuda-all.json").read_text())
    assert [entry["stage"] for entry in entries] == ["build", "build", "grid", "peers"]
    assert "No such file" in entries[0]["status"]
    assert [entry["status"] for entry in entries[1:]] == [0, "stopped after 0.5 s", 0]
    assert [entry["said"] for entry in entries[1::2]] == ["seen", "60"]
    monkeypatch.setattr(sys, "argv", ["cuda_all.py", "peers", "--out", str(tmp_path), "--total-s", "0.05"])
    with pytest.raises(SystemExit, match="True"):
        everything.main()
    monkeypatch.setattr(sys, "argv", ["cuda_all.py", "peers", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        everything.main()
    assert not ended.value.code  # whatever came before
    entries = json.loads((tmp_path / "cuda-all.json").read_text())
    assert [entry["status"] for entry in entries[4:]] == ["left out: out of time", 0]


def test_targets_of_a_gpu_compare_within_a_precision(module: Any) -> None:
    targets = module("targets")

    def row(peer: str, precision: str, median_s: float, **sizes: int) -> dict[str, Any]:
        return {
            "cell": "lstm", "mode": "forward", "seq_len": 512, "batch": 16, "input_size": 256,
            "hidden_size": 256, "limit_fraction": None, "peer": peer, "precision": precision,
            "median_s": median_s, **sizes,
        }  # fmt: skip

    rows = [
        row("fusedrnn", "bf16", 1.0), row("torch", "bf16", 6.0), row("fusedrnn step", "bf16", 0.5),
        row("fusedrnn", "fp16", 1.0), row("torch", "fp16", 1.4), row("flashrnn", "bf16", 3.0),
        row("fusedrnn", "ieee", 1.0, batch=128), row("torch", "ieee", 2.0, batch=128),
    ]  # fmt: skip
    result = {"suite": "cuda", "machine": {"threads": 1}, "results": rows}
    assert list(targets.speed("forward")(result).values()) == [3.0, 1.4, 2.0]  # our kernels are no peers
    found = targets.evaluate(result)
    assert [(v["worst"], v["passed"], v["cases"]) for v in found] == [
        (6.0, True, 1), (2.0, True, 2), (1.4, False, 1), (3.0, False, 1),
    ]  # fmt: skip


@needs_emulator  # of the builds that are tested, one is enough
def test_the_costs_compile(tmp_path: Path) -> None:
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(nvcc).exists():
        pytest.skip("needs nvcc")
    target = ["-std=c++20", "-O1", "-gencode=arch=compute_90a,code=sm_90a", "--Werror=all-warnings", "-cubin"]
    cuda = BENCH.parent / "cuda"
    include = [f"-Xcompiler=-iquote,{path}" for path in (cuda / "gpu" / "include", cuda)]
    command = [nvcc, *target, *include, str(BENCH / "cuda_costs.cu"), "-o", str(tmp_path / "costs.cubin")]
    subprocess.run(command, check=True, timeout=200)
