"""Base of the estimators: their parameters, the network inside, and its training."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted

import fusedrnn as fr
from fusedrnn import optim
from fusedrnn.arrays import Array
from fusedrnn.checks import check_choice, check_flag, check_number, check_size, shown
from fusedrnn.estimators.inputs import as_sequences, check_sequences, holds_tokens
from fusedrnn.estimators.unchanged import StoppedError, unchanged_by_errors
from fusedrnn.preprocessing import Scaler, Vocabulary
from fusedrnn.training import SequenceData, Trainer

CELLS = {
    "rnn": fr.RNN,
    "lstm": fr.LSTM,
    "gru": fr.GRU,
    "mgu": fr.MGU,
    "indrnn": fr.IndRNN,
    "mingru": fr.MinGRU,
    "minlstm": fr.MinLSTM,
    "sru": fr.SRU,
    "ligru": fr.LiGRU,
    "slstm": fr.SLSTM,
}

# What is said about each argument, for the docstrings.
_ARGUMENTS = {
    "cell": '"gru", "lstm", "rnn", "mgu", "indrnn", "mingru", "minlstm", "sru", "ligru" or "slstm".',
    "hidden_size": "units of each layer and direction.",
    "num_layers": "layers stacked on each other.",
    "bidirectional": "run each layer in both directions.",
    "dropout": "probability of dropping an output of the network in training.",
    "pooling": 'what of all steps the head gets: "last", "mean", "max" or "attention", as in `Pool`.',
    "lr": "learning rate, the highest one of a schedule.",
    "schedule": '"one_cycle", "cosine" (down to 0 over all epochs), or None for a constant rate.',
    "epochs": "passes over the data in `fit`; `partial_fit` makes one.",
    "batch_size": "sequences in a batch.",
    "weight_decay": "of AdamW.",
    "clip": "the largest norm of the gradients, or None.",
    "patience": "epochs without an improvement of the validation loss after which `fit` ends, or None.",
    "validation_fraction": "share of the data that is held out where there is `patience`.",
    "scale": "give every feature mean 0 and standard deviation 1 first.",
    "embedding_size": "size of a token's vector, where X are tokens.",
    "min_count": "occurrences of a token that is told apart; those seen less often are unknown.",
    "warm_start": "`fit` goes on from the present weights; those of the network have to stay.",
    "random_state": "int, RandomState or None: of weights, dropout and the order of the data.",
    "verbose": "show the progress.",
}

# By these the network and what it reads are made, once: training on cannot change them.
_OF_NETWORK = (
    "cell",
    "hidden_size",
    "num_layers",
    "bidirectional",
    "dropout",
    "pooling",
    "crf",
    "attention_size",
    "decoder_layers",
    "scale",
    "level",
    "vocabulary_size",
    "embedding_size",
    "min_count",
)

EstimatorT = TypeVar("EstimatorT", bound="SequenceEstimator")


class SequenceEstimator(BaseEstimator, ABC):  # type: ignore[misc]
    """What the estimators share."""

    # Whether there is a target for each step.
    _per_step: bool = False

    # Of every estimator; their constructors say what they are at first.
    cell: str
    hidden_size: int
    num_layers: int
    bidirectional: bool
    dropout: float
    lr: float
    schedule: str | None
    epochs: int
    batch_size: int
    weight_decay: float
    clip: float | None
    patience: int | None
    validation_fraction: float
    scale: bool = True
    embedding_size: int = 32
    min_count: int = 1
    warm_start: bool
    random_state: Any
    verbose: bool

    def _set_parameters(self, given: dict[str, Any]) -> None:
        """Keep the arguments of a subclass's constructor, which scikit-learn wants written out there."""
        for name in self._get_param_names():
            if name in given:
                setattr(self, name, given[name])

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        text = cls.__doc__ or ""
        names = [n for n in inspect.signature(cls).parameters if n in _ARGUMENTS]
        cls.__doc__ = text.replace("ARGUMENTS", "\n        ".join(f"{n}: {_ARGUMENTS[n]}" for n in names))

    # What differs between them

    def _targets(self, y: Any, reset: bool) -> Any:
        """Return targets as the loss takes them, for all sequences: as they are, if a class says nothing."""
        return y

    @abstractmethod
    def _loss(self, output: Array, targets: Array) -> tuple[float, Array]:
        """Return the loss and the gradient of the output."""

    @abstractmethod
    def _make_model(self, inputs: int, seed: int) -> fr.Module:
        """Return the network for inputs of a size."""

    # The network

    def _body(self, inputs: int, seed: int) -> tuple[dict[str, fr.Module], int]:
        """Return the layers below the head by name, and the size of what they give."""
        check_choice("cell", self.cell, tuple(CELLS))
        check_size("hidden_size", self.hidden_size)
        check_number("dropout", self.dropout, 0.0, 1.0)
        layers: dict[str, fr.Module] = {}
        if self._vocabulary is not None:
            table = fr.Embedding(len(self._vocabulary), self.embedding_size, padding_idx=0, seed=seed)
            # Where no token of the data is unknown, its vector stays as it is: better none than any.
            table._own["weight"][Vocabulary.unknown] = 0.0
            layers["embedding"] = table
            inputs = self.embedding_size
        between = self.dropout if self.num_layers > 1 else 0.0
        make: Any = CELLS[self.cell]
        layers["rnn"] = make(
            inputs,
            self.hidden_size,
            self.num_layers,
            dropout=between,
            bidirectional=self.bidirectional,
            seed=seed + 1,
        )
        if self.dropout:
            layers["dropout"] = fr.Dropout(self.dropout, seed=seed + 2)
        return layers, self.hidden_size * (2 if self.bidirectional else 1)

    # Data

    def _sequences(self, X: Any, reset: bool) -> list[Array]:
        """Return X as the network takes it: scaled arrays (T, I), or numbers of tokens (T,)."""
        check_sequences(X)
        if reset:
            least = check_size("min_count", self.min_count)
            self._vocabulary = Vocabulary(X, least=least) if holds_tokens(X) else None
        if self._vocabulary is not None:
            if not holds_tokens(X):
                raise TypeError("X: expected strings or lists of strings, as in fit, got something else")
            if reset:
                self.n_features_in_ = 1
            # The characters of a string would all be unknown.
            if any(len(str(token)) > 1 for token in self._vocabulary.tokens):
                for index, x in enumerate(X):
                    if isinstance(x, str):
                        raise TypeError(
                            f"X[{index}]: expected a list of tokens, as in fit, got the string {shown(x)}; "
                            "X is a list of such lists, as [text.split() for text in texts]"
                        )
            found = [self._vocabulary.encode(x) for x in X]
            for index, x in enumerate(found):
                if not len(x):
                    raise ValueError(f"X[{index}]: expected at least one token, got none")
            return found
        if holds_tokens(X):
            raise TypeError("X: expected arrays of numbers, as in fit, got strings")
        sequences = as_sequences(self, X, reset)
        if reset:
            self._scaler = Scaler().fit(sequences) if check_flag("scale", self.scale) else None
        return sequences if self._scaler is None else self._scaler.transform(sequences)

    # Training

    def fit(self: EstimatorT, X: Any, y: Any) -> EstimatorT:
        """Train on sequences and their targets; return self.

        Args:
            X: a list of arrays (T_n, I), an array (N, T, I) in which steps of nothing but NaN at the end are
                padding, an array (N, T) of series with one feature; or a list of strings or of lists of
                strings, which are tokens.
            y: what the class says.

        Raises:
            TypeError: an argument or a parameter of the wrong kind.
            ValueError: an argument or a parameter out of range, or of another shape; one of the network that
                was changed, with `warm_start`.
            ArithmeticError: training diverged; it says why. What was fitted before stays.
            KeyboardInterrupt: Ctrl-C. After an epoch the network stays as it is then; before, as it was.
        """
        again = self._goes_on()
        with unchanged_by_errors(self, again):
            sequences, targets = self._data(X, y, not again)
            if not again:
                self._start(sequences)
            self._train(sequences, targets, self.epochs, self.schedule, self.patience)
        return self

    def _goes_on(self, always: bool = False) -> bool:
        """Return whether to train on, by `warm_start` or always; refuse parameters of another network."""
        if not (check_flag("warm_start", self.warm_start) or always) or not hasattr(self, "model_"):
            return False
        for name, old in self._made.items():
            if getattr(self, name) != old:
                raise ValueError(
                    f"{name}: expected {old!r}, with which the network was made, got "
                    f"{getattr(self, name)!r}; fit with warm_start=False makes another"
                )
        return True

    def _data(self, X: Any, y: Any, reset: bool) -> tuple[list[Array], Any]:
        """Return X as the network takes it, and y as the loss does."""
        self._check_lengths(X, y)
        sequences, targets = self._sequences(X, reset), self._targets(y, reset)
        if self._per_step:
            for index, (x, row) in enumerate(zip(sequences, targets, strict=True)):
                if len(x) != len(row):
                    raise ValueError(f"y[{index}]: expected one for each step (T = {len(x)}), got {len(row)}")
        return sequences, targets

    def _check_lengths(self, X: Any, y: Any) -> None:
        if y is None:
            name = type(self).__name__
            raise ValueError(f"y: {name} requires y to be passed, but the target y is None")
        check_sequences(X)
        check_consistent_length(X, y)

    def _start(self, sequences: list[Array]) -> None:
        """Make the network and its optimiser."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 8))
        inputs = sequences[0].shape[1] if sequences[0].ndim == 2 else 1
        self.model_ = self._make_model(inputs, seed)
        self.optimizer_ = optim.AdamW(self.model_, lr=self.lr, weight_decay=self.weight_decay)
        self.history_: dict[str, list[float]] = {}
        self.n_iter_ = 0
        self._seed = seed
        self._made = {name: getattr(self, name) for name in _OF_NETWORK if hasattr(self, name)}

    def _once(self: EstimatorT, X: Any, y: Any) -> EstimatorT:
        """Make one pass over the data, as `partial_fit` does."""
        again = self._goes_on(always=True)
        with unchanged_by_errors(self, again):
            sequences, targets = self._data(X, y, not again)
            if not again:
                self._start(sequences)
            self._train(sequences, targets, 1, None, None)
        return self

    def _train(
        self, sequences: list[Array], targets: Any, epochs: int, schedule: str | None, patience: int | None
    ) -> None:
        check_choice("schedule", schedule, ("one_cycle", "cosine", None))
        train, held_out = (sequences, targets), None
        if patience is not None:
            check_size("patience", patience)
            train, held_out = self._split(sequences, targets)
        optimizer = self.optimizer_
        optimizer.lr, optimizer.weight_decay = self.lr, self.weight_decay
        # Schedules start from the rate that the optimiser's first one found, which may have been another.
        optimizer.__dict__.pop("_base_lrs", None)
        batches = -(-len(train[0]) // check_size("batch_size", self.batch_size))
        steps = batches * check_size("epochs", epochs, 0)
        made: optim.Scheduler | None = None
        if schedule == "one_cycle" and steps > 1:
            made = optim.OneCycleLR(optimizer, check_number("lr", self.lr, math.ulp(0.0)), steps)
        elif schedule == "cosine" and epochs > 1:
            made = optim.CosineAnnealingLR(optimizer, epochs)
        trainer = Trainer(
            self.model_,
            self._loss,
            optimizer,
            made,
            self.clip,
            patience,
            epochs=epochs,
            batch_size=self.batch_size,
            seed=self._seed + self.n_iter_,
            progress=None if self.verbose else False,
        )
        try:
            trainer.fit(train, held_out)
        except KeyboardInterrupt:
            if not trainer.epoch:
                raise
            self._note(trainer)
            raise StoppedError from None
        self._note(trainer)

    def _note(self, trainer: Trainer) -> None:
        """Add a run's epochs to those before."""
        for name, values in trainer.history.items():
            self.history_[name] = [*self.history_.get(name, ()), *values]
        self.n_iter_ += trainer.epoch

    def _split(self, sequences: list[Array], targets: Any) -> tuple[Any, Any]:
        """Return the data to train on and that which is held out."""
        count = len(sequences)
        share = check_number("validation_fraction", self.validation_fraction, 0.0, 1.0)
        held = max(1, round(count * share))
        if not 0.0 < share < 1.0 or held >= count:
            raise ValueError(
                "validation_fraction: expected a share that leaves some of "
                f"{count} sequences on both sides, got {self.validation_fraction!r}"
            )
        order = np.random.default_rng(self._seed).permutation(count)

        def part(indices: Any) -> Any:
            some = [sequences[i] for i in indices]
            return some, [targets[i] for i in indices] if self._per_step else targets[indices]

        return part(np.sort(order[held:])), part(np.sort(order[:held]))

    def _outputs(self, X: Any) -> list[Array]:
        """Return the network's output for each sequence of X: (K,), or (T_n, K) of steps."""
        check_is_fitted(self, "model_")
        sequences = self._sequences(X, False)
        data = SequenceData((sequences, np.zeros(len(sequences))), "X")
        found: list[Any] = [None] * len(sequences)
        for indices in data.ordered(256):
            batch = data.batch(indices)
            options = {} if batch.lengths is None else {"lengths": batch.lengths}
            output = self.model_.eval()(batch.x, **options)
            for place, index in enumerate(indices):
                found[index] = output[: len(sequences[index]), place] if self._per_step else output[place]
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags
