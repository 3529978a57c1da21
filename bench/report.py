"""The table's lines, and what the results were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import targets

COLUMNS = (
    ("cell", 13), ("mode", 9), ("T", 4), ("B", 3), ("I", 5), ("H", 5), ("peer", 19),
    ("median us", 12), ("IQR us", 10), ("GFLOP/s", 8), ("tokens/s", 11), ("of floor", 8),
    ("x best other", 12),
)  # fmt: skip


def header() -> str:
    """The first line of the table. "x best other": times faster than the fastest of the other peers."""
    return " ".join(name.rjust(width) for name, width in COLUMNS)


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    fraction, speed = row["limit_fraction"], row["speed_over_best_other"]
    fields = (
        " ".join(filter(None, (row["cell"], row.get("precision")))),
        row["mode"],
        str(row["seq_len"]),
        str(row["batch"]),
        str(row["input_size"]),
        str(row["hidden_size"]),
        row["peer"],
        f"{row['median_s'] * 1e6:.1f}",
        f"{(row['q3_s'] - row['q1_s']) * 1e6:.1f}",
        f"{row['gflops']:.1f}",
        f"{row['tokens_per_s']:.0f}",
        "n/a" if fraction is None else f"{fraction:.0%}",
        "n/a" if speed is None else f"{speed:.2f}",
    )
    return " ".join(field.rjust(width) for field, (_, width) in zip(fields, COLUMNS, strict=True))


def save(result: dict[str, Any], stem: Path) -> None:
    """Print the targets; write everything as `stem`.json and the tables as `stem`.txt."""
    verdicts = targets.lines(result["targets"])
    print("\n" + "\n".join(verdicts))
    numbers = [f"{name}: {value:.3g}" for name, value in result["features"].items()]
    save_lines(result, [header(), *map(line, result["results"]), *numbers, "", *verdicts], stem)


def save_suite(
    suite: str, threads: int, peers: dict[str, ModuleType], rows: list[Any], lines: list[str], out: Path
) -> None:
    """Write a suite that has a table of its own into the folder `out`."""
    result = {"suite": suite, "machine": machine(threads, peers), "results": rows}
    save_lines(result, lines, out / f"{suite}-{threads}")


def save_lines(result: dict[str, Any], lines: list[str], stem: Path) -> None:
    """Write everything as `stem`.json and what people read as `stem`.txt."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    print(f"\nsaved {stem}.json and {stem}.txt")


def machine(threads: int, peers: dict[str, ModuleType]) -> dict[str, Any]:
    """CPU, instruction set, compiler, versions, commit and thread count of this run."""
    import fusedrnn as fr

    config = fr.config()
    return {
        "cpu": cpu_model(),
        "threads": threads,
        "cores": os.cpu_count(),
        "isa": config.get("isa"),
        "compiler": config.get("compiler"),
        "build_type": config.get("build_type"),
        "versions": {
            "python": platform.python_version(),
            **{name: peer.version() for name, peer in peers.items()},
        },
        "system": platform.system(),
        "commit": commit(),
        "load_average": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    for text in info.read_text().splitlines() if info.exists() else ():
        if text.startswith("model name"):
            return text.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of this checkout, "+changes" if files differ from it, or "unknown" outside of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
