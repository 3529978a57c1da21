"""What a GPU's backend offers in place of `fusedrnn._core`: functions with the same names and arguments.

Recurrent layers and dropout are compiled kernels; everything else is written once in elementwise operations
and products of the array library, CuPy.
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


def _normed(x: Any, mean: Any, rstd: Any) -> Any:
    """Return xhat of layer normalisation."""
    return (x * mean[:, :1] - mean[:, 1:]) * rstd[:, :1] + rstd[:, 1:]


def _ends(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the smallest normal and the largest number of a type, as floats."""
    range_ = np.finfo(dtype)
    return float(range_.tiny), float(range_.max)


def _check_setting(name: str, value: float, dtype: np.dtype[Any], may_vanish: bool = False) -> None:
    """Refuse a setting that the parameters' type does not hold, unless it is too small and may vanish."""
    least, most = _ends(dtype)
    if abs(value) <= most and (not value or abs(value) >= least or may_vanish):
        return
    raise ValueError(
        f"{name}: expected 0 or a number from {least:.3g} to {most:.3g}, as {dtype} holds, got {value}"
    )


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
        *,
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
    ) -> Any:
        """As `_core.forward`."""
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
        )

    def backward(
        self,
        tape: Any,
        dy: Any = None,
        dstate: Any = None,
        *,
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

    def ForwardCall(self, *arguments: Any, **options: Any) -> Callable[[], Any]:
        """A call of `forward`, to be run by `run_calls`."""
        return partial(self.forward, *arguments, **options)

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
        dweight += dy.T @ x
        if dbias is not None:
            dbias += dy.sum(axis=0)
        return dy @ weight if need_dx else None

    def layer_norm_forward(self, x: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
        """As `_core.layer_norm_forward`."""
        if weight is not None:
            self._check("x", x, weight)
        self._check_wide("x", x)
        if not x.shape[1]:
            return x.copy(), self._xp.zeros((len(x), 2), x.dtype), self._xp.zeros((len(x), 2), x.dtype)
        with np.errstate(all="ignore"):
            mean, rstd = self._row_moments(x, eps)
            y = _normed(x, mean, rstd)
            if weight is not None:
                y *= weight
            if bias is not None:
                y += bias
        return y, mean, rstd

    def _row_moments(self, x: Any, eps: float) -> tuple[Any, Any]:
        """Return (scale, mean) and (rstd, shift) of every row; xhat = (scale x - mean) rstd + shift."""
        xp = self._xp
        far, size = xp.abs(x - x[:, :1]).max(axis=1), xp.abs(x).max(axis=1)
        # Relative to the largest distance, to the largest element where distances overflow, or to sqrt(eps).
        size = xp.maximum(xp.where(xp.isfinite(far), far, size), x.dtype.type(min(math.sqrt(eps), 2.0**126)))
        scale = xp.where(far == 0.0, x.dtype.type(1.0), self._scale_against(size))
        scaled = x * scale[:, None]
        first = scaled[:, :1]
        mean = first + (scaled - first).mean(axis=1)[:, None]
        distance = (scaled - mean).astype(xp.float64)
        rest = distance.mean(axis=1)
        wide = scale.astype(xp.float64)
        variance = xp.maximum((distance * distance).mean(axis=1) - rest * rest, 0.0) + eps * wide * wide
        # Without spread and eps, xhat is 0.
        rstd = xp.where(variance == 0.0, 0.0, 1.0 / xp.sqrt(variance))
        shift = -rest * rstd
        rstd = xp.minimum(rstd, _ends(x.dtype)[1]).astype(x.dtype)
        return xp.stack((scale, mean[:, 0]), axis=1), xp.stack((rstd, shift.astype(x.dtype)), axis=1)

    def _scale_against(self, size: Any) -> Any:
        """Return 2^-e for sizes in [2^e, 2^(e + 1)), as far as their type holds it."""
        most = 126 if size.dtype == np.float32 else 1022
        return self._xp.ldexp(
            self._xp.ones_like(size), self._xp.clip(1 - self._xp.frexp(size)[1], -most, most)
        )

    def layer_norm_backward(
        self, x: Any, weight: Any, dy: Any, mean: Any, rstd: Any, dweight: Any, dbias: Any
    ) -> Any:
        """As `_core.layer_norm_backward`."""
        if not x.shape[1]:
            return x.copy()
        with np.errstate(all="ignore"):
            normed = _normed(x, mean, rstd)
            if dweight is not None:
                dweight += (dy * normed).sum(axis=0)
            if dbias is not None:
                dbias += dy.sum(axis=0)
            # Rows of gradients whose sums would overflow are scaled.
            forth = self._scale_against(self._xp.abs(dy).max(axis=1))[:, None]
            flow = dy * forth if weight is None else dy * forth * weight
            first = flow[:, :1]
            flow = flow - (first + (flow - first).mean(axis=1)[:, None])
            flow = flow - normed * (flow * normed).mean(axis=1)[:, None]
            return flow * rstd[:, :1] * mean[:, :1] / forth

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
        counted = targets != ignore_index
        self._check_indices("targets", targets[counted], "C", classes)
        each = xp.ones(classes, xp.float64)
        if weight is not None:
            self._check("weight", weight, logits, "logits")
            largest = float(xp.abs(weight).max()) if classes else 0.0
            if not math.isfinite(largest):
                raise ValueError(f"weight: expected finite numbers, got {largest}")
            each = weight.astype(xp.float64)
            if mean and largest:
                each = each / largest
        kept = xp.asarray(counted.astype(np.float64))
        rows, columns = xp.arange(len(targets)), xp.asarray(np.where(counted, targets, 0))
        count = float((each[columns] * kept).sum()) if mean and classes else float(len(targets))
        if not count or not logits.size:
            return xp.zeros(len(targets), xp.float64), count, xp.zeros(logits.shape, logits.dtype)
        if mean:
            each = each / count
        with np.errstate(all="ignore"):
            most = logits.max(axis=1)
            exps = xp.exp(logits - most[:, None])
            total = exps.sum(axis=1).astype(xp.float64)
            hard = (1.0 - label_smoothing) * each[columns] * kept
            share = label_smoothing / classes
            whole = hard + share * each.sum() * kept
            # Distances in halves, so that they overflow nowhere; without weight they count nothing.
            halves = 0.5 * most.astype(xp.float64)
            distance = halves - 0.5 * logits[rows, columns].astype(xp.float64)
            losses = whole * xp.log(total) + 2.0 * xp.where(hard == 0.0, 0.0, hard * distance)
            dlogits = exps * (whole / total).astype(logits.dtype)[:, None]
            if label_smoothing:
                distances = halves[:, None] - 0.5 * logits.astype(xp.float64)
                losses += 2.0 * kept * xp.where(each == 0.0, 0.0, share * each * distances).sum(axis=1)
                dlogits -= kept.astype(logits.dtype)[:, None] * (share * each).astype(logits.dtype)
            dlogits[rows, columns] -= hard.astype(logits.dtype)
        # A row that counts nothing does so whatever its logits are.
        active = (hard != 0.0) if not label_smoothing else (kept != 0.0)
        return (
            xp.where(active, losses, 0.0),
            count,
            xp.where(active[:, None], dlogits, logits.dtype.type(0.0)),
        )

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
        _check_setting("lr", lr, param.dtype, may_vanish=True)
        _check_setting("momentum", momentum, param.dtype)
        _check_setting("dampening", dampening, param.dtype, may_vanish=True)
        _check_setting("weight_decay", weight_decay, param.dtype)
        g = grad + weight_decay * param if weight_decay else grad
        if momentum:
            momentum_buf[...] = g if first else momentum * momentum_buf + (1.0 - dampening) * g
            g = g + momentum * momentum_buf if nesterov else momentum_buf
        if lr < _ends(param.dtype)[0]:
            # In two factors: times a large gradient it is not 0.
            g, lr = g * 2.0**-64, lr * 2.0**64
        param -= lr * g

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
        xp, (least, most) = self._xp, _ends(param.dtype)
        _check_setting("lr", lr, param.dtype, may_vanish=True)
        _check_setting("weight_decay", weight_decay, param.dtype)
        least_eps = math.sqrt(least / (1.0 - beta2))
        if eps < least_eps:
            raise ValueError(
                f"eps: expected a number >= sqrt({least:.3g} / (1 - beta2)) = {least_eps:.3g}, so that "
                f"{param.dtype} holds its square, got {eps}"
            )
        if lr / (1.0 - beta1) > most:
            raise ValueError(f"lr: expected lr / (1 - beta1) within {param.dtype}, got {lr}")
        if decoupled and lr * weight_decay > most:
            raise ValueError(
                f"weight_decay: expected lr * weight_decay within {param.dtype}, got {weight_decay}"
            )
        with np.errstate(all="ignore"):
            g = grad + weight_decay * param if weight_decay and not decoupled else grad
            shrink = 1.0 - lr * weight_decay if decoupled else 1.0
            m = exp_avg + (1.0 - beta1) * (g - exp_avg)
            v = beta2 * exp_avg_sq + (1.0 - beta2) * g * g
            correction = math.sqrt(1.0 - beta2**step)
            size = lr * correction / (1.0 - beta1**step)
            moved = shrink * param - size * (m / (xp.sqrt(v) + eps * correction))
        lost = v > most
        for array, value in ((exp_avg, m), (exp_avg_sq, v), (param, moved)):
            array[...] = xp.where(lost, array, value)
        if bool(lost.any()):
            raise ValueError(
                f"grad: expected values whose squares {param.dtype} holds (clip_grad_norm limits them; "
                f"parameters with larger gradients were left as they are), got {self.norm(grad, math.inf)}"
            )

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
        least, most = _ends(x.dtype)
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
