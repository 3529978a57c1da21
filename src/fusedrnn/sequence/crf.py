"""Linear-chain conditional random field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_flag, check_size, resolve_dtype
from fusedrnn.init import Seed, check_method, make_rng
from fusedrnn.nn.module import Module
from fusedrnn.sequence.constraints import allowed_tags
from fusedrnn.sequence.host import host_array, integers, reduced
from fusedrnn.training.losses import Reduction, check_reduction

_NAMES = ("start_transitions", "transitions", "end_transitions")


class CRF(Module):
    """Conditional random field over sequences of tags: a loss and a decoder for emissions of a network.

        score(y) = start_transitions[y_0] + sum_t emissions[t, y_t]
                   + sum_t transitions[y_(t-1), y_t] + end_transitions[y_(T-1)]
        p(y) = exp(score(y)) / sum over all y' of exp(score(y'))

    Parameters, with pytorch-crf's names and shapes, initialised from U(-0.1, 0.1): start_transitions (K,),
    transitions (K, K) [from, to], end_transitions (K,). Calls are `loss`, `decode` and `marginals`, on the
    CPU; there is no `forward`.

    Args:
        num_tags: K >= 1.
        constraints: which tags may follow which; others have probability 0, whatever their weights. "bio":
            tag 0 is O, then come B and I of each type, K = 1 + 2n. "bioes": tag 0 is O, then B, I, E and S of
            each type, K = 1 + 4n. Or a bool array (K, K) [from, to]. None allows all.
        batch_first: emissions are (B, T, K) and tags (B, T) instead of (T, B, K) and (T, B).
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here; None leaves all parameters at zero.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Lafferty, McCallum and Pereira 2001, Conditional Random Fields.
    """

    _fixed = frozenset(("num_tags",))
    _dtype: np.dtype[Any]

    def __init__(
        self,
        num_tags: int,
        constraints: Literal["bio", "bioes"] | npt.NDArray[np.bool_] | None = None,
        batch_first: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        self.num_tags = check_size("num_tags", num_tags)
        self.batch_first = check_flag("batch_first", batch_first)
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        size = self.num_tags
        self._declare(dict(zip(_NAMES, ((size,), (size, size), (size,)), strict=True)), found)
        self._allowed = allowed_tags(constraints, self.num_tags)
        self._constraints = constraints if isinstance(constraints, str) or constraints is None else "matrix"
        for name in _NAMES if method else ():
            self._own[name] = rng.uniform(-0.1, 0.1, self._shapes[name])

    @overload
    def loss(
        self,
        emissions: Array,
        tags: npt.ArrayLike,
        lengths: npt.ArrayLike | None = ...,
        reduction: Literal["mean", "sum"] = ...,
    ) -> tuple[float, Array]: ...
    @overload
    def loss(
        self,
        emissions: Array,
        tags: npt.ArrayLike,
        lengths: npt.ArrayLike | None = ...,
        *,
        reduction: Literal["none"],
    ) -> tuple[Array, Array]: ...
    def loss(
        self,
        emissions: Array,
        tags: npt.ArrayLike,
        lengths: npt.ArrayLike | None = None,
        reduction: Reduction = "mean",
    ) -> tuple[float | Array, Array]:
        """Return the negative log likelihood of tags and its gradient; add those of the parameters to grads.

        loss_b = log sum over y' of exp(score(y')) - score(tags[:, b]); the gradient of an emission is the
        marginal probability of its tag, minus 1 where the tag is the given one.

        Args:
            emissions: (T, B, K) in the module's dtype.
            tags: (T, B) of an integer dtype, each in 0..K-1 and allowed by the constraints; past a sequence's
                end anything.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None. The loss of no steps is 0.
            reduction: "mean" over the sequences, "sum" or "none".

        Returns:
            loss: float, or (B,) with reduction="none"; the mean over no sequences is NaN.
            demissions: (T, B, K), the gradient of the loss, with reduction="none" of its sum; 0 past a
                sequence's end.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range, or tags that the constraints forbid.
            RuntimeError: an array, or this module, on a GPU.
        """
        return self._loss(emissions, tags, lengths, reduction, self._sums())

    def _loss(
        self, emissions: Any, tags: Any, lengths: Any, reduction: Reduction, sums: Mapping[str, Array]
    ) -> tuple[float | Array, Array]:
        """Do what `loss` does, and add to these gradients of the parameters in place of `grads`."""
        check_reduction(reduction)
        x, counts = self._inputs("loss", emissions, lengths)
        labels = self._time_major("tags", integers("tags", tags), 2)
        start, transitions, end = self._weights()
        sums = sums or {name: np.zeros_like(self._own[name]) for name in _NAMES}
        dstart, dtransitions, dend = (sums[name] for name in _NAMES)
        with self._turn.take():
            losses, demissions = _core.crf_loss(
                x, labels, counts, start, transitions, end, dstart, dtransitions, dend, reduction == "mean"
            )
        return reduced(losses, reduction, x.dtype), self._as_given(demissions)

    def decode(
        self, emissions: Array, lengths: npt.ArrayLike | None = None, n_best: int = 1
    ) -> tuple[npt.NDArray[np.int64], Array]:
        """Return the best tags and their scores, by the Viterbi algorithm.

        Args:
            emissions: (T, B, K) in the module's dtype.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.
            n_best: how many paths, >= 1.

        Returns:
            tags: (T, B) int64, -1 past a sequence's end; with n_best above 1 (N, T, B), the best first, and
                -1 where there are fewer paths.
            scores: (B,) score(tags), which is not normalised; 0 for no steps, -inf where the constraints
                allow no path; with n_best above 1 (N, B), and -inf where there are fewer.

        Raises:
            TypeError, ValueError, RuntimeError: as `loss`.
        """
        x, counts = self._inputs("decode", emissions, lengths)
        if check_size("n_best", n_best) == 1:
            tags, scores = _core.crf_decode(x, counts, *self._weights())
            return self._as_given(tags), scores.astype(x.dtype, copy=False)
        start, transitions, end = self._weights()
        tags, scores = _core.crf_nbest(x, counts, start, transitions, end, n_best)
        if self.batch_first:
            tags = np.ascontiguousarray(tags.swapaxes(1, 2))
        return tags, scores.astype(x.dtype, copy=False)

    def marginals(self, emissions: Array, lengths: npt.ArrayLike | None = None) -> Array:
        """Return the probability of each tag at each step (T, B, K), 0 past a sequence's end.

        Args:
            emissions: (T, B, K) in the module's dtype.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.

        Raises:
            TypeError, ValueError, RuntimeError: as `loss`.
        """
        x, counts = self._inputs("marginals", emissions, lengths)
        return self._as_given(_core.crf_marginals(x, counts, *self._weights())[0])

    def _inputs(self, what: str, emissions: Any, lengths: Any) -> tuple[Array, npt.NDArray[np.int64] | None]:
        """Return emissions (T, B, K) and lengths as the kernels take them."""
        self._require_cpu(f"CRF.{what}")
        x = self._time_major("emissions", host_array("emissions", emissions), 3)
        check_array("emissions", x, (*x.shape[:2], self.num_tags), self._dtype, "(T, B, K)")
        return x, None if lengths is None else integers("lengths", lengths)

    def _time_major(self, name: str, array: Array, ndim: int) -> Array:
        if array.ndim != ndim:
            axes = ("B, T" if self.batch_first else "T, B") + ", K" * (ndim - 2)
            raise ValueError(f"{name}: expected shape ({axes}), got {array.shape}")
        return np.ascontiguousarray(array.swapaxes(0, 1)) if self.batch_first else array

    def _as_given(self, array: Array) -> Array:
        return np.ascontiguousarray(array.swapaxes(0, 1)) if self.batch_first else array

    def _weights(self) -> list[Array]:
        """Return start, transitions and end, -inf where the constraints forbid."""
        own = [self._own[name] for name in _NAMES]
        if self._allowed is None:
            return own
        never = self._dtype.type(-np.inf)
        return [np.where(mask, array, never) for mask, array in zip(self._allowed, own, strict=True)]

    def _extra_repr(self) -> str:
        constraints = "" if self._constraints is None else f", constraints={self._constraints!r}"
        first = ", batch_first=True" if self.batch_first else ""
        dtype = "" if self._dtype == np.float32 else f", dtype='{self._dtype}'"
        return f"{self.num_tags}{constraints}{first}{dtype}"
