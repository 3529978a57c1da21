"""What is timed: single layers over grids of shapes, streamed steps, and training steps of two models."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

# Measured in the same run: "peak_gflops" of multiply-adds; "read_gbs", [(bytes that fit, rate)] from the
# smallest cache to memory (None); "lstm_unit_ns", the pointwise part of one unit and step of an LSTM.
# All are those of the threads together.
Limits: TypeAlias = dict[str, Any]

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1}

# (T, B, H), with I = H
QUICK = ((100, 1, 64), (100, 32, 128), (100, 64, 512))
GRID = (
    (1, 1, 64), (1, 1, 256), (100, 1, 64), (100, 1, 128), (100, 1, 256), (100, 1, 512), (100, 8, 128),
    (100, 32, 64), (100, 32, 128), (100, 32, 256), (100, 64, 512), (50, 64, 1024),
)  # fmt: skip

# The suite "odd" takes some of these: sizes that fill neither vectors nor tiles, and I unlike H.
ODD_SIZES = (23, 40, 100, 200, 300, 650)
ODD_BATCHES = (1, 3, 5, 20, 50)
ODD_LENGTHS = (7, 35, 500)
ODD_COUNT, ODD_FLOP = 10, 3e9
ODD_SEED = 283  # a choice with every size, batch and length in it


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

        max(FLOP / FMA peak, weight bytes / bandwidth) + units * activation cost. A pass reads W_hh at every
        step, from the smallest cache that holds it, and W_ih once; training has two passes and writes the
        gradients of both once. Activations are computed once, in forward.
        """
        passes = 2 if mode == "training" else 1
        rows = self.gates * self.hidden_size
        hh_bytes, ih_bytes = 4.0 * rows * self.hidden_size, 4.0 * rows * self.input_size
        once = passes * ih_bytes + (hh_bytes + ih_bytes if mode == "training" else 0.0)
        arithmetic = self.flop(mode) / (limits["peak_gflops"] * 1e9)
        memory = passes * self.seq_len * hh_bytes / read_rate(limits, hh_bytes)
        memory += once / read_rate(limits, hh_bytes + ih_bytes)
        units = self.seq_len * self.batch * self.hidden_size
        # An LSTM has five activations a unit: the gates and tanh(c).
        share = {"lstm": 5, "gru": 3, "rnn_tanh": 1}[self.cell] / 5
        return max(arithmetic, memory) + units * share * limits["lstm_unit_ns"] * 1e-9


def read_rate(limits: Limits, size: float) -> float:
    """Bytes a second from the smallest cache that holds `size` bytes."""
    return 1e9 * float(next(gbs for fits, gbs in limits["read_gbs"] if fits is None or size <= fits))


# (T, B, H) of the grid on a GPU, the most informative value of each first.
CUDA_CELLS = ("lstm", "gru", "rnn_tanh")
CUDA_PRECISIONS = ("bf16", "fp16", "tf32", "ieee")
CUDA_HIDDEN = (768, 1024, 256, 512, 2048, 128)
CUDA_BATCHES = (16, 64, 1, 128)
CUDA_STEPS = 512
CUDA_TINY = (("ieee", 3, 2, 16), ("tf32", 3, 2, 24))

# The least microseconds of a step of an LSTM in 16 bits, forward, by H and B: inferred from the latencies of
# the exchange and the rate of the tensor cores, not measured. Between them linear in B and in log H.
CUDA_FLOOR_US: dict[int, dict[int, float]] = {
    256: {1: 0.40, 128: 0.65},
    512: {1: 0.50, 128: 1.20},
    1024: {1: 0.65, 16: 0.75, 64: 1.30, 128: 1.60},
    2048: {1: 1.00, 128: 8.00},
}


@dataclass(frozen=True)
class CudaProblem(LayerProblem):
    """One layer on a GPU: "bf16" and "fp16" say how all arrays are stored, "tf32" and "ieee" are float32.

    "stream" is one step after another, the state kept between calls.
    """

    precision: str

    # Relative L2 errors against float64 that are promised: of outputs, of gradients.
    PROMISES: ClassVar[dict[str, tuple[float, float]]] = {
        "ieee": (1e-5, 1e-4),
        "tf32": (2e-3, 5e-3),
        "fp16": (2e-3, 1e-2),
        "bf16": (1e-2, 3e-2),
    }

    def floor_s(self, mode: str, limits: Limits) -> float | None:
        """The least time: of a streamed step that of a launch, of an LSTM in 16 bits `CUDA_FLOOR_US`."""
        if mode == "stream":
            return limits["launch us"] * 1e-6 if "launch us" in limits else None
        if mode != "forward" or self.cell != "lstm" or self.precision not in ("bf16", "fp16"):
            return None
        at_batch = [np.interp(self.batch, list(row), list(row.values())) for row in CUDA_FLOOR_US.values()]
        us = np.interp(np.log2(self.hidden_size), np.log2(list(CUDA_FLOOR_US)), at_batch)
        return self.seq_len * float(us) * 1e-6


def cuda_jobs(tiny: bool = False) -> list[tuple[CudaProblem, str]]:
    """The grid on a GPU with its modes, the most informative first; or a few that an emulator can run."""
    if tiny:
        shapes = [(cell, *shape) for cell in CUDA_CELLS for shape in CUDA_TINY]
    else:
        # What cuDNN's persistent kernel is known for; then the sum of places in the lists decides.
        axes = (CUDA_CELLS, CUDA_PRECISIONS, CUDA_HIDDEN, CUDA_BATCHES)
        places = itertools.product(*(range(len(axis)) for axis in axes))
        ordered = sorted(places, key=lambda place: (sum(place), place))
        grid = [tuple(axis[i] for axis, i in zip(axes, place, strict=True)) for place in ordered]
        shapes = [("lstm", "fp16", 1024, 16, 768)]
        shapes += [(cell, precision, CUDA_STEPS, B, H) for cell, precision, H, B in grid]
    layers = [
        (CudaProblem(cell, T, B, H, H, precision), mode)
        for cell, precision, T, B, H in shapes
        for mode in LayerProblem.modes
    ]
    sizes = (16,) if tiny else (256, 64, 1024)
    streams = [(CudaProblem("lstm", 1, 1, H, H, p), "stream") for H in sizes for p in ("bf16", "ieee")]
    return [*layers[:8], *streams, *layers[8:]]


@dataclass(frozen=True)
class StreamProblem(LayerProblem):
    """One step of one sequence after another, called from Python, the state kept between calls."""

    modes: ClassVar[tuple[str, ...]] = ("stream",)
    checked_steps: ClassVar[int] = 8

    def steps(self) -> Array:
        """Inputs (checked_steps, I) for the comparison of outputs; the same on every call."""
        rng = np.random.default_rng(8)
        return rng.standard_normal((self.checked_steps, self.input_size), dtype=np.float32)


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


@dataclass(frozen=True)
class ClassifierProblem:
    """An update of a classifier: bidirectional LSTM, linear on the mean over time, cross-entropy, Adam."""

    input_size: int = 64
    hidden_size: int = 128
    num_layers: int = 2
    classes: int = 10
    batch: int = 32
    seq_len: int = 100
    lr: float = 1e-3

    cell: ClassVar[str] = "lstm"
    modes: ClassVar[tuple[str, ...]] = ("step",)
    tolerance: ClassVar[float] = 1e-4
    checked_steps: ClassVar[int] = 5

    def describe(self) -> dict[str, Any]:
        """The fields that identify the problem in the results."""
        return {"cell": "bi-lstm", **asdict(self)}

    def layer_inputs(self) -> list[int]:
        """The input size of each layer."""
        return [self.input_size] + [2 * self.hidden_size] * (self.num_layers - 1)

    def data(self) -> dict[str, Array]:
        """x (T, B, I), labels (B,) int64, and the parameters by name; the same on every call."""
        rng = np.random.default_rng(7)
        hidden, rows, bound = self.hidden_size, 4 * self.hidden_size, self.hidden_size**-0.5
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, inputs in enumerate(self.layer_inputs()):
            for suffix in (f"l{layer}", f"l{layer}_reverse"):
                shapes[f"weight_ih_{suffix}"] = (rows, inputs)
                shapes[f"weight_hh_{suffix}"] = (rows, hidden)
                shapes[f"bias_ih_{suffix}"] = shapes[f"bias_hh_{suffix}"] = (rows,)
        shapes["linear_weight"] = (self.classes, 2 * hidden)
        shapes["linear_bias"] = (self.classes,)
        data: dict[str, Array] = {
            name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()
        }
        data["x"] = rng.standard_normal((self.seq_len, self.batch, self.input_size), dtype=np.float32)
        return {**data, "labels": rng.integers(0, self.classes, self.batch)}

    def flop(self, mode: str) -> float:
        """Floating-point operations of the LSTM's products, forward and backward."""
        products = sum(8 * self.hidden_size * (inputs + self.hidden_size) for inputs in self.layer_inputs())
        return 6.0 * self.seq_len * self.batch * products

    def floor_s(self, mode: str, limits: Limits) -> float:
        """The least time that the FMA peak and the activations allow, in seconds."""
        units = self.seq_len * self.batch * 2 * self.num_layers * self.hidden_size
        return self.flop(mode) / (limits["peak_gflops"] * 1e9) + units * limits["lstm_unit_ns"] * 1e-9


Problem: TypeAlias = LayerProblem | ModelProblem | ClassifierProblem


def odd_shapes() -> list[tuple[int, int, int, int]]:
    """A fixed choice of (T, B, I, H) whose training call stays below ODD_FLOP in every cell."""
    every = itertools.product(ODD_LENGTHS, ODD_BATCHES, ODD_SIZES, ODD_SIZES)
    small = [shape for shape in every if LayerProblem("lstm", *shape).flop("training") <= ODD_FLOP]
    return sorted(random.Random(ODD_SEED).sample(small, ODD_COUNT))


def suite(name: str, cells: Iterable[str] | None = None) -> list[Problem]:
    """The problems of a suite, for all cells or for those named."""
    if name == "model":
        return [ModelProblem(), ClassifierProblem()]
    cells = list(cells or GATES)
    if name == "features":
        # H = 8 shows what a call costs, through the step object and through the module.
        streams = [StreamProblem(cell, 1, 1, hidden, hidden) for cell in cells for hidden in (8, 64, 256)]
        return [*streams, *(LayerProblem(cell, 1, 1, 8, 8) for cell in cells)]
    if name == "odd":
        shapes = odd_shapes()
    else:
        shapes = [(T, B, H, H) for T, B, H in {"quick": QUICK, "grid": GRID}[name]]
    return [LayerProblem(cell, *shape) for cell in cells for shape in shapes]
