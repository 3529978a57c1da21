#!/usr/bin/env python3
"""Print a shell block of README.md exactly as a reader would copy it.

usage: readme_block.py N        the N-th block (from 1) fenced as sh, bash, shell or console
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SHELL_BLOCK = re.compile(r"^```(?:sh|bash|shell|console)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def main() -> int:
    """Print the block; the exit status is 1 if README.md has no such block."""
    number = int(sys.argv[1])
    blocks = SHELL_BLOCK.findall((Path(__file__).parents[1] / "README.md").read_text())
    if not 1 <= number <= len(blocks):
        print(f"README.md: expected at least {number} shell blocks, got {len(blocks)}", file=sys.stderr)
        return 1
    print(blocks[number - 1], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
