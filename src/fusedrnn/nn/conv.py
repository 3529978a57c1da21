"""Conv1d: convolution over the time of sequences."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.backend import CPU
from fusedrnn.checks import check_array, check_flag, check_size, resolve_dtype
from fusedrnn.init import Seed, check_method, make_rng, torch_uniform
from fusedrnn.inputs.masks import counted_steps, only_counted
from fusedrnn.inputs.rows import check_sequence, contiguous
from fusedrnn.inputs.sequences import as_lengths
from fusedrnn.nn.module import Module, changed_options
from fusedrnn.nn.tape import SavedTape, check_tape


class Conv1d(Module):
    """y_t = bias + sum over k of weight[:, :, k] x_(t*stride + k*dilation - padding), over the axis of time.

    x is (T, B, C), (B, T, C) with batch_first, or (T, C) for one sequence; y has
    T' = (T + padding before and behind - (kernel_size - 1) * dilation - 1) // stride + 1 steps, or none.
    With `lengths`, what stands past the end of a sequence counts as padding, y is 0 past the end of its own
    sequence, and the lengths behind this module are T' of each.

    Parameters, as torch.nn.Conv1d's: weight (O, C, K) and bias (O,), both initialised from
    U(-1/sqrt(C*K), 1/sqrt(C*K)). torch's x is (B, C, T).

    Args:
        in_channels: C >= 1.
        out_channels: O >= 1.
        kernel_size: K >= 1.
        stride: steps of x from one step of y to the next.
        padding: zeros at each end; "same" for as many as keep T, with stride 1; "causal" for
            (K - 1) * dilation before x and none behind, so that y_t sees no later step.
        dilation: steps of x between those of a kernel.
        bias: whether there is a bias.
        batch_first: x and y are (B, T, ...).
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here; None leaves all parameters at zero, for weights
            that are loaded next.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, or "same" with a stride.
    """

    _fixed = frozenset(("in_channels", "out_channels", "kernel_size", "bias"))
    _host_only = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        self.in_channels = check_size("in_channels", in_channels)
        self.out_channels = check_size("out_channels", out_channels)
        self.kernel_size = check_size("kernel_size", kernel_size)
        self.stride = check_size("stride", stride)
        self.dilation = check_size("dilation", dilation)
        self.padding = padding
        if not isinstance(padding, str):
            self.padding = check_size("padding", padding, 0)
        _ = self._ends  # refuses what is wrong
        self.bias = check_flag("bias", bias)
        self.batch_first = check_flag("batch_first", batch_first)
        shapes: dict[str, tuple[int, ...]] = {
            "weight": (self.out_channels, self.in_channels, self.kernel_size)
        }
        if self.bias:
            shapes["bias"] = (self.out_channels,)
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        self._declare(shapes, found)
        for array in self._own.values() if method else ():
            torch_uniform(array, self.in_channels * self.kernel_size, rng=rng)

    @property
    def _ends(self) -> tuple[int, int]:
        """The zeros before and behind x."""
        reach = (self.kernel_size - 1) * self.dilation
        if self.padding == "causal":
            return reach, 0
        if self.padding == "same":
            if self.stride != 1:
                raise ValueError(
                    f"padding: expected an int or 'causal' with stride {self.stride}, got 'same'"
                )
            return reach // 2, reach - reach // 2
        if isinstance(self.padding, str):
            raise ValueError(f"padding: expected an int, 'same' or 'causal', got {self.padding!r}")
        return self.padding, self.padding

    def output_steps(self, lengths: Any, mask: Any) -> tuple[Any, None]:
        """Return the lengths of y for those of x, and None; a mask is refused."""
        if mask is not None:
            raise ValueError("mask: expected lengths with a Conv1d, whose steps are others than those of x")
        if lengths is None:
            return None, None
        given = as_lengths(lengths)
        return np.where(given > 0, self._steps(given), 0), None

    def _steps(self, steps: Any) -> Any:
        """Return how many steps y has for those of x."""
        room = steps + sum(self._ends) - (self.kernel_size - 1) * self.dilation - 1
        return np.maximum(room // self.stride + 1, 0)

    def __call__(self, x: Array, lengths: npt.ArrayLike | None = None) -> Array:
        """Return y and keep no tape; arguments as `forward`."""
        return self._apply(x, lengths, self._own)[0]

    def forward(self, x: Array, lengths: npt.ArrayLike | None = None) -> tuple[Array, SavedTape]:
        """Return y (T', B, O), laid out as x, and the tape, which refers to x.

        Args:
            x: (T, B, C), (B, T, C) with batch_first, or (T, C).
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.

        Raises:
            TypeError: x is not an array of the module's dtype, or lengths are not integers.
            ValueError: an argument of the wrong shape, or lengths out of range.
        """
        kept = self._kept_parameters()
        y, saved, owned = self._apply(x, lengths, kept)
        return y, SavedTape(self, y.shape, (*saved, kept, x.shape), owned)

    def _apply(self, x: Array, lengths: npt.ArrayLike | None, parameters: Any) -> tuple[Array, Any, int]:
        axis = check_sequence(x, "C", self.in_channels, self._dtype, self.batch_first)
        inside = counts = None
        # A view, whose shape nobody else can change.
        padded = x[...]
        if lengths is not None:
            inside = counted_steps(None, lengths, x.shape[:-1], axis)
            padded = only_counted(inside, x)
        if any(self._ends):
            ends = [(0, 0)] * x.ndim
            ends[axis] = self._ends
            padded = np.pad(padded, ends)
        lead, weights = self._lead(padded, axis), _by_step(parameters["weight"])
        y = CPU.kernels.linear_forward(self._rows(padded, axis, lead, 0), weights[0], parameters.get("bias"))
        for k in range(1, self.kernel_size):
            y += CPU.kernels.linear_forward(self._rows(padded, axis, lead, k), weights[k], None)
        y = y.reshape(*lead, self.out_channels)
        if inside is not None:
            ends_of_y = self.output_steps(lengths, None)[0]
            counts = counted_steps(None, ends_of_y, y.shape[:-1], axis)
            y = only_counted(counts, y)
        return y, (padded, inside, counts), 0 if padded.base is x else padded.nbytes

    def _lead(self, padded: Array, axis: int) -> tuple[int, ...]:
        """Return the axes of y before the last."""
        lead = list(padded.shape[:-1])
        lead[axis] = max((lead[axis] - (self.kernel_size - 1) * self.dilation - 1) // self.stride + 1, 0)
        return tuple(lead)

    def _seen(self, axis: int, lead: tuple[int, ...], k: int) -> tuple[slice, ...]:
        """Return the index of the steps of x that step k of the kernel sees."""
        start = k * self.dilation
        stop = start + (lead[axis] - 1) * self.stride + 1 if lead[axis] else start
        return _along(axis, slice(start, stop, self.stride))

    def _rows(self, padded: Array, axis: int, lead: tuple[int, ...], k: int) -> Array:
        """Return these steps as rows (N, C)."""
        return contiguous(padded[self._seen(axis, lead, k)]).reshape(math.prod(lead), self.in_channels)

    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Add to the gradients of weight and bias; return dx in the shape of x, or None without need_dx.

        What stands past the end of a sequence gets exactly 0.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        padded, inside, counts, kept, shape = tape.saved
        check_array("dy", dy, tape.shape, padded.dtype)
        axis = int(self.batch_first and len(shape) == 3)
        lead, flow = tape.shape[:-1], contiguous(only_counted(counts, dy)).reshape(-1, self.out_channels)
        weights, sums = _by_step(kept["weight"]), self._sums()
        dpadded = np.zeros(padded.shape if need_dx else 0, padded.dtype)
        dweights = np.zeros(weights.shape, weights.dtype)
        dbias = np.zeros(self.out_channels, weights.dtype) if "bias" in sums else None
        for k, weight in enumerate(weights):
            drows = CPU.kernels.linear_backward(
                self._rows(padded, axis, lead, k),
                weight,
                flow,
                dweights[k] if sums else None,
                dbias if k == 0 else None,
                need_dx,
            )
            if need_dx:
                dpadded[self._seen(axis, lead, k)] += drows.reshape(*lead, self.in_channels)
        if sums:
            with self._turn.take():
                sums["weight"] += dweights.transpose(1, 2, 0)
                if dbias is not None:
                    sums["bias"] += dbias
        if not need_dx:
            return None
        dx: Array = dpadded[_along(axis, slice(self._ends[0], self._ends[0] + shape[axis]))]
        return only_counted(inside, dx)

    def _extra_repr(self) -> str:
        changed = changed_options(
            stride=(self.stride, 1),
            padding=(self.padding, 0),
            dilation=(self.dilation, 1),
            bias=(self.bias, True),
            batch_first=(self.batch_first, False),
            dtype=(str(self._dtype), "float32"),
        )
        return f"{self.in_channels}, {self.out_channels}, {self.kernel_size}{changed}"


def _by_step(weight: Array) -> Array:
    """Return a weight (O, C, K) as (K, O, C)."""
    return np.ascontiguousarray(weight.transpose(2, 0, 1))


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    """Return the index of a part of an axis, 0 or 1."""
    return (slice(None), part) if axis else (part,)
