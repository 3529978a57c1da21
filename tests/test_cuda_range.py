"""The GPU's layer norm, losses and optimisers against the CPU's at the ends of the range, on the emulator."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import fake_cupy as cp
import numpy as np
import pytest
from cuda_support import needs_emulator
from support import DTYPES, Array
from tolerances import TOLERANCE

import fusedrnn as fr
from fusedrnn.cuda.kernels import Kernels

pytestmark = needs_emulator

CPU = fr._core
GPU = Kernels(cp, 0)
SIZES = {"float32": (-30, -10, 0, 10, 25, 38), "float64": (-290, -10, 0, 10, 25, 307)}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cp)


def assert_same(got: Any, want: Any, what: object, dtype: str) -> None:
    """Close relative to the largest; NaN and infinities at the same places. What is denormal may be 0."""
    got, want = np.asarray(got.get() if isinstance(got, cp.ndarray) else got), np.asarray(want)
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(got), finite), what
    assert np.array_equal(got[~finite], want[~finite], equal_nan=True), what
    got, want = got[finite].astype(np.longdouble), want[finite].astype(np.longdouble)
    error, size = np.abs(got - want).max(initial=0.0), np.abs(want).max(initial=0.0)
    # Sums in another order: ten times what a comparison with exact values allows.
    assert error <= 10.0 * TOLERANCE[dtype]["gradient"] * size + 10.0 * np.finfo(dtype).tiny, (
        what,
        error,
        size,
    )


def numbers(rng: np.random.Generator, shape: Any, exponent: int, dtype: str) -> Array:
    return (rng.uniform(-3.0, 3.0, shape) * np.longdouble(10.0) ** exponent).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 0.0, 1e-30, 1e20])
def test_layer_norm(dtype: str, eps: float) -> None:
    rng = np.random.default_rng(0)
    for size, shape in itertools.product(SIZES[dtype], ((3, 7), (2, 1), (4, 33))):
        x, dy = numbers(rng, shape, size, dtype), rng.normal(size=shape).astype(dtype)
        x[0] = x[0, 0]
        weight, bias = rng.normal(size=(2, shape[1])).astype(dtype)
        want = CPU.layer_norm_forward(x, weight, bias, eps)
        got = GPU.layer_norm_forward(*map(cp.asarray, (x, weight, bias)), eps)
        what = (size, shape)
        assert_same(got[0], want[0], what, dtype)
        assert np.array_equal(got[0].get()[0], bias)
        sums = np.zeros((2, shape[1]), dtype)
        theirs = [cp.asarray(row) for row in sums]
        dx = GPU.layer_norm_backward(*map(cp.asarray, (x, weight, dy)), *got[1:], *theirs)
        assert_same(dx, CPU.layer_norm_backward(x, weight, dy, *want[1:], *sums), what, dtype)
        for a, b in zip(theirs, sums, strict=True):
            assert_same(a, b, what, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("mean", [True, False])
def test_cross_entropy(dtype: str, smoothing: float, mean: bool) -> None:
    rng = np.random.default_rng(0)
    for size, weighted in itertools.product(SIZES[dtype], (None, -30, 0, 30)):
        logits, targets = numbers(rng, (5, 6), size, dtype), np.array([0, 1, 2, -100, 5])
        logits[1, 2], logits[3] = -np.inf, np.nan
        weight = None if weighted is None else np.abs(numbers(rng, 6, weighted, dtype))
        if weight is not None:
            weight[2] = 0.0
        want = CPU.cross_entropy(logits, targets, weight, -100, smoothing, mean)
        given = None if weight is None else cp.asarray(weight)
        got = GPU.cross_entropy(cp.asarray(logits), targets, given, -100, smoothing, mean)
        for a, b in zip(got, want, strict=True):
            assert_same(a, b, (size, weighted), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [-18, -10, 0, 10, 18])
def test_optimisers(dtype: str, size: int) -> None:
    rng = np.random.default_rng(0)
    for settings in (
        (0.1, 0.9, 0.999, 1e-8, 0.01, False, 3),
        (0.1, 0.9, 0.999, 1e-8, 0.01, True, 1),
        (10.0, 0.0, 0.0, 1e10, 0.0, False, 5),
    ):
        arrays = [numbers(rng, 9, exponent, dtype) for exponent in (0, size, size)]
        arrays.append(np.abs(numbers(rng, 9, min(2 * size, 35), dtype)))
        theirs = [cp.asarray(array) for array in arrays]
        GPU.adam_step(*theirs, *settings)
        CPU.adam_step(*arrays, *settings)
        for a, b in zip(theirs, arrays, strict=True):
            assert_same(a, b, settings, dtype)
    for rate in (0.1, 1e-40):
        arrays = [numbers(rng, 9, size, dtype) for _ in range(3)]
        theirs = [cp.asarray(array) for array in arrays]
        GPU.sgd_step(*theirs, rate, 0.9, 0.1, 0.01, False, False)
        CPU.sgd_step(*arrays, rate, 0.9, 0.1, 0.01, False, False)
        for a, b in zip(theirs, arrays, strict=True):
            assert_same(a, b, rate, dtype)


@pytest.mark.parametrize("kernels", [CPU, GPU], ids=["cpu", "gpu"])
def test_refusals(kernels: Any) -> None:
    """The same messages; where a square overflows, the element keeps its values and the others move."""
    convert = np.array if kernels is CPU else cp.asarray

    def adam(gradient: float = 1.0, lr: float = 0.1, eps: float = 1e-8, decay: float = 0.0) -> list[Any]:
        arrays = [np.array(row, np.float32) for row in ([1.0, 1.0], [gradient, 1.0], [0.5, 0.5], [0.5, 0.5])]
        arrays = [convert(row) for row in arrays]
        try:
            kernels.adam_step(*arrays, lr, 0.9, 0.999, eps, decay, True, 1)
        finally:
            after.append([np.asarray(row.get() if kernels is GPU else row) for row in arrays])
        return arrays

    after: list[list[Array]] = []
    with pytest.raises(
        ValueError, match=r"^grad: expected values whose squares float32 holds .*, got 1\.0\d*e\+30"
    ):
        adam(gradient=1e30)
    assert [row[0] for row in after[0][:1] + after[0][2:]] == [1.0, 0.5, 0.5]
    assert after[0][0][1] != 1.0
    for options, match in (
        ({"eps": 1e-40}, r"^eps: expected a number >= sqrt\(1\.18e-38 / \(1 - beta2\)\) = 3\.43e-18"),
        (
            {"lr": 1e39},
            r"^lr: expected 0 or a number from 1\.18e-38 to 3\.4e\+38, as float32 holds, got 1e\+39",
        ),
        ({"lr": 3e38}, r"^lr: expected lr / \(1 - beta1\) within float32, got 3e\+38"),
        (
            {"lr": 1e20, "decay": 1e20},
            r"^weight_decay: expected lr \* weight_decay within float32, got 1e\+20",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            adam(**options)
        assert (after[-1][0] == 1.0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
def test_scale_and_norm(dtype: str) -> None:
    for factor in (1e-320, 1e-76, 1e-40, 2.0, 1e38):
        ours = np.array([1e-36, 1.0, 3e38, -1e30], dtype)
        theirs = cp.asarray(ours)
        GPU.scale_(theirs, factor)
        CPU.scale_(ours, factor)
        assert_same(theirs, ours, factor, dtype)
    for p in (1e-30, 1e-3, 0.5, 1.0, 2.0, 3.0, 500.0, np.inf):
        for values in ([1e-36, 1.0, 3e38], [2.0], [0.0, 0.0], [1.0, np.nan], [np.inf, 1.0], [1e-30, 2e-30]):
            array = np.array(values, dtype)
            assert_same(GPU.norm(cp.asarray(array), p), CPU.norm(array, p), (p, values), "float64")
