"""Arrays made by hand: DLPack capsules and `__cuda_array_interface__`, as they should be or not."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CPU, CUDA = 1, 2


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = (
    ctypes.py_object,
    [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
)
capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype, capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]


class Producer:
    """An array that hands out one capsule, made from `array` and changed by `changes`."""

    def __init__(
        self, array: Any, *, versioned: bool = True, flags: int = 0, major: int = 1, **changes: Any
    ) -> None:
        self.array = np.ascontiguousarray(array)
        self.deleted = 0
        self.asked: list[dict[str, Any]] = []
        self.shape = self.array.shape
        self._shape = (ctypes.c_int64 * self.array.ndim)(*self.array.shape)
        code = {"f": 2, "i": 0, "u": 1, "b": 6}[self.array.dtype.kind]
        values = {
            "data": self.array.ctypes.data,
            "device_type": CPU,
            "device_id": 0,
            "ndim": self.array.ndim,
            "code": code,
            "bits": 8 * self.array.itemsize,
            "lanes": 1,
            "shape": ctypes.cast(self._shape, ctypes.POINTER(ctypes.c_int64)),
            "strides": None,
            "byte_offset": 0,
        }
        tensor = Tensor(**{**values, **changes})
        self.device = (tensor.device_type, tensor.device_id)
        self._deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._delete)
        address = ctypes.cast(self._deleter, ctypes.c_void_p)
        if versioned:
            self.managed: Any = Versioned(major, 0, None, address, flags, tensor)
        else:
            self.managed = Managed(tensor, None, address)
        name = b"dltensor_versioned" if versioned else b"dltensor"
        self.capsule = new_capsule(ctypes.addressof(self.managed), name, None)
        self._keep_name = name

    def _delete(self, _: int) -> None:
        self.deleted += 1

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(options)
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class OldProducer(Producer):
    """From before max_version."""

    def __init__(self, array: Any, **changes: Any) -> None:
        super().__init__(array, versioned=False, **changes)

    def __dlpack__(self, stream: Any = None) -> Any:  # type: ignore[override]
        return self.capsule


WITHOUT = object()


class Interface:
    """An object that only has the interface, with `changes` (WITHOUT: without that entry)."""

    def __init__(self, array: Any, **changes: Any) -> None:
        self.array = array
        self.shape = array.shape
        values = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
            **changes,
        }
        self.__cuda_array_interface__ = {
            name: value for name, value in values.items() if value is not WITHOUT
        }
