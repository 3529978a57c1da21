"""The command line: training, exact resumption, generation, damaged files, and errors in one line."""

from __future__ import annotations

import errno
import importlib.util
import math
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr
import fusedrnn.cli

typer_testing = pytest.importorskip("typer.testing")

from fusedrnn.cli import files, session  # noqa: E402
from fusedrnn.cli.app import app  # noqa: E402
from fusedrnn.cli.charlm import MODEL_FILE, CharLM, Config, Score, load_model, parameter_count, save_model  # noqa: E402
from fusedrnn.cli.display import clock  # noqa: E402
from fusedrnn.cli.errors import CliError  # noqa: E402
from fusedrnn.cli.sampling import Sampler  # noqa: E402
from fusedrnn.cli.text import (  # noqa: E402
    UNKNOWN,
    Vocabulary,
    Windows,
    built_in_text,
    held_out_windows,
    read_text,
    split,
)
from fusedrnn.cli.trainer import CHECKPOINT_FILE, Checkpoint, Settings, Trainer  # noqa: E402

TINY = ["--hidden", "16", "--embedding", "8", "--batch", "4", "--steps", "16", "--epochs", "2"]


def invoke(*arguments: object) -> Any:
    return typer_testing.CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_ok(result: Any) -> None:
    assert result.exit_code == 0, result.output


def script() -> list[str]:
    """The installed command; the same entry point where it is not installed."""
    path = Path(sysconfig.get_path("scripts")) / "fusedrnn"
    return [str(path)] if path.exists() else [sys.executable, "-c", "from fusedrnn.cli import main; main()"]


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [*script(), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def pseudo_text(sentences: int = 150, seed: int = 0) -> str:
    """Sentences of a few words, in paragraphs that differ."""
    words = [
        "the",
        "a",
        "small",
        "red",
        "fox",
        "hound",
        "runs",
        "sleeps",
        "over",
        "lazy",
        "river",
        "and",
        "then",
    ]
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(words, k=rng.randint(4, 9))).capitalize() + "." for _ in range(sentences)]
    return "".join(line + ("\n\n" if i % 5 == 4 else "\n") for i, line in enumerate(lines))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(pseudo_text())
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text(pseudo_text())
    assert_ok(invoke("train", folder / "corpus.txt", *TINY, "--out", folder / "model.safetensors"))
    return folder / "model.safetensors"


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
    trainer.step = trainer.total_steps
    assert list(trainer.events())[-1].score.bits == best.score.bits  # type: ignore[union-attr]


def test_divergence_is_reported_and_the_best_model_kept(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    result = invoke("train", corpus, *TINY, "--lr", 1e38, "--clip", 1e38, "--out", out)
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
def test_parameter_count(cell: str, layers: int) -> None:
    config = Config(cell=cell, hidden=5, layers=layers, embedding=3)
    assert parameter_count(config, 7) == CharLM(config, 7).num_parameters


def test_the_learning_rate_falls_along_a_cosine() -> None:
    rates = [Settings(lr=1.0).rate(step, 100) for step in range(101)]
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.51)
    assert rates[100] == pytest.approx(0.02)
    assert rates == sorted(rates, reverse=True)


# Resuming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_resuming_equals_never_stopping(cell: str, corpus: Path, tmp_path: Path) -> None:
    options = [*TINY, "--cell", cell, "--layers", 2, "--dropout", 0.2, "--epochs", 3]
    assert_ok(invoke("train", corpus, *options, "--out", tmp_path / "whole.safetensors"))
    parts = tmp_path / "parts.safetensors"
    checkpoint = tmp_path / "parts.checkpoint.safetensors"
    assert_ok(invoke("train", corpus, *options, "--out", parts, "--max-steps", 7))
    for stop in (8, 60, 133):
        assert_ok(invoke("train", "--resume", checkpoint, "--max-steps", stop))
    result = invoke("train", corpus, "--resume", checkpoint)
    assert_ok(result)
    assert "continuing at step 133" in result.output
    for suffix in (".safetensors", ".checkpoint.safetensors"):
        whole, resumed = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
        assert whole.read_bytes() == resumed.read_bytes()
    again = invoke("train", "--resume", checkpoint)
    assert_ok(again)
    assert "finished" in again.output
    assert (tmp_path / "whole.safetensors").read_bytes() == parts.read_bytes()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until the condition holds or the process has ended."""
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def changed(path: Path) -> Callable[[], bool]:
    """Whether the file has been replaced since this call."""
    before = path.stat().st_mtime_ns if path.exists() else None
    return lambda: path.exists() and path.stat().st_mtime_ns != before


def test_killing_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    options = [*TINY, "--epochs", 40, "--patience", 40]
    checkpoint = tmp_path / "m.checkpoint.safetensors"
    rng = random.Random(1)
    arguments: list[object] = ["train", corpus, *options, "--out", tmp_path / "m.safetensors"]
    for _ in range(3):
        process = start(*arguments)
        wait_for(changed(checkpoint), process)
        time.sleep(0.1 * rng.random())
        process.kill()
        process.communicate()
        Checkpoint.read(checkpoint)
        load_model(tmp_path / "m.safetensors")
        arguments = ["train", "--resume", checkpoint]
    assert_ok(invoke(*arguments))
    assert_ok(invoke("train", corpus, *options, "--out", tmp_path / "whole.safetensors"))
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_interrupting_keeps_the_best_model(corpus: Path, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "m.safetensors", tmp_path / "m.checkpoint.safetensors"
    process = start("train", corpus, *TINY, "--epochs", 100_000, "--patience", 100_000, "--out", out)
    wait_for(changed(checkpoint), process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted at step" in output
    assert output.splitlines()[-1] == f"model: {out}"
    assert errors == ""
    found = load_model(out)
    assert found.score is not None
    step = int(output.partition("interrupted at step ")[2].partition(";")[0])
    assert len(Checkpoint.read(checkpoint).tensors["losses"]) == step


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--hidden", 17], "--hidden: the checkpoint was made with 16, got 17"),
        (["--lr", 0.1], "--lr: the checkpoint was made with"),
        (["--valid-fraction", 0.2], "--valid-fraction: the checkpoint"),
    ],
)
def test_resuming_refuses_other_options(options: list[object], complaint: str, trained: Path) -> None:
    result = invoke("train", "--resume", trained.with_name("model.checkpoint.safetensors"), *options)
    assert result.exit_code == 2
    assert complaint in result.stderr


def test_resuming_refuses_another_text(trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(pseudo_text(seed=1))
    result = invoke("train", other, "--resume", trained.with_name("model.checkpoint.safetensors"))
    assert_one_line(result, "not the text that")


def test_a_model_is_not_a_checkpoint(trained: Path) -> None:
    assert_one_line(invoke("train", "--resume", trained), "expected a fusedrnn training checkpoint")
    checkpoint = trained.with_name("model.checkpoint.safetensors")
    assert_one_line(invoke("generate", checkpoint), "expected a fusedrnn character model")


# Files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model and a checkpoint of few bytes."""
    text = "abab\n\nbaba\n\nabba b\n" * 2
    trainer = Trainer(Config(hidden=1, embedding=1), Settings(batch=1, steps=4, epochs=1), text)
    folder = tmp_path_factory.mktemp("small")
    save_model(folder / "m", trainer.config, trainer.vocabulary, Score(3, 1.5), trainer.model.state_dict())
    trainer.save(folder / "c", None)
    return {MODEL_FILE: (folder / "m").read_bytes(), CHECKPOINT_FILE: (folder / "c").read_bytes()}


@pytest.mark.parametrize("kind", [MODEL_FILE, CHECKPOINT_FILE])
def test_every_truncation_is_an_error(kind: str, small_files: dict[str, bytes]) -> None:
    data = small_files[kind]
    files.parse(data, kind)
    for size in range(len(data)):
        with pytest.raises(CliError, match="damaged"):
            files.parse(data[:size], kind)
    with pytest.raises(CliError, match="damaged"):
        files.parse(data + b"\0", kind)


@pytest.mark.parametrize("kind", [MODEL_FILE, CHECKPOINT_FILE])
def test_every_flipped_bit_is_an_error(kind: str, small_files: dict[str, bytes]) -> None:
    data = bytearray(small_files[kind])
    for place in range(len(data)):
        for bit in {place % 8, (place // 8 + 3) % 8}:
            data[place] ^= 1 << bit
            with pytest.raises(CliError):
                files.parse(bytes(data), kind)
            data[place] ^= 1 << bit


def test_a_damaged_file_is_one_line(trained: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "m.safetensors", trained.read_bytes()
    for damaged in (b"", data[:7], data[:1000], data[:-1], data[:-1] + bytes([data[-1] ^ 1])):
        path.write_bytes(damaged)
        for command in (["generate"], ["info"], ["train", "--resume"]):
            assert_one_line(invoke(*command, path), f"{path}: ")


def test_a_description_that_does_not_fit_is_an_error(trained: Path, tmp_path: Path) -> None:
    tensors, content = files.load(trained, MODEL_FILE)
    path = tmp_path / "m.safetensors"
    config = content["config"]
    for wrong in (
        {**content, "config": {**config, "hidden": 10**12}},
        {**content, "config": {**config, "hidden": -1}},
        {**content, "config": {**config, "hidden": "16"}},
        {**content, "config": {**config, "cell": "gru"}},
        {**content, "config": {**config, "dropout": 1e400}},
        {**content, "config": []},
        {**content, "vocabulary": content["vocabulary"][:-1]},
        {**content, "vocabulary": content["vocabulary"][::-1]},
        {**content, "vocabulary": None},
        {**content, "score": {"bits": 1.0}},
        {},
    ):
        files.save(path, MODEL_FILE, tensors, wrong)
        assert_one_line(invoke("info", path), "not a usable model")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CliError, match="No space left"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    files.write_atomically(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"data"


# Text -------------------------------------------------------------------------------------------------------


def test_vocabulary() -> None:
    vocabulary = Vocabulary.of("b\U0001f600a\na" + UNKNOWN)
    assert vocabulary.characters == UNKNOWN + "\nab\U0001f600"
    assert vocabulary.encode("ab\U0001f600c\n\udcff").tolist() == [2, 3, 4, 0, 1, 0]
    assert vocabulary.unknown_in("acbc\xe9") == ["c", "\xe9"]
    for wrong in ("", "ab", UNKNOWN + "ba", UNKNOWN + "aa", UNKNOWN + UNKNOWN):
        with pytest.raises(ValueError, match="characters"):
            Vocabulary(wrong)


def test_the_parts_of_a_text_share_no_paragraph() -> None:
    parts = split("".join(f"same words\n\nnumber {i % 105}\n\n" for i in range(110)), 0.1)
    training = {" ".join(part.split()) for part in parts.training.split("\n\n")}
    held_out = [" ".join(part.split()) for part in parts.held_out.split("\n\n")]
    assert not training & set(held_out)
    assert parts.repeated > 0

    text = built_in_text()
    parts = split(text, 0.1)
    assert text.startswith(parts.training)
    assert len(parts.training) + len(parts.held_out) + parts.repeated == len(text)
    assert 0.05 * len(text) < len(parts.held_out) < 0.1 * len(text)


def test_a_text_that_only_repeats_is_refused() -> None:
    with pytest.raises(CliError, match="word for word"):
        split("the same\n\n" * 100, 0.1)


def test_windows_carry_on_where_the_last_one_ended() -> None:
    codes = np.arange(1, 60, dtype=np.int64)
    windows = Windows(codes, batch=3, steps=5)
    inputs = np.concatenate([windows[i][0] for i in range(len(windows))])
    targets = np.concatenate([windows[i][1] for i in range(len(windows))])
    assert inputs.shape == (19, 3)
    assert windows.characters == inputs.size
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs.T.ravel(), codes[:57])
    lengths = [len(windows[i][0]) for i in range(len(windows))]
    assert max(lengths) <= 5
    assert max(lengths) - min(lengths) <= 1
    assert held_out_windows(codes, batch=3, steps=50).characters == 58


def test_text_files_are_read_as_people_expect(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(path) == "one\ntwo\nthree\n"


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


def assert_one_line(result: Any, complaint: str) -> None:
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1
    assert complaint in result.stderr


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        (b"", "no text in it"),
        (b" \n\n", "no text in it"),
        (b"caf\xe9", "not UTF-8 text (byte 0xe9 at offset 3)"),
        (b"too short for a model", "the text is too short"),
        (b"x", "held-out part of the text is empty"),
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
