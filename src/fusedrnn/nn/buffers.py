"""The flat arrays that hold the parameters and gradients of a tree of modules, and named views into them."""

from __future__ import annotations

import itertools
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, as_array, assign, refuse_mask
from fusedrnn.backend import CPU, Backend

# Numbers of versions. One count for all, and drawn in one piece, so that no number is ever given twice.
_versions = itertools.count()


# How many values of parameters and buffers may still be made, while a file says what to make.
_room: ContextVar[list[int] | None] = ContextVar("room", default=None)


@contextmanager
def limited_to(values: int) -> Iterator[None]:
    """Refuse modules whose parameters and buffers have more values in all, before memory is taken."""
    token = _room.set([values])
    try:
        yield
    finally:
        _room.reset(token)


def take_room(values: int) -> None:
    """Count values that are made within `limited_to`.

    Raises:
        ValueError: they are more than there may be.
    """
    room = _room.get()
    if room is not None:
        room[0] -= values
        if room[0] < 0:
            raise ValueError(f"expected no more values than the file holds, got {-room[0]} more")


class Values:
    """What the parameters hold between two changes.

    Attributes:
        version: a number that no other values have had, so that packed copies of weights need no look at the
            arrays; None while anyone may write to them.
    """

    __slots__ = ("version",)

    def __init__(self, version: int | None) -> None:
        self.version = version


def _give_back(values: Values, _: object) -> None:
    """Number the values: nobody else can write to them any more."""
    values.version = next(_versions)


def nobody() -> None:
    """Stand for a weak reference to nothing."""


class Buffers:
    """The flat parameters and gradients that a tree of modules shares.

    The library's own writes to the parameters stand in a `with` block of it. Everyone else's go through views
    of the array that `lend` returns: it is not the array itself, and no view outlives it, so that its end is
    the end of all writes. Then the parameters have a version again.

    Attributes:
        values: stands for what the parameters hold. It is replaced, never numbered again, by whoever may
            change them: so no number is given to values that a thread may still change.
    """

    __slots__ = ("_forever", "_lent", "grads", "parameters", "values")
    # For the moments in which what is lent changes; one for all, since they are short.
    turn: ClassVar[Any] = threading.RLock()

    def __init__(self, size: int, dtype: npt.DTypeLike, backend: Backend = CPU) -> None:
        with backend.on_device():
            self.parameters: Array = backend.xp.zeros(size, dtype)
            self.grads: Array = backend.xp.zeros(size, dtype)
        self._lent: Callable[[], Array | None] = nobody
        self._forever = False
        self.values = Values(next(_versions))

    def lend(self) -> Array:
        """Return the parameters for others to write to, for as long as they hold any view of the array.

        On a GPU for good: no library there says when the last view is gone.
        """
        with Buffers.turn:
            if not isinstance(self.parameters, np.ndarray):
                self.values, self._forever = Values(None), True
                return self.parameters
            flat = self._lent()
            if flat is None:
                # The base of views of it is this array: NumPy looks for their owner no further than to a base
                # that is no array.
                made = np.asarray(memoryview(self.parameters))  # type: ignore[arg-type]
                watched = self._watch(made)
                # Asked again: a finaliser that ran meanwhile may have lent them.
                flat = self._lent()
                if flat is None:
                    self._lent, self.values = watched
                    flat = made
            return flat

    @staticmethod
    def _watch(flat: Array) -> tuple[Callable[[], Array | None], Values]:
        values = Values(None)
        return weakref.ref(flat, partial(_give_back, values)), values

    def __enter__(self) -> None:
        self.values = Values(None)

    def __exit__(self, *_: object) -> None:
        with Buffers.turn:
            flat = self._lent()
            if flat is not None:
                self._lent, self.values = self._watch(flat)
            else:
                self.values = Values(None if self._forever else next(_versions))


def _free_in_child() -> None:
    """Forget the thread whose turn it was, which only the parent has."""
    Buffers.turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_in_child)


def named_views(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return views of these shapes into a flat array, one after the other."""
    views, offset = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        views[name] = flat[offset : offset + size].reshape(shape)
        offset += size
    return views


def moved(array: Any, source: Backend, target: Backend, dtype: np.dtype[Any] | None = None) -> Any:
    """Return what is saved beside parameters on another device, floats in another dtype if one is given."""
    kind = dtype if dtype is not None and array.dtype.kind == "f" else array.dtype
    if source is target:
        return array.astype(kind, copy=False)
    with target.on_device():
        there = target.xp.empty(array.shape, kind)
    assign(there, source.to_numpy(array))
    return there


class Snapshot(NamedTuple):
    """A copy of parameters that nobody writes to.

    Attributes:
        version: the one they had.
        bits: all of them, as integers: so bits count in comparisons, and NaN equals itself.
        parameters: by name.
    """

    version: int | None
    bits: npt.NDArray[np.unsignedinteger[Any]]
    parameters: dict[str, Array]

    @classmethod
    def of(
        cls,
        flat: Array,
        shapes: Mapping[str, tuple[int, ...]],
        version: int | None,
        last: Snapshot | None = None,
    ) -> Snapshot:
        """Return a snapshot of NumPy parameters, the last one again if they are as they were."""
        if last is not None and not (last.bits != flat.view(last.bits.dtype)).any():
            return last if version == last.version else last._replace(version=version)
        copy = flat.copy()
        return cls(version, copy.view(f"u{copy.itemsize}"), named_views(copy, shapes))


class ParameterDict(dict[str, Array]):
    """Named views into a flat buffer.

    Assigning to a name copies into the view, so `m.parameters["w"] -= lr * m.grads["w"]` works; names can be
    neither added nor removed. Copies of it are plain dictionaries.
    """

    __slots__ = ("__weakref__",)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Say what a caller used to methods of this name looks for."""
        raise TypeError(
            "parameters and grads are dictionaries {name: array}, not methods: leave out the parentheses; "
            "optimisers and clip_grad_norm take the module itself, as in Adam(lstm)"
        )

    def __setitem__(self, name: str, value: npt.ArrayLike) -> None:
        view = self[name]
        refuse_mask(name, value)
        if value is view:
            return
        # On a GPU views are CuPy's, and so may the value be.
        value = value if isinstance(value, type(view)) else as_array(value)
        if value.shape not in ((), view.shape):
            raise ValueError(f"{name}: expected shape {view.shape}, got {value.shape}")
        if isinstance(view, np.ndarray):
            np.copyto(view, value, casting="same_kind")
        elif not np.can_cast(value.dtype, view.dtype, "same_kind"):
            raise TypeError(f"{name}: expected a dtype that casts to {view.dtype}, got {value.dtype}")
        elif isinstance(value, np.ndarray):
            assign(view, np.broadcast_to(value, view.shape))
        else:
            view[...] = value

    def __delitem__(self, name: str) -> NoReturn:
        self._refuse()

    def __ior__(self, other: Any) -> NoReturn:  # type: ignore[misc]
        self._refuse()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("the names of a module's parameters are fixed; assign to an existing name")

    update = pop = popitem = clear = setdefault = _refuse

    def _replace(self, items: Mapping[str, Array]) -> None:
        """Point the names at other arrays, keeping the identity of this dictionary."""
        dict.clear(self)
        dict.update(self, items)
