"""exp, sigmoid and tanh: at most 2 ULP over the whole range, exact special values, monotone limits.

Results whose exact value is a denormal number may be flushed to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import LAYOUTS, Array
from tolerances import ULP, ulp_error

import fusedrnn as fr
from fusedrnn import _core

Wide = Any  # longdouble, or float64 for float32 arguments


def exact_exp(x: Wide) -> Wide:
    return np.exp(x)


def exact_sigmoid(x: Wide) -> Wide:
    """Relative-accurate in both tails."""
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e / (1 + e), 1 / (1 + e))


def exact_tanh(x: Wide) -> Wide:
    """-expm1(-2|x|) / (1 + exp(-2|x|)), with the sign of x: no cancellation anywhere."""
    twice = -2 * np.abs(x)
    return np.copysign(-np.expm1(twice) / (1 + np.exp(twice)), x)


FUNCTIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Wide], Wide]]] = {
    "exp": (_core.exp, exact_exp),
    "sigmoid": (_core.sigmoid, exact_sigmoid),
    "tanh": (_core.tanh, exact_tanh),
}


def worst(name: str, x: Array, wide: type) -> tuple[float, float]:
    """The largest error and where it is."""
    function, exact = FUNCTIONS[name]
    with np.errstate(all="ignore"):
        error = ulp_error(function(x), exact(x.astype(wide)))
    assert not np.isnan(error).any(), f"NaN at {x[np.isnan(error)][:5]}"
    at = int(np.argmax(error))
    return float(error[at]), float(x[at])


def float32_samples() -> Array:
    """Every 997th bit pattern of the finite numbers: 4.3 million, both signs, all exponents, denormals."""
    bits = np.arange(0, 0x7F800000, 997, dtype=np.uint32)
    return np.concatenate([bits, bits | np.uint32(0x80000000)]).view(np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_everywhere(name: str) -> None:
    x = float32_samples()
    for part in np.array_split(x, 16):
        error, at = worst(name, np.ascontiguousarray(part), np.float64)
        assert error <= ULP, f"{name}({at!r}): {error:.2f} ULP"


@pytest.mark.parametrize(
    ("low", "high"),
    [(-104.5, -86.0), (-20.0, -15.0), (-1.0, 1.0), (0.5, 0.7), (8.0, 10.0), (85.0, 89.5)],
    ids=str,
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32_where_it_is_hard(name: str, low: float, high: float) -> None:
    """Dense samples around overflow, underflow, saturation and the seams between approximations."""
    x = np.random.default_rng(0).uniform(low, high, 200_000).astype(np.float32)
    error, at = worst(name, x, np.float64)
    assert error <= ULP, f"{name}({at!r}): {error:.2f} ULP"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float64(name: str) -> None:
    """All exponents, and dense samples where the functions are not constant; the reference has 64 bits."""
    assert np.finfo(np.longdouble).nmant >= 63
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 0x7FF0000000000000, 100_000, dtype=np.uint64)
    spread = patterns.view(np.float64)
    dense = np.concatenate(
        [rng.uniform(-r, r, 50_000) for r in (1e-8, 1e-3, 0.1, 0.7, 2.0, 20.0, 40.0, 760.0)]
    )
    for x in (spread, -spread, dense):
        error, at = worst(name, x, np.longdouble)
        assert error <= ULP, f"{name}({at!r}): {error:.2f} ULP"


SPECIAL = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (np.inf, np.inf), (-np.inf, 0.0)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (np.inf, 1.0), (-np.inf, 0.0)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (np.inf, 1.0), (-np.inf, -1.0)],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name: str, dtype: str) -> None:
    """At every place of a vector and of its tail, with ordinary neighbours."""
    function = FUNCTIONS[name][0]
    for size in (1, 3, 16, 19):
        for place in range(size):
            for value, want in SPECIAL[name]:
                x = np.full(size, 0.25, dtype)
                x[place] = value
                got = function(x)[place]
                assert got == want and np.signbit(got) == np.signbit(want), (name, value)
            x = np.full(size, 0.25, dtype)
            x[place] = np.nan
            assert np.isnan(function(x)).nonzero()[0].tolist() == [place]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_limits(dtype: str) -> None:
    info = np.finfo(dtype)
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, s, 50_000) for s in (0.1, 1.0, 10.0, 100.0, 1e4)]).astype(dtype)
    x = np.concatenate([x, np.array([info.max, -info.max, info.tiny, -info.tiny], dtype)])
    sigmoid, tanh, exp = _core.sigmoid(x), _core.tanh(x), _core.exp(x)
    assert (sigmoid >= 0).all() and (sigmoid <= 1).all()
    assert (np.abs(tanh) <= 1).all()
    assert np.array_equal(np.signbit(tanh), np.signbit(x))
    assert (exp >= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_is_odd(dtype: str) -> None:
    x = np.abs(np.random.default_rng(0).normal(0, 5, 100_000)).astype(dtype)
    assert np.array_equal(_core.tanh(-x), -_core.tanh(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_place_in_the_array_does_not_matter(name: str) -> None:
    """Vector body and tail compute the same bits."""
    function = FUNCTIONS[name][0]
    for dtype in ("float32", "float64"):
        x = np.random.default_rng(0).normal(0, 4, 67).astype(dtype)
        whole = function(x)
        for size in range(1, 67):
            assert np.array_equal(function(x[:size].copy()), whole[:size])
            assert np.array_equal(function(x[-size:].copy()), whole[-size:])


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_public_functions(name: str) -> None:
    """functional.sigmoid and .tanh take any shape and layout and leave their argument alone."""
    function, exact = getattr(fr.functional, name), FUNCTIONS[name][1]
    for dtype in ("float32", "float64"):
        x = np.random.default_rng(0).normal(0, 3, (3, 4, 5)).astype(dtype)
        copy = x.copy()
        for lay in LAYOUTS.values():
            got = function(lay(x))
            assert got.shape == x.shape and got.dtype == x.dtype
            assert np.max(ulp_error(got, exact(x.astype(np.longdouble)))) <= ULP
        assert np.array_equal(x, copy)
        assert function(x[:0]).shape == (0, 4, 5)
