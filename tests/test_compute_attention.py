"""SelfAttention in bfloat16: every product by its formula with operands rounded as the kernels round them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from quantized_support import to_bf16
from support import Array
from tolerances import relative_error

import fusedrnn as fr
from fusedrnn import _core
from fusedrnn.compute import rounded

needs_bf16 = pytest.mark.skipif(
    _core.config()["bf16_isa"] is None,
    reason="neither AMX nor AVX512_BF16; tests/native has their kernels in an emulation",
)
# Of what rounds twice, where a value next to a tie may go the other way: bits of bfloat16.
ONE_ROUNDING = 2e-4
# Of a module against the one in float32.
DISTANCE = 0.02
LENGTHS = np.array([9, 0, 4])


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def product(a: Array, b: Array) -> Array:
    """Return a b^T of rounded operands, to the last bits of float64."""
    return np.asarray(to_bf16(np.float32(a)).astype(float) @ to_bf16(np.float32(b)).astype(float).T)


def attention(heads: int, causal: bool, compute: str = "bf16", size: int = 24) -> fr.SelfAttention:
    module = fr.SelfAttention(size, heads, causal, seed=0, compute=compute)
    for name, array in module.parameters.items():
        if "bias" in name:
            array[...] = draw(*array.shape, seed=3)
    return module


def by_hand(module: fr.SelfAttention, x: Array, dy: Array) -> tuple[Array, Array, dict[str, Array]]:
    """Return y, dx and the gradients of one sequence (n, E), each rounding its float32 operands."""
    p = {name: array.astype(float) for name, array in module.parameters.items()}
    n, size = x.shape
    width = size // module.num_heads
    scale = np.float32(1 / np.sqrt(width))
    inner = product(x, p["in_proj_weight"]) + p["in_proj_bias"]
    q, k, v = np.float32(inner).reshape(n, 3, module.num_heads, width).transpose(1, 2, 0, 3)
    context, kept = np.zeros((n, size)), []
    for head in range(module.num_heads):
        scores = product(q[head] * scale, k[head])
        if module.causal:
            scores[np.triu_indices(n, 1)] = -np.inf
        a = np.exp(scores - scores.max(axis=-1, keepdims=True))
        a /= a.sum(axis=-1, keepdims=True)
        kept.append(a)
        context[:, head * width : (head + 1) * width] = product(a, v[head].T)
    y = product(context, p["out_proj.weight"]) + p["out_proj.bias"]
    dcontext = product(dy, p["out_proj.weight"].T)
    dinner = np.zeros((n, 3, module.num_heads, width))
    for head, a in enumerate(kept):
        flow = dcontext[:, head * width : (head + 1) * width]
        da = product(flow, v[head])
        dscores = a * (da - (a * da).sum(axis=-1, keepdims=True))
        dinner[:, 0, head] = product(dscores, k[head].T) * scale
        dinner[:, 1, head] = product(dscores.T, (q[head] * scale).T)
        dinner[:, 2, head] = product(a.T, flow.T)
    flat = dinner.reshape(n, -1)
    grads = {
        "in_proj_weight": product(flat.T, x.T),
        "in_proj_bias": flat.sum(axis=0),
        "out_proj.weight": product(dy.T, context.T),
        "out_proj.bias": dy.sum(axis=0, dtype=float),
    }
    return y, product(flat, p["in_proj_weight"].T), grads


@needs_bf16
@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_against_an_emulation(heads: int, causal: bool, steps: int) -> None:
    module = attention(heads, causal)
    x, dy = draw(steps, 24), draw(steps, 24, seed=1)
    y, tape = module.forward(x)
    dx = module.backward(tape, dy)
    want, want_dx, grads = by_hand(module, x, dy)
    full = attention(heads, causal, "float32")
    for got, expected in ((y, want), (dx, want_dx), *((module.grads[n], g) for n, g in grads.items())):
        assert relative_error(got, expected) < ONE_ROUNDING
    assert relative_error(full(x), want) > 4 * ONE_ROUNDING
    assert np.array_equal(module(x), y)


@needs_bf16
@pytest.mark.parametrize("causal", [False, True])
def test_near_float32_and_equal_bits(causal: bool) -> None:
    x, dy = draw(9, 3, 24), draw(9, 3, 24, seed=1)
    before, results = fr.get_num_threads(), []
    try:
        for compute, threads in (("float32", 1), ("bf16", 1), ("bf16", 3)):
            fr.set_num_threads(threads)
            module = attention(3, causal, compute)
            y, tape = module.forward(x, LENGTHS)
            results.append([y, module.backward(tape, dy), *module.grads.values()])
    finally:
        fr.set_num_threads(before)
    for full, mine, other in zip(*results, strict=True):
        assert relative_error(mine, full) < DISTANCE and np.array_equal(mine, other)
    assert not results[1][0][4:, 2].any() and not results[1][1][:, 1].any()


@needs_bf16
@pytest.mark.parametrize("batch", [1, 9])
def test_stream(batch: int) -> None:
    module, x = attention(3, True), draw(12, batch, 24)
    step = module.stream(batch_size=batch, max_len=12)
    got = np.array([step(x_t).copy() for x_t in x])
    assert relative_error(got, module(x)) < ONE_ROUNDING
    assert relative_error(got, attention(3, True, "float32")(x)) > 4 * ONE_ROUNDING


@needs_bf16
def test_where_it_is_kept() -> None:
    module, x = attention(2, False), draw(5, 2, 24)
    assert module.out_proj.compute == "bf16" and "compute='bf16'" in repr(module)
    twins: list[Any] = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    for twin in twins:
        assert twin.compute == "bf16" and np.array_equal(twin(x), module(x))
    y, tape = module.forward(x)
    dx = module.backward(tape, np.ones_like(y))
    # A tape remembers what made it.
    module.compute = "float32"
    assert module.out_proj.compute == "float32"
    assert np.array_equal(module.backward(tape, np.ones_like(y)), dx)
    assert np.array_equal(module(x), attention(2, False, "float32")(x))
    assert module.astype("float64").compute == "float32"


def test_refused() -> None:
    with pytest.raises(ValueError, match="compute: expected 'float32', 'bf16x3' or 'bf16', got 'fp16'"):
        fr.SelfAttention(4, compute="fp16")
    with pytest.raises(ValueError, match="compute: expected None or 'float32' with float64, got 'bf16'"):
        fr.SelfAttention(4, dtype="float64", compute="bf16")


def test_rounding() -> None:
    """Of every kind of float32, subnormal, infinite and NaN; ties go to the even one."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 14, dtype=np.uint64).astype(np.uint32)
    values = np.concatenate([bits, bits & 0xFFFF0000 | 0x8000]).view(np.float32)
    finite = values[(np.abs(values) < 1e38) & (np.abs(values) > 2e-38)]
    assert np.array_equal(rounded(finite, "bf16"), to_bf16(finite).astype(np.float32))
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40], np.float32)
    assert np.array_equal(rounded(special, "bf16")[:5], special[:5], equal_nan=True)
    assert rounded(finite, "float32") is finite
