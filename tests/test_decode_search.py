"""Searches in one call of the kernels, against those step by step, which `test_decode.py` checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import num_threads

import fusedrnn as fr
from fusedrnn.sequence.decoding import Run

BOS, EOS, V = 0, 1, 6


def drawn(parts: Any, seed: int) -> Any:
    """Weights that make some tokens likelier than others."""
    rng = np.random.default_rng(seed)
    for part in parts:
        part.flat_parameters[...] = rng.normal(0, 0.9, part.flat_parameters.shape)
    return parts


def model() -> Any:
    decoder = fr.AttentionDecoder("gru", 4, 7, 5, dtype="float64")
    return drawn((fr.Embedding(V, 4, dtype="float64"), decoder, fr.Linear(7, V, dtype="float64")), 4)


def memory(batch: int) -> Any:
    return np.random.default_rng(5).normal(size=(6, batch, 5))


def by_steps(parts: Any) -> Any:
    """A model that is none which the kernels search in one call: its head is not a `Linear` itself."""

    class Head(fr.Linear):
        pass

    embedding, decoder, head = parts
    own = Head(head.in_features, head.out_features, bias=head.bias, dtype=head.dtype, compute=head.compute)
    own.load_state_dict(head.state_dict())
    return embedding, decoder, own


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("gru", {}),
        ("lstm", {"score": "general", "query": "current", "input_feeding": True}),
        ("lstm", {"attention_size": 9}),
        ("rnn_tanh", {"score": "dot", "query": "current"}),
        ("rnn_relu", {"score": "general"}),
    ],
)
def test_one_call_finds_what_steps_find(cell: str, options: dict[str, Any], dtype: str) -> None:
    """For any beam, with tokens that are projected and such that are not, and sequences in groups."""
    rng = np.random.default_rng(11)
    width = 8 if options.get("score") == "dot" else 5
    for tokens, batch, hidden, source in ((6, 23, 8, 7), (300, 3, 8, 40), (17, 60, 8, 1)):
        embedding, head = fr.Embedding(tokens, 4, dtype=dtype), fr.Linear(hidden, tokens, dtype=dtype)
        decoder = fr.AttentionDecoder(cell, 4, hidden, width, dtype=dtype, **options)
        parts = drawn((embedding, decoder, head), tokens)
        decoder.flat_parameters[...] *= 0.3 if cell == "rnn_relu" else 1.0  # which would grow step by step
        rows = rng.normal(size=(source, batch, width)).astype(dtype)
        count = 2 if cell == "lstm" else 1
        state: Any = tuple(rng.normal(size=(1, batch, hidden)).astype(dtype) for _ in range(count))
        given = {
            "memory_lengths": rng.integers(0, source + 1, batch),
            "state": state if count > 1 else state[0],
        }
        for beam, most, penalty in ((1, 1, None), (2, 9, ("avg", 0.7)), (5, 30, ("wu", 0.6)), (40, 4, None)):
            arguments: Any = (rows, BOS, EOS, beam, most, penalty, 0.0, max(1, beam // 2))
            got = fr.decode.beam_search(parts, *arguments, **given)
            want = fr.decode.beam_search(by_steps(parts), *arguments, **given)
            error = 1e-5 if dtype == "float32" else 1e-12
            np.testing.assert_allclose(got.scores, want.scores, error, error)
            # What is as likely but for rounding may change places.
            if dtype == "float64":
                np.testing.assert_array_equal(got.tokens, want.tokens)
                np.testing.assert_array_equal(got.lengths, want.lengths)
            with num_threads(3):
                other = fr.decode.beam_search(parts, *arguments, **given)
            for a, b in zip(got, other, strict=True):
                assert a.tobytes() == b.tobytes()
        one, other = (fr.decode.greedy(m, rows, BOS, EOS, 20, **given) for m in (parts, by_steps(parts)))
        if dtype == "float64":
            np.testing.assert_array_equal(one.tokens, other.tokens)
            np.testing.assert_allclose(one.scores, other.scores, 1e-12, 1e-12)


@pytest.mark.parametrize("width", [1, 4])
def test_the_kernels_take_all_steps(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they have all of the model, and nothing else is asked for."""
    embedding, decoder, head = parts = model()
    rows = memory(3)
    taken: list[int] = []
    advance = Run.advance
    monkeypatch.setattr(Run, "advance", lambda *given: taken.append(1) or advance(*given))
    fr.decode.beam_search(parts, rows, BOS, EOS, width, 9)
    fr.decode.greedy(parts, rows, BOS, EOS, 9)
    assert not taken
    past = fr.AttentionDecoder("gru", 4, 7, 5, coverage=True, dtype="float64")
    layers = fr.AttentionDecoder("gru", 4, 7, 5, num_layers=2, dtype="float64")
    more = fr.Linear(7, V + 1, dtype="float64", seed=0)
    more.parameters["bias"][V] = -np.inf
    for other in ((embedding, past, head), (embedding, layers, head), (embedding, decoder, more)):
        taken.clear()
        fr.decode.beam_search(other, rows, BOS, EOS, width, 9)
        assert taken


def test_nothing_to_search() -> None:
    parts = model()
    for m in (parts, by_steps(parts)):
        none = fr.decode.beam_search(m, np.zeros((3, 0, 5)), BOS, EOS)
        assert none.tokens.shape == (0, 1, 0)
        # A beam may be wider than there can be hypotheses.
        rows = memory(2)
        wide, enough = (fr.decode.beam_search(m, rows, BOS, EOS, beam, 2) for beam in (2**62, 50))
        np.testing.assert_array_equal(wide.tokens, enough.tokens)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers(value: float) -> None:
    """Are an error that says where, of the first step that has one; -inf is a token that never comes."""
    parts = model()
    rows = memory(6)
    rows[:, 4] = np.nan
    rows[:, 5, :2] = np.inf
    message = "model: expected logits .* NaN or inf for sequence 4 in step 0"
    parts[2].parameters["bias"][3] = -np.inf
    for m in (parts, by_steps(parts)):
        for search in (fr.decode.greedy, fr.decode.sample, fr.decode.beam_search):
            with pytest.raises(ValueError, match=message):
                search(m, rows, BOS, EOS)
            assert not (search(m, rows[:, :4].copy(), BOS, EOS).tokens == 3).any()

    def step(tokens: Any, state: Any, places: Any) -> Any:
        logits = np.zeros((len(tokens), V))
        logits[:, 4] = 1.0
        logits[(places == 2) & (state[:, 0] == 3), 2] = value
        return logits, state + 1

    searches: Any = ((fr.decode.greedy, {}), (fr.decode.sample, {"top_k": 1}), (fr.decode.beam_search, {}))
    for search, options in searches:
        with pytest.raises(ValueError, match="for sequence 2 in step 3"):
            search(step, np.zeros((1, 4, 1)), BOS, 5, state=np.zeros((4, 1)), **options)
