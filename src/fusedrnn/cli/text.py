"""Text: where it comes from, its characters as numbers, the held-out part, and the layout for training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fusedrnn.cli.errors import CliError
from fusedrnn.files import open_regular

Codes = npt.NDArray[np.int64]

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
BUILT_IN = "the help texts of Python"


def built_in_text() -> str:
    """Return the help texts that ship with Python, in the order of their names."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise CliError("this Python has no pydoc_data.topics; give a text file") from None
    return "\n".join(topics[name] for name in sorted(topics))


def read_text(path: Path) -> str:
    """Return the contents of a UTF-8 file, a byte order mark dropped and line ends made one newline each."""
    with open_regular(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CliError(
            f"{path}: not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start})"
        ) from None
    if not text.strip():
        raise CliError(f"{path}: no text in it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fingerprint(text: str) -> str:
    """Return the SHA-256 of the text."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Vocabulary:
    """Characters and their numbers. Number 0 stands for every character that is not in the vocabulary."""

    characters: str
    _points: npt.NDArray[np.uint32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = list(self.characters[1:])
        if self.characters[:1] != UNKNOWN or known != sorted(set(known)) or UNKNOWN in known:
            raise ValueError("characters: expected the unknown character, then different ones in order")
        object.__setattr__(self, "_points", _points(self.characters[1:]))

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Return the vocabulary of all characters in `text`."""
        return cls(UNKNOWN + "".join(sorted(set(text) - {UNKNOWN})))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Codes:
        """Return the number of each character, int64 (len(text),)."""
        points = _points(text)
        places = np.searchsorted(self._points, points)
        found = places < len(self._points)
        found[found] = self._points[places[found]] == points[found]
        return np.where(found, places + 1, 0).astype(np.int64)

    def unknown_in(self, text: str) -> list[str]:
        """Return the different characters of `text` outside the vocabulary, in order of appearance."""
        known = set(self.characters[1:])
        return [character for character in dict.fromkeys(text) if character not in known]


def _points(text: str) -> npt.NDArray[np.uint32]:
    """Code points; lone surrogates, as an undecodable argument gives them, pass through."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32, copy=False)


@dataclass(frozen=True)
class Split:
    """A text in two parts that share no paragraph; `repeated` characters were left out to make it so."""

    training: str
    held_out: str
    repeated: int


def split(text: str, fraction: float) -> Split:
    """Hold out the last `fraction` of the text, from the nearest following paragraph (else line) on.

    A held-out paragraph (text between blank lines) that occurs in the training part too, white space aside,
    is left out: a model that learned it by heart would look better than it is. A fraction of 0 holds out
    nothing.
    """
    if fraction == 0.0:
        return Split(text, "", 0)
    cut = _border(text, len(text) - round(len(text) * fraction))
    training, rest = text[:cut], text[cut:]
    seen = {_squeezed(paragraph) for paragraph in training.split("\n\n")} | {""}
    held_out = "\n\n".join(paragraph for paragraph in rest.split("\n\n") if _squeezed(paragraph) not in seen)
    if len(held_out) < 2:
        part = f"its last {100.0 * fraction:.3g}%, held out to measure the model,"
        if len(rest.strip()) < 2:
            why = f"the text is too short: {part} hold nothing; give a longer text"
        else:
            why = (
                f"the text repeats itself: {part} stand word for word before them too, and learning by heart "
                "would pass for learning; give another text"
            )
        raise CliError(f"{why}, a larger --valid-fraction, or --valid-fraction 0 to train without measuring")
    return Split(training, held_out, len(rest) - len(held_out))


def _border(text: str, cut: int) -> int:
    """The first border of a paragraph, else of a line, in the first half of text[cut:]; else `cut`."""
    for border in ("\n\n", "\n"):
        found = text.find(border, cut, cut + (len(text) - cut) // 2)
        if found >= 0:
            return found + len(border)
    return cut


def _squeezed(paragraph: str) -> str:
    return " ".join(paragraph.split())


class Windows:
    """A text as `batch` parallel rows, cut into windows of at most `steps` characters.

    Row b reads the b-th of `batch` consecutive stretches of the text, so a state carried from one window to
    the next is the state after all that the row has read. Windows have the same length, give or take one.
    """

    def __init__(self, codes: Codes, batch: int, steps: int) -> None:
        rows = (len(codes) - 1) // batch
        if rows < 1:
            raise ValueError(f"codes: expected more than batch = {batch} characters, got {len(codes)}")
        starts = np.arange(batch) * rows
        self._codes = codes[starts[np.newaxis, :] + np.arange(rows + 1)[:, np.newaxis]]
        self._borders = [round(rows * i / -(-rows // steps)) for i in range(-(-rows // steps) + 1)]

    def __len__(self) -> int:
        return len(self._borders) - 1

    @property
    def characters(self) -> int:
        """Number of characters that one pass predicts."""
        steps, batch = self._codes.shape
        return int((steps - 1) * batch)

    def __getitem__(self, index: int) -> tuple[Codes, Codes]:
        """Return the inputs and the targets of a window, both (T, B) int64 views."""
        start, stop = self._borders[index], self._borders[index + 1]
        return self._codes[start:stop], self._codes[start + 1 : stop + 1]


def training_windows(codes: Codes, batch: int, steps: int) -> Windows:
    """Lay out the training part; the text must fill at least one window.

    Raises:
        CliError: it does not.
    """
    needed = batch * steps + 1
    if len(codes) < needed:
        shorter = max(1, min(steps, (len(codes) - 1) // 4))
        fewer = max(1, min(batch, (len(codes) - 1) // shorter // 8))
        raise CliError(
            f"the text is too short: {batch} rows of {steps} steps need {needed:,} characters for training, "
            f"got {len(codes):,}; give a longer text, or for example --batch {fewer} --steps {shorter}"
        )
    return Windows(codes, batch, steps)


def held_out_windows(codes: Codes, batch: int, steps: int) -> Windows:
    """Lay out the held-out part in so few rows that each has several windows to warm up in."""
    return Windows(codes, max(1, min(batch, (len(codes) - 1) // (4 * steps))), steps)
