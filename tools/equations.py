#!/usr/bin/env python3
"""Write the equations of the cells into docstrings and pages.

Those of compiled cells stand in src/fusedrnn/cells.py, those of cells that are data follow from what defines
them, src/fusedrnn/symbolic/library.py. They are those of the package that is installed.

usage: equations.py             write them
       equations.py --check     only say where others stand; the exit status is 1 if they do somewhere
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from fusedrnn.cells import CELLS
from fusedrnn.symbolic import DefinedCell, library

ROOT = Path(__file__).parents[1]

DATA = {
    "MGU": library.mgu(),
    "IndRNN": library.indrnn("relu"),
    "MinGRU": library.min_gru(),
    "MinLSTM": library.min_lstm(),
    "SRU": library.sru(),
    "LiGRU": library.li_gru(),
    "SLSTM": library.slstm("sigmoid"),
    "LIF": library.lif(0.9, True, 1.0, "atan", None, False),
}
# The pages in docs/cells.
PAGES = {
    **{name.lower(): cell for name, cell in DATA.items()},
    "peephole": library.lstm(True, False, None),
    "coupled_gates": library.lstm(False, True, None),
    "cell_clip": library.lstm(False, False, 3.0),
    "gru_reset_before": library.gru_reset_before(),
    "layer_norm_rnn": library.layer_norm_rnn("tanh", True),
    "layer_norm_lstm": library.layer_norm_lstm(True),
    "layer_norm_gru": library.layer_norm_gru(True),
}


def gradients(cell: DefinedCell) -> str:
    """Return what stands behind the equations of a printed cell, without its heading and empty lines."""
    _, _, behind = str(cell).partition(cell.equations)
    headings = ("within the step", "gradients, from")
    return "\n".join(line for line in behind.splitlines() if line and not line.startswith(headings))


DOCSTRING = r".*?^    A step:\n\n"

# The text before the equations of a cell, their indentation, and the equations.
PLACES = [
    *(
        ("src/fusedrnn/nn/recurrent.py", rf"^class {name}\({DOCSTRING}", "        ", CELLS[cell].equations)
        for name, cell in (("RNN", "rnn_tanh"), ("LSTM", "lstm"), ("GRU", "gru"))
    ),
    *(
        (f"docs/{page}.md", r"^## Forward\n.*?\n\n(?=    )", "    ", CELLS[cell].equations)
        for page, cell in (("rnn", "rnn_tanh"), ("lstm", "lstm"), ("gru", "gru"))
    ),
    *(
        ("src/fusedrnn/nn/networks.py", rf"^class {name}\({DOCSTRING}", "        ", cell.equations)
        for name, cell in DATA.items()
    ),
    *((f"docs/cells/{page}.md", r"^## Step\n\n", "    ", cell.equations) for page, cell in PAGES.items()),
    *(
        (f"docs/cells/{page}.md", r"^## Gradients\n.*?\n\n(?=    )", "    ", gradients(cell))
        for page, cell in PAGES.items()
    ),
]


def put(text: str, before: str, indent: str, equations: str) -> str:
    """Return text with the block of indented lines that follows `before` replaced.

    Raises:
        ValueError: there is no such place, or there are several.
    """
    pattern = re.compile(rf"({before})(?:{indent}[^\n]*\n)+", re.MULTILINE | re.DOTALL)
    block = textwrap.indent(equations, indent) + "\n"
    found, count = pattern.subn(lambda match: match[1] + block, text, count=1)
    if not count:
        raise ValueError(f"expected equations after {before!r}, found none")
    return found


def main() -> int:
    """Write or check all places."""
    stale = 0
    for name, before, indent, equations in PLACES:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        new = put(text, before, indent, equations)
        if new == text:
            continue
        stale += 1
        if "--check" in sys.argv[1:]:
            print(f"{name}: other equations after {before!r} than those of the cell; run tools/equations.py")
        else:
            path.write_text(new, encoding="utf-8")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
