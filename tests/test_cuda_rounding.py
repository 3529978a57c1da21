"""Modules on a GPU in 16 bits: the types that are refused, and the rounding itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_support import MODULE, needs_emulator
from test_cuda_mixed import tensors

import fusedrnn as fr
from fusedrnn import _core
from fusedrnn.cuda import half, kernels, libraries

torch: Any = pytest.importorskip("torch")


def test_refused_types(where: str) -> None:
    bf16, fp16, wide = (tensors(where, dtype) for dtype in ("bfloat16", "float16", "float32"))
    x, h, c = np.zeros((2, 3, 4)), np.zeros((1, 3, 5)), np.zeros((1, 3, 5), np.float32)
    module = fr.LSTM(4, 5, seed=0).to("cuda")
    y, _, tape = module.forward(bf16(x))
    _, _, wide_tape = module.forward(wide(x))
    for kind, text, call in (
        (TypeError, r"state\[0\]: expected bfloat16, got float32", lambda: module(bf16(x), wide((h, c)))),
        (TypeError, r"state\[0\]: expected bfloat16, got float16", lambda: module(bf16(x), fp16((h, c)))),
        (TypeError, r"state\[0\]: expected float16, got bfloat16", lambda: module(fp16(x), bf16((h, c)))),
        (TypeError, r"state\[0\]: expected float32, got bfloat16", lambda: module(wide(x), bf16((h, c)))),
        (
            TypeError,
            r"state\[1\]: expected float32, got bfloat16",
            lambda: module(bf16(x), (bf16(h), bf16(c))),
        ),
        (TypeError, r"dy: expected bfloat16, got float32", lambda: module.backward(tape, y.float())),
        (TypeError, r"dy: expected bfloat16, got float16", lambda: module.backward(tape, y.half())),
        (TypeError, r"dy: expected float32, got bfloat16", lambda: module.backward(wide_tape, y)),
        (
            TypeError,
            r"dstate\[0\]: expected bfloat16, got float32",
            lambda: module.backward(tape, None, (wide(h), None)),
        ),
        (
            TypeError,
            r"reset_state\[0\]: expected bfloat16, got float32",
            lambda: module(bf16(x), None, None, bf16(np.zeros((2, 3), bool)), wide((h[:, 0], c[:, 0]))),
        ),
        (
            ValueError,
            r"dy: expected shape \(2, 3, 5\), got \(2, 3, 4\)",
            lambda: module.backward(tape, bf16(x)),
        ),
        (ValueError, r"x: expected shape \(T, B, I\)", lambda: module(bf16(h))),
        (
            TypeError,
            r"x: expected float64 as the parameters, got float16",
            lambda: fr.LSTM(4, 5, dtype="float64").to("cuda")(fp16(x)),
        ),
        (RuntimeError, r"x: expected a numpy.ndarray .* on cpu", lambda: fr.LSTM(4, 5)(bf16(x))),
        (TypeError, r"x: .*float32 or float64, got float16", lambda: fr.LSTM(4, 5)(x.astype(np.float16))),
        (
            TypeError,
            r"got bfloat16, which only recurrent networks take",
            lambda: fr.Linear(4, 5).to("cuda")(bf16(x)),
        ),
        (TypeError, r"x: expected .*float32.*, got float16", lambda: fr.Linear(4, 5).to("cuda")(fp16(x))),
        (TypeError, r"x: expected .*float32.*, got float16", lambda: fr.Dropout(0.5).to("cuda")(fp16(x))),
        (
            TypeError,
            r"x: expected .*float32.*, got float16",
            lambda: fr.LayerNorm(4, elementwise_affine=False).to("cuda")(fp16(x)),
        ),
        (TypeError, r"float16", lambda: fr.LSTMCell(4, 5).to("cuda")(fp16(x[0]))),
    ):
        with pytest.raises(kind, match=text):
            call()


@needs_emulator
def test_weights_are_rounded_in_the_callers_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda: Any = MODULE
    real, rounded, round_ = libraries.library_of, [], cuda.round
    module = fr.GRU(4, 5, seed=0).to("cuda")
    x = np.zeros((2, 3, 4), np.float16)
    monkeypatch.setattr(cuda, "round", lambda *arguments: rounded.append(arguments[2]) or round_(*arguments))

    def call(stream: int) -> list[int]:
        rounded.clear()
        for place in (kernels, half):
            monkeypatch.setattr(place, "library_of", lambda array: real(array)._replace(stream=stream))
        cuda.take_streams()
        module.backward(module.forward(x)[2], np.zeros((2, 3, 5), np.float16))
        assert cuda.take_streams()[0] == {stream}
        return rounded

    assert call(7) == [7] * 4
    assert call(7) == []
    # Nothing says that the other stream is done.
    assert call(9) == [9] * 4
    monkeypatch.setattr(cuda, "is_capturing", lambda stream: stream == 9)
    assert call(9) == [9] * 4
    assert call(9) == [9] * 4
    monkeypatch.setattr(cuda, "is_capturing", lambda stream: False)
    assert call(9) == [9] * 4
    assert call(9) == []


@needs_emulator
def test_rounding_and_dropout() -> None:
    cuda: Any = MODULE
    x = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, -0.0, np.inf, np.nan, 1e-41, 3e38], np.float32)
    for dtype in ("bfloat16", "float16"):
        rounded = torch.empty(7, dtype=getattr(torch, dtype))
        cuda.round(x, rounded)
        torch.testing.assert_close(rounded, torch.tensor(x).to(rounded.dtype), rtol=0, atol=0, equal_nan=True)
    with pytest.raises(TypeError, match=r"weight: expected dtype float32, .* got float32, .* to float32"):
        cuda.round(x, np.empty(7, np.float32))
    with pytest.raises(TypeError, match=r"weight: expected dtype float32, .* got float64"):
        cuda.round(x.astype(float), np.empty(7, np.float16))
    with pytest.raises(ValueError, match=r"rounded: expected shape"):
        cuda.round(x, np.empty(6, np.float16))
    for kind in (np.float32, np.float64):
        values = np.random.default_rng(0).normal(size=(3, 41)).astype(kind)
        for p in (0.0, 0.3, 1.0):
            y = np.empty_like(values)
            cuda.dropout(values, y, p, 5, 2**40)
            np.testing.assert_array_equal(y, _core.dropout(values, p, 5, 2**40))
    with pytest.raises(ValueError, match=r"p: expected a number in \[0, 1\]"):
        cuda.dropout(values, y, 1.5, 5, 0)
    with pytest.raises(ValueError, match=r"y: expected memory of its own"):
        cuda.dropout(values, values, 0.5, 5, 0)
    with pytest.raises(TypeError, match=r"array: expected elements of 16 bits as uint16, got float32"):
        cuda.view(x, 1, "uint16")
    assert cuda.view(rounded, 1, "bfloat16").dtype == "bfloat16"
