"""Decoding with models that give one token after another: greedy, sampling and beam search.

tokens, lengths, scores = fusedrnn.decode.beam_search((embedding, decoder, head), memory, bos=1, eos=2)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.checks import MOST, check_number, check_size
from fusedrnn.init import Seed, make_rng
from fusedrnn.inputs.rows import contiguous
from fusedrnn.sequence.decoding import (
    Complete,
    Constraint,
    Decoded,
    Model,
    Run,
    Tokens,
    log_softmax,
)

__all__ = ["Decoded", "beam_search", "greedy", "sample"]

LengthPenalty: TypeAlias = "tuple[Literal['wu', 'avg'], float] | None"


def __dir__() -> list[str]:
    return __all__


def greedy(
    model: Model,
    memory: Array,
    bos: int,
    eos: int,
    max_len: int = 100,
    *,
    memory_lengths: npt.ArrayLike | None = None,
    state: Any = None,
    constraint: Constraint | None = None,
) -> Decoded:
    """Return the sequence of the likeliest tokens, one after another.

    Args:
        model, memory, bos, eos, max_len, memory_lengths, state, constraint: as `beam_search`.

    Raises:
        TypeError, ValueError, RuntimeError: as `beam_search`.
    """

    def likeliest(logp: npt.NDArray[np.float64]) -> Tokens:
        found: Tokens = logp.argmax(axis=1)
        return found

    run = Run(model, memory, memory_lengths, bos, eos, max_len, state, constraint, 1)
    searched = run.search(1, 1, lambda n: 1.0)
    return _one_by_one(likeliest, run) if searched is None else _only(searched)


def sample(
    model: Model,
    memory: Array,
    bos: int,
    eos: int,
    max_len: int = 100,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: Seed = None,
    memory_lengths: npt.ArrayLike | None = None,
    state: Any = None,
    constraint: Constraint | None = None,
) -> Decoded:
    """Return sequences drawn token by token.

    Args:
        model, memory, bos, eos, max_len, memory_lengths, state, constraint: as `beam_search`.
        temperature: what logits are divided by, > 0; 1 draws from the model, inf all tokens alike.
        top_k: draw among so many of the likeliest tokens alone; None for all.
        top_p: draw among the fewest likeliest tokens whose probabilities reach this, in (0, 1].
        seed: int, numpy.random.Generator or None.

    Returns:
        tokens, lengths, and as scores log probabilities under the model itself.

    Raises:
        TypeError, ValueError, RuntimeError: as `beam_search`.

    Paper: Holtzman et al. 2019, arXiv:1904.09751 (top_p).
    """
    heat, mass = check_number("temperature", temperature), check_number("top_p", top_p, 0.0, 1.0)
    if heat == 0.0:
        raise ValueError("temperature: expected a number > 0, got 0; see decode.greedy")
    if mass == 0.0:
        raise ValueError("top_p: expected a number in (0, 1], got 0")
    most = None if top_k is None else check_size("top_k", top_k)
    rng = make_rng(seed)

    def draw(logp: npt.NDArray[np.float64]) -> Tokens:
        # Any heat leaves the likeliest at 0, and what may not come at -inf.
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.where(logp > -np.inf, (logp - logp.max(axis=1, keepdims=True)) / heat, -np.inf)
        order = np.argsort(-logp, axis=1, kind="stable")
        sums = np.cumsum(np.exp(log_softmax(np.take_along_axis(scaled, order, 1))), axis=1)
        keep = np.ones(sums.shape, bool)
        if most is not None:
            keep[:, most:] = False
        # The token that reaches the mass is among them.
        keep[:, 1:] &= sums[:, :-1] < mass
        total = np.max(np.where(keep, sums, 0.0), axis=1)
        picked = (sums < rng.random(len(logp))[:, None] * total[:, None]).sum(axis=1)
        picked = np.minimum(picked, keep.sum(axis=1) - 1)
        return np.take_along_axis(order, picked[:, None], 1)[:, 0]

    run = Run(model, memory, memory_lengths, bos, eos, max_len, state, constraint, 1)
    return _one_by_one(draw, run)


def beam_search(
    model: Model,
    memory: Array,
    bos: int,
    eos: int,
    beam: int = 5,
    max_len: int = 100,
    length_penalty: LengthPenalty = ("wu", 0.6),
    coverage_penalty: float = 0.0,
    n_best: int = 1,
    *,
    memory_lengths: npt.ArrayLike | None = None,
    state: Any = None,
    constraint: Constraint | None = None,
) -> Decoded:
    """Return the best sequences that a beam search finds, of all sequences of the batch at once.

    In every step each hypothesis of a sequence is continued by all tokens. Those of the `beam` likeliest that
    end in eos are complete; the `beam` likeliest others go on. A sequence whose complete hypotheses fill the
    beam is done, and costs nothing from there on. Complete hypotheses y with n tokens, eos among them, are
    ranked by

        score = log p(y) / lp(n) + coverage_penalty * sum over s of log(min(sum over t of alpha_(t,s), 1))
        lp(n) = ((5 + n) / 6)^a for ("wu", a)   n^a for ("avg", a)   1 for None

    At max_len what is not complete counts as it is. With a beam of 1 the tokens are those of `greedy`.

    Args:
        model: (embedding, decoder, head): an `Embedding`, an `AttentionDecoder` and a module of its y, say
            a `Linear`, that returns logits. Or a function step(tokens (N,), state, rows (N,)) that returns
            logits (N, V) and the state, and alpha (N, S) besides where coverage counts; `rows` says which
            sequence of the batch each hypothesis is of. Its state is None or an array, or a tuple, list or
            dict of such: hypotheses lie along the first axis of arrays.
        memory: (S, B, M), as `AttentionDecoder.forward` takes it; with a function it gives the number of
            sequences B alone.
        bos: token that every sequence begins with.
        eos: token that ends one.
        beam: hypotheses of a sequence that are kept, >= 1.
        max_len: most tokens, eos among them.
        length_penalty: ("wu", a), ("avg", a) or None.
        coverage_penalty: weight of the coverage, >= 0.
        n_best: how many hypotheses are returned, in 1..beam.
        memory_lengths: (B,) of an integer dtype, each in 0..S; all S if None.
        state: at the beginning: of a decoder h (1, B, H) or (h, c), of a function its own, B along the first
            axis.
        constraint: function constraint(prefixes (N, t), rows (N,)) that returns a bool array (N, V): which
            tokens may come next. Prefixes are without bos. A hypothesis that no token may follow is dropped.

    Returns:
        tokens (B, n_best, L), lengths and scores (B, n_best).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument of the wrong shape or range; logits that are NaN or inf.
        RuntimeError: an array or a module on a GPU.

    Papers: Wu et al. 2016, arXiv:1609.08144 (penalties); Graves 2012, arXiv:1211.3711 (beam search).
    """
    width = check_size("beam", beam)
    best = check_size("n_best", n_best, 1, width)
    check_number("coverage_penalty", coverage_penalty, high=MOST)
    divisor = _length_divisor(length_penalty, check_size("max_len", max_len))
    run = Run(model, memory, memory_lengths, bos, eos, max_len, state, constraint, width)
    if not coverage_penalty and (searched := run.search(width, best, divisor)) is not None:
        return searched
    # Of each live hypothesis: its sequence, its tokens, its log probability, and what it looked at.
    rows, prefixes, totals = run.begin()
    covered: Array | None = None
    complete: list[Complete] = []
    counts = np.zeros(run.batch, np.int64)  # of them

    def finish(parents: Tokens, tokens: Tokens, logp: npt.NDArray[np.float64]) -> None:
        scores = logp / divisor(tokens.shape[1])
        if covered is not None:
            looked = np.minimum(covered[parents].astype(np.float64), 1.0)
            if run.memory_lengths is not None:
                looked[np.arange(looked.shape[1]) >= run.memory_lengths[rows[parents], None]] = 1.0
            with np.errstate(divide="ignore"):
                scores += coverage_penalty * np.log(looked).sum(axis=1)
        complete.append((rows[parents], tokens, scores))

    for step in range(run.max_len):
        if not len(rows):
            break
        logits, allowed, alpha = run.advance(rows, prefixes)
        if coverage_penalty and alpha is None:
            raise ValueError(
                "coverage_penalty: expected 0 where the model gives no alpha, got a number above"
            )
        if coverage_penalty:
            covered = alpha if covered is None else covered + alpha
        # (sequences, 2 * width), the best first: no more than `width` of these end.
        parents, tokens, likeliest = _core.beam_step(
            contiguous(logits if logits.dtype in (np.float32, np.float64) else logits.astype(np.float64)),
            totals,
            rows,
            None if allowed is None else contiguous(allowed),
            min(2 * width, int(np.bincount(rows).max()) * logits.shape[1]),
        )
        found = parents >= 0
        ended = found & (tokens == run.eos)
        ending = ended[:, :width]
        if ending.any():
            parent = parents[:, :width][ending]
            counts += np.bincount(rows[parent], minlength=run.batch)
            finish(parent, _continued(prefixes[parent], run.eos), likeliest[:, :width][ending])
        # The best that go on, as many as the beam is wide.
        going = found & ~ended & (counts < width)[rows[parents[:, :1]]]
        going &= np.cumsum(going, axis=1) <= width
        parent, totals = parents[going], likeliest[going]
        prefixes = _continued(prefixes[parent], tokens[going])
        if step + 1 == run.max_len:
            finish(parent, prefixes, totals)
            break
        rows = rows[parent]
        covered = None if covered is None else covered[parent]
        run.select(parent)
    return run.ranked(complete, best)


def _continued(prefixes: Tokens, tokens: Tokens | int) -> Tokens:
    longer = np.empty((len(prefixes), prefixes.shape[1] + 1), np.int64)
    longer[:, :-1] = prefixes
    longer[:, -1] = tokens
    return longer


def _length_divisor(penalty: LengthPenalty, max_len: int) -> Callable[[int], float]:
    if penalty is None:
        return lambda n: 1.0
    if not isinstance(penalty, tuple) or len(penalty) != 2 or penalty[0] not in ("wu", "avg"):
        raise ValueError(f"length_penalty: expected ('wu', a), ('avg', a) or None, got {penalty!r}")
    kind, power = penalty[0], check_number("length_penalty[1]", penalty[1], high=MOST)

    def divisor(n: int) -> float:
        return float(((5 + n) / 6 if kind == "wu" else n) ** power)

    try:
        divisor(max_len)
    except OverflowError:
        raise ValueError(
            f"length_penalty[1]: expected a number with a finite lp(max_len) = lp({max_len}), got {power}"
        ) from None
    return divisor


def _one_by_one(pick: Callable[[npt.NDArray[np.float64]], Tokens], run: Run) -> Decoded:
    """Decode with one hypothesis for each sequence."""
    rows, prefixes, totals = run.begin()
    complete: list[Complete] = []
    for step in range(run.max_len):
        if not len(rows):
            break
        logits, allowed, _ = run.advance(rows, prefixes)
        logp = log_softmax(logits)
        if allowed is not None:
            logp[~allowed] = -np.inf
        possible = np.flatnonzero(logp.max(axis=1) > -np.inf)
        tokens = pick(logp[possible])
        totals = totals[possible] + logp[possible, tokens]
        prefixes = _continued(prefixes[possible], tokens)
        ended = (tokens == run.eos) | (step + 1 == run.max_len)
        complete.append((rows[possible[ended]], prefixes[ended], totals[ended]))
        going = possible[~ended]
        rows, prefixes, totals = rows[going], prefixes[~ended], totals[~ended]
        run.select(going)
    return _only(run.ranked(complete, 1))


def _only(found: Decoded) -> Decoded:
    """Return the only hypothesis of each sequence."""
    return Decoded(found.tokens[:, 0], found.lengths[:, 0], found.scores[:, 0])
