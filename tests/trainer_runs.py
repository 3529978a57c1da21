"""Runs of a Trainer that tests end, kill and resume; as a script: one run, to be killed from outside."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn import optim
from fusedrnn.training import Trainer


def sequences(count: int = 40, seed: int = 0, dtype: Any = np.float32) -> tuple[list[Any], Any]:
    """Sequences of 3 features and 4 to 12 steps, whose class is that of the feature with the largest sum."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((rng.integers(4, 13), 3)).astype(dtype) for _ in range(count)]
    return inputs, np.array([x.sum(axis=0).argmax() for x in inputs])


def steps(count: int = 20, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Sequences with a class at each step: whether the sum of the first feature so far is positive."""
    inputs, _ = sequences(count, seed)
    return inputs, [(np.cumsum(x[:, 0]) > 0).astype(np.int64) for x in inputs]


def accuracy(output: Any, targets: Any) -> float:
    return float((output.argmax(-1) == targets).mean())


def classifier(seed: int = 0, dropout: float = 0.2) -> fr.Sequential:
    return fr.Sequential(
        fr.GRU(3, 8, num_layers=2, dropout=dropout, seed=seed),
        fr.Pool("last"),
        fr.Linear(8, 3, seed=seed + 1),
    )


def trainer(checkpoint: Path | None = None, **options: Any) -> Trainer:
    """A run in which everything takes part that a checkpoint has to hold."""
    model = classifier()
    optimizer = optim.Adam(model, lr=0.02)
    parts = [optim.LinearLR(optimizer, 0.2, total_iters=4), optim.CosineAnnealingLR(optimizer, 8, 1e-4)]
    settings = {
        "schedule": optim.SequentialLR(optimizer, parts, milestones=[4]),
        "clip": 0.5,
        "early_stopping": 50,
        "epochs": 6,
        "batch_size": 8,
        "progress": False,
        "checkpoint_steps": 2,
        **options,
    }
    return Trainer(model, fr.cross_entropy, optimizer, checkpoint=checkpoint, **settings)


def kill_again_and_again(
    script: str, path: Path, epochs: int, times: int, latest: float, ended: Callable[[], None]
) -> int:
    """kill -9 at random moments, up to `latest` seconds after a checkpoint; `ended` looks at each end.

    Returns how many there were.
    """
    rng, kills = random.Random(0), 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def written() -> int:
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    for _ in range(times):
        # Of a first run two files: it tries whether it can write, and takes that one away again.
        seen = {written(), 0}
        process = subprocess.Popen([sys.executable, script, str(path), str(epochs)], env=environment)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            seen.add(written())
            if len(seen) > 2:
                break
            time.sleep(0.001)
        time.sleep(latest * rng.random())
        kills += process.poll() is None
        process.kill()
        process.wait()
        ended()
    assert kills > 0
    return kills


def bits(run: Trainer) -> dict[str, bytes]:
    """Everything that two equal runs share."""
    tensors, content = run._state()
    return {**{name: array.tobytes() for name, array in tensors.items()}, "content": repr(content).encode()}


if __name__ == "__main__":
    trainer(Path(sys.argv[1]), epochs=int(sys.argv[2])).fit(sequences(), sequences(10, 1), resume=True)
