"""Arrays of other libraries, in and out: DLPack capsules and `__cuda_array_interface__`, and their misuse.

On the emulated build, whose device memory is the host's: producers here may claim any device.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_support import MODULE, needs_emulator

import fusedrnn as fr
from fusedrnn.cuda.libraries import is_device_array

pytestmark = needs_emulator
cuda: Any = MODULE

CPU, CUDA = 1, 2


# Capsules made by hand --------------------------------------------------------------------------------------


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


_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_name = ctypes.pythonapi.PyCapsule_GetName
_name.restype, _name.argtypes = ctypes.c_char_p, [ctypes.py_object]


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
        self.capsule = _new(ctypes.addressof(self.managed), name, None)
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


VALUES = np.arange(12.0, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("versioned", [True, False])
def test_capsule_is_owned_until_the_last_use(versioned: bool) -> None:
    producer = Producer(VALUES, versioned=versioned)
    array = cuda.view(producer)
    used = b"used_dltensor_versioned" if versioned else b"used_dltensor"
    assert _name(producer.capsule) == used
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
    stray = _new(1, b"something", None)
    with pytest.raises(ValueError, match=r"got one named 'something'"):
        cuda.from_capsule(stray)
    with pytest.raises(ValueError, match=r"got one named ''"):
        cuda.from_capsule(_new(1, None, None))
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


@pytest.mark.parametrize("value", [None, 3, [1.0], "x", object(), Producer], ids=str)
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
    assert _name(array.__dlpack__()) == b"dltensor"
    assert _name(array.__dlpack__(max_version=(0, 8))) == b"dltensor"
    assert _name(array.__dlpack__(max_version=(1, 0))) == b"dltensor_versioned"
    assert _name(array.__dlpack__(dl_device=(CPU, 0), copy=False)) == b"dltensor"


def test_a_capsule_nobody_takes_frees_its_array() -> None:
    for version in (None, (1, 0)):
        producer = Producer(VALUES)
        capsule = cuda.view(producer).__dlpack__(max_version=version)
        assert producer.deleted == 0
        del capsule
        assert producer.deleted == 1


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


# Whole calls ------------------------------------------------------------------------------------------------


def calls() -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 4)).astype(np.float32)
    return x, [rng.normal(size=shape).astype(np.float32) for shape in ((20, 4), (20, 5), (20,), (20,))]


def test_objects_with_the_interface_alone() -> None:
    x, params = calls()
    want, _, _ = fr.functional.forward("lstm", x, params)
    y, (_, c), tape = fr.functional.forward("lstm", Interface(x), [Interface(p) for p in params])
    assert isinstance(y, cuda.Array)
    np.testing.assert_allclose(np.asarray(y), want, atol=1e-6)
    grads = fr.functional.backward(tape, y, (None, c))
    assert isinstance(grads.x, cuda.Array)


def test_arrays_on_different_devices() -> None:
    x, params = calls()
    here = {"device_type": CUDA, "device_id": 0}
    given: list[Any] = [Producer(p, **here) for p in params]
    given[1] = Producer(params[1], device_type=CUDA, device_id=1)
    with pytest.raises(RuntimeError, match=r"weight_hh: expected an array on cuda:0 as x, got one on cuda:1"):
        fr.functional.forward("lstm", Producer(x, **here), given)
    assert all(producer.deleted == 1 for producer in given[:2])


def test_a_failed_call_leaves_the_module_usable() -> None:
    x, params = calls()
    there = {"device_type": CUDA, "device_id": 1}
    with pytest.raises(fr.cuda.Error, match=r"there is one device, 0") as caught:
        fr.functional.forward("lstm", Producer(x, **there), [Producer(p, **there) for p in params])
    assert (caught.value.code, caught.value.place) == (101, "set_device")
    assert "code 101" in str(caught.value)
    test_objects_with_the_interface_alone()


def test_memory_for_a_call_that_is_not_there() -> None:
    x, params = calls()

    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        if dtype == "uint8":
            raise MemoryError("no room")
        return np.empty(shape, dtype)

    with pytest.raises(MemoryError, match=r"no room"):
        cuda.forward("lstm", x, (*params, None), empty=empty)
    test_objects_with_the_interface_alone()


STATE = np.zeros((2, 5), np.float32)

BAD_CALLS: dict[str, tuple[Callable[[Any, list[Any]], dict[str, Any]], type[Exception], str]] = {
    "out_read_only": (
        lambda x, p: {"out": Producer(np.zeros((3, 2, 5), np.float32), flags=1)},
        ValueError,
        "out: expected a writable array, got a read-only one",
    ),
    "out_overlap": (
        lambda x, p: {"out": p[1][:6].reshape(3, 2, 5), "x": p[1][1:7, :4].reshape(3, 2, 4)},
        ValueError,
        "out",
    ),
    "out_shape": (
        lambda x, p: {"out": np.zeros((3, 2, 4), np.float32)},
        ValueError,
        r"out: expected shape \(T, B, H\)",
    ),
    "out_stride": (
        lambda x, p: {"out": np.zeros((3, 2, 10), np.float32)[..., ::2]},
        ValueError,
        r"out: expected unit stride in the last axis, got strides \(20, 10, 2\) in elements",
    ),
    "out_dtype": (
        lambda x, p: {"out": np.zeros((3, 2, 5))},
        TypeError,
        "out: expected dtype float32 as x, got float64",
    ),
    "state_out": (
        lambda x, p: {"state_out": (np.zeros((2, 5), np.float32),)},
        ValueError,
        "state_out: expected a tuple of 2",
    ),
    "state_out_same": (
        lambda x, p: {"state_out": (STATE, STATE)},
        ValueError,
        r"state_out\[1\]: .*overlap with state_out\[0\]",
    ),
    "x_stride": (
        lambda x, p: {"x": np.zeros((3, 2, 8), np.float32)[..., ::2]},
        ValueError,
        "x: expected unit stride",
    ),
    "x_rank": (lambda x, p: {"x": x[0]}, ValueError, r"x: expected shape \(T, B, I\), got \(2, 4\)"),
    "x_dtype": (lambda x, p: {"x": x.astype(np.int64)}, TypeError, "x: expected dtype float32, .*got int64"),
    "x_misaligned": (
        lambda x, p: {"x": np.frombuffer(bytes(97), np.uint8)[1:].view(np.float32).reshape(3, 2, 4)},
        ValueError,
        "x: expected data aligned to its 4-byte elements, got a misaligned array",
    ),
    "weight_none": (
        lambda x, p: {"params": (p[0], None, None, None, None)},
        TypeError,
        "weight_hh: expected an array .*got None",
    ),
    "weight_rows": (
        lambda x, p: {"params": (p[0][:18], p[1], None, None, None)},
        ValueError,
        "weight_ih: .*4\\*H",
    ),
    "weight_hr": (
        lambda x, p: {"cell": "gru", "params": (p[0][:15], p[1][:15], None, None, p[1][:3])},
        ValueError,
        "weight_hr: expected None",
    ),
    "cell": (
        lambda x, p: {"cell": "lstn"},
        ValueError,
        "cell: expected one of lstm, gru, rnn_tanh, rnn_relu, got 'lstn'",
    ),
    "mode": (
        lambda x, p: {"float32_mode": "half"},
        ValueError,
        "float32_mode: expected ieee, tf32 or tf32x3, got 'half'",
    ),
    "state_shape": (
        lambda x, p: {"state": (np.zeros((2, 4), np.float32), None)},
        ValueError,
        r"state\[0\]: expected shape \(B, H\) = \(2, 5\)",
    ),
    "resets_dtype": (
        lambda x, p: {"resets": np.zeros((3, 2), np.uint8)},
        TypeError,
        "resets: expected dtype bool beside x of float32, got uint8",
    ),
    "resets_shape": (lambda x, p: {"resets": np.zeros((2, 2), bool)}, ValueError, "resets"),
    "reset_state": (
        lambda x, p: {"reset_state": (np.zeros(4, np.float32), None)},
        ValueError,
        r"reset_state\[0\]",
    ),
    "lengths": (lambda x, p: {"lengths": np.array([4, 1])}, ValueError, "lengths: expected values in"),
    "save": (lambda x, p: {"save": 1}, TypeError, "save"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused_before_anything_is_written(name: str) -> None:
    change, kind, text = BAD_CALLS[name]
    x, params = calls()
    arguments: dict[str, Any] = {"cell": "lstm", "x": x, "params": (*params, None), **change(x, params)}
    with pytest.raises(kind, match=text):
        cuda.forward(empty=lambda *_: pytest.fail("memory was asked for"), **arguments)


def test_lengths_on_a_device_are_refused() -> None:
    x, params = calls()
    lengths = Producer(np.array([1, 2]), device_type=CUDA)
    with pytest.raises(RuntimeError, match=r"lengths: expected an array in host memory"):
        fr.functional.forward("lstm", Interface(x), [Interface(p) for p in params], lengths=lengths)  # type: ignore[arg-type]


def test_recompute_is_refused() -> None:
    x, params = calls()
    with pytest.raises(ValueError, match=r"recompute: expected False on a GPU"):
        fr.functional.forward("lstm", Interface(x), [Interface(p) for p in params], recompute=True)


def test_kernels_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    x, params = calls()
    given = (Interface(x), [Interface(p) for p in params])
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "step")
    fr.functional.forward("lstm", *given)
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "nothing")
    with pytest.raises(ValueError, match=r"FUSEDRNN_CUDA_KERNEL: expected .*step.*got nothing"):
        fr.functional.forward("lstm", *given)
