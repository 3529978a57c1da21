"""Where the arrays of a module live, and the compiled functions that work on them there."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cells import CellSpec

ResultT = TypeVar("ResultT")


NOTHING = nullcontext()  # a context that does nothing


class Backend:
    """The CPU, and the base of a GPU's backend (`fusedrnn.cuda.backend`).

    Attributes:
        name: "cpu", or "cuda:0" and so on.
        xp: the array library of the parameters, NumPy or CuPy.
        array: its array type.
        kernels: functions named and called as those of `fusedrnn._core`.
    """

    def __init__(self, name: str, xp: Any, kernels: Any) -> None:
        self.name = name
        self.xp = xp
        self.array: type[Any] = xp.ndarray
        self.kernels = kernels

    def for_input(self, x: Any, dtype: np.dtype[Any]) -> "Backend":
        """Return the backend for calls with x of a recurrent module with parameters of `dtype`."""
        return self

    def types(self, dtype: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Return the types of h and of the states beyond it beside parameters of `dtype`."""
        return dtype, dtype

    def check_types(self, dtype: np.dtype[Any], spec: CellSpec, *, dy: Any = None, **states: Any) -> None:
        """Refuse dy and states of other types, before `across`.

        Raises:
            TypeError: one has another type; the message names both.
        """

    def to_numpy(self, array: Any) -> Array:
        """Return an array of this backend as a NumPy array."""
        return np.asarray(array)

    def is_foreign(self, x: object) -> bool:
        """Return whether x is another library's array on a GPU, which `across` takes."""
        return False

    def across(self, example: Any, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Call with the arrays of another library, and return its results as arrays of that library.

        Args:
            example: one of them; its library's stream is used.
            call: a function of this backend's arrays.
            arguments: what to call it with; arrays in tuples and lists are found, too.
        """
        raise TypeError(f"x: expected a {self.xp.__name__}.ndarray, got {type(example).__name__}")

    def enter(self, example: Any, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """As `across` if the example is foreign; else call."""
        return call(*arguments)

    def on_device(self) -> AbstractContextManager[Any]:
        """Return a context in which new arrays are made on this device."""
        return NOTHING

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str | tuple[Any, ...]:
        return "CPU"  # the name of the only one


CPU = Backend("cpu", np, _core)


def first_array(*values: Any) -> Any:
    """Return the first of some arguments that is given, looking into tuples and lists; None if none is."""
    for value in values:
        found = first_array(*value) if isinstance(value, (tuple, list)) else value
        if found is not None:
            return found
    return None
