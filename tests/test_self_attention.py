"""SelfAttention: by its formula, with all gradients, lengths, masks and causally."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from block_support import WIDE, assert_gradients

import fusedrnn as fr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4, 6))
LENGTHS = np.array([5, 0, 3, 1])
MASK = RNG.random((5, 4)) < 0.6
OPTIONS: list[dict[str, Any]] = [{}, {"lengths": LENGTHS}, {"mask": MASK}, {"lengths": LENGTHS, "mask": MASK}]


def by_hand(module: fr.SelfAttention, x: Any) -> Any:
    """One sequence (n, E), all of whose steps count."""
    weights = {name: array.astype("f8") for name, array in module.parameters.items()}
    n, size = x.shape
    width = size // module.num_heads
    products = x @ weights["in_proj_weight"].T + weights.get("in_proj_bias", 0.0)
    q, k, v = products.reshape(n, 3, module.num_heads, width).transpose(1, 2, 0, 3)
    scores = np.einsum("htd,hsd->hts", q, k) / np.sqrt(width)
    if module.causal:
        scores = np.where(np.tri(n) > 0, scores, -np.inf)
    a = np.exp(scores)
    a /= a.sum(axis=-1, keepdims=True)
    context = np.einsum("hts,hsd->thd", a, v).reshape(n, size)
    return context @ weights["out_proj.weight"].T + weights.get("out_proj.bias", 0.0)


def attention(heads: int = 2, causal: bool = False, **options: Any) -> fr.SelfAttention:
    module = fr.SelfAttention(6, heads, causal, seed=0, **{**WIDE, **options})
    for array in module.parameters.values():
        array[...] += np.random.default_rng(1).normal(size=array.shape) * 0.3
    return module


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_values(heads: int, causal: bool, dtype: str) -> None:
    for options in OPTIONS:
        module = attention(heads, causal, dtype=dtype, bias=heads == 1)
        x = X.astype(dtype)
        counts = np.ones((5, 4), bool) if "mask" not in options else MASK.copy()
        if "lengths" in options:
            counts &= np.arange(5)[:, None] < LENGTHS
        x[~counts] = np.nan
        y, tape = module.forward(x, **options)
        assert y.dtype == dtype and not y[~counts].any()
        np.testing.assert_array_equal(module(x, **options), y)
        for b in range(4):
            want = by_hand(module, X[counts[:, b], b])
            np.testing.assert_allclose(y[counts[:, b], b], want, rtol=0, atol=100 * np.finfo(dtype).eps)
        dx = module.backward(tape, np.ones_like(y))
        assert not dx[~counts].any() and np.isfinite(module.flat_grads).all() and np.isfinite(dx).all()
        turned = attention(heads, causal, dtype=dtype, bias=heads == 1, batch_first=True)
        given = {name: value.T if name == "mask" else value for name, value in options.items()}
        np.testing.assert_allclose(turned(x.swapaxes(0, 1), **given).swapaxes(0, 1), y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
@pytest.mark.parametrize("causal", [False, True])
def test_gradients(causal: bool, options: Any) -> None:
    assert_gradients(attention(causal=causal), X, **options)
    assert_gradients(attention(causal=causal, bias=False), X[:, 0])
    turned = {name: value.T if name == "mask" else value for name, value in options.items()}
    assert_gradients(attention(causal=causal, batch_first=True), X.swapaxes(0, 1), **turned)


def test_causal_sees_no_later_step() -> None:
    module, changed = attention(causal=True), X.copy()
    changed[3:] = 9.0
    np.testing.assert_array_equal(module(X)[:3], module(changed)[:3])


@pytest.mark.parametrize("shape", [(0, 2, 6), (4, 0, 6), (0, 6)], ids=str)
def test_nothing(shape: tuple[int, ...]) -> None:
    module = attention()
    y, tape = module.forward(np.zeros(shape))
    assert y.shape == shape and module.backward(tape, y.copy()).shape == shape


def test_beside_a_network() -> None:
    """A recurrent network with attention on top, written once."""
    net = fr.Sequential(
        fr.LSTM(6, 6, seed=0, **WIDE),
        fr.Residual(fr.Sequential(fr.LayerNorm(6, **WIDE), attention(causal=True))),
        fr.Pool("last"),
    )
    assert_gradients(net, X, lengths=LENGTHS)
    assert list(net.state_dict())[-4:] == [
        f"1.module.1.{name}"
        for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    ]


def test_tapes_keep_the_parameters_and_frozen_ones_get_no_gradient() -> None:
    module = attention()
    y, tape = module.forward(X)
    want = module.backward(tape, np.ones_like(y))
    module.flat_parameters[:] = 7.0
    module.zero_grad()
    module.requires_grad_(False)
    np.testing.assert_array_equal(module.backward(tape, np.ones_like(y)), want)
    assert not module.flat_grads.any() and module.backward(tape, y.copy(), need_dx=False) is None


def test_what_it_refuses() -> None:
    module: Any = attention()
    for call, kind, text in (
        (lambda: fr.SelfAttention(6, 4), ValueError, "num_heads: expected a divisor of embed_dim = 6, got 4"),
        (lambda: fr.SelfAttention(0), ValueError, "embed_dim: expected an int >= 1"),
        (lambda: fr.SelfAttention(6, causal=1), TypeError, "causal: expected a bool"),  # type: ignore[arg-type]
        (lambda: module(X[..., :3]), ValueError, r"x: expected shape \(T, B, E\) or \(T, E\) with E = 6"),
        (lambda: module(X.astype("f4")), TypeError, "x: expected float64, got float32"),
        (lambda: module(X, [7, 1, 1, 1]), ValueError, "lengths: expected values in"),
        (lambda: module.backward(module.forward(X)[1], X[0]), ValueError, "dy: expected shape"),
    ):
        with pytest.raises(kind, match=text):
            call()
    assert repr(eval(repr(attention(causal=True)), vars(fr))) == repr(attention(causal=True))


@pytest.mark.parametrize("kind", ["mean", "max", "attention", "BatchNorm", "SelfAttention"])
def test_the_mask_of_a_tape_is_its_own(kind: str) -> None:
    """Values and shape of the caller's mask may change before backward."""
    rng = np.random.default_rng(0)
    if kind in ("BatchNorm", "SelfAttention"):
        module = getattr(fr, kind)(*((4,) if kind == "BatchNorm" else (4, 2)), **WIDE)
    else:
        module = fr.Pool(kind, 4, **WIDE)
    x, mask = rng.normal(size=(5, 3, 4)), rng.random((5, 3)) < 0.6
    y, tape = module.forward(x, mask=mask)
    dy = rng.normal(size=y.shape)
    want, grads = module.backward(tape, dy), module.flat_grads.copy()
    module.zero_grad()
    y, tape = module.forward(x, mask=mask)
    np.logical_not(mask, out=mask)
    mask.shape = (15, 1)
    np.testing.assert_array_equal(module.backward(tape, dy), want)
    np.testing.assert_array_equal(module.flat_grads, grads)
