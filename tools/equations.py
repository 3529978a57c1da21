#!/usr/bin/env python3
"""Write the equations of the cells, which stand in src/fusedrnn/cells.py, into docstrings and pages.

They are those of the package that is installed.

usage: equations.py             write them
       equations.py --check     only say where others stand; the exit status is 1 if they do somewhere
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from fusedrnn.cells import CELLS

ROOT = Path(__file__).parents[1]

# The text before the equations of a cell, and their indentation.
PLACES = [
    *(
        ("src/fusedrnn/nn/recurrent.py", rf"^class {name}\(.*?^    A step:\n\n", "        ", cell)
        for name, cell in (("RNN", "rnn_tanh"), ("LSTM", "lstm"), ("GRU", "gru"))
    ),
    *(
        (f"docs/{page}.md", r"^## Forward\n.*?\n\n(?=    )", "    ", cell)
        for page, cell in (("rnn", "rnn_tanh"), ("lstm", "lstm"), ("gru", "gru"))
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
    for name, before, indent, cell in PLACES:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        new = put(text, before, indent, CELLS[cell].equations)
        if new == text:
            continue
        stale += 1
        if "--check" in sys.argv[1:]:
            print(f"{name}: other equations of {cell} than in cells.py; run tools/equations.py")
        else:
            path.write_text(new, encoding="utf-8")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
