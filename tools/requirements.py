#!/usr/bin/env python3
"""Print the requirements of extras, one a line, without building the project.

usage: requirements.py EXTRA...
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


def requirements(extras: list[str]) -> list[str]:
    """The project's own requirements and those of the extras, fusedrnn[extra] resolved."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    found: list[str] = list(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop()]:
            if requirement.startswith(f"{project['name']}["):
                waiting += requirement.split("[")[1].rstrip("]").replace(" ", "").split(",")
            elif requirement not in found:
                found.append(requirement)
    return found


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:])))
