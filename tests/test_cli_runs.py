"""The command line: what ends a run, what may change when it goes on, and what is left when it fails."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import (
    TINY,
    assert_ok,
    assert_one_line,
    changed,
    invoke,
    pseudo_text,
    script,
    start,
    wait_for,
)

from fusedrnn import init
from fusedrnn.cli import settings
from fusedrnn.cli.charlm import CharLM, Config, load_model
from fusedrnn.cli.checkpoint import Checkpoint
from fusedrnn.cli.display import Meter, PlainDisplay
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.settings import Settings
from fusedrnn.cli.trainer import Evaluated, Trained, Trainer

pytestmark = pytest.mark.once

ENDLESS = [*TINY, "--epochs", 100_000, "--patience", 100_000]

# Signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("interruptible")
def test_a_signal_saves_what_was_trained(number: signal.Signals, corpus: Path, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "m.safetensors", tmp_path / "m.checkpoint.safetensors"
    process = start("train", corpus, *ENDLESS, "--out", out)
    wait_for(changed(checkpoint), process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert errors == ""
    assert output.splitlines()[-1] == f"model: {out}"
    step = int(output.partition("interrupted at step ")[2].partition(";")[0])
    assert len(Checkpoint.read(checkpoint).tensors["losses"]) == step
    assert load_model(out).score is not None
    assert_ok(invoke("train", "--resume", checkpoint, "--max-steps", step + 1))


def test_a_signal_that_is_ignored_stays_ignored(corpus: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "m.checkpoint.safetensors"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        process = start("train", corpus, *ENDLESS, "--out", tmp_path / "m.safetensors")
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(changed(checkpoint), process)
    process.send_signal(signal.SIGHUP)
    for _ in range(4):  # more often than a run saves when it ends
        wait_for(changed(checkpoint), process)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_terminal_that_hangs_up_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    checkpoint = tmp_path / "m.checkpoint.safetensors"
    primary, secondary = pty.openpty()
    command = [*script(), "train", str(corpus), *map(str, ENDLESS), "--out", str(tmp_path / "m.safetensors")]
    streams = {"stdin": secondary, "stdout": secondary, "stderr": secondary}
    with subprocess.Popen(
        command, **streams, start_new_session=True, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(secondary)
        seen = changed(checkpoint)
        while not seen():
            os.read(primary, 4096)
        steps = len(Checkpoint.read(checkpoint).tensors["losses"])
        os.close(primary)
        assert process.wait(timeout=60) == 1
    assert len(Checkpoint.read(checkpoint).tensors["losses"]) > steps


# Output -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_is_one_line(trained: Path, corpus: Path, tmp_path: Path) -> None:
    train = ["train", corpus, *TINY, "--out", tmp_path / "m.safetensors"]
    for arguments in (["--help"], ["info"], ["generate", trained], train):
        with open("/dev/full", "w") as full:
            command = [*script(), *map(str, arguments)]
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert result.returncode == 1
            assert result.stderr == "Error: standard output: No space left on device\n"
    with open("/dev/full", "w") as full:
        assert subprocess.run([*script(), "info"], stdout=full, stderr=full, check=False).returncode == 1
    closed = subprocess.run([*script(), "info"], preexec_fn=lambda: os.close(1), check=False)
    assert closed.returncode == 0


def test_what_was_trained_is_saved_when_nothing_can_be_shown(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: PlainDisplay, event: Any) -> None:
        if isinstance(event, Trained) and self._meter._trainer.step == 5:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(PlainDisplay, "show", fail)
    result = invoke("train", corpus, *TINY, "--out", tmp_path / "m.safetensors")
    assert isinstance(result.exception, OSError)
    assert len(Checkpoint.read(tmp_path / "m.checkpoint.safetensors").tensors["losses"]) == 5


def test_loss_and_score_have_one_unit_and_the_loss_is_that_of_the_last_steps() -> None:
    trainer = Trainer(Config(hidden=2, embedding=2), Settings(batch=1, steps=4, epochs=1), pseudo_text(40))
    meter = Meter(trainer)
    assert "loss" not in meter.figures
    trainer.losses = [100.0] * 10 + [2.0] * 25 + [3.0] * 25
    assert meter.figures.startswith("loss 2.500 bits/char  ")
    event = next(event for event in trainer.events() if isinstance(event, Evaluated))
    loss = np.mean(trainer.losses[-50:])
    assert meter.figures.startswith(f"loss {loss:.3f}, held-out {event.score.bits:.3f} bits/char  ")


def test_weights_that_a_checkpoint_brings_are_not_drawn(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.safetensors"
    invoke("train", corpus, *TINY, "--max-steps", 2, "--out", out)

    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are drawn")

    for name in ("_uniform", "_normal", "_orthonormal_rows", "standard_normal"):
        monkeypatch.setattr(init, name, draw)
    resumed = invoke("train", "--resume", tmp_path / "m.checkpoint.safetensors", "--max-steps", 4)
    assert resumed.exit_code == 0, resumed.output
    assert len(Checkpoint.read(tmp_path / "m.checkpoint.safetensors").tensors["losses"]) == 4


def test_the_place_of_the_model_is_said(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("train", corpus, *TINY, "--threads", 1)
    assert ", 1 thread\n" in result.output
    assert "out: charlm.safetensors (--out names another file)\n" in result.output
    result = invoke("train", corpus, *TINY, "--threads", 2, "--max-steps", 1)
    score = load_model(Path("charlm.safetensors")).score
    assert score is not None
    assert f"the model of {score.bits:.3f} bits per held-out character there stays until" in result.output
    assert ", 2 threads\n" in result.output


# Going on with other settings -------------------------------------------------------------------------------


@pytest.fixture
def paused(corpus: Path, tmp_path: Path) -> Path:
    """The checkpoint of a run that paused in its second pass over the text, which has 71 windows."""
    assert_ok(invoke("train", corpus, *TINY, "--max-steps", 100, "--out", tmp_path / "m.safetensors"))
    return tmp_path / "m.checkpoint.safetensors"


@pytest.mark.parametrize(
    ("options", "changes", "steps"),
    [
        (["--lr", 0.001], ["--lr 0.001 (was 0.008)"], 140),
        (["--epochs", 3], ["--epochs 3 (was 2)"], 210),
        (["--epochs", 1, "--clip", 2], ["--epochs 1 (was 2)", "--clip 2.0 (was 1.0)"], 100),
        (["--patience", 9], ["--patience 9 (was 4)"], 140),
        (["--batch", 8], ["--batch 8 (was 4)"], 120),
        (["--lr", 0.008, "--hidden", 16], [], 140),
    ],
)
def test_resuming_follows_what_may_change(
    options: list[object], changes: list[str], steps: int, paused: Path
) -> None:
    old = Checkpoint.read(paused)
    result = invoke("train", "--resume", paused, *options)
    assert_ok(result)
    said = [line.removeprefix("changed: ") for line in result.output.splitlines() if "changed: " in line]
    assert said == changes
    new = Checkpoint.read(paused)
    assert len(new.tensors["losses"]) == steps
    assert new.tensors["losses"][:100].tolist() == old.tensors["losses"].tolist()
    assert new.content["scores"][: len(old.content["scores"])] == old.content["scores"]
    for name, value in zip(options[::2], options[1::2], strict=True):
        kept = {**vars(new.config), **vars(new.settings)}
        assert kept[str(name).removeprefix("--")] == value


def test_resuming_after_a_change_equals_never_stopping(paused: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.checkpoint.safetensors"
    whole.write_bytes(paused.read_bytes())
    other = tmp_path / "other.txt"
    other.write_text(pseudo_text(seed=1) + "\nA new character: %.\n")
    options = [other, "--lr", 0.004, "--batch", 3, "--epochs", 2]
    assert_ok(invoke("train", "--resume", whole, *options))
    assert_ok(invoke("train", "--resume", paused, *options, "--max-steps", 123))
    assert_ok(invoke("train", "--resume", paused, "--max-steps", 250))
    assert_ok(invoke("train", "--resume", paused))
    assert whole.read_bytes() == paused.read_bytes()
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_resuming_with_another_text_counts_its_passes_anew(paused: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("% is new. " * 3 + pseudo_text(seed=1))
    before = load_model(tmp_path / "m.safetensors")
    result = invoke("train", other, "--resume", paused, "--max-steps", 101)
    assert_ok(result)
    assert "changed: the text (was " in result.output
    assert "not in the model's vocabulary" in result.output
    # Not measured on the new text yet: the model stays.
    assert load_model(tmp_path / "m.safetensors").score == before.score
    assert_ok(invoke("train", "--resume", paused))
    after = load_model(tmp_path / "m.safetensors")
    assert after.vocabulary == before.vocabulary
    assert after.score is not None and after.score.step > 100
    assert len(Checkpoint.read(paused).tensors["losses"]) > 100 + 140


def test_a_text_that_changed_unasked_is_refused(paused: Path, corpus: Path) -> None:
    corpus.write_text(pseudo_text(seed=1))
    assert_one_line(invoke("train", "--resume", paused), "any more; give a TEXT_FILE")
    assert_ok(invoke("train", corpus, "--resume", paused, "--max-steps", 101))


@pytest.mark.parametrize("options", [["--lr", -1], ["--epochs", 0], ["--batch", 2**31], ["--clip", "nan"]])
def test_resuming_refuses_bad_values(options: list[object], paused: Path) -> None:
    assert invoke("train", "--resume", paused, *options).exit_code == 2


def test_a_finished_run_goes_on_with_more_epochs(trained: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "m.checkpoint.safetensors"
    checkpoint.write_bytes(trained.with_name("model.checkpoint.safetensors").read_bytes())
    steps = len(Checkpoint.read(checkpoint).tensors["losses"])
    assert_ok(invoke("train", "--resume", checkpoint, "--epochs", 3))
    assert len(Checkpoint.read(checkpoint).tensors["losses"]) == steps // 2 * 3


# Nothing held out -------------------------------------------------------------------------------------------


def test_training_without_a_held_out_part(corpus: Path, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "m.safetensors", tmp_path / "m.checkpoint.safetensors"
    options = [*TINY, "--valid-fraction", 0, "--out", out]
    result = invoke("train", corpus, *options)
    assert_ok(result)
    assert "0 held out" in result.output
    assert "not measured, as nothing is held out" in result.output
    whole, found = out.read_bytes(), load_model(out)
    assert found.score is None
    last = Checkpoint.read(checkpoint)
    for name, value in found.model.state_dict().items():
        np.testing.assert_array_equal(value, last.tensors[f"model.{name}"])
    assert_ok(invoke("info", out))
    assert_ok(invoke("generate", out, "--length", 5))
    # The model that is there stays until the new one has read its text once.
    assert_ok(invoke("train", corpus, *options, "--max-steps", 20))
    assert out.read_bytes() == whole
    assert_ok(invoke("train", "--resume", checkpoint))
    assert out.read_bytes() == whole


# Models that are worse than what is there -------------------------------------------------------------------


def test_a_model_that_cannot_generate_replaces_none(trained: Path, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "model.safetensors", tmp_path / "model.checkpoint.safetensors"
    corpus = trained.with_name("corpus.txt")
    broken = [*TINY, "--lr", 1e37, "--clip", 1e38, "--max-steps", 1, "--out", out]
    assert_one_line(invoke("train", corpus, *broken), "diverged")
    assert not out.exists() and not checkpoint.exists()
    for path in (out, checkpoint):
        path.write_bytes(trained.with_name(path.name).read_bytes())
    for options in (
        [corpus, *broken],
        [corpus, *broken, "--valid-fraction", 0, "--epochs", 1],
        ["--resume", checkpoint, "--epochs", 3, "--lr", 1e37, "--clip", 1e38],
    ):
        assert_one_line(invoke("train", *options), "try a smaller --lr")
        for path in (out, checkpoint):
            assert path.read_bytes() == trained.with_name(path.name).read_bytes()


def test_an_untrained_model_does_not_replace_a_trained_one(trained: Path, tmp_path: Path) -> None:
    out, trained_copy = tmp_path / "m.safetensors", tmp_path / "copy.safetensors"
    for path in (out, trained_copy):
        path.write_bytes(trained.read_bytes())
    corpus = trained.with_name("corpus.txt")
    result = invoke("train", corpus, *TINY, "--max-steps", 1, "--out", out)
    assert_ok(result)
    assert out.read_bytes() == trained.read_bytes()
    assert "the model file is the one that was there before" in result.output
    checkpoint = tmp_path / "m.checkpoint.safetensors"
    assert_ok(invoke("train", "--resume", checkpoint, "--max-steps", 2))
    assert out.read_bytes() == trained.read_bytes()
    assert_ok(invoke("train", "--resume", checkpoint, "--max-steps", 80))
    assert out.read_bytes() != trained.read_bytes()
    # A model that is measured already replaces another at once, and that is said.
    result = invoke("train", "--resume", checkpoint, "--max-steps", 80, "--out", trained_copy)
    assert_ok(result)
    assert "bits per held-out character there is replaced\n" in result.output
    assert load_model(trained_copy).score == load_model(out).score


# Sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status", "complaint"),
    [
        (["--layers", 1_000_000], 2, "layers: expected an int from 1 to 1000, got 1000000"),
        (["--layers", 1_000_000, "--hidden", 1, "--embedding", 1], 2, "layers: expected"),
        (["--hidden", 10**12], 2, "hidden: expected an int from 1 to"),
        (["--embedding", 10**12], 2, "embedding: expected"),
        (["--epochs", 10**18], 2, "epochs: expected"),
        (["--batch", 10**18], 2, "batch: expected"),
        (["--steps", 10**18], 2, "steps: expected"),
        (["--patience", 10**18], 2, "patience: expected"),
        (["--hidden", 2**30], 1, "GiB"),
        (["--embedding", 2**31 - 1, "--layers", 1000], 1, "GiB"),
    ],
)
def test_sizes_that_no_machine_has_are_refused_at_once(
    options: list[object],
    status: int,
    complaint: str,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("built a model")

    monkeypatch.setattr(CharLM, "__init__", refuse)
    result = invoke("train", corpus, *TINY, *options, "--out", tmp_path / "m.safetensors")
    assert result.exit_code == status
    assert complaint in result.stderr


def test_what_fits_into_memory_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 0}
    monkeypatch.setattr(os, "sysconf", memory.__getitem__)
    config, choice = Config(hidden=8, layers=2, embedding=4), Settings(batch=2, steps=3)
    parameters = CharLM(config, 10).num_parameters
    memory["SC_PAGE_SIZE"] = 4 * (4 * parameters + 2 * 3 * (2 * 10 + 2 * 8))
    settings.check_memory(config, choice, 10)
    memory["SC_PAGE_SIZE"] -= 1
    with pytest.raises(CliError, match=f"{parameters:,} parameters"):
        settings.check_memory(config, choice, 10)


# Texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x", "the text is too short: its last 10%, held out to measure the model, hold nothing"),
        ("the same\n\n" * 100, "the text repeats itself: its last 10%"),
        ("too short for a model", "the text is too short: 32 rows of 64 steps need 2,049 characters"),
    ],
)
def test_why_a_text_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(text)
    assert_one_line(invoke("train", tmp_path / "t.txt", "--out", tmp_path / "m.safetensors"), reason)


@pytest.mark.parametrize("size", [2, 3, 10, 100, 2000])
def test_the_sizes_that_are_proposed_would_do(size: int, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(pseudo_text()[:size])
    arguments = ["train", tmp_path / "t.txt", "--valid-fraction", 0, "--out", tmp_path / "m.safetensors"]
    proposed = invoke(*arguments).stderr.partition("for example ")[2].split()
    assert len(proposed) == 4
    assert_ok(invoke(*arguments, *proposed, "--hidden", 4, "--epochs", 1, "--max-steps", 2))


def test_a_text_that_only_repeats_can_be_trained_on_without_measuring(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the same\n\n" * 100)
    options = [*TINY, "--valid-fraction", 0, "--out", tmp_path / "m.safetensors"]
    assert_ok(invoke("train", tmp_path / "t.txt", *options))
