"""What a GPU's backend offers in place of `fusedrnn._core`: functions with the same names and arguments.

Equations are those of the compiled kernels; products and the moving of rows are left to the array library,
CuPy.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fusedrnn.cuda import loader
from fusedrnn.cuda.layer import call_forward
from fusedrnn.cuda.libraries import Library, library_of


class WeightCache:
    """The weights of one layer and direction in 16 bits, and what they were made from."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: tuple[object, tuple[Any, ...]] | None = None


class StagedCalls(NamedTuple):
    """As `_core.StagedCalls`."""

    stages: Iterator[list[Callable[[], Any]]]
    run_calls: Callable[[list[Callable[[], Any]]], list[Any]]

    def run(self) -> list[Any]:
        """Run the next list of calls."""
        return self.run_calls(next(self.stages))


class ForwardCall(partial[Any]):
    """As `_core.ForwardCall`."""

    def draw_masks(self, seed: int, offset: int) -> None:
        """Before it runs: masks of the cell are drawn, by the streams from `offset` on."""
        self.keywords["draws"] = seed, offset


class Kernels:
    """The functions for the arrays of one library, `xp`, on one device."""

    def __init__(self, xp: Any, number: int) -> None:
        self._xp = xp
        self._number = number

    def WeightCache(self) -> "WeightCache":
        """As `_core.WeightCache`, for weights of fewer bits than the parameters have."""
        return WeightCache()

    # Recurrent layers

    def forward(
        self,
        cell: str,
        x: Any,
        params: Any,
        state: Any = None,
        indices: Any = None,
        lengths: Any = None,
        resets: Any = None,
        reset_state: Any = None,
        reverse: bool = False,
        save: bool = False,
        recompute: bool = False,
        cache: Any = None,
        version: int | None = None,
        out: Any = None,
        state_out: Any = None,
        draws: tuple[int, int] | None = None,
    ) -> Any:
        """As `_core.forward`; draws: (seed, offset) of the masks of its cell."""
        library = library_of(x)
        return call_forward(
            library._replace(empty=self._empty(library)),
            cell,
            self._typed(x),
            self._weights(params, cache, version, library),
            self._small(state),
            lengths,
            indices=indices,
            resets=self._small(resets),
            reset_state=self._small(reset_state),
            reverse=reverse,
            save=save,
            recompute=recompute,
            out=self._typed(out),
            state_out=self._typed(state_out),
            draws=draws,
        )

    def backward(
        self,
        tape: Any,
        dy: Any = None,
        dstate: Any = None,
        dparams: Any = None,
        need_dx: bool = True,
        dx: Any = None,
        accumulate_dx: bool = False,
    ) -> Any:
        """As `_core.backward`."""
        library = library_of(dparams[0])
        return loader.load().backward(
            tape,
            self._typed(dy),
            self._small(dstate),
            dparams=dparams,
            need_dx=need_dx,
            dx=self._typed(dx),
            accumulate_dx=accumulate_dx,
            empty=self._empty(library),
            stream=library.stream,
        )

    def ForwardCall(self, *arguments: Any, **options: Any) -> "ForwardCall":
        """A call of `forward`, to be run by `run_calls`."""
        return ForwardCall(self.forward, *arguments, **options)

    def BackwardCall(self, *arguments: Any, **options: Any) -> Callable[[], Any]:
        """A call of `backward`, to be run by `run_calls`."""
        return partial(self.backward, *arguments, **options)

    def run_calls(self, calls: list[Callable[[], Any]]) -> list[Any]:
        """Run calls one after the other, in the caller's stream."""
        return [call() for call in calls]

    def StagedCalls(self, stages: list[list[Callable[[], Any]]]) -> "StagedCalls":
        """As `_core.StagedCalls`, but a call takes its memory when it runs."""
        return StagedCalls(iter(stages), self.run_calls)

    def _small(self, value: Any) -> Any:
        """Return small arrays in C order, as the CPU takes them in any."""
        if isinstance(value, (tuple, list)):
            return tuple([self._small(item) for item in value])
        return None if value is None else self._typed(self._xp.ascontiguousarray(value))

    # Where a call in 16 bits differs.

    def _weights(self, params: Any, cache: Any, version: int | None, library: Library) -> Any:
        """Return the parameters as kernels take them."""
        return params

    def _empty(self, library: Library) -> Callable[[tuple[int, ...], str], Any]:
        """Return what makes new arrays for kernels."""
        return library.empty

    def _typed(self, value: Any) -> Any:
        """Return an array, a tuple of arrays or None as kernels take them."""
        return value

    # Layers

    def linear_forward(self, x: Any, weight: Any, bias: Any) -> Any:
        """As `_core.linear_forward`."""
        self._check("x", x, weight)
        y = x @ weight.T
        if bias is not None:
            y += bias
        return y

    def linear_backward(self, x: Any, weight: Any, dy: Any, dweight: Any, dbias: Any, need_dx: bool) -> Any:
        """As `_core.linear_backward`."""
        if dweight is not None:
            dweight += dy.T @ x
        if dbias is not None:
            dbias += dy.sum(axis=0)
        return dy @ weight if need_dx else None

    def layer_norm_forward(self, x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
        """As `_core.layer_norm_forward`."""
        if weight is not None:
            self._check("x", x, weight)
        self._check_wide("x", x)
        xp = self._xp
        y, (mean, rstd) = xp.empty(x.shape, x.dtype), [xp.zeros((len(x), 2), x.dtype) for _ in range(2)]
        loader.load().layer_norm_forward(x, weight, bias, eps, y, mean, rstd, library_of(x).stream)
        return y, mean, rstd

    def layer_norm_backward(
        self, x: Any, weight: Any, dy: Any, mean: Any, rstd: Any, dweight: Any, dbias: Any
    ) -> Any:
        """As `_core.layer_norm_backward`."""
        dx = self._xp.empty(x.shape, x.dtype)
        loader.load().layer_norm_backward(x, weight, dy, mean, rstd, dx, dweight, dbias, library_of(x).stream)
        return dx

    def embedding_forward(self, indices: Any, weight: Any) -> Any:
        """As `_core.embedding_forward`, with indices in host memory."""
        self._check_indices("indices", indices, "V", len(weight))
        return weight[self._xp.asarray(indices)]

    def embedding_backward(self, indices: Any, dy: Any, dweight: Any) -> None:
        """As `_core.embedding_backward`: rows of one index are added in order, so that runs agree bitwise."""
        self._check_indices("indices", indices, "V", len(dweight))
        if not indices.size:
            return
        order = np.argsort(indices, kind="stable")
        rows, starts = np.unique(indices[order], return_index=True)
        xp = self._xp
        dweight[xp.asarray(rows)] += xp.add.reduceat(dy[xp.asarray(order)], xp.asarray(starts), axis=0)

    @staticmethod
    def _check_indices(name: str, indices: Any, symbol: str, limit: int) -> None:
        if indices.size and not 0 <= indices.min() <= indices.max() < limit:
            got = f"{indices.min()}..{indices.max()}"
            raise ValueError(f"{name}: expected values in [0, {symbol}) = [0, {limit}), got {got}")

    def dropout(self, x: Any, p: float, seed: int, offset: int, out: Any = None) -> Any:
        """As `_core.dropout`: the same values are kept."""
        self._check_wide("x", x)
        y = self._xp.empty(x.shape, x.dtype)
        loader.load().dropout(self._typed(x), self._typed(y), p, seed, offset, library_of(x).stream)
        if out is None:
            return y
        out[...] = y
        return out

    def cross_entropy(
        self,
        logits: Any,
        targets: Any,
        weight: Any,
        ignore_index: int,
        label_smoothing: float,
        mean: bool,
    ) -> tuple[Any, float, Any]:
        """As `_core.cross_entropy`, with targets in host memory."""
        xp, classes = self._xp, logits.shape[1]
        counted = targets[targets != ignore_index]
        self._check_indices("targets", counted, "C", classes)
        each, unit, count = None, 1.0, float(len(targets))
        if weight is not None:
            self._check("weight", weight, logits, "logits")
            largest = float(xp.abs(weight).max()) if classes else 0.0
            if not math.isfinite(largest):
                raise ValueError(f"weight: expected finite numbers, got {largest}")
            each = weight.astype(xp.float64)
            if mean:
                # Relative to the largest, so that no sum overflows.
                each = each / largest if largest else each
                count = float(each[xp.asarray(counted)].sum()) if counted.size else 0.0
                each = each / count if count else each
            each = each.astype(logits.dtype)
        elif mean:
            count = float(counted.size)
            unit = 1.0 / count if count else 0.0
        losses, dlogits = xp.zeros(len(targets), xp.float64), xp.zeros(logits.shape, logits.dtype)
        if count and logits.size:
            total = unit * classes if each is None else float(each.astype(xp.float64).sum())
            loader.load().cross_entropy(
                logits,
                xp.asarray(targets),
                each,
                unit,
                total,
                ignore_index,
                label_smoothing,
                losses,
                dlogits,
                library_of(logits).stream,
            )
        return losses, count, dlogits

    # Optimisers and gradients

    def sgd_step(
        self,
        param: Any,
        grad: Any,
        momentum_buf: Any,
        lr: float,
        momentum: float,
        dampening: float,
        weight_decay: float,
        nesterov: bool,
        first: bool,
    ) -> None:
        """As `_core.sgd_step`."""
        loader.load().sgd_step(
            param,
            grad,
            momentum_buf,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            first,
            library_of(param).stream,
        )

    def adam_step(
        self,
        param: Any,
        grad: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        decoupled: bool,
        step: int,
    ) -> None:
        """As `_core.adam_step`."""
        overflowed = self._xp.zeros(1, np.uint8)
        loader.load().adam_step(
            param,
            grad,
            exp_avg,
            exp_avg_sq,
            overflowed,
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            decoupled,
            step,
            library_of(param).stream,
        )
        if bool(overflowed.any()):
            loader.load().refuse_gradient(param.dtype == np.float64, self.norm(grad, math.inf))

    def norm(self, x: Any, p: float) -> float:
        """As `_core.norm`."""
        if x.size == 0:
            return 0.0
        size = self._xp.abs(x).astype(self._xp.float64)
        largest = float(size.max())
        if p == math.inf or largest == 0.0 or not math.isfinite(largest):
            return largest
        # Relative to the largest, so that no power overflows.
        try:
            return float(largest * float(((size / largest) ** p).sum()) ** (1.0 / p))
        except OverflowError:
            return math.inf

    def scale_(self, x: Any, factor: float) -> None:
        """As `_core.scale_`."""
        least, most = float(np.finfo(x.dtype).tiny), float(np.finfo(x.dtype).max)
        step = 2.0**64 if x.dtype == np.float32 else 2.0**512
        while factor and abs(factor) < least:
            x *= 1.0 / step
            factor *= step
        while math.isfinite(factor) and abs(factor) > most:
            x *= step
            factor /= step
        x *= factor

    def clamp_(self, x: Any, lo: float, hi: float) -> None:
        """As `_core.clamp_`."""
        self._xp.clip(x, lo, hi, out=x)

    def _check_wide(self, name: str, x: Any) -> None:
        """Refuse an array of 16 bits."""
        if x.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name}: expected dtype float32 or float64, got {np.dtype(x.dtype)}")

    def _check(self, name: str, x: Any, like: Any, whose: str = "weight") -> None:
        """Refuse an array of another library than the parameters, or of another dtype than `like`."""
        if not isinstance(x, self._xp.ndarray):
            raise TypeError(f"{name}: expected an array on cuda:{self._number}, got a {type(x).__name__}")
        if x.dtype != like.dtype:
            raise TypeError(
                f"{name}: expected dtype {np.dtype(like.dtype)} as {whose}, got {np.dtype(x.dtype)}"
            )
