"""Whole calls of the compiled module: arrays of every kind in, and each wrong argument refused by name.

On the emulated build, whose device memory is the host's: arrays here may claim any device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_support import MODULE, needs_emulator
from producers import CUDA, Interface, Producer

import fusedrnn as fr

pytestmark = needs_emulator
cuda: Any = MODULE


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
    "reset_state_stride": (
        lambda x, p: {"reset_state": (np.zeros((5, 2), np.float32).T, None)},
        ValueError,
        r"reset_state\[0\]: expected a C-contiguous array",
    ),
    "state_stride": (
        lambda x, p: {"state": (None, np.zeros((5, 2), np.float32).T)},
        ValueError,
        r"state\[1\]: expected a C-contiguous array",
    ),
    "c_dtype": (
        lambda x, p: {
            "x": x.astype(np.float16),
            "params": (*[q.astype(np.float16) for q in p], None),
            "state": (None, np.zeros((2, 5), np.float16)),
        },
        TypeError,
        r"state\[1\]: expected dtype float32 beside x of float16, got float16",
    ),
    "weight_hh": (
        lambda x, p: {"params": (p[0], p[1][:, :4].copy(), None, None, None)},
        ValueError,
        r"weight_hh: expected shape \(4\*H, H\) = \(20, 5\), got \(20, 4\)",
    ),
    "weight_stride": (
        lambda x, p: {"params": (p[0], np.asfortranarray(p[1]), None, None, None)},
        ValueError,
        "weight_hh: expected a C-contiguous array",
    ),
    "bias_ih": (
        lambda x, p: {"params": (*p[:2], p[2][:5], None, None)},
        ValueError,
        "bias_ih: expected shape",
    ),
    "bias_hh": (
        lambda x, p: {"params": (*p[:2], None, p[2][:5], None)},
        ValueError,
        "bias_hh: expected shape",
    ),
    "weight_hr_shape": (
        lambda x, p: {"params": (*p, np.zeros((3, 4), np.float32))},
        ValueError,
        r"weight_hr: expected shape \(P, H\) with H = 5, got \(3, 4\)|weight_hr: expected shape",
    ),
    "out_backwards": (  # rows 4, 3 and 2 of what x has rows 0 to 2 of
        lambda x, p: (lambda memory: {"x": memory[:3, :, :4], "out": memory[4:1:-1]})(
            np.zeros((6, 2, 5), np.float32)
        ),
        ValueError,
        "out: expected memory of its own, got an overlap with x",
    ),
    "out_state": (
        lambda x, p: (lambda memory: {"out": memory, "state": (memory[1], None)})(
            np.zeros((3, 2, 5), np.float32)
        ),
        ValueError,
        r"out: .*overlap with state\[0\]",
    ),
    "state_out_x": (
        lambda x, p: {"state_out": (x.reshape(-1)[:10].reshape(2, 5), STATE)},
        ValueError,
        r"state_out\[0\]: .*overlap with x",
    ),
    "state_out_state": (
        lambda x, p: {"state": (STATE, None), "state_out": (STATE, np.zeros((2, 5), np.float32))},
        ValueError,
        r"state_out\[0\]: .*overlap with state\[0\]",
    ),
    "state_out_shape": (
        lambda x, p: {"state_out": (np.zeros((2, 4), np.float32), STATE)},
        ValueError,
        r"state_out\[0\]: expected shape \(B, H\) = \(2, 5\)",
    ),
    "lengths_shape": (lambda x, p: {"lengths": np.array([1])}, ValueError, r"lengths: expected shape \(B,\)"),
    "lengths": (lambda x, p: {"lengths": np.array([4, 1])}, ValueError, "lengths: expected values in"),
    "save": (lambda x, p: {"save": 1}, TypeError, "save"),
    "recompute": (lambda x, p: {"recompute": 1}, TypeError, "recompute"),
    "table": (lambda x, p: {"indices": np.zeros((2, 2), int)}, ValueError, r"x: expected shape \(V, I\)"),
    "indices_dtype": (
        lambda x, p: {"x": x[0], "indices": np.zeros((2, 2))},
        TypeError,
        "indices: expected dtype int64",
    ),
    "indices_shape": (lambda x, p: {"x": x[0], "indices": np.zeros(2, int)}, ValueError, "indices: expected"),
    "indices": (
        lambda x, p: {"x": x[0], "indices": np.full((2, 2), 2)},
        ValueError,
        r"indices: expected values in \[0, V\) = \[0, 2\), got 2",
    ),
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


def test_kernels_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    x, params = calls()
    given = (Interface(x), [Interface(p) for p in params])
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "step")
    fr.functional.forward("lstm", *given)
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "nothing")
    with pytest.raises(ValueError, match=r"FUSEDRNN_CUDA_KERNEL: expected .*step.*got nothing"):
        fr.functional.forward("lstm", *given)
