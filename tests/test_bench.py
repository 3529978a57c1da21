"""The benchmark harness: what it compares and keeps, and how it judges; never how fast anything is."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of bench/; the number of threads is restored."""
    threads = fr.get_num_threads()
    monkeypatch.syspath_prepend(str(BENCH))
    names = ("harness", "problems", "targets", "table", "cpu_suite")
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    fr.set_num_threads(threads)


def peer(outputs: list[float], calls: list[str], name: str) -> ModuleType:
    """One that gives these outputs and notes its calls."""
    run = SimpleNamespace(call=lambda: calls.append(name), output=lambda: {"y": np.array(outputs)})
    functions = {"supports": lambda *_: True, "setup": lambda *_: run, "set_threads": lambda _: None}
    return SimpleNamespace(**functions)  # type: ignore[return-value]


def test_every_visit_adds_samples_of_every_peer(bench: SimpleNamespace) -> None:
    calls: list[str] = []
    peers = {name: peer([1.0], calls, name) for name in ("fusedrnn", "torch")}
    problem = bench.problems.LayerProblem("lstm", 3, 2, 4, 4)
    comparison = bench.harness.prepare(peers, problem, "forward", True, 2)
    plan = bench.harness.Plan(6, 1e-5, 5.0)
    for visit in range(bench.harness.VISITS):
        comparison.visit(plan.visit(), visit)
    rows = comparison.rows(None)
    assert [row["peer"] for row in rows] == ["fusedrnn", "torch"]
    assert [row["samples"] for row in rows] == [6, 6]
    assert set(calls) == set(peers)
    assert rows[0]["over_one_thread"] > 0
    assert "over_one_thread" not in rows[1]


def test_peers_that_disagree_are_not_timed(bench: SimpleNamespace) -> None:
    calls: list[str] = []
    peers = {"fusedrnn": peer([1.0], calls, "fusedrnn"), "torch": peer([1.1], calls, "torch")}
    problem = bench.problems.LayerProblem("gru", 3, 2, 4, 4)
    with pytest.raises(SystemExit, match="y of torch and fusedrnn differ"):
        bench.harness.prepare(peers, problem, "forward", True, 1)
    assert calls == []


def row(peer: str, mode: str, median_s: float, **others: Any) -> dict[str, Any]:
    """A row of a result."""
    return {
        "cell": "lstm", "mode": mode, "seq_len": 100, "batch": 32, "input_size": 256, "hidden_size": 256,
        "limit_fraction": 0.9, "peer": peer, "median_s": median_s, **others,
    }  # fmt: skip


def test_verdicts_count_the_best_peer_and_the_grid_on_two_threads(bench: SimpleNamespace) -> None:
    rows = [
        row("fusedrnn", "forward", 1.0, over_one_thread=1.8), row("torch", "forward", 1.5),
        row("jax", "forward", 1.05), row("fusedrnn", "training", 1.0, over_one_thread=0.9),
        row("torch", "training", 4.0), row("numpy", "training", 0.5),
    ]  # fmt: skip
    result = {"suite": "grid", "machine": {"threads": 2}, "results": rows}
    found = {(v["target"], v["bound"]): v for v in bench.targets.evaluate(result)}
    forward = found["forward over the best peer", "at least 1.1"]
    training = found["training over the best of torch and jax", "at least 1.1"]
    slower = found["two threads over one", "at least 1"]
    assert (forward["worst"], forward["passed"]) == (1.05, False)
    assert (training["worst"], training["passed"]) == (4.0, True)
    assert list(slower["misses"].values()) == [0.9]
    one = {"suite": "grid", "machine": {"threads": 1}, "results": rows}
    assert len(bench.table.lines(one, result)) == 2 + 2


def test_training_memory_is_held_against_torch(bench: SimpleNamespace) -> None:
    memory = {"training memory of fusedrnn, MiB": 60.0, "training memory of torch, MiB": 50.0}
    result = {"suite": "features", "machine": {"threads": 1}, "results": [], "features": memory}
    assert [(v["worst"], v["passed"]) for v in bench.targets.evaluate(result)] == [(1.2, False)]
    del memory["training memory of torch, MiB"]
    assert bench.targets.evaluate(result) == []


def test_the_parts_of_the_suite_end_in_one_table(
    bench: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = []

    def measure(command: list[str], check: bool) -> None:
        commands.append(command)
        suite, threads = command[3], int(command[5])
        over = {"over_one_thread": 1.9} if threads == 2 else {}
        rows = [row("fusedrnn", "forward", 1.0, **over), row("torch", "forward", 3.0)]
        result = {"suite": suite, "machine": {"threads": threads}, "results": rows}
        result["targets"] = bench.targets.evaluate(result)
        (tmp_path / f"{suite}-{threads}.json").write_text(json.dumps(result))

    monkeypatch.setattr(subprocess, "run", measure)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    bench.cpu_suite.run(None, ["--rounds", "3"], tmp_path)
    assert [(command[3], int(command[5])) for command in commands] == list(bench.cpu_suite.PARTS)
    assert all(command[0] == sys.executable and command[-2:] == ["--rounds", "3"] for command in commands)
    text = (tmp_path / "cpu.txt").read_text()
    assert text in capsys.readouterr().out
    assert "| LSTM | 100, 32, 256 | forward |" in text
    assert "PASS  two threads over one, B*H >= 4096: at least 1.7; worst 1.9, 1 of 1 pass" in text
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    bench.cpu_suite.run(None, [], tmp_path)
    assert "grid on 2 threads: not timed, there is one core" in (tmp_path / "cpu.txt").read_text()
