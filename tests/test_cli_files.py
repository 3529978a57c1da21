"""The command line: exact resumption, damaged files, texts."""

from __future__ import annotations

import errno
import io
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from cli_support import TINY, assert_ok, assert_one_line, changed, invoke, start, wait_for

from fusedrnn import files
from fusedrnn.cli.charlm import MODEL_FILE, Config, Score, load_model, save_model
from fusedrnn.cli.checkpoint import CHECKPOINT_FILE, Checkpoint
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.settings import Settings
from fusedrnn.cli.text import (
    UNKNOWN,
    Vocabulary,
    Windows,
    built_in_text,
    held_out_windows,
    read_text,
    split,
)
from fusedrnn.cli.trainer import Trainer

pytestmark = pytest.mark.once

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


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--hidden", 17], "--hidden: the checkpoint was made with 16, got 17"),
        (["--seed", 3], "--seed: the checkpoint was made with"),
        (["--valid-fraction", 0.2], "--valid-fraction: the checkpoint"),
    ],
)
def test_resuming_refuses_other_options(options: list[object], complaint: str, trained: Path) -> None:
    result = invoke("train", "--resume", trained.with_name("model.checkpoint.safetensors"), *options)
    assert result.exit_code == 2
    assert complaint in result.stderr


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


def parse(data: bytes, kind: str) -> None:
    files.parse(io.BytesIO(data), len(data), kind)


@pytest.mark.parametrize("kind", [MODEL_FILE, CHECKPOINT_FILE])
def test_every_truncation_is_an_error(kind: str, small_files: dict[str, bytes]) -> None:
    data = small_files[kind]
    parse(data, kind)
    for size in range(len(data)):
        with pytest.raises(files.FileError, match="damaged"):
            parse(data[:size], kind)
    with pytest.raises(files.FileError, match="damaged"):
        parse(data + b"\0", kind)


@pytest.mark.parametrize("kind", [MODEL_FILE, CHECKPOINT_FILE])
def test_every_flipped_bit_is_an_error(kind: str, small_files: dict[str, bytes]) -> None:
    data = bytearray(small_files[kind])
    for place in range(len(data)):
        for bit in {place % 8, (place // 8 + 3) % 8}:
            data[place] ^= 1 << bit
            with pytest.raises(files.FileError):
                parse(bytes(data), kind)
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
    with pytest.raises(files.FileError, match="No space left"):
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
    with pytest.raises(CliError, match="repeats itself"):
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
