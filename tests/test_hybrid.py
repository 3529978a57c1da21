"""SelfAttention one step at a time, and Hybrid: by its formula, with all gradients, lengths, streams."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_support import WIDE, assert_gradients
from test_self_attention import attention, by_hand

import fusedrnn as fr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4, 6))
LENGTHS = np.array([7, 0, 3, 1])
MASK = RNG.random((7, 4)) < 0.6


def hybrid(**options: Any) -> fr.Hybrid:
    module = fr.Hybrid(6, seed=0, **{"num_layers": 3, "num_heads": 2, **WIDE, **options})
    for array in module.parameters.values():
        array[...] += np.random.default_rng(array.size).normal(size=array.shape) * 0.3
    return module


# The equations, for one sequence (n, 6) whose steps all count, of the parameters alone.


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def normalised(x: Any, p: Any, name: str) -> Any:
    spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return (x - x.mean(axis=-1, keepdims=True)) / spread * p[f"{name}.weight"] + p[f"{name}.bias"]


def recurrent(kind: str, x: Any, p: Any, name: str) -> Any:
    w, u, b, d = (p[f"{name}.{key}_l0"] for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, c, found = np.zeros(6), np.zeros(6), []
    for row in x:
        if kind == "lstm":
            i, f, g, o = (w @ row + b + u @ h + d).reshape(4, 6)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        elif kind == "gru":
            (r, z, n), (hr, hz, hn) = (w @ row + b).reshape(3, 6), (u @ h + d).reshape(3, 6)
            n, z = np.tanh(n + sigmoid(r + hr) * hn), sigmoid(z + hz)
            h = (1 - z) * n + z * h
        else:
            h = np.tanh(w @ row + b + u @ h + d)
        found.append(h)
    return np.array(found).reshape(x.shape)


def boom(x: Any, p: Any, name: str) -> Any:
    wide = x @ p[f"{name}.linear.weight"].T + p[f"{name}.linear.bias"]
    gelu = wide * (1 + np.vectorize(math.erf, otypes="d")(wide / math.sqrt(2))) / 2
    return gelu.reshape(len(x), gelu.shape[1] // 6, 6).sum(axis=1)


def expected(module: fr.Hybrid, x: Any) -> Any:
    p = {name: array.astype("f8") for name, array in module.parameters.items()}
    place = 0
    for layer in range(module.num_layers):
        kinds = [module.cell] + ["attention"] * (layer == module.attention_layer)
        for kind in kinds + ["boom"] * (module.expansion > 0):
            n, name = normalised(x, p, f"parts.{place}"), f"parts.{place + 1}.module.0"
            if kind == "attention":
                core: Any = module.parts[place + 1]
                x = n + by_hand(core.module[0], n)
            else:
                x = n + (boom(n, p, name) if kind == "boom" else recurrent(kind, n, p, name))
            place += 2
    return x


OPTIONS: list[dict[str, Any]] = [
    {},
    {"cell": "gru", "attention_layer": 2, "expansion": 0, "num_heads": 3},
    {"cell": "rnn", "num_layers": 1, "expansion": 1},
    {"num_layers": 2, "attention_layer": 1, "batch_first": True},
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", OPTIONS, ids=str)
def test_values(given: dict[str, Any], dtype: str) -> None:
    for options in ({}, {"lengths": LENGTHS}, {"mask": MASK}, {"lengths": LENGTHS, "mask": MASK}):
        module = hybrid(dtype=dtype, **given)
        counts = MASK.copy() if "mask" in options else np.ones((7, 4), bool)
        if "lengths" in options:
            counts &= np.arange(7)[:, None] < LENGTHS
        x = np.where(counts[..., None], X, np.nan).astype(dtype)
        if module.batch_first:
            x = x.swapaxes(0, 1)
            options = {name: value.T if name == "mask" else value for name, value in options.items()}
        y, tape = module.forward(x, **options)
        np.testing.assert_array_equal(module(x, **options), y)
        dx = module.backward(tape, np.full_like(y, 1.0))
        if module.batch_first:
            y, dx = y.swapaxes(0, 1), dx.swapaxes(0, 1)
        assert y.dtype == dtype and not y[~counts].any() and not dx[~counts].any()
        assert np.isfinite(dx).all() and np.isfinite(module.flat_grads).all()
        for b in range(4):
            want = expected(module, X[counts[:, b], b])
            np.testing.assert_allclose(y[counts[:, b], b], want, rtol=0, atol=400 * np.finfo(dtype).eps)


@pytest.mark.parametrize("given", OPTIONS, ids=str)
def test_gradients(given: dict[str, Any]) -> None:
    module = hybrid(**given)
    x, mask = (X.swapaxes(0, 1), MASK.T) if module.batch_first else (X, MASK)
    assert_gradients(module, x)
    assert_gradients(module, x, lengths=LENGTHS)
    assert_gradients(module, x, mask=mask, lengths=LENGTHS)
    assert_gradients(module, X[:, 0])
    net = fr.Sequential(module, fr.Pool("mean", batch_first=module.batch_first))
    assert_gradients(net, x, lengths=LENGTHS)


def test_no_steps_and_no_sequences() -> None:
    for shape in ((0, 2, 6), (3, 0, 6), (0, 6)):
        y, tape = hybrid().forward(np.zeros(shape))
        assert y.shape == shape and tape._owner.backward(tape, y.copy()).shape == shape


def test_dropout_is_of_training_alone() -> None:
    module = hybrid(dropout=0.5)
    one, tape = module.forward(X)
    assert not np.array_equal(one, module(X))
    plain = hybrid()
    np.testing.assert_array_equal(module.eval()(X), plain(X))
    assert module.backward(tape, one.copy(), need_dx=False) is None


def test_batch_first_and_dropout_that_are_set_later(tmp_path: Path) -> None:
    """In all parts; of a tape from before, backward is that of before."""
    module, turned = hybrid(dropout=0.5), X.swapaxes(0, 1)
    _, tape = module.forward(X)
    before = module.backward(tape, np.ones_like(X))
    module.batch_first = True
    np.testing.assert_array_equal(module.backward(tape, np.ones_like(X)), before)
    module.dropout = 0.0
    plain = hybrid(batch_first=True)
    np.testing.assert_array_equal(module(turned, LENGTHS), plain(turned, LENGTHS))
    np.testing.assert_array_equal(module(X[:, 0]), plain(X[:, 0]))
    fr.save(module, tmp_path / "hybrid")
    assert repr(module) == repr(plain) == repr(fr.load(tmp_path / "hybrid"))
    plain.dropout, plain.batch_first = 0.5, False
    assert not np.array_equal(plain(X), plain(X))
    for name, value, kind in (("batch_first", 1, TypeError), ("dropout", 1.5, ValueError)):
        with pytest.raises(kind, match=f"^{name}: expected"):
            setattr(plain, name, value)
    assert plain.dropout == 0.5 and not plain.batch_first


def test_saved_and_loaded(tmp_path: Path) -> None:
    for given in OPTIONS:
        module = hybrid(dropout=0.25, **given)
        fr.save(module.eval(), tmp_path / "hybrid")
        again = fr.load(tmp_path / "hybrid")
        assert repr(again) == repr(module) == repr(eval(repr(module), vars(fr)))
        np.testing.assert_array_equal(again(X[:, :1].swapaxes(0, 1)), module(X[:, :1].swapaxes(0, 1)))


# Streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["attention", "hybrid"])
def test_a_stream_gives_the_rows_of_a_call(kind: str, dtype: str) -> None:
    """But for rounding, whose sums are in another order; also of single sequences and of tuples of rows."""
    module: Any = attention(3, True, dtype=dtype) if kind == "attention" else hybrid(dtype=dtype, dropout=0.5)
    module.eval()
    x = X.astype(dtype)
    y, step, alone = module(x), module.stream(4, 7), module.stream(max_len=20)
    bound = 100 * np.finfo(dtype).eps
    for t in range(7):
        np.testing.assert_allclose(step(x[t]), y[t], rtol=0, atol=bound)
        found = alone(x[t, 2])
        assert found.shape == (6,) and found.dtype == dtype
        np.testing.assert_allclose(found, y[t, 2], rtol=0, atol=bound)
    many = np.tile(x, (1, 3, 1))
    wide = module.stream(12, 7)
    for t in range(7):
        np.testing.assert_allclose(wide(many[t]), np.tile(y[t], (3, 1)), rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
def test_rows_begin_anew(kind: str) -> None:
    """Whatever they had seen: NaN, too. Others go on."""
    module: Any = attention(causal=True) if kind == "attention" else hybrid()
    step = module.stream(4, 7)
    for t in range(3):
        step(np.where(np.arange(4)[:, None] == 1, np.nan, X[t]))
    step.reset([1, 3])
    y, short = module(X), module(X[3:])
    for t in range(3, 7):
        found = step(X[t])
        np.testing.assert_allclose(found[[0, 2]], y[t, [0, 2]], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[[1, 3]], short[t - 3, [1, 3]], rtol=0, atol=1e-12)
    step.reset(np.array([True, True, False, False]))
    step.reset()
    for t in range(3):
        np.testing.assert_allclose(step(X[t]), y[t], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
def test_states_and_new_weights(kind: str) -> None:
    module: Any = attention(causal=True) if kind == "attention" else hybrid()
    step = module.stream(4, 3)
    for t in range(4):
        step(X[t])
    kept = step.state
    want = [step(X[t]).copy() for t in range(4, 7)]
    other = module.stream(4, 3)
    other.state = kept
    for t, y in zip(range(4, 7), want, strict=True):
        np.testing.assert_array_equal(other(X[t]), y)
    for array in module.parameters.values():
        array *= 0.5
    fresh = module.stream(4, 3)
    step.reset()
    step.refresh()
    np.testing.assert_array_equal(step(X[0]), fresh(X[0]))


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    step = hybrid().stream(4, 3)
    step(X[0])
    kept = step.state
    moved = tuple([tuple([2 * a for a in part]) for part in kept[:1]]) + kept[1:-1]
    for bad, kind in ((X[0], TypeError), (tuple([a[:, :2] for a in kept[-1]]), ValueError)):
        with pytest.raises(kind):
            step.state = (*moved, bad)
        for part, before in zip(step.state, kept, strict=True):
            for a, b in zip(part, before, strict=True):
                np.testing.assert_array_equal(a, b)


def test_the_ring_forgets_the_oldest_step() -> None:
    """With room for 3, a step gives what the last of the 3 that end with it gives."""
    module = attention(3, True)
    step = module.stream(4, 3)
    for t in range(7):
        y = step(X[t])
        for b in range(4):
            np.testing.assert_allclose(y[b], by_hand(module, X[max(t - 2, 0) : t + 1, b])[-1], atol=1e-12)
    assert step.state.seen.tolist() == [7] * 4


# Errors -----------------------------------------------------------------------------------------------------


def test_what_they_refuse() -> None:
    module, mixed = attention(causal=True), hybrid()
    step, whole = module.stream(4, 3), mixed.stream(4)
    k, v, seen = step.state
    bad: Any = 1.5
    for call, kind, text in (
        (lambda: attention().stream(), ValueError, "stream: expected causal=True"),
        (lambda: module.stream(0), ValueError, "batch_size: expected an int >= 1"),
        (lambda: module.stream(1, 0), ValueError, "max_len: expected an int >= 1"),
        (lambda: step(X[0, :3]), ValueError, r"x: expected shape \(B, E\) = \(4, 6\), got \(3, 6\)"),
        (lambda: module.stream()(X[0]), ValueError, r"x: expected shape \(B, E\) = \(1, 6\) or \(E,\), got"),
        (lambda: step(X[0].astype("f4")), TypeError, "x: expected float64, got float32"),
        (lambda: step.reset([4]), ValueError, r"rows: expected values in \[0, B\) = \[0, 4\)"),
        (lambda: setattr(step, "state", 3), TypeError, "state: expected an AttentionState, got int"),
        (lambda: setattr(step, "state", (k[:1], v, seen)), ValueError, "state.keys: expected shape"),
        (lambda: setattr(step, "state", (k, v, seen - 1)), ValueError, "state.seen: expected numbers >= 0"),
        (lambda: setattr(whole, "state", (k,)), TypeError, "state: expected a tuple of 4 states"),
        (lambda: fr.Hybrid(0), ValueError, "size: expected an int >= 1"),
        (lambda: fr.Hybrid(6, bad), TypeError, "num_layers: expected an int"),
        (lambda: fr.Hybrid(6, 1 << 31), ValueError, "num_layers: expected an int <= 1000"),
        (lambda: fr.Hybrid(6, cell="sru"), ValueError, "cell: expected 'lstm', 'gru' or 'rnn', got 'sru'"),
        (lambda: fr.Hybrid(6, cell=["lstm"]), ValueError, r"cell: expected .*, got \['lstm'\]"),  # type: ignore[arg-type]
        (lambda: fr.Hybrid(6, num_heads=4), ValueError, "num_heads: expected a divisor"),
        (lambda: fr.Hybrid(6, 2, attention_layer=2), ValueError, "attention_layer: expected an int"),
        (lambda: fr.Hybrid(6, dropout=2.0), ValueError, "dropout: expected"),
        (lambda: mixed(X[..., :3]), ValueError, r"x: expected shape \(T, B, E\) or \(T, E\) with E = 6"),
        (lambda: mixed(X.astype("f4")), TypeError, "x: expected float64, got float32"),
        (lambda: mixed(X, [8, 1, 1, 1]), ValueError, "lengths: expected values in"),
        (lambda: mixed.backward(mixed.forward(X)[1], X[0]), ValueError, "dy: expected shape"),
    ):
        with pytest.raises(kind, match=f"^{text}"):
            call()
    assert not mixed.flat_grads.any() and (step.state.seen == 0).all()
