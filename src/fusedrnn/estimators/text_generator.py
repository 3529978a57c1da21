"""TextGenerator."""

from __future__ import annotations

import re
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

import fusedrnn as fr
from fusedrnn.arrays import Array
from fusedrnn.checks import check_choice, check_size
from fusedrnn.estimators.base import SequenceEstimator
from fusedrnn.nn.activations import softmax
from fusedrnn.preprocessing import Vocabulary

# A text begins and ends with a vocabulary's number for padding, which no token has.
_END = Vocabulary.padding
# Steps of a text that go through the network at a time when it is measured.
_STEPS = 512


class TextGenerator(SequenceEstimator):
    """A language model: the next character or word from those before, and texts drawn from it.

    X is a string or a list of N of them, each a text. Words are letters and digits in a row, with
    apostrophes between them; a mark of punctuation is a word, too.

    Args:
        level: "character" or "word".
        vocabulary_size: the most frequent tokens that are told apart; None for all.
        window: tokens of the pieces that texts are cut into for training.
        ARGUMENTS

    Raises:
        TypeError, ValueError: `fit` raises them, also for what was wrong here.

    Attributes:
        vocabulary_: a `fusedrnn.preprocessing.Vocabulary`.
        classes_: (V,) the tokens of `predict_proba`; "" is the end of a text, None any that is unknown.
        model_: the network, a `fusedrnn.Sequential`.
        history_: figures of each epoch.
        n_features_in_: 1.
        n_iter_: epochs so far.

    Paper: Mikolov et al. 2010, Recurrent neural network based language model.
    """

    _per_step = True
    bidirectional = False
    level: str
    vocabulary_size: int | None
    window: int

    def __init__(
        self,
        level: str = "character",
        cell: str = "lstm",
        hidden_size: int = 128,
        num_layers: int = 1,
        dropout: float = 0.0,
        vocabulary_size: int | None = None,
        window: int = 100,
        *,
        lr: float = 0.005,
        schedule: str | None = "one_cycle",
        epochs: int = 10,
        batch_size: int = 32,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        embedding_size: int = 64,
        min_count: int = 1,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self._set_parameters(locals())

    def fit(self, X: Any, y: Any = None) -> TextGenerator:
        """Train on texts; return self.

        Args:
            X: a string, or a list of them.
            y: not used.

        Raises:
            TypeError: X is something else, or a parameter of the wrong kind.
            ValueError: there is no text, or a parameter out of range.
            ArithmeticError: training diverged; it says why.
        """
        return super().fit(X, y)

    def partial_fit(self, X: Any, y: Any = None) -> TextGenerator:
        """Make one pass over texts, from the present weights; return self. Raises what `fit` does.

        Args:
            X: a string, or a list of them; what the first call has not is unknown later.
            y: not used.
        """
        return self._once(X, y)

    def _data(self, X: Any, y: Any, reset: bool) -> tuple[list[Array], Any]:
        if reset:
            self._level = self.level
        texts = [self.tokens(text) for text in _texts(X)]
        if not any(texts):
            raise ValueError("X: expected at least one token, got none")
        if reset:
            least = check_size("min_count", self.min_count)
            self.vocabulary_ = self._vocabulary = Vocabulary(texts, self.vocabulary_size, least)
            self.classes_ = np.array(["", None, *self.vocabulary_.tokens], object)
            self.n_features_in_ = 1
        size = check_size("window", self.window)
        inputs, targets = [], []
        for text in texts:
            numbers = self._whole(text)
            for start in range(0, len(numbers) - 1, size):
                inputs.append(numbers[:-1][start : start + size])
                targets.append(numbers[1:][start : start + size])
        return inputs, targets

    def _make_model(self, inputs: int, seed: int) -> fr.Module:
        layers, size = self._body(inputs, seed)
        layers["head"] = fr.Linear(size, len(self.vocabulary_), seed=seed + 4)
        return fr.Sequential(layers)

    def _loss(self, output: Array, targets: Array) -> tuple[float, Array]:
        return fr.cross_entropy(output, targets)

    def tokens(self, text: str) -> list[str]:
        """Return the characters or words of a text, those of `fit` once it was called.

        Raises:
            ValueError: `level` is neither.
        """
        level = getattr(self, "_level", self.level)
        check_choice("level", level, ("character", "word"))
        return list(text) if level == "character" else re.findall(r"\w+(?:'\w+)*|[^\w\s]", text)

    def _whole(self, tokens: list[str]) -> npt.NDArray[np.int64]:
        """Return the numbers of a text with its beginning and its end."""
        return np.concatenate([[_END], self.vocabulary_.encode(tokens), [_END]])

    def _advance(self, numbers: Array, state: Any) -> tuple[Array, Any]:
        """Return logits (T, B, V) for tokens (T, B) and the network's state after them."""
        network = cast(fr.Sequential, self.model_.eval())
        h, state = network["rnn"](network["embedding"](numbers), state)
        return network["head"](h), state

    def generate(
        self,
        prompt: str = "",
        length: int = 200,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        random_state: Any = None,
    ) -> str:
        """Return text that goes on where a prompt ends, without the prompt.

        Args:
            prompt: any text; "" begins one.
            length: the most tokens that are drawn; less where the text ends.
            temperature: what logits are divided by, > 0; less is likelier text, inf any token.
            top_k: draw among so many of the likeliest tokens alone; None for all.
            top_p: draw among the fewest likeliest tokens whose probabilities reach this, in (0, 1].
            random_state: int, RandomState or None.

        Raises:
            TypeError, ValueError: an argument of the wrong kind or out of range.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "model_")
        if not isinstance(prompt, str):
            raise TypeError(f"prompt: expected a string, got {type(prompt).__name__}")
        numbers = self._whole(self.tokens(prompt))[:-1]
        state = self._advance(numbers[:-1, None], None)[1] if len(numbers) > 1 else None

        def step(tokens: Any, before: Any, _: Any) -> tuple[Any, Any]:
            logits, after = self._advance(tokens[None], _swapped(before))
            return logits[0], _swapped(after)

        known = np.ones(len(self.vocabulary_), bool)
        known[Vocabulary.unknown] = False
        found = fr.decode.sample(
            step,
            np.zeros((1, 1, 0), np.float32),
            int(numbers[-1]),
            _END,
            check_size("length", length),
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=int(check_random_state(random_state).randint(2**31 - 1)),
            state=_swapped(state),
            constraint=lambda prefixes, _: np.tile(known, (len(prefixes), 1)),
        )
        drawn = self.vocabulary_.decode(found.tokens[0, : found.lengths[0]])
        return self._joined([str(token) for token in drawn])

    def _joined(self, tokens: list[str]) -> str:
        if self._level == "character":
            return "".join(tokens)
        return re.sub(r"([(\[{]) | (?=[.,;:!?)\]}])", r"\1", " ".join(tokens))

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities (N, V) of the token that comes next, in the order of `classes_`.

        Args:
            X: a string, or a list of N of them.

        Raises:
            TypeError, ValueError: X is something else.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "model_")
        rows = [
            self._advance(self._whole(self.tokens(text))[:-1, None], None)[0][-1, 0] for text in _texts(X)
        ]
        return softmax(np.stack(rows), -1)

    def predict(self, X: Any) -> Array:
        """Return the likeliest next tokens (N,), no unknown ones; raises what `predict_proba` does."""
        scores = self.predict_proba(X)
        scores[:, Vocabulary.unknown] = -1.0
        best: Array = self.classes_[scores.argmax(axis=1)]
        return best

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log probability of a token (natural logarithm), the end of each text among them.

        Args:
            X: a string, or a list of them; what is unknown in it counts as one token.
            y: not used.

        Raises:
            TypeError, ValueError: X is something else.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        check_is_fitted(self, "model_")
        total, count = 0.0, 0
        for text in _texts(X):
            numbers, state = self._whole(self.tokens(text)), None
            for start in range(0, len(numbers) - 1, _STEPS):
                targets = numbers[start + 1 : start + 1 + _STEPS, None]
                logits, state = self._advance(numbers[start : start + len(targets), None], state)
                total -= fr.cross_entropy(logits, targets, reduction="sum")[0]
                count += len(targets)
        return total / count

    def perplexity(self, X: Any) -> float:
        """Return exp(-score(X)): among how many tokens one might as well guess; raises what `score` does."""
        return float(np.exp(-self.score(X)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.target_tags.required = False
        return tags


def _swapped(state: Any) -> Any:
    """Return a state (layers, B, H) as decoding keeps it, (B, layers, H), or back."""
    if isinstance(state, tuple):
        return tuple(_swapped(part) for part in state)
    return None if state is None else np.ascontiguousarray(state.swapaxes(0, 1))


def _texts(X: Any) -> list[str]:
    texts = [X] if isinstance(X, str) else X.tolist() if hasattr(X, "tolist") else X
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        got = type(X).__name__ if not isinstance(X, (list, tuple)) else "a list of other things"
        raise TypeError(f"X: expected a string or a list of strings, got {got}")
    if not texts and not isinstance(X, str):
        raise ValueError("X: expected at least one text, got none")
    return list(texts)
