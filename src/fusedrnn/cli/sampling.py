"""Text from a model, one streamed step per character."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.cli.charlm import CharLM
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.text import Vocabulary

Array = npt.NDArray[Any]


class Sampler:
    """Continues a prompt. Characters that the model has never seen are skipped there, and never drawn."""

    def __init__(
        self,
        model: CharLM,
        vocabulary: Vocabulary,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> None:
        """Prepare to draw.

        Args:
            model: the trained model.
            vocabulary: its characters.
            temperature: divides the logits; 0 always takes the likeliest character.
            top_k: draw among this many likeliest characters; 0 for all.
            seed: for a repeatable text.
        """
        self._vocabulary = vocabulary
        self._temperature = temperature
        self._top_k = top_k
        self._rng = np.random.default_rng(seed)
        self._embedding = model.embedding.parameters["weight"]
        self._output = model.output
        self._step = model.rnn.stream(batch_size=1)

    def characters(self, prompt: str, length: int) -> Iterator[str]:
        """Yield `length` characters that follow the prompt; without one, what follows a line end."""
        codes = [code for code in self._vocabulary.encode(prompt).tolist() if code]
        if not codes:
            codes = [max(1, int(self._vocabulary.encode("\n")[0]))]
        self._step.reset()
        for code in codes[:-1]:
            self._step(self._embedding[code : code + 1])
        code = codes[-1]
        for _ in range(length):
            y = self._step(self._embedding[code : code + 1])
            code = self._draw(self._output(y)[0])
            yield self._vocabulary.characters[code]

    def _draw(self, logits: Array) -> int:
        """Draw a code; number 0, the unknown character, is left out."""
        scores = logits[1:].astype(np.float64)
        if not np.isfinite(scores).all():
            raise CliError("the model gives scores that are not finite")
        if self._temperature == 0.0:
            return 1 + int(scores.argmax())
        with np.errstate(over="ignore"):  # a tiny temperature: minus infinity is right
            scores = (scores - scores.max()) / self._temperature
        if 0 < self._top_k < len(scores):
            # A stable order, so that ties do not depend on the library's version.
            scores[np.argsort(-scores, kind="stable")[self._top_k :]] = -np.inf
        cumulative = np.exp(scores).cumsum()
        place = int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))
        # Rounding may put the draw on the very end, past the last character that has any probability.
        return 1 + min(place, int(np.flatnonzero(np.isfinite(scores))[-1]))
