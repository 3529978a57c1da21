"""Prefix beam search over CTC outputs that come piece by piece, with a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.checks import check_number, check_size
from fusedrnn.sequence.decoding import log_softmax
from fusedrnn.sequence.host import host_array

# lm(labels (n,)) -> log probability (V,) of each label after these.
LanguageModel: TypeAlias = Callable[[npt.NDArray[np.int64]], Any]


class CTCStream:
    """Prefix beam search of one sequence whose CTC outputs come piece by piece.

    `stream(logits)` takes the next steps and returns the best labels so far; pieces of any sizes give what
    one call over all steps gives. Each label sequence y that is kept has the probability of all of its paths
    that went through the beam, and the beam is ordered by

        score(y) = log P_ctc(y | x) + alpha sum over k of log P_lm(y_k | y_1 .. y_(k-1)) + beta |y|

    Args:
        beam: label sequences that are kept, >= 1.
        blank: class that stands for no label.
        lm: function lm(labels (n,)) that returns log probabilities (V,), of each label to come after these;
            what it says of the blank is not read. It is asked once for every sequence that is kept. None for
            no language model.
        alpha: weight of the language model, >= 0.
        beta: what every label adds, against the language model's liking for short sequences.

    Attributes:
        steps: how many steps came so far.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Hannun et al. 2014, arXiv:1408.2873v2, with log probabilities weighed as there.
    """

    def __init__(
        self,
        beam: int = 16,
        blank: int = 0,
        *,
        lm: LanguageModel | None = None,
        alpha: float = 0.5,
        beta: float = 0.0,
    ) -> None:
        self.beam = check_size("beam", beam)
        self.blank = check_size("blank", blank, 0)
        if lm is not None and not callable(lm):
            raise TypeError(f"lm: expected a function lm(labels) or None, got {type(lm).__name__}")
        self.lm = lm
        self.alpha, self.beta = check_number("alpha", alpha), check_number("beta", beta, -np.inf)
        self.reset()

    def reset(self) -> None:
        """Begin a new sequence."""
        self.steps = 0
        # Of each prefix: its labels, the log probability of its paths that end in a blank, and in its last
        # label, what language model and length add, and what they add for every label to come, (V,) or None.
        self._prefixes: list[tuple[int, ...]] = [()]
        self._blanks, self._labels, self._bonus = np.zeros(1), np.full(1, -np.inf), np.zeros(1)
        self._after: list[Any] = [None]

    def __call__(self, logits: Array) -> tuple[npt.NDArray[np.int64], float]:
        """Return the best labels (L,) so far and their score.

        Args:
            logits: (T, V), the next steps, float32 or float64; T may be 0.

        Raises:
            TypeError: logits of the wrong kind or dtype.
            ValueError: logits or what lm returns of the wrong shape, or the blank is no class.
            RuntimeError: an array on a GPU.
        """
        x = host_array("logits", logits)
        if x.dtype not in (np.float32, np.float64):
            raise TypeError(f"logits: expected float32 or float64, got {x.dtype}")
        if x.ndim != 2 or x.shape[1] <= self.blank:
            raise ValueError(f"logits: expected shape (T, V) with V > blank = {self.blank}, got {x.shape}")
        with np.errstate(invalid="ignore"):  # NaN is passed on
            for row in log_softmax(x):
                self._step(row)
                self.steps += 1
        return self.best(1)[0]

    def best(self, count: int = 1) -> list[tuple[npt.NDArray[np.int64], float]]:
        """Return the best label sequences so far, at most `count`, each with its score.

        Raises:
            TypeError, ValueError: count is no int >= 1.
        """
        with np.errstate(invalid="ignore"):
            scores = np.logaddexp(self._blanks, self._labels) + self._bonus
        order = np.argsort(-scores, kind="stable")[: check_size("count", count)]
        return [(np.array(self._prefixes[i], np.int64), float(scores[i])) for i in order]

    def _step(self, logp: npt.NDArray[np.float64]) -> None:
        prefixes = self._prefixes
        # What grows into a prefix that is there is one with it.
        places = {prefix: i for i, prefix in enumerate(prefixes)}
        last = np.array([prefix[-1] if prefix else -1 for prefix in prefixes])
        parents = np.array([places.get(prefix[:-1], -1) if prefix else -1 for prefix in prefixes])
        added = self._added(len(logp))
        sources, labels, self._blanks, self._labels = _core.ctc_prefix_step(
            logp, self._blanks, self._labels, last, parents, self._bonus, added, self.blank, self.beam
        )
        if not sources.size:  # a NaN, or nothing that is possible
            self._prefixes, self._after = [()], [None]
            self._blanks = self._labels = np.full(1, np.nan)
            self._bonus = np.zeros(1)
            return
        self._bonus = self._bonus[sources] + np.where(labels < 0, 0.0, added[sources, labels])
        pairs = list(zip(sources.tolist(), labels.tolist(), strict=True))
        self._prefixes = [prefixes[i] if c < 0 else (*prefixes[i], c) for i, c in pairs]
        self._after = [self._after[i] if c < 0 else None for i, c in pairs]

    def _added(self, classes: int) -> npt.NDArray[np.float64]:
        """Return what each label adds to the score of each prefix (K, V)."""
        if self.lm is None:
            return np.full((len(self._prefixes), classes), self.beta)
        new = [i for i, after in enumerate(self._after) if after is None]
        if new:
            found = np.stack([self._asked(self._prefixes[i], classes) for i in new])
            added = self.alpha * found + self.beta
            added[:, self.blank] = 0.0
            if not added.max() < np.inf:  # NaN is not, either
                raise ValueError("lm: expected log probabilities, got NaN or infinity")
            for i, row in zip(new, added, strict=True):
                self._after[i] = row
        return np.stack(self._after)

    def _asked(self, prefix: tuple[int, ...], classes: int) -> npt.NDArray[np.float64]:
        """Return what the language model says comes after a prefix (V,)."""
        assert self.lm is not None
        found = np.asarray(self.lm(np.array(prefix, np.int64)), np.float64)
        if found.shape != (classes,):
            raise ValueError(f"lm: expected log probabilities (V,) = ({classes},), got {found.shape}")
        return found

    def __repr__(self) -> str:
        model = "" if self.lm is None else f", lm={self.lm!r}, alpha={self.alpha}, beta={self.beta}"
        return f"CTCStream(beam={self.beam}, blank={self.blank}{model}, steps={self.steps})"
