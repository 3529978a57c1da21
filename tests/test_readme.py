"""README.md: every block of Python runs on its own, and says what is so."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn.cli.charlm import Config
from fusedrnn.cli.settings import Settings

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.exists() else ""
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)

pytestmark = [pytest.mark.once, pytest.mark.skipif(not TEXT, reason="needs README.md beside the tests")]


def on_a_gpu() -> bool:
    """Whether there are a GPU and the libraries that a block on one needs."""
    return fr.cuda.is_available() and all(map(importlib.util.find_spec, ("torch", "cupy")))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_block_runs_on_its_own(number: int) -> None:
    block = BLOCKS[number]
    if '"cuda"' in block and not on_a_gpu():
        pytest.skip("needs a CUDA device, torch and CuPy")
    exec(compile(block, f"README.md, block {number + 1}", "exec"), {"__name__": "readme"})


def test_the_share_of_the_tape() -> None:
    """What `recompute` leaves of the tape in the example that says so."""
    said = re.search(r"recompute=True\): (\d+)% of this tape", BLOCKS[0])
    assert said is not None
    x = np.zeros((100, 32, 64), np.float32)
    plain, small = (
        fr.LSTM(64, 128, num_layers=2, bidirectional=True, recompute=recompute, seed=0).forward(x)[2].nbytes
        for recompute in (False, True)
    )
    assert round(100 * small / plain) == int(said[1])


def test_the_size_of_a_step() -> None:
    """The step that was timed is another than that of `fusedrnn train`, which is said beside it."""
    settings = Settings()
    assert f"`fusedrnn train` takes {settings.steps} x {settings.batch} at a time" in TEXT
    assert Config().hidden == 256


def test_what_was_not_timed_is_said_once() -> None:
    assert len(re.findall("not timed", TEXT, re.IGNORECASE)) == 1


def test_links_lead_somewhere() -> None:
    """Those of README.md and of the pages, to files and to their sections."""
    pages = [README, *(README.parent / "docs").rglob("*.md"), README.parent / "CONTRIBUTING.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, section = target.partition("#")
            if ":" in name:
                continue
            path = page.parent / name if name else page
            assert path.exists(), f"{page.name}: {target}"
            if section:
                headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in headings}
                assert section in slugs, f"{page.name}: {target}"
