"""The examples, shortened: their data is replaced by less of the same kind, made here."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...] = (),
    **modules: Any,
) -> str:
    """What an example prints, with modules in place of those that carry its data."""
    for module, content in modules.items():
        made = ModuleType(module)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, module.replace("__", "."), made)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    return capsys.readouterr().out


def lines_of(name: str) -> int:
    return sum(bool(line) for line in (EXAMPLES / f"{name}.py").read_text().splitlines())


def speakers(split: str) -> tuple[list[Any], Any]:
    """Four speakers, each with formants of his own, which sway at his own rate."""
    rng = np.random.default_rng(0)
    formants, rates = rng.standard_normal((4, 12)), rng.uniform(0.2, 0.6, 4)
    rng = np.random.default_rng(1 if split == "train" else 2)
    labels = rng.integers(0, 4, 60)
    found = []
    for label in labels:
        steps = np.arange(rng.integers(7, 20))
        wave = np.sin(rates[label] * steps + rng.uniform(0, 3))
        found.append(formants[label][:, None] * wave + 0.5 * rng.standard_normal((12, len(steps))))
    return found, labels.astype(str)


def test_japanese_vowels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = {"load_japanese_vowels": speakers}
    text = run("japanese_vowels", monkeypatch, capsys, aeon={}, aeon__datasets=source)
    assert float(text.split()[1]) > 0.9
    assert lines_of("japanese_vowels") <= 12


def test_forecast(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Temperatures that go back to the season's: the last day is not the best guess."""
    rng, noise = np.random.default_rng(0), [0.0]
    for _ in range(799):
        noise.append(0.3 * noise[-1] + rng.standard_normal())
    days = 10 - 8 * np.cos(np.arange(800) * 2 * np.pi / 365) + 2.5 * np.array(noise)
    table = {"temp_max": SimpleNamespace(to_numpy=lambda: days)}
    source = SimpleNamespace(seattle_weather=lambda: table)
    text = run("forecast", monkeypatch, capsys, vega_datasets={"data": source})
    found = re.search(r"([\d.]+) of that", text)
    assert found is not None and float(found[1]) < 0.9
    assert lines_of("forecast") <= 12
    inside = re.search(r"(\d+)% of the days", text)
    assert inside is not None and 65 <= int(inside[1]) <= 92


def test_sentiment_says_which_file_it_wants(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="pip download"):
        run("sentiment", monkeypatch, capsys)


def test_tune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It improves on the default, and makes no trial twice."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def tuned(trials: str) -> tuple[int, float, float]:
        arguments = (trials, str(tmp_path / "tune.db"))
        source = {"load_japanese_vowels": speakers}
        text = run("tune", monkeypatch, capsys, arguments, aeon={}, aeon__datasets=source)
        study = optuna.load_study(study_name="vowels", storage=f"sqlite:///{tmp_path / 'tune.db'}")
        found = re.search(r"accuracy ([\d.]+) .*, ([\d.]+) with the default", text)
        assert found is not None
        return len(study.trials), float(found[1]), float(found[2])

    assert tuned("1")[0] == 1
    count, best, default = tuned("2")
    assert count == 2 and best >= default > 0.5
