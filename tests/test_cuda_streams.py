"""In which stream and on which device calls on a GPU work, and what they wait for.

On the emulated build, which notes both; the arrays here may claim to be on any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import fake_cupy
import numpy as np
import pytest
from cuda_support import MODULE, Foreign, needs_emulator

import fusedrnn as fr
from fusedrnn.cuda import backend, kernels, layer, libraries

pytestmark = needs_emulator
cuda: Any = MODULE

LEGACY, OTHER, PRODUCERS = 1, 99, 7


class WithStream:
    """An array whose producer says in which stream it is made."""

    def __init__(self, array: Any) -> None:
        self.shape = array.shape
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False),
            "version": 3, "stream": PRODUCERS,
        }  # fmt: skip
        self.array = array


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """(device, stream) of each wait; no stream is used at first."""
    waited: list[tuple[int, int]] = []
    monkeypatch.setattr(cuda, "synchronize", lambda device, stream: waited.append((device, stream)))
    cuda.take_streams()
    yield waited
    cuda.take_streams()


def use_stream(monkeypatch: pytest.MonkeyPatch, module: Any, **changes: Any) -> None:
    """What `library_of` says in a module of the package, changed."""
    real = libraries.library_of
    monkeypatch.setattr(module, "library_of", lambda x: real(x)._replace(stream=OTHER, **changes))


def problem() -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 2, 4)).astype(np.float32)
    return x, [rng.normal(size=shape).astype(np.float32) for shape in ((20, 4), (20, 5), (20,), (20,))]


@pytest.mark.parametrize("kernel", ["persistent", "step"])
def test_functional_calls_stay_in_the_callers_stream(
    kernel: str, waits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, params = problem()
    use_stream(monkeypatch, layer)
    with fr.cuda.set_kernel(kernel):
        given = [WithStream(params[0]), *map(Foreign, params[1:])]
        y, _, tape = fr.functional.forward("lstm", Foreign(x), given)
        assert cuda.take_streams() == ({OTHER}, {(OTHER, PRODUCERS), (OTHER, LEGACY)})
        fr.functional.backward(tape, y)
    assert cuda.take_streams() == ({OTHER}, {(OTHER, LEGACY)})
    assert waits == [(0, OTHER)] * 2


def test_the_calls_of_modules_stay_in_the_callers_stream(
    waits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fr.LSTM(4, 5, 2, bidirectional=True, seed=0).to("cuda")
    use_stream(monkeypatch, kernels)
    y, _, tape = module.forward(problem()[0])
    assert cuda.take_streams()[0] == {OTHER}
    module.backward(tape, y)
    assert cuda.take_streams()[0] == {OTHER}
    assert waits == []


@pytest.mark.parametrize("synchronous", [True, False])
def test_modules_wait_where_a_library_has_no_stream(
    synchronous: bool, waits: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    use_stream(monkeypatch, backend, synchronous=synchronous)
    fr.LSTM(4, 5, seed=0).to("cuda")(torch.from_numpy(problem()[0]))
    assert waits == [(0, OTHER)] * synchronous


def test_arrays_of_ours_are_waited_for(waits: list[Any]) -> None:
    array = cuda.empty([2], "float32", 0, PRODUCERS)
    cuda.view(array, PRODUCERS)
    assert cuda.take_streams() == (set(), set())
    cuda.view(array, OTHER)
    assert cuda.take_streams() == (set(), {(OTHER, PRODUCERS)})


# Libraries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "expected"), [(5, 5), (0, LEGACY)])
def test_torch_says_device_and_stream(given: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    asked = []

    def current_stream(device: Any) -> Any:
        asked.append(device)
        return SimpleNamespace(cuda_stream=given)

    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    kind = type("Tensor", (), {"__module__": "torch", "device": torch.device("cuda:1")})
    found = libraries.library_of(kind())
    assert (found.name, found.device, found.stream, found.synchronous) == ("torch", 1, expected, False)
    assert asked == [torch.device("cuda:1")]


@pytest.mark.parametrize(("given", "expected"), [(5, 5), (0, LEGACY)])
def test_cupy_says_device_and_stream(given: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cupy.installed(monkeypatch):
        monkeypatch.setattr(fake_cupy.cuda, "get_current_stream", lambda: SimpleNamespace(ptr=given))
        array = fake_cupy.asarray(np.zeros(2))
        found = libraries.library_of(array)
        assert (found.name, found.device, found.stream, found.synchronous) == ("cupy", 0, expected, False)
        monkeypatch.setattr(fake_cupy.ndarray, "device", SimpleNamespace(id=3))
        found = libraries.library_of(array)
        assert found.device == 3
        with pytest.raises(RuntimeError, match="no device 3"):
            found.empty((1,), "float32")


def test_a_backends_device_is_entered() -> None:
    with pytest.raises(RuntimeError, match="no device 1"), backend.CudaBackend(1, fake_cupy).on_device():
        pytest.fail("entered")


class OnDevice:
    """Says where it is, and no more."""

    def __init__(self, kind: int, number: int) -> None:
        self.place = (kind, number)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place


def test_others_say_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, number, expected in ((2, 1, 1), (13, 2, 2), (1, 0, 0)):
        x = OnDevice(kind, number)
        assert libraries.is_device_array(x)
        found = libraries.library_of(x)
        assert (found.name, found.device, found.stream, found.synchronous) == (
            "other",
            expected,
            LEGACY,
            True,
        )
    assert not libraries.is_device_array(OnDevice(3, 0))
    made = []
    monkeypatch.setattr(cuda, "empty", lambda *arguments: made.append(arguments))
    libraries.library_of(OnDevice(2, 1)).empty((2, 3), "float32")
    assert made == [((2, 3), "float32", 1)]
    x = WithStream(problem()[0])
    monkeypatch.setattr(cuda, "view", lambda array: SimpleNamespace(device=3))
    assert libraries.library_of(x).device == 3


def test_jax_is_waited_for() -> None:
    jax = pytest.importorskip("jax")
    found = libraries.library_of(jax.numpy.zeros(2))
    assert (found.name, found.device, found.stream, found.synchronous) == ("jax", 0, LEGACY, True)
