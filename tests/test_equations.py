"""The equations of the cells: docstrings and pages have those of the registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import assert_ran

import fusedrnn as fr

pytestmark = pytest.mark.once

TOOL = Path(__file__).parents[1] / "tools" / "equations.py"
DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.skipif(not TOOL.exists(), reason="needs the sources")
def test_docstrings_and_pages_are_current() -> None:
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, check=False)
    assert_ran(done)


def test_pages_are_listed() -> None:
    pages = {page.name for page in (DOCS / "cells").glob("*.md")} - {"README.md"}
    listed = (DOCS / "cells" / "README.md").read_text()
    assert pages and all(f"]({page})" in listed for page in pages)
    for page in pages:
        assert "## Step" in (DOCS / "cells" / page).read_text()


NETWORKS = (
    fr.RNN,
    fr.LSTM,
    fr.GRU,
    fr.MGU,
    fr.IndRNN,
    fr.MinGRU,
    fr.MinLSTM,
    fr.SRU,
    fr.LiGRU,
    fr.SLSTM,
    fr.LIF,
)


@pytest.mark.parametrize("network", NETWORKS)
def test_help_has_the_equations(network: Any) -> None:
    lines = [line.strip() for line in network.__doc__.splitlines()]
    cell = network(1, 1).cell
    spec = fr.CELLS[cell] if isinstance(cell, str) else cell.spec
    assert all(line in lines for line in spec.equations.splitlines())
