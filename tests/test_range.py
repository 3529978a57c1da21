"""Layer norm, losses, clipping and optimisers near the ends of the range of numbers: right, or an error."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from support import DTYPES, Array
from tolerances import TOLERANCE

import fusedrnn as fr

Wide = np.longdouble
# The small ones leave room for differences and moments that are no denormal numbers.
ENDS = {"float32": (-31, -20, 0, 20, 30, 38), "float64": (-290, -200, -20, 0, 20, 200, 308)}
BIG = {"float32": 1e38, "float64": 1e308}


def assert_near(got: Any, want: Any, what: object, dtype: str, factor: Any = 1.0) -> None:
    """As close as TOLERANCE asks relative to the largest, and infinite past the range.

    Denormal numbers, times a factor where they are multiplied, may be 0.
    """
    info = np.finfo(dtype)
    got, want = np.asarray(got).astype(Wide), np.asarray(want).astype(Wide)
    inside = np.abs(want) <= info.max
    assert np.array_equal(got[~inside], np.sign(want[~inside]) * math.inf, equal_nan=True), what
    size = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    error = np.abs(got[inside] - want[inside]).max(initial=0.0)
    assert error <= TOLERANCE[dtype]["gradient"] * size + 4.0 * Wide(info.tiny) * factor, (what, error, size)


def numbers(rng: np.random.Generator, shape: Any, exponent: int, dtype: str) -> Array:
    """Both signs, within a factor of 3 of 10**exponent and of the range."""
    wide = rng.uniform(0.3, 3.0, shape) * rng.choice([-1.0, 1.0], shape) * Wide(10.0) ** exponent
    limit = Wide(np.finfo(dtype).max)
    return np.clip(wide, -limit, limit).astype(dtype)


# Layer norm -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 0.0, 1e-40, 1e30])
def test_layer_norm_of_constant_rows(dtype: str, eps: float) -> None:
    """y is the bias and dweight 0, exactly, for every value and width; dx is 0 where dy is constant."""
    rng = np.random.default_rng(0)
    for width in (*range(1, 36), 64, 100, 259, 1000, 4099):
        for value in (1013.25, 6000001.0, 0.1, -1e-30, 0.0, BIG[dtype], -1.5 * BIG[dtype]):
            layer = fr.LayerNorm(width, eps=eps, dtype=dtype)
            y, tape = layer.forward(np.full((3, width), value, dtype))
            assert not y.any(), (width, value)
            dx = layer.backward(tape, rng.normal(size=y.shape).astype(dtype))
            assert np.isfinite(dx).all() or eps == 1e-40, (width, value)
            assert not layer.grads["weight"].any(), (width, value)
            assert not layer.backward(tape, np.full_like(y, 0.7)).any(), (width, value)


def test_layer_norm_of_almost_constant_rows() -> None:
    """Where the elements differ by a unit in the last place, the mean's own rounding is corrected."""
    x = np.array([[6000001.0, 6000001.0, 6000001.5]], "float32")
    want = np.array([[-1.0, -1.0, 2.0]]) / np.sqrt(2.0 + 9e-5 * 4.0)
    assert np.abs(fr.LayerNorm(3)(x) - want).max() < 1e-5


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, dy: Array) -> dict[str, Array]:
    x, dy = x.astype(Wide), dy.astype(Wide)
    count = x.shape[1]
    distance = x - (x / count).sum(1, keepdims=True)
    variance = (distance * distance / count).sum(1, keepdims=True) + Wide(eps)
    rstd = np.where(variance == 0.0, 0.0, 1.0 / np.sqrt(np.where(variance == 0.0, 1.0, variance)))
    xhat, g = distance * rstd, dy * weight
    spread = (g / count).sum(1, keepdims=True) + xhat * (g * xhat / count).sum(1, keepdims=True)
    return {
        "y": xhat * weight + bias,
        "dx": rstd * (g - spread),
        "weight": (dy * xhat).sum(0),
        "bias": dy.sum(0),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 0.0, 1e-40, 1e40, 1e76])
def test_layer_norm_over_the_range(dtype: str, eps: float) -> None:
    """Rows and gradients of all sizes, each with every other."""
    rng = np.random.default_rng(0)
    for width, size, dsize in itertools.product((7, 64, 131), ENDS[dtype], ENDS[dtype][1:-1]):
        x, dy = numbers(rng, (3, width), size, dtype), numbers(rng, (3, width), dsize, dtype)
        layer = fr.LayerNorm(width, eps=eps, dtype=dtype)
        layer.parameters["weight"] = rng.uniform(0.5, 2.0, width)
        y, tape = layer.forward(x)
        got = {"dx": layer.backward(tape, dy), "y": y, **layer.grads}
        want = layer_norm(x, layer.parameters["weight"], layer.parameters["bias"], eps, dy)
        for name, value in want.items():
            # Row by row: gradients of a row may be far above another's.
            for row in range(3) if name in ("dx", "y") else (slice(None),):
                flushed = max(1.0, np.abs(dy).sum(dtype=Wide)) if name == "weight" else 1.0
                assert_near(got[name][row], value[row], (width, size, dsize, name), dtype, flushed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_gradients_whose_sums_overflow(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, dy = numbers(rng, (2, 100), 0, dtype), np.full((2, 100), BIG[dtype], dtype)
    dy[:, ::2] *= 0.5
    layer = fr.LayerNorm(100, elementwise_affine=False, dtype=dtype)
    ones = np.ones(100)
    want = layer_norm(x, ones, 0.0 * ones, 1e-5, dy)["dx"]
    assert_near(layer.backward(layer.forward(x)[1], dy), want, "dx", dtype)


# Losses -----------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: Array, targets: Array, weight: Array | None, smoothing: float, reduction: str
) -> tuple[Any, Array]:
    """In longdouble, class by class; classes without weight are left out of sums."""
    logits = logits.astype(Wide)
    rows, classes = logits.shape
    each = np.ones(classes, Wide) if weight is None else weight.astype(Wide)
    losses, dlogits, count = np.zeros(rows, Wide), np.zeros((rows, classes), Wide), Wide(0.0)
    for r, target in enumerate(targets):
        if target == -100:
            continue
        count += each[target]
        shares = smoothing * each / classes
        shares[target] += (1.0 - smoothing) * each[target]
        if not shares.any():
            continue
        most = logits[r].max()
        log_p = logits[r] - most - np.log(np.exp(logits[r] - most).sum())
        counts = shares != 0.0
        losses[r] = -(shares[counts] * log_p[counts]).sum()
        dlogits[r] = np.exp(log_p) * shares.sum() - shares
    if reduction == "mean":
        return (losses / count).sum(), dlogits / count
    return (losses.sum() if reduction == "sum" else losses), dlogits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.filterwarnings("ignore:overflow")
def test_cross_entropy_over_the_range(dtype: str, reduction: Any, smoothing: float) -> None:
    """Logits and class weights of all sizes, with masked classes that have no weight."""
    rng = np.random.default_rng(0)
    sizes: tuple[int | None, ...] = (None, *ENDS[dtype][1:])
    for size, wsize, masked in itertools.product(ENDS[dtype], sizes, (False, True)):
        logits, weight = numbers(rng, (6, 19), size, dtype), None
        targets = np.array([0, 7, -100, 18, 3, 7])
        if wsize is not None:
            weight = np.abs(numbers(rng, 19, wsize, dtype))
            if masked:
                weight[3], logits[:, 3] = 0.0, -np.inf
        logits[2] = np.nan
        loss, dlogits = fr.cross_entropy(
            logits, targets, weight, reduction=reduction, label_smoothing=smoothing
        )
        want, dwant = cross_entropy(logits, targets, weight, smoothing, reduction)
        what = (size, wsize, masked)
        # A float has float64's range.
        if reduction == "none":
            assert_near(loss, want, what, dtype)
        elif want > np.finfo("float64").max:
            assert loss == math.inf
        else:
            assert abs(loss - want) <= TOLERANCE[dtype]["loss"] * abs(want) + 1e-37, what
        for row in range(6):
            assert_near(dlogits[row], dwant[row], what, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_classes_without_weight(dtype: str) -> None:
    """Targets without weight count nothing, whatever their row holds; without any weight the mean is NaN."""
    logits = np.array([[0.0, 1.0, np.inf], [np.nan, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype)
    weight = np.array([1.0, 1.0, 0.0], dtype)
    loss, dlogits = fr.cross_entropy(logits, np.array([2, 2, 0]), weight)
    assert loss == pytest.approx(math.log(3.0), rel=1e-6)
    assert not dlogits[:2].any() and np.isfinite(dlogits).all()
    loss, dlogits = fr.cross_entropy(logits, np.array([2, 2, 2]), weight, label_smoothing=0.1)
    assert math.isnan(loss) and not dlogits.any()
    for bad in (np.nan, np.inf):
        weight[1] = bad
        with pytest.raises(ValueError, match=rf"^weight: expected finite numbers, got {bad}"):
            fr.cross_entropy(logits, np.array([0, 0, 0]), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.filterwarnings("ignore:overflow")
def test_mse_loss_over_the_range(dtype: str, reduction: Any) -> None:
    rng = np.random.default_rng(0)
    for size in ENDS[dtype]:
        pred, target = numbers(rng, (8, 5), size, dtype), numbers(rng, (8, 5), size, dtype)
        loss, dpred = fr.mse_loss(pred, target, reduction)
        error = pred.astype(Wide) - target
        count = {"mean": error.size}.get(reduction, 1)
        want = error * error if reduction == "none" else (error * error / count).sum()
        if reduction == "none":
            assert_near(loss, want, size, dtype)
        elif want > np.finfo("float64").max:
            assert loss == math.inf
        else:
            assert loss == pytest.approx(float(want), rel=1e-6)
        assert_near(dpred, 2.0 * error / count, size, dtype)


# Clipping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_type", [1e-3, 1.0, 2.0, 3.0, 500.0, math.inf])
@pytest.mark.parametrize("several", [False, True])
def test_clip_grad_norm_over_the_range(dtype: str, norm_type: float, several: bool) -> None:
    """Also where the factor is no normal number of the dtype, or of float64."""
    rng = np.random.default_rng(0)
    for size, limit in itertools.product(ENDS[dtype], (1e-30, 1e-3, 1.0, 1e30, math.inf)):
        pair = [fr.Linear(5, 3, bias=False, dtype=dtype) for _ in range(2)]
        for module in pair:
            module.flat_grads[:] = numbers(rng, 15, size, dtype)
        modules = pair if several else pair[:1]
        before = np.concatenate([module.flat_grads for module in modules]).astype(Wide)
        most = np.abs(before).max()
        if norm_type == math.inf:
            norm = most
        else:
            norm = most * ((np.abs(before) / most) ** Wide(norm_type)).sum() ** (1 / Wide(norm_type))
        got = fr.clip_grad_norm(modules if several else modules[0], limit, norm_type)
        if norm > np.finfo("float64").max:
            assert got == math.inf
        else:
            assert got == pytest.approx(float(norm), rel=1e-9)
        factor = Wide(1.0) if limit == math.inf else min(Wide(1.0), limit / (norm + Wide(1e-6)))
        after = np.concatenate([module.flat_grads for module in modules])
        assert_near(after, before * factor, (size, limit), dtype)


def test_clip_grad_norm_of_infinite_gradients() -> None:
    layer = fr.Linear(2, 2, bias=False)
    layer.flat_grads[:] = [1.0, np.inf, 2.0, 3.0]
    assert fr.clip_grad_norm(layer, math.inf) == math.inf
    assert layer.flat_grads.tolist() == [1.0, math.inf, 2.0, 3.0]
    assert fr.clip_grad_norm(layer, 1.0) == math.inf
    assert np.isnan(layer.flat_grads[1])


# Optimisers -------------------------------------------------------------------------------------------------


def adam(gradients: list[Array], lr: float, b1: float, b2: float, eps: float) -> Any:
    """Where the steps lead from 0."""
    p, m, v = Wide(0.0), Wide(0.0), Wide(0.0)
    for t, g in enumerate(gradients, 1):
        g = g.astype(Wide)
        m, v = b1 * m + (1 - Wide(b1)) * g, b2 * v + (1 - Wide(b2)) * g * g
        p = p - lr * (m / (1 - Wide(b1) ** t)) / (np.sqrt(v / (1 - Wide(b2) ** t)) + Wide(eps))
    return p


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-14, 1e-8, 1.0, 1e30, 1e300])
def test_adam_over_the_range(dtype: str, eps: float) -> None:
    """Five steps with gradients of all sizes: those of longdouble, or an error and nothing spoilt."""
    rng = np.random.default_rng(0)
    for size in ENDS[dtype]:
        layer = fr.Linear(7, 3, bias=False, dtype=dtype)
        layer.flat_parameters[:] = 0.0
        optimiser = fr.optim.Adam(layer, lr=0.1, eps=eps)
        gradients = [numbers(rng, 21, size, dtype) for _ in range(5)]
        refusal = ""
        try:
            for g in gradients:
                layer.flat_grads[:] = g
                optimiser.step()
        except ValueError as error:
            refusal = str(error)
        if refusal:
            assert size >= {"float32": 20, "float64": 200}[dtype], size
            assert refusal.startswith(f"grad: expected values whose squares {dtype} holds")
            assert np.isfinite(layer.flat_parameters).all()
            for state in ("exp_avg", "exp_avg_sq"):
                assert np.isfinite(optimiser.state_dict()[f"{state}.weight"]).all()
        else:
            assert_near(layer.flat_parameters, adam(gradients, 0.1, 0.9, 0.999, eps), size, dtype)


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_a_second_moment_below_zero(kind: str) -> None:
    """Its root would be NaN: a state_dict with one is refused before anything is written."""
    layer = fr.Linear(2, 3, seed=0)
    optimiser = getattr(fr.optim, kind)(layer)
    layer.flat_grads[:] = 1.0
    optimiser.step()
    before = optimiser.state_dict()
    changed = {name: array + 1 for name, array in before.items() if name.startswith("exp_avg")}
    bad = np.array([0.0, np.nan, -1e-8], np.float32)
    with pytest.raises(ValueError, match=r"^exp_avg_sq\.bias: expected values >= 0, .*, got -1e-08$"):
        optimiser.load_state_dict({**before, **changed, "exp_avg_sq.bias": bad})
    for name, array in optimiser.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    optimiser.load_state_dict({**before, **changed})


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_eps_that_vanishes(kind: str, dtype: str) -> None:
    """An eps whose square the dtype does not hold is refused before anything is written."""
    layer = fr.Linear(2, 2, bias=False, dtype=dtype, seed=0)
    before = layer.flat_parameters.copy()
    for eps in {"float32": (1e-40, 0.0, 1e-19), "float64": (1e-160, 0.0)}[dtype]:
        optimiser = getattr(fr.optim, kind)(layer, eps=eps)
        with pytest.raises(ValueError, match=r"^eps: expected a number >= sqrt\(.*\) = .*, got "):
            optimiser.step()
        assert np.array_equal(layer.flat_parameters, before)
    optimiser = getattr(fr.optim, kind)(layer, eps=1e-15, weight_decay=0.0)
    optimiser.step()
    assert np.array_equal(layer.flat_parameters, before)


def test_settings_past_the_range() -> None:
    layer = fr.Linear(2, 2, bias=False, seed=0)
    before = layer.flat_parameters.copy()
    layer.flat_grads[:] = [0.0, 1.0, 2.0, 3.0]
    for name, make in {
        "lr": lambda: fr.optim.SGD(layer, lr=1e39),
        "momentum": lambda: fr.optim.SGD(layer, momentum=1e39),
        "dampening": lambda: fr.optim.SGD(layer, momentum=0.9, dampening=-1e39),
        "weight_decay": lambda: fr.optim.SGD(layer, weight_decay=1e-40),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: expected 0 or a number from 1\.18e-38 to 3\.4e\+38"):
            make().step()
    for name, adam_options in {
        "lr": {"lr": 3e38},
        "weight_decay": {"lr": 1e20, "weight_decay": 1e20},
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: expected lr .* within float32"):
            fr.optim.AdamW(layer, **adam_options).step()
    assert np.array_equal(layer.flat_parameters, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_over_the_range(dtype: str, momentum: float) -> None:
    """A learning rate that is no normal number of the dtype still moves by its product with the gradient."""
    rng = np.random.default_rng(0)
    end = {"float32": -40, "float64": -300}[dtype]
    for size, rate in itertools.product(ENDS[dtype], (end, end // 2, 0)):
        layer = fr.Linear(7, 3, bias=False, dtype=dtype)
        layer.flat_parameters[:] = 0.0
        layer.flat_grads[:] = numbers(rng, 21, size, dtype)
        fr.optim.SGD(layer, lr=10.0**rate, momentum=momentum).step()
        assert_near(
            layer.flat_parameters, -Wide(10.0**rate) * layer.flat_grads.astype(Wide), (size, rate), dtype
        )
