"""Preparing sequences: scaling, missing values, windows of long series, batches by length, and tokens."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, refuse_mask
from fusedrnn.checks import check_choice, check_flag, check_number, check_size, kind_error
from fusedrnn.listing import Listed

Sequences = TypeVar("Sequences", Array, list[Array])

__all__ = ["Imputed", "Scaler", "Tokenizer", "Vocabulary", "buckets", "impute", "windows"]

# Batches are cut from so many times their size of shuffled sequences, sorted by length.
_POOL = 16


class Scaler(Listed):
    """Mean 0 and standard deviation 1: y = (x - mean) / deviation.

    Each feature gets the mean and deviation of all steps that `fit` saw, or, per "series", those of its own
    series, wherever it comes from. A deviation of 0 counts as 1; NaN counts as missing, and stays.

    Args:
        per: "feature" or "series".

    Raises:
        ValueError: per is something else.

    Attributes:
        mean: (I,) float64, after `fit`, per feature.
        deviation: (I,) float64, after `fit`, per feature.
    """

    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]

    def __init__(self, per: Literal["feature", "series"] = "feature") -> None:
        self.per = check_choice("per", per, ("feature", "series"))

    def fit(self, sequences: Array | Sequence[Array]) -> Scaler:
        """Take mean and deviation from sequences; return self.

        Args:
            sequences: a list of arrays (T, I), an array (N, T, I), or one (T, I).

        Raises:
            TypeError: not arrays.
            ValueError: other shapes, or no sequences.
        """
        steps = np.concatenate([x.reshape(-1, x.shape[-1]) for x in _arrays(sequences)])
        if self.per == "feature":
            self.mean, self.deviation = _moments(steps)
        return self

    def transform(self, sequences: Sequences) -> Sequences:
        """Return scaled copies, laid out as they are and of their dtype.

        Args:
            sequences: as in `fit`.

        Raises:
            TypeError: not arrays.
            ValueError: other shapes, or a number of features that is not that of `fit`.
            RuntimeError: `fit` was not called.
        """
        found: Sequences = self._map(sequences, lambda x, mean, deviation: (x - mean) / deviation)
        return found

    def fit_transform(self, sequences: Sequences) -> Sequences:
        """Return `fit(sequences).transform(sequences)`."""
        return self.fit(sequences).transform(sequences)

    def inverse_transform(self, sequences: Sequences) -> Sequences:
        """Return the sequences that `transform`, per feature, made these of; raises what it does."""
        if self.per == "series":
            raise ValueError("per: expected 'feature', got 'series', whose means are not kept")
        found: Sequences = self._map(sequences, lambda x, mean, deviation: x * deviation + mean)
        return found

    def _map(self, sequences: Any, function: Any) -> Any:
        found = []
        for x in _arrays(sequences, allow_none=True):
            if self.per == "series":
                mean, deviation = _moments(x)
            elif not hasattr(self, "mean"):
                raise RuntimeError("Scaler: expected one after fit, got one before")
            else:
                mean, deviation = self.mean, self.deviation
            if x.shape[-1] != len(mean):
                raise ValueError(f"sequences: expected I = {len(mean)} features, got shape {x.shape}")
            found.append(function(x, mean, deviation).astype(x.dtype, copy=False))
        if not isinstance(sequences, np.ndarray):
            return found
        return found[0] if sequences.ndim == 2 else np.stack(found) if found else sequences.copy()

    def __repr__(self) -> str:
        return f"Scaler({self.per!r})"


def _moments(steps: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and deviation of each feature, 0 and 1 where nothing is known."""
    mean, deviation = moments(steps, 0)
    # What rounding leaves of a constant is none.
    count = np.maximum(np.count_nonzero(~np.isnan(steps), axis=0), 1)
    tiny = np.finfo(np.float64).eps * count * np.abs(mean)
    return mean, np.where(deviation > tiny, deviation, 1.0)


def moments(
    values: Array, axis: int, keepdims: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and standard deviation of what is not NaN, 0 where that is nothing, of any magnitude."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0).astype(np.float64, copy=False)
    count = np.maximum(known.sum(axis=axis, keepdims=True), 1)
    # By a power of two, which changes no digit: neither the sum nor the squares leave the range.
    power = np.frexp(np.abs(filled).max(axis=axis, keepdims=True, initial=0.0))[1]
    filled = np.ldexp(filled, -power)
    mean = filled.sum(axis=axis, keepdims=True) / count
    square = np.square(np.where(known, filled - mean, 0.0)).sum(axis=axis, keepdims=True)
    found = np.ldexp(mean, power), np.ldexp(np.sqrt(square / count), power)
    return found if keepdims else (found[0].squeeze(axis), found[1].squeeze(axis))


def _arrays(sequences: Any, allow_none: bool = False) -> list[Array]:
    if isinstance(sequences, np.ndarray):
        sequences = [sequences] if sequences.ndim == 2 else list(sequences)
    if not np.iterable(sequences):
        raise TypeError(f"sequences: expected arrays (T, I), got {type(sequences).__name__}")
    found = list(sequences)
    if not found and not allow_none:
        raise ValueError("sequences: expected at least one array, got none")
    for index, x in enumerate(found):
        if not isinstance(x, np.ndarray):
            raise kind_error(f"sequences[{index}]", x, "a numpy.ndarray")
        refuse_mask(f"sequences[{index}]", x)
        if x.ndim != 2 or x.shape[1] != found[0].shape[1]:
            raise ValueError(f"sequences[{index}]: expected shape (T, I), got {x.shape}")
        if x.dtype.kind != "f":
            raise TypeError(f"sequences[{index}]: expected floats, got {x.dtype}; use .astype('float32')")
    return found


def windows(series: Array, size: int, step: int = 1, horizon: int = 0) -> tuple[Array, Array]:
    """Return windows of a series and the values that follow each: views, which are read-only.

    Args:
        series: (T, ...).
        size: steps of a window, >= 1.
        step: steps from one window to the next, >= 1.
        horizon: steps after a window that are returned beside it, >= 0.

    Returns:
        x: (N, size, ...), N = (T - size - horizon) // step + 1, or 0 where the series is too short.
        y: (N, horizon, ...).

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """
    if not isinstance(series, np.ndarray):
        raise kind_error("series", series, "a numpy.ndarray")
    if series.ndim == 0:
        raise ValueError("series: expected shape (T, ...), got ()")
    size, step = check_size("size", size), check_size("step", step)
    whole = size + check_size("horizon", horizon, 0)
    if len(series) < whole:
        empty = np.empty((0, whole, *series.shape[1:]), series.dtype)
        return empty[:, :size], empty[:, size:]
    found = np.lib.stride_tricks.sliding_window_view(series, whole, axis=0)[::step]
    found = np.moveaxis(found, -1, 1)
    return found[:, :size], found[:, size:]


class Imputed(NamedTuple):
    """A series without gaps, and where it had them.

    Attributes:
        values: (..., T, I), with something in place of NaN.
        mask: (..., T, I) bool, true for what was there.
        since: (..., T, I) in the dtype of values: steps since a value was there, 0 where one is; before the
            first one, the number of steps so far.
    """

    values: Array
    mask: npt.NDArray[np.bool_]
    since: Array


def impute(series: Array, fill: float = 0.0, carry: bool = True) -> Imputed:
    """Put the value last seen in place of what is missing, NaN; say what was, and for how long.

    A network that gets all three, `np.concatenate(impute(x), axis=-1)`, tells a value from a guess.

    Args:
        series: (T, I), or several, (..., T, I), of floats.
        fill: what stands before the first value of a feature, and everywhere without `carry`; 0 is the mean
            behind a `Scaler`.
        carry: whether values are carried on.

    Returns:
        values, mask, since: as `Imputed` says.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: fewer than two axes.

    Paper: Che et al. 2016, Recurrent neural networks for multivariate time series with missing values,
        arXiv:1606.01865.
    """
    if not isinstance(series, np.ndarray):
        raise kind_error("series", series, "a numpy.ndarray")
    refuse_mask("series", series)
    if series.dtype.kind != "f":
        raise TypeError(f"series: expected floats, got {series.dtype}; use .astype('float32')")
    if series.ndim < 2:
        raise ValueError(f"series: expected shape (..., T, I), got {series.shape}")
    fill, carry = check_number("fill", fill, -np.inf), check_flag("carry", carry)
    most = float(np.finfo(series.dtype).max)
    if most < abs(fill) < np.inf:
        raise ValueError(f"fill: expected a number that {series.dtype} holds, got {fill}")
    mask = ~np.isnan(series)
    steps = np.arange(series.shape[-2])[:, None]
    last = np.maximum.accumulate(np.where(mask, steps, -1), axis=-2)  # the step that was seen last, or -1
    since = np.minimum(steps - last, most).astype(series.dtype)
    if carry and series.shape[-2]:
        values = np.take_along_axis(series, np.maximum(last, 0), axis=-2)
        values[last < 0] = fill
    else:
        values = np.where(mask, series, series.dtype.type(fill))
    return Imputed(values, mask, since)


def buckets(
    lengths: npt.ArrayLike, batch_size: int, seed: int = 0, epoch: int = 0, least: int = 1
) -> list[npt.NDArray[np.int64]]:
    """Return the indices of each batch of an epoch: sequences of about the same length, in random order.

    Sequences are shuffled, sorted by length among as many as 16 batches hold, cut into batches, and the
    batches shuffled; `Trainer` does so. The result depends on the arguments alone.

    Args:
        lengths: (N,) integers.
        batch_size: sequences in a batch, >= 1.
        seed: >= 0.
        epoch: >= 0.
        least: what would be left with fewer sequences goes to the batch before.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: one of another shape, or out of range.
    """
    sizes = np.asarray(lengths)
    if sizes.ndim != 1 or (sizes.size and sizes.dtype.kind not in "iu"):
        raise ValueError(f"lengths: expected integers (N,), got {sizes.dtype} {sizes.shape}")
    if sizes.size and sizes.min() < 0:
        raise ValueError(f"lengths: expected integers >= 0, got {sizes.min()}")
    batch_size, least = check_size("batch_size", batch_size), check_size("least", least, 0)
    rng = np.random.default_rng([check_size("seed", seed, 0), check_size("epoch", epoch, 0)])
    order = rng.permutation(len(sizes))
    found = []
    for pool in cut(order, _POOL * batch_size):
        if (sizes != sizes[0]).any():
            pool = pool[np.argsort(sizes[pool], kind="stable")]
        found += cut(pool, batch_size)
    if len(found) > 1 and len(found[-1]) < least:
        found[-2:] = [np.concatenate(found[-2:])]
    return [found[index] for index in rng.permutation(len(found))]


def cut(order: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    """Return pieces of a size, the last one maybe smaller."""
    return [order[start : start + size] for start in range(0, len(order), size)]


class Tokenizer(Listed):
    """A tokenizer of another library, used as a `Vocabulary`: of texts instead of lists of tokens.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, a `sentencepiece.SentencePieceProcessor`, or anything whose
            `encode(text)` gives numbers, or something with `ids`, and whose `decode(numbers)` a text.

    Raises:
        TypeError: it has no `encode`, `decode` or size.
    """

    def __init__(self, tokenizer: Any) -> None:
        sizes = [name for name in ("get_vocab_size", "get_piece_size") if hasattr(tokenizer, name)]
        if not (sizes and hasattr(tokenizer, "encode") and hasattr(tokenizer, "decode")):
            raise kind_error("tokenizer", tokenizer, "a tokenizer of tokenizers or sentencepiece")
        self.tokenizer = tokenizer
        self._size: str = sizes[0]

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """Return the numbers (T,) of a text.

        Raises:
            TypeError: it is none, or the tokenizer gives something else than numbers.
            ValueError: the tokenizer gives numbers beyond its size.
        """
        if not isinstance(text, str):
            raise kind_error("text", text, "a str")
        found = self.tokenizer.encode(text)
        numbers = np.asarray(getattr(found, "ids", found))
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise TypeError(
                f"tokenizer: expected numbers (T,) of its encode, got {numbers.dtype} {numbers.shape}"
            )
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise ValueError(
                f"tokenizer: expected numbers in [0, {len(self)}) of its encode, "
                f"got {numbers.min()}..{numbers.max()}"
            )
        return numbers.astype(np.int64)

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the text of numbers."""
        return str(self.tokenizer.decode([int(number) for number in numbers]))

    def __len__(self) -> int:
        """Numbers that there are, the size of an `Embedding`."""
        return int(getattr(self.tokenizer, self._size)())

    def __repr__(self) -> str:
        return f"Tokenizer(of {len(self)} tokens)"


class Vocabulary(Listed):
    """Numbers for tokens: 0 is padding, 1 any token that is not in it, the others follow by frequency.

    `vocabulary.encode(["the", "cat"])` gives an int64 array, `decode` the tokens again.

    Args:
        tokens: sequences of tokens (strings, or anything hashable), from which it is made.
        most: tokens that are kept, the most frequent ones, or None for all.
        least: occurrences of a token that is kept, >= 1.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    padding, unknown = 0, 1

    def __init__(
        self, tokens: Iterable[Iterable[Hashable]] = (), most: int | None = None, least: int = 1
    ) -> None:
        counts: dict[Hashable, int] = {}
        for sequence in tokens:
            for token in sequence:
                counts[token] = counts.get(token, 0) + 1
        least = check_size("least", least)
        # Equally frequent ones in the order in which they came.
        kept = sorted((token for token, count in counts.items() if count >= least), key=lambda t: -counts[t])
        self.tokens: list[Hashable] = kept if most is None else kept[: check_size("most", most, 0)]
        self._numbers: Mapping[Hashable, int] = {token: number for number, token in enumerate(self.tokens, 2)}

    def encode(self, sequence: Iterable[Hashable]) -> npt.NDArray[np.int64]:
        """Return the numbers (T,) of tokens."""
        return np.array([self._numbers.get(token, self.unknown) for token in sequence], np.int64)

    def decode(self, numbers: Iterable[int]) -> list[Hashable]:
        """Return the tokens of numbers, None for those that are none.

        Raises:
            IndexError: a number that is not in it.
        """
        known: list[Hashable] = [None, None, *self.tokens]
        given = list(numbers)
        for index, number in enumerate(given):
            if not 0 <= number < len(known):
                raise IndexError(f"numbers[{index}]: expected one in [0, {len(known)}), got {number}")
        return [known[number] for number in given]

    def __len__(self) -> int:
        """Numbers that there are, the size of an `Embedding`."""
        return len(self.tokens) + 2

    def __contains__(self, token: object) -> bool:
        return token in self._numbers

    def __repr__(self) -> str:
        return f"Vocabulary(of {len(self.tokens)} tokens)"


def __dir__() -> list[str]:
    return __all__
