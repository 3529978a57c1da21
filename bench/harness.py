"""Checks that peers agree, then times them round by round: a slow moment of the machine hits all of them.

A slow minute does not, where there is one problem after the other: all of them are visited several times.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from peers import PEERS
from problems import Limits, Problem
from targets import OURS, family

VISITS = 3
SETTLE_S = 0.02  # idle threads of the peer before may spin for some milliseconds more
SLOW = 20  # times our time


@dataclass(frozen=True)
class Plan:
    """How long to measure: samples of each peer, seconds of a sample, seconds of one comparison.

    Three samples are the least that quartiles need. A peer far behind the first gets no more.
    """

    rounds: int
    sample_s: float
    budget_s: float
    least: int = 3

    def visit(self) -> Plan:
        """One visit's part."""
        return Plan(math.ceil(self.rounds / VISITS), self.sample_s, self.budget_s / VISITS, 1)


def usable_peers(names: Iterable[str] | None, threads: int) -> dict[str, ModuleType]:
    """The peers asked for (all, if None) that are installed, set to `threads` threads."""
    unknown = sorted(set(names or ()) - set(PEERS))
    if unknown:
        raise SystemExit(f"--peers: expected some of {', '.join(PEERS)}, got {', '.join(unknown)}")
    usable = {}
    for name in names or PEERS:
        if PEERS[name].available():
            usable[name] = PEERS[name]
            usable[name].set_threads(threads)
        else:
            print(f"{name}: not installed, left out")
    return usable


def measure_limits(threads: int) -> Limits | None:
    """The limits of `threads` cores, each as fast as one alone, best of five; None if the build has none."""
    import fusedrnn._core as core

    measure = getattr(core, "measure_limits", None)
    if measure is None:
        return None
    runs = [measure() for _ in range(5)]

    def best(name: str) -> float:
        return max(float(run[name]) for run in runs)

    sizes = cache_sizes()
    # Threads may share a matrix out, so that each one's part fits into its own first and second level.
    reading = [
        (sizes[level] * threads, best(f"l{level}_gbs") * threads) for level in (1, 2) if level in sizes
    ]
    if 3 in sizes:
        far = max(best("l3_gbs"), numpy_read_gbs(max(sizes[3] // 4, 2 * sizes.get(2, 0))))
        reading.append((sizes[3], far * threads))
    memory = max(best("dram_gbs"), numpy_read_gbs(max(2 * sizes.get(3, 0), 32 << 20)))
    return {
        "peak_gflops": best("peak_gflops_f32") * threads,
        "read_gbs": [*reading, (None, memory * threads)],
        "lstm_unit_ns": min(float(run["activation_ns"]) for run in runs) / threads,
    }


def numpy_read_gbs(size: int) -> float:
    """The rate at which NumPy finds the largest float of `size` bytes.

    Its large arrays lie in large pages, where the system has them, and are read up to four times as fast
    from beyond the second level as the small pages that `_core.measure_limits` reads.
    """
    array = np.ones(size // 4, np.float32)
    array.max()
    return size * 1e-9 / min(seconds_per_call(lambda: array.max(), 3) for _ in range(5))


def cache_sizes() -> dict[int, int]:
    """Bytes of the data cache of each level, as far as the system tells."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (index / "type").read_text().strip() != "Instruction":
            text = (index / "size").read_text().strip()
            sizes[int((index / "level").read_text())] = int(text[:-1]) * units[text[-1]]
    return sizes


def check_agreement(outputs: dict[str, dict[str, Any]], tolerance: float, where: str) -> None:
    """Stop unless the outputs of all peers are within `tolerance` times the first's largest element."""
    first, *others = outputs
    for other in others:
        if outputs[other].keys() != outputs[first].keys():
            raise SystemExit(
                f"{where}: {other} gives {sorted(outputs[other])}, {first} {sorted(outputs[first])}"
            )
        for name, expected in outputs[first].items():
            got = outputs[other][name]
            error = float(np.max(np.abs(got - expected))) if got.shape == expected.shape else math.inf
            bound = tolerance * float(np.max(np.abs(expected)))
            if not error <= bound:
                raise SystemExit(
                    f"{where}: {name} of {other} and {first} differ by {error:.3g}, bound {bound:.3g}"
                )


def seconds_per_call(call: Callable[[], None], repeats: int) -> float:
    """The mean time of `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def sample(
    calls: dict[str, Callable[[], None]],
    plan: Plan,
    timer: Callable[[Callable[[], None], int], float] = seconds_per_call,
    settle_s: float = SETTLE_S,
    single: dict[str, float] | None = None,
) -> dict[str, list[float]]:
    """Seconds a call of each peer, one sample a round, the peers taking turns and the order rotating.

    Every call must have run before: its first time may compile or allocate. `timer` is `seconds_per_call`, or
    what does the same on another device. `single` is about how long each call takes, where that is known.
    """
    single = single or estimates(calls, plan, timer)
    repeats = {name: max(1, math.ceil(plan.sample_s / seconds)) for name, seconds in single.items()}
    slow = SLOW * single[OURS if OURS in calls else next(iter(calls))]
    rounds = {name: plan.least if single[name] > slow else plan.rounds for name in calls}
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    for index in range(max(plan.least, plan.rounds)):
        if index >= plan.least and time.perf_counter() - start > plan.budget_s:
            break
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            if index < rounds[name]:
                time.sleep(settle_s)
                if repeats[name] > 1:
                    calls[name]()
                samples[name].append(timer(calls[name], repeats[name]))
    gc.enable()
    return samples


def estimates(
    calls: dict[str, Callable[[], None]],
    plan: Plan,
    timer: Callable[[Callable[[], None], int], float] = seconds_per_call,
) -> dict[str, float]:
    """About how long each call takes; more than one call where one is too short to tell."""
    once = {name: timer(call, 1) for name, call in calls.items()}
    return {
        name: seconds if seconds > plan.sample_s else timer(calls[name], 10) for name, seconds in once.items()
    }


def joins(peer: ModuleType, problem: Problem, mode: str, named: bool) -> bool:
    """Whether a peer takes the problem on: it can, and it was named or is not too slow for it."""
    small = problem.flop("forward") <= getattr(peer, "LARGEST", math.inf)
    return peer.supports(problem, mode) and (small or named)


@dataclass
class Comparison:
    """One problem in one mode: every peer that takes it on, set up, and its samples so far."""

    problem: Problem
    mode: str
    calls: dict[str, Callable[[], None]]
    turns: dict[str, Callable[[], None]]  # ours on all threads and on one; empty on one thread
    single: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    turn_samples: dict[str, list[float]] = field(default_factory=dict)

    def visit(self, plan: Plan, first: int) -> None:
        """Take the samples of one visit; the peers begin with number `first`."""
        if not self.single:
            self.single = estimates({**self.calls, **self.turns}, plan)
        names = [*self.calls]
        names = names[first % len(names) :] + names[: first % len(names)]
        for kept, calls in (
            (self.samples, {name: self.calls[name] for name in names}),
            (self.turn_samples, self.turns),
        ):
            for name, times in sample(calls, plan, single=self.single).items() if calls else ():
                kept.setdefault(name, []).extend(times)

    def rows(self, limits: Limits | None) -> list[dict[str, Any]]:
        """One row of results for each peer."""
        in_order = {name: self.samples[name] for name in self.calls}
        rows = rows_of(self.problem, self.mode, in_order, limits)
        if self.turns:
            one, every = (statistics.median(self.turn_samples[name]) for name in ("one", "all"))
            rows[0]["over_one_thread"] = one / every
        return rows


def prepare(
    peers: dict[str, ModuleType], problem: Problem, mode: str, named: bool, threads: int
) -> Comparison | None:
    """The peers that take the problem on, after a check that they agree; None if none does."""
    runs = {
        name: peer.setup(problem, mode) for name, peer in peers.items() if joins(peer, problem, mode, named)
    }
    if not runs:
        return None
    where = f"{problem.describe()} {mode}"
    check_agreement({name: run.output() for name, run in runs.items()}, problem.tolerance, where)
    turns = {}
    if threads > 1 and OURS in runs:
        turns = both_thread_counts(peers[OURS], runs[OURS].call, threads)
    return Comparison(problem, mode, {name: run.call for name, run in runs.items()}, turns)


def rows_of(
    problem: Problem, mode: str, samples: dict[str, list[float]], limits: Limits | None
) -> list[dict[str, Any]]:
    """The results of one comparison, from the seconds a call of each peer."""
    medians = {name: statistics.median(times) for name, times in samples.items()}
    floor_s = None if limits is None else problem.floor_s(mode, limits)
    rows: list[dict[str, Any]] = []
    for name, times in samples.items():
        q1, _, q3 = statistics.quantiles(times, n=4, method="inclusive")
        others = [median for other, median in medians.items() if family(other) != family(name)]
        rows.append(
            {
                **problem.describe(),
                "mode": mode,
                "peer": name,
                "median_s": medians[name],
                "q1_s": q1,
                "q3_s": q3,
                "samples": len(times),
                "gflops": problem.flop(mode) / medians[name] * 1e-9,
                "tokens_per_s": problem.seq_len * problem.batch / medians[name],
                "limit_fraction": floor_s / medians[name] if floor_s else None,
                "speed_over_best_other": min(others) / medians[name] if others else None,
            }
        )
    return rows


def both_thread_counts(
    peer: ModuleType, call: Callable[[], None], threads: int
) -> dict[str, Callable[[], None]]:
    """A call of a peer on all threads and on one, which leave it on all."""

    def on(count: int) -> Callable[[], None]:
        def counted() -> None:
            peer.set_threads(count)
            call()
            peer.set_threads(threads)

        counted()
        return counted

    return {"all": on(threads), "one": on(1)}
