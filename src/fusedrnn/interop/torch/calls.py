"""How recurrent modules of PyTorch are called: what torch.nn's take, and `lengths` and `resets` beside."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any, ClassVar

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fusedrnn.interop.torch.kernels import Tensor

State = tuple[Tensor, ...]
_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


# Not a subclass of ABC: an object of torch.nn's could not become one of a subclass then.
class Calls(metaclass=ABCMeta):
    """Packed, unbatched and padded sequences, all run by the `_apply` of a subclass, a torch.nn.Module."""

    input_size: int
    batch_first: bool
    # What the call names the flags of steps (T, B) that its networks take.
    _marks: ClassVar[str] = "resets"
    _takes_marks: ClassVar[bool] = True

    @abstractmethod
    def _state_shapes(self) -> list[tuple[str, int, int]]:
        """Return the name of each state, its rows (num_layers*D) and its width."""

    @abstractmethod
    def _params(self) -> tuple[Tensor, ...]:
        """Return the parameters, by attribute where a parametrization or a call with others has put them."""

    @abstractmethod
    def _apply_to(
        self,
        x: Tensor,
        lengths: Tensor | None,
        resets: Tensor | None,
        state: State,
        params: tuple[Tensor, ...],
        batch_first: bool,
    ) -> tuple[Tensor, State]:
        """Return y and the final states of checked tensors."""

    def _shortly(
        self, input: Any, hx: Any, lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Any, Any] | None:
        """Return what `forward` does, or None, with nothing done, where there is no shorter way."""
        return None

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the network.

        Args:
            input: (T, B, I), (B, T, I) with batch_first, (T, I), or a PackedSequence;
                of the parameters' dtype.
            hx: initial state, h (num_layers*D, B, Hout) or, of a cell with several states, a tuple of h and
                the others; without B for one sequence; None for zeros or what the options say.
            lengths: (B,) of an integer dtype, each in 0..T, in any order; y is 0 past the end, and the final
                state is that after the last step. Not with a PackedSequence.
            resets: bool, the leading shape of input; where true, the state is replaced before the step reads
                it. Not with a PackedSequence.

        Returns:
            y (T, B, D*Hout), laid out as input, and the final state, shaped as hx.

        Raises:
            TypeError: a tensor of another dtype.
            ValueError: another dtype of input than the parameters', or number of dimensions, or lengths
                and resets that do not fit.
            RuntimeError: another shape, or a tensor that is not on the CPU, or a second derivative where the
                class has none.
        """
        if (found := self._shortly(input, hx, lengths, resets)) is not None:
            return found
        for name, value in (("lengths", lengths), (self._marks, resets)):
            if not (value is None or isinstance(value, Tensor)):
                raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if resets is not None and not self._takes_marks:
            raise ValueError(f"{self._marks}: expected None, a {type(self).__name__} has none")
        if isinstance(input, PackedSequence):
            if lengths is not None or resets is not None:
                raise ValueError(f"lengths, {self._marks}: expected None with a PackedSequence")
            return self._packed(input, hx)
        if not isinstance(input, Tensor):
            raise TypeError(
                f"input: expected a torch.Tensor or PackedSequence, got {type(input).__name__}; "
                "an array becomes one by torch.from_numpy"
            )
        if input.dim() not in (2, 3):
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead"
            )
        single = input.dim() == 2
        parts = self._parts(hx, single)
        x = input.unsqueeze(1) if single else input
        if single:
            parts = None if parts is None else tuple([part.unsqueeze(1) for part in parts])
            resets = None if resets is None else resets.unsqueeze(1)
        y, finals = self._run(x, parts, lengths, resets, self.batch_first and not single)
        if single:
            y, finals = y.squeeze(1), tuple([final.squeeze(1) for final in finals])
        return y, _joined(finals)

    def _parts(self, hx: Any, single: bool) -> State | None:
        """Return the state as a tuple, its number of dimensions checked."""
        if hx is None:
            return None
        dims, kind = (2, "unbatched 2-D") if single else (3, "batched 3-D")
        several = len(self._state_shapes()) > 1 and isinstance(hx, (tuple, list, Tensor))
        parts = tuple(hx) if several else (hx,)
        for part in parts:
            if not isinstance(part, Tensor):
                raise TypeError(f"hx: expected a torch.Tensor for each state, got {type(part).__name__}")
            if part.dim() != dims:
                raise RuntimeError(
                    f"For {kind} input, hx should also be {dims}-D but got {part.dim()}-D tensor"
                )
        return parts

    def _run(
        self,
        x: Tensor,
        state: State | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        batch_first: bool,
    ) -> tuple[Tensor, State]:
        params = self._params()
        first = params[0]
        if x.dtype is not first.dtype:
            if not torch.is_autocast_enabled("cpu"):
                raise ValueError(
                    f"RNN input dtype ({x.dtype}) does not match weight dtype ({first.dtype}). "
                    f"Convert input: input.to({first.dtype}), or convert model: model.to({x.dtype})"
                )
            # Autocast leaves recurrent networks in the dtype of their parameters.
            x = x.to(first.dtype)
            state = None if state is None else tuple([part.to(first.dtype) for part in state])
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        batch = x.shape[0 if batch_first else 1]
        if state is not None:
            shapes = self._state_shapes()
            if len(state) != len(shapes):
                names = ", ".join(name for name, _, _ in shapes)
                raise RuntimeError(f"hx: expected {len(shapes)} tensors ({names}), got {len(state)}")
            for part, (name, rows, width) in zip(state, shapes, strict=True):
                if part.shape != (rows, batch, width):
                    raise RuntimeError(
                        f"Expected hidden {name} size ({rows}, {batch}, {width}), got {list(part.shape)}"
                    )
        if lengths is not None:
            if lengths.shape != (batch,) or lengths.dtype not in _INTEGERS:
                got = f"{lengths.dtype} {tuple(lengths.shape)}"
                raise ValueError(f"lengths: expected integers (B,) = ({batch},), got {got}")
            lengths = lengths.to(device="cpu", dtype=torch.int64)
        if resets is not None and (resets.shape != x.shape[:2] or resets.dtype is not torch.bool):
            got = f"{resets.dtype} {tuple(resets.shape)}"
            raise ValueError(f"{self._marks}: expected torch.bool {tuple(x.shape[:2])}, got {got}")
        return self._apply_to(x, lengths, resets, state or (), params, batch_first)

    def _packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        """Run over the padded sequences, sorted as they are packed, and pack again."""
        data, batch_sizes, order, back = packed
        if data.dim() != 2:
            raise ValueError(f"input: expected packed rows of 2 dimensions, got {data.dim()}")
        x, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        parts = self._parts(hx, False)
        if parts is not None and order is not None:
            parts = tuple([part.index_select(1, order) for part in parts])
        y, finals = self._run(x, parts, lengths, None, False)
        rows = pack_padded_sequence(y, lengths).data
        if back is not None:
            finals = tuple([final.index_select(1, back) for final in finals])
        return PackedSequence(rows, batch_sizes, order, back), _joined(finals)


def _joined(finals: State) -> Any:
    """Return the state as a call returns it: a tuple of several, one alone, or None."""
    return finals if len(finals) > 1 else finals[0] if finals else None


def drawn_seed() -> Tensor:
    """Return a seed of masks from torch's own generator, so that checkpointing repeats it."""
    return torch.randint(0, 2**62, (1,), dtype=torch.int64)
