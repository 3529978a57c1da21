"""Decoding of RNN transducers against all label sequences, and cell by cell."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once  # all of it is Python over kernels with tests of their own
H, V = 4, 4


class Network:
    """A prediction network whose output is any function of all labels so far, and which counts its rows."""

    def __init__(self, seed: int) -> None:
        self.table = np.random.default_rng(seed).normal(0, 1.5, (101, H))
        self.calls: list[int] = []

    def __call__(self, labels: Any, state: Any, rows: Any) -> tuple[Any, Any]:
        before = np.full(len(rows), 7) if state is None else state["seen"][0]
        after = (before * 31 + labels + 3) % 101
        self.calls.append(len(rows))
        return self.table[after], {"seen": (after,)}

    def pred(self, labels: Any, bos: int) -> Any:
        state, found = None, []
        for label in (bos, *labels):
            row, state = self(np.array([label]), state, np.zeros(1, int))
            found.append(row[0])
        return np.array(found)


def problem(seed: int, lengths: list[int], blank: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    joiner = fr.TransducerJoiner(H, V, blank, dtype="float64", seed=seed)
    joiner.parameters["weight"] *= 6
    return joiner, Network(seed), rng.normal(0, 1.5, (len(lengths), max(lengths), H)), np.array(lengths)


def test_a_wide_beam_finds_the_best_of_all_sequences() -> None:
    for seed, blank in ((0, 0), (1, 2), (2, -1)):
        joiner, network, enc, lengths = problem(seed, [3, 0, 2, 1], blank)
        most = 3
        labels = [k for k in range(V) if k != joiner.blank]
        found = fr.transducer_decode(joiner, network, enc, lengths, beam=400, max_labels=most, n_best=40)
        for b, steps in enumerate(lengths):
            exact = []
            for count in range(most + 1) if steps else ():
                for target in itertools.product(labels, repeat=count):
                    logits = joiner(enc[b, :steps, None], network.pred(target, joiner.blank)[None])
                    loss, _ = fr.transducer_loss(
                        logits[None], np.array([target], int).reshape(1, -1), [steps], [count], joiner.blank
                    )
                    exact.append((-loss, target))
            best = sorted(exact, reverse=True)[:40] if steps else [(0.0, ())]
            assert np.isfinite(found.scores[b]).sum() == len(best)
            for i, (score, target) in enumerate(best):
                assert tuple(found.tokens[b, i, : found.lengths[b, i]]) == target
                assert found.scores[b, i] == pytest.approx(score, abs=1e-12)
            past = np.arange(found.tokens.shape[2]) >= found.lengths[b][:, None]
            assert (found.tokens[b][past] == blank % V).all()


def test_a_search_that_ends_early_misses_nothing() -> None:
    for seed in range(8):
        joiner, network, enc, lengths = problem(seed, [3])
        few, many = (
            fr.transducer_decode(joiner, network, enc, lengths, beam=60, n_best=count, max_labels=4)
            for count in (2, 60)
        )
        assert (few.scores[0] == many.scores[0, :2]).all()


def test_a_beam_of_one_is_greedy() -> None:
    for seed in range(6):
        joiner, network, enc, lengths = problem(seed, [9, 0, 4, 1])
        most = 5
        found = fr.transducer_decode(joiner, network, enc, lengths, max_labels=most)
        rows = sum(network.calls)
        for b, steps in enumerate(lengths):
            labels: list[int] = []
            t, score = 0, 0.0
            while t < steps:
                logits = joiner(enc[b, t], network.pred(labels, 0)[-1])
                logp = logits - np.logaddexp.reduce(logits)
                k = int(logp.argmax()) if len(labels) < most else 0
                score += logp[k]
                t += k == 0
                labels += [k] * (k != 0)
            assert found.tokens[b, : found.lengths[b]].tolist() == labels
            assert found.scores[b] == pytest.approx(score, abs=1e-12)
        # The prediction network ran for what was emitted alone, and once for each sequence with steps.
        assert rows == 3 + found.lengths.sum()


def test_a_sequence_does_not_depend_on_others() -> None:
    joiner, network, enc, lengths = problem(3, [6, 2, 5])
    together = fr.transducer_decode(joiner, network, enc, lengths, beam=3, n_best=3)
    for b, steps in enumerate(lengths):
        alone = fr.transducer_decode(joiner, network, enc[b : b + 1], [steps], beam=3, n_best=3, max_labels=6)
        np.testing.assert_allclose(alone.scores[0], together.scores[b], 1e-12)
        assert (alone.lengths[0] == together.lengths[b]).all()
        for i, count in enumerate(alone.lengths[0]):
            assert (alone.tokens[0, i, :count] == together.tokens[b, i, :count]).all()


def test_with_a_recurrent_prediction_network() -> None:
    joiner = fr.TransducerJoiner(8, 6, 0, seed=0)
    embedding, lstm = fr.Embedding(6, 5, seed=1), fr.LSTM(5, 8, seed=2)

    def step(labels: Any, state: Any, rows: Any) -> tuple[Any, Any]:
        pair = None if state is None else tuple(part.transpose(1, 0, 2).copy() for part in state)
        y, (h, c) = lstm(embedding(labels)[None], pair)
        return y[0], (h.transpose(1, 0, 2), c.transpose(1, 0, 2))

    enc = np.random.default_rng(3).normal(0, 2, (2, 7, 8)).astype("float32")
    found = fr.transducer_decode(joiner, step, enc, beam=4, n_best=2)
    assert (found.scores[:, 0] >= found.scores[:, 1]).all()
    for b in range(2):
        labels = found.tokens[b, 0, : found.lengths[b, 0]]
        y, _ = lstm(embedding(np.r_[0, labels])[:, None])
        loss = joiner.loss(enc[b : b + 1], y.transpose(1, 0, 2).copy(), labels[None], [7], [len(labels)])[0]
        assert -loss >= found.scores[b, 0] - 1e-5


def test_errors() -> None:
    joiner, network, enc, lengths = problem(0, [3, 2])
    for arguments, options, kind, message in (
        ((network, network, enc), {}, TypeError, "joiner: expected a TransducerJoiner"),
        ((joiner, None, enc), {}, TypeError, "step: expected a function"),
        ((joiner, network, enc[0]), {}, ValueError, r"enc: expected shape \(B, T, H\)"),
        ((joiner, network, enc.astype("float32")), {}, TypeError, "enc"),
        ((joiner, network, enc, [4, 0]), {}, ValueError, r"lengths: expected values in 0..T = 0..3, got 4"),
        ((joiner, network, enc, lengths, 0), {}, ValueError, "beam"),
        ((joiner, network, enc, lengths, 2), {"n_best": 3}, ValueError, "n_best"),
        ((joiner, network, enc), {"max_labels": -1}, ValueError, "max_labels"),
        ((joiner, lambda *_: enc[:, 0], enc), {}, TypeError, "step: expected a function that returns pred"),
        ((joiner, lambda *_: (enc, None), enc), {}, ValueError, "pred"),
    ):
        with pytest.raises(kind, match=message):
            fr.transducer_decode(*arguments, **options)
