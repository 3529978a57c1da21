"""The flat arrays that hold the parameters and gradients of a tree of modules, and named views into them."""

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from fusedrnn.backend import CPU, Backend
from fusedrnn.cells import Array
from fusedrnn.checks import as_array, assign, refuse_mask


class Buffers:
    """The flat parameters and gradients that a tree of modules shares.

    Attributes:
        version: counts the changes of the parameters, so that packed copies of weights need no look at the
            arrays; None once views were handed out, through which anyone may write at any time.
    """

    __slots__ = ("grads", "parameters", "version")

    def __init__(self, size: int, dtype: npt.DTypeLike, backend: Backend = CPU) -> None:
        with backend.on_device():
            self.parameters: Array = backend.xp.zeros(size, dtype)
            self.grads: Array = backend.xp.zeros(size, dtype)
        self.version: int | None = 0

    def changed(self) -> None:
        """Say that the parameters have been written to."""
        if self.version is not None:
            self.version += 1


class ParameterDict(dict[str, Array]):
    """Named views into a flat buffer.

    Assigning to a name copies into the view, so `m.parameters["w"] -= lr * m.grads["w"]` works; names can be
    neither added nor removed. Copies of it are plain dictionaries.
    """

    __slots__ = ()

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
