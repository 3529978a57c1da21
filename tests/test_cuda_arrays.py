"""Arrays of other libraries, in and out: DLPack capsules and `__cuda_array_interface__`, and their misuse.

On the emulated build, whose device memory is the host's: producers here may claim any device.
"""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from typing import Any

import numpy as np
import pytest
from cuda_support import MODULE, needs_emulator
from producers import CPU, CUDA, WITHOUT, Interface, OldProducer, Producer, capsule_name, new_capsule

from fusedrnn.cuda.libraries import is_device_array

pytestmark = needs_emulator
cuda: Any = MODULE


VALUES = np.arange(12.0, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("versioned", [True, False])
def test_capsule_is_owned_until_the_last_use(versioned: bool) -> None:
    producer = Producer(VALUES, versioned=versioned)
    array = cuda.view(producer)
    used = b"used_dltensor_versioned" if versioned else b"used_dltensor"
    assert capsule_name(producer.capsule) == used
    assert (array.shape, array.strides, array.dtype, array.device) == ((3, 4), (4, 1), "float32", 0)
    assert array.nbytes == VALUES.nbytes and array.ndim == 2 and not array.read_only
    again = np.from_dlpack(array)
    assert np.shares_memory(again, producer.array)
    del array
    gc.collect()
    assert producer.deleted == 0
    del again
    gc.collect()
    assert producer.deleted == 1


def test_a_used_capsule_is_refused() -> None:
    producer = Producer(VALUES)
    first = cuda.from_capsule(producer.capsule)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"capsule: expected .* nobody has taken yet, got a used one"):
            cuda.from_capsule(producer.capsule)
    assert producer.deleted == 0
    del first
    assert producer.deleted == 1


def test_other_capsules_are_refused() -> None:
    stray = new_capsule(1, b"something", None)
    with pytest.raises(ValueError, match=r"got one named 'something'"):
        cuda.from_capsule(stray)
    with pytest.raises(ValueError, match=r"got one named ''"):
        cuda.from_capsule(new_capsule(1, None, None))
    with pytest.raises(TypeError, match=r"capsule: expected a DLPack capsule, got ndarray|got numpy.ndarray"):
        cuda.from_capsule(VALUES)


def test_another_major_version_is_refused_and_given_back() -> None:
    producer = Producer(VALUES, major=2)
    with pytest.raises(ValueError, match=r"array: expected DLPack version 1, got 2\.0"):
        cuda.view(producer)
    assert producer.deleted == 1


def test_old_producers_are_asked_without_a_version() -> None:
    assert cuda.view(OldProducer(VALUES)).shape == (3, 4)


@pytest.mark.parametrize(
    ("device", "stream", "expected"),
    [((CPU, 0), 7, None), ((CUDA, 0), None, 1), ((CUDA, 0), 7, 7)],
    ids=["host", "legacy", "given"],
)
def test_producers_learn_the_stream(
    device: tuple[int, int], stream: int | None, expected: int | None
) -> None:
    producer = Producer(VALUES, device_type=device[0], device_id=device[1])
    cuda.view(producer) if stream is None else cuda.view(producer, stream)
    assert producer.asked == [{"max_version": (1, 1)} | ({"stream": expected} if expected else {})]


def test_byte_offset_and_strides() -> None:
    strides = (ctypes.c_int64 * 2)(1, 4)
    sizes = (ctypes.c_int64 * 2)(3, 2)
    pointer = ctypes.POINTER(ctypes.c_int64)
    producer = Producer(
        VALUES, byte_offset=4, strides=ctypes.cast(strides, pointer), shape=ctypes.cast(sizes, pointer)
    )
    array = cuda.view(producer)
    np.testing.assert_array_equal(
        np.from_dlpack(array), VALUES.reshape(-1)[1:].reshape(-1)[[[0, 4], [1, 5], [2, 6]]]
    )
    np.testing.assert_array_equal(np.asarray(array), np.from_dlpack(array))


BAD_TENSORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "ndim": ({"ndim": -1}, ValueError, "axes"),
    "ndim_large": ({"ndim": 65}, ValueError, "axes"),
    "shape": ({"shape": None}, ValueError, "shape"),
    "data": ({"data": None}, ValueError, "null"),
    "lanes": ({"lanes": 2}, TypeError, "whole bytes, got float32x2"),
    "bits": ({"code": 0, "bits": 4}, TypeError, "whole bytes, got int4"),
    "size": (
        {"shape": ctypes.cast((ctypes.c_int64 * 2)(-1, 4), ctypes.POINTER(ctypes.c_int64))},
        ValueError,
        ">= 0",
    ),
    "product": (
        {"shape": ctypes.cast((ctypes.c_int64 * 2)(2**40, 2**40), ctypes.POINTER(ctypes.c_int64))},
        ValueError,
        "2\\^63",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_malformed_tensors_are_refused_and_given_back(name: str) -> None:
    changes, kind, text = BAD_TENSORS[name]
    producer = Producer(VALUES, **changes)
    with pytest.raises(kind, match=f"array: expected .*{text}|sizes: .*{text}"):
        cuda.view(producer)
    assert producer.deleted == 1


def test_other_devices_are_refused() -> None:
    for device in (3, 10):
        producer = Producer(VALUES, device_type=device)
        with pytest.raises(RuntimeError, match=f"array: expected .* on a device of DLPack's type {device}"):
            cuda.view(producer)
        assert not producer.asked
    liar = Producer(VALUES, device_type=10)
    liar.device = (CPU, 0)
    with pytest.raises(RuntimeError, match=r"on a device of DLPack's type 10"):
        cuda.view(liar)


@pytest.mark.parametrize(
    "value",
    [None, 3, [1.0], "x", object(), Producer],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_is_no_array_is_refused(value: Any) -> None:
    assert not is_device_array(value)
    with pytest.raises(TypeError, match=r"array: expected an array in host memory, got "):
        cuda.view(value)


def test_errors_of_a_producer_are_its_own() -> None:
    class Failing(Producer):
        def __dlpack__(self, **options: Any) -> Any:
            raise KeyError("mine")

    class Garbage(Producer):
        def __dlpack__(self, **options: Any) -> Any:
            return 3

        def __dlpack_device__(self) -> Any:
            return self.device

    with pytest.raises(KeyError, match=r"mine"):
        cuda.view(Failing(VALUES))
    garbage = Garbage(VALUES)
    with pytest.raises(TypeError, match=r"array: expected a DLPack capsule, got int"):
        cuda.view(garbage)
    garbage.device = 3  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"array: expected a pair from __dlpack_device__, got int"):
        cuda.view(garbage)


def test_gradients_have_to_be_detached() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"array: .*detach"):
        cuda.view(torch.ones(3, requires_grad=True))


# Out --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bool", "uint8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_round_trips(shape: tuple[int, ...], dtype: str) -> None:
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    array = cuda.view(values)
    for back in (np.from_dlpack(array), np.asarray(array)):
        np.testing.assert_array_equal(back, values)
        assert back.dtype == values.dtype
    made = cuda.empty(list(shape), dtype)
    np.from_dlpack(made)[...] = values
    np.testing.assert_array_equal(np.from_dlpack(cuda.view(made)), values)
    torch = pytest.importorskip("torch")
    tensor = torch.from_dlpack(cuda.view(torch.from_numpy(values)))
    np.testing.assert_array_equal(tensor.numpy(), values)


def test_transposed_views_keep_their_strides() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0).reshape(2, 3).T
    array = cuda.view(tensor)
    assert (array.shape, array.strides) == ((3, 2), (1, 3))
    np.testing.assert_array_equal(np.asarray(array), tensor.numpy())
    assert torch.from_dlpack(array).data_ptr() == tensor.data_ptr()


def test_capsules_by_version() -> None:
    array = cuda.view(VALUES.copy())
    assert capsule_name(array.__dlpack__()) == b"dltensor"
    assert capsule_name(array.__dlpack__(max_version=(0, 8))) == b"dltensor"
    assert capsule_name(array.__dlpack__(max_version=(1, 0))) == b"dltensor_versioned"
    assert capsule_name(array.__dlpack__(dl_device=(CPU, 0), copy=False)) == b"dltensor"


def test_a_capsule_nobody_takes_frees_its_array() -> None:
    for version in (None, (1, 0)):
        producer = Producer(VALUES)
        capsule = cuda.view(producer).__dlpack__(max_version=version)
        assert producer.deleted == 0
        del capsule
        assert producer.deleted == 1


def test_memory_is_given_back() -> None:
    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    size, before = 2**25, resident()
    for _ in range(10):
        cuda.empty([size], "uint8")
    assert resident() - before < 4 * size


def test_refused_exports() -> None:
    array = cuda.view(VALUES.copy())
    with pytest.raises(BufferError, match=r"copy"):
        array.__dlpack__(copy=True)
    with pytest.raises(BufferError, match=r"dl_device"):
        array.__dlpack__(dl_device=(CUDA, 0))
    with pytest.raises(ValueError, match=r"stream: expected None"):
        array.__dlpack__(stream=1)


def test_read_only_arrays_stay_so() -> None:
    array = cuda.view(Producer(VALUES, flags=1))
    assert array.read_only
    with pytest.raises(BufferError, match=r"max_version"):
        array.__dlpack__()
    assert cuda.view(array).read_only
    assert cuda.from_capsule(array.__dlpack__(max_version=(1, 0))).read_only
    assert not np.asarray(array).flags.writeable
    assert array.__array_interface__["data"][1]


def test_memory_that_is_not_there() -> None:
    with pytest.raises(MemoryError):
        cuda.empty([2**50], "float64")
    with pytest.raises(ValueError, match="2\\^63"):
        cuda.empty([2**40, 2**40], "float64")
    with pytest.raises(ValueError, match=r"dtype: expected float32, .* got 'complex64'"):
        cuda.empty([1], "complex64")
    assert cuda.empty([2], "bfloat16").nbytes == 4


# __cuda_array_interface__ -----------------------------------------------------------------------------------


def test_interface_is_read() -> None:
    array = cuda.view(Interface(VALUES))
    np.testing.assert_array_equal(np.asarray(array), VALUES)
    strided = cuda.view(
        Interface(VALUES.T, strides=VALUES.T.strides, data=(VALUES.ctypes.data, True), stream=1)
    )
    assert (strided.shape, strided.strides, strided.read_only) == ((4, 3), (1, 4), True)
    np.testing.assert_array_equal(np.asarray(strided), VALUES.T)
    empty = cuda.view(Interface(VALUES[:0], data=(0, False), stream=None, mask=None, descr=[("", "<f4")]))
    assert empty.shape == (0, 4)
    assert cuda.view(Interface(np.ones(2, bool), stream=2)).dtype == "bool"


def test_interface_is_owned_until_the_last_use() -> None:
    given = Interface(VALUES.copy())
    gone = weakref.ref(given)
    array = cuda.view(given)
    again = np.from_dlpack(array)
    del given, array
    gc.collect()
    assert gone() is not None
    np.testing.assert_array_equal(again, VALUES)
    del again
    gc.collect()
    assert gone() is None


BAD_INTERFACES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "stream_zero": ({"stream": 0}, ValueError, '"stream".*1 \\(legacy\\), 2 \\(per-thread\\).*got 0'),
    "stream_negative": ({"stream": -1}, ValueError, "stream"),
    "stream_kind": ({"stream": "a"}, TypeError, "stream"),
    "version_old": ({"version": 1}, ValueError, "version 2 or 3"),
    "version_missing": ({"version": WITHOUT}, ValueError, '"version"'),
    "shape_missing": ({"shape": WITHOUT}, ValueError, '"shape"'),
    "shape_kind": ({"shape": [3, 4]}, TypeError, "shape: expected a tuple"),
    "shape_negative": ({"shape": (3, -4)}, ValueError, "shape: expected sizes >= 0"),
    "typestr_missing": ({"typestr": WITHOUT}, ValueError, '"typestr"'),
    "typestr_swapped": ({"typestr": ">f4"}, TypeError, "native byte order.*'>f4'"),
    "typestr_void": ({"typestr": "|V4"}, TypeError, "typestr"),
    "typestr_short": ({"typestr": "f"}, TypeError, "typestr"),
    "typestr_zero": ({"typestr": "<f0"}, TypeError, "typestr"),
    "data_missing": ({"data": WITHOUT}, ValueError, '"data"'),
    "data_kind": ({"data": 5}, TypeError, "data"),
    "data_null": ({"data": (0, False)}, ValueError, "address"),
    "data_text": ({"data": ("a", False)}, TypeError, "integer"),
    "strides_short": ({"strides": (4,)}, ValueError, "strides: expected 2"),
    "strides_split": ({"strides": (16, 2)}, ValueError, "strides: expected whole elements of 4 bytes, got 2"),
    "mask": ({"mask": VALUES}, ValueError, "mask"),
}


@pytest.mark.parametrize("name", BAD_INTERFACES)
def test_bad_interfaces_are_refused(name: str) -> None:
    changes, kind, text = BAD_INTERFACES[name]
    with pytest.raises(kind, match=text):
        cuda.view(Interface(VALUES, **changes))


def test_interface_that_is_no_dict() -> None:
    broken = Interface(VALUES)
    broken.__cuda_array_interface__ = 5  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"array: expected a dict in __cuda_array_interface__, got int"):
        cuda.view(broken)
