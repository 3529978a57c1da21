"""The losses of fr.losses against their formulas, number by number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import fusedrnn as fr

pytestmark = pytest.mark.once

SHAPE = (3, 4, 2)
LEVELS = [0.1, 0.75]
losses = fr.losses


def bce(x: float, y: float) -> float:
    p = 1 / (1 + math.exp(-x))
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


def huber(x: float, y: float, delta: float) -> float:
    return 0.5 * (x - y) ** 2 if abs(x - y) <= delta else delta * (abs(x - y) - 0.5 * delta)


def gaussian(x: float, y: float, variance: float) -> float:
    return -math.log(math.exp(-((x - y) ** 2) / (2 * variance)) / math.sqrt(variance))


def student(x: float, y: float, log_scale: float, log_df: float) -> float:
    n, z = math.exp(log_df), (y - x) / math.exp(log_scale)
    density = math.gamma((n + 1) / 2) / math.gamma(n / 2) / math.sqrt(n * math.pi) / math.exp(log_scale)
    return -math.log(density * (1 + z * z / n) ** (-(n + 1) / 2))


def negative_binomial(log_mean: float, y: float, log_count: float) -> float:
    m, r = math.exp(log_mean), math.exp(log_count)
    ways = math.gamma(r + y) / math.gamma(r) / math.factorial(int(y))
    return -math.log(ways * (m / (m + r)) ** y * (r / (m + r)) ** r)


Values = Callable[[np.random.Generator], Any]


def normal(rng: np.random.Generator) -> Any:
    return rng.normal(0, 1.5, SHAPE)


def positive(rng: np.random.Generator) -> Any:
    return rng.uniform(0.2, 3, SHAPE)


def unit(rng: np.random.Generator) -> Any:
    return np.where(rng.uniform(size=SHAPE) < 0.6, rng.integers(0, 2, SHAPE), rng.uniform(size=SHAPE))


def counts(rng: np.random.Generator) -> Any:
    return rng.integers(0, 12, SHAPE)


# name: the call, the formula, arguments in their order, and which of them have gradients
CASES: dict[str, tuple[Callable[..., Any], Callable[..., float], list[Values], list[int]]] = {
    "bce": (losses.binary_cross_entropy_with_logits, bce, [normal, unit], [0]),
    "l1": (losses.l1_loss, lambda x, y: abs(x - y), [normal, normal], [0]),
    "huber": (
        lambda *a, **o: losses.huber_loss(*a, delta=0.7, **o),
        lambda x, y: huber(x, y, 0.7),
        [normal, normal],
        [0],
    ),
    "smooth_l1": (
        lambda *a, **o: losses.smooth_l1_loss(*a, beta=0.7, **o),
        lambda x, y: huber(x, y, 0.7) / 0.7,
        [normal, normal],
        [0],
    ),
    "gaussian": (losses.gaussian_nll_loss, gaussian, [normal, normal, positive], [0, 2]),
    "gaussian_full": (
        lambda *a, **o: losses.gaussian_nll_loss(*a, full=True, **o),
        lambda x, y, v: gaussian(x, y, v) + 0.5 * math.log(2 * math.pi),
        [normal, normal, positive],
        [0, 2],
    ),
    "gaussian_log": (
        lambda *a, **o: losses.gaussian_nll_loss(*a, log_var=True, **o),
        lambda x, y, v: gaussian(x, y, math.exp(v)),
        [normal, normal, normal],
        [0, 2],
    ),
    "student_t": (losses.student_t_nll_loss, student, [normal, normal, normal, normal], [0, 2, 3]),
    "negative_binomial": (
        losses.negative_binomial_nll_loss,
        negative_binomial,
        [normal, counts, normal],
        [0, 2],
    ),
}
SMALL_STEP = 1e-3


def arguments(name: str, dtype: str = "float64") -> list[Any]:
    rng = np.random.default_rng(7)
    return [make(rng).astype(dtype) for make in CASES[name][2]]


def each(formula: Callable[..., float], given: list[Any]) -> Any:
    """The formula at every element, in float64."""
    rows = zip(*[np.asarray(array, float).ravel().tolist() for array in given], strict=True)
    return np.array([formula(*row) for row in rows]).reshape(given[0].shape)


def slopes(formula: Callable[..., float], given: list[Any], number: int) -> Any:
    """The five-point formula at every element, which does not depend on others."""

    def at(step: float) -> Any:
        moved = [np.array(array, float) for array in given]
        moved[number] += step
        return each(formula, moved)

    h = SMALL_STEP
    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_reductions(name: str, dtype: str) -> None:
    call, formula, _, _ = CASES[name]
    given = arguments(name, dtype)
    copies = [array.copy() for array in given]
    want = each(formula, given)
    loss, *gradients = call(*given, reduction="none")
    assert loss.dtype == dtype
    assert_close(loss, want, "loss")
    for reduction, divisor in (("sum", 1), ("mean", want.size)):
        total, *reduced = call(*given, reduction=reduction)
        assert isinstance(total, float)
        assert_close(np.array(total), want.sum() / divisor, "loss", dtype=dtype)
        for got, gradient in zip(reduced, gradients, strict=True):
            assert_close(got, gradient / divisor, "gradient")
            assert got.dtype == dtype
    for array, copy in zip(given, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    call, formula, _, moving = CASES[name]
    given = arguments(name)
    _, *gradients = call(*given, reduction="sum")
    assert len(gradients) == len(moving)
    for gradient, number in zip(gradients, moving, strict=True):
        np.testing.assert_allclose(gradient, slopes(formula, given, number), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_layouts_and_nothing(name: str) -> None:
    """Strided arrays give the same bits; empty ones and single numbers."""
    call = CASES[name][0]
    given = arguments(name)
    want = call(*given)
    got = call(*[np.asfortranarray(array)[:, ::-1][:, ::-1] for array in given])
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
    none, *empty = call(*[array[:0] for array in given])
    assert math.isnan(none) and all(array.shape == (0, 4, 2) for array in empty)
    assert call(*[array[:0] for array in given], reduction="sum")[0] == 0.0
    one, *single = call(*[array[0, 0, 0, ...] for array in given], reduction="none")
    assert one.shape == () and all(array.shape == () for array in single)


@pytest.mark.parametrize("name", CASES)
def test_a_nan_stays_in_its_element(name: str) -> None:
    call = CASES[name][0]
    given = arguments(name)
    want = call(*given, reduction="none")
    given[0][1, 2, 1] = np.nan
    for got, clean in zip(call(*given, reduction="none"), want, strict=True):
        assert np.isnan(got[1, 2, 1])
        clean[1, 2, 1] = got[1, 2, 1] = 0.0
        np.testing.assert_array_equal(got, clean)


@pytest.mark.parametrize("name", CASES)
def test_errors(name: str) -> None:
    call = CASES[name][0]
    given = arguments(name)
    with pytest.raises(ValueError, match="reduction: expected 'mean', 'sum' or 'none', got 'max'"):
        call(*given, reduction="max")
    with pytest.raises(TypeError, match=r": expected a .*numpy\.ndarray, got list"):
        call(given[0].tolist(), *given[1:])
    with pytest.raises(TypeError, match=r"expected a float32 or float64 numpy\.ndarray, got int64"):
        call(*[array.astype(int) for array in given])
    with pytest.raises(TypeError, match="got a MaskedArray"):
        call(np.ma.masked_array(given[0]), *given[1:])
    for number in range(1, len(given)):
        others = list(given)
        others[number] = given[number][1:]
        with pytest.raises(ValueError, match=r": expected shape \(3, 4, 2\), got \(2, 4, 2\)"):
            call(*others)
        others[number] = given[number].astype("float32")
        with pytest.raises(TypeError, match=r": expected float64, got float32; use .*\.astype"):
            call(*others)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bce_weights(dtype: str) -> None:
    rng = np.random.default_rng(3)
    x, y = (array.astype(dtype) for array in (normal(rng), unit(rng)))
    weight, positive = rng.uniform(0, 2, (4, 1)).astype(dtype), rng.uniform(0, 9, 2).astype(dtype)

    def formula(x: float, y: float, w: float, p: float) -> float:
        return w * (-p * y * math.log(1 / (1 + math.exp(-x))) - (1 - y) * math.log(1 / (1 + math.exp(x))))

    given = [x, y, *[np.broadcast_to(array, SHAPE) for array in (weight, positive)]]
    loss, dx = losses.binary_cross_entropy_with_logits(x, y, weight, pos_weight=positive)
    assert_close(np.array(loss), each(formula, given).mean(), "loss", dtype=dtype)
    np.testing.assert_allclose(dx, slopes(formula, given, 0) / x.size, rtol=1e-4, atol=1e-7)
    for name, value, message in (
        ("weight", np.ones(3, dtype), "broadcasts"),
        ("pos_weight", np.ones((2, *SHAPE), dtype), "broadcasts"),
        ("weight", np.array([1, np.inf], dtype), "finite"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected .*{message}"):
            losses.binary_cross_entropy_with_logits(x, y, **{name: value})
    for bad in (-0.1, 1.5, np.nan):
        wrong = y.copy()
        wrong[1, 1, 1] = bad
        with pytest.raises(ValueError, match=r"target: expected values in \[0, 1\], got"):
            losses.binary_cross_entropy_with_logits(x, wrong)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_bce_of_any_logit(dtype: str) -> None:
    most = np.finfo(dtype).max
    x = np.array([-np.inf, -most, -800, 800, most, np.inf], dtype)
    right = (x > 0).astype(dtype)
    loss, dx = losses.binary_cross_entropy_with_logits(x, right, reduction="none")
    assert not loss.any() and not dx.any()
    loss, dx = losses.binary_cross_entropy_with_logits(x, 1 - right, reduction="none")
    np.testing.assert_array_equal(loss, np.abs(x))
    np.testing.assert_array_equal(dx, np.sign(x))
    # A log probability that is small is not lost beside 1.
    loss, dx = losses.binary_cross_entropy_with_logits(
        np.full(1, -40, dtype), np.zeros(1, dtype), None, "sum"
    )
    assert loss == pytest.approx(math.exp(-40), rel=1e-6)
    assert dx[0] == pytest.approx(math.exp(-40), rel=1e-6)


def test_quantiles() -> None:
    rng = np.random.default_rng(0)
    pred, target = rng.normal(0, 1, (5, 3, 2)), rng.normal(0, 1, (5, 3))
    target[2, 1] = pred[2, 1, 0]

    def formula(x: float, y: float, q: float) -> float:
        return q * (y - x) if y > x else (1 - q) * (x - y)

    given = [pred, *[np.broadcast_to(array, pred.shape) for array in (target[..., None], np.array(LEVELS))]]
    want = slopes(formula, given, 0)
    want[2, 1, 0] = 0.0
    for reduction, divisor in (("none", 1), ("sum", 1), ("mean", pred.size)):
        loss, dpred = losses.quantile_loss(pred, target, LEVELS, reduction)
        values = each(formula, given)
        assert_close(np.array(loss), values if reduction == "none" else values.sum() / divisor, "loss")
        np.testing.assert_allclose(dpred, want / divisor, rtol=1e-9, atol=1e-12)
    for levels in ([0.0, 0.5], [0.5, 1.0]):
        with pytest.raises(ValueError, match=r"quantiles\[[01]\]: expected a number in \(0, 1\)"):
            losses.quantile_loss(pred, target, levels)
    pred[0, 0, 0] = np.nan
    assert np.isnan(losses.quantile_loss(pred, target, LEVELS, "none")[1][0, 0, 0])


@pytest.mark.parametrize("call", [losses.l1_loss, losses.huber_loss, losses.smooth_l1_loss])
def test_absolute_errors_over_the_range(call: Any) -> None:
    """Each dtype's differences are finite in the sum, the mean's sum may overflow."""
    most = np.finfo(np.float32).max
    pred, target = np.array([most, most], np.float32), np.array([-most, most], np.float32)
    loss, dpred = call(pred, target)
    assert loss == pytest.approx(float(most))
    np.testing.assert_array_equal(dpred, [0.5, 0.0])
    wide = np.full(4, 1.5e308)
    loss, dpred = call(wide, np.zeros(4))
    assert loss == pytest.approx(1.5e308)
    np.testing.assert_array_equal(dpred, np.full(4, 0.25))


def test_where_the_square_becomes_a_line() -> None:
    x = np.array([-3.0, -0.5, -0.0, 0.0, 0.25, 2.0])
    for call in (losses.l1_loss, lambda *a: losses.smooth_l1_loss(*a, reduction="none", beta=0.0)):
        loss, dx = call(x, np.zeros(6), "none") if call is losses.l1_loss else call(x, np.zeros(6))
        np.testing.assert_array_equal(loss, np.abs(x))
        np.testing.assert_array_equal(dx, np.sign(x))
    tiny = losses.smooth_l1_loss(x, np.zeros(6), "none", 1e-300)
    np.testing.assert_allclose(tiny[0], np.abs(x))
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="delta: expected"):
            losses.huber_loss(x, x, delta=bad)
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="beta: expected"):
            losses.smooth_l1_loss(x, x, beta=bad)


class OnGpu:
    """What says that it is an array on a GPU."""

    __cuda_array_interface__ = {"shape": (2,), "typestr": "<f4", "data": (0, False), "version": 3}  # noqa: RUF012
    dtype = np.dtype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_arrays_on_a_gpu_are_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match="on a GPU; this loss runs on the CPU"):
        CASES[name][0](OnGpu(), *arguments(name)[1:])


def test_the_losses_by_name() -> None:
    assert dir(losses) == losses.__all__
    for name in ("cross_entropy", "mse_loss", "quantile_loss"):
        assert getattr(losses, name) is getattr(fr, name)
