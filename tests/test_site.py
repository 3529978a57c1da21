"""The documentation site, not built here: no page is left out, and docstrings become what they look like."""

from __future__ import annotations

import re
import runpy
from pathlib import Path, PurePath
from types import ModuleType
from typing import Any

import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once

DOCS = Path(__file__).parents[1] / "docs"
MODULES = {name for name in fr.__all__ if isinstance(getattr(fr, name), ModuleType)}


def test_every_page_is_in_one_contents() -> None:
    pages = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")}
    entries = ["index"]
    for page in pages:
        for block in re.findall(r"^```{toctree}\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.M | re.S):
            folder = "" if "/" not in page else page.rpartition("/")[0] + "/"
            wanted = [folder + line for line in block.splitlines() if line and line[0] != ":"]
            entries += [
                page for line in wanted for page in sorted(pages) if PurePath("/", page).match("/" + line)
            ]
    assert sorted(entries) == sorted(pages)


@pytest.fixture(scope="module")
def conf() -> dict[str, Any]:
    pytest.importorskip("sphinx")
    return runpy.run_path(str(DOCS / "conf.py"))


def test_every_public_name_is_on_one_page(conf: dict[str, Any]) -> None:
    named = [name for page in conf["PAGES"] for name in conf["names_on"](page)]
    assert len(named) == len(set(named))
    assert set(named) | MODULES | {"CELLS", "__version__"} == set(fr.__all__)
    assert "LSTM" in conf["names_on"]("networks") and "CRF" in conf["names_on"]("modules")


def test_docstrings(conf: dict[str, Any]) -> None:
    """Code, equations and names with underscores; sections stay as they are but for their text."""
    text = """A step of `cell`s, weight_ih_ and *.

    h' = a*x_

Args:
    x: (T, B), as `f(x)`(T).

Returns:
    y: (T,)
"""
    assert conf["restructured"](text.splitlines()) == [
        r"A step of ``cell``\ s, weight\_ih\_ and \*.",
        *("", "::", "", "    h' = a*x_", "", "Args:"),
        r"    x: (T, B), as ``f(x)``\ (T).",
        *("", "Results:", "    y: (T,)"),
    ]
