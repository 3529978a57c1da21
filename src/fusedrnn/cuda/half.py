"""Recurrent modules in 16 bits on a GPU: the type of x decides, parameters and gradients stay float32.

Neither NumPy nor CuPy has a bfloat16 to rely on. Such arrays go through a module as uint16, which no kernel
takes, and get their own type where kernels and callers see them.
"""

from typing import Any

import numpy as np

from fusedrnn.cuda import loader
from fusedrnn.cuda.kernels import Kernels
from fusedrnn.cuda.libraries import Library, dtype_name, library_of

# What stands for bfloat16 within a module.
BITS = np.dtype(np.uint16)


class HalfKernels(Kernels):
    """The kernels of recurrent layers for x of bfloat16 or float16, beside parameters of float32."""

    def __init__(self, xp: Any, number: int, dtype: str) -> None:
        super().__init__(xp, number)
        self.dtype = dtype

    def backward(
        self, tape: Any, dy: Any = None, dstate: Any = None, dparams: Any = None, *rest: Any, **options: Any
    ) -> Any:
        """As `_core.backward`."""
        dx, start, grads = super().backward(tape, dy, dstate, dparams, *rest, **options)
        stream = library_of(dparams[0]).stream
        return dx, tuple([self._untyped(part, stream) for part in start]), grads

    def _check_wide(self, name: str, x: Any) -> None:
        """Refuse nothing."""

    def _weights(self, params: Any, cache: Any, version: int | None, library: Library) -> Any:
        """Return the parameters rounded to 16 bits, as the cache has them or made now."""
        # A graph that the caller makes has to round them whenever it is launched.
        known = version is not None and not loader.load().is_capturing(library.stream)
        key = (version, self.dtype, library.stream) if known else None
        kept = cache.kept
        if key is None or kept is None or kept[0] != key:
            rounded = [None if param is None else self._round(param, library) for param in params]
            kept = cache.kept = (key, tuple(rounded))
        return kept[1]

    def _round(self, param: Any, library: Library) -> Any:
        # In memory of their own: tapes refer to those there were.
        rounded = self._empty(library)(param.shape, self.dtype)
        loader.load().round(param, rounded, library.stream)
        return rounded

    def _empty(self, library: Library) -> Any:
        def empty(shape: tuple[int, ...], dtype: str) -> Any:
            return self._typed(library.empty(shape, BITS.name if dtype == "bfloat16" else dtype))

        return empty

    def _typed(self, value: Any) -> Any:
        """Return what kernels take for arrays of 16 bits, looking into tuples."""
        if isinstance(value, tuple):
            return tuple([self._typed(item) for item in value])
        if value is None or value.dtype != BITS:
            return value
        return loader.load().view(value, library_of(value).stream, self.dtype)

    def _untyped(self, array: Any, stream: int) -> Any:
        """Return what kernels have made as an array of the module's library."""
        if dtype_name(array) != "bfloat16":
            return array
        return self._xp.from_dlpack(loader.load().view(array, stream, BITS.name))
