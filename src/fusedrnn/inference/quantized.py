"""QuantizedRecurrent: a recurrent network for inference with its weights in bfloat16 or int8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array, StateLike, as_array
from fusedrnn.backend import CPU
from fusedrnn.cells import gather_weights
from fusedrnn.checks import check_array, check_choice, check_mapping, check_names, check_size, kind_error
from fusedrnn.inference.stream import StreamBase
from fusedrnn.inputs.masks import packing_of
from fusedrnn.inputs.sequences import as_lengths
from fusedrnn.listing import Listed
from fusedrnn.nn.plan import Network, borders_of, time_major

StateT = TypeVar("StateT")

WEIGHT_FORMATS = ("bf16", "int8")


class QuantizedRecurrent(Listed, Generic[StateT]):
    """An RNN, LSTM or GRU with weights of 16 or 8 bits, for inference; made by `lstm.quantize(weights)`.

    It holds a copy of the weights: what happens to the float32 network later does not reach it. Shapes,
    states, lengths and resets are those of the network it was made from; all arrays are float32. Biases,
    states and the equations of the cell stay in float32. One thread runs a call. Only `load_state_dict`
    changes it, all at once, so that threads may share it. It can be pickled and copied; `state_dict` is for
    files. docs/quantized.md has the scheme and what accuracy to expect.

    Args:
        module: an RNN, LSTM or GRU of float32 on the CPU.
        weights: "bf16" or "int8".

    Attributes:
        weights: "bf16" or "int8".
        input_size, hidden_size, num_layers, bias, batch_first, bidirectional, proj_size: as in the network.
    """

    def __init__(self, module: Network, weights: str) -> None:
        if not isinstance(weights, str):
            raise TypeError(f"weights: expected 'bf16' or 'int8', got {weights!r}")
        check_choice("weights", weights, WEIGHT_FORMATS)
        shape = module._network
        if shape.dtype != np.float32:
            raise TypeError(f"quantize: expected a network of float32, got {shape.dtype}")
        self.weights = weights
        self.input_size = module.input_size
        self.hidden_size = module.hidden_size
        self.num_layers = module.num_layers
        self.bias = module.bias
        self.batch_first = module.batch_first
        self.bidirectional = module.bidirectional
        self.proj_size = module.proj_size
        self._spec, self._shape = shape.spec, shape
        self._origin = repr(module)
        self._core = _core.Quantized(self._spec.name, module._plan.weights(), weights)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of inputs, outputs and states: float32."""
        return np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights, with biases, scales and padding to whole vectors."""
        return self._core.nbytes

    def __call__(
        self,
        x: Array,
        state: StateLike | None = None,
        lengths: npt.ArrayLike | None = None,
        resets: npt.ArrayLike | None = None,
        reset_state: StateLike | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> tuple[Array, StateT]:
        """Run the network over whole sequences, without dropout.

        Args:
            x: (T, B, I), (B, T, I) with batch_first, or (T, I) for one sequence; float32.
            state: the initial state, h or (h, c), or None for zeros.
            lengths: (B,) of an integer dtype, each in 0..T; outputs past the end are 0.
            resets: (T, B) bool, laid out as x: where true, the state is replaced before step t reads it.
            reset_state: what resets put in place of the state: zeros if None, else arrays shaped as the
                state (num_layers*D, B, H), with or without the batch axis.
            mask: (T, B) bool, laid out as x: false for steps that are left out. The state passes through
                them and y is 0 there; a reset at one acts at the next step that counts.

        Returns:
            y (T, B, D*Hout), laid out as x, and the final state.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape, or lengths out of range.
        """
        if mask is not None:
            packing = packing_of(self, x, mask, lengths)
            borders = None if resets is None else packing.borders(resets, x.shape[:-1])
            y, last = self(packing.take(x), state, packing.lengths, borders, reset_state)
            return packing.spread(y), last
        shape = x.shape if isinstance(x, np.ndarray) else ()
        single = len(shape) == 2
        if not (single or len(shape) == 3) or shape[-1] != self.input_size:
            raise self._input_error(x)
        y = np.empty((*shape[:-1], self._shape.out_size), np.float32)
        steps = time_major(x, single, self.batch_first)
        batch = steps.shape[1]
        borders = None
        if resets is not None:
            borders = borders_of(resets, shape[:-1], single, self.batch_first, CPU)
        elif reset_state is not None:
            raise ValueError("reset_state: expected None without resets")
        finals = self._core.forward(
            steps,
            time_major(y, single, self.batch_first),
            None if state is None else self._shape.split_state("state", state, batch, single),
            lengths=None if lengths is None else as_lengths(lengths),
            resets=borders,
            reset_state=None if reset_state is None else self._spec.unpack_state("reset_state", reset_state),
        )
        if single:
            finals = tuple([final[:, 0] for final in finals])
        final: StateT = self._spec.pack_state(finals)
        return y, final

    def stream(self, batch_size: int = 1) -> QuantizedStream[StateT]:
        """Return a `QuantizedStream` that runs this network one step at a time.

        Args:
            batch_size: how many sequences go side by side.

        Raises:
            TypeError: batch_size is not an int.
            ValueError: the network is bidirectional, or batch_size is below 1.
        """
        if self.bidirectional:
            raise ValueError(
                "stream: expected bidirectional=False: the reverse direction starts from the end"
            )
        return QuantizedStream(self, check_size("batch_size", batch_size, maximum=2**63 - 1))

    def state_dict(self) -> dict[str, Array]:
        """Return {name: copy} in few bits, the same on every instruction set, to save as it is.

        For each layer and direction, with the suffix _l{k}{_reverse}: weight_ih (G*H, I or D*Hout), weight_hh
        (G*H, Hout) and weight_hr (P, H) in int8, or with "bf16" in uint16, the upper halves of float32; with
        "int8" the scales of their rows, scale_ih, scale_hh and scale_hr, float32; and bias_ih (G*H,), which
        for an RNN or LSTM is the sum of both biases, and for a GRU bias_hh (G*H,).
        """
        state: dict[str, Array] = {}
        for row, (weights, scales, biases) in enumerate(self._core.weights()):
            suffix = self._suffix(row)
            for kind, arrays in (("weight", weights), ("scale", scales), ("bias", biases)):
                if kind == "bias" and not self.bias:
                    continue
                for name, array in zip(("ih", "hh", "hr"), arrays, strict=False):
                    if array is not None:
                        state[f"{kind}_{name}{suffix}"] = array
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the weights from the `state_dict` of a network of the same sizes and format, bit for bit.

        `fusedrnn.LSTM(..., init=None).quantize(...)` makes one to load into. Streams made before keep theirs.

        Raises:
            TypeError: a value of another dtype.
            ValueError: names or shapes differ.
        """
        check_mapping("state_dict", state_dict)
        like = self.state_dict()
        check_names("state_dict", f"this {self!r}", like, state_dict)
        state = {
            name: check_array(name, as_array(state_dict[name], name), array.shape, array.dtype)
            for name, array in like.items()
        }
        self._core = self._packed(state)

    def _packed(self, state: Mapping[str, Array]) -> _core.Quantized:
        """Return the compiled network of a `state_dict`."""
        layers: list[list[Any]] = []
        for row in range(self._shape.rows):
            suffix = self._suffix(row)
            params: dict[str, Any] = {
                name: decoded(state[name + suffix], state.get(f"scale_{name[-2:]}{suffix}"))
                for name in ("weight_ih", "weight_hh", "weight_hr")
                if name + suffix in state
            }
            params.update({name: state.get(name + suffix) for name in ("bias_ih", "bias_hh")})
            if row % self._directions == 0:
                layers.append([])
            layers[-1].append(gather_weights(self._spec, params))
        return _core.Quantized(self._spec.name, layers, self.weights)

    @property
    def _directions(self) -> int:
        return self._shape.rows // self.num_layers

    def _suffix(self, row: int) -> str:
        """Return what follows the names of a layer and direction."""
        layer, direction = divmod(row, self._directions)
        return f"_l{layer}_reverse" if direction else f"_l{layer}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_core": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._core = self._packed(state["_core"])

    def _input_error(self, x: Any) -> Exception:
        """Say what is wrong with x."""
        if not isinstance(x, np.ndarray):
            return kind_error("x", x, "a numpy.ndarray of float32")
        order = "B, T" if self.batch_first else "T, B"
        return ValueError(
            f"x: expected shape ({order}, I) or (T, I) with I = {self.input_size}, got {x.shape}"
        )

    def __repr__(self) -> str:
        return f"QuantizedRecurrent({self._origin}, weights={self.weights!r})"


def decoded(weight: Array, scale: Array | None) -> Array:
    """Return weights in float32 that become the same bits again: the same integers and the same scales."""
    if scale is None:
        return (weight.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        # A scale is the row's largest magnitude by 127: the float32 that has it as quotient is next to 127 s.
        near = scale * np.float32(127)
        largest = near
        for toward in (-np.inf, np.inf):
            other = np.nextafter(near, np.float32(toward))
            largest = np.where(largest / np.float32(127) == scale, largest, other)
        integers = weight.astype(np.float32)
        ends = np.sign(integers) * largest[:, None]
        return np.where(np.abs(integers) == 127, ends, integers * scale[:, None])


class QuantizedStream(StreamBase[StateT]):
    """A quantized network that remembers its state: `y_t = step(x_t)`; made by `QuantizedRecurrent.stream`.

    Feeding the steps of a sequence one by one gives the rows that the whole-sequence call gives, bit for
    bit. A stream serves one thread at a time: a use that comes during another raises RuntimeError and
    changes nothing.

    Attributes:
        batch_size: B.
    """

    __slots__ = ("_network",)
    _core: _core.QuantizedStream

    def __init__(self, network: QuantizedRecurrent[StateT], batch_size: int) -> None:
        self._network = network
        super().__init__(_core.QuantizedStream(network._core, batch_size), batch_size)

    @property
    def state(self) -> StateT:
        """A copy of the state, h or (h, c), each (num_layers, B, ...) as a call takes it; can be set."""
        state: StateT = self._network._spec.pack_state(self._core.get_state())
        return state

    @state.setter
    def state(self, value: StateLike) -> None:
        self._core.set_state(self._network._shape.split_state("state", value, self.batch_size))

    def __repr__(self) -> str:
        return f"QuantizedStream({self._network!r}, batch_size={self.batch_size})"
