"""MixtureDensity against its equations written out, and what it draws against its moments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import fusedrnn as fr

pytestmark = pytest.mark.once

K = 3
density = fr.MixtureDensity(K)


def inputs(dtype: str = "float64") -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    raw, targets = rng.normal(0, 1, (5, 4, density.size)), rng.normal(0, 1, (5, 4, 3))
    targets[..., 2] = rng.random((5, 4)) < 0.5
    return raw.astype(dtype), targets.astype(dtype)


def written_out(raw: Any, target: Any) -> float:
    """Of one point, as the paper has it."""
    raw = raw.astype(float)
    x, y, ends = target.astype(float)
    weights, mu_1, mu_2, s_1, s_2, rho = raw[1:].reshape(6, K)
    weights = np.exp(weights) / np.exp(weights).sum()
    s_1, s_2, rho = np.exp(s_1), np.exp(s_2), np.tanh(rho)
    u, v = (x - mu_1) / s_1, (y - mu_2) / s_2
    z = u**2 + v**2 - 2 * rho * u * v
    normal = np.exp(-z / (2 * (1 - rho**2))) / (2 * math.pi * s_1 * s_2 * np.sqrt(1 - rho**2))
    p = 1 / (1 + math.exp(-raw[0]))
    return -math.log((weights * normal).sum()) - math.log(p if ends else 1 - p)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_values(dtype: str) -> None:
    raw, targets = inputs(dtype)
    rows = zip(raw.reshape(-1, density.size), targets.reshape(-1, 3), strict=True)
    want = np.array([written_out(*row) for row in rows]).reshape(5, 4)
    each, draw = density.loss(raw, targets, "none")
    assert_close(each, want, "loss")
    assert each.dtype == draw.dtype == dtype
    for reduction, divisor in (("sum", 1), ("mean", want.size)):
        loss, gradient = density.loss(raw, targets, reduction)  # type: ignore[call-overload]
        assert_close(np.array(loss), want.sum() / divisor, "loss", dtype=dtype)
        assert_close(gradient, draw / divisor, "gradient")
    strided = np.asfortranarray(raw)
    assert density.loss(strided, targets)[0] == density.loss(raw, targets)[0]
    one, gradient = density.loss(raw[0, 0], targets[0, 0])
    assert one == pytest.approx(want[0, 0], rel=1e-5) and gradient.shape == (density.size,)
    nothing, gradient = density.loss(raw[:0], targets[:0])
    assert math.isnan(nothing) and gradient.shape == (0, 4, density.size)


def test_gradients() -> None:
    raw, targets = inputs()
    _, draw = density.loss(raw, targets, "sum")
    step = 1e-3
    for column in range(density.size):

        def at(shift: float, column: int = column) -> Any:
            moved = raw.copy()
            moved[..., column] += shift
            return density.loss(moved, targets, "none")[0]

        slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
        np.testing.assert_allclose(draw[..., column], slope, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("rho", [-40.0, -19.0, 19.0, 40.0])
def test_correlations_near_one(rho: float) -> None:
    """tanh(rho) is 1 in every dtype; on the line u = v the density is that of a Gaussian along it."""
    one = fr.MixtureDensity(1)
    raw = np.array([0.0, 0, 0, 0, 0, 0, rho])
    sign, narrow = math.copysign(1.0, rho), math.exp(-abs(rho))  # narrow: half of the deviation across
    for x, y in ((0.0, 0.0), (0.7, sign * 0.7), (narrow, 0.0)):
        loss, draw = one.loss(raw, np.array([x, y, 1.0]))
        across, along = ((x - sign * y) / narrow) ** 2, ((x + sign * y) * narrow) ** 2
        # log cosh(rho) is |rho| - log 2.
        want = math.log(2 * math.pi) - (abs(rho) - math.log(2)) + math.log(2)
        assert loss == pytest.approx(want + (x * x + y * y) / 4 + across / 8 + along / 8, rel=1e-12)
        assert draw[6] == pytest.approx(sign * (across / 4 - along / 4 - 1), rel=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_ends_of_the_range(dtype: str) -> None:
    """Whatever finite numbers a layer emits, loss and gradient of points that are not far are finite."""
    rng = np.random.default_rng(0)
    raw = (rng.choice([-1e30, -1e3, -1, 0, 1, 1e3, 1e30], (2000, density.size))).astype(dtype)
    raw[:, 1 + K : 1 + 3 * K] = rng.normal(0, 1, (2000, 2 * K))
    targets = rng.normal(0, 1, (2000, 3)).astype(dtype)
    targets[:, 2] = targets[:, 2] > 0
    loss, draw = density.loss(raw.astype("float64"), targets.astype("float64"), "none")
    assert np.isfinite(loss).all() and np.isfinite(draw).all()
    with np.errstate(over="ignore"):
        for got, want in zip(density.loss(raw, targets, "none"), (loss, draw), strict=True):
            np.testing.assert_array_equal(got, want.astype(dtype))


def test_a_nan_stays_in_its_point() -> None:
    raw, targets = inputs()
    want = density.loss(raw, targets, "none")
    raw[2, 1, 5] = np.nan
    for got, clean in zip(density.loss(raw, targets, "none"), want, strict=True):
        assert np.isnan(got[2, 1]).any()
        got[2, 1] = clean[2, 1] = 0.0
        np.testing.assert_array_equal(got, clean)


def test_samples() -> None:
    raw = np.array(
        [0.4, 0.0, 1.0, -1.0, -3.0, 0.0, 3.0, 1.0, 2.0, -2.0, -0.5, 0.1, 0.3, 0.2, -0.2, -1, 0.6, 0, 2]
    )
    weights, mu_1, mu_2, s_1, s_2, rho = raw[1:].reshape(6, K)
    many = np.broadcast_to(raw, (40_000, density.size))
    for bias in (0.0, 1.0):
        points = density.sample(many, bias, seed=0)
        share = np.exp(weights * (1 + bias)) / np.exp(weights * (1 + bias)).sum()
        a, b, r = np.exp(s_1 - bias), np.exp(s_2 - bias), np.tanh(rho)
        mean = np.array([share @ mu_1, share @ mu_2])
        cross = share @ (mu_1 * mu_2 + r * a * b) - mean.prod()
        squares = [share @ (mu_1**2 + a**2) - mean[0] ** 2, share @ (mu_2**2 + b**2) - mean[1] ** 2]
        got = np.cov(points[:, :2].T)
        np.testing.assert_allclose(points[:, :2].mean(0), mean, atol=0.06)
        np.testing.assert_allclose(got, [[squares[0], cross], [cross, squares[1]]], rtol=0.03, atol=0.06)
        assert points[:, 2].mean() == pytest.approx(1 / (1 + math.exp(-0.4)), abs=0.01)
        assert set(points[:, 2]) == {0.0, 1.0}
    np.testing.assert_array_equal(density.sample(many[:9], seed=5), density.sample(many[:9], seed=5))
    rng = np.random.default_rng(5)
    first, then = density.sample(raw.astype("float32"), seed=rng), density.sample(raw, seed=rng)
    assert first.shape == then.shape == (3,) and first.dtype == np.float32
    assert (first[:2] != then[:2]).all()


def test_errors() -> None:
    raw, targets = inputs()
    assert density.size == 19 and repr(density) == "MixtureDensity(3)"
    for call in (lambda raw: density.loss(raw, targets), density.sample):
        with pytest.raises(ValueError, match=r"raw: expected shape \(\.\.\., 6 K \+ 1\) = \(\.\.\., 19\)"):
            call(raw[..., 1:])
        with pytest.raises(TypeError, match=r"raw: expected a float32 or float64 numpy\.ndarray, got list"):
            call(raw.tolist())
        with pytest.raises(TypeError, match=r"raw: .*got int64"):
            call(raw.astype(int))
    with pytest.raises(ValueError, match="targets: expected shape"):
        density.loss(raw, targets[..., :2])
    with pytest.raises(TypeError, match="targets: expected float64, got float32"):
        density.loss(raw, targets.astype("float32"))
    with pytest.raises(ValueError, match="reduction: expected"):
        density.loss(raw, targets, "max")  # type: ignore[call-overload]
    for bad in (0.5, -1.0, np.nan):
        targets[3, 2, 2] = bad
        with pytest.raises(ValueError, match="targets: expected 0 or 1 at the end of the axis, got"):
            density.loss(raw, targets)
    with pytest.raises(ValueError, match="bias: expected a number"):
        density.sample(raw, -1.0)
    raw[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="raw: expected finite values"):
        density.sample(raw)
    with pytest.raises(ValueError, match="num_components: expected an int >= 1"):
        fr.MixtureDensity(0)
