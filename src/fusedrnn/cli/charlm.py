"""The character-level language model: its configuration, its layers, and its file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import fusedrnn as fr
from fusedrnn import files
from fusedrnn.checks import MOST_LAYERS, check_choice
from fusedrnn.cli.errors import CliError
from fusedrnn.cli.text import Codes, Vocabulary
from fusedrnn.files import reason

Array = npt.NDArray[Any]

MODEL_FILE = "fusedrnn character model"
CELLS = {"lstm": fr.LSTM, "gru": fr.GRU, "rnn": fr.RNN}

LARGEST = 2**31 - 1  # of the counts in a configuration and in the settings


@dataclass(frozen=True)
class Config:
    """What a model is made of."""

    cell: str = "lstm"
    hidden: int = 256
    layers: int = 1
    embedding: int = 64
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "embedding"):
            check_count(name, getattr(self, name), MOST_LAYERS if name == "layers" else LARGEST)
        check_choice("cell", self.cell, CELLS)
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype: expected float32 or float64, got {self.dtype!r}")
        if type(self.dropout) not in (int, float) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: expected 0 <= p < 1, got {self.dropout!r}")


def check_count(name: str, value: Any, most: int = LARGEST) -> None:
    """Raise ValueError unless the value is an int from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name}: expected an int from 1 to {most}, got {value!r}")


class Tape(NamedTuple):
    """What each layer of the model needs for its backward pass."""

    embedding: Any
    rnn: Any
    dropout: Any
    output: Any


class CharLM(fr.Module):
    """Embedding, recurrent layers, dropout, and a linear layer to the logits of the next character."""

    has_state = True

    def __init__(
        self, config: Config, vocabulary_size: int, seed: int = 0, init: str | None = "default"
    ) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {"dtype": config.dtype, "seed": rng, "init": init}
        self.embedding = fr.Embedding(vocabulary_size, config.embedding, **options)
        # With a single layer there is nothing between layers to drop.
        between = config.dropout if config.layers > 1 else 0.0
        self.rnn = CELLS[config.cell](
            config.embedding, config.hidden, config.layers, dropout=between, **options
        )
        self.dropout = fr.Dropout(config.dropout, seed=rng)
        self.output = fr.Linear(config.hidden, vocabulary_size, **options)

    def __call__(self, codes: Codes, state: Any = None) -> tuple[Array, Any]:
        """Return the logits (T, B, V) and the state after `codes` (T, B)."""
        y, state = self.rnn(self.embedding.lookup(codes), state)
        return self.output(self.dropout(y)), state

    def forward(self, codes: Codes, state: Any = None) -> tuple[Array, Any, Tape]:
        """Return the logits (T, B, V), the state after `codes` (T, B), and the tape."""
        x = self.embedding.lookup(codes)
        y, state, rnn_tape = self.rnn.forward(x, state)
        dropped, dropout_tape = self.dropout.forward(y)
        logits, output_tape = self.output.forward(dropped)
        return logits, state, Tape(x, rnn_tape, dropout_tape, output_tape)

    def backward(self, tape: Tape, dlogits: Array) -> None:
        """Add to the gradients; none flows into the state before the window (truncated backpropagation)."""
        dy = self.dropout.backward(tape.dropout, self.output.backward(tape.output, dlogits))
        dx, _ = self.rnn.backward(tape.rnn, dy)
        self.embedding.backward(tape.embedding, dx)


@dataclass(frozen=True)
class Score:
    """How good a model is: bits per held-out character, after `step` updates."""

    step: int
    bits: float

    def __post_init__(self) -> None:
        if type(self.step) is not int or self.step < 0:
            raise ValueError(f"step: expected an int >= 0, got {self.step!r}")
        if not isinstance(self.bits, float) or not math.isfinite(self.bits):
            raise ValueError(f"bits: expected a finite number, got {self.bits!r}")


class SavedModel(NamedTuple):
    """A model as its file gives it back."""

    config: Config
    vocabulary: Vocabulary
    score: Score | None
    model: CharLM


def save_model(
    path: Path, config: Config, vocabulary: Vocabulary, score: Score | None, state: Mapping[str, Array]
) -> None:
    """Write a model atomically; `state` is its state_dict, `score` None if it was never measured.

    Raises:
        FileError: the file cannot be written.
    """
    content = {
        "config": asdict(config),
        "vocabulary": vocabulary.characters,
        "score": None if score is None else asdict(score),
    }
    files.save(path, MODEL_FILE, state, content)


def load_model(path: Path) -> SavedModel:
    """Read a model.

    Raises:
        FileError: no such file, another kind of file, or a damaged one.
        CliError: a model that cannot be built.
    """
    tensors, content = files.load(path, MODEL_FILE)
    try:
        config = read_fields(Config, content["config"])
        vocabulary = Vocabulary(content["vocabulary"])
        score = None if content["score"] is None else read_fields(Score, content["score"])
        model = build(config, vocabulary, tensors).eval()
    except (KeyError, TypeError, ValueError) as error:
        raise CliError(f"{path}: not a usable model: {reason(error)}") from None
    return SavedModel(config, vocabulary, score, model)


def build(config: Config, vocabulary: Vocabulary, state: Mapping[str, Array]) -> CharLM:
    """Return a model with the given parameters.

    Raises:
        ValueError: names or shapes do not fit the configuration.
    """
    check_shapes(config, len(vocabulary), state)
    model = CharLM(config, len(vocabulary), init=None)
    model.load_state_dict(state)
    return model


def check_shapes(config: Config, vocabulary_size: int, state: Mapping[str, Array]) -> None:
    """Hold tensors against a configuration, without building its model.

    A configuration in a file must not be able to ask for more memory or time than its tensors take.

    Raises:
        ValueError: names, shapes or dtypes do not fit.
    """
    count = 0
    for name, shape in parameter_shapes(config, vocabulary_size):
        if name not in state:
            raise ValueError(f"{name}: the configuration describes it, the file does not hold it")
        if state[name].shape != shape or state[name].dtype != config.dtype:
            found = f"{state[name].dtype} {state[name].shape}"
            raise ValueError(f"{name}: expected {config.dtype} {shape}, got {found}")
        count += 1
    if count != len(state):
        raise ValueError(f"the configuration describes {count} tensors, the file holds {len(state)}")


def parameter_shapes(config: Config, vocabulary_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the shape of each parameter of a model, without building it."""
    rows, inputs = {"lstm": 4, "gru": 3, "rnn": 1}[config.cell] * config.hidden, config.embedding
    yield "embedding.weight", (vocabulary_size, config.embedding)
    for layer in range(config.layers):
        yield f"rnn.weight_ih_l{layer}", (rows, inputs)
        yield f"rnn.weight_hh_l{layer}", (rows, config.hidden)
        yield f"rnn.bias_ih_l{layer}", (rows,)
        yield f"rnn.bias_hh_l{layer}", (rows,)
        inputs = config.hidden
    yield "output.weight", (vocabulary_size, config.hidden)
    yield "output.bias", (vocabulary_size,)


def is_sound(state: Mapping[str, Array]) -> bool:
    """Whether a model with these parameters can generate: no score that it gives can overflow or be NaN.

    What comes out of the recurrent layers is within -1..1, so the sums of the absolute values in the rows of
    the weights bound every preactivation and every score; four such sums make one.
    """
    embedding = np.abs(state["embedding.weight"])
    limit = np.finfo(embedding.dtype).max / 4.0
    largest = max(1.0, float(embedding.max())) if np.isfinite(embedding).all() else math.inf
    for name, tensor in state.items():
        with np.errstate(over="ignore", invalid="ignore"):
            rows = np.abs(tensor).sum(axis=-1, dtype=np.float64)
            rows *= largest if name == "rnn.weight_ih_l0" else 1.0
        if not np.all(rows <= limit):  # NaN is not
            return False
    return True


def read_fields(kind: type[Any], values: Any) -> Any:
    """Return a dataclass from the dictionary that `asdict` made of it.

    Raises:
        ValueError: names are missing or unexpected, or a value is not allowed.
    """
    names = {field.name for field in fields(kind)}
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"{kind.__name__.lower()}: expected the fields {', '.join(sorted(names))}")
    return kind(**values)


def bits(nats: float) -> float:
    """Return nats in bits."""
    return nats / math.log(2.0)
