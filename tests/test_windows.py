"""Handwriting from text that is made up: windows learn which symbol is drawn, and to draw them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once

SYMBOLS, MOVES = 5, 6


def drawings(rng: np.random.Generator, strokes: Any, count: int) -> tuple[Any, Any, Any]:
    """Texts (count, 6), points (T, count, 3) and the memory: each symbol is drawn by its own moves."""
    texts = rng.integers(0, SYMBOLS, (count, 6))
    moves = strokes[texts].reshape(count, -1, 2).swapaxes(0, 1)
    lifts = np.tile(np.arange(MOVES) == MOVES - 1, 6)[:, None, None].repeat(count, 1)
    points = np.concatenate([moves + rng.normal(0, 0.05, moves.shape), lifts], 2)
    memory = np.eye(SYMBOLS)[texts].swapaxes(0, 1)
    return texts, points.astype(np.float32), np.ascontiguousarray(memory, np.float32)


def test_alignment() -> None:
    rng = np.random.default_rng(0)
    strokes = rng.normal(size=(SYMBOLS, MOVES, 2))
    density = fr.MixtureDensity(3)
    decoder = fr.AttentionDecoder("lstm", 3, 64, SYMBOLS, score="window", num_windows=3, seed=0)
    decoder.parameters["bias_window"][6:] = -np.log(MOVES)  # the pace of the windows
    head = fr.Linear(64, density.size, seed=1)
    optimizer = fr.optim.Adam([decoder, head], lr=0.01)

    def inputs(points: Any) -> Any:
        return np.concatenate([np.zeros_like(points[:1]), points[:-1]])

    for _ in range(300):
        _, points, memory = drawings(rng, strokes, 32)
        y, _, _, tape = decoder.forward(inputs(points), memory)
        output, kept = head.forward(y)
        _, flow = density.loss(output, points)
        decoder.backward(tape, head.backward(kept, flow))
        fr.clip_grad_norm([decoder, head], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    texts, points, memory = drawings(rng, strokes, 40)
    y, alpha, _ = decoder(inputs(points), memory)
    drawn = np.arange(len(points)) // MOVES
    assert (alpha.argmax(2) == drawn[:, None]).mean() > 0.85
    assert density.loss(head(y), points)[0] < -2.0
    assert density.loss(head(decoder(inputs(points), 0 * memory)[0]), points)[0] > 0.0
    # Step by step, each from the point before, which is drawn itself.
    step, point, found = decoder.stream(memory), np.zeros((40, 3), np.float32), []
    for _ in range(len(points)):
        point = density.sample(head(step(point)[0]), bias=3.0, seed=rng).astype(np.float32)
        found.append(point[:, :2])
    moves = np.stack(found, 1).reshape(40, 6, 1, MOVES, 2)
    nearest = ((moves - strokes) ** 2).sum((3, 4)).argmin(2)
    assert (nearest == texts).mean() > 0.8
