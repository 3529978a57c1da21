"""Series, and windows of them as the network of a `Forecaster` reads them: scaled, with gaps filled."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, refuse_mask
from fusedrnn.estimators.inputs import check_ordered
from fusedrnn.preprocessing import impute, moments


def series_of(X: Any, features: int | None, covariates: int) -> list[Array]:
    """Return X as a list of float64 arrays (T, I + C), of so many features if that is known."""
    if not isinstance(X, (list, tuple)):
        check_ordered("X", X, "an array (T,) or (T, I), or a list of them")
    found = []
    for index, values in enumerate(X if isinstance(X, (list, tuple)) else [X]):
        if np.iterable(values):
            check_ordered(f"X[{index}]", values, "an array (T,) or (T, I)")
        refuse_mask(f"X[{index}]", values)
        array = np.asarray(values)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"X[{index}]: expected a series of numbers, got {array.dtype}")
        array = array.astype(np.float64)
        array = array[:, None] if array.ndim == 1 else array
        if array.ndim != 2:
            raise ValueError(
                f"X[{index}]: expected shape (T,) or (T, I), got {array.shape}; X is an array (T,) or "
                "(T, I), or a list of them"
            )
        if np.isinf(array).any():
            raise ValueError(f"X[{index}]: expected finite values, or NaN for missing ones, got infinity")
        features = array.shape[1] if features is None else features
        if features <= covariates:
            raise ValueError(f"X[{index}]: expected more than C = {covariates} features, got {array.shape}")
        if array.shape[1] != features:
            raise ValueError(f"X[{index}]: expected I + C = {features} features, got {array.shape}")
        if np.isnan(array[:, features - covariates :]).any():
            raise ValueError(f"X[{index}]: expected covariates, the last {covariates} features, without NaN")
        found.append(array)
    if not found:
        raise ValueError("X: expected at least one series, got none")
    return found


def ranks_of(X: Any) -> list[int]:
    """Return the number of axes of each series."""
    return [np.ndim(values) for values in (X if isinstance(X, (list, tuple)) else [X])]


def laid_out(found: Array, ranks: list[int], single: bool, axis: int) -> Array | list[Array]:
    """Return what was found for each series as they are: without the axis of I for (T,), alone for one."""
    each = [part if rank > 1 else part.take(0, axis) for part, rank in zip(found, ranks, strict=True)]
    return each[0] if single else each


class Windows(NamedTuple):
    """Windows of `context` steps and the horizon after them.

    Attributes:
        values: (N, T, I), scaled, the last one seen in place of missing ones; 0, the mean, before the first.
        mask: (N, T, I), what was there.
        since: (N, T, I), steps since then.
        known: (N, T, C), scaled covariates.
        base: (N, horizon, I), what a forecast starts from, as the series has it.
        mean: (N, 1, I).
        deviation: (N, 1, I).
    """

    values: Array
    mask: npt.NDArray[np.bool_]
    since: Array
    known: Array
    base: Array
    mean: Array
    deviation: Array


def prepared(x: Array, context: int, back: int, known: Array) -> Windows:
    """Return windows x (N, context + horizon, I), each scaled by its own context.

    Args:
        x: NaN where a value is missing; each feature has one in the context.
        context: steps of it.
        back: how many steps ago the value is that a forecast starts from.
        known: (N, context + horizon, C), scaled covariates.
    """
    before = x[:, :context]
    mean, deviation = moments(before, 1, keepdims=True)
    deviation = np.where(deviation > 1e-12 * np.maximum(np.abs(mean), 1e-300), deviation, 1.0)
    values, mask, since = impute((x - mean) / deviation)
    filled = np.where(mask[:, :context], before, values[:, :context] * deviation + mean)
    places = context - back + np.arange(x.shape[1] - context) % back
    base, gone = filled[:, places], ~mask[:, places]
    while back > 1 and gone.any() and places.min() >= back:  # the season before has it, maybe
        places = places - back
        base = np.where(gone & mask[:, places], before[:, places], base)
        gone &= ~mask[:, places]
    return Windows(values, mask, since, known, base, mean, deviation)


def known_before(x: Array, context: int) -> npt.NDArray[np.bool_]:
    """Return of windows (N, T, I) whether each feature has a value in the context: (N,)."""
    found: npt.NDArray[np.bool_] = np.logical_and.reduce((~np.isnan(x[:, :context])).any(axis=1), axis=-1)
    return found


def step_inputs(windows: Windows, start: int, stop: int, gaps: bool, season: int | None) -> Array:
    """Return what is known at steps of windows of the step after each: (N, stop - start, F) float32.

    The value, with `gaps` whether it was there and for how long it was not, the value a season before the
    next step, and the covariates of the next step.
    """
    parts = [windows.values[:, start:stop]]
    if gaps:
        parts += _gaps(windows, slice(start, stop))
    if season is not None:
        parts.append(starts(windows, start, stop, season))
    parts.append(windows.known[:, start + 1 : stop + 1])
    return np.concatenate(parts, axis=-1, dtype=np.float32)


def starts(windows: Windows, start: int, stop: int, season: int | None) -> Array:
    """Return what the forecast of the step after each starts from, scaled: (N, stop - start, I).

    The last value, or that of a season before; the mean, where the window does not reach so far.
    """
    if season is None:
        return windows.values[:, start:stop]
    places = np.arange(start, stop) + 1 - season
    found = windows.values[:, np.maximum(places, 0)]
    found[:, places < 0] = 0.0
    return found


def context_inputs(windows: Windows, context: int, gaps: bool) -> Array:
    """Return the context (N, context, F) float32; with covariates the horizon follows.

    Of the steps ahead there are the covariates, and a feature that says that they are ahead.
    """
    steps = slice(0, context)
    parts = [windows.values[:, steps], *(_gaps(windows, steps) if gaps else ())]
    found = np.concatenate(parts, axis=-1, dtype=np.float32)
    if not windows.known.shape[-1]:
        return found
    whole = np.zeros((*windows.known.shape[:2], found.shape[-1] + 1), np.float32)
    whole[:, steps, :-1], whole[:, context:, -1] = found, 1.0
    return np.concatenate([whole, windows.known], axis=-1, dtype=np.float32)


def _gaps(windows: Windows, steps: slice) -> list[Any]:
    # Long gaps are told apart less and less.
    return [windows.mask[:, steps], np.log1p(windows.since[:, steps])]


def split(output: Array, shape: tuple[int, ...]) -> Array:
    """Return an output with the parameters of each target on an axis of their own."""
    return output.reshape(*shape, -1)


def repeated(state: Any, count: int) -> Any:
    """Return a state (..., B, H), or tuples of them, with each row so many times."""
    if isinstance(state, tuple):
        return tuple([repeated(part, count) for part in state])
    return None if state is None else np.repeat(state, count, axis=-2)
