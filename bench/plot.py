#!/usr/bin/env python3
"""Draw results of run.py: how many times faster than the best peer on each shape, a panel a cell and mode.

usage: plot.py RESULTS.json [RESULTS.json ...] [PICTURE.svg|.png]

A colour for each file; for each precision, where results of a GPU have several.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import targets

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, NullLocator

COLOURS = ("#1b6ca8", "#d1603d", "#5a8f4e", "#8a5aa8")
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)
MODES = ("forward", "training")


def shape_label(row: dict[str, Any]) -> str:
    """T, B and H, and I where it differs from H."""
    inputs = "" if row["input_size"] == row["hidden_size"] else f"{row['input_size']}→"
    return f"{row['seq_len']},{row['batch']},{inputs}{row['hidden_size']}"


def speeds(result: dict[str, Any], cell: str, mode: str) -> dict[str, float]:
    """Speed over the best peer by shape, as the targets count it."""
    by_row = targets.speed(mode)(result)
    rows = targets.ours(result, mode, lambda row: bool(row["cell"] == cell))
    return {shape_label(row): by_row[targets.label(row)] for row in rows if targets.label(row) in by_row}


def series(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The results under the name of their colour: the threads of a file, or each of its precisions."""
    threads = result["machine"]["threads"]
    rows = result["results"]
    names = list(dict.fromkeys(row["precision"] for row in rows if "precision" in row))
    if not names:
        return [{**result, "name": f"{threads} thread{'s' if threads > 1 else ''}"}]
    return [{**result, "name": n, "results": [r for r in rows if r["precision"] == n]} for n in names]


def draw_panel(axes: Any, results: list[dict[str, Any]], shapes: list[str], cell: str, mode: str) -> None:
    """Bars from the line of equal speed, upwards where we are faster."""
    width = 0.8 / len(results)
    for index, result in enumerate(results):
        found = speeds(result, cell, mode)
        x = [shapes.index(shape) + width * (index - (len(results) - 1) / 2) for shape in found]
        heights = [value - 1 for value in found.values()]
        axes.bar(x, heights, width, bottom=1, color=COLOURS[index % len(COLOURS)], label=result["name"])
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_yticks(TICKS)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.set_xticks(range(len(shapes)), shapes, rotation=60, ha="right", rotation_mode="anchor")
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.set_title(f"{cell}, {mode}", fontsize=9)


def main() -> None:
    """Read the JSON, write the picture."""
    paths = [Path(argument) for argument in sys.argv[1:]]
    sources = [path for path in paths if path.suffix == ".json"]
    pictures = [path for path in paths if path.suffix in (".svg", ".png")]
    if not sources or len(pictures) > 1 or len(paths) != len(sources) + len(pictures):
        raise SystemExit(__doc__)
    picture = pictures[0] if pictures else sources[0].with_suffix(".svg")
    results = [part for source in sources for part in series(json.loads(source.read_text()))]
    rows = [row for result in results for row in result["results"] if row["mode"] in MODES]
    if not rows:
        raise SystemExit(f"plot.py: expected results of modes {' or '.join(MODES)}, got none")
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    shapes = list(dict.fromkeys(shape_label(row) for row in rows))
    size = (4.4 * len(modes), 1.7 * len(cells) + 1.2)
    figure, panels = plt.subplots(
        len(cells), len(modes), figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for i, cell in enumerate(cells):
        for j, mode in enumerate(modes):
            draw_panel(panels[i][j], results, shapes, cell, mode)
    values = [v for r in results for c in cells for m in modes for v in speeds(r, c, m).values()]
    panels[0][0].set_ylim(0.8 * min([1, *values]), 1.25 * max([1, *values]))
    panels[0][0].legend(fontsize=8)
    machine = results[0]["machine"]
    peers = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if k not in ("python", "fusedrnn"))
    title = "Times faster than the best peer, by shape T,B,H or T,B,I→H"
    where = machine["device"]["name"] if "device" in machine else f"{machine['cpu']}, {machine['isa']}"
    figure.suptitle(f"{title}\n{where}; {peers}", fontsize=9)
    figure.savefig(picture, dpi=150)
    print(f"saved {picture}")


if __name__ == "__main__":
    main()
