#!/usr/bin/env python3
"""What this project asks of its speed, evaluated from results files alone.

usage: targets.py RESULTS.json
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
Result: TypeAlias = dict[str, Any]
Values: TypeAlias = dict[str, float]  # a number for each shape or feature

OURS = "fusedrnn"
TRAINERS = ("torch", "jax")


def anywhere(row: Row) -> bool:
    """Every row."""
    return True


def label(row: Row) -> str:
    """What a row is of."""
    sizes = ",".join(str(row[name]) for name in ("seq_len", "batch", "input_size", "hidden_size"))
    precision = f" {row['precision']}" if "precision" in row else ""
    return f"{row['cell']} {row['mode']}{precision} ({sizes})"


def family(peer: str) -> str:
    """Whose a peer is: "fusedrnn step" is one kernel of ours, "fusedrnn" what a call of ours takes."""
    return peer.split()[0]


def ours(result: Result, mode: str | None, where: Callable[[Row], bool]) -> list[Row]:
    """Our rows of a mode, or of every mode."""
    rows = result["results"]
    return [r for r in rows if r["peer"] == OURS and mode in (None, r["mode"]) and where(r)]


def speed(mode: str, where: Callable[[Row], bool] = anywhere) -> Callable[[Result], Values]:
    """Times faster than the best peer; in training, than the best that trains for a living."""

    def values(result: Result) -> Values:
        found = {}
        for row in ours(result, mode, where):
            others = [
                r["median_s"]
                for r in result["results"]
                if label(r) == label(row)
                and family(r["peer"]) != OURS
                and (mode != "training" or "precision" in r or r["peer"] in TRAINERS)
            ]
            if others:
                found[label(row)] = min(others) / row["median_s"]
        return found

    return values


def over(peer: str, where: Callable[[Row], bool]) -> Callable[[Result], Values]:
    """Times faster than one peer, in every mode."""

    def values(result: Result) -> Values:
        theirs = {label(r): r["median_s"] for r in result["results"] if r["peer"] == peer}
        rows = ours(result, None, where)
        return {label(r): theirs[label(r)] / r["median_s"] for r in rows if label(r) in theirs}

    return values


def errors(result: Result) -> Values:
    """The error of each kernel of ours over what is promised."""
    rows = [r for r in result["results"] if family(r["peer"]) == OURS and "of_promise" in r]
    return {f"{label(r)}, {r['peer']}": r["of_promise"] for r in rows}


def floor(where: Callable[[Row], bool]) -> Callable[[Result], Values]:
    """The fraction of the measured limits that we reach, in every mode."""

    def values(result: Result) -> Values:
        rows = ours(result, None, where)
        return {label(r): r["limit_fraction"] for r in rows if r["limit_fraction"] is not None}

    return values


def limit(mode: str) -> Callable[[Result], Values]:
    """The same in one mode."""
    return floor(lambda row: bool(row["mode"] == mode))


def microseconds(mode: str, where: Callable[[Row], bool]) -> Callable[[Result], Values]:
    """Our time of a call."""
    return lambda result: {label(r): r["median_s"] * 1e6 for r in ours(result, mode, where)}


def feature(*starts: str) -> Callable[[Result], Values]:
    """The numbers of features.py whose names start so."""
    return lambda result: {k: v for k, v in result.get("features", {}).items() if k.startswith(starts)}


def memory(result: Result) -> Values:
    """The growth of the peak memory by training, over torch's."""
    found = {k: v for k, v in result.get("features", {}).items() if k.startswith("training memory of")}
    if len(found) < 2:
        return {}
    mine, theirs = found["training memory of fusedrnn, MiB"], found["training memory of torch, MiB"]
    return {"LSTM (100,32,256)": mine / theirs}


def scaling(where: Callable[[Row], bool] = anywhere) -> Callable[[Result], Values]:
    """Our time on one thread, measured in turns in the same run, over our time on all."""
    return lambda result: {
        label(r): r["over_one_thread"] for r in ours(result, None, where) if r.get("over_one_thread")
    }


@dataclass(frozen=True)
class Target:
    """A bound on each value of one suite on so many threads (None: any); without one, where they stand."""

    text: str
    suite: str
    threads: int | None
    values: Callable[[Result], Values]
    at_least: float | None = None
    at_most: float | None = None


def one_row(r: Row) -> bool:
    return bool(r["batch"] == 1)


def many_units(r: Row) -> bool:
    return bool(r["batch"] > 1 and r["hidden_size"] >= 512)


def many_rows(r: Row) -> bool:
    return bool(r["batch"] >= 32 and 64 <= r["hidden_size"] <= 256)


def hidden(size: int) -> Callable[[Row], bool]:
    """Rows of this hidden size."""
    return lambda r: bool(r["hidden_size"] == size)


def cudnn_persistent(r: Row) -> bool:
    """What torch runs on cuDNN's persistent kernel: a narrow box of LSTMs in fp16."""
    return bool(
        r["precision"] == "fp16"
        and r["cell"] == "lstm"
        and r["mode"] != "stream"
        and r["hidden_size"] % 128 == r["input_size"] % 128 == r["batch"] % 8 == 0
        and r["hidden_size"] <= 1024
        and r["batch"] <= 128
    )


def cudnn_steps(r: Row) -> bool:
    """The precisions in which torch has no such kernel."""
    return bool(r["precision"] != "fp16" and r["mode"] != "stream")


TARGETS = (
    Target("forward over the best peer", "grid", 1, speed("forward"), at_least=1.15),
    Target(
        "training, H <= 256, over the best of torch and jax", "grid", 1,
        speed("training", lambda r: r["hidden_size"] <= 256), at_least=1.4,
    ),
    Target(
        "training, H >= 512, over the best of torch and jax", "grid", 1,
        speed("training", lambda r: r["hidden_size"] >= 512), at_least=1.2,
    ),
    Target("of the limit, forward", "grid", None, limit("forward")),
    Target("of the limit, training", "grid", None, limit("training")),
    Target("forward over the best peer", "grid", None, speed("forward")),
    Target("training over the best of torch and jax", "grid", None, speed("training")),
    Target("of the floor, B >= 32 and H 64..256", "grid", 1, floor(many_rows), at_least=0.80),
    Target("of the floor, B > 1 and H >= 512", "grid", 1, floor(many_units), at_least=0.75),
    Target("of the floor, B = 1", "grid", 1, floor(one_row), at_least=0.65),
    Target("forward over the best peer", "grid", 2, speed("forward"), at_least=1.1),
    Target("training over the best of torch and jax", "grid", 2, speed("training"), at_least=1.1),
    Target(
        "two threads over one, B*H >= 4096", "grid", 2,
        scaling(lambda r: r["batch"] * r["hidden_size"] >= 4096), at_least=1.7,
    ),
    Target("two threads over one", "grid", 2, scaling(), at_least=1),
    Target("odd forward over the best peer", "odd", None, speed("forward"), at_least=1.1),
    Target("odd training over the best of torch and jax", "odd", None, speed("training"), at_least=1.1),
    Target(
        "streamed step, H = 64, over the best peer", "features", None,
        speed("stream", hidden(64)), at_least=8,
    ),
    Target(
        "streamed step, H = 256, over the best peer", "features", None,
        speed("stream", hidden(256)), at_least=2.2,
    ),
    Target(
        "call of a step object, H = 8, us", "features", None,
        microseconds("stream", hidden(8)), at_most=2.5,
    ),
    Target("call of a module, H = 8, us", "features", None, microseconds("forward", hidden(8)), at_most=6),
    Target("lengths", "features", None, feature("time with lengths"), at_most=0.62),
    Target("lengths, against packing", "features", None, feature("torch's packed"), at_least=3),
    Target("resets", "features", None, feature("time with resets"), at_most=1.05),
    Target("recomputed tape, time", "features", None, feature("recompute: time"), at_most=1.4),
    Target("recomputed tape, memory", "features", None, feature("recompute: saved tape"), at_least=2.5),
    Target("training memory over torch's", "features", None, memory, at_most=1),
    Target("quantized stream over float32", "features", None, feature("quantized"), at_least=1.6),
    Target(
        "bf16, tf32 and ieee over torch, B <= 64 and H <= 1024", "cuda", None,
        over("torch", lambda r: cudnn_steps(r) and r["batch"] <= 64 and r["hidden_size"] <= 1024), at_least=5,
    ),
    Target("bf16, tf32 and ieee over torch", "cuda", None, over("torch", cudnn_steps), at_least=1.3),
    Target(
        "fp16 over cuDNN's persistent kernel", "cuda", None, over("torch", cudnn_persistent), at_least=1.5,
    ),
    Target(
        "over FlashRNN's fused kernel, H >= 256", "cuda", None,
        over("flashrnn", lambda r: r["hidden_size"] >= 256), at_least=4,
    ),
    Target("errors over their promise", "cuda", None, errors, at_most=1),
    Target(
        "a streamed step, of the time of a launch", "cuda", None,
        floor(lambda r: r["mode"] == "stream"), at_least=1 / 1.3,
    ),
)  # fmt: skip


def verdict(target: Target, values: Values) -> dict[str, Any]:
    """How the values stand against the bound, and every one that misses it; without a bound, their middle."""
    if target.at_most is not None:
        bound, worst = f"at most {target.at_most:g}", max(values.values())
        misses = {name: value for name, value in values.items() if not value <= target.at_most}
    else:
        bound, worst = "", min(values.values())
        misses = {}
        if target.at_least is not None:
            bound = f"at least {target.at_least:g}"
            misses = {name: value for name, value in values.items() if not value >= target.at_least}
    return {
        "target": target.text,
        "bound": bound,
        "passed": not misses,
        "worst": worst,
        "mean": math.exp(sum(math.log(value) for value in values.values()) / len(values)),
        "cases": len(values),
        "misses": misses,
    }


def evaluate(result: Result) -> list[dict[str, Any]]:
    """The verdicts on one results file; targets without a measured value are left out."""
    threads = result["machine"]["threads"]
    verdicts = []
    for target in TARGETS:
        if target.suite == result["suite"] and target.threads in (None, threads):
            values = target.values(result)
            if values:
                verdicts.append(verdict(target, values))
    return verdicts


def lines(verdicts: list[dict[str, Any]]) -> list[str]:
    """A PASS or FAIL line for each bound and one for each miss; of what has none, where it stands."""
    text = []
    for v in verdicts:
        if not v["bound"]:
            mean, worst = f"geometric mean {v['mean']:.3g}", f"worst {v['worst']:.3g}"
            text.append(f"      {v['target']}: {mean}, {worst}, of {v['cases']}")
            continue
        passed = v["cases"] - len(v["misses"])
        text.append(
            f"{'PASS' if v['passed'] else 'FAIL'}  {v['target']}: {v['bound']}; "
            f"worst {v['worst']:.3g}, {passed} of {v['cases']} pass"
        )
        text += [f"        {name}: {value:.3g}" for name, value in v["misses"].items()]
    return text


def main() -> None:
    """Evaluate one file."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print("\n".join(lines(evaluate(json.loads(Path(sys.argv[1]).read_text())))))


if __name__ == "__main__":
    main()
