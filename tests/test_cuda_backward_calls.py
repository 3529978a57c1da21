"""As test_cuda_calls.py, of backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_support import MODULE, needs_emulator
from producers import CUDA, Producer
from test_cuda_calls import calls

pytestmark = needs_emulator
cuda: Any = MODULE


def new(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def gradients() -> list[Any]:
    """For the parameters of `calls`."""
    return [new(20, 4), new(20, 5), new(20), new(20), None]


def gradients_with(place: int, array: Any) -> dict[str, Any]:
    return {"dparams": [array if i == place else grad for i, grad in enumerate(gradients())]}


MEMORY = new(3, 2, 5)

BAD_BACKWARD: dict[str, tuple[Callable[[Any, Any], dict[str, Any]], type[Exception], str]] = {
    "tape": (lambda x, y: {"tape": None}, TypeError, "tape: expected a LayerTape, got None"),
    "dy_shape": (
        lambda x, y: {"dy": new(3, 2, 4)},
        ValueError,
        r"dy: expected shape \(T, B, H\) = \(3, 2, 5\), got \(3, 2, 4\)",
    ),
    "dy_steps": (lambda x, y: {"dy": new(2, 2, 5)}, ValueError, "dy: expected shape"),
    "dy_dtype": (lambda x, y: {"dy": np.zeros((3, 2, 5))}, TypeError, "dy: expected dtype float32 as x"),
    "dy_stride": (lambda x, y: {"dy": new(3, 2, 10)[..., ::2]}, ValueError, "dy: expected unit stride"),
    "dy_device": (
        lambda x, y: {"dy": Producer(new(3, 2, 5), device_type=CUDA, device_id=1)},
        RuntimeError,
        "dy: expected an array on cuda:0 as x, got one on cuda:1",
    ),
    "dstate_count": (lambda x, y: {"dstate": (None,)}, ValueError, "dstate: expected a tuple of 2"),
    "dstate_shape": (
        lambda x, y: {"dstate": (None, new(2, 4))},
        ValueError,
        r"dstate\[1\]: expected shape \(B, H\) = \(2, 5\), got \(2, 4\)",
    ),
    "dstate_stride": (
        lambda x, y: {"dstate": (new(5, 2).T, None)},
        ValueError,
        r"dstate\[0\]: .*C-contiguous",
    ),
    "dparams_shape": (
        lambda x, y: gradients_with(1, new(20, 4)),
        ValueError,
        r"dweight_hh: expected shape \(4\*H, H\) = \(20, 5\), got \(20, 4\)",
    ),
    "dparams_stride": (
        lambda x, y: gradients_with(0, new(4, 20).T),
        ValueError,
        "dweight_ih: expected a C-contiguous array",
    ),
    "dparams_read_only": (
        lambda x, y: gradients_with(2, Producer(new(20), flags=1)),
        ValueError,
        "dbias_ih: expected a writable array, got a read-only one",
    ),
    "dparams_unasked": (
        lambda x, y: gradients_with(4, new(5, 5)),
        ValueError,
        "dweight_hr: expected None, because the forward call had no such parameter, got an array",
    ),
    "dparams_same": (
        lambda x, y: (lambda bias: {"dparams": [*gradients()[:2], bias, bias, None]})(new(20)),
        ValueError,
        "dbias_hh: .*overlap with dbias_ih",
    ),
    "dparams_dy": (
        lambda x, y: {"dy": MEMORY} | gradients_with(2, MEMORY.reshape(-1)[:20]),
        ValueError,
        "dbias_ih: .*overlap with dy",
    ),
    "dparams_dstate": (
        lambda x, y: {"dstate": (MEMORY[0], None)} | gradients_with(2, MEMORY.reshape(-1)[:20]),
        ValueError,
        r"dbias_ih: .*overlap with dstate\[0\]",
    ),
    "dparams_y": (
        lambda x, y: gradients_with(2, y.reshape(-1)[:20]),
        ValueError,
        "dbias_ih: .*overlap with",
    ),
    "dx_unasked": (
        lambda x, y: {"dx": new(3, 2, 4), "need_dx": False},
        ValueError,
        "dx: expected None with need_dx=False",
    ),
    "dx_shape": (
        lambda x, y: {"dx": new(3, 2, 5)},
        ValueError,
        r"dx: expected shape \(T, B, I\) = \(3, 2, 4\)",
    ),
    "dx_x": (lambda x, y: {"dx": x}, ValueError, "dx: .*overlap with x"),
    "dx_dy": (
        lambda x, y: (lambda memory: {"dy": memory[..., :5], "dx": memory[..., 5:]})(new(3, 2, 9)),
        ValueError,
        "dx: .*overlap with dy",
    ),
    "accumulate": (
        lambda x, y: {"accumulate_dx": True},
        ValueError,
        "accumulate_dx: expected False without dx, got True",
    ),
}


@pytest.mark.parametrize("name", BAD_BACKWARD)
def test_bad_calls_of_backward_are_refused_before_anything_is_written(name: str) -> None:
    change, kind, text = BAD_BACKWARD[name]
    x, params = calls()
    y, _, tape = cuda.forward("lstm", x, (*params, None), save=True, empty=np.empty)
    arguments: dict[str, Any] = {"tape": tape, "dy": new(3, 2, 5), "dparams": gradients(), **change(x, y)}
    with pytest.raises(kind, match=text):
        cuda.backward(empty=lambda *_: pytest.fail("memory was asked for"), **arguments)


def test_a_tape_serves_again_and_gradients_add_up() -> None:
    x, params = calls()
    y, _, tape = cuda.forward("lstm", x, (*params, None), save=True, empty=np.empty)

    def dirty(shape: tuple[int, ...], dtype: str) -> Any:
        return np.full(shape, 255 if dtype == "uint8" else np.nan, dtype)

    dx, _, grads = cuda.backward(tape, y, empty=dirty)
    again = gradients()
    target = dx.copy()
    cuda.backward(tape, y, dparams=again, dx=target, accumulate_dx=True, empty=np.empty)
    np.testing.assert_allclose(target, 2 * dx, rtol=1e-6)
    for got, want in zip(again[:4], grads[:4], strict=True):
        np.testing.assert_array_equal(got, want)
    cuda.backward(tape, y, dparams=again, need_dx=False, empty=np.empty)
    for got, want in zip(again[:4], grads[:4], strict=True):
        np.testing.assert_allclose(got, 2 * want, rtol=1e-6)


BAD_MEMORY: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "shape": (lambda shape, dtype: np.empty(3, dtype), ValueError, "y: expected shape"),
    "dtype": (lambda shape, dtype: np.empty(shape, np.int64), TypeError, "y: expected dtype float32"),
    "stride": (lambda shape, dtype: np.empty(shape, dtype).T, ValueError, "y: expected"),
    "read_only": (
        lambda shape, dtype: Producer(np.empty(shape, dtype), flags=1),
        ValueError,
        "y: .*writable",
    ),
    "device": (
        lambda shape, dtype: Producer(np.empty(shape, dtype), device_type=CUDA, device_id=1),
        RuntimeError,
        "y: expected an array on cuda:0 as x, got one on cuda:1",
    ),
}


@pytest.mark.parametrize("name", BAD_MEMORY)
def test_memory_that_does_not_fit_is_refused(name: str) -> None:
    empty, kind, text = BAD_MEMORY[name]
    x, params = calls()
    with pytest.raises(kind, match=text):
        cuda.forward("lstm", x, (*params, None), empty=empty)
