"""The examples of series, shortened by --quick: their data is replaced by less of its kind, made here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_examples import EXAMPLES, lines_of, run

pytest.importorskip("sklearn")
pytestmark = pytest.mark.once

RNG = np.random.default_rng()


@pytest.fixture(autouse=True)
def _numbers_of_one_test() -> None:
    """The same data whichever tests ran before."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """The numbers that an example prints; its pictures go into a folder of the test."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)

    def found(name: str, **modules: Any) -> list[float]:
        text = run(name, monkeypatch, capsys, ("--quick",), **modules)
        return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]

    return found


def autoregressive(factor: float, size: int) -> Any:
    noise = [0.0]
    for _ in range(size - 1):
        noise.append(factor * noise[-1] + RNG.standard_normal())
    return np.array(noise)


def test_weather(example: Any) -> None:
    """Days that are alike, and warmer and cooler weeks: better than the day before."""
    hours = np.arange(3500)
    series = 15 + 5 * np.sin(hours * 2 * np.pi / 24) + 8 * np.sin(hours / 200)
    series += 0.1 * RNG.standard_normal(3500)
    table = {"temp": SimpleNamespace(to_numpy=lambda: series)}
    error, naive, mase = example("weather", vega_datasets={"data": SimpleNamespace(sf_temps=lambda: table)})
    assert mase == pytest.approx(error / naive, rel=0.01) and mase < 0.9


def test_electricity(example: Any) -> None:
    """Weekends of less demand, and weather that lasts for some days: better than the week before."""
    hours = np.arange(4032)
    series = 30000 + 6000 * np.sin(hours * 2 * np.pi / 48) - 5000 * (hours // 48 % 7 >= 5)
    series = series + 1500 * np.sin(hours / 130) + 100 * RNG.standard_normal(4032)
    made = {"load_taylor": lambda: series}
    error, naive, mase, inside, _ = example("electricity", pmdarima={}, pmdarima__datasets=made)
    assert mase == pytest.approx(error / naive, rel=0.01) and mase < 0.9
    assert 40 < inside < 99
    assert Path("electricity.png").stat().st_size > 1000


def test_tracking(example: Any) -> None:
    ours, kalman, measured = example("tracking")
    assert ours < 0.75 * kalman and kalman < 0.85 * measured


class SmoothedVariance:
    """In place of GARCH, what an untrained network says: an exponentially weighted mean of squares."""

    def __init__(self, returns: Any, **options: Any) -> None:
        self._returns = returns

    def fit(self, last_obs: int, disp: str) -> SmoothedVariance:
        self._variances = [self._returns[:last_obs].var()]
        for value in self._returns:
            self._variances.append(0.94 * self._variances[-1] + 0.06 * value**2)
        return self

    def forecast(self, start: int, horizon: int, reindex: bool) -> Any:
        values = np.array(self._variances[start + 1 :])[:, None]
        return SimpleNamespace(variance=SimpleNamespace(to_numpy=lambda: values))


def test_volatility(example: Any) -> None:
    """Calm and wild weeks: better than what it starts from."""
    swings = autoregressive(0.98, 4501)
    prices = 100 * np.exp(0.01 * np.cumsum(np.exp(0.2 * swings) * RNG.standard_normal(4501)))
    table = {"Adj Close": SimpleNamespace(to_numpy=lambda: prices)}
    source = {"sp500": SimpleNamespace(load=lambda: table)}
    ours, smoothed, _ = example("volatility", arch={"arch_model": SmoothedVariance}, arch__data=source)
    assert ours < smoothed - 0.05
    assert Path("volatility.png").stat().st_size > 1000


def test_anomaly(example: Any) -> None:
    """A beat that comes too late."""

    def series(split: str) -> tuple[Any, Any]:
        beats = np.arange(1200) * 2 * np.pi / 40
        labels = np.zeros(1200)
        if split == "test":
            beats[700:] -= 1.5
            labels[700:720] = 1
        wave = np.maximum(np.sin(beats), 0) ** 3 + 0.3 * np.sin(2 * beats)
        return wave + 0.03 * RNG.standard_normal(1200), labels

    largest, first, last = example("anomaly", aeon={}, aeon__datasets={"load_kdd_tsad_135": series})[:3]
    assert (first, last) == (700, 719) and 690 <= largest <= 750


def test_motions(example: Any) -> None:
    def motions(split: str) -> tuple[Any, Any]:
        """Four motions, about places of their own."""
        labels = np.arange(40) % 4
        far = np.random.default_rng(1).uniform(0.2, 2, (4, 6, 1))[labels]
        phase = RNG.uniform(0, 6, (40, 6))
        x = far + 0.5 * np.sin(0.5 * np.arange(50) + phase[:, :, None])
        return x + 0.3 * RNG.standard_normal((40, 6, 50)), labels.astype(str)

    ours, _ = example("motions", aeon={}, aeon__datasets={"load_basic_motions": motions})
    assert ours > 0.85


@pytest.fixture
def kanji(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Iterator[list[tuple[str, str]]]], None]:
    """Makes kanjivg's package of characters, each a list of strokes: (kind, path)."""

    def made(characters: Iterator[list[tuple[str, str]]]) -> None:
        (tmp_path / "kanji").mkdir()
        (tmp_path / "kanji" / "__init__.py").touch()  # else one that is installed goes before it
        for number, strokes in enumerate(characters):
            text = "".join(
                f'<path id="{i}" kvg:type="{k}a" d="{path}"/>' for i, (k, path) in enumerate(strokes)
            )
            (tmp_path / "kanji" / f"0{0x4E00 + number:04x}.svg").write_text(f"<svg>{text}</svg>", "utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "kanji", raising=False)

    return made


def test_handwriting(example: Any, kanji: Any) -> None:
    """Characters of a line to the right and a curve downwards: far better than moves of any direction."""

    def character() -> list[tuple[str, str]]:
        x, y = RNG.uniform(20, 40, 2)
        across = f"M{x:.2f},{y:.2f}c10,0,20,{RNG.uniform(-2, 2):.2f},40-1"
        down = f"m{x:.2f},{y:.2f}C{x:.2f},{y + 10:.2f} {x:.2f},{y + 30:.2f},{x:.2f},{y + 50:.2f}s3,4,5,10"
        return [("a", across), ("a", down)]

    kanji(character() for _ in range(60))
    ours, gaussian = example("handwriting")
    assert ours < gaussian - 1.0


def test_strokes(example: Any, kanji: Any) -> None:
    """Lines, curves and hooks of any size, wherever they begin."""

    def stroke(kind: str) -> tuple[str, str]:
        size, bend = RNG.uniform(15, 50), RNG.uniform(-2, 2)
        line = f"M{RNG.uniform(10, 40):.2f},{RNG.uniform(10, 40):.2f}"
        if kind == "down":
            return kind[0], f"{line}c{bend:.2f},{size / 3:.2f},{bend:.2f},{size / 2:.2f},0,{size:.2f}"
        line += f"c{size / 3:.2f},{bend:.2f},{size / 2:.2f},{bend:.2f},{size:.2f},0"
        return kind[0], line if kind == "across" else f"{line}s-2,{size / 3:.2f},-8,{size / 4:.2f}"

    kanji([stroke(str(kind)) for kind in RNG.choice(["down", "across", "hook"], 6)] for _ in range(100))
    ours, strokes, kinds, nearest = example("strokes")
    assert ours > 0.95 and strokes == 60 and kinds == 3 and nearest > 0.8
    assert Path("strokes.png").stat().st_size > 1000


def test_quantum(example: Any) -> None:
    """Both learn, and have about as many parameters."""
    circuits, _, count, _, lstm, _, other, _, _, linear, before = example("quantum")
    assert max(circuits, lstm) < 0.5 * before and linear < before
    assert 0.8 * other < count < other


def test_examples_are_short_and_say_what_they_need() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert lines_of(path.stem) <= 80
        says = path.read_text().split('"""')[1]
        assert re.search(r"pip (install|download) [a-zA-Z_-]|no data needed", says), path.name
