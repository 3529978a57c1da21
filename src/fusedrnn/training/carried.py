"""States that go from one window of a stream to the next, as files hold them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.distributed import Group


def arrays_of(state: Any) -> Iterator[Array]:
    """Yield the arrays of a state: one, or a tuple of states, or None for none."""
    if isinstance(state, tuple):
        for part in state:
            yield from arrays_of(part)
    elif state is not None:
        yield state


def form_of(state: Any) -> Any:
    """Return how the arrays of a state are put together, as JSON holds it."""
    if isinstance(state, tuple):
        return [form_of(part) for part in state]
    return state is not None


def put_together(form: Any, arrays: Iterator[Array]) -> Any:
    """Return the state of that form."""
    if isinstance(form, list):
        return tuple([put_together(part, arrays) for part in form])
    return next(arrays) if form else None


def rows_of(group: Group, count: int) -> slice:
    """Return which of `count` rows this process has."""
    return slice(count * group.rank // group.size, count * (group.rank + 1) // group.size)


def joined(state: Any, group: Group) -> dict[str, Array]:
    """Return the arrays of a state by number, with the rows (layers, B, ...) of all processes."""
    found = {str(number): array for number, array in enumerate(arrays_of(state))}
    if group.size == 1:
        return found
    for name, own in found.items():
        counts = np.zeros(group.size, np.int64)
        counts[group.rank] = own.shape[1]
        group.sum_(counts)
        start = int(counts[: group.rank].sum())
        whole = np.zeros((own.shape[0], int(counts.sum()), *own.shape[2:]), own.dtype)
        whole[:, start : start + own.shape[1]] = own
        group.sum_(whole)
        found[name] = whole
    return found


def parted(form: Any, arrays: Mapping[str, Array], group: Group) -> Any:
    """Return the state that `joined` took apart, with the rows of this process.

    Raises:
        KeyError, ValueError: the arrays are not those of such a state.
    """
    values = [arrays[str(number)] for number in range(len(arrays))]
    if str(form).count("True") != len(values):
        raise ValueError(f"carried: expected the arrays of {form!r:.60}, got {len(values)}")
    if group.size > 1:
        values = [np.ascontiguousarray(value[:, rows_of(group, value.shape[1])]) for value in values]
    return put_together(form, iter(values))
