#!/usr/bin/env python3
"""Print the table of docs/performance.md from results of run.py on one and on several threads.

usage: table.py ONE_THREAD.json SEVERAL_THREADS.json
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import targets

NAMES = {
    "lstm": "LSTM",
    "gru": "GRU",
    "rnn_tanh": "RNN",
    "torch": "torch",
    "jax": "JAX",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "numpy": "NumPy",
}


def microseconds(row: dict[str, Any]) -> str:
    """Three digits, or all before the point."""
    value = row["median_s"] * 1e6
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value < 100 else f"{value:.0f}"


def best_peer(result: dict[str, Any], row: dict[str, Any]) -> str:
    """Our speed over the best peer's, and its name; in training, of those that train for a living."""
    rivals = [
        r
        for r in result["results"]
        if targets.label(r) == targets.label(row)
        and r["peer"] != targets.OURS
        and (row["mode"] == "forward" or r["peer"] in targets.TRAINERS)
    ]
    if not rivals:
        return ""
    best = min(rivals, key=lambda r: float(r["median_s"]))
    return f"{best['median_s'] / row['median_s']:.2f} x {NAMES[best['peer']]}"


def lines(one: dict[str, Any], several: dict[str, Any]) -> list[str]:
    """The head, and one line for each problem and mode."""
    threads = several["machine"]["threads"]
    on_several = {targets.label(row): row for row in targets.ours(several, None, targets.anywhere)}
    text = [
        f"| cell | T, B, I = H | mode | us, 1 thread | of floor | best peer "
        f"| us, {threads} threads | over 1 thread | best peer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in targets.ours(one, None, targets.anywhere):
        other = on_several[targets.label(row)]
        sizes = f"{row['seq_len']}, {row['batch']}, {row['hidden_size']}"
        if row["input_size"] != row["hidden_size"]:
            sizes = f"{row['seq_len']}, {row['batch']}, {row['input_size']} -> {row['hidden_size']}"
        text.append(
            f"| {NAMES[row['cell']]} | {sizes} | {row['mode']} | {microseconds(row)} "
            f"| {row['limit_fraction']:.0%} | {best_peer(one, row)} "
            f"| {microseconds(other)} | {other['over_one_thread']:.2f} x | {best_peer(several, other)} |"
        )
    return text


def main() -> None:
    """Print the table."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    print("\n".join(lines(*[json.loads(Path(name).read_text()) for name in sys.argv[1:]])))


if __name__ == "__main__":
    main()
