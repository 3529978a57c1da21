"""Activations, BatchNorm and Conv1d: values, gradients, lengths, modes and errors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_support import WIDE, assert_gradients

import fusedrnn as fr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4, 3))
LENGTHS = np.array([5, 0, 3, 1])
OUTSIDE = np.arange(5)[:, None] >= LENGTHS

# Activations

ERF = np.vectorize(math.erf, otypes=["f8"])
ACTIVATIONS: dict[str, tuple[Any, Any]] = {
    "tanh": (fr.Tanh(), np.tanh),
    "sigmoid": (fr.Sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
    "relu": (fr.ReLU(), lambda x: x * (x > 0)),
    "gelu": (fr.GELU(), lambda x: x * (0.5 + 0.5 * ERF(x / math.sqrt(2)))),
    "gelu_tanh": (
        fr.GELU("tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "softmax": (fr.Softmax(), lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)),
    "softmax_of_time": (fr.Softmax(0), lambda x: np.exp(x) / np.exp(x).sum(axis=0)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values(name: str, dtype: str) -> None:
    module, want = ACTIVATIONS[name]
    x = (4 * X).astype(dtype)
    for given in (x, x.swapaxes(0, 1), x[::-2], x[:, :0], x[0, 0]):
        y, tape = module.forward(given)
        assert y.dtype == dtype and y.shape == given.shape
        np.testing.assert_allclose(y, want(given.astype("f8")), rtol=0, atol=50 * np.finfo(dtype).eps)
        dx = module.backward(tape, np.ones_like(y))
        assert dx.dtype == dtype and dx.shape == given.shape
        assert module.backward(tape, np.ones_like(y), need_dx=False) is None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_of_activations(name: str) -> None:
    assert_gradients(ACTIVATIONS[name][0], X)
    assert_gradients(ACTIVATIONS[name][0], 3 * X.T)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_tapes_of_activations(name: str) -> None:
    """What was kept cannot be written to by accident, and its shape is the tape's own."""
    module, x = ACTIVATIONS[name][0], X.copy()
    y, tape = module.forward(x)
    want = module.backward(tape, X)
    if y.flags.writeable:
        y[...] = 7.0
    x.shape = y.shape = (4, 5, 3)
    np.testing.assert_array_equal(module.backward(tape, X), want)


def test_values_far_out() -> None:
    x = np.array([-1e30, -200.0, 0.0, 200.0, 1e30], np.float32)
    np.testing.assert_array_equal(fr.Sigmoid()(x), [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(fr.GELU()(x), np.where(x > 0, x, 0))
    np.testing.assert_array_equal(fr.Softmax()(x), [0, 0, 0, 0, 1])
    for module, _ in ACTIVATIONS.values():
        assert np.isnan(module(np.array([1.0, np.nan]))[1])


def test_relu_passes_what_it_passed() -> None:
    """Infinities and NaN in dy too, and nothing where x was not above 0."""
    x = np.array([-1.0, 0.0, -0.0, 2.0, np.nan, 3.0, np.inf])
    dy = np.array([np.inf, np.nan, 1.0, np.inf, 1.0, np.nan, -0.0])
    for dtype in ("f4", "f8"):
        module = fr.ReLU()
        _, tape = module.forward(x.astype(dtype))
        want = np.array([0, 0, 0, np.inf, 0, np.nan, 0], dtype)
        np.testing.assert_array_equal(module.backward(tape, dy.astype(dtype)), want)


def test_what_activations_refuse() -> None:
    soft: Any = fr.Softmax(2)
    for call, kind, text in (
        (lambda: fr.Tanh()([1.0]), TypeError, "x: expected a numpy.ndarray, got list"),  # type: ignore[arg-type]
        (lambda: fr.ReLU()(np.array([1])), TypeError, "x: expected float32 or float64, got int64"),
        (lambda: fr.GELU("fast"), ValueError, "approximate: expected 'none' or 'tanh', got 'fast'"),
        (lambda: fr.Softmax(1.5), TypeError, "axis: expected an int, got 1.5"),  # type: ignore[arg-type]
        (lambda: soft(X[0]), ValueError, r"x: expected an array with axis 2, got shape \(4, 3\)"),
        (lambda: soft.backward(soft.forward(X)[1], X[0]), ValueError, "dy: expected shape"),
        (
            lambda: soft.backward(fr.Tanh().forward(X)[1], X),
            ValueError,
            "tape: expected a tape of this Softmax",
        ),
    ):
        with pytest.raises(kind, match=text):
            call()


# BatchNorm


def norm(**options: Any) -> fr.BatchNorm:
    module = fr.BatchNorm(3, **{**WIDE, **options})
    rng = np.random.default_rng(2)
    if module.affine:
        module.parameters["weight"][...] = rng.normal(size=3)
        module.parameters["bias"][...] = rng.normal(size=3)
    module.running_mean, module.running_var = rng.normal(size=3), rng.uniform(0.5, 2, 3)
    return module


@pytest.mark.parametrize(
    "options", [{}, {"lengths": LENGTHS}, {"mask": ~OUTSIDE}], ids=["all", "lengths", "mask"]
)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_batch_norm(training: bool, affine: bool, options: Any) -> None:
    assert_gradients(norm(affine=affine).train(training), X, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_norm(dtype: str) -> None:
    """Its values and running ones by the formula, over the steps that count."""
    module = norm(dtype=dtype)
    x = (10 + X).astype(dtype)
    x[OUTSIDE] = np.nan
    rows = x[~OUTSIDE].astype("f8")
    mean, var = rows.mean(axis=0), rows.var(axis=0)
    means, variances = module.running_mean.astype("f8"), module.running_var.astype("f8")
    weight, bias = (module.parameters[name].astype("f8") for name in ("weight", "bias"))
    tolerance: Any = {"rtol": 0, "atol": 100 * np.finfo(dtype).eps}
    for call in (lambda: module(x, LENGTHS), lambda: module.forward(x, lengths=LENGTHS)[0]):
        y = call()
        assert y.dtype == dtype and not y[OUTSIDE].any()
        np.testing.assert_allclose(
            y[~OUTSIDE], (rows - mean) / np.sqrt(var + 1e-5) * weight + bias, **tolerance
        )
        means = 0.9 * means + 0.1 * mean
        variances = 0.9 * variances + 0.1 * rows.var(axis=0, ddof=1)
        np.testing.assert_allclose(module.running_mean, means, **tolerance)
        np.testing.assert_allclose(module.running_var, variances, **tolerance)
    assert module.num_batches_tracked == 2
    module.eval()
    y = module(x, LENGTHS)
    want = (rows - means) / np.sqrt(variances + 1e-5) * weight + bias
    np.testing.assert_allclose(y[~OUTSIDE], want, rtol=1e-5 if dtype == "float32" else 1e-12)
    assert module.num_batches_tracked == 2
    turned = norm(dtype=dtype, batch_first=True)
    y = turned(x.swapaxes(0, 1), LENGTHS).swapaxes(0, 1)
    np.testing.assert_allclose(y, norm(dtype=dtype)(x, LENGTHS), **tolerance)


def test_the_average_over_all_batches() -> None:
    module = fr.BatchNorm(3, momentum=None, **WIDE)
    for x in X:
        module(x)
    np.testing.assert_allclose(module.running_mean, X.mean(axis=(0, 1)))


def test_batch_norm_is_saved() -> None:
    module = norm()
    module(X)
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert list(module.state_dict()) == names
    other = fr.BatchNorm(3)
    other.load_state_dict(module.state_dict())
    np.testing.assert_allclose(other.eval()(X.astype("f4")), module.eval()(X), rtol=1e-5, atol=1e-5)
    assert other.astype("float64")(X).dtype == np.float64 and other.running_mean.dtype == np.float64


@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_of_another_dtype(affine: bool, tmp_path: Path) -> None:
    """Buffers move with the tree, also those of modules that have nothing else."""

    class Counter(fr.Module):
        def __init__(self) -> None:
            super().__init__()
            self.buffer("seen", 3)

    assert Counter().astype("float64").seen.dtype == np.float64
    x = np.random.default_rng(0).standard_normal((5, 2, 3))
    norm = fr.BatchNorm(3, affine=affine).astype("float64")
    assert norm(x).dtype == norm.dtype == norm.running_var.dtype == np.float64
    assert fr.check_gradients(fr.BatchNorm(3, affine=affine), x).error < 1e-5
    fr.save(fr.Sequential(norm), tmp_path / "norm")
    np.testing.assert_array_equal(fr.load(tmp_path / "norm").eval()(x), norm.eval()(x))


def test_batch_norm_of_nothing() -> None:
    """No rows: nothing is learned from them; one has no variance."""
    module = norm()
    before = module.state_dict()
    for x, options in ((np.zeros((0, 3)), {}), (X, {"lengths": np.zeros(4, int)})):
        y, tape = module.forward(x, **options)
        assert y.shape == x.shape and not y.any() and not module.backward(tape, np.ones_like(y)).any()
    np.testing.assert_equal(module.state_dict(), before)
    with pytest.raises(ValueError, match=r"x: expected two rows that count or more in training mode, got 1"):
        module(X, lengths=[1, 0, 0, 0])
    np.testing.assert_equal(module.state_dict(), before)
    assert module.eval()(X[0, :1]).shape == (1, 3)


def test_batch_norm_freezes() -> None:
    module = norm().requires_grad_(False)
    _, tape = module.forward(X)
    assert module.backward(tape, X).any() and not module.flat_grads.any()


def test_what_batch_norm_refuses() -> None:
    module: Any = fr.BatchNorm(3, **WIDE)
    for call, kind, text in (
        (lambda: fr.BatchNorm(0), ValueError, "num_features: expected an int >= 1"),
        (lambda: fr.BatchNorm(3, momentum=2.0), ValueError, "momentum: expected a number in"),
        (lambda: module(X[..., :2]), ValueError, r"x: expected shape \(..., F\) with F = 3, got \(5, 4, 2\)"),
        (lambda: module(X.astype("f4")), TypeError, "x: expected float64, got float32"),
        (
            lambda: module(X[None], LENGTHS),
            ValueError,
            r"x: expected shape \(T, B, F\) or \(T, F\) with F = 3",
        ),
        (lambda: module(X, [9, 0, 0, 0]), ValueError, "lengths: expected values in"),
        (lambda: module.backward(module.forward(X)[1], X[0]), ValueError, "dy: expected shape"),
    ):
        with pytest.raises(kind, match=text):
            call()


# Conv1d

CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 4, "padding": "same", "dilation": 2},
    {"kernel_size": 2, "padding": "causal", "dilation": 3, "stride": 2},
    {"kernel_size": 3, "padding": 2, "stride": 2, "bias": False},
    {"kernel_size": 2, "padding": 1, "stride": 3},
    {"kernel_size": 7},
]


def by_hand(module: fr.Conv1d, x: Any) -> Any:
    """One sequence (T, C), by the formula."""
    weight = module.parameters["weight"]
    bias: Any = module.parameters["bias"] if module.bias else 0.0
    reach = (module.kernel_size - 1) * module.dilation
    before = {"same": reach // 2, "causal": reach}.get(module.padding, module.padding)  # type: ignore[call-overload]
    behind = {"same": reach - before, "causal": 0}.get(module.padding, module.padding)  # type: ignore[call-overload]
    steps = max((len(x) + before + behind - reach - 1) // module.stride + 1, 0) if len(x) else 0
    y = np.zeros((steps, module.out_channels))
    for t in range(steps):
        for k in range(module.kernel_size):
            at = t * module.stride + k * module.dilation - before
            if 0 <= at < len(x):
                y[t] += weight[:, :, k] @ x[at]
        y[t] += bias
    return y


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution(options: dict[str, Any]) -> None:
    """Each sequence of a padded batch by itself, in both layouts, with all gradients."""
    for batch_first in (False, True):
        module = fr.Conv1d(3, 2, batch_first=batch_first, seed=0, **WIDE, **options)
        x = X.copy()
        x[OUTSIDE] = np.nan
        given = x.swapaxes(0, 1) if batch_first else x
        y = module(given, LENGTHS)
        y = y.swapaxes(0, 1) if batch_first else y
        lengths, mask = module.output_steps(LENGTHS, None)
        assert mask is None
        for b, n in enumerate(LENGTHS):
            want = by_hand(module, X[:n, b])
            assert len(want) == lengths[b]
            np.testing.assert_allclose(y[: lengths[b], b], want, rtol=1e-12, atol=1e-14)
            assert not y[lengths[b] :, b].any()
        np.testing.assert_allclose(module(X[:, 0]), by_hand(module, X[:, 0]), rtol=1e-12, atol=1e-14)
        clean = np.where(np.isnan(given), 0.0, given)
        assert_gradients(module, clean)
        assert_gradients(module, clean, lengths=LENGTHS)
        _, tape = module.forward(given, LENGTHS)
        dx = module.backward(tape, np.ones((*y.swapaxes(0, 1).shape,)) if batch_first else np.ones(y.shape))
        assert not dx[OUTSIDE.T if batch_first else OUTSIDE].any() and np.isfinite(module.flat_grads).all()


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolution_with_options_that_are_set_later(options: dict[str, Any]) -> None:
    made = fr.Conv1d(3, 2, seed=0, **WIDE, **options)
    module = fr.Conv1d(3, 2, options["kernel_size"], bias=made.bias, seed=0, **WIDE)
    for name in ("dilation", "stride", "padding"):
        setattr(module, name, options.get(name, getattr(module, name)))
    np.testing.assert_array_equal(module(X, LENGTHS), made(X, LENGTHS))


def test_a_causal_convolution_sees_no_later_step() -> None:
    module = fr.Conv1d(3, 4, 3, padding="causal", dilation=2, seed=0, **WIDE)
    changed = X.copy()
    changed[3:] = 9.0
    np.testing.assert_array_equal(module(X)[:3], module(changed)[:3])


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (0, 3), (1, 2, 3)], ids=str)
def test_convolution_of_nothing(shape: tuple[int, ...]) -> None:
    module = fr.Conv1d(3, 2, 3)
    y, tape = module.forward(np.zeros(shape, "f4"))
    assert y.shape == (max(shape[0] - 2, 0), *shape[1:-1], 2)
    assert module.backward(tape, np.zeros_like(y)).shape == shape


def test_convolution_before_a_network() -> None:
    """The network and the pool behind it get the lengths that are left."""
    net = fr.Sequential(
        fr.Conv1d(3, 4, 3, stride=2, padding=1, seed=0, **WIDE),
        fr.BatchNorm(4, **WIDE),
        fr.GELU(),
        fr.LSTM(4, 3, bidirectional=True, seed=1, **WIDE),
        fr.Pool("mean"),
    )
    assert_gradients(net, X, lengths=LENGTHS)
    net.eval()
    y = net(X, LENGTHS)
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(net(X[:n, b]), y[b], rtol=1e-10)


def test_what_convolution_refuses() -> None:
    module: Any = fr.Conv1d(3, 2, 3, **WIDE)
    for call, kind, text in (
        (lambda: fr.Conv1d(3, 2, 0), ValueError, "kernel_size: expected an int >= 1"),
        (
            lambda: fr.Conv1d(3, 2, 3, 2, "same"),
            ValueError,
            "padding: expected an int or 'causal' with stride 2",
        ),
        (
            lambda: fr.Conv1d(3, 2, 3, padding="full"),
            ValueError,
            "padding: expected an int, 'same' or 'causal'",
        ),
        (lambda: fr.Conv1d(3, 2, 3, padding=-1), ValueError, "padding: expected an int >= 0"),
        (lambda: module(X[..., :2]), ValueError, r"x: expected shape \(T, B, C\) or \(T, C\) with C = 3"),
        (lambda: module(X.astype("f4")), TypeError, "x: expected float64, got float32"),
        (lambda: module(X, [1]), ValueError, r"lengths: expected shape \(B,\) = \(4,\)"),
        (lambda: module(X, [1.0, 2, 3, 4]), TypeError, "lengths: expected an integer dtype"),
        (lambda: fr.Sequential(module)(X, mask=~OUTSIDE), ValueError, "mask: expected lengths with a Conv1d"),
        (lambda: module.backward(module.forward(X)[1], X), ValueError, "dy: expected shape"),
    ):
        with pytest.raises(kind, match=text):
            call()


@pytest.mark.parametrize(
    "text",
    [
        "Tanh()",
        "GELU(approximate='tanh')",
        "Softmax(axis=0)",
        "BatchNorm(3)",
        "BatchNorm(3, eps=0.1, momentum=None, affine=False, batch_first=True, dtype='float64')",
        "Conv1d(3, 2, 5)",
        "Conv1d(3, 2, 5, stride=2, padding='causal', dilation=2, bias=False, batch_first=True)",
        "Conv1d(3, 2, 5, padding=1, dtype='float64')",
    ],
)
def test_reprs_can_be_pasted(text: str) -> None:
    assert repr(eval(text, vars(fr))) == text
