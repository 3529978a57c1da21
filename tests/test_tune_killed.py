"""`fusedrnn tune` under kill -9 at random moments; FUSEDRNN_KILLS says how many, a few without."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import assert_ok, invoke, start

pytestmark = pytest.mark.once

optuna = pytest.importorskip("optuna")

KILLS = int(os.environ.get("FUSEDRNN_KILLS") or 4)


def kept(path: Path) -> tuple[dict[int, Any], int]:
    """The trials of a study that are over, with parameters and values, and how many are not."""
    if not path.exists():
        return {}, 0
    storage = f"sqlite:///{path}"
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if "studies" not in tables or not (names := optuna.get_all_study_names(storage)):
        return {}, 0
    trials = optuna.load_study(study_name=names[0], storage=storage).get_trials()
    over = {trial.number: (trial.params, trial.values) for trial in trials if trial.state.is_finished()}
    return over, len(trials) - len(over)


def data(path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 6, 2))
    np.savez(path, X=x, y=np.where(x[:, :, 0].sum(axis=1) > 0, "up", "down"))
    return path


def test_a_study_loses_only_the_trial_under_way(tmp_path: Path) -> None:
    """Killed again and again, it keeps every trial that was over, makes none twice, and ends with as many."""
    study, rng = tmp_path / "s.db", random.Random(0)
    arguments = ("tune", data(tmp_path / "d.npz"), "--epochs", 1, "--folds", 2, "--out", study, "--trials")
    began = time.monotonic()
    running = start(*arguments, 10**6, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert running.stdout is not None and running.stdout.readline().startswith("trial 0")
    until_first = time.monotonic() - began
    running.kill()
    running.communicate()
    over, _ = kept(study)
    assert 0 in over
    for kills in range(2, KILLS + 1):
        running = start(*arguments, 10**6)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.communicate(timeout=2 * until_first * rng.random())
        assert running.poll() is None
        running.kill()
        running.communicate()
        before, (over, unfinished) = over, kept(study)
        assert before.items() <= over.items() and unfinished <= kills
    result = invoke(*arguments, len(over) + 3)
    assert_ok(result)
    before, (over, unfinished) = over, kept(study)
    assert before.items() <= over.items() and len(over) == len(before) + 3 and unfinished <= KILLS
    assert len({repr(parameters) for parameters, _ in over.values()}) == len(over)
    best = max(values[0] for _, values in over.values() if values)
    assert f"best: {best:.4f} with" in result.output
    print(f"{KILLS} kills, {len(before)} trials before the last run, {unfinished} lost")


def test_a_study_that_is_killed_as_it_is_made(tmp_path: Path) -> None:
    """Whatever of its tables is there, the next run starts."""
    rng, made = random.Random(1), 0
    file = data(tmp_path / "d.npz")
    for number in range(max(2, KILLS // 2)):
        study = tmp_path / f"{number}.db"
        arguments = ("tune", file, "--epochs", 1, "--folds", 2, "--out", study, "--trials")
        running = start(*arguments, 10**6)
        while not study.exists():
            assert running.poll() is None
            time.sleep(0.001)
        time.sleep(0.3 * rng.random())
        running.kill()
        running.communicate()
        over, _ = kept(study)
        made += bool(over)
        result = invoke(*arguments, len(over) + 1)
        assert_ok(result)
        assert len(kept(study)[0]) == len(over) + 1
    print(f"{made} of them had a trial")
