"""The backend of a GPU: parameters as CuPy arrays, other libraries' arrays in and out."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import cache, partial
from typing import Any, cast

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.backend import Backend, ResultT
from fusedrnn.cells import CellSpec
from fusedrnn.cuda import loader
from fusedrnn.cuda.half import BITS, HalfKernels
from fusedrnn.cuda.kernels import Kernels
from fusedrnn.cuda.libraries import LEGACY_STREAM, Library, dtype_name, is_device_array, library_of
from fusedrnn.inputs.lookup import Lookup, array_of


class CudaBackend(Backend):
    """One GPU, and the library that holds the arrays there."""

    def __init__(self, number: int, xp: Any) -> None:
        super().__init__(f"cuda:{number}", xp, Kernels(xp, number))
        self.number = number

    def for_input(self, x: Any, dtype: np.dtype[Any]) -> Backend:
        """Return the backend for calls with x of a recurrent module with parameters of `dtype`."""
        name = dtype_name(x)
        if name == dtype.name:
            return self
        if dtype == np.float32 and name in ("bfloat16", "float16"):
            return _half_backend(self.number, self.xp, name)
        if is_device_array(array_of(x)):
            raise TypeError(f"x: expected {dtype} as the parameters, got {name}; convert x to {dtype}")
        return self

    def names(self, dtype: np.dtype[Any]) -> tuple[str, str]:
        """Return the types of h and of the states beyond it, as the caller sees them."""
        return dtype.name, dtype.name

    def check_types(self, dtype: np.dtype[Any], spec: CellSpec, *, dy: Any = None, **states: Any) -> None:
        """Refuse arrays of other types by their names, which are lost where arrays are converted."""
        names = self.names(dtype)
        given = [("dy", dy, names[0])]
        for name, state in states.items():
            if state is None:
                continue
            parts = spec.unpack_state(name, state)
            labels = [name + label for label in spec.state_labels]
            given += zip(labels, parts, (names[0], *[names[1]] * (spec.states - 1)), strict=True)
        for label, array, expected in given:
            got = "" if array is None else dtype_name(array)
            if got and got != expected:
                raise TypeError(f"{label}: expected {expected}, got {got}")

    def to_numpy(self, array: Any) -> Array:
        """Return an array of this backend as a NumPy array."""
        return np.asarray(array.get() if hasattr(array, "get") else array)

    def is_foreign(self, x: object) -> bool:
        """Return whether x is another library's array on a GPU, or looks rows up in one."""
        x = array_of(x)
        return not isinstance(x, (self.array, np.ndarray)) and is_device_array(x)

    def __reduce__(self) -> tuple[Any, ...]:
        return _copied, (self.number,)

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
            take = partial(self._take, stream=library.stream)
            results = call(*[self._each(argument, take) for argument in arguments])
            if library.synchronous:
                loader.load().synchronize(self.number, library.stream)
            return cast(ResultT, self._each(results, partial(self._give, library=library), self.array))

    def enter(self, example: Any, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """As `across` if the example is foreign; else call."""
        return self.across(example, call, *arguments) if self.is_foreign(example) else call(*arguments)

    def _take(self, array: Any, stream: int) -> Any:
        """Return another library's array, or a lookup in one, as this one's, and everything else as it is."""
        if not self.is_foreign(array):
            return array
        if dtype_name(array) == "bfloat16":
            raise TypeError(
                "array: expected float32 or float64, got bfloat16, which only recurrent networks take"
            )
        found = self.xp.from_dlpack(array_of(array))
        return array._with_table(found) if isinstance(array, Lookup) else found

    def _give(self, array: Any, library: Library) -> Any:
        """Return an array of this library as one of the caller's."""
        return library.adopt(array)

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


class HalfBackend(CudaBackend):
    """One GPU for the calls of recurrent modules with x of bfloat16 or float16."""

    def __init__(self, number: int, xp: Any, dtype: str) -> None:
        super().__init__(number, xp)
        self.dtype = dtype
        self.kernels = HalfKernels(xp, number, dtype)

    def types(self, dtype: np.dtype[Any]) -> tuple[np.dtype[Any], np.dtype[Any]]:
        """Return the types of h and of the states beyond it, as the module sees them."""
        return BITS if self.dtype == "bfloat16" else np.dtype(self.dtype), dtype

    def names(self, dtype: np.dtype[Any]) -> tuple[str, str]:
        """Return the types of h and of the states beyond it, as the caller sees them."""
        return self.dtype, dtype.name

    def is_foreign(self, x: object) -> bool:
        """Return whether x has to be converted, as all of bfloat16."""
        return dtype_name(x) == "bfloat16" or super().is_foreign(x)

    def _take(self, array: Any, stream: int) -> Any:
        if dtype_name(array) != "bfloat16":
            return super()._take(array, stream)
        found = self.xp.from_dlpack(loader.load().view(array_of(array), stream, BITS.name))
        return array._with_table(found) if isinstance(array, Lookup) else found

    def _give(self, array: Any, library: Library) -> Any:
        if array.dtype == BITS:
            array = loader.load().view(array, library.stream, self.dtype)
        return library.adopt(array)


@cache
def _half_backend(number: int, xp: Any, dtype: str) -> Backend:
    return HalfBackend(number, xp, dtype)


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
    try:
        return CudaBackend(number, importlib.import_module(module.array_library))
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise
        raise RuntimeError(
            "cuda: expected CuPy, which holds the parameters of modules on a GPU, got none; "
            "install fusedrnn[cuda13]"
        ) from None


def _copied(number: int) -> CudaBackend:
    """Return what copies and pickles of a backend become."""
    return cuda_backend(number)
