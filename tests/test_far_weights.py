"""Weights larger than the second level of the cache take other ways through forward, to the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from support import num_threads

import fusedrnn as fr

# Weights of W_hh above 1.5 MB.
SIZES = {("LSTM", "float32"): 384, ("GRU", "float32"): 432, ("RNN", "float32"): 736}
SIZES |= {("LSTM", "float64"): 272, ("GRU", "float64"): 304, ("RNN", "float64"): 528}


@pytest.mark.parametrize(("cell", "dtype"), SIZES)
def test_rows_do_not_depend_on_how_many_there_are(cell: str, dtype: str) -> None:
    """From 16 rows on, the weights of the next panels come ahead."""
    network = getattr(fr, cell)(5, SIZES[cell, dtype], dtype=dtype, seed=0)
    x = np.random.default_rng(0).standard_normal((4, 37, 5)).astype(dtype)
    with num_threads(1):  # several would share the weights
        y, state = network(x)
        few, final = network(x[:, 20:31])
    assert np.array_equal(y[:, 20:31], few)
    if cell == "LSTM":
        state, final = state[1], final[1]
    assert np.array_equal(state[:, 20:31], final)


@pytest.mark.parametrize(("cell", "size"), [("LSTM", 640), ("GRU", 736)])
def test_blocks_of_inputs_have_the_bits_of_steps(cell: str, size: int) -> None:
    """Weights of W_ih above 3 MB: blocks of as many rows as fill as much, and the next panels come ahead."""
    network = getattr(fr, cell)(size, size, seed=0)
    x = np.random.default_rng(0).standard_normal((7, 3, size), dtype=np.float32)
    step = network.stream(batch_size=3)
    with num_threads(1):  # several would share the weights
        y, _ = network(x)
        assert all(np.array_equal(step(row), want) for row, want in zip(x, y, strict=True))
