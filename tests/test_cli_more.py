"""The command line: inspect, demo, tune, and a run where there was one before."""

from __future__ import annotations

import html
import os
import re
import signal
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from cli_support import TINY, assert_ok, assert_one_line, invoke, start
from packaging.requirements import Requirement

import fusedrnn as fr
from fusedrnn.cli import demo
from fusedrnn.cli.charlm import load_model
from fusedrnn.cli.checkpoint import Checkpoint
from fusedrnn.interpret import cell_records

pytestmark = pytest.mark.once


def test_without_arguments_it_says_what_it_can_do() -> None:
    said = invoke().output
    for name in ("train", "generate", "info", "convert", "inspect", "demo", "tune"):
        assert re.search(rf"^  {name} ", said, re.MULTILINE)


@pytest.mark.parametrize("command", ["train", "generate", "info", "convert", "inspect", "demo", "tune"])
def test_what_is_said_about_arguments(command: str) -> None:
    """With each typer and click that the extra `cli` takes."""
    for text in metadata.requires("fusedrnn") or ():
        wanted = Requirement(text)
        if wanted.name == "click" and metadata.version("click") not in wanted.specifier:
            pytest.skip(f"click {metadata.version('click')} is none that the extra takes")
    lines = invoke(command, "--help").output.partition("Arguments:\n")[2].partition("Options:\n")[0]
    assert not lines or re.search(r"^  \S+ .*[A-Za-z]{2,} [A-Za-z]{2,}", lines)


# inspect ----------------------------------------------------------------------------------------------------


def test_inspect_colours_what_the_units_hold(corpus: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "m.safetensors", tmp_path / "page.html"
    assert_ok(invoke("train", corpus, *TINY, "--layers", 2, "--max-steps", 3, "--out", model))
    text = "the <red> fox\nruns"
    assert_ok(invoke("inspect", model, "--text", text, "--units", 3, "--out", out))
    page = out.read_text(encoding="utf-8")
    parts = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    assert len(parts) == 1 + 2 * 3
    for part in parts:  # nothing of the text is markup, and nothing is lost
        shown = html.unescape(re.sub(r"</?span[^>]*>", "", part))
        assert shown.replace("\N{RETURN SYMBOL}", "") == text
    found = load_model(model)
    codes = np.asarray(found.vocabulary.encode(text), np.int64)
    record = cell_records(found.model.rnn, found.model.embedding(codes))[1]
    unit = int(re.findall(r"Unit (\d+) of layer 1", page)[0])
    values = np.tanh(record.values["c"][:, 0])
    assert values[:, unit].std() == pytest.approx(values.std(axis=0).max())
    noted = [float(value) for value in re.findall(r'title="([-+][\d.]+)"', parts[4])]
    np.testing.assert_allclose(noted, values[:, unit], atol=0.0051)
    for arguments, complaint in (
        ((), "expected --text or --file"),
        (("--text", "a"), "--text: expected two characters"),
        (("--text", "ab", "--file", corpus), "expected --text or --file"),
    ):
        assert_one_line(invoke("inspect", model, *arguments), complaint)


# demo -------------------------------------------------------------------------------------------------------


def test_demo_lists_the_examples_and_runs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are installed; here others stand in."""
    assert {"forecast", "japanese_vowels", "tune"} <= set(demo.examples())
    (tmp_path / "one.py").write_text(
        '"""Says what it is given (pip install nothing)."""\nimport sys\nprint(sys.argv[1:])\n'
    )
    (tmp_path / "two.py").write_text("import not_there.inside\n")
    monkeypatch.setattr(demo, "examples", lambda: {name: tmp_path / f"{name}.py" for name in ("one", "two")})
    assert "one  Says what it is given" in invoke("demo").output
    assert invoke("demo", "one", "--quick").output == "['--quick']\n"
    assert "import sys" in invoke("demo", "one", "--source").output
    assert_one_line(invoke("demo", "two"), "expected not_there to be installed")
    assert_one_line(invoke("demo", "three"), "NAME: expected one of one, two")


# tune -------------------------------------------------------------------------------------------------------


def test_tune_an_estimator_and_go_on_after_kill_9(tmp_path: Path) -> None:
    """A process that is killed loses the trial under way, and no other; what was tried is not tried again."""
    pytest.importorskip("optuna")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 6, 2))
    x[::3, 4:] = np.nan
    np.savez(tmp_path / "d.npz", X=x, y=np.where(x[:, :4, 0].sum(axis=1) > 0, "up", "down"))
    arguments = (
        "tune",
        tmp_path / "d.npz",
        "--epochs",
        1,
        "--folds",
        2,
        "--out",
        tmp_path / "s.db",
        "--trials",
    )
    running = start(*arguments, 1000, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert running.stdout is not None
    lines = [running.stdout.readline()]
    running.send_signal(signal.SIGKILL)
    lines += running.communicate()[0].splitlines(keepends=True)
    before = [line for line in lines if line.startswith("trial")]
    assert len(before) >= 1
    result = invoke(*arguments, len(before) + 2)
    assert_ok(result)
    found = re.search(r"goes on after (\d+) trials", result.output)
    assert found is not None and int(found[1]) >= len(before)
    scores = [
        float(value)
        for value in re.findall(r"^trial \d+: ([\d.]+) with", "".join(before) + result.output, re.M)
    ]
    best = re.search(r"^best: ([\d.]+) with", result.output, re.M)
    assert best is not None and float(best[1]) == max(scores)
    assert len(set(re.findall(r"\{.*\}", "".join(before)))) == len(before)
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_tune_the_language_model(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    result = invoke("tune", corpus, "--epochs", 1, "--trials", 2, "--out", tmp_path / "s.db")
    assert_ok(result)
    scores = [float(value) for value in re.findall(r"^trial \d+: ([\d.]+) with", result.output, re.M)]
    assert len(scores) == 2 and f"best: {min(scores):.4f}" in result.output


@pytest.mark.parametrize("content", [{"X": np.zeros((4, 3))}, {"X": np.zeros((4, 3)), "y": np.zeros(3)}])
def test_tune_refuses_other_files(content: dict[str, np.ndarray], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    np.savez(tmp_path / "d.npz", **content)
    assert_one_line(invoke("tune", tmp_path / "d.npz", "--out", tmp_path / "s.db"), "d.npz: expected")
    (tmp_path / "other.db").write_text("no database")
    np.savez(tmp_path / "d.npz", X=np.zeros((6, 3)), y=np.arange(6) % 2)
    assert_one_line(invoke("tune", tmp_path / "d.npz", "--out", tmp_path / "other.db"), "not a study")


# train in bfloat16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", ["bf16", "bf16x3"])
def test_compute(corpus: Path, tmp_path: Path, compute: str) -> None:
    """Other numbers than float32's, and nothing of it stays behind."""
    if fr.config()[f"{compute}_isa"] is None:
        said = invoke("train", corpus, *TINY, "--compute", compute)
        assert_one_line(said, " on a CPU without AMX")
        return
    weights = []
    for chosen in ("float32", compute):
        model = tmp_path / f"{chosen}.safetensors"
        said = invoke("train", corpus, *TINY, "--max-steps", 20, "--compute", chosen, "--out", model)
        assert_ok(said)
        assert (f"multiplied in {compute};" in said.output) == (chosen == compute)
        assert (f".checkpoint.safetensors --compute {compute}\n" in said.output) == (chosen == compute)
        weights.append(load_model(model).model.parameters["rnn.weight_hh_l0"])
    assert not np.array_equal(*weights)
    np.testing.assert_allclose(*weights, atol=0.05)
    assert_ok(invoke("train", corpus, *TINY, "--max-steps", 10, "--compute", compute, "--out", model))
    checkpoint = model.with_suffix(".checkpoint.safetensors")
    assert_ok(invoke("train", "--resume", checkpoint, "--max-steps", 20, "--compute", compute))
    assert np.array_equal(load_model(model).model.parameters["rnn.weight_hh_l0"], weights[1])
    assert fr.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("compute", ["bf16", "bf16x3"])
def test_compute_in_float64(corpus: Path, tmp_path: Path, compute: str) -> None:
    """A run in float64, a new one or one that goes on, multiplies float64 and refuses another wish."""
    if fr.config()[f"{compute}_isa"] is None:
        pytest.skip("this CPU lacks its products: refused for that, which test_compute sees")
    out = tmp_path / "m.safetensors"
    train = ["train", corpus, *TINY, "--dtype", "float64", "--max-steps", 2, "--out", out]
    wish = ["--compute", compute]
    refusal = f"--compute: expected float32 with --dtype float64, got {compute}"
    assert_one_line(invoke(*train, *wish), refusal)
    assert not list(tmp_path.glob("m*"))
    assert_ok(invoke(*train))
    assert_one_line(invoke("train", "--resume", tmp_path / "m.checkpoint.safetensors", *wish), refusal)


def test_another_run_keeps_the_checkpoint_of_the_one_before(corpus: Path, tmp_path: Path) -> None:
    """It was replaced, and with it what --resume could go on from."""
    out, first, kept = (
        tmp_path / f"m{name}.safetensors" for name in ("", ".checkpoint", ".previous.checkpoint")
    )
    train = ["train", corpus, *TINY, "--out", out]
    assert_ok(invoke(*train, "--max-steps", 100))
    written = first.read_bytes()
    assert_ok(invoke("train", "--resume", first, "--max-steps", 101))
    assert not kept.exists()
    first.write_bytes(written)
    result = invoke(*train, "--seed", 1, "--max-steps", 2)
    assert_ok(result)
    assert f"; the checkpoint there is kept as {kept}\n" in result.output
    assert kept.read_bytes() == written and len(Checkpoint.read(first).tensors["losses"]) == 2
    assert_one_line(invoke("train", "--resume", kept, "--out", out), "--out: expected another name: ")
    assert kept.read_bytes() == written
    assert_ok(invoke("train", "--resume", kept, "--max-steps", 101))
    assert len(Checkpoint.read(kept).tensors["losses"]) == 101
    assert load_model(tmp_path / "m.previous.safetensors").score is not None
    # Also where the run before left no model yet.
    out.unlink()
    assert "kept as" in invoke(*train, "--max-steps", 1).output
    assert len(Checkpoint.read(kept).tensors["losses"]) == 2


@pytest.mark.parametrize("content", [b"", b"PK\3\4junk", b"\x93NUMPY", b"text"])
def test_tune_of_a_file_that_is_no_archive(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "d.npz").write_bytes(content)
    assert_one_line(invoke("tune", tmp_path / "d.npz", "--out", tmp_path / "s.db"), "d.npz: expected arrays")


def test_tune_says_what_is_wrong_with_data_before_a_trial(tmp_path: Path) -> None:
    """In one line, where a trial that failed left a traceback and a study."""
    pytest.importorskip("optuna")
    y = np.arange(12) % 2
    for x in (np.full((12, 5, 2), np.nan), np.zeros((12, 5, 0)), np.full((12, 3), "a")):
        np.savez(tmp_path / "d.npz", X=x, y=y)
        assert_one_line(invoke("tune", tmp_path / "d.npz", "--out", tmp_path / "s.db"), "d.npz: ")
        assert not (tmp_path / "s.db").exists()
    np.savez(tmp_path / "d.npz", X=np.zeros((3, 2)), y=np.float64(1))
    assert_one_line(invoke("tune", tmp_path / "d.npz", "--out", tmp_path / "s.db"), "d.npz: expected X")
    with open(tmp_path / "d.npz", "wb") as file:
        np.save(file, np.zeros((3, 2)))
    assert_one_line(invoke("tune", tmp_path / "d.npz", "--out", tmp_path / "s.db"), "d.npz: expected arrays")
