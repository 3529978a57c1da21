"""How the sources are laid out: no circle of imports, and no long files."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src"
MOST_LINES = 400
# Files that are longer, each to be cut.
LONGER: set[str] = set()


def modules(root: Path) -> dict[str, Path]:
    """The modules below a folder by their dotted names, compiled ones by their stubs."""
    found = {}
    for path in (*root.rglob("*.py"), *root.rglob("*.pyi")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, name: str, is_package: bool, known: set[str]) -> set[str]:
    """The known modules that a module imports anywhere: at the top, in functions, or for types alone."""
    package = name if is_package else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                found.add(inner if inner in known else origin)
    return (found & known) - {name}


def graph(root: Path) -> dict[str, set[str]]:
    """Which modules each module imports."""
    found = modules(root)
    return {
        name: imported(path.read_text(), name, path.name == "__init__.py", set(found))
        for name, path in found.items()
    }


def test_no_circle_of_imports() -> None:
    """Neither at import nor later, in a function or under TYPE_CHECKING: each module has its place."""
    edges = graph(PACKAGE)
    assert len(edges) > 40 and "fusedrnn.nn.module" in edges["fusedrnn.nn.recurrent_base"]
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    "line",
    [
        "import p.b",
        "from p import b",
        "from p.b import x",
        "from . import b",
        "from .b import x",
        "def f():\n    from p import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import x",
    ],
)
def test_a_circle_is_found(tmp_path: Path, line: str) -> None:
    """However the modules import each other."""
    (tmp_path / "p").mkdir()
    for name, text in {"__init__": "from p import a", "a": line, "b": "from p.a import x"}.items():
        (tmp_path / "p" / f"{name}.py").write_text(text)
    with pytest.raises(CycleError):
        TopologicalSorter(graph(tmp_path)).prepare()


def test_no_long_file() -> None:
    paths = [path for folder in ("src", "tests", "bench", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 100
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name for name, count in lines.items() if count > MOST_LINES} == LONGER & set(lines)
