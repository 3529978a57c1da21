"""Arrays of libraries that offer DLPack's functions for C: no Python runs to take them.

On the emulated build, with PyTorch's tensors in host memory.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest
from cuda_support import MODULE, needs_emulator

import fusedrnn as fr
from fusedrnn.cuda.libraries import is_device_array, library_of

torch: Any = pytest.importorskip("torch")
pytestmark = [
    needs_emulator,
    pytest.mark.skipif(
        not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="needs torch 2.10 or later"
    ),
]
cuda: Any = MODULE


def problem() -> tuple[Any, dict[str, Any], tuple[Any, Any]]:
    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> Any:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    params = {"weight_ih": tensor(20, 4), "weight_hh": tensor(20, 5), "bias_ih": tensor(20)}
    return tensor(3, 2, 4), params, (tensor(2, 5), tensor(2, 5))


def test_calls_ask_no_tensor_in_python() -> None:
    called: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    x, params, state = problem()
    sys.setprofile(note)
    try:
        y, _, tape = fr.functional.forward("lstm", x, params, state)
        fr.functional.backward(tape, y, state)
    finally:
        sys.setprofile(None)
    assert "call_forward" in called
    assert [name for name in called if "dlpack" in name or name == "current_stream"] == []


def test_results_are_those_of_the_general_protocol() -> None:
    class Plain(torch.Tensor):  # type: ignore[misc]
        asked = 0

        def __dlpack__(self, **options: Any) -> Any:
            Plain.asked += 1
            return super().__dlpack__(**options)

    x, params, state = problem()
    plain = {name: param.as_subclass(Plain) for name, param in params.items()}
    results = []
    for given in (params, plain):
        y, final, tape = fr.functional.forward("lstm", x, given, state)
        grads = fr.functional.backward(tape, y, final)
        results.append((y, *final, grads.x, *grads.state, *grads.params.values()))
    assert Plain.asked == 3
    for one, other in zip(*results, strict=True):
        assert type(one) is torch.Tensor and torch.equal(one, other)


def test_strides_offset_and_memory_are_the_tensors() -> None:
    tensor = torch.arange(24.0).reshape(4, 6)[1:, ::2].T
    array = cuda.view(tensor)
    assert (array.shape, array.strides, array.read_only) == ((3, 3), (2, 6), False)
    again = torch.from_dlpack(array)
    assert again.data_ptr() == tensor.data_ptr() and torch.equal(again, tensor)
    del tensor
    assert again[0, 0] == 6.0


def test_a_tape_keeps_what_a_tensor_let_go_of() -> None:
    x, params, _ = problem()
    y, _, tape = fr.functional.forward("lstm", x, params)
    want = fr.functional.backward(tape, y).x
    dy = y.clone()
    for given in (x, y, *params.values()):
        given.set_()
    assert torch.equal(fr.functional.backward(tape, dy).x, want)


def test_frozen_parameters_are_tensors() -> None:
    parameter = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    assert cuda.place(parameter) == (0, 1) and is_device_array(parameter)
    assert library_of(parameter).name == "torch"


def test_what_a_table_cannot_say_is_refused() -> None:
    for tensor, text in (
        (torch.nn.Parameter(torch.ones(3)), "detach"),
        (torch.ones(3, dtype=torch.complex64).conj(), "conjugate bit"),
        (torch.ones(3, dtype=torch.complex64).conj().imag, "resolve_neg"),
        (torch.ones(3).to_sparse(), "layout"),
    ):
        with pytest.raises(ValueError, match=f"array: expected an array that its library exports, .*{text}"):
            cuda.view(tensor)


def test_subclasses_that_dispatch_have_no_memory_to_give() -> None:
    class Elsewhere(torch.Tensor):  # type: ignore[misc]
        @classmethod
        def __torch_dispatch__(cls, *arguments: Any, **options: Any) -> Any:
            raise AssertionError("asked")

    assert cuda.place(torch.ones(3).as_subclass(Elsewhere)) is None
    assert cuda.place(np.ones(3)) is None and cuda.place(None) is None and cuda.place(torch.Tensor) is None
