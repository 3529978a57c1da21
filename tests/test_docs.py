"""The examples in the documentation run, one after the other in each page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


# Pages of other libraries, and what is imported for them.
NEEDS = {"autograd": "autograd", "jax": "jax", "keras": "h5py", "onnx": "onnx", "torch": "torch"}
NEEDS["reinforcement_learning"] = "torch"
# These show what the tests of each part check on every instruction set.
ONCE = {
    "applications/language": "sklearn",
    "applications/series": "sklearn",
    "howto": "sklearn",
    "index": "numpy",
    "interpret": "numpy",
    "start": "sklearn",
}


@pytest.mark.parametrize(
    "page",
    [
        *("attention", "distributed", "modules", "cells", "sequence", "training"),
        *NEEDS,
        *(pytest.param(page, marks=pytest.mark.once) for page in ONCE),
    ],
)
def test_examples_run(
    page: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({**NEEDS, **ONCE}.get(page, "numpy"))
    monkeypatch.chdir(tmp_path)  # where pages write files
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)
        said = capsys.readouterr().out
        for want in re.findall(r"print\(.*?\) +# (.*)", block):
            assert want in said
    assert blocks
