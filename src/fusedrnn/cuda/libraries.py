"""The libraries whose arrays calls take and return: how each allocates, and which stream it uses.

None of them is imported: an array that comes in has done so.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from fusedrnn.cuda import loader

LEGACY_STREAM = 1


class Library(NamedTuple):
    """One library, for the device of one array.

    Attributes:
        name: "torch", "cupy", "jax" and so on; "other" for one that only speaks the protocols.
        device: number of the device.
        stream: where the caller's work goes, as the protocols number streams.
        empty: (shape, dtype name) -> a new array that calls may write.
        adopt: an array of another library, or one of `empty` -> an array of this one, without a copy.
        synchronous: whether its own work is not ordered by `stream`, so that calls have to wait.
    """

    name: str
    device: int
    stream: int
    empty: Callable[[tuple[int, ...], str], Any]
    adopt: Callable[[Any], Any]
    synchronous: bool


def is_device_array(x: object) -> bool:
    """Return whether x is an array in memory that calls on a GPU take."""
    kind = type(x)
    if hasattr(kind, "__dlpack_device__"):
        module = loader.find()
        if module is not None and module.place(x) is not None:
            return True
        device_type = int(x.__dlpack_device__()[0])  # type: ignore[attr-defined]
        return device_type in (_CUDA, _CUDA_MANAGED) or (
            module is not None and device_type in module.device_types
        )
    return not isinstance(x, type) and hasattr(x, "__cuda_array_interface__")


_CPU, _CUDA, _CUDA_MANAGED = 1, 2, 13


def dtype_name(x: Any) -> str:
    """Return the name of the dtype of an array or a `Lookup`; empty for everything else."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        x = getattr(x, "table", x)
        return str(loader.load().view(x).dtype) if is_device_array(x) else ""
    return str(dtype).rpartition(".")[2]


def library_of(x: Any) -> Library:
    """Return the library that x came from, for the device x is on.

    Raises:
        RuntimeError: CUDA is not there.
    """
    return _maker_for(type(x))(x, loader.load())  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _maker_for(kind: type) -> Callable[[Any, Any], Library]:
    roots = [base.__module__.partition(".")[0] for base in kind.__mro__]
    return _MAKERS[next((name for name in roots if name in _MAKERS), "other")]


def _torch(x: Any, module: Any) -> Library:
    torch = sys.modules["torch"]
    where = x.device
    number, stream = 0, LEGACY_STREAM
    place = module.place(x)
    if place is not None:
        number, stream = place
    elif where.type == "cuda":
        number = where.index
        stream = torch.cuda.current_stream(where).cuda_stream or LEGACY_STREAM

    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        return torch.empty(shape, dtype=getattr(torch, dtype), device=where)

    def adopt(array: Any) -> Any:
        return array if isinstance(array, torch.Tensor) else torch.from_dlpack(array)

    return Library("torch", number, stream, empty, adopt, False)


def _numpy(x: Any, module: Any) -> Library:
    numpy = sys.modules["numpy"]

    def adopt(array: Any) -> Any:
        return array if isinstance(array, numpy.ndarray) else numpy.asarray(array)

    return Library("numpy", 0, LEGACY_STREAM, numpy.empty, adopt, False)


def _cupy(x: Any, module: Any) -> Library:
    cupy = sys.modules["cupy"]
    number = int(x.device.id)

    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        with cupy.cuda.Device(number):
            return cupy.empty(shape, dtype)

    def adopt(array: Any) -> Any:
        return array if isinstance(array, cupy.ndarray) else cupy.from_dlpack(array)

    stream = cupy.cuda.get_current_stream().ptr or LEGACY_STREAM
    return Library("cupy", number, stream, empty, adopt, False)


def _jax(x: Any, module: Any) -> Library:
    jax = sys.modules["jax"]
    number = _number_of(x)

    def adopt(array: Any) -> Any:
        return array if isinstance(array, jax.Array) else jax.dlpack.from_dlpack(array)

    return Library("jax", number, LEGACY_STREAM, _own_memory(module, number), adopt, True)


def _other(x: Any, module: Any) -> Library:
    number = _number_of(x) if hasattr(x, "__dlpack_device__") else int(module.view(x).device)
    return Library("other", number, LEGACY_STREAM, _own_memory(module, number), lambda array: array, True)


def _number_of(x: Any) -> int:
    kind, number = x.__dlpack_device__()
    return 0 if kind == _CPU else int(number)


def _own_memory(module: Any, number: int) -> Callable[[tuple[int, ...], str], Any]:
    return lambda shape, dtype: module.empty(shape, dtype, number)


_MAKERS: dict[str, Callable[[Any, Any], Library]] = {
    "cupy": _cupy,
    "jax": _jax,
    "jaxlib": _jax,
    "numpy": _numpy,
    "other": _other,
    "torch": _torch,
}
