"""The command line: training, generation, information, and errors in one line."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_support import TINY, assert_ok, assert_one_line, invoke, script, start

import fusedrnn as fr
import fusedrnn.cli
from fusedrnn.cli import session
from fusedrnn.cli.charlm import CharLM, Config, load_model, parameter_shapes
from fusedrnn.cli.checkpoint import Checkpoint
from fusedrnn.cli.display import clock
from fusedrnn.cli.sampling import Sampler
from fusedrnn.cli.settings import Settings
from fusedrnn.cli.text import (
    UNKNOWN,
    built_in_text,
    read_text,
)
from fusedrnn.cli.trainer import Trainer

pytestmark = pytest.mark.once

# Training ---------------------------------------------------------------------------------------------------


def test_train_writes_the_model_the_checkpoint_and_the_picture(corpus: Path, tmp_path: Path) -> None:
    result = invoke("train", corpus, *TINY, "--out", tmp_path / "m.safetensors")
    assert_ok(result)
    assert "bits/char" in result.output
    assert "chars/s" in result.output
    assert "\x1b" not in result.output
    assert result.output.splitlines()[-1] == f"model: {tmp_path / 'm.safetensors'}"
    names = {"corpus.txt", "m.safetensors", "m.checkpoint.safetensors", "m.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG\r\n")
    found = load_model(tmp_path / "m.safetensors")
    assert found.config == Config(hidden=16, embedding=8)
    assert found.score is not None
    assert found.score.bits < math.log2(len(found.vocabulary))


def test_train_without_a_file_reads_the_texts_of_python(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    result = invoke("train", *TINY, "--batch", 64, "--max-steps", 3, "--out", out)
    assert_ok(result)
    assert "paused at step 3" in result.output
    assert f"{len(built_in_text()):,} characters" in result.output
    assert load_model(out).score is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_every_cell_trains_and_generates(cell: str, dtype: str, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    model = ["--cell", cell, "--dtype", dtype, "--layers", 2, "--dropout", 0.1]
    assert_ok(invoke("train", corpus, *TINY, *model, "--out", out))
    assert load_model(out).model.dtype == np.dtype(dtype)
    result = invoke("generate", out, "--length", 30, "--seed", 1)
    assert_ok(result)
    assert len(result.stdout) == 31


def test_the_seed_decides_and_the_threads_do_not(corpus: Path, tmp_path: Path) -> None:
    runs = {"first": (1, 1), "threads": (1, 2), "seed": (2, 1)}
    for name, (seed, threads) in runs.items():
        options = [
            "--seed",
            seed,
            "--threads",
            threads,
            "--dropout",
            0.2,
            "--out",
            tmp_path / f"{name}.safetensors",
        ]
        assert_ok(invoke("train", corpus, *TINY, *options))
    data = {name: (tmp_path / f"{name}.safetensors").read_bytes() for name in runs}
    assert data["first"] == data["threads"]
    assert data["first"] != data["seed"]


def test_training_stops_early(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    result = invoke("train", corpus, *TINY, "--epochs", 300, "--lr", 0.05, "--patience", 2, "--out", out)
    assert_ok(result)
    assert "finished early" in result.output
    checkpoint = Checkpoint.read(tmp_path / "m.checkpoint.safetensors")
    bits = [score["bits"] for score in checkpoint.content["scores"]]
    assert len(bits) - 1 - int(np.argmin(bits)) == 2
    best = load_model(out)
    assert best.score is not None
    assert best.score.bits == min(bits)
    # The file holds the parameters that reached the score, not the last ones.
    trainer = Trainer(checkpoint.config, checkpoint.settings, read_text(corpus))
    trainer.model.load_state_dict(best.model.state_dict())
    trainer.passed = trainer.total_steps
    assert list(trainer.events())[-1].score.bits == best.score.bits  # type: ignore[union-attr]


def test_divergence_is_reported_and_the_best_model_kept(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    result = invoke("train", corpus, *TINY, "--lr", 1e37, "--clip", 1e38, "--out", out)
    assert result.exit_code == 1
    assert "diverged" in result.stderr


def test_gradients_of_the_whole_model() -> None:
    model = CharLM(Config(hidden=3, layers=2, embedding=2, dtype="float64"), 5, seed=3).train()
    rng = np.random.default_rng(0)
    codes, targets = rng.integers(0, 5, (2, 4, 2))

    def loss() -> float:
        return float(fr.cross_entropy(model(codes)[0], targets)[0])

    logits, _, tape = model.forward(codes)
    model.zero_grad()
    model.backward(tape, fr.cross_entropy(logits, targets)[1])
    values, grads = model.flat_parameters, model.flat_grads.copy()
    for i in range(values.size):
        centre = values[i]
        values[i] = centre + 1e-5
        above = loss()
        values[i] = centre - 1e-5
        below = loss()
        values[i] = centre
        assert grads[i] == pytest.approx((above - below) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("layers", [1, 3])
def test_parameter_shapes(cell: str, layers: int) -> None:
    config = Config(cell=cell, hidden=5, layers=layers, embedding=3)
    built = {name: array.shape for name, array in CharLM(config, 7).state_dict().items()}
    assert dict(parameter_shapes(config, 7)) == built


def test_the_learning_rate_falls_along_a_cosine() -> None:
    rates = [Settings(lr=1.0).rate(step, 100) for step in range(101)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.51)
    assert rates[100] == pytest.approx(0.02)
    assert rates == sorted(rates, reverse=True)


def test_a_loaded_model_draws_no_weights(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were drawn")

    for name in ("_uniform", "_normal", "_orthonormal_rows"):
        monkeypatch.setattr(fr.init, name, refuse)
    with pytest.raises(AssertionError):
        CharLM(Config(hidden=3), 5)
    load_model(trained)


# Generation -------------------------------------------------------------------------------------------------


def test_generation_is_repeatable_and_as_long_as_asked(trained: Path) -> None:
    def text(*options: object) -> str:
        result = invoke("generate", trained, *options)
        assert_ok(result)
        return str(result.stdout)

    assert text("--seed", 3, "--length", 40) == text("--seed", 3, "--length", 40)
    assert text("--seed", 3, "--length", 40) != text("--seed", 4, "--length", 40)
    assert text("--prompt", "The ", "--length", 0) == "The \n"
    assert len(text("--prompt", "The ", "--length", 25)) == 30
    assert text("--temperature", 0, "--length", 40) == text("--top-k", 1, "--length", 40)
    assert text("--temperature", 0, "--length", 40) == text("--temperature", 1e-300, "--length", 40)
    assert UNKNOWN not in text("--temperature", 100, "--length", 300)


def test_streaming_gives_what_the_whole_sequence_gives(trained: Path) -> None:
    found = load_model(trained)
    text = "The "
    drawn = list(Sampler(found.model, found.vocabulary, temperature=0.0).characters(text, 20))
    for character in drawn:
        logits, _ = found.model(found.vocabulary.encode(text)[:, np.newaxis])
        best = int(logits[-1, 0, 1:].argmax()) + 1
        assert found.vocabulary.characters[best] == character
        text += character


def test_top_k_draws_among_the_likeliest(trained: Path) -> None:
    found = load_model(trained)
    logits, _ = found.model(found.vocabulary.encode("The ")[:, np.newaxis])
    likeliest = {found.vocabulary.characters[1 + i] for i in np.argsort(-logits[-1, 0, 1:])[:3]}
    sampler = Sampler(found.model, found.vocabulary, temperature=50.0, top_k=3, seed=0)
    drawn = {next(sampler.characters("The ", 1)) for _ in range(60)}
    assert drawn == likeliest


def test_unknown_characters_in_a_prompt_are_skipped_with_a_warning(trained: Path) -> None:
    plain = invoke("generate", trained, "--prompt", "The ", "--temperature", 0, "--length", 20)
    result = invoke("generate", trained, "--prompt", "Th\xe9e \u6f22", "--temperature", 0, "--length", 20)
    assert_ok(result)
    assert result.stdout[6:] == plain.stdout[4:]
    assert len(result.stderr.splitlines()) == 1
    assert "'\\xe9', '\\u6f22'" in result.stderr


# Errors and information -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b"", "no text in it"),
        (b" \n\n", "no text in it"),
        (b"caf\xe9", "not UTF-8 text (byte 0xe9 at offset 3)"),
        (b"too short for a model", "the text is too short"),
    ],
)
def test_unusable_texts(content: bytes | None, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    assert_one_line(invoke("train", path, "--out", tmp_path / "m.safetensors"), complaint)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_folder_is_not_a_text(tmp_path: Path) -> None:
    assert_one_line(invoke("train", tmp_path, "--out", tmp_path / "m.safetensors"), "Is a directory")


@pytest.mark.parametrize(
    ("out", "complaint"),
    [("m.txt", "ends in .safetensors"), ("no/m.safetensors", "no such folder"), (".safetensors", "ends in")],
)
def test_unusable_outputs(out: str, complaint: str, corpus: Path, tmp_path: Path) -> None:
    assert_one_line(invoke("train", corpus, *TINY, "--out", tmp_path / out), complaint)


@pytest.mark.parametrize(
    "options",
    [
        ["--hidden", 0],
        ["--hidden", "many"],
        ["--cell", "transformer"],
        ["--dropout", 1.0],
        ["--dropout", "nan"],
        ["--lr", 0],
        ["--lr", "nan"],
        ["--clip", -1],
        ["--valid-fraction", 1],
        ["--valid-fraction", "nan"],
        ["--epochs", 0],
        ["--seed", -1],
        ["--threads", 0],
        ["--dtype", "float16"],
        ["--no-such-option"],
    ],
)
def test_bad_options(options: list[object], corpus: Path, tmp_path: Path) -> None:
    result = invoke("train", corpus, "--out", tmp_path / "m.safetensors", *options)
    assert result.exit_code == 2
    assert result.stderr.count("Error: ") == 1
    assert str(options[0]).strip("-").replace("-", "_") in result.stderr.replace("-", "_")


@pytest.mark.parametrize(
    "options", [["--length", -1], ["--temperature", -1], ["--temperature", "nan"], ["--top-k", -1]]
)
def test_bad_options_of_generate(options: list[object], trained: Path) -> None:
    assert invoke("generate", trained, *options).exit_code == 2


def test_a_missing_or_foreign_model(tmp_path: Path) -> None:
    assert_one_line(invoke("generate", tmp_path / "none.safetensors"), "No such file")
    (tmp_path / "t.safetensors").write_text("plain text, and long enough to be a header")
    assert_one_line(invoke("info", tmp_path / "t.safetensors"), "not a safetensors file")


def test_running_out_of_memory_is_one_line(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(session, "run", refuse)
    assert_one_line(invoke("train", corpus, *TINY, "--out", tmp_path / "m.safetensors"), "not enough memory")


def test_info(trained: Path) -> None:
    result = invoke("info")
    assert_ok(result)
    assert fr.__version__ in result.output
    assert fr.config()["isa"] in result.output
    result = invoke("info", trained)
    assert_ok(result)
    assert "lstm" in result.output
    assert "held-out" in result.output
    assert invoke("--version").output.strip() == fr.__version__


def test_info_of_a_model_that_was_saved(tmp_path: Path) -> None:
    """Not one of `fusedrnn train`."""
    model = fr.Sequential(fr.GRU(3, 5, seed=0), fr.Linear(5, 2, seed=1))
    fr.save(model, tmp_path / "m.safetensors")
    result = invoke("info", tmp_path / "m.safetensors")
    assert_ok(result)
    assert repr(model) in result.output
    assert result.output.split()[-2:] == ["parameters", str(model.num_parameters)]


def test_the_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_info:
        fusedrnn.cli.main()
    assert exit_info.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert 'pip install "fusedrnn[cli]"' in lines[0]


def test_the_installed_command(trained: Path) -> None:
    process = start("generate", trained, "--prompt", "The ", "--length", 20, "--seed", 1)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.startswith("The ")
    process = start("train", "no-such-file.txt")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


def test_the_display_is_live_on_a_terminal(corpus: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    primary, secondary = pty.openpty()
    arguments = ["train", corpus, *TINY, "--out", tmp_path / "m.safetensors"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([*script(), *map(str, arguments)], stdout=secondary, env=environment) as process:
        os.close(secondary)
        shown = b""
        try:
            while data := os.read(primary, 4096):
                shown += data
        except OSError:  # how a terminal ends when its last writer is gone
            pass
    os.close(primary)
    assert process.returncode == 0
    assert b"\x1b[" in shown
    assert b"bits/char" in shown


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 65, 3_725)] == ["0:00", "1:05", "1:02:05"]
