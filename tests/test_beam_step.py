"""One step of beam searches side by side, against a sort of all continuations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import num_threads

from fusedrnn import _core


def problem(counts: list[int], classes: int, dtype: str) -> tuple[Any, Any, Any, Any]:
    """With equal ones, and some that are impossible."""
    rng = np.random.default_rng([len(counts), classes])
    rows = np.repeat(np.arange(len(counts)) * 3, counts)
    logits = rng.integers(-2, 3, (len(rows), classes)).astype(dtype)
    logits[rng.random(logits.shape) < 0.1] = -np.inf
    totals = rng.integers(-2, 1, len(rows)).astype(float)
    return logits, totals, rows, rng.random(logits.shape) < 0.7


def sorted_out(logits: Any, totals: Any, rows: Any, allowed: Any, count: int) -> tuple[Any, Any, Any]:
    groups = np.unique(rows)
    parents, tokens = (np.full((len(groups), count), -1) for _ in range(2))
    scores = np.full((len(groups), count), -np.inf)
    for g, row in enumerate(groups):
        found = []
        for n in np.flatnonzero(rows == row):
            x = logits[n].astype("float64")
            with np.errstate(invalid="ignore"):
                each = totals[n] + x - np.logaddexp.reduce(x)
            for c, score in enumerate(each):
                if score > -np.inf and (allowed is None or allowed[n, c]):
                    found.append((-score, n, c))
        # Scores that differ by rounding alone are equal here: of these the first come first.
        found.sort(key=lambda entry: (round(entry[0], 9), *entry[1:]))
        for k, (score, n, c) in enumerate(found[:count]):
            parents[g, k], tokens[g, k], scores[g, k] = n, c, -score
    return parents, tokens, scores


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_against_a_sort(dtype: str) -> None:
    for counts, classes, count in (([1], 1, 2), ([3, 1, 5], 7, 4), ([2] * 9, 33, 10), ([4, 4], 17, 100)):
        logits, totals, rows, allowed = problem(counts, classes, dtype)
        totals += np.arange(len(totals)) * 0.37  # hypotheses differ, so that rounding decides nothing
        for mask in (None, allowed):
            got = _core.beam_step(logits, totals, rows, mask, count)
            want = sorted_out(logits, totals, rows, mask, count)
            np.testing.assert_allclose(got[2], want[2], 1e-12)
            np.testing.assert_array_equal(got[0], want[0])
            np.testing.assert_array_equal(got[1], want[1])


def test_bits_do_not_depend_on_threads() -> None:
    logits, totals, rows, _ = problem([5] * 24, 2500, "float32")
    found = []
    for threads in (1, 3):
        with num_threads(threads):
            found.append(_core.beam_step(logits, totals, rows, None, 10))
    for one, three in zip(*found, strict=True):
        assert one.tobytes() == three.tobytes()


@pytest.mark.once
def test_errors_and_nothing() -> None:
    logits, totals, rows, allowed = problem([2, 1], 4, "float32")
    for arguments, kind, message in (
        ((logits, totals.astype("float32"), rows, None, 2), TypeError, "totals: expected a float64"),
        ((logits, totals[:2], rows, None, 2), ValueError, "totals: expected shape"),
        ((logits, totals, rows[::-1].copy(), None, 2), ValueError, "rows: expected numbers in order"),
        ((logits, totals, rows, allowed[:, :2].copy(), 2), ValueError, "allowed: expected shape"),
        ((logits, totals, rows, None, 0), ValueError, "count"),
    ):
        with pytest.raises(kind, match=message):
            _core.beam_step(*arguments)
    parents, tokens, scores = _core.beam_step(logits[:0], totals[:0], rows[:0], None, 3)
    assert parents.shape == tokens.shape == scores.shape == (0, 3)
    logits[:] = np.nan
    assert (_core.beam_step(logits, totals, rows, None, 3)[0] == -1).all()
