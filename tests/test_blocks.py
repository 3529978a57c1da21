"""Building blocks: Sequential, Residual, Concat and Pool, with lengths, masks and all gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from block_support import WIDE, assert_gradients

import fusedrnn as fr
from fusedrnn.backend import Backend

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4, 3))
LENGTHS = np.array([5, 0, 3, 1])
MASK = RNG.random((5, 4)) < 0.6


def model(pool: str = "mean", batch_first: bool = False) -> Any:
    return fr.Sequential(
        fr.Linear(3, 6, seed=0, **WIDE),
        fr.LSTM(6, 3, bidirectional=True, batch_first=batch_first, seed=1, **WIDE),
        fr.Residual(fr.Sequential(fr.GRU(6, 6, batch_first=batch_first, seed=2, **WIDE), fr.Dropout(0.0))),
        fr.Concat(fr.Sequential(), fr.RNN(6, 2, batch_first=batch_first, seed=3, **WIDE)),
        fr.Pool(pool, 8, batch_first, seed=4, **WIDE),
        fr.Linear(8, 2, seed=5, **WIDE),
    )


@pytest.mark.parametrize(
    "options", [{}, {"lengths": LENGTHS}, {"mask": MASK}], ids=["all", "lengths", "mask"]
)
@pytest.mark.parametrize("pool", ["last", "mean", "max", "attention"])
def test_gradients_of_a_model(pool: str, options: Any) -> None:
    assert_gradients(model(pool), X, **options)
    swapped = {name: value.T if name == "mask" else value for name, value in options.items()}
    turned = model(pool, batch_first=True)
    assert_gradients(turned, X.swapaxes(0, 1), **swapped)
    np.testing.assert_array_equal(turned(X.swapaxes(0, 1).copy(), **swapped), model(pool)(X, **options))


def test_the_same_by_hand() -> None:
    """lengths reach the members that take them, and only as far as there is time."""
    net = model()
    linear, lstm, residual, concat, _, head = net
    h = lstm(linear(X), lengths=LENGTHS)[0]
    h = h + residual.module[0](h, lengths=LENGTHS)[0]
    h = np.concatenate([h, concat[1](h, lengths=LENGTHS)[0]], axis=-1)
    means = [h[:n, b].mean(axis=0) if n else np.zeros(8) for b, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(net(X, LENGTHS), head(np.array(means)), rtol=1e-12, atol=1e-14)


def test_padding_changes_nothing() -> None:
    """What stands past the end of a sequence, NaN too, reaches neither y nor a gradient."""
    for pool in ("last", "mean", "max", "attention"):
        net = fr.Sequential(fr.LSTM(3, 4, seed=0, **WIDE), fr.Pool(pool, 4, seed=0, **WIDE))
        alone = fr.Pool(pool, 3, seed=0, **WIDE)
        x = X.copy()
        x[np.arange(5)[:, None] >= LENGTHS] = np.nan
        for module in (net, alone):
            y, tape = module.forward(x, lengths=LENGTHS)
            dx = module.backward(tape, np.ones_like(y))
            assert np.isfinite(y).all() and np.isfinite(module.flat_grads).all()
            assert not dx[np.arange(5)[:, None] >= LENGTHS].any()
            assert not y[1].any() or module is net
            for b, n in enumerate(LENGTHS):
                if n:
                    np.testing.assert_allclose(module(x[:n, b]), y[b], rtol=1e-12)


@pytest.mark.parametrize(
    "module",
    [
        *(fr.Pool(kind, 3, seed=0, **WIDE) for kind in ("last", "mean", "max", "attention")),
        fr.BatchNorm(3, **WIDE),
        fr.Conv1d(3, 3, 2, padding="same", seed=0, **WIDE),
        *(fr.SelfAttention(3, seed=0, **WIDE), fr.Hybrid(3, seed=0, **WIDE)),
    ],
    ids=repr,
)
def test_gradients_of_padding_are_zero_whatever_dy_is(module: Any) -> None:
    """NaN and infinities reach steps that count, and no others."""
    y, tape = module.forward(X, lengths=LENGTHS)
    for bad in (np.nan, np.inf):
        with np.errstate(invalid="ignore"):
            dx = module.backward(tape, np.full_like(y, bad))
        outside = np.arange(5)[:, None] >= LENGTHS
        assert not dx[outside].any() and not np.isfinite(dx[~outside]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["last", "mean", "max", "attention"])
def test_pool_of_nothing(kind: str, dtype: str) -> None:
    """No steps, no sequences: zeros, and a gradient of x's shape."""
    pool = fr.Pool(kind, 3, dtype=dtype)
    for shape in ((0, 2, 3), (4, 0, 3), (0, 3)):
        y, tape = pool.forward(np.zeros(shape, dtype))
        assert y.shape == shape[1:] and y.dtype == dtype and not y.any()
        dx = pool.backward(tape, np.ones_like(y))
        assert dx.shape == shape and dx.dtype == dtype


@pytest.mark.parametrize("kind", ["last", "mean", "max", "attention"])
def test_pool_of_masks(kind: str) -> None:
    """Against the steps that count, taken out."""
    pool = fr.Pool(kind, 3, seed=0, **WIDE)
    y = pool(X, lengths=LENGTHS, mask=MASK)
    for b in range(4):
        steps = X[: LENGTHS[b], b][MASK[: LENGTHS[b], b]]
        want: Any = np.zeros(3)
        if len(steps):
            scores = np.exp(steps @ pool.parameters["query"]) if kind == "attention" else np.ones(len(steps))
            average = (scores / scores.sum()) @ steps
            want = {"last": steps[-1], "max": steps.max(axis=0)}.get(kind, average)
        np.testing.assert_allclose(y[b], want, rtol=1e-12)


def test_pool_of_infinities() -> None:
    """A maximum of -inf is a step's own; scores far apart overflow nowhere."""
    pool = fr.Pool("max")
    x = np.full((3, 1, 2), -np.inf)
    y, tape = pool.forward(x, mask=np.array([[False], [True], [True]]))
    assert np.isneginf(y).all() and not pool.backward(tape, np.ones_like(y))[0].any()
    attention = fr.Pool("attention", 1, **WIDE)
    attention.parameters["query"][...] = 1e3
    assert attention(np.array([[-5.0], [5.0]])) == 5.0
    assert np.isnan(fr.Pool("max")(np.array([[1.0], [np.nan], [2.0]])))


def test_what_pool_refuses() -> None:
    pool: Any = fr.Pool("mean")
    for call, kind, text in (
        (lambda: fr.Pool("median"), ValueError, "kind: expected 'last', 'mean', 'max' or 'attention'"),
        (lambda: fr.Pool("attention"), ValueError, "features: expected the size of the last axis"),
        (lambda: fr.Pool("attention", 0), ValueError, "features: expected an int >= 1"),
        (lambda: fr.Pool(batch_first=1), TypeError, "batch_first: expected a bool"),  # type: ignore[arg-type]
        (lambda: pool([1.0]), TypeError, "x: expected a numpy.ndarray, got list"),
        (lambda: pool(np.zeros((2, 3), int)), TypeError, "x: expected float32 or float64, got int64"),
        (lambda: pool(np.zeros(3)), ValueError, r"x: expected shape \(T, B, F\) or \(T, F\), got \(3,\)"),
        (lambda: fr.Pool("mean", 4)(X), ValueError, r"x: expected shape .* with F = 4, got \(5, 4, 3\)"),
        (lambda: fr.Pool("attention", 3)(X), TypeError, "x: expected float32, got float64"),
        (lambda: pool(X, [1, 2]), ValueError, r"lengths: expected shape \(B,\) = \(4,\), got \(2,\)"),
        (lambda: pool(X, [1, 2, 6, 1]), ValueError, r"lengths: expected values in 0..T = 0..5"),
        (lambda: pool(X, mask=MASK.T), ValueError, r"mask: expected shape \(T, B\) = \(5, 4\)"),
        (lambda: pool(X, mask=MASK + 0.0), TypeError, "mask: expected bool"),
        (lambda: pool.backward(pool.forward(X)[1], np.ones((4, 2))), ValueError, "dy: expected shape"),
        (lambda: pool.backward(pool.forward(X)[1], np.ones((4, 3), "f4")), TypeError, "dy: expected float64"),
        (lambda: fr.Pool().backward(pool.forward(X)[1], X[0]), ValueError, "tape: expected a tape of this"),
    ):
        with pytest.raises(kind, match=text):
            call()


def test_what_runs_on_the_cpu_alone_is_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by name, before anything has moved."""
    gpu = Backend("cuda:0", np, None)
    monkeypatch.setattr("fusedrnn.nn.module.find_backend", lambda device: gpu)
    for module in (fr.Pool(), fr.BatchNorm(2), fr.Conv1d(2, 2, 1), fr.SelfAttention(2), fr.Tanh()):
        net, kind = fr.Sequential(fr.Linear(2, 2), module), type(module).__name__
        with pytest.raises(RuntimeError, match=f"1: expected no {kind} on cuda: it runs on cpu"):
            net.to("cuda")
        assert net.device == "cpu"


def test_a_frozen_query_gets_no_gradient() -> None:
    pool = fr.Pool("attention", 3, seed=0, **WIDE).requires_grad_(False)
    y, tape = pool.forward(X)
    assert pool.backward(tape, np.ones_like(y)).any() and not pool.flat_grads.any()


def test_tapes_keep_the_parameters() -> None:
    """The gradients are those of the forward call, whatever the weights, lengths and x's shape are since."""
    for kind in ("last", "mean", "max", "attention"):
        for lengths in (LENGTHS.copy(), None):
            pool, x = fr.Pool(kind, 3, seed=0, **WIDE), X.copy()
            y, tape = pool.forward(x, lengths)
            want = pool.backward(tape, np.ones_like(y))
            pool.flat_parameters[:] = 7.0
            if lengths is not None:
                lengths[:] = 0
            x.shape = (4, 5, 3)
            np.testing.assert_array_equal(pool.backward(tape, np.ones_like(y)), want)


# Sequential as a list


def linears(count: int) -> list[Any]:
    return [fr.Linear(2, 2, seed=seed, **WIDE) for seed in range(count)]


def test_a_sequence_is_a_list() -> None:
    a, b, c, d = linears(4)
    net = fr.Sequential(a, b)
    net.append(c)
    assert net[-1] is c and net["1"] is b and len(net) == 3
    assert isinstance(net[1:], fr.Sequential) and list(net[1:]) == [b, c]
    x = RNG.normal(size=(3, 2))
    np.testing.assert_array_equal(net[:2](x), b(a(x)))
    net.insert(0, d)
    del net[1]
    assert list(net) == [d, b, c] and list(net.state_dict())[:2] == ["0.weight", "0.bias"]


def test_names_are_kept() -> None:
    a, b, c, d = linears(4)
    net = fr.Sequential({"body": a, "head": b})
    assert net["head"] is b and list(net.state_dict()) == [
        "body.weight",
        "body.bias",
        "head.weight",
        "head.bias",
    ]
    net[1] = c
    net.append(d)
    assert [name for name, _ in net.named_children()] == ["body", "head", "2"]
    assert [name for name, _ in net[1:].named_children()] == ["head", "2"]
    del net[0]
    net.append(a)
    assert [name for name, _ in net.named_children()] == ["head", "2", "3"]
    assert list(net) == [c, d, a]
    net["head"] = b
    assert list(net) == [b, d, a] and net["head"] is b
    del net["2"]
    assert [name for name, _ in net.named_children()] == ["head", "3"]
    for call in (lambda: net["2"], lambda: net.__setitem__("2", a), lambda: net.__delitem__("2")):
        with pytest.raises(KeyError, match="2"):
            call()
    other = fr.Sequential({"2": a, "x": b})
    other.append(c)
    assert [name for name, _ in other.named_children()] == ["2", "x", "3"] and other["3"] is c
    for named, kind in (
        ({"a.b": a}, ValueError),
        ({"": a}, ValueError),
        ({1: a}, TypeError),
        ({"a": 1}, TypeError),
    ):
        with pytest.raises(kind, match="expected"):
            fr.Sequential(named)


REPRS: list[Callable[[], fr.Module]] = [
    lambda: fr.Sequential(),
    lambda: model("attention"),
    lambda: fr.Sequential({"body": fr.GRU(3, 4), "head": fr.Concat(fr.Linear(4, 2), fr.Dropout(0.5))}),
    lambda: fr.ModuleList([fr.ModuleDict({"a": fr.Linear(2, 2), "b": fr.ModuleDict()})]),
    lambda: fr.Pool("last"),
    lambda: fr.Pool("max", features=3, batch_first=True),
    lambda: fr.Pool("attention", features=3, dtype="float64"),
]


@pytest.mark.parametrize("make", REPRS)
def test_reprs_can_be_pasted(make: Callable[[], fr.Module]) -> None:
    made = make()
    again = eval(repr(made), vars(fr))
    assert repr(again) == repr(made)
    assert {n: p.shape for n, p in again.parameters.items()} == {
        n: p.shape for n, p in made.parameters.items()
    }


@pytest.mark.parametrize("how", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(how: Callable[[Any], Any]) -> None:
    net = fr.Sequential({"net": model("attention")})
    other = how(net)
    assert repr(other) == repr(net) and np.array_equal(other(X, LENGTHS), net(X, LENGTHS))


# A user's modules among them


class Window(fr.Module):
    """Every second step, so that lengths and masks are others behind it."""

    def output_steps(self, lengths: Any, mask: Any) -> Any:
        return None if lengths is None else (np.asarray(lengths) + 1) // 2, None if mask is None else mask[
            ::2
        ]

    def forward(self, x: Any) -> Any:
        return x[::2].copy(), x.shape

    def backward(self, tape: Any, dy: Any, *, need_dx: bool = True) -> Any:
        dx = np.zeros(tape)
        dx[::2] = dy
        return dx


def test_modules_that_change_time() -> None:
    net = fr.Sequential(Window(), fr.Residual(fr.Sequential(fr.Dropout(0.0))), fr.Pool("mean"))
    assert_gradients(net, X, lengths=LENGTHS)
    np.testing.assert_allclose(net(X, LENGTHS)[0], 2 * X[::2, 0].mean(axis=0))
    np.testing.assert_allclose(net(X, LENGTHS)[2], 2 * X[[0, 2], 2].mean(axis=0))
    assert net.output_steps(LENGTHS, MASK) == (None, None)
    np.testing.assert_array_equal(net[:1].output_steps(LENGTHS, MASK)[0], [3, 0, 2, 1])
    assert_gradients(net, X, mask=MASK)


def test_tokens() -> None:
    """An embedding at the front, also in parallel ones: there is no dx."""
    tokens = RNG.integers(0, 7, (5, 4))
    both = fr.Concat(fr.Embedding(7, 2, seed=0, **WIDE), fr.Embedding(7, 3, seed=1, **WIDE))
    net = fr.Sequential(both, fr.GRU(5, 3, seed=2, **WIDE), fr.Pool("max"), fr.Linear(3, 2, seed=3, **WIDE))
    assert_gradients(net, tokens, lengths=LENGTHS)


@pytest.mark.parametrize(
    "options", [{}, {"lengths": LENGTHS}, {"mask": MASK}], ids=["all", "lengths", "mask"]
)
def test_a_small_table_is_looked_up(options: Any) -> None:
    """In front of a network rows are multiplied once each: the same bits out, and the same gradients."""
    tokens = RNG.integers(0, 6, (5, 4))
    for rows in (6, 60):
        embedding, gru = fr.Embedding(rows, 3, 0, seed=0, **WIDE), fr.GRU(3, 4, seed=1, **WIDE)
        net = fr.Sequential(embedding, gru)
        y, tape = net.forward(tokens, **options)
        assert isinstance(tape.tapes[0], fr.Lookup) == (rows == 6)
        np.testing.assert_array_equal(net(tokens, **options), y)
        dy = RNG.normal(size=y.shape)
        assert net.backward(tape, dy) is None
        got = net.flat_grads.copy()
        net.zero_grad()
        x, rows_tape = embedding.forward(tokens)
        want, _, gru_tape = gru.forward(x, **options)
        np.testing.assert_array_equal(y, want)
        embedding.backward(rows_tape, gru.backward(gru_tape, dy)[0])
        np.testing.assert_allclose(got, net.flat_grads, rtol=1e-10, atol=1e-13)
        for bad, kind in ((tokens + rows, ValueError), (tokens - 9, ValueError), (tokens + 0.5, TypeError)):
            with pytest.raises(kind, match="indices: expected"):
                net(bad)
            with pytest.raises(kind, match="indices: expected"):
                net.forward(bad)


@pytest.mark.parametrize("need_dx", [True, False])
def test_gradients_are_added_and_tapes_serve_again(need_dx: bool) -> None:
    net = model("attention")
    y, tape = net.forward(X, LENGTHS)
    first = net.backward(tape, np.ones_like(y), need_dx=need_dx)
    once = net.flat_grads.copy()
    again = net.backward(tape, np.ones_like(y), need_dx=need_dx)
    assert (first is None and again is None) if not need_dx else np.array_equal(first, again)
    np.testing.assert_allclose(net.flat_grads, 2 * once, rtol=1e-12)
    assert tape.nbytes > 0 and "nbytes" in repr(tape)


@pytest.mark.parametrize(
    "block",
    [
        fr.Sequential(fr.Linear(3, 3, **WIDE), fr.Linear(3, 3, **WIDE)),
        fr.Residual(fr.Sequential(fr.Linear(3, 3, **WIDE), fr.Linear(3, 3, **WIDE))),
        fr.Concat(fr.Linear(3, 3, **WIDE), fr.Linear(3, 3, **WIDE)),
        fr.Conv1d(3, 3, 2, **WIDE),
        fr.BatchNorm(3, **WIDE),
        *(fr.SelfAttention(3, **WIDE), fr.Hybrid(3, **WIDE)),
        fr.Pool("attention", 3, **WIDE),
    ],
    ids=lambda block: type(block).__name__,
)
def test_a_backward_that_fails_adds_nothing(block: Any) -> None:
    y, tape = block.forward(X)
    for dy, need_dx in ((y, []), (y[..., :1], True), (y.astype("f4"), True), (y, None)):
        with pytest.raises((TypeError, ValueError), match=r"^(dy|need_dx): expected"):
            block.backward(tape, dy, need_dx=need_dx)
        assert not block.flat_grads.any()


def test_what_blocks_refuse() -> None:
    a, b = fr.Linear(3, 3, **WIDE), fr.Linear(3, 4, **WIDE)
    for call, kind, text in (
        (lambda: fr.Residual(3), TypeError, "module: expected a Module, got int"),
        (lambda: fr.Concat(), ValueError, "modules: expected one at least, got none"),
        (lambda: fr.Concat(a, None), TypeError, r"modules\[1\]: expected a Module, got NoneType"),
        (
            lambda: fr.Residual(b)(X),
            ValueError,
            r"module: expected one whose y is as x, \(5, 4, 3\) of float64",
        ),
        (lambda: fr.Residual(fr.Embedding(9, 2))([1, 2]), ValueError, "module: expected one whose y is as x"),
        (lambda: fr.Concat(a, fr.Pool())(X), ValueError, r"modules\[1\]: expected one whose y has shape"),
        (
            lambda: fr.Concat(a).backward(fr.Concat(a).forward(X)[1], X),
            ValueError,
            "tape: expected a tape of",
        ),
        (lambda: fr.Residual(a).backward(3, X), TypeError, "tape: expected a Tape, got int"),
    ):
        with pytest.raises(kind, match=text):
            call()  # type: ignore[no-untyped-call]
    net = fr.Concat(a, b)
    y, tape = net.forward(X)
    with pytest.raises(ValueError, match="dy: expected shape"):
        net.backward(tape, y[..., :6])
    assert not net.flat_grads.any()
