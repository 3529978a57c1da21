"""CTC's prefix beam search piece by piece and with a language model, against sums over all paths."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once  # Python over kernels with tests of their own
V = 4


def problem(seed: int, steps: int, scale: float = 1.5) -> Any:
    return np.random.default_rng(seed).normal(0, scale, (steps, V))


def over_all_paths(logits: Any, blank: int) -> dict[tuple[int, ...], float]:
    """The logarithm of the probability of each label sequence."""
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    found: dict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
    for path in itertools.product(range(V), repeat=len(logits)):
        labels = tuple(c for i, c in enumerate(path) if c != blank and (i == 0 or c != path[i - 1]))
        found[labels] = np.logaddexp(found[labels], sum(logp[t, c] for t, c in enumerate(path)))
    return found


class Model:
    """Of two labels back, and what it was asked."""

    def __init__(self) -> None:
        table = np.random.default_rng(5).normal(0, 1, (V + 1, V + 1, V))
        self.table = table - np.logaddexp.reduce(table, axis=-1, keepdims=True)
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, labels: Any) -> Any:
        self.asked.append(tuple(labels.tolist()))
        before = [V, V, *labels.tolist()][-2:]
        return self.table[before[0], before[1]]

    def log_probability(self, labels: tuple[int, ...]) -> float:
        return float(sum(self(np.array(labels[:k], int))[label] for k, label in enumerate(labels)))


@pytest.mark.parametrize("blank", [0, 2])
def test_a_wide_beam_finds_the_best_of_all_label_sequences(blank: int) -> None:
    for seed, steps in ((0, 5), (1, 4), (2, 1)):
        logits, model = problem(seed, steps), Model()
        exact = over_all_paths(logits, blank)
        for lm, alpha, beta in ((None, 0.5, 0.0), (model, 0.8, 0.3), (None, 0.5, 1.5)):
            wanted = {
                labels: score + beta * len(labels) + (alpha * lm.log_probability(labels) if lm else 0.0)
                for labels, score in exact.items()
            }
            best = sorted(wanted.items(), key=lambda pair: -pair[1])[:7]
            model.asked.clear()
            stream = fr.CTCStream(1000, blank, lm=lm, alpha=alpha, beta=beta)
            stream(logits)
            found = stream.best(7)
            assert [tuple(labels.tolist()) for labels, _ in found] == [labels for labels, _ in best]
            np.testing.assert_allclose([score for _, score in found], [score for _, score in best], 1e-12)
            assert len(model.asked) == len(set(model.asked))
            if lm:
                padded = np.concatenate((logits, problem(9, 2)))[:, None].repeat(2, axis=1)
                labels, scores = fr.ctc_decode(padded, [steps, 0], 1000, blank, lm=lm, alpha=alpha, beta=beta)
                assert tuple(labels[0].tolist()) == best[0][0]
                assert scores[0] == pytest.approx(best[0][1], rel=1e-12)
                assert (labels[1].size, scores[1]) == (0, 0)


def test_narrow_beams_are_those_of_ctc_decode() -> None:
    for seed in range(12):
        logits = problem(seed, 20, 2.0)
        for beam in (2, 4, 9):
            (labels,), scores = fr.ctc_decode(logits[:, None], beam=beam)
            found, score = fr.CTCStream(beam)(logits)
            assert found.tolist() == labels.tolist()
            assert score == pytest.approx(scores[0], rel=1e-9)


def test_pieces_give_what_one_call_gives() -> None:
    logits, model = problem(3, 30), Model()
    whole = fr.CTCStream(5, lm=model, beta=0.4)
    wanted = whole(logits)
    stream = fr.CTCStream(5, lm=model, beta=0.4)
    for _ in range(2):
        for begin, end in itertools.pairwise((0, 0, 1, 9, 30)):
            labels, score = stream(logits[begin:end])
        assert labels.tolist() == wanted[0].tolist()
        assert score == wanted[1]
        assert stream.steps == 30
        stream.reset()
    assert stream(logits[:0])[1] == 0.0


def test_what_is_no_number() -> None:
    logits = problem(3, 6)
    logits[2, 1] = np.nan
    labels, score = fr.CTCStream(5)(logits)
    assert labels.size == 0
    assert np.isnan(score)


def test_errors() -> None:
    logits = problem(0, 3)
    for options, kind, message in (
        ({"beam": 0}, ValueError, "beam"),
        ({"blank": -1}, ValueError, "blank"),
        ({"lm": 3}, TypeError, "lm: expected a function"),
        ({"alpha": -1.0}, ValueError, "alpha"),
        ({"beta": float("nan")}, ValueError, "beta"),
    ):
        with pytest.raises(kind, match=message):
            fr.CTCStream(**options)
    for value, kind, message in (
        (logits.astype(int), TypeError, "logits: expected float32 or float64"),
        (logits[0], ValueError, r"logits: expected shape \(T, V\)"),
        (logits[:, :0], ValueError, "V > blank = 0"),
    ):
        with pytest.raises(kind, match=message):
            fr.CTCStream()(value)
    with pytest.raises(ValueError, match=r"lm: expected log probabilities \(V,\) = \(4,\)"):
        fr.CTCStream(lm=lambda labels: np.zeros(3))(logits)
    with pytest.raises(ValueError, match="got NaN"):
        fr.CTCStream(lm=lambda labels: np.full(4, np.nan))(logits)
    with pytest.raises(ValueError, match="beam: expected an int >= 2"):
        fr.ctc_decode(logits[:, None], lm=Model())
    assert repr(fr.CTCStream(3)) == "CTCStream(beam=3, blank=0, steps=0)"
