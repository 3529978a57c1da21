"""CRF: which of several best paths is found."""

from __future__ import annotations

import numpy as np
import pytest

import fusedrnn as fr


@pytest.mark.parametrize("size", [2, 7, 16, 37])
def test_the_first_of_paths_as_good(size: int) -> None:
    """Sums of few values, of which many are equal, in every lane of a vector."""
    steps, rng = 9, np.random.default_rng(size)
    crf = fr.CRF(size, dtype="float64")
    names = ("start_transitions", "transitions", "end_transitions")
    for name in names:
        crf.parameters[name] = rng.integers(-1, 1, crf.parameters[name].shape).astype(np.float64)
    start, transitions, end = (crf.parameters[name] for name in names)
    emissions = rng.integers(-1, 1, (steps, 20, size)).astype(np.float64)
    want = np.empty((steps, 20), dtype=np.int64)
    for b in range(20):
        scores, before = start + emissions[0, b], []
        for step in emissions[1:, b]:
            sums = scores[:, None] + transitions
            before.append(sums.argmax(axis=0))
            scores = sums.max(axis=0) + step
        want[-1, b] = (scores + end).argmax()
        for t, best in zip(range(steps - 2, -1, -1), reversed(before), strict=True):
            want[t, b] = best[want[t + 1, b]]
    assert np.array_equal(crf.decode(emissions)[0], want)
