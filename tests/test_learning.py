"""Networks learn what they are for, at fixed seeds: gradients that are wrong somewhere would not do."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tasks, which bench/learning.py has in full length."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("learning")


@pytest.mark.parametrize("name", ["IndRNN", "LSTM", "RNN"])
def test_adding_problem(name: str, learning: Any) -> None:
    """The sum of two of 100 numbers: guessing 1 has an error of 1/6, and a tanh RNN does no better."""
    if name == "IndRNN":
        assert learning.adding_error(fr.IndRNN(2, 32, 2, seed=0), 100, 600, 1e-2) < 0.03
    elif name == "LSTM":
        assert learning.adding_error(fr.LSTM(2, 16, seed=0, forget_bias=2.0), 100, 700, 2e-2) < 0.03
    else:
        assert learning.adding_error(fr.RNN(2, 16, seed=0), 100, 700, 2e-2) > 0.14


def test_copy_task(learning: Any) -> None:
    """Ten symbols of eight that come back after a gap: one of eight is a guess."""
    assert learning.copy_accuracy(fr.LSTM(10, 64, seed=0, forget_bias=4.0), 5, 1200, 1e-2) > 0.8


def test_spiking_patterns(learning: Any) -> None:
    """Noisy copies of ten patterns, as trains of spikes: LIF neurons tell them apart."""
    rng = np.random.default_rng(0)
    patterns = rng.random((10, 40)) < 0.5
    labels = rng.integers(0, 10, 1200)
    flipped = rng.random((1200, 40)) < 0.15
    images = np.where(patterns[labels] != flipped, 0.6, 0.1).astype(np.float32)
    train, test = ((images[part], labels[part]) for part in (slice(900), slice(900, None)))
    assert learning.spiking_accuracy(train, test, 4, hidden=40) > 0.9
