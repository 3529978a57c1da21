"""Greedy decoding, sampling and beam search against one sequence at a time and all sequences there are."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once

BOS, EOS, V = 0, 1, 6


def model(hidden: int = 7, seed: int = 0) -> tuple[Any, Any, Any]:
    """With weights that make some tokens likelier than others."""
    embedding = fr.Embedding(V, 4, dtype="float64", seed=seed)
    decoder = fr.AttentionDecoder("gru", 4, hidden, 5, dtype="float64", seed=seed)
    head = fr.Linear(hidden, V, dtype="float64", seed=seed)
    rng = np.random.default_rng(seed)
    for part in (embedding, decoder, head):
        part.flat_parameters[...] = rng.normal(0, 0.9, part.flat_parameters.shape)
    return embedding, decoder, head


def memory(batch: int = 9, source: int = 6) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(source, batch, 5)), rng.integers(0, source + 1, batch)


def log_probability(parts: Any, rows: Any, tokens: Any) -> tuple[float, Any]:
    """Of a whole sequence, and alpha (T, S), by teacher forcing."""
    embedding, decoder, head = parts
    inputs = np.array([BOS, *tokens[:-1]])[:, None]
    y, alpha, _ = decoder(embedding(inputs), rows[:, None])
    logits = head(y)[:, 0]
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(logp[np.arange(len(tokens)), tokens].sum()), alpha[:, 0]


def slow_beam(parts: Any, rows: Any, beam: int, max_len: int, rank: Any) -> list[tuple[float, list[int]]]:
    """One sequence, each hypothesis from its beginning."""
    live, complete = [[]], []
    for step in range(max_len):
        found = [
            (log_probability(parts, rows, [*tokens, token])[0], [*tokens, token])
            for tokens in live
            for token in range(V)
        ]
        found = sorted(found, key=lambda pair: -pair[0])[: 2 * beam]
        complete += [tokens for _, tokens in found[:beam] if tokens[-1] == EOS]
        if len(complete) >= beam:
            live = []
            break
        live = [tokens for _, tokens in found if tokens[-1] != EOS][:beam]
        if step + 1 == max_len:
            complete += live
    return sorted(((rank(tokens), tokens) for tokens in complete), key=lambda pair: -pair[0])


@pytest.mark.parametrize("beam", [1, 2, 4])
@pytest.mark.parametrize(
    ("penalty", "coverage"), [(None, 0.0), (("wu", 0.6), 0.0), (("avg", 1.0), 0.0), (("wu", 0.6), 0.3)]
)
def test_beam_search(beam: int, penalty: Any, coverage: float) -> None:
    parts, (rows, lengths) = model(), memory(4)
    lengths[lengths == 0] = 2
    got = fr.decode.beam_search(
        parts, rows, BOS, EOS, beam, 6, penalty, coverage, beam, memory_lengths=lengths
    )
    assert got.tokens.dtype == got.lengths.dtype == np.int64
    for b, length in enumerate(lengths):
        own = rows[:length, b]

        def rank(tokens: list[int], own: Any = own) -> float:
            total, alpha = log_probability(parts, own, tokens)
            n = len(tokens)
            divisor = 1.0 if penalty is None else ((5 + n) / 6 if penalty[0] == "wu" else n) ** penalty[1]
            return float(total / divisor + coverage * np.log(np.minimum(alpha.sum(0), 1.0)).sum())

        want = slow_beam(parts, own, beam, 6, rank)[:beam]
        for i, (score, tokens) in enumerate(want):
            shown = got.tokens[b, i, : len(tokens)]
            assert shown.tolist() == tokens
            assert (got.tokens[b, i, len(tokens) :] == EOS).all()
            assert got.lengths[b, i] == len(tokens) - (tokens[-1] == EOS)
            assert got.scores[b, i] == pytest.approx(score, rel=1e-10)
        assert (got.scores[b, len(want) :] == -np.inf).all()


def test_a_wide_beam_finds_the_best_of_all() -> None:
    parts, (rows, _) = model(seed=3), memory(2)
    got = fr.decode.beam_search(parts, rows, BOS, EOS, V**3, 3, None)
    others = [token for token in range(V) if token != EOS]
    every = [
        [*start, *end]
        for n in range(3)
        for start in itertools.product(others, repeat=n)
        for end in ([[EOS]] if n < 2 else [[token] for token in range(V)])
    ]
    for b in range(2):
        best = max(every, key=lambda tokens: log_probability(parts, rows[:, b], tokens)[0])
        assert got.tokens[b, 0, : len(best)].tolist() == best


def test_an_exhaustive_search_with_all_options() -> None:
    """A beam as wide as there are sequences: constraint, penalties and the n best, of all of them."""
    parts, (rows, _) = model(seed=5), memory(2)
    weights = rows[:, 1].copy()

    def no_repeat(prefixes: Any, places: Any) -> Any:
        allowed = np.ones((len(prefixes), V), bool)
        if prefixes.shape[1]:
            allowed[np.arange(len(prefixes)), prefixes[:, -1]] = False
        return allowed

    every = []
    for n in range(1, 4):
        for tokens in itertools.product(range(V), repeat=n):
            whole = n == 3 or tokens[-1] == EOS
            if whole and EOS not in tokens[:-1] and all(a != b for a, b in itertools.pairwise(tokens)):
                every.append(list(tokens))
    for penalty, divisor in ((("wu", 0.7), lambda n: ((5 + n) / 6) ** 0.7), (("avg", 0.9), lambda n: n**0.9)):
        ranked = []
        for tokens in every:
            total, alpha = log_probability(parts, weights, tokens)
            seen = np.log(np.minimum(alpha.sum(0), 1.0)).sum()
            ranked.append((total / divisor(len(tokens)) + 0.2 * seen, tokens))
        ranked.sort(key=lambda pair: -pair[0])
        got = fr.decode.beam_search(
            parts, rows, BOS, EOS, V**3, 3, penalty, 0.2, n_best=9, constraint=no_repeat
        )
        for i, (score, tokens) in enumerate(ranked[:9]):
            assert got.tokens[1, i, : len(tokens)].tolist() == tokens
            assert got.scores[1, i] == pytest.approx(score, rel=1e-10)


def test_beam_of_one_is_greedy() -> None:
    parts, (rows, lengths) = model(seed=2), memory(20)
    state = np.random.default_rng(0).normal(size=(1, 20, 7))
    greedy = fr.decode.greedy(parts, rows, BOS, EOS, 15, memory_lengths=lengths, state=state)
    beam = fr.decode.beam_search(parts, rows, BOS, EOS, 1, 15, None, memory_lengths=lengths, state=state)
    np.testing.assert_array_equal(beam.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(beam.lengths[:, 0], greedy.lengths)
    np.testing.assert_allclose(beam.scores[:, 0], greedy.scores, rtol=1e-12)
    assert (greedy.lengths < 15).any()
    # With sampling that leaves only the likeliest.
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}):
        drawn = fr.decode.sample(
            parts, rows, BOS, EOS, 15, seed=0, memory_lengths=lengths, state=state, **options
        )
        np.testing.assert_array_equal(drawn.tokens, greedy.tokens)


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("lstm", {"coverage": True}),
        ("lstm", {"coverage": True, "query": "current", "input_feeding": True}),
        ("gru", {"score": "location", "num_layers": 2}),
        ("gru", {"score": "window", "num_windows": 2}),
        ("rnn_tanh", {"score": "general"}),
    ],
)
@pytest.mark.parametrize("tokens", [V, 300])
def test_a_search_multiplies_once(tokens: int, cell: str, options: dict[str, Any]) -> None:
    """What it has of few tokens, of memories and of hypotheses' states is what a step would make of them."""
    rng = np.random.default_rng(3)
    embedding, head = fr.Embedding(tokens, 4, dtype="float64"), fr.Linear(7, tokens, dtype="float64")
    decoder = fr.AttentionDecoder(cell, 4, 7, 5, dtype="float64", **options)
    for part in (embedding, decoder, head):
        part.flat_parameters[...] = rng.normal(0, 0.9, part.flat_parameters.shape)
    rows, lengths = memory(8)
    stream = decoder.stream(rows, lengths)

    def step(tokens: Any, state: Any, places: Any) -> Any:
        stream._carry = state
        y, _ = stream(embedding(tokens), places)
        return head(y), stream._carry

    for beam in (1, 4, 20):
        want = fr.decode.beam_search(step, rows, BOS, EOS, beam, 9)
        got = fr.decode.beam_search(
            (embedding, decoder, head), rows, BOS, EOS, beam, 9, memory_lengths=lengths
        )
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_allclose(got.scores, want.scores, rtol=1e-12)
    with pytest.raises(ValueError, match="bos" if tokens == V else "indices"):
        fr.decode.greedy((embedding, decoder, head), rows, tokens, EOS)


def test_a_head_with_more_tokens() -> None:
    embedding, decoder, _ = model()
    head = fr.Linear(7, V + 1, dtype="float64", seed=0)
    head.parameters["bias"] = [0.0] * V + [9.0]
    with pytest.raises(ValueError, match=f"model: expected logits of the embedding's V = {V}, got token {V}"):
        fr.decode.greedy((embedding, decoder, head), memory()[0], BOS, EOS)


def test_functions_and_batches() -> None:
    """A function does what modules do; a sequence decodes alike alone; only live hypotheses are computed."""
    embedding, decoder, head = parts = model(seed=4)
    rows, lengths = memory(6)
    stream, counts = decoder.stream(rows, lengths), []

    def step(tokens: Any, state: Any, places: Any) -> Any:
        counts.append(len(tokens))
        stream.state = None if state is None else state["h"][None]
        y, alpha = stream(embedding(tokens), places)
        return head(y), {"h": stream.state[0]}, alpha

    want = fr.decode.beam_search(parts, rows, BOS, EOS, 3, 12, memory_lengths=lengths, n_best=2)
    got = fr.decode.beam_search(step, rows, BOS, EOS, 3, 12, n_best=2)
    for a, b in zip(got[:2], want[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    # A search multiplies the memory, a step its context: another order of sums.
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-13)
    assert counts[0] == 6
    assert max(counts) <= 18
    assert counts[-1] < 18
    for b in range(6):
        alone = fr.decode.beam_search(
            parts, rows[:, b : b + 1].copy(), BOS, EOS, 3, 12, memory_lengths=lengths[b : b + 1], n_best=2
        )
        n = alone.tokens.shape[2]
        np.testing.assert_array_equal(alone.tokens[0], want.tokens[b, :, :n])
        np.testing.assert_allclose(alone.scores[0], want.scores[b], rtol=1e-12)


def test_constraint() -> None:
    parts, (rows, _) = model(), memory(5)

    def alternating(prefixes: Any, places: Any) -> Any:
        """2 and 3 in turns, from 2 on in even rows and 3 in odd ones; EOS after four."""
        allowed = np.zeros((len(prefixes), V), bool)
        allowed[np.arange(len(places)), 2 + (places + prefixes.shape[1]) % 2] = prefixes.shape[1] < 4
        allowed[:, EOS] = prefixes.shape[1] == 4
        return allowed

    for found in (
        fr.decode.greedy(parts, rows, BOS, EOS, constraint=alternating).tokens,
        fr.decode.beam_search(parts, rows, BOS, EOS, constraint=alternating).tokens[:, 0],
        fr.decode.sample(parts, rows, BOS, EOS, constraint=alternating, seed=0).tokens,
    ):
        for b in range(5):
            assert found[b].tolist() == [2 + (b + t) % 2 for t in range(4)] + [EOS]
    nothing = fr.decode.beam_search(
        parts, rows, BOS, EOS, constraint=lambda prefixes, _: np.zeros((len(prefixes), V), bool)
    )
    assert (nothing.scores == -np.inf).all()


def test_sample_draws_from_the_model() -> None:
    def step(tokens: Any, state: Any, rows: Any) -> Any:
        return np.tile(np.log([0.05, 0.1, 0.15, 0.2, 0.2, 0.3]), (len(tokens), 1)), None

    rows = np.zeros((1, 20000, 1))

    def shares(**options: Any) -> Any:
        found = fr.decode.sample(step, rows, BOS, EOS, 1, seed=0, **options)
        np.testing.assert_array_equal(
            found.tokens, fr.decode.sample(step, rows, BOS, EOS, 1, seed=0, **options).tokens
        )
        return np.bincount(found.tokens[:, 0], minlength=V) / 20000

    np.testing.assert_allclose(shares(), [0.05, 0.1, 0.15, 0.2, 0.2, 0.3], atol=0.015)
    np.testing.assert_allclose(shares(top_k=2)[[3, 5]], [0.4, 0.6], atol=0.015)
    np.testing.assert_allclose(shares(top_p=0.65)[3:], np.array([0.2, 0.2, 0.3]) / 0.7, atol=0.015)
    squares = np.array([0.05, 0.1, 0.15, 0.2, 0.2, 0.3]) ** 2
    np.testing.assert_allclose(shares(temperature=0.5), squares / squares.sum(), atol=0.015)


def test_the_ends_of_the_temperature() -> None:
    """Infinite, all tokens that may come are alike; next to 0, the likeliest is drawn. Neither warns."""

    def step(tokens: Any, state: Any, rows: Any) -> Any:
        return np.tile([0.0, 1.0, 5.0, -3.0, 2.0, 4.0], (len(tokens), 1)), None

    def allowed(prefixes: Any, rows: Any) -> Any:
        return np.tile(np.arange(V) != 2, (len(prefixes), 1))

    def shares(temperature: float, **options: Any) -> Any:
        options = {"constraint": allowed, "temperature": temperature, "seed": 0, **options}
        found = fr.decode.sample(step, np.zeros((1, 20000, 1)), BOS, EOS, 1, **options)
        return np.bincount(found.tokens[:, 0], minlength=V) / 20000

    for heat in (1e300, math.inf):
        np.testing.assert_allclose(shares(heat), np.array([1, 1, 0, 1, 1, 1]) / 5, atol=0.015)
        np.testing.assert_allclose(shares(heat, top_k=2)[[4, 5]], [0.5, 0.5], atol=0.015)
        np.testing.assert_allclose(shares(heat, top_p=0.5)[[1, 4, 5]], np.full(3, 1 / 3), atol=0.015)
    for heat in (1e-310, 5e-324):
        assert shares(heat)[5] == shares(heat, constraint=None)[2] == 1.0


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("greedy", {"model": 3}, TypeError, "model: expected"),
        ("greedy", {"memory": [1]}, TypeError, "memory: expected a numpy.ndarray"),
        ("greedy", {"memory": np.ones((2, 3))}, ValueError, "memory: expected a numpy.ndarray"),
        ("greedy", {"bos": -1}, ValueError, "bos: expected"),
        ("greedy", {"eos": V}, ValueError, "model: expected logits"),
        ("greedy", {"max_len": 0}, ValueError, "max_len: expected"),
        ("greedy", {"constraint": 3}, TypeError, "constraint: expected"),
        ("greedy", {"state": np.ones((1, 3, 6))}, ValueError, "state: expected"),
        ("greedy", {"constraint": lambda p, r: np.ones((1, 2), bool)}, ValueError, "constraint: expected"),
        ("greedy", {"model": lambda t, s, r: 3}, TypeError, "model: expected a step"),
        ("sample", {"temperature": 0.0}, ValueError, "temperature: expected"),
        ("sample", {"top_p": 0.0}, ValueError, "top_p: expected"),
        ("sample", {"top_k": 0}, ValueError, "top_k: expected"),
        ("beam_search", {"beam": 0}, ValueError, "beam: expected"),
        ("beam_search", {"n_best": 6}, ValueError, "n_best: expected"),
        ("beam_search", {"length_penalty": ("x", 1)}, ValueError, "length_penalty: expected"),
        ("beam_search", {"coverage_penalty": -1.0}, ValueError, "coverage_penalty: expected"),
        ("beam_search", {"coverage_penalty": np.inf}, ValueError, "coverage_penalty: expected"),
        (
            "beam_search",
            {"length_penalty": ("wu", 1e308)},
            ValueError,
            "length_penalty.1.: .* lp.100.",
        ),
        ("beam_search", {"length_penalty": ("wu", np.inf)}, ValueError, "length_penalty.1.: expected"),
        (
            "beam_search",
            {"length_penalty": ("avg", 10**400)},
            ValueError,
            "length_penalty.1.: .* int past",
        ),
    ],
)
def test_errors(name: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"model": model(), "memory": memory(3)[0], "bos": BOS, "eos": EOS, **changes}
    with pytest.raises(error, match=message):
        getattr(fr.decode, name)(**given)
