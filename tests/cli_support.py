"""What the tests of the command line share: runs of it, and texts."""

from __future__ import annotations

import random
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

typer_testing = pytest.importorskip("typer.testing")

from fusedrnn.cli.app import app  # noqa: E402

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


def assert_one_line(result: Any, complaint: str) -> None:
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1
    assert complaint in result.stderr
