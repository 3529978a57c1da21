#!/usr/bin/env python3
"""Draw a results file of run.py: the time of each peer on each shape, a panel for each cell and mode.

usage: plot.py RESULTS.json [PICTURE.svg|.png]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"fusedrnn": "#1b6ca8", "torch": "#d1603d", "numpy": "#8a8a8a"}


def shape_label(row: dict[str, Any]) -> str:
    """T, B and H on three lines."""
    return f"T {row['seq_len']}\nB {row['batch']}\nH {row['hidden_size']}"


def draw_panel(axes: Any, rows: list[dict[str, Any]], peers: list[str]) -> None:
    """A point for each peer and shape on a log axis of time, with its quartiles, and fusedrnn's ratio."""
    labels = list(dict.fromkeys(shape_label(row) for row in rows))
    for index, peer in enumerate(peers):
        mine = [row for row in rows if row["peer"] == peer]
        shift = 0.12 * (index - (len(peers) - 1) / 2)
        x = [labels.index(shape_label(row)) + shift for row in mine]
        y = [row["median_s"] * 1e6 for row in mine]
        below = [(row["median_s"] - row["q1_s"]) * 1e6 for row in mine]
        above = [(row["q3_s"] - row["median_s"]) * 1e6 for row in mine]
        axes.errorbar(x, y, (below, above), fmt="o", markersize=5, label=peer, color=COLOURS.get(peer))
        for at, height, row in zip(x, y, mine, strict=True):
            speed = row["speed_over_best_other"]
            if peer == "fusedrnn" and speed is not None:
                text = f"{speed:.1f}x"
                axes.annotate(
                    text, (at, height), (0, -12), textcoords="offset points", ha="center", fontsize=7
                )
    axes.set_yscale("log")
    axes.margins(x=0.1, y=0.15)
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel("us a call, median", fontsize=8)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)


def main() -> None:
    """Read the JSON, write the picture."""
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    source = Path(sys.argv[1])
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else source.with_suffix(".svg")
    result = json.loads(source.read_text())
    rows, machine = result["results"], result["machine"]
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    shapes = len({shape_label(row) for row in rows})
    size = (max(4.0, 0.75 * shapes + 1.5) * len(modes), 2.6 * len(cells) + 0.9)
    figure, panels = plt.subplots(len(cells), len(modes), figsize=size, squeeze=False, layout="constrained")
    for i, cell in enumerate(cells):
        for j, mode in enumerate(modes):
            draw_panel(panels[i][j], [r for r in rows if r["cell"] == cell and r["mode"] == mode], peers)
            panels[i][j].set_title(f"{cell}, {mode}", fontsize=9)
    panels[0][0].legend(fontsize=7)
    versions = ", ".join(f"{peer} {machine['versions'][peer]}" for peer in peers)
    figure.suptitle(
        f"{machine['cpu']}, {machine['isa']}, {machine['threads']} thread(s)\n{versions}; "
        "numbers: times faster than the fastest other",
        fontsize=8,
    )
    figure.savefig(target, dpi=150)
    print(f"saved {target}")


if __name__ == "__main__":
    main()
