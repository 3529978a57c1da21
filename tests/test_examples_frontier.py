"""The examples of music, federated and continual learning, video and spikes, shortened by --quick."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_examples import run

pytest.importorskip("sklearn")
pytestmark = pytest.mark.once


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """What an example prints, with its pictures in a folder of the test."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    return lambda name, **modules: run(name, monkeypatch, capsys, ("--quick",), **modules)


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found is not None, text
    return [float(number) for number in found.groups()]


def test_music(example: Any) -> None:
    """Better than frequencies of single notes by far, and four voices in the file."""
    music21 = pytest.importorskip("music21")
    text = example("music")
    ours, sixes, ones = numbers(r"([\d.]+) nats a step; 6-grams ([\d.]+); 1-grams ([\d.]+)", text)
    assert ours < sixes + 0.5 and ours < ones - 6
    assert numbers(r"(\d+)% of \d+ steps have four voices", text)[0] > 80
    score = music21.converter.parse("music.mid")
    assert len(score.parts) == 4
    assert np.all(np.diff([part.flatten().notes[0].pitch.midi for part in score.parts]) <= 0)
    assert Path("music.png").stat().st_size > 1000


def vowels(split: str) -> tuple[list[Any], Any]:
    """Nine speakers, 12 recordings of each, around a place of each one's own."""
    rng = np.random.default_rng(1 if split == "train" else 2)
    places, labels = np.random.default_rng(0).standard_normal((9, 12, 1)), np.arange(108) % 9
    return [places[n] + rng.standard_normal((12, rng.integers(7, 20))) for n in labels], (labels + 1).astype(
        str
    )


def test_federated(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As good as central training, and noise costs; the messages go from object to object."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    app, grids, simulation = map(pytest.importorskip, ("flwr.app", "flwr.serverapp", "flwr.simulation"))

    class Here(grids.Grid):  # type: ignore[name-defined, misc]
        """Nine nodes in this process."""

        run = property(lambda self: None)
        client: Any = None

        def get_node_ids(self) -> Any:
            return range(9)

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            for message in messages:
                number = message.metadata.dst_node_id
                context = app.Context(0, number, {"partition-id": number}, app.RecordDict(), {})
                yield self.client(message, context)

        # What makes messages of its own is not used.
        set_run = create_message = push_messages = pull_messages = get_node_ids

    def simulated(server: Any, client: Any, num_supernodes: int) -> None:
        assert num_supernodes == 9
        grid = Here()
        grid.client = client
        server(grid, app.Context(0, 0, {}, app.RecordDict(), {}))

    identity = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(identity, name, 0)
    monkeypatch.setattr(simulation, "run_simulation", simulated)
    text = example("federated", aeon={}, aeon__datasets={"load_japanese_vowels": vowels})
    central, federated, private = numbers(r"([\d.]+) central, ([\d.]+) federated, ([\d.]+) private", text)
    assert federated >= central - 0.02 and central > 0.9
    assert 0.3 < private <= 1.0
    assert Path("federated.png").stat().st_size > 1000


def test_continual(example: Any) -> None:
    """Both ways forget less than none."""
    text = example("continual")
    found = re.findall(r"(\w+): accuracy ([\d.]+) of all tasks, forgotten ([\d.]+)", text)
    accuracy, forgotten = ({name: float(row[i]) for name, *row in found} for i in (0, 1))
    assert accuracy["ewc"] > accuracy["naive"] + 0.02 and forgotten["ewc"] < forgotten["naive"] - 0.05
    assert accuracy["replay"] > 0.8 and forgotten["replay"] < 0.15
    assert Path("continual.png").stat().st_size > 1000


def test_spikes(example: Any) -> None:
    """Spiking neurons beat what the counts of spikes say, and neither never nor always fire."""
    text = example("spikes")
    ours, linear = numbers(r"accuracy ([\d.]+), logistic regression of the counts of spikes ([\d.]+)", text)
    assert ours > 0.93 and ours > linear - 0.02
    assert 2 < numbers(r"fires in (\d+)%", text)[0] < 80
    assert Path("spikes.png").stat().st_size > 1000


def test_video(example: Any) -> None:
    """It knows which way digits go that it has not seen."""
    pattern = r"error ([\d.]+) from the third picture on, copying the last one ([\d.]+)"
    ours, copied = numbers(pattern, example("video"))
    assert ours < copied / 3
    assert Path("video.png").stat().st_size > 1000


def test_hybrid(example: Any) -> None:
    """As many parameters, and both know more than how often each character is (4.6 bits)."""
    pattern = r"LSTM: (\d+) parameters, ([\d.]+) .*\nLSTM and attention: (\d+) parameters, ([\d.]+) "
    one, plain, other, hybrid = numbers(pattern, example("hybrid"))
    assert abs(one / other - 1) < 0.03
    assert plain < 4.4 and hybrid < 4.4
    assert Path("hybrid.png").stat().st_size > 1000
