"""One call of decoding: the model as a step, and the choice of continuations and of results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.checks import check_size
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.layers import Linear
from fusedrnn.nn.module import Module
from fusedrnn.sequence.attention import AttentionDecoder
from fusedrnn.sequence.decoder_stream import Carry, DecoderStream

Tokens: TypeAlias = npt.NDArray[np.int64]
# step(tokens (N,), state, rows (N,)) -> logits (N, V) and the state, or logits, the state and alpha (N, S).
Step: TypeAlias = Callable[[Tokens, Any, Tokens], "tuple[Any, ...]"]
Model: TypeAlias = "Step | tuple[Module, AttentionDecoder, Module]"
# Hypotheses that are complete: their sequences (k,), tokens (k, n) and scores (k,).
Complete: TypeAlias = "tuple[Tokens, Tokens, npt.NDArray[np.float64]]"
# constraint(prefixes (N, t), rows (N,)) -> bool (N, V), which tokens may come next.
Constraint: TypeAlias = Callable[[Tokens, Tokens], npt.NDArray[np.bool_]]


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


class Carried(NamedTuple):
    """The state of a decoder: what its stream carries, and which rows of it the hypotheses have."""

    carry: Carry | None
    places: Tokens | None


class Run:
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
        width: int,
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
        self._native: Callable[[int, Array, int], tuple[Array, ...]] | None = None
        if callable(model) and not isinstance(model, Module):
            self.step: Step = model
            return
        parts = model if isinstance(model, tuple) else ()
        if len(parts) != 3 or not isinstance(parts[1], AttentionDecoder):
            raise TypeError(
                "model: expected (embedding, AttentionDecoder, head) or a function "
                f"step(tokens, state, rows), got {type(model).__name__}"
            )
        embedding, decoder, head = parts
        table: Array | None = None
        # Worth it where a few steps read as many rows as there are tokens; what does not fit, a step refuses.
        if (
            type(embedding) is Embedding
            and embedding.num_embeddings <= 8 * self.batch * width
            and (embedding.embedding_dim, embedding.dtype) == (decoder.input_size, decoder.dtype)
        ):
            check_size("bos", bos, 0, embedding.num_embeddings - 1)
            table = embedding._kept_parameters()["weight"]
        prepared = decoder._prepare(memory, memory_lengths, table, width > 1)
        stream = DecoderStream(decoder, prepared)
        stream._set(state, self.batch)
        self.state = Carried(stream._carry, None)
        if constraint is None and _is_native(embedding, decoder, head, max(self.bos, self.eos)):
            weights = head._kept_parameters()
            inputs = embedding._kept_parameters()["weight"]
            sampler = _core.decoder_sampling(
                weights["weight"], weights.get("bias"), inputs, 0.0, 0, 0, decoder.compute
            )
            first = decoder._first(decoder._states("state", state, self.batch))
            self._native = partial(_core.decoder_search, prepared, sampler, first, self.bos, self.eos)
        self.step = _decoder_step(embedding, stream, head, 0 if table is None else len(table))

    def search(self, beam: int, n_best: int, divisor: Callable[[int], float]) -> Decoded | None:
        """Return what the kernels find in one call; None where a search has to go step by step.

        A score is a log probability over divisor(how many tokens).
        """
        if self._native is None or beam > _core.SEARCH_BEAM or beam * self.max_len > _core.SEARCH_NODES:
            return None
        divisors = np.array([divisor(n) for n in range(1, self.max_len + 1)])
        tokens, lengths, scores, failed = self._native(beam, divisors, n_best)
        if (failed >= 0).any():
            step = failed[failed >= 0].min()
            raise _no_number(int(np.flatnonzero(failed == step)[0]), int(step))
        return Decoded(tokens, lengths, scores)

    def begin(self) -> tuple[Tokens, Tokens, npt.NDArray[np.float64]]:
        """Return the sequence, the tokens and the log probability of each first hypothesis."""
        return np.arange(self.batch), np.empty((self.batch, 0), np.int64), np.zeros(self.batch)

    def advance(
        self, rows: Tokens, prefixes: Tokens
    ) -> tuple[Array, npt.NDArray[np.bool_] | None, Array | None]:
        """Return logits (N, V), which tokens the constraint allows (None for all), and alpha."""
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
        # All of a row may be -inf: nothing follows it.
        if logits.size and not (below := logits.max(axis=1) < np.inf).all():
            raise _no_number(int(rows[below.argmin()]), prefixes.shape[1])
        self.state = results[1]
        allowed: npt.NDArray[np.bool_] | None = None
        if self.constraint is not None:
            allowed = np.asarray(self.constraint(prefixes, rows))
            if allowed.dtype != np.bool_ or allowed.shape != logits.shape:
                raise ValueError(
                    f"constraint: expected a bool array (N, V) = {logits.shape}, "
                    f"got {allowed.dtype} {allowed.shape}"
                )
        return logits, allowed, results[2] if len(results) == 3 else None

    def select(self, places: Tokens) -> None:
        """Let the state be that of these hypotheses."""
        if isinstance(self.state, Carried):
            # The next step finds them, and computes once what those of the same place share.
            before = self.state.places
            self.state = Carried(self.state.carry, places if before is None else before[places])
        else:
            self.state = taken(self.state, places)

    def ranked(self, complete: list[Complete], count: int) -> Decoded:
        """Return the best complete hypotheses; of equals those that were found first."""
        lengths = np.zeros((self.batch, count), np.int64)
        scores = np.full((self.batch, count), -np.inf)
        if not complete:
            return Decoded(np.empty((self.batch, count, 0), np.int64), lengths, scores)
        rows = np.concatenate([found[0] for found in complete])
        values = np.concatenate([found[2] for found in complete])
        padded = np.full((len(rows), max(found[1].shape[1] for found in complete)), self.eos)
        ends = np.cumsum([len(found[0]) for found in complete])
        sizes, whole = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        for end, (_, own, _) in zip(ends, complete, strict=True):
            place = slice(end - len(own), end)
            padded[place, : own.shape[1]] = own
            sizes[place], whole[place] = own.shape[1] - (own[:, -1] == self.eos), own.shape[1]
        order = np.lexsort((-values, rows))
        first = np.searchsorted(rows[order], np.arange(self.batch))
        rank = np.arange(len(rows)) - first[rows[order]]
        order, rank = order[rank < count], rank[rank < count]
        longest = whole[order].max(initial=0)
        tokens = np.full((self.batch, count, longest), self.eos)
        found = rows[order], rank
        tokens[found], lengths[found], scores[found] = padded[order, :longest], sizes[order], values[order]
        return Decoded(tokens, lengths, scores)


def _no_number(sequence: int, step: int) -> ValueError:
    return ValueError(
        "model: expected logits that are numbers or -inf, got NaN or inf "
        f"for sequence {sequence} in step {step}"
    )


def _is_native(embedding: Module, decoder: AttentionDecoder, head: Module, token: int) -> bool:
    """Return whether the kernels have all of the model; `token` is the largest that is known."""
    options = decoder._options
    return (
        type(embedding) is Embedding
        and type(head) is Linear
        and embedding.device == head.device == "cpu"
        and embedding.dtype == head.dtype == decoder.dtype
        and head.compute == decoder.compute
        and (embedding.embedding_dim, head.in_features) == (decoder.input_size, decoder.hidden_size)
        and token < embedding.num_embeddings == head.out_features
        and decoder.num_layers == 1
        and options.score in ("additive", "dot", "general")
        and not options.coverage
    )


def _decoder_step(embedding: Module, stream: DecoderStream, head: Module, projected: int) -> Step:
    """Return a decoder as a step; so many tokens are in the table of the stream's memory."""

    def step(tokens: Tokens, state: Carried, rows: Tokens) -> tuple[Any, ...]:
        stream._carry, places = state
        if projected and (most := int(tokens.max())) >= projected:
            raise ValueError(f"model: expected logits of the embedding's V = {projected}, got token {most}")
        if projected:
            y, alpha = stream._advance(tokens, rows, places)
        else:
            if places is not None:
                stream.select(places)
            y, alpha = stream(embedding(tokens), rows)
        return head(y), Carried(stream._carry, None), alpha

    return step


def taken(state: Any, places: Tokens) -> Any:
    """Return a state with these places of the first axis of all its arrays."""
    if state is None:
        return None
    if isinstance(state, dict):
        return {name: taken(part, places) for name, part in state.items()}
    if isinstance(state, (tuple, list)):
        return type(state)(taken(part, places) for part in state)
    return state[places]


def concatenated(first: Any, second: Any) -> Any:
    """Return a state of the hypotheses of two states, of one kind."""
    if first is None:
        return None
    if isinstance(first, dict):
        return {name: concatenated(part, second[name]) for name, part in first.items()}
    if isinstance(first, (tuple, list)):
        return type(first)(concatenated(*parts) for parts in zip(first, second, strict=True))
    return np.concatenate((first, second))


def log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    x -= np.log(np.exp(x).sum(axis=1, keepdims=True))
    return x


def best_continuations(
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
