"""Decoding of an RNN transducer: the labels of most probability, of all sequences of a batch at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_size
from fusedrnn.sequence.decoding import (
    Decoded,
    Tokens,
    best_continuations,
    concatenated,
    log_softmax,
    taken,
)
from fusedrnn.sequence.host import host_array, lengths_of
from fusedrnn.sequence.transducer import TransducerJoiner

# step(labels (N,), state, rows (N,)) -> pred (N, H) and the state.
PredictionStep: TypeAlias = Callable[[Tokens, Any, Tokens], "tuple[Any, Any]"]


def transducer_decode(
    joiner: TransducerJoiner,
    step: PredictionStep,
    enc: Array,
    lengths: npt.ArrayLike | None = None,
    beam: int = 1,
    *,
    bos: int | None = None,
    max_labels: int | None = None,
    n_best: int = 1,
    state: Any = None,
) -> Decoded:
    """Return the labels that an RNN transducer gives, greedily or by a beam search.

    All hypotheses of all sequences go through the joiner together, those of a sequence with equally many
    emissions, blanks and labels, behind them. Each is continued by the blank, which takes it to the next step
    of enc, and by every label; continuations that come to the same labels are one, with the sum of their
    probabilities. The `beam` likeliest go on, or are complete where they have left the last step. With a beam
    of 1 this is the likeliest emission of each cell, and with one wide enough the labels of most probability,
    exactly. The prediction network runs for hypotheses that got a label alone.

    Args:
        joiner: a `TransducerJoiner`.
        step: function step(labels (N,), state, rows (N,)) that runs the prediction network and returns
            pred (N, H) after these labels, and its state; `rows` says which sequence of the batch each is of.
            A state is None or an array, or a tuple, list or dict of such: hypotheses lie along the first axis
            of arrays.
        enc: (B, T, H) in the joiner's dtype, what the encoder returns.
        lengths: (B,) of an integer dtype, each in 0..T; all T if None.
        beam: hypotheses of a sequence that are kept, >= 1.
        bos: label that the prediction network begins with; the joiner's blank if None.
        max_labels: most labels of a sequence, T if None.
        n_best: how many hypotheses are returned, in 1..beam.
        state: of the prediction network at the beginning, B along the first axis.

    Returns:
        tokens: (B, L) int64, with n_best above 1 (B, n_best, L): the labels, without blanks, and the blank
            past the end.
        lengths: (B,) or (B, n_best) int64: how many labels there are.
        scores: (B,) or (B, n_best) float64: log probability of the paths that went through the beam, -inf
            where there is no hypothesis. A sequence without steps has no labels, and the score 0.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or range.
        RuntimeError: an array or the joiner on a GPU.

    Paper: Graves 2012, arXiv:1211.3711v1; hypotheses side by side by their emissions: Saon et al. 2020,
    Alignment-length synchronous decoding for RNN transducer.
    """
    if not isinstance(joiner, TransducerJoiner):
        raise TypeError(f"joiner: expected a TransducerJoiner, got {type(joiner).__name__}")
    if not callable(step):
        raise TypeError(f"step: expected a function step(labels, state, rows), got {type(step).__name__}")
    enc = host_array("enc", enc)
    if enc.ndim != 3:
        raise ValueError(f"enc: expected shape (B, T, H), got {enc.shape}")
    batch, most, size = *enc.shape[:2], joiner.hidden_size
    check_array("enc", enc, (batch, most, size), joiner._dtype, "(B, T, H)")
    steps = np.full(batch, most) if lengths is None else lengths_of("lengths", lengths, batch, "T", most)
    width = check_size("beam", beam)
    best = check_size("n_best", n_best, 1, width)
    limit = most if max_labels is None else check_size("max_labels", max_labels, 0)
    first = joiner.blank if bos is None else check_size("bos", bos, 0)
    found = _search(_Prediction(joiner, step, size), enc, steps, width, best, first, limit, state)
    return found if best > 1 else Decoded(found.tokens[:, 0], found.lengths[:, 0], found.scores[:, 0])


class _Prediction:
    """The prediction network, and the joiner behind it."""

    def __init__(self, joiner: TransducerJoiner, step: PredictionStep, size: int) -> None:
        self.joiner, self.step, self.size = joiner, step, size

    def __call__(self, labels: Tokens, state: Any, rows: Tokens) -> tuple[Array, Any]:
        results = self.step(labels, state, rows)
        if not isinstance(results, tuple) or len(results) != 2:
            raise TypeError("step: expected a function that returns pred and the state")
        pred = np.asarray(results[0])
        check_array("pred", pred, (len(labels), self.size), self.joiner._dtype, "(N, H)")
        return pred, results[1]

    def log_probabilities(self, enc: Array, pred: Array) -> npt.NDArray[np.float64]:
        return log_softmax(self.joiner(enc, pred))


def _search(
    prediction: _Prediction,
    enc: Array,
    steps: Tokens,
    width: int,
    best: int,
    bos: int,
    limit: int,
    state: Any,
) -> Decoded:
    blank = prediction.joiner.blank
    complete: list[list[tuple[float, Tokens]]] = [
        [] if count else [(0.0, np.empty(0, np.int64))] for count in steps.tolist()
    ]
    # Of each hypothesis, those of a sequence side by side: its sequence, step, labels and log probability.
    rows = np.flatnonzero(steps)
    at, totals = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    prefixes, counts = np.empty((len(rows), 0), np.int64), np.zeros(len(rows), np.int64)
    if len(rows):
        pred, state = prediction(np.full(len(rows), bos), taken(state, rows), rows)
    while len(rows):
        scores = totals[:, None] + prediction.log_probabilities(enc[rows, at], pred)
        labels = np.arange(scores.shape[1]) != blank
        scores[np.ix_(counts >= limit, labels)] = -np.inf
        _merge(scores, blank, rows, prefixes, counts)
        parents, emitted, totals = best_continuations(rows, scores, width)
        goes_on = emitted == blank
        ended = goes_on & (at[parents] + 1 == steps[rows[parents]])
        for i in np.flatnonzero(ended):
            parent = parents[i]
            complete[rows[parent]].append((float(totals[i]), prefixes[parent, : counts[parent]]))
        kept = ~ended & ~_settled(complete, best, rows[parents], np.where(ended, -np.inf, totals))
        parents, emitted, totals, goes_on = (a[kept] for a in (parents, emitted, totals, goes_on))
        rows, at, prefixes, counts = (a[parents] for a in (rows, at, prefixes, counts))
        if not len(rows):
            break
        if (~goes_on & (counts == prefixes.shape[1])).any():
            prefixes = np.column_stack((prefixes, np.full(len(rows), blank)))
        grown = np.flatnonzero(~goes_on)
        prefixes[grown, counts[grown]] = emitted[grown]
        counts[grown] += 1
        at += goes_on
        pred, state = _advanced(prediction, pred, state, parents, emitted, goes_on, rows)
    return _ranked(complete, best, blank)


def _advanced(
    prediction: _Prediction,
    pred: Array,
    state: Any,
    parents: Tokens,
    emitted: Tokens,
    goes_on: npt.NDArray[np.bool_],
    rows: Tokens,
) -> tuple[Array, Any]:
    """Return pred and the state of continuations: their parents' behind a blank, new ones behind a label."""
    same, grown = np.flatnonzero(goes_on), np.flatnonzero(~goes_on)
    if not len(grown):
        return pred[parents], taken(state, parents)
    new, after = prediction(emitted[grown], taken(state, parents[grown]), rows[grown])
    if not len(same):
        return new, after
    order = np.empty(len(parents), np.int64)
    order[np.r_[same, grown]] = np.arange(len(parents))
    kept = pred[parents[same]], taken(state, parents[same])
    return np.concatenate((kept[0], new))[order], taken(concatenated(kept[1], after), order)


def _merge(scores: Array, blank: int, rows: Tokens, prefixes: Tokens, counts: Tokens) -> None:
    """Add to the blanks of hypotheses the probability of those that come to them by their last label."""
    if not prefixes.shape[1]:
        return
    last = prefixes[np.arange(len(rows)), counts - 1]
    # Rows are in order: another hypothesis of the sequence is at most so many places away.
    most = int(np.bincount(rows).max())
    places = np.arange(prefixes.shape[1])
    for away in (*range(1 - most, 0), *range(1, most)):
        to = np.arange(max(0, -away), len(rows) - max(0, away))
        by = to + away
        near = np.flatnonzero((rows[to] == rows[by]) & (counts[to] == counts[by] + 1))
        to, by = to[near], by[near]
        equal = ((prefixes[to] == prefixes[by]) | (places >= counts[by][:, None])).all(axis=1)
        to, by = to[equal], by[equal]
        scores[to, blank] = np.logaddexp(scores[to, blank], scores[by, last[to]])
        scores[by, last[to]] = -np.inf


def _settled(
    complete: list[list[tuple[float, Tokens]]], best: int, rows: Tokens, totals: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Return which hypotheses are of sequences whose results none of them can replace any more."""
    settled = np.zeros(len(complete), bool)
    for row in np.unique(rows):
        if len(complete[row]) >= best:
            least = sorted((score for score, _ in complete[row]), reverse=True)[best - 1]
            settled[row] = np.logaddexp.reduce(totals[rows == row]) <= least
    return settled[rows]


def _ranked(complete: list[list[tuple[float, Tokens]]], best: int, blank: int) -> Decoded:
    ordered = [sorted(found, key=lambda pair: -pair[0])[:best] for found in complete]
    longest = max((len(labels) for found in ordered for _, labels in found), default=0)
    tokens = np.full((len(complete), best, longest), blank)
    lengths, scores = np.zeros((len(complete), best), np.int64), np.full((len(complete), best), -np.inf)
    for row, found in enumerate(ordered):
        for i, (score, labels) in enumerate(found):
            tokens[row, i, : len(labels)] = labels
            lengths[row, i], scores[row, i] = len(labels), score
    return Decoded(tokens, lengths, scores)
