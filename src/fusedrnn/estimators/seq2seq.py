"""Seq2Seq."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
from sklearn.utils.validation import check_is_fitted

import fusedrnn as fr
from fusedrnn.arrays import Array
from fusedrnn.checks import check_number, check_size
from fusedrnn.estimators.base import SequenceEstimator
from fusedrnn.estimators.inputs import holds_tokens
from fusedrnn.preprocessing import Vocabulary
from fusedrnn.training import SequenceData

_DECODERS = {"gru": "gru", "lstm": "lstm", "rnn": "rnn_tanh"}
# A vocabulary's numbers for padding and for what it does not know, neither of which an answer has.
_BOS, _EOS = Vocabulary.padding, Vocabulary.unknown
_IGNORED = -100


class Seq2Seq(SequenceEstimator):
    """A sequence to another one: a recurrent encoder, and a decoder with attention, beam search.

    y are N strings, whose characters are tokens, or N lists of strings, of any lengths, as `predict` returns
    them.

    Args:
        attention_size: units of the attention; hidden_size if None.
        decoder_layers: layers of the decoder; `num_layers` are those of the encoder.
        label_smoothing: of the cross entropy, in [0, 1].
        beam: hypotheses that `predict` keeps of each sequence; 1 is greedy.
        max_len: most tokens that `predict` gives; twice those of the longest answer in `fit` if None.
        ARGUMENTS

    Raises:
        TypeError, ValueError: `fit` raises them, also for what was wrong here.

    Attributes:
        vocabulary_: of the answers, a `fusedrnn.preprocessing.Vocabulary`.
        model_: the network, a `fusedrnn.EncoderDecoder`.
        history_: figures of each epoch.
        n_features_in_: features of X, 1 of tokens.
        n_iter_: epochs so far.

    Paper: Bahdanau, Cho and Bengio 2014, arXiv:1409.0473.
    """

    attention_size: int | None
    decoder_layers: int
    label_smoothing: float
    beam: int
    max_len: int | None

    def __init__(
        self,
        cell: str = "gru",
        hidden_size: int = 128,
        num_layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.0,
        attention_size: int | None = None,
        label_smoothing: float = 0.0,
        beam: int = 5,
        max_len: int | None = None,
        *,
        lr: float = 0.003,
        schedule: str | None = "one_cycle",
        epochs: int = 20,
        batch_size: int = 64,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        scale: bool = True,
        embedding_size: int = 64,
        min_count: int = 1,
        decoder_layers: int = 1,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self._set_parameters(locals())

    def partial_fit(self, X: Any, y: Any) -> Seq2Seq:
        """Make one pass over sequences, from the present weights; return self.

        Args:
            X: as in `fit`; the first call's has all tokens that are told apart.
            y: as in `fit`; the first call's has all tokens.

        Raises:
            TypeError, ValueError, ArithmeticError: as `fit`; or a token that y of the first call had not.
        """
        return self._once(X, y)

    def _targets(self, y: Any, reset: bool) -> Any:
        """Return the numbers of the tokens and eos, (N, L), past the end what the loss ignores."""
        answers = _answers(y)
        if reset:
            self.vocabulary_ = Vocabulary(answers)
            self._joined = all(isinstance(answer, str) for answer in answers)
            self._longest = max(len(answer) for answer in answers)
        found = np.full((len(answers), 1 + max(len(answer) for answer in answers)), _IGNORED, np.int64)
        for index, answer in enumerate(answers):
            numbers = self.vocabulary_.encode(answer)
            if (numbers == Vocabulary.unknown).any():
                token = answer[int((numbers == Vocabulary.unknown).argmax())]
                raise ValueError(f"y[{index}]: expected tokens that fit had at first, got {token!r}")
            found[index, : len(numbers)] = numbers
            found[index, len(numbers)] = _EOS
        return found

    def _make_model(self, inputs: int, seed: int) -> fr.Module:
        if self.cell not in _DECODERS:
            names = ", ".join(map(repr, _DECODERS))
            raise ValueError(f"cell: expected one of {names}, got {self.cell!r}")
        layers, size = self._body(inputs, seed)
        tokens, hidden = len(self.vocabulary_), self.hidden_size
        states = 2 if self.cell == "lstm" else 1
        depth = check_size("decoder_layers", self.decoder_layers)
        sizes = self.embedding_size, hidden, size, self.attention_size
        decoder = fr.AttentionDecoder(_DECODERS[self.cell], *sizes, num_layers=depth, seed=seed + 3)
        head = {"head": fr.Linear(hidden, tokens, seed=seed + 4)}
        bridge = {"pool": fr.Pool("mean"), "linear": fr.Linear(size, states * depth * hidden, seed=seed + 5)}
        return fr.EncoderDecoder(
            fr.Sequential(layers),
            fr.Embedding(tokens, self.embedding_size, seed=seed + 6),
            decoder,
            fr.Sequential({"dropout": fr.Dropout(self.dropout, seed=seed + 7), **head}),
            fr.Sequential({**bridge, "tanh": fr.Tanh()}),
            bos=_BOS,
            eos=_EOS,
        )

    @property
    def _network(self) -> fr.EncoderDecoder:
        return cast(fr.EncoderDecoder, self.model_)

    @property
    def _loss(self) -> Any:
        smoothing = check_number("label_smoothing", self.label_smoothing, 0.0, 1.0)
        return partial(fr.cross_entropy, ignore_index=_IGNORED, label_smoothing=smoothing)

    def predict(self, X: Any) -> list[Any]:
        """Return an answer for each sequence: strings, or lists of strings, as y in `fit`.

        Raises:
            TypeError, ValueError: X is not what `fit` had, or `beam` or `max_len` are wrong.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "model_")
        most = 2 * self._longest + 1 if self.max_len is None else check_size("max_len", self.max_len)
        sequences = self._sequences(X, False)
        data = SequenceData((sequences, np.zeros(len(sequences))), "X")
        network = self._network.eval()
        found: list[Any] = [None] * len(sequences)
        for indices in data.ordered(128):
            batch = data.batch(indices)
            decoded = network.beam_search(batch.x, batch.lengths, self.beam, most)
            for index, tokens, length in zip(
                indices, decoded.tokens[:, 0], decoded.lengths[:, 0], strict=True
            ):
                # Neither bos nor what stands for unknown tokens is one.
                answer = [t for t in self.vocabulary_.decode(tokens[:length]) if t is not None]
                found[index] = "".join(map(str, answer)) if self._joined else answer
        return found

    def attention(self, X: Any, y: Any) -> list[Array]:
        """Return (L_n + 1, S_n) of each pair: how much each token of y, and its end, looks at each step of X.

        Raises:
            TypeError, ValueError: X or y are not what `fit` had.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "model_")
        self._check_lengths(X, y)
        sequences, targets = self._sequences(X, False), self._targets(y, False)
        network, found = self._network.eval(), []
        for x, row in zip(sequences, targets, strict=True):
            alpha = network.attention(x[:, None], row[row != _IGNORED][None])
            found.append(alpha[0])
        return found

    def score_samples(self, X: Any, y: Any) -> Array:
        """Return (N,) float64: the log probability of each y, its end included, as the answer to its X.

        Raises:
            TypeError, ValueError: X or y are not what `fit` had.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "model_")
        sequences, targets = self._data(X, y, False)
        data = SequenceData((sequences, targets), "X")
        network, found = self._network.eval(), np.zeros(len(sequences))
        for indices in data.ordered(128):
            batch = data.batch(indices)
            logits = network(batch.x, batch.targets, batch.lengths)
            losses, _ = fr.cross_entropy(logits, batch.targets, ignore_index=_IGNORED, reduction="none")
            found[indices] = -losses.sum(axis=1, dtype=np.float64)
        return found

    def score(self, X: Any, y: Any) -> float:
        """Return the share of sequences whose answer is right as a whole; raises what `predict` does."""
        answers = _answers(y)
        self._check_lengths(X, answers)
        found = self.predict(X)
        return sum(list(a) == list(b) for a, b in zip(found, answers, strict=True)) / max(len(found), 1)


def _answers(y: Any) -> list[Any]:
    """Return y as a list of strings or of lists of strings."""
    found = y.tolist() if hasattr(y, "tolist") else list(y) if isinstance(y, tuple) else y
    if not holds_tokens(found):
        got = type(y).__name__ if not isinstance(found, list) else "a list of other things"
        raise TypeError(f"y: expected strings or lists of strings, got {got}")
    if len({isinstance(answer, str) for answer in found}) > 1:
        raise TypeError("y: expected strings or lists of strings, got both")
    answers: list[Any] = found
    return answers
