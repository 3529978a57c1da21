"""The command line: files that somebody made to harm, and files written where others may write."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from cli_support import TINY, assert_ok, assert_one_line, invoke, script, start

from fusedrnn import files
from fusedrnn.cli import report
from fusedrnn.cli.charlm import MODEL_FILE, CharLM, Config, is_sound, load_model
from fusedrnn.cli.checkpoint import CHECKPOINT_FILE
from fusedrnn.cli.errors import printable
from fusedrnn.cli.sampling import Sampler
from fusedrnn.cli.settings import Settings
from fusedrnn.cli.text import UNKNOWN, Vocabulary
from fusedrnn.cli.trainer import Trainer

pytestmark = pytest.mark.once

TEXT = "abab\n\nbaba\n\nabba b\n" * 2
SMALL = Config(cell="rnn", hidden=1, embedding=1)


def forge(path: Path, text: str, tensors: files.Tensors) -> Path:
    """Write a file whose checksum is right, whatever it says."""
    entry = {"fusedrnn": f"{files._checksum(text, tensors)} {text}"}
    path.write_bytes(safetensors.numpy.save(tensors, entry))
    return path


def described(content: Any, kind: Any = MODEL_FILE, version: Any = files.VERSION) -> str:
    return json.dumps({"format": kind, "version": version, "content": content})


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, files.Tensors, dict[str, Any]]:
    """A checkpoint of few bytes, and what is in it; its text lies beside it."""
    (tmp_path / "text").write_text(TEXT)
    trainer = Trainer(SMALL, Settings(batch=1, steps=4, epochs=1), TEXT)
    for _, _ in zip(range(3), trainer.events(), strict=False):
        pass
    path = tmp_path / "m.checkpoint.safetensors"
    trainer.save(path, str(tmp_path / "text"))
    return path, *files.load(path, CHECKPOINT_FILE)


# Models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        "{}",
        '"text"',
        "7",
        "no json",
        described(None),
        described([]),
        described({}, kind=["a", {}]),
        described({}, version=None),
        json.dumps({"format": MODEL_FILE, "version": files.VERSION}),
    ],
)
def test_a_description_of_another_form_is_one_line(text: str, tmp_path: Path) -> None:
    path = forge(tmp_path / "m.safetensors", text, {"a": np.zeros(1, np.float32)})
    for command in (["info"], ["generate"], ["train", "--resume"]):
        assert_one_line(invoke(*command, path), f"{path}: ")


@pytest.mark.parametrize(
    "score",
    [
        {"step": 1, "bits": None},
        {"step": 1, "bits": float("nan")},
        {"step": 1, "bits": "1"},
        {"step": -1, "bits": 1.0},
        {"step": "\x1b[31m", "bits": 1.0},
    ],
)
def test_a_score_that_is_none_is_one_line(score: Any, tmp_path: Path) -> None:
    content = {"config": asdict(SMALL), "vocabulary": UNKNOWN + "ab", "score": score}
    path = forge(tmp_path / "m.safetensors", described(content), CharLM(SMALL, 3).state_dict())
    assert_one_line(invoke("info", path), "not a usable model")


@pytest.mark.parametrize(
    ("layers", "names"), [(40_000, ["a"]), (900, ["a"]), (900, [f"rnn.weight_ih_l{i}" for i in range(900)])]
)
def test_a_configuration_builds_no_more_than_the_file_holds(
    layers: int, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {"config": {**asdict(SMALL), "layers": layers}, "vocabulary": UNKNOWN + "ab", "score": None}
    numbers = 3 + (layers + layers * 3) + 6
    tensors = {name: np.zeros(numbers // len(names), np.float32) for name in names}
    path = forge(tmp_path / "m.safetensors", described(content), tensors)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("built a model")

    monkeypatch.setattr(CharLM, "__init__", refuse)
    assert_one_line(invoke("info", path), "not a usable model")


def test_sizes_are_held_against_the_file_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    shape = {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}
    for header in (b"[]", b'"a"', b"{", b"[" * 100_000, json.dumps({"a": shape}).encode(), b'{"a":{}}'):
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(2**40 - 1)  # a hole: reading it would take a terabyte
        assert_one_line(invoke("info", path), "damaged")
    with open(path, "wb") as file:
        file.write((2**39).to_bytes(8, "little"))
        file.truncate(2**40)
    assert_one_line(invoke("info", path), "damaged")


def test_terminal_escapes_of_a_file_are_shown_as_text(tmp_path: Path) -> None:
    path, tensors = tmp_path / "m.safetensors", {"a": np.zeros(1, np.float32)}
    for text in (
        described({}, kind="\x1b[31mred\x07"),
        described({}, version="\x1b]0;name\x07\nError: two\x85"),
    ):
        assert_one_line(invoke("info", forge(path, text, tensors)), "\\x1b")
        assert "\x1b" not in invoke("info", path).stderr
    assert printable("a\x1b\n\u202e\u2028\xe9\ud800") == "a\\x1b\\n\\u202e\\u2028\xe9\\ud800"


def test_a_model_cannot_draw_terminal_escapes_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = Vocabulary(UNKNOWN + "\x1b")
    model = CharLM(SMALL, 2)
    for terminal, shown in ((True, "\\x1b"), (False, "\x1b")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        report.stream(Sampler(model, vocabulary), "\t", 2)
        assert capsys.readouterr().out == "\t" + 2 * shown + "\n"


# Checkpoints ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (7, "not a usable checkpoint"),
        (["a"], "not a usable checkpoint"),
        ("fifo", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("/no\x1b[31m", "/no\\x1b[31m: No such file"),
        ("a\0b", "null"),
    ],
)
def test_a_source_that_is_no_text(
    source: Any, complaint: str, checkpoint: tuple[Path, files.Tensors, dict[str, Any]]
) -> None:
    path, tensors, content = checkpoint
    if source == "fifo":
        source = str(path.with_name("fifo"))
        os.mkfifo(source)
    content["text"]["source"] = source
    forge(path, described(content, CHECKPOINT_FILE), tensors)
    # In a process of its own: a fault here is a wait without end.
    command = [*script(), "train", "--resume", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert complaint in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_checkpoint_of_other_values_is_one_line(
    checkpoint: tuple[Path, files.Tensors, dict[str, Any]],
) -> None:
    path, tensors, content = checkpoint
    assert_ok(invoke("train", "--resume", path, "--max-steps", 1, "--out", path.with_name("o.safetensors")))
    config, best = content["config"], {name: t for name, t in tensors.items() if name.startswith("best.")}
    wrong_contents: list[dict[str, Any]] = [
        {"config": {**config, "hidden": 2**30}},
        {"config": {**config, "layers": 1000}},
        {"config": {**config, "cell": "lstm"}},
        {"vocabulary": UNKNOWN + "a"},
        {"vocabulary": None},
        {"text": None},
        {"text": {}},
        {"text": {**content["text"], "sha256": 1}},
        {"position": {"passed": -1, "windows": 1}},
        {"position": {"passed": 1, "windows": "1"}},
        {"position": []},
        {"random": []},
        {"scores": [{"step": 1, "bits": None}]},
        {"scores": 7} if best else {"scores": [{"step": 1, "bits": 1.0}]},
        {"settings": {**content["settings"], "batch": True}},
        {"settings": {**content["settings"], "lr": True}},
        {"settings": {**content["settings"], "clip": True}},
        {"config": {**config, "dropout": False}},
    ]
    for wrong in wrong_contents:
        forge(path, described({**content, **wrong}, CHECKPOINT_FILE), tensors)
        assert_one_line(invoke("train", "--resume", path), "not a usable checkpoint")
    for name in tensors:
        for other in (None, np.zeros((7, 7)), np.zeros(tensors[name].shape, np.int16)):
            # Losses are only counted; and without a state, training goes on from zero.
            if (name == "losses" and other is not None) or (name.startswith("carried") and other is None):
                continue
            changed = {key: tensor for key, tensor in {**tensors, name: other}.items() if tensor is not None}
            forge(path, described(content, CHECKPOINT_FILE), changed)
            assert_one_line(invoke("train", "--resume", path), "not a usable checkpoint")


# Writing ----------------------------------------------------------------------------------------------------


def test_what_others_put_into_the_folder_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "m"
    victim.write_text("precious")
    for name in (f".m.{os.getpid()}.tmp", f"{files._prefix(path)}0.tmp"):
        (tmp_path / name).symlink_to(victim)
    files.write_atomically(path, b"data")
    assert victim.read_text() == "precious"
    assert path.read_bytes() == b"data" and not path.is_symlink()
    # Even a name that was foreseen is not followed.
    (tmp_path / f"{files._prefix(path)}0.tmp").symlink_to(victim)
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0")
    monkeypatch.setattr(files, "_remove_strays", lambda target: None)
    with pytest.raises(files.FileError, match="File exists"):
        files.write_atomically(path, b"other")
    assert victim.read_text() == "precious"
    assert path.read_bytes() == b"data"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o666])
def test_a_file_that_is_replaced_hands_on_its_permissions(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "m"
    before = os.umask(0o027)
    try:
        files.write_atomically(path, b"first")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(mode)
        files.write_atomically(path, b"second")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"second"


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path, other = tmp_path / "m", tmp_path / "n"
    killed = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom fusedrnn import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomically(Path(sys.argv[1]), b'half')\n"
    )
    for target in (path, other):
        result = subprocess.run([sys.executable, "-c", killed, str(target)], check=False)
        assert result.returncode == -signal.SIGKILL
    strays = set(tmp_path.iterdir())
    assert len(strays) == 2
    living = tmp_path / f"{files._prefix(path)}living.tmp"
    with open(living, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        files.write_atomically(path, b"data")
        left = set(tmp_path.iterdir()) - {path}
        assert living in left and len(left) == 2 and len(left & strays) == 1
        assert next(iter(left & strays)).name.startswith(files._prefix(other))
    files.write_atomically(path, b"data")
    assert not living.exists()


def test_a_long_name_can_be_written(corpus: Path, tmp_path: Path) -> None:
    suffix = ".safetensors"
    for size in (233, 235):
        out = tmp_path / ("m" * (size - len(suffix)) + suffix)
        assert_ok(invoke("train", corpus, *TINY, "--max-steps", 1, "--out", out))
        load_model(out)
    for name in ("m" * 224 + suffix, "m" * 300 + suffix, "\xe9" * 112 + suffix):
        assert_one_line(invoke("train", corpus, *TINY, "--out", tmp_path / name), "at most 223 bytes before")
    assert_one_line(invoke("info", tmp_path / ("m" * 300)), "too long")
    (tmp_path / "loop").symlink_to("loop")
    assert_one_line(invoke("train", tmp_path / "loop", "--out", tmp_path / "m.safetensors"), "symbolic links")


def test_a_checkpoint_is_not_replaced_by_its_model(trained: Path, tmp_path: Path) -> None:
    backup = tmp_path / "backup.safetensors"
    backup.write_bytes(trained.with_name("model.checkpoint.safetensors").read_bytes())
    assert_one_line(invoke("train", "--resume", backup), "got the checkpoint")


def test_a_text_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = start("train", tmp_path / "fifo", "--out", tmp_path / "m.safetensors")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines() == [f"Error: {tmp_path / 'fifo'}: not a regular file"]


def test_a_model_whose_scores_would_overflow_is_not_sound() -> None:
    for dtype, large in (("float32", 1e38), ("float64", 1e308)):
        state = CharLM(Config(hidden=3, layers=2, embedding=2, dtype=dtype), 5).state_dict()
        assert is_sound(state)
        for name in state:
            for value in (np.nan, np.inf, -np.inf, large):
                changed = {**state, name: state[name].copy()}
                changed[name].flat[-1] = value
                assert not is_sound(changed), (name, value)
