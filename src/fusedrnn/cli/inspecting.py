"""`fusedrnn inspect`: a page that shows what the units of a language model do, character by character."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fusedrnn.cli.charlm import SavedModel, load_model
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.reported import reported
from fusedrnn.cli.text import read_text
from fusedrnn.files import write_atomically
from fusedrnn.interpret import CellRecord, cell_records
from fusedrnn.nn.activations import softmax

_STYLE = """
:root { color-scheme: light dark; --low: 31, 119, 180; --high: 214, 60, 40; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
pre { font: 14px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.5rem 0 0; } p { margin: .5rem 0; }
"""


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that `fusedrnn train` wrote.")],
    text: Annotated[str | None, typer.Option(help="Text to read.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A UTF-8 file to read instead; its first 2,000 characters.")
    ] = None,
    units: Annotated[int, typer.Option(min=1, help="Units to show of each layer: those that vary most.")] = 8,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("inspect.html"),
) -> None:
    """Write a page that shows what a language model does with a text.

    Each character is coloured by how surprising it was, and by what single units hold.
    """
    with reported():
        if (text is None) == (file is None):
            raise CliError("expected --text or --file, and not both")
        shown = text if file is None else read_text(file)[:2000]
        found = load_model(model)
        codes = found.vocabulary.encode(shown or "")
        if len(codes) < 2:
            raise CliError("--text: expected two characters at least")
        write_atomically(out, page(found, shown or "", np.asarray(codes, np.int64), units).encode())
        typer.echo(f"written: {out}")


def page(found: SavedModel, text: str, codes: Any, units: int) -> str:
    """Return the HTML."""
    network = found.model
    x = network.embedding(codes)
    y = network.rnn(x)[0]
    odds = softmax(np.asarray(network.output(y), np.float64), -1)
    with np.errstate(divide="ignore"):
        bits = -np.log2(odds[np.arange(len(codes) - 1), codes[1:]])
    surprise = np.concatenate([[0.0], bits])
    parts = [
        f"<h2>Surprise: {surprise[1:].mean():.2f} bits per character; red is above 4</h2>",
        coloured(text, np.minimum(surprise / 8.0, 1.0), [f"{value:.1f} bits" for value in surprise]),
    ]
    for record in cell_records(network.rnn, x):
        parts += _layer(record, text, units)
    about = f"{found.config.cell}, {found.config.layers} x {found.config.hidden} units"
    return (
        "<!doctype html>\n<html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'><title>fusedrnn inspect</title>"
        f"<style>{_STYLE}</style>\n<h1>What the units hold</h1>\n<p>{about}. Blue is negative, red positive: "
        "tanh(c) of an LSTM, h of the others, after reading the character.</p>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _layer(record: CellRecord, text: str, units: int) -> list[str]:
    values = np.tanh(record.values["c"]) if "c" in record.values else record.values["h"]
    values = values[:, 0]
    saturated = [
        f"{name}: {left.mean():.0%} left, {right.mean():.0%} right"
        for name, (left, right) in record.saturation().items()
    ]
    parts = [f"<h2>Layer {record.layer}</h2>", f"<p>Saturated: {html.escape('; '.join(saturated))}.</p>"]
    for unit in np.argsort(-values.std(axis=0), kind="stable")[:units]:
        notes = [f"{value:+.2f}" for value in values[:, unit]]
        parts += [f"<h2>Unit {unit} of layer {record.layer}</h2>", coloured(text, values[:, unit], notes)]
    return parts


def coloured(text: str, values: Any, notes: list[str]) -> str:
    """Return HTML of a text, each character on the colour of its value in -1..1, with a note to point at."""
    spans = []
    for character, value, note in zip(text, values, notes, strict=True):
        name = "high" if value > 0 else "low"
        seen = html.escape(character if character.isprintable() else "?")
        if character == "\n":
            seen = "&#9166;\n"
        strength = 0.0 if math.isnan(value) else min(abs(float(value)), 1.0) * 0.75
        colour = f"background:rgba(var(--{name}),{strength:.2f})"
        spans.append(f'<span title="{note}" style="{colour}">{seen}</span>')
    return f"<pre>{''.join(spans)}</pre>"
