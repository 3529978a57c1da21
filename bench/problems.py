"""What is timed: single layers over a grid of shapes, and one training step of a character language model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

# Measured in the same run: "peak_gflops" of multiply-adds; "read_gbs", [(bytes that fit, rate)] from the
# smallest cache to memory (None); "lstm_unit_ns", the pointwise part of one unit and step of an LSTM.
Limits: TypeAlias = dict[str, Any]

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1}

# (T, B, H), with I = H
QUICK = ((100, 1, 64), (100, 32, 128), (100, 64, 512))
CPU = (
    (1, 1, 64), (1, 1, 256), (100, 1, 64), (100, 1, 128), (100, 1, 256), (100, 1, 512), (100, 8, 128),
    (100, 32, 64), (100, 32, 128), (100, 32, 256), (100, 64, 512), (50, 64, 1024),
)  # fmt: skip


@dataclass(frozen=True)
class LayerProblem:
    """One unidirectional layer, float32, time-major, zero initial state.

    "forward" is inference. "training" is forward and backward with the gradients of x, every weight and bias.
    """

    cell: str
    seq_len: int
    batch: int
    input_size: int
    hidden_size: int

    modes: ClassVar[tuple[str, ...]] = ("forward", "training")
    tolerance: ClassVar[float] = 1e-4  # of the largest element; sums of T*B terms in float32

    @property
    def gates(self) -> int:
        """Gates of the cell, G."""
        return GATES[self.cell]

    def describe(self) -> dict[str, Any]:
        """The fields that identify the problem in the results."""
        return asdict(self)

    def data(self) -> dict[str, Array]:
        """x (T, B, I), dy (T, B, H) and the parameters under PyTorch's names; the same on every call."""
        rng = np.random.default_rng(7)
        rows, bound = self.gates * self.hidden_size, self.hidden_size**-0.5
        shapes = {
            "weight_ih_l0": (rows, self.input_size),
            "weight_hh_l0": (rows, self.hidden_size),
            "bias_ih_l0": (rows,),
            "bias_hh_l0": (rows,),
        }
        data = {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}
        data["x"] = rng.standard_normal((self.seq_len, self.batch, self.input_size), dtype=np.float32)
        data["dy"] = rng.standard_normal((self.seq_len, self.batch, self.hidden_size), dtype=np.float32)
        return data

    def flop(self, mode: str) -> float:
        """Floating-point operations of the matrix products; training has three of each forward product."""
        products = self.gates * self.hidden_size * (self.input_size + self.hidden_size)
        return 2.0 * self.seq_len * self.batch * products * (3 if mode == "training" else 1)

    def floor_s(self, mode: str, limits: Limits) -> float:
        """The least time that the measured limits allow, in seconds.

        max(FLOP / FMA peak, weight bytes / bandwidth) + units * activation cost. W_hh is read at every step
        of each pass, from the smallest cache that holds it; activations are computed once, in forward.
        """
        passes = 2 if mode == "training" else 1
        rows = self.gates * self.hidden_size
        weight_bytes = 4.0 * rows * self.hidden_size
        rate = next(gbs for size, gbs in limits["read_gbs"] if size is None or weight_bytes <= size)
        arithmetic = self.flop(mode) / (limits["peak_gflops"] * 1e9)
        memory = passes * self.seq_len * weight_bytes / (rate * 1e9)
        units = self.seq_len * self.batch * self.hidden_size
        # An LSTM has five activations a unit: the gates and tanh(c).
        share = {"lstm": 5, "gru": 3, "rnn_tanh": 1}[self.cell] / 5
        return max(arithmetic, memory) + units * share * limits["lstm_unit_ns"] * 1e-9


@dataclass(frozen=True)
class ModelProblem:
    """An update of the model of `fusedrnn train`: embedding, LSTM, linear, cross-entropy, clip, Adam."""

    vocabulary: int = 96
    embedding_size: int = 64
    hidden_size: int = 256
    batch: int = 32
    seq_len: int = 100
    lr: float = 5e-3
    max_norm: float = 1.0

    cell: ClassVar[str] = "lstm"
    modes: ClassVar[tuple[str, ...]] = ("step",)
    tolerance: ClassVar[float] = 1e-4
    checked_steps: ClassVar[int] = 5

    def describe(self) -> dict[str, Any]:
        """The fields that identify the problem in the results."""
        return {"cell": "char-lstm", "input_size": self.embedding_size, **asdict(self)}

    def data(self) -> dict[str, Array]:
        """inputs and targets (T, B) int64, and the parameters by name; the same on every call."""
        rng = np.random.default_rng(7)
        hidden, rows, bound = self.hidden_size, 4 * self.hidden_size, self.hidden_size**-0.5
        shapes = {
            "embedding": (self.vocabulary, self.embedding_size),
            "weight_ih_l0": (rows, self.embedding_size),
            "weight_hh_l0": (rows, hidden),
            "bias_ih_l0": (rows,),
            "bias_hh_l0": (rows,),
            "linear_weight": (self.vocabulary, hidden),
            "linear_bias": (self.vocabulary,),
        }
        data: dict[str, Array] = {
            name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()
        }
        text = rng.integers(0, self.vocabulary, (self.seq_len + 1, self.batch))
        return {**data, "inputs": text[:-1].copy(), "targets": text[1:].copy()}

    def flop(self, mode: str) -> float:
        """Floating-point operations of the LSTM's and the linear layer's products, forward and backward."""
        products = self.hidden_size * (4 * (self.embedding_size + self.hidden_size) + self.vocabulary)
        return 6.0 * self.seq_len * self.batch * products

    def floor_s(self, mode: str, limits: Limits) -> float:
        """The least time that the FMA peak and the activations allow, in seconds."""
        units = self.seq_len * self.batch * self.hidden_size
        arithmetic = self.flop(mode) / (limits["peak_gflops"] * 1e9)
        return arithmetic + units * limits["lstm_unit_ns"] * 1e-9


Problem: TypeAlias = LayerProblem | ModelProblem


def suite(name: str, cells: Iterable[str] | None = None) -> list[Problem]:
    """The problems of a suite, for all cells or for those named."""
    if name == "model":
        return [ModelProblem()]
    shapes = {"quick": QUICK, "cpu": CPU}[name]
    return [
        LayerProblem(cell, seq_len, batch, hidden, hidden)
        for cell in cells or GATES
        for seq_len, batch, hidden in shapes
    ]
