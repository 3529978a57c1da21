"""Decoding with models that give one token after another: greedy, sampling and beam search.

tokens, lengths, scores = fusedrnn.decode.beam_search((embedding, decoder, head), memory, bos=1, eos=2)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_number, check_size
from fusedrnn.init import Seed, make_rng
from fusedrnn.nn.module import Module
from fusedrnn.sequence.attention import AttentionDecoder, DecoderStream

__all__ = ["Decoded", "beam_search", "greedy", "sample"]

Tokens: TypeAlias = npt.NDArray[np.int64]
# step(tokens (N,), state, rows (N,)) -> logits (N, V) and the state, or logits, the state and alpha (N, S).
Step: TypeAlias = Callable[[Tokens, Any, Tokens], "tuple[Any, ...]"]
Model: TypeAlias = "Step | tuple[Module, AttentionDecoder, Module]"
# constraint(prefixes (N, t), rows (N,)) -> bool (N, V), which tokens may come next.
Constraint: TypeAlias = Callable[[Tokens, Tokens], npt.NDArray[np.bool_]]
LengthPenalty: TypeAlias = "tuple[Literal['wu', 'avg'], float] | None"


def __dir__() -> list[str]:
    return __all__


class Decoded(NamedTuple):
    """What decoding returns; where there are several hypotheses of a sequence, the best first.

    Attributes:
        tokens: (B, L) int64, of a beam search (B, n_best, L): without bos, eos at the end and from there on.
        lengths: (B,) or (B, n_best) int64: how many tokens there are, without eos.
        scores: (B,) or (B, n_best) float64: log probability, with a beam search's penalties; -inf where there
            is no hypothesis.
    """

    tokens: Tokens
    lengths: Tokens
    scores: npt.NDArray[np.float64]


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
        return logp.argmax(axis=1)

    return _one_by_one(likeliest, model, memory, memory_lengths, bos, eos, max_len, state, constraint)


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
        temperature: what logits are divided by, > 0; 1 draws from the model.
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
        scaled = logp / heat
        order = np.argsort(-scaled, axis=1, kind="stable")
        sums = np.cumsum(np.exp(_log_softmax(np.take_along_axis(scaled, order, 1))), axis=1)
        keep = np.ones(sums.shape, bool)
        if most is not None:
            keep[:, most:] = False
        # The token that reaches the mass is among them.
        keep[:, 1:] &= sums[:, :-1] < mass
        total = np.max(np.where(keep, sums, 0.0), axis=1)
        picked = (sums < rng.random(len(logp))[:, None] * total[:, None]).sum(axis=1)
        picked = np.minimum(picked, keep.sum(axis=1) - 1)
        return np.take_along_axis(order, picked[:, None], 1)[:, 0]

    return _one_by_one(draw, model, memory, memory_lengths, bos, eos, max_len, state, constraint)


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
        ValueError: an argument of the wrong shape or range.
        RuntimeError: an array or a module on a GPU.

    Papers: Wu et al. 2016, arXiv:1609.08144 (penalties); Graves 2012, arXiv:1211.3711 (beam search).
    """
    width = check_size("beam", beam)
    best = check_size("n_best", n_best, 1, width)
    check_number("coverage_penalty", coverage_penalty)
    divisor = _length_divisor(length_penalty)
    run = _Run(model, memory, memory_lengths, bos, eos, max_len, state, constraint)
    # Of each live hypothesis: its sequence, its tokens, its log probability, and what it looked at.
    rows, prefixes, totals = run.begin()
    covered: Array | None = None
    complete: list[list[tuple[float, Tokens]]] = [[] for _ in range(run.batch)]

    def finish(row: int, tokens: Tokens, total: float, looked: Array | None) -> None:
        score = total / divisor(len(tokens))
        if coverage_penalty and looked is not None:
            seen = looked[: run.memory_lengths[row]] if run.memory_lengths is not None else looked
            with np.errstate(divide="ignore"):
                score += coverage_penalty * float(np.log(np.minimum(seen.astype(np.float64), 1.0)).sum())
        complete[row].append((score, tokens))

    for step in range(run.max_len):
        if not len(rows):
            break
        logp, alpha = run.advance(rows, prefixes)
        if coverage_penalty and alpha is None:
            raise ValueError(
                "coverage_penalty: expected 0 where the model gives no alpha, got a number above"
            )
        if coverage_penalty:
            covered = alpha if covered is None else covered + alpha
        parents, tokens, totals = _best_continuations(rows, totals[:, None] + logp, 2 * width)
        if not len(parents):
            break
        # Places among the continuations of the same sequence, which come best first.
        sequences = rows[parents]
        first = np.flatnonzero(np.r_[True, sequences[1:] != sequences[:-1]])
        rank = np.arange(len(sequences)) - np.repeat(first, np.diff(np.r_[first, len(sequences)]))
        ended = tokens == run.eos
        for i in np.flatnonzero(ended & (rank < width)):
            looked = None if covered is None else covered[parents[i]]
            finish(int(sequences[i]), np.append(prefixes[parents[i]], run.eos), float(totals[i]), looked)
        done = np.array([len(found) >= width for found in complete])
        # The best that go on, as many as the beam is wide.
        going = ~ended & ~done[sequences]
        place = np.cumsum(going) - 1
        place -= np.repeat(place[first] - going[first], np.diff(np.r_[first, len(sequences)])) + 1
        chosen = np.flatnonzero(going & (place < width))
        parents, totals = parents[chosen], totals[chosen]
        rows, prefixes = rows[parents], np.column_stack((prefixes[parents], tokens[chosen]))
        covered = None if covered is None else covered[parents]
        run.select(parents)
        if step + 1 == run.max_len:
            for i in range(len(rows)):
                finish(int(rows[i]), prefixes[i], float(totals[i]), None if covered is None else covered[i])
    return run.ranked(complete, best)


def _length_divisor(penalty: LengthPenalty) -> Callable[[int], float]:
    if penalty is None:
        return lambda n: 1.0
    if not isinstance(penalty, tuple) or len(penalty) != 2 or penalty[0] not in ("wu", "avg"):
        raise ValueError(f"length_penalty: expected ('wu', a), ('avg', a) or None, got {penalty!r}")
    kind, power = penalty[0], check_number("length_penalty[1]", penalty[1])
    return lambda n: float(((5 + n) / 6 if kind == "wu" else n) ** power)


def _log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def _best_continuations(
    rows: Tokens, scores: npt.NDArray[np.float64], count: int
) -> tuple[Tokens, Tokens, npt.NDArray[np.float64]]:
    """Return the best of each sequence's continuations, in order: hypothesis, token and log probability.

    Equal ones come in the order of hypotheses and tokens, whatever else is in the batch.
    """
    classes = scores.shape[1]
    first = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
    counts = np.diff(np.r_[first, len(rows)])
    slot = np.arange(len(rows)) - np.repeat(first, counts)
    dense = np.full((len(first), counts.max(), classes), -np.inf)
    dense[np.repeat(np.arange(len(first)), counts), slot] = scores
    flat = dense.reshape(len(first), -1)
    count = min(count, flat.shape[1])
    # What is equal to the last of the best may be in its place: sorted out by the order.
    bound = np.partition(flat, flat.shape[1] - count, axis=1)[:, flat.shape[1] - count]
    sequence, place = np.nonzero((flat >= bound[:, None]) & (flat > -np.inf))
    value = flat[sequence, place]
    order = np.lexsort((place, -value, sequence))
    sequence, place, value = sequence[order], place[order], value[order]
    begin = np.searchsorted(sequence, np.arange(len(first)))
    kept = np.arange(len(sequence)) - begin[sequence] < count
    sequence, place, value = sequence[kept], place[kept], value[kept]
    return first[sequence] + place // classes, place % classes, value


def _one_by_one(
    pick: Callable[[npt.NDArray[np.float64]], Tokens],
    model: Model,
    memory: Array,
    memory_lengths: Any,
    bos: int,
    eos: int,
    max_len: int,
    state: Any,
    constraint: Constraint | None,
) -> Decoded:
    """Decode with one hypothesis for each sequence."""
    run = _Run(model, memory, memory_lengths, bos, eos, max_len, state, constraint)
    rows, prefixes, totals = run.begin()
    complete: list[list[tuple[float, Tokens]]] = [[] for _ in range(run.batch)]
    for step in range(run.max_len):
        if not len(rows):
            break
        logp, _ = run.advance(rows, prefixes)
        possible = np.flatnonzero(logp.max(axis=1) > -np.inf)
        tokens = pick(logp[possible])
        totals = totals[possible] + logp[possible, tokens]
        prefixes = np.column_stack((prefixes[possible], tokens))
        ended = (tokens == run.eos) | (step + 1 == run.max_len)
        for i in np.flatnonzero(ended):
            complete[rows[possible[i]]].append((float(totals[i]), prefixes[i]))
        going = possible[~ended]
        rows, prefixes, totals = rows[going], prefixes[~ended], totals[~ended]
        run.select(going)
    found = run.ranked(complete, 1)
    return Decoded(found.tokens[:, 0], found.lengths[:, 0], found.scores[:, 0])


class _Run:
    """One call: the model as a step, and what all ways of decoding share."""

    def __init__(
        self,
        model: Model,
        memory: Array,
        memory_lengths: Any,
        bos: int,
        eos: int,
        max_len: int,
        state: Any,
        constraint: Constraint | None,
    ) -> None:
        self.bos, self.eos = check_size("bos", bos, 0), check_size("eos", eos, 0)
        self.max_len = check_size("max_len", max_len)
        if not isinstance(memory, np.ndarray) or memory.ndim != 3:
            got = memory.shape if isinstance(memory, np.ndarray) else type(memory).__name__
            raise (ValueError if isinstance(memory, np.ndarray) else TypeError)(
                f"memory: expected a numpy.ndarray (S, B, M), got {got}"
            )
        if constraint is not None and not callable(constraint):
            raise TypeError(f"constraint: expected a function or None, got {type(constraint).__name__}")
        self.constraint = constraint
        self.batch = memory.shape[1]
        self.memory_lengths = None if memory_lengths is None else np.asarray(memory_lengths)
        self.state = state
        if callable(model) and not isinstance(model, Module):
            self.step: Step = model
            return
        parts = model if isinstance(model, tuple) else ()
        if len(parts) != 3 or not isinstance(parts[1], AttentionDecoder):
            raise TypeError(
                "model: expected (embedding, AttentionDecoder, head) or a function "
                f"step(tokens, state, rows), got {type(model).__name__}"
            )
        self.step = _decoder_step(*parts, memory, memory_lengths)
        if state is not None:
            several = isinstance(state, tuple)
            for part in state if several else (state,):
                check_array("state", part, (1, self.batch, parts[1].hidden_size), parts[1].dtype, "(1, B, H)")
            self.state = tuple(part[0] for part in state) if several else state[0]

    def begin(self) -> tuple[Tokens, Tokens, npt.NDArray[np.float64]]:
        """Return the sequence, the tokens and the log probability of each first hypothesis."""
        return np.arange(self.batch), np.empty((self.batch, 0), np.int64), np.zeros(self.batch)

    def advance(self, rows: Tokens, prefixes: Tokens) -> tuple[npt.NDArray[np.float64], Array | None]:
        """Return log probabilities (N, V), -inf where the constraint forbids, and alpha."""
        tokens = prefixes[:, -1].copy() if prefixes.shape[1] else np.full(len(rows), self.bos)
        results = self.step(tokens, self.state, rows)
        if not isinstance(results, tuple) or len(results) not in (2, 3):
            raise TypeError("model: expected a step that returns logits and the state, or alpha besides")
        logits = np.asarray(results[0])
        if logits.ndim != 2 or len(logits) != len(rows) or logits.shape[1] <= self.eos:
            raise ValueError(
                f"model: expected logits (N, V) with N = {len(rows)} and V > eos = {self.eos}, "
                f"got {logits.shape}"
            )
        self.state = results[1]
        logp = _log_softmax(logits)
        if self.constraint is not None:
            allowed = np.asarray(self.constraint(prefixes, rows))
            if allowed.dtype != np.bool_ or allowed.shape != logp.shape:
                raise ValueError(
                    f"constraint: expected a bool array (N, V) = {logp.shape}, "
                    f"got {allowed.dtype} {allowed.shape}"
                )
            logp[~allowed] = -np.inf
        return logp, results[2] if len(results) == 3 else None

    def select(self, places: Tokens) -> None:
        """Let the state be that of these hypotheses."""
        self.state = _taken(self.state, places)

    def ranked(self, complete: list[list[tuple[float, Tokens]]], count: int) -> Decoded:
        longest = max((len(tokens) for found in complete for _, tokens in found), default=0)
        tokens = np.full((self.batch, count, longest), self.eos)
        lengths = np.zeros((self.batch, count), np.int64)
        scores = np.full((self.batch, count), -np.inf)
        for row, found in enumerate(complete):
            # In the order in which they were found where they are equal.
            for i, (score, own) in enumerate(sorted(found, key=lambda pair: -pair[0])[:count]):
                tokens[row, i, : len(own)] = own
                lengths[row, i] = len(own) - (len(own) > 0 and own[-1] == self.eos)
                scores[row, i] = score
        return Decoded(tokens, lengths, scores)


def _decoder_step(
    embedding: Module, decoder: AttentionDecoder, head: Module, memory: Array, memory_lengths: Any
) -> Step:
    stream: DecoderStream = decoder.stream(memory, memory_lengths)

    def step(tokens: Tokens, state: Any, rows: Tokens) -> tuple[Any, ...]:
        several = isinstance(state, tuple)
        stream.state = None
        if state is not None:
            stream.state = tuple(part[None] for part in state) if several else state[None]
        y, alpha = stream(embedding(tokens), rows)
        after = stream.state
        kept = tuple(part[0] for part in after) if isinstance(after, tuple) else after[0]  # type: ignore[index]
        return head(y), kept, alpha

    return step


def _taken(state: Any, places: Tokens) -> Any:
    """Return a state with these places of the first axis of all its arrays."""
    if state is None:
        return None
    if isinstance(state, dict):
        return {name: _taken(part, places) for name, part in state.items()}
    if isinstance(state, (tuple, list)):
        return type(state)(_taken(part, places) for part in state)
    return state[places]
