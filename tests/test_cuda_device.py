"""What only a real device can show: graphs of the caller, work of other streams, sizes of real networks."""

from __future__ import annotations

from typing import Any

import pytest
from cuda_support import DEVICES

import fusedrnn as fr
from fusedrnn.cuda.modes import KERNELS

pytestmark = pytest.mark.parametrize("device", DEVICES[1:])

# (cell, dtype, float32 mode, T, B, H): each runs on every kernel that can run it.
CASES = [
    ("lstm", "bfloat16", "ieee", 33, 16, 256),
    ("gru", "float16", "ieee", 20, 20, 384),
    ("lstm", "float32", "tf32", 17, 5, 200),
    ("rnn_tanh", "float32", "ieee", 12, 64, 512),
    ("lstm", "float64", "ieee", 7, 3, 72),
]


def tensors(cell: str, dtype: str, T: int, B: int, H: int, seed: int = 0) -> tuple[Any, list[Any], Any]:
    """x, the parameters and dy on the device."""
    torch = pytest.importorskip("torch")
    random = torch.Generator("cuda").manual_seed(seed)
    gates = {"lstm": 4, "gru": 3}.get(cell, 1) * H

    def normal(*shape: int) -> Any:
        return torch.randn(shape, generator=random, device="cuda").mul_(0.5).to(getattr(torch, dtype))

    params = [normal(gates, H) / H**0.5, normal(gates, H) / H**0.5, normal(gates), normal(gates)]
    return normal(T, B, H), params, normal(T, B, H)


def results(cell: str, x: Any, params: list[Any], dy: Any) -> tuple[str, list[Any]]:
    """The kernel; y, the final state and all gradients."""
    y, state, tape = fr.functional.forward(cell, x, params)
    grads = fr.functional.backward(tape, dy)
    states = state if isinstance(state, tuple) else (state,)
    given = [y, *states, grads.x, *[g for g in grads.params if g is not None]]
    return tape._layer.kernel, given


def able(kernel: str, cell: str, x: Any, params: list[Any], dy: Any) -> None:
    """Skip what a kernel refuses."""
    try:
        with fr.cuda.set_kernel(kernel):
            results(cell, x[:1].contiguous(), params, dy[:1].contiguous())
    except RuntimeError as error:
        if "cannot run this" not in str(error):
            raise
        pytest.skip(f"the {kernel} kernel is not for this device or size: {error}")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("cell", "dtype", "mode", "T", "B", "H"), CASES)
def test_calls_inside_a_graph_of_torch(
    cell: str, dtype: str, mode: str, T: int, B: int, H: int, kernel: str, device: str
) -> None:
    torch = pytest.importorskip("torch")
    x, params, dy = tensors(cell, dtype, T, B, H)
    with fr.cuda.set_float32_mode(mode):
        able(kernel, cell, x, params, dy)
        with fr.cuda.set_kernel(kernel):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                results(cell, x, params, dy)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                _, captured = results(cell, x, params, dy)
            for seed in (1, 2):
                other_x, _, other_dy = tensors(cell, dtype, T, B, H, seed)
                x.copy_(other_x)
                dy.copy_(other_dy)
                graph.replay()
                ran, expected = results(cell, x, params, dy)
                assert ran == kernel
                for got, want in zip(captured, expected, strict=True):
                    assert torch.equal(got, want)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("cell", "dtype", "mode", "T", "B", "H"), CASES)
def test_calls_that_come_again(
    cell: str, dtype: str, mode: str, T: int, B: int, H: int, kernel: str, device: str
) -> None:
    torch = pytest.importorskip("torch")
    x, params, dy = tensors(cell, dtype, T, B, H)
    with fr.cuda.set_float32_mode(mode):
        able(kernel, cell, x, params, dy)
        with fr.cuda.set_kernel(kernel):
            first = [tensor.clone() for tensor in results(cell, x, params, dy)[1]]
            for _ in range(6):  # from the allocator's cache: most calls have equal pointers
                again = results(cell, x, params, dy)[1]
                assert all(torch.equal(got, want) for got, want in zip(again, first, strict=True))
                del again


def test_a_call_waits_for_the_callers_stream_alone(device: str) -> None:
    torch = pytest.importorskip("torch")
    x, params, dy = tensors("lstm", "float32", 9, 4, 96)
    _, expected = results("lstm", x, params, dy)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(x)
        _, got = results("lstm", late, params, dy)
    assert not stream.query()  # the calls came back before they were done
    stream.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
