"""The likelihoods of fr.losses at the ends of the range, and where one distribution becomes another."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusedrnn import losses

pytestmark = pytest.mark.once


def test_a_gaussian_of_any_variance() -> None:
    x, y = np.array([0.0, 1.0, 3.0]), np.zeros(3)
    loss, dx, dv = losses.gaussian_nll_loss(x, y, np.array([0.0, 0.0, 1e300]), eps=1e-4, reduction="none")
    np.testing.assert_allclose(loss, [0.5 * math.log(1e-4), 0.5 * (math.log(1e-4) + 1e4), 150 * math.log(10)])
    np.testing.assert_allclose(dx, [0.0, 1e4, 3e-300])
    np.testing.assert_allclose(dv, [5e3, 0.5e4 * (1 - 1e4), 5e-301])
    # exp(-2000) is no number of any dtype, and neither is exp(2000).
    near = np.array([1e-300, 0.0, 1e300], np.float64)
    loss, dx, dv = losses.gaussian_nll_loss(near, y, np.array([-1382.0, -2000.0, 2000.0]), log_var=True)
    assert math.isfinite(loss) and np.isfinite(dx).all() and np.isfinite(dv).all()
    for bad in (-1.0, -1e-300):
        with pytest.raises(ValueError, match="var: expected values >= 0, got -1"):
            losses.gaussian_nll_loss(x, y, np.array([1.0, bad, 1.0]))
    with pytest.raises(ValueError, match="eps: expected a finite number > 0"):
        losses.gaussian_nll_loss(x, y, x + 1, eps=0.0)


@pytest.mark.parametrize("degrees", [20.0, 100.0, 400.0, 1e6, 1e38])
def test_student_t_becomes_a_gaussian(degrees: float) -> None:
    x, y, scale = (np.random.default_rng(seed).normal(0, 1.5, 50) for seed in range(3))
    df = np.full(50, degrees)
    loss, dx, dscale, ddf = losses.student_t_nll_loss(x, y, scale, df, "none")
    want, dwant, dvar = losses.gaussian_nll_loss(x, y, 2 * scale, True, reduction="none", log_var=True)
    # What is left is of the order z^4 / n.
    distance = 1e-12 + ((x - y) / np.exp(scale)) ** 4 * math.exp(-min(degrees, 700.0))
    assert (np.abs(loss - want) <= distance + 1e-13 * np.abs(want) + math.exp(-degrees)).all()
    np.testing.assert_allclose(dx, dwant, rtol=1e-4 if degrees == 20 else 1e-11, atol=1e-12)
    np.testing.assert_allclose(dscale, 2 * dvar, rtol=1e-4 if degrees == 20 else 1e-11, atol=1e-12)
    assert (np.abs(ddf) <= distance + math.exp(-degrees) + 1e-12 * np.abs(want)).all()


def test_student_t_far_out() -> None:
    """Neither the square of an outlier nor a shape near 0 overflows; an error of 0 has no slope."""
    most = float(np.finfo(np.float64).max)
    x = np.array([most / 2, 1e-300, 0.0, 0.0, 3.0])
    scale, df = np.array([-300.0, 500.0, -700.0, 3.0, 0.0]), np.array([1.0, 1.0, 0.0, -800.0, -800.0])
    results = losses.student_t_nll_loss(x, np.zeros(5), scale, df, "none")
    assert all(np.isfinite(array).all() for array in results)
    loss, dx, dscale, ddf = results
    # (n + 1) log|z| and its slopes, and those of n itself where n is next to nothing.
    n = math.e
    constant = math.lgamma(n / 2) - math.lgamma((n + 1) / 2) + 0.5 * math.log(n * math.pi)
    assert loss[0] == pytest.approx(constant - 300 + (n + 1) * (math.log(x[0]) + 300) - (n + 1) / 2)
    assert dscale[0] == pytest.approx(-n)
    assert dx[2] == dx[3] == 0.0 and dscale[2] == dscale[3] == 1.0
    assert ddf[4] == pytest.approx(-1.0)


def poisson(log_mean: float, y: float) -> float:
    return math.exp(log_mean) - y * log_mean + math.lgamma(y + 1)


@pytest.mark.parametrize("log_count", [40.0, 300.0, 1e5, 1e38])
def test_the_negative_binomial_becomes_a_poisson(log_count: float) -> None:
    rng = np.random.default_rng(5)
    mean, y = rng.normal(1, 2, 60), rng.integers(0, 60, 60).astype(float)
    loss, dmean, dcount = losses.negative_binomial_nll_loss(mean, y, np.full(60, log_count), "none")
    np.testing.assert_allclose(
        loss, np.array([poisson(*row) for row in zip(mean, y, strict=True)]), rtol=1e-12
    )
    np.testing.assert_allclose(dmean, np.exp(mean) - y, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dcount, 0.0, atol=1e-11)


def test_the_negative_binomial_at_the_ends() -> None:
    mean = np.array([-800.0, -800.0, 800.0, 800.0, 0.0, 2.0])
    y = np.array([0.0, 3.0, 0.0, 7.0, 5.0, 1e9])
    count = np.array([0.0, 0.0, 0.0, 2.0, -900.0, 1.0])
    results = losses.negative_binomial_nll_loss(mean, y, count, "none")
    assert all(np.isfinite(array).all() for array in results)
    loss, dmean, dcount = results
    # With r = 1 the counts are geometric: P(y) = m^y / (1 + m)^(y + 1).
    np.testing.assert_allclose(loss[:3], [0.0, 2400.0, 800.0], atol=1e-12)
    np.testing.assert_allclose(dmean[:3], [0.0, -3.0, 1.0], atol=1e-12)
    # Of small r, P(y) is r / y, times (m / (m + r))^y: 1.
    assert loss[4] == pytest.approx(900 + math.log(5), rel=1e-12)
    assert dcount[4] == pytest.approx(-1.0)
    big = losses.negative_binomial_nll_loss(np.full(1, 12.0), np.full(1, 1e5), np.full(1, 3.0), "none")[0]
    m, r = math.exp(12), math.exp(3)
    want = math.lgamma(r) + math.lgamma(1e5 + 1) - math.lgamma(1e5 + r) + r * math.log1p(m / r)
    assert big[0] == pytest.approx(want + 1e5 * math.log1p(r / m), rel=1e-10)
    for bad in (-1.0, 0.5, np.inf, np.nan):
        y[3] = bad
        with pytest.raises(ValueError, match="target: expected whole numbers >= 0, got"):
            losses.negative_binomial_nll_loss(mean, y, count)
