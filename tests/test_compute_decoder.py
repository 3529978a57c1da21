"""Attention decoders with products in bfloat16; tests/native checks them against rounded products."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from support import Array
from test_compute import draw, needs_bf16
from tolerances import relative_error

import fusedrnn as fr

# Of a decoder against the one in float32; gradients of energies are small differences, and off by more.
DISTANCE = 0.05
SIZE = 150  # more panels than go from the products through the cells at once
ATTENTION = {
    "additive": {},
    "coverage": {"score": "location", "coverage": True, "location_filters": 3, "location_kernel_size": 5},
    "general": {"score": "general", "query": "current", "input_feeding": True},
    "dot": {"score": "dot", "query": "current"},
    "layers": {"num_layers": 2},
}


def make(cell: str, options: dict[str, Any], **others: Any) -> fr.AttentionDecoder:
    return fr.AttentionDecoder(cell, 20, SIZE, SIZE, seed=0, **options, **others)


def train(decoder: fr.AttentionDecoder) -> list[Array]:
    """Return y, alpha, dx, dmemory and the gradients of all parameters."""
    x, memory = draw(6, 33, 20), 0.3 * draw(9, 33, SIZE)
    memory_lengths, lengths = np.arange(33) % 10, np.arange(33) % 7
    y, alpha, _, tape = decoder.forward(x, memory, memory_lengths, lengths)
    decoder.zero_grad()
    dx, dmemory, _ = decoder.backward(tape, draw(*y.shape, seed=1))
    assert dx is not None
    assert np.array_equal(decoder(x, memory, memory_lengths, lengths)[0], y)
    return [y.copy(), alpha, dx, dmemory, *[grad.copy() for grad in decoder.grads.values()]]


@needs_bf16
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_near_float32_and_the_same_on_two_threads(cell: str, attention: str) -> None:
    decoder = make(cell, ATTENTION[attention])
    want = train(decoder)
    decoder.compute = "bf16"
    got = train(decoder)
    assert not np.array_equal(got[0], want[0])
    for mine, full in zip(got, want, strict=True):
        assert relative_error(mine, full) < DISTANCE
    before = fr.get_num_threads()
    try:
        fr.set_num_threads(2)
        assert all(np.array_equal(a, b) for a, b in zip(train(decoder), got, strict=True))
    finally:
        fr.set_num_threads(before)
    decoder.compute = "float32"
    assert all(np.array_equal(a, b) for a, b in zip(train(decoder), want, strict=True))


@needs_bf16
def test_a_stream_and_a_search_have_the_steps_of_forward() -> None:
    decoder = make("gru", {}, compute="bf16")
    x, memory = draw(6, 3, 20), draw(9, 3, SIZE)
    y = decoder(x, memory)[0]
    step = decoder.stream(memory)
    assert all(np.array_equal(step(row)[0], want) for row, want in zip(x, y, strict=True))
    embedding, head = fr.Embedding(12, 20, seed=1), fr.Linear(SIZE, 12, seed=2, compute="bf16")
    found = fr.decode.beam_search((embedding, decoder, head), memory, 0, 1, 3, 8)
    decoder.compute = head.compute = "float32"
    want = fr.decode.beam_search((embedding, decoder, head), memory, 0, 1, 3, 8)
    np.testing.assert_allclose(found.scores, want.scores, DISTANCE)


@needs_bf16
def test_a_memory_of_few_rows() -> None:
    """For which float32 has another order of products."""
    decoder = make("gru", {})
    x, memory = draw(6, 1, 20), draw(5, 1, SIZE)
    want = decoder(x, memory)[0]
    decoder.compute = "bf16"
    assert relative_error(decoder(x, memory)[0], want) < DISTANCE


@needs_bf16
def test_sampling_is_that_of_the_decoder() -> None:
    embedding, head = fr.Embedding(12, 20, seed=1), fr.Linear(SIZE, 12, seed=2)
    for decoder in (make("gru", {}, compute="bf16"), make("gru", {})):
        sampling = fr.ScheduledSampling(embedding, head, 0.5, seed=3)
        tape = decoder.forward(draw(6, 3, 20), draw(9, 3, SIZE), sampling=sampling)[3]
        assert tape.tokens is not None and (tape.tokens >= 0).any()


@needs_bf16
def test_where_it_is_kept() -> None:
    decoder = make("lstm", {"num_layers": 2}, compute="bf16")
    assert decoder.compute == "bf16" and "compute='bf16'" in repr(decoder)
    assert decoder.upper is not None and decoder.upper.compute == "bf16"
    assert copy.deepcopy(decoder).compute == "bf16"
    decoder.compute = "float32"
    assert decoder.upper.compute == "float32"


def test_refused() -> None:
    with pytest.raises(ValueError, match="compute: expected 'float32', 'bf16x3' or 'bf16', got 'float16'"):
        make("lstm", {}, compute="float16")
    with pytest.raises(ValueError, match="compute: expected None or 'float32' with float64, got 'bf16'"):
        make("lstm", {}, compute="bf16", dtype="float64")
