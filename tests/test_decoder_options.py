"""Scores, queries and what energies know of the past, each against one row and one step at a time."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from support import num_threads
from test_decoder import check_gradients, expected, parts, problem

import fusedrnn as fr

CURRENT: dict[str, Any] = {"query": "current"}
LOCATION: dict[str, Any] = {"score": "location", "location_filters": 2, "location_kernel_size": 5}
# Name: cell and options.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dot": ("gru", {"score": "dot"}),
    "general": ("lstm", {"score": "general"}),
    "location": ("gru", LOCATION),
    "coverage": ("lstm", {"coverage": True}),
    "current": ("gru", CURRENT),
    "luong": ("lstm", {**CURRENT, "score": "general", "input_feeding": True}),
    "window": ("lstm", {"score": "window", "num_windows": 3}),
    "window, fed": ("gru", {**CURRENT, "score": "window", "num_windows": 5, "input_feeding": True}),
    "layers": ("lstm", {"num_layers": 3}),
    "layers, fed": ("gru", {**CURRENT, "num_layers": 2, "input_feeding": True, "coverage": True}),
    "all": ("rnn_tanh", {**CURRENT, **LOCATION, "coverage": True, "input_feeding": True}),
}
# T, B, S, I, H, M, A; the memory of the last has few rows, whose part of the gates is made at once
SHAPES = [(4, 3, 5, 3, 7, 6, 9), (3, 35, 4, 5, 33, 3, 2), (5, 2, 19, 2, 9, 17, 16), (7, 2, 3, 4, 21, 20, 9)]


def built(
    variant: str, shape: tuple[int, ...], dtype: str = "float64"
) -> tuple[fr.AttentionDecoder, dict[str, Any]]:
    """A decoder with parameters at random and arguments for it; products fix what sizes they may."""
    cell, options = VARIANTS[variant]
    steps, batch, source, i, h, m, a = shape
    score = options.get("score")
    m, a = h if score == "dot" else m, h if score in ("dot", "general", "window") else a
    decoder = fr.AttentionDecoder(cell, i, h, m, a, dtype=dtype, **options)
    rng = np.random.default_rng([1, *shape])
    for name, array in decoder.parameters.items():
        decoder.parameters[name] = rng.normal(0, 0.4, array.shape)
    return decoder, problem(cell, (steps, batch, source, i, h, m, a), dtype, decoder.num_layers)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_forward(variant: str, shape: tuple[int, ...], dtype: str, tolerance: float) -> None:
    decoder, given = built(variant, shape, dtype)
    y, alpha, state, _ = decoder.forward(**given)
    want_y, want_alpha, want_state = expected(decoder, given)
    np.testing.assert_allclose(y, want_y, atol=tolerance)
    # The weights of windows are not those of a softmax: they may be well above 1.
    np.testing.assert_allclose(alpha, want_alpha, atol=tolerance * max(1.0, want_alpha.max()))
    for got, want in zip(parts(state), want_state, strict=True):
        np.testing.assert_allclose(got, want, atol=tolerance)
    assert not alpha[:, np.arange(shape[2])[None] >= given["memory_lengths"][:, None]].any()
    for a, b in zip(decoder(**given)[:2], (y, alpha), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: str) -> None:
    for shape in ((3, 4, 4, 2, 3, 2, 2), (4, 1, 3, 2, 3, 9, 2)):
        check_gradients(*built(variant, shape))


@pytest.mark.parametrize("variant", ["all", "luong", "dot", "window", "layers"])
def test_threads(variant: str) -> None:
    """The same bits."""
    results = []
    for threads in (1, 2, 3):
        decoder, given = built(variant, (12, 37, 20, 17, 33, 24, 30), "float32")
        with num_threads(threads):
            y, alpha, state, tape = decoder.forward(**given)
            backward = decoder.backward(tape, y, alpha, state)
        results.append([y, alpha, *parts(state), *backward[:2], *parts(backward[2]), *decoder.grads.values()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("variant", VARIANTS)
def test_stream_is_forward(variant: str) -> None:
    """Step by step, and with the rows in another order from the third step on."""
    decoder, given = built(variant, (5, 4, 6, 3, 9, 7, 5), "float32")
    y, alpha, state = decoder(given["x"], given["memory"], given["memory_lengths"], state=given["state"])
    step, order = decoder.stream(given["memory"], given["memory_lengths"]), np.arange(4)
    step.state = given["state"]
    for t in range(len(y)):
        if t == 2:
            order = np.array([2, 0, 3, 1, 1])
            step.select(order)
        got_y, got_alpha = step(given["x"][t, order], order)
        np.testing.assert_array_equal(got_y, y[t, order])
        # The sums of coverage are in another order.
        np.testing.assert_allclose(got_alpha, alpha[t, order], rtol=1e-6)
    for a, b in zip(parts(step.state), parts(state), strict=True):
        np.testing.assert_array_equal(a, b[:, order])
    with pytest.raises(ValueError, match="places: expected"):
        step.select([5])
    step.reset()
    assert step.state is None


@pytest.mark.once
def test_weights_are_packed_once() -> None:
    decoder, given = built("luong", SHAPES[0])
    first = decoder(**given)[0]
    weights = decoder._weights()
    decoder.forward(**given)
    assert decoder._weights() is weights
    decoder.parameters["weight_output"] *= 2
    assert decoder._weights() is not weights
    assert (decoder(**given)[0] != first).any()


@pytest.mark.once
@pytest.mark.parametrize("variant", VARIANTS)
def test_module(variant: str) -> None:
    decoder, given = built(variant, SHAPES[0])
    names = {"AttentionDecoder": fr.AttentionDecoder}
    again = eval(repr(decoder), names)
    assert {name: array.shape for name, array in again.parameters.items()} == {
        name: array.shape for name, array in decoder.parameters.items()
    }
    want = decoder(**given)[0]
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        np.testing.assert_array_equal(other(**given)[0], want)
    embedding, head = fr.Embedding(6, 3, dtype="float64", seed=0), fr.Linear(7, 6, dtype="float64", seed=1)
    found = fr.decode.beam_search((embedding, decoder, head), given["memory"], 0, 1, beam=1, max_len=5)
    greedy = fr.decode.greedy((embedding, decoder, head), given["memory"], 0, 1, max_len=5)
    np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens)


@pytest.mark.parametrize("variant", ["layers", "layers, fed"])
def test_layers_above(variant: str) -> None:
    """A stream keeps their parameters; what backward refuses adds nothing; gradients and states left out."""
    decoder, given = built(variant, (5, 4, 6, 3, 9, 7, 5))
    y, alpha, state, tape = decoder.forward(**given)
    step = decoder.stream(given["memory"], given["memory_lengths"])
    step.state = given["state"]
    first = decoder.parameters["upper.weight_ih_l0"].copy()
    decoder.parameters["upper.weight_ih_l0"] *= 2
    np.testing.assert_array_equal(step(given["x"][0])[0][:2], y[0, :2])
    decoder.parameters["upper.weight_ih_l0"] = first
    wrong = np.ones((1, 4, 9))
    for changes in (
        {"dy": y[:1]},
        {"dalpha": y},
        {"dstate": (wrong, None) if len(parts(state)) > 1 else wrong},
    ):
        with pytest.raises(ValueError, match=next(iter(changes))):
            decoder.backward(tape, **{"dy": y, **changes})
    assert not decoder.flat_grads.any()
    flow = (None, state[1]) if isinstance(state, tuple) else state
    zeros = (np.zeros_like(state[0]), state[1]) if isinstance(state, tuple) else state
    for a, b in zip(
        decoder.backward(tape, None, alpha, flow)[:2],
        decoder.backward(tape, np.zeros_like(y), alpha, zeros)[:2],
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "cosine"}, "score: expected 'additive'"),
        ({"query": "next"}, "query: expected 'previous'"),
        ({"input_feeding": True}, "input_feeding: expected False with query='previous'"),
        ({"score": "dot", "coverage": True}, "coverage: expected False with score='dot'"),
        ({"score": "general", "attention_size": 3}, "attention_size: expected None with score='general'"),
        ({"score": "dot"}, "memory_size: expected hidden_size = 4 with score='dot', got 5"),
        ({"score": "location", "location_kernel_size": 4}, "location_kernel_size: expected an odd number"),
        ({"score": "location", "location_filters": 0}, "location_filters"),
        ({"num_layers": 0}, "num_layers"),
        ({"score": "window", "num_windows": 0}, "num_windows"),
        ({"score": "window", "coverage": True}, "coverage: expected False with score='window'"),
        ({"score": "window", "attention_size": 3}, "attention_size: expected None with score='window'"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fr.AttentionDecoder("gru", 3, 4, 5, **options)
