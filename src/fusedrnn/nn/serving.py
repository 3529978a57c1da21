"""What a recurrent network runs as beside whole sequences: streams, and weights in fewer bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic

from fusedrnn.cells import CELLS
from fusedrnn.checks import check_size
from fusedrnn.inference.quantized import QuantizedRecurrent
from fusedrnn.inference.stream import Stream
from fusedrnn.nn.plan import NetworkPlan
from fusedrnn.nn.starting import WithStarts

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # Without a default, type checkers ask for an annotation of what is made of `Recurrent` itself.
    StateT = TypeVar("StateT", default=Any)
else:
    from typing import TypeVar

    StateT = TypeVar("StateT")


class Served(WithStarts, Generic[StateT]):
    """A network that makes streams and quantized networks."""

    _key: str
    _plan: NetworkPlan
    _plain: Callable[..., Any] | None

    def stream(self, batch_size: int = 1) -> Stream[StateT]:
        """Return a `Stream` that runs this network one step at a time, without dropout.

        Args:
            batch_size: how many sequences go side by side.

        Raises:
            TypeError: batch_size is not an int.
            ValueError: the network is bidirectional, residual or with all_states, or batch_size is below 1.
            RuntimeError: the network is on a GPU.
        """
        self._require_cpu("stream")
        if self.bidirectional:
            raise ValueError(
                "stream: expected bidirectional=False: the reverse direction starts from the end"
            )
        if self.all_states:
            raise ValueError(
                "stream: expected all_states=False, got True: the state of a stream has them after each step"
            )
        if self.residual:
            raise ValueError("stream: expected residual=False, got True: layers run one into the other there")
        return Stream(self, check_size("batch_size", batch_size, maximum=2**63 - 1))

    def quantize(self, weights: str) -> QuantizedRecurrent[StateT]:
        """Return a copy of this network for inference, with its weights in fewer bits.

        Args:
            weights: "bf16" (half the bytes, errors of 2^-9 a weight) or "int8" (a quarter of the bytes, with
                inputs and h rounded to int8 too); see docs/quantized.md.

        Raises:
            TypeError: weights is not a string, or the network is not of float32.
            ValueError: another format, sizes past 131072 with "int8", the cell of `define_cell`, or an option
                that it lacks.
            RuntimeError: the network is on a GPU.
        """
        self._require_cpu("quantize")
        if self._spec.definition is not None:
            raise ValueError(
                f"quantize: expected a compiled cell, {', '.join(CELLS)}, got {self._spec.label}, a program, "
                "which runs in float32 and float64"
            )
        if name := self._beside():
            raise ValueError(f"quantize: expected a network without {name}, got one with it")
        return QuantizedRecurrent(self, weights)
