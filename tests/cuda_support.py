"""What the tests of the GPU part share: which module is there, and arrays of several libraries for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import fusedrnn as fr
from fusedrnn.cuda import loader

MODULE = loader.find()
EMULATED = MODULE is not None and hasattr(MODULE, "emulate")

# For tests that run on a device or on the emulator, whichever the build has.
DEVICES = [
    pytest.param(
        "emulated",
        marks=pytest.mark.skipif(not EMULATED, reason="needs a build with FUSEDRNN_CUDA=EMULATED"),
    ),
    pytest.param(
        "gpu",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(EMULATED or not fr.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
needs_emulator = pytest.mark.skipif(not EMULATED, reason="needs a build with FUSEDRNN_CUDA=EMULATED")


def _torch(device: str) -> Callable[[Any], Any]:
    torch = pytest.importorskip("torch")
    where = "cuda" if device == "gpu" else "cpu"
    return lambda array: torch.tensor(array, device=where)


def _cupy(device: str) -> Callable[[Any], Any]:
    if device == "gpu":
        return pytest.importorskip("cupy").asarray  # type: ignore[no-any-return]
    import fake_cupy

    return fake_cupy.asarray


def _jax(device: str) -> Callable[[Any], Any]:
    jax = pytest.importorskip("jax")
    if device == "gpu" and jax.default_backend() != "gpu":
        pytest.skip("this jax has no CUDA")
    return jax.numpy.asarray  # type: ignore[no-any-return]


class Foreign:
    """An array of a library nobody knows, which speaks DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape = array.shape

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._array.__dlpack_device__()
        return device


def _other(device: str) -> Callable[[Any], Any]:
    make = _torch(device) if device == "gpu" else np.array
    return lambda array: Foreign(make(array))


LIBRARIES = {"torch": _torch, "cupy": _cupy, "jax": _jax, "other": _other}


def converter(library: str, device: str) -> Callable[[Any], Any]:
    """Return what makes a library's array on the device of a NumPy array; tuples and None pass through."""
    if library in ("torch", "jax") and importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    make = LIBRARIES[library](device)

    def convert(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, (tuple, list)):
            return type(value)(convert(item) for item in value)
        return make(value)

    return convert


def host(value: Any) -> Any:
    """Return an array of any library as a NumPy array; tuples and None pass through it."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        return tuple(host(item) for item in value)
    if hasattr(value, "get"):
        value = value.get()
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    if type(value).__name__ == "Array" and type(value).__module__ == "fusedrnn._cuda" and not EMULATED:
        value = pytest.importorskip("torch").from_dlpack(value).cpu()
    return np.asarray(value)


def same_library(result: Any, given: Any) -> bool:
    """Whether a result is an array of the library of what was given."""
    if isinstance(given, Foreign):
        return MODULE is not None and isinstance(result, MODULE.Array)
    return type(result) is type(given)


def own_or(where: str, name: str) -> Callable[[Any], Any]:
    """Return the converter to a library's arrays; "own" is that of the parameters, held as `where` says."""
    if name == "own" and where == "numpy":
        return lambda value: value
    return converter("cupy" if name == "own" else name, "gpu" if where == "gpu" else "emulated")


def assert_same(got: Any, want: Any, quantity: str = "output") -> None:
    """Arrays of any library, alone or in tuples, are those of the CPU within the tolerances of `quantity`."""
    if isinstance(want, (tuple, list)):
        for one, other in zip(got, want, strict=True):
            assert_same(one, other, quantity)
    elif want is None:
        assert got is None
    else:
        assert_close(host(got), want, quantity, dtype=np.asarray(want).dtype.name)
