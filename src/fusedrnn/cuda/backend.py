"""The backend of a GPU: parameters as CuPy arrays, other libraries' arrays in and out."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from typing import Any, cast

import numpy as np

from fusedrnn.backend import Backend, ResultT
from fusedrnn.cells import Array
from fusedrnn.cuda import loader
from fusedrnn.cuda.kernels import Kernels
from fusedrnn.cuda.libraries import LEGACY_STREAM, is_device_array, library_of
from fusedrnn.lookup import Lookup, array_of


class CudaBackend(Backend):
    """One GPU. In the emulated build NumPy stands in for CuPy."""

    def __init__(self, number: int, xp: Any) -> None:
        super().__init__(f"cuda:{number}", xp, Kernels(xp, number))
        self.number = number

    def to_numpy(self, array: Any) -> Array:
        """Return an array of this backend as a NumPy array."""
        return np.asarray(array.get() if hasattr(array, "get") else array)

    def is_foreign(self, x: object) -> bool:
        """Return whether x is another library's array on a GPU, or looks rows up in one."""
        x = array_of(x)
        return not isinstance(x, (self.array, np.ndarray)) and is_device_array(x)

    def on_device(self) -> AbstractContextManager[Any]:
        """Return a context in which new arrays are made on this device."""
        return self._context(None)

    def _context(self, stream: int | None) -> AbstractContextManager[Any]:
        stack = ExitStack()
        if hasattr(self.xp, "cuda"):
            stack.enter_context(self.xp.cuda.Device(self.number))
            if stream == LEGACY_STREAM:
                stack.enter_context(self.xp.cuda.Stream.null)
            elif stream is not None:
                stack.enter_context(self.xp.cuda.Stream.from_external(_Stream(stream)))
        return stack

    def across(self, example: Any, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Call with the arrays of another library, and return its results as arrays of that library."""
        library = library_of(array_of(example))
        if library.device != self.number:
            raise RuntimeError(
                f"x: expected an array on {self.name} as the parameters, got cuda:{library.device}"
            )
        with self._context(library.stream):
            results = call(*[self._each(argument, self._take) for argument in arguments])
            if library.synchronous:
                loader.load().synchronize(self.number, library.stream)
            return cast(ResultT, self._each(results, library.adopt, self.array))

    def _take(self, array: Any) -> Any:
        if not self.is_foreign(array):
            return array
        found = self.xp.from_dlpack(array_of(array))
        return array.with_table(found) if isinstance(array, Lookup) else found

    def _each(self, value: Any, convert: Callable[[Any], Any], kind: type[Any] = object) -> Any:
        """Return value with every `kind` in it converted, looking into tuples and lists."""
        if type(value) in (tuple, list):
            return type(value)(self._each(item, convert, kind) for item in value)
        return convert(value) if isinstance(value, kind) else value


class _Stream:
    """A stream of another library, as CuPy takes one."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._number


@cache
def cuda_backend(number: int) -> CudaBackend:
    """Return the backend of a GPU.

    Raises:
        ValueError: there are fewer GPUs.
        RuntimeError: CUDA or CuPy is not there.
    """
    module = loader.load()
    count = len(module.devices())
    if number >= count:
        raise ValueError(f"device: expected a device below cuda:{count}, got cuda:{number}")
    if module.emulated:
        return CudaBackend(number, np)
    try:
        return CudaBackend(number, importlib.import_module("cupy"))
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise
        raise RuntimeError(
            "cuda: expected CuPy, which holds the parameters of modules on a GPU, got none; "
            "install fusedrnn[cuda13]"
        ) from None
