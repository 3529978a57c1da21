"""SequenceTagger."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

import fusedrnn as fr
from fusedrnn.arrays import Array
from fusedrnn.checks import check_flag
from fusedrnn.estimators.base import SequenceEstimator
from fusedrnn.estimators.inputs import given_classes, refuse_missing
from fusedrnn.nn.activations import softmax


class SequenceTagger(SequenceEstimator):
    """A tag for each step: a recurrent network in both directions, a linear layer, and a CRF if asked for.

    y is a list of N sequences of tags, each as long as its sequence of X.

    Args:
        crf: whether a conditional random field scores neighbouring tags, and the best sequence is found.
        ARGUMENTS

    Raises:
        TypeError, ValueError: `fit` raises them, also for what was wrong here.

    Attributes:
        classes_: (K,) tags.
        model_: a `fusedrnn.Tagger`: the `network`, a `Sequential`, and the `crf`, or None.
        history_: figures of each epoch.
        n_features_in_: features of X.
        n_iter_: epochs so far.
    """

    _per_step = True
    crf: bool

    def __init__(
        self,
        crf: bool = False,
        cell: str = "lstm",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        *,
        lr: float = 0.01,
        schedule: str | None = "one_cycle",
        epochs: int = 20,
        batch_size: int = 32,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        scale: bool = True,
        embedding_size: int = 32,
        min_count: int = 1,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self._set_parameters(locals())

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> SequenceTagger:
        """Make one pass over sequences, from the present weights; return self.

        Args:
            X: as in `fit`.
            y: N sequences of tags.
            classes: all tags, which the first call needs unless its y has them all.

        Raises:
            TypeError, ValueError, ArithmeticError: as `fit`; or a tag that was not in the first call.
        """
        if not hasattr(self, "model_"):
            self._given_classes = given_classes(classes)
        return self._once(X, y)

    def fit(self, X: Any, y: Any) -> SequenceTagger:
        """Train on sequences and their tags; return self. See `SequenceEstimator.fit`."""
        self._given_classes = None
        return super().fit(X, y)

    def _targets(self, y: Any, reset: bool) -> Any:
        tags, kinds = [], set()
        for index, row in enumerate(y):
            if np.ndim(row) == 0 and not isinstance(row, str):
                raise TypeError(f"y[{index}]: expected a sequence of tags, one for each step, got {row!r}")
            values = list(row)
            refuse_missing(f"y[{index}]", values)
            kinds |= {isinstance(tag, str) for tag in values}
            tags.append(np.asarray(values))
            if tags[-1].ndim != 1:
                raise ValueError(f"y[{index}]: expected shape (T,), got {tags[-1].shape}")
        # NumPy would make strings of the numbers.
        if len(kinds) > 1:
            raise TypeError("y: expected tags of one kind, got strings and others")
        if reset:
            given = self._given_classes
            self.classes_ = np.unique(np.concatenate(tags)) if given is None else given
        found = []
        for index, row in enumerate(tags):
            known = np.isin(row, self.classes_)
            if not known.all():
                raise ValueError(f"y[{index}]: expected tags that fit had at first, got {row[~known][0]!r}")
            found.append(np.searchsorted(self.classes_, row).astype(np.int64))
        return found

    def _make_model(self, inputs: int, seed: int) -> fr.Module:
        layers, size = self._body(inputs, seed)
        layers["head"] = fr.Linear(size, len(self.classes_), seed=seed + 4)
        tags = len(self.classes_)
        return fr.Tagger(
            fr.Sequential(layers), fr.CRF(tags, seed=seed + 5) if check_flag("crf", self.crf) else None
        )

    @property
    def _tagger(self) -> fr.Tagger:
        return cast(fr.Tagger, self.model_)

    @property
    def _crf(self) -> Any:
        """That of the network, whatever `crf` was set to since."""
        return self._tagger.crf

    @property
    def _loss(self) -> Any:
        """With a CRF its own, whose argument `lengths` says that it wants whole sequences."""
        return fr.cross_entropy if self._crf is None else self._tagger.loss

    def predict(self, X: Any) -> list[Array]:
        """Return the best tags (T_n,) of each sequence.

        Raises:
            TypeError, ValueError: X is not what `fit` had.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        outputs = self._outputs(X)
        if self._crf is None:
            return [self.classes_[scores.argmax(axis=1)] for scores in outputs]
        scores, lengths = fr.pad(outputs)
        tags, _ = self._crf.decode(scores, lengths)
        return [self.classes_[row] for row in fr.unpad(tags, lengths)]

    def predict_proba(self, X: Any) -> list[Array]:
        """Return the probabilities (T_n, K) of the tags at each step; raises what `predict` does."""
        outputs = self._outputs(X)
        if self._crf is None:
            return [softmax(scores, -1) for scores in outputs]
        scores, lengths = fr.pad(outputs)
        return fr.unpad(self._crf.marginals(scores, lengths), lengths)

    def score(self, X: Any, y: Any) -> float:
        """Return the share of steps whose tag is right; raises what `predict` does."""
        self._check_lengths(X, y)
        right = count = 0
        for index, (tags, row) in enumerate(zip(self.predict(X), y, strict=True)):
            given = np.asarray(list(row))
            if given.shape != tags.shape:
                raise ValueError(
                    f"y[{index}]: expected one for each step (T = {len(tags)}), got shape {given.shape}"
                )
            right, count = right + int(np.count_nonzero(tags == given)), count + len(tags)
        return right / max(count, 1)
