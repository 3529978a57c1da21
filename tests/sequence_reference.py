"""CTC and the linear-chain CRF in float64, slow and obvious: sums over all paths, or from state to state."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def log_softmax(x: Array) -> Array:
    """Over the last axis."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def collapsed(path: Sequence[int], blank: int) -> tuple[int, ...]:
    """What a path reads: repeats dropped, then blanks."""
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def all_labellings(logits: Array, blank: int) -> dict[tuple[int, ...], float]:
    """The probability of each label sequence, by all V^T paths."""
    p = np.exp(log_softmax(logits))
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(p.shape[1]), repeat=len(p)):
        found[collapsed(path, blank)] += float(np.prod([row[c] for row, c in zip(p, path, strict=True)]))
    return found


def _log_sum(values: list[float]) -> float:
    most = max(values, default=-math.inf)
    if most == -math.inf:
        return most
    return most + math.log(sum(math.exp(value - most) for value in values))


def _moves(target: Sequence[int], state: int) -> Iterator[int]:
    """The states after one: state 2 i is the blank before label i, state 2 i + 1 that label."""
    yield state
    if state < 2 * len(target):
        yield state + 1
    if state % 2 and state + 2 < 2 * len(target) and target[state // 2] != target[state // 2 + 1]:
        yield state + 2


def _class_at(target: Sequence[int], state: int, blank: int) -> int:
    return target[state // 2] if state % 2 else blank


def ctc(logits: Array, target: Sequence[int], blank: int) -> tuple[float, Array]:
    """Loss and gradient (T, V) of one sequence, every path's logarithm pushed from state to state."""
    log_p = log_softmax(np.asarray(logits, np.float64))
    steps, last = len(log_p), 2 * len(target)
    if not steps:
        return (np.inf if target else 0.0), np.zeros_like(log_p)
    rows = log_p.tolist()
    classes = [_class_at(target, s, blank) for s in range(last + 1)]
    starts = [0, 1] if target else [0]
    ahead = [{s: rows[0][classes[s]] for s in starts}]
    for row in rows[1:]:
        into: dict[int, list[float]] = defaultdict(list)
        for state, value in ahead[-1].items():
            for s in _moves(target, state):
                into[s].append(value + row[classes[s]])
        ahead.append({s: _log_sum(values) for s, values in into.items()})
    behind = {s: 0.0 for s in (last, last - 1) if s >= 0}
    total = _log_sum([ahead[-1].get(s, -math.inf) for s in behind])
    if total == -math.inf:
        return math.inf, np.full_like(log_p, np.nan)
    gradient = np.exp(log_p)
    for t in range(steps - 1, -1, -1):
        for s, value in behind.items():
            gradient[t, classes[s]] -= math.exp(value + ahead[t].get(s, -math.inf) - total)
        before: dict[int, float] = {}
        for state in ahead[t - 1] if t else ():
            values = [behind[s] + rows[t][classes[s]] for s in _moves(target, state) if s in behind]
            if values:
                before[state] = _log_sum(values)
        behind = before
    return -total, gradient


def tag_scores(x: Array, start: Array, transitions: Array, end: Array) -> tuple[Array, Array]:
    """All K^T tag sequences of emissions (T, K), and their scores."""
    paths = np.array(list(itertools.product(range(x.shape[1]), repeat=len(x))))
    scores = start[paths[:, 0]] + end[paths[:, -1]] + x[np.arange(len(x)), paths].sum(axis=1)
    return paths, scores + transitions[paths[:, :-1], paths[:, 1:]].sum(axis=1)


def crf_by_paths(x: Array, start: Array, transitions: Array, end: Array) -> tuple[float, Array, Array, float]:
    """The logarithm of the sum over all paths, marginals (T, K), the best path and its score."""
    paths, scores = tag_scores(x, start, transitions, end)
    total = float(np.logaddexp.reduce(scores))
    share = np.exp(scores - total)
    marginals = np.array([np.bincount(column, share, x.shape[1]) for column in paths.T])
    best = int(scores.argmax())
    return total, marginals, paths[best], float(scores[best])


def crf(
    x: Array, tags: Array, start: Array, transitions: Array, end: Array
) -> tuple[float, Array, Array, Array, Array]:
    """Loss of one sequence and the gradients of emissions, start, transitions and end, in logarithms."""
    steps, size = x.shape
    ahead, behind = np.empty_like(x), np.empty_like(x)
    ahead[0], behind[-1] = start + x[0], end
    for t in range(1, steps):
        ahead[t] = np.logaddexp.reduce(ahead[t - 1][:, None] + transitions, axis=0) + x[t]
    for t in range(steps - 2, -1, -1):
        behind[t] = np.logaddexp.reduce(transitions + (x[t + 1] + behind[t + 1])[None, :], axis=1)
    total = float(np.logaddexp.reduce(ahead[-1] + end))
    dx = np.exp(ahead + behind - total)
    dtransitions = np.zeros((size, size))
    for t in range(1, steps):
        dtransitions += np.exp(ahead[t - 1][:, None] + transitions + (x[t] + behind[t])[None, :] - total)
        dtransitions[tags[t - 1], tags[t]] -= 1
    dx[np.arange(steps), tags] -= 1
    score = start[tags[0]] + end[tags[-1]] + x[np.arange(steps), tags].sum()
    score += transitions[tags[:-1], tags[1:]].sum()
    return total - float(score), dx, dx[0].copy(), dtransitions, dx[-1].copy()
