"""The equations of the cells: docstrings and pages have those of the registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import assert_ran

import fusedrnn as fr

pytestmark = pytest.mark.once

TOOL = Path(__file__).parents[1] / "tools" / "equations.py"


@pytest.mark.skipif(not TOOL.exists(), reason="needs the sources")
def test_docstrings_and_pages_are_current() -> None:
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, check=False)
    assert_ran(done)


@pytest.mark.parametrize(("module", "cell"), [(fr.RNN, "rnn_relu"), (fr.LSTM, "lstm"), (fr.GRU, "gru")])
def test_help_has_the_equations(module: type, cell: str) -> None:
    assert module.__doc__ is not None
    lines = [line.strip() for line in module.__doc__.splitlines()]
    assert all(line in lines for line in fr.CELLS[cell].equations.splitlines())
