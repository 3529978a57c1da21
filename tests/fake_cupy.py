"""What the package uses of CuPy, on NumPy: for the emulated build, where no GPU is at hand.

As CuPy's, these arrays refuse to turn into NumPy arrays unasked and to be mixed with them.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

float32, float64 = np.float32, np.float64
streams: list[int] = []  # those entered


def _unwrap(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_unwrap, value))
    if isinstance(value, ndarray):
        return value._data
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _wrap(value: Any) -> Any:
    # CuPy has no scalars: sums of whole arrays are arrays without axes.
    if isinstance(value, tuple):
        return tuple(map(_wrap, value))
    return ndarray(value) if isinstance(value, (np.ndarray, np.generic)) else value


class _Device:
    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> None:
        if self.id != 0:
            raise RuntimeError(f"no device {self.id}")

    def __exit__(self, *error: object) -> None:
        pass


class _Flags:
    def __init__(self, data: np.ndarray[Any, Any]) -> None:
        self.c_contiguous = data.flags.c_contiguous


class ndarray:
    __array_priority__ = 100
    __array_ufunc__ = None
    device = _Device()

    def __init__(self, data: Any) -> None:
        self._data = np.asarray(data)

    def __array__(self, *arguments: Any, **options: Any) -> None:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __dlpack__(self, **options: Any) -> Any:
        return self._data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._data.__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._data.__array_interface__

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "dtype", "ndim", "size", "nbytes"):
            raise AttributeError(name)
        return getattr(self._data, name)

    @property
    def flags(self) -> _Flags:
        return _Flags(self._data)

    @property
    def T(self) -> ndarray:
        return ndarray(self._data.T)

    def get(self) -> np.ndarray[Any, Any]:
        return self._data.copy()

    def set(self, value: np.ndarray[Any, Any]) -> None:
        assert type(value) is np.ndarray
        assert value.dtype == self._data.dtype and value.shape == self._data.shape
        assert value.flags.c_contiguous and self._data.flags.c_contiguous
        self._data[...] = value

    def __getitem__(self, key: Any) -> ndarray:
        return ndarray(self._data[_unwrap(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._data[_unwrap(key)] = _unwrap(value)

    def __len__(self) -> int:
        return len(self._data)

    def __float__(self) -> float:
        return float(self._data)

    def __bool__(self) -> bool:
        return bool(self._data)

    def __neg__(self) -> ndarray:
        return ndarray(-self._data)


def _methods() -> None:
    def method(name: str) -> Any:
        def call(self: ndarray, *arguments: Any, **options: Any) -> Any:
            return _wrap(getattr(self._data, name)(*map(_unwrap, arguments), **options))

        return call

    def operation(name: str) -> Any:
        function = getattr(operator, name)

        def call(self: ndarray, other: Any) -> Any:
            return _wrap(function(self._data, _unwrap(other)))

        def reflected(self: ndarray, other: Any) -> Any:
            return _wrap(function(_unwrap(other), self._data))

        def in_place(self: ndarray, other: Any) -> Any:
            self._data[...] = function(self._data, _unwrap(other))
            return self

        return call, reflected, in_place

    for name in ("reshape", "swapaxes", "sum", "mean", "max", "astype", "copy", "fill", "view", "any"):
        setattr(ndarray, name, method(name))
    for name in ("add", "sub", "mul", "truediv", "pow", "matmul"):
        call, reflected, in_place = operation(name)
        setattr(ndarray, f"__{name}__", call)
        setattr(ndarray, f"__r{name}__", reflected)
        setattr(ndarray, f"__i{name}__", in_place)
    for name in ("ne", "eq", "lt", "gt"):
        setattr(ndarray, f"__{name}__", operation(name)[0])


_methods()
ndarray.__module__ = "cupy"
ndarray.__hash__ = object.__hash__  # type: ignore[method-assign,assignment]


def _function(name: str, of: Any = np) -> Any:
    function = getattr(of, name)

    def call(*arguments: Any, **options: Any) -> Any:
        options = {key: _unwrap(value) for key, value in options.items()}
        return _wrap(function(*map(_unwrap, arguments), **options))

    return call


for _name in ("abs", "ascontiguousarray", "clip", "empty", "square", "zeros", "zeros_like"):
    globals()[_name] = _function(_name)


class add:
    reduceat = staticmethod(_function("reduceat", np.add))


def asarray(value: Any) -> ndarray:
    return value if isinstance(value, ndarray) else ndarray(np.array(value))


def from_dlpack(array: Any) -> ndarray:
    return ndarray(np.from_dlpack(array))


class _Stream:
    def __init__(self, ptr: int) -> None:
        self.ptr = ptr

    @classmethod
    def from_external(cls, stream: Any) -> _Stream:
        version, ptr = stream.__cuda_stream__()
        assert version == 0
        return cls(ptr)

    def __enter__(self) -> None:
        streams.append(self.ptr)

    def __exit__(self, *error: object) -> None:
        pass


class cuda:
    Device = _Device

    class Stream(_Stream):
        null = _Stream(0)

    @staticmethod
    def get_current_stream() -> _Stream:
        return cuda.Stream.null


@contextlib.contextmanager
def installed(monkeypatch: Any) -> Iterator[None]:
    """As `cupy`, and as what modules on a GPU hold their parameters in."""
    import sys

    from fusedrnn.cuda import backend

    found = backend.CudaBackend(0, sys.modules[__name__])
    monkeypatch.setitem(sys.modules, "cupy", sys.modules[__name__])
    monkeypatch.setattr(backend, "cuda_backend", lambda number: found)
    yield
