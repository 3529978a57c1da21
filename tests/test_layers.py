"""Embedding, Linear, Dropout, LayerNorm and the losses: against PyTorch, and by central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import DTYPES, LAYOUTS, Array, numeric_gradient
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

import fusedrnn as fr
from fusedrnn import _core

SIZES = [(1, 1, 1), (2, 3, 5), (5, 8, 8), (13, 9, 17), (64, 33, 7), (7, 100, 130)]


def load(theirs: Any, ours: Any) -> None:
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})


def check_layer(ours: Any, theirs: Any, x: Array) -> None:
    """y, dx and the parameters' gradients against torch's."""
    torch = pytest.importorskip("torch")
    load(theirs, ours)
    tx = torch.tensor(x, requires_grad=True)
    ty = theirs(tx)
    y, tape = ours.forward(x)
    assert np.array_equal(ours(x), y)
    assert_close(y, ty.detach().numpy(), "output", "y")
    dy = np.random.default_rng(1).normal(size=y.shape).astype(x.dtype)
    ty.backward(torch.tensor(dy))
    assert_close(ours.backward(tape, dy), tx.grad.numpy(), "gradient", "dx")
    for name, parameter in theirs.named_parameters():
        assert_close(ours.grads[name], parameter.grad.numpy(), "gradient", name)
    ours.backward(tape, dy)
    for name, parameter in theirs.named_parameters():
        assert_close(ours.grads[name], 2.0 * parameter.grad.numpy(), "gradient", name)


def check_gradients(layer: Any, x: Array) -> None:
    """dx and the parameters' gradients by central differences, float64."""
    y, tape = layer.forward(x)
    dy = np.random.default_rng(1).normal(size=y.shape)

    def value() -> float:
        return float(np.sum(layer(x) * dy))

    layer.zero_grad()
    assert relative_error(layer.backward(tape, dy), numeric_gradient(value, x)) <= CENTRAL_DIFFERENCES
    for name, parameter in layer.parameters.items():
        assert relative_error(layer.grads[name], numeric_gradient(value, parameter)) <= CENTRAL_DIFFERENCES


def normal(*shape: int, dtype: str = "float64", seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_linear(rows: int, inputs: int, outputs: int, dtype: str, bias: bool) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Linear(inputs, outputs, bias=bias, dtype=getattr(torch, dtype))
    check_layer(fr.Linear(inputs, outputs, bias, dtype=dtype), theirs, normal(rows, inputs, dtype=dtype))


def test_linear_axes_and_layouts() -> None:
    """Any leading axes, none included, and any strides."""
    layer = fr.Linear(4, 6, dtype="float64", seed=0)
    weight, bias = layer.parameters["weight"], layer.parameters["bias"]
    for shape in [(4,), (3, 4), (2, 3, 4), (2, 0, 4)]:
        x = normal(*shape)
        assert_close(layer(x), x @ weight.T + bias, "output")
        y, tape = layer.forward(x)
        assert layer.backward(tape, np.ones_like(y)).shape == shape
    for lay in LAYOUTS.values():
        assert_close(layer(lay(normal(3, 5, 4))), normal(3, 5, 4) @ weight.T + bias, "output")


def test_linear_gradients() -> None:
    layer = fr.Linear(4, 3, dtype="float64", seed=0)
    check_gradients(layer, normal(2, 3, 4))
    y, tape = layer.forward(normal(2, 4))
    assert layer.backward(tape, np.ones_like(y), need_dx=False) is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Embedding(11, 7, padding_idx=3, dtype=getattr(torch, dtype))
    ours = fr.Embedding(11, 7, padding_idx=3, dtype=dtype)
    assert not ours.parameters["weight"][3].any()
    load(theirs, ours)
    indices = np.random.default_rng(0).integers(0, 11, (5, 4))
    assert (indices == 3).any() and len(np.unique(indices)) < indices.size
    y, tape = ours.forward(indices)
    ty = theirs(torch.tensor(indices))
    assert np.array_equal(y, ty.detach().numpy()) and np.array_equal(ours(indices.tolist()), y)
    dy = normal(5, 4, 7, dtype=dtype)
    ty.backward(torch.tensor(dy))
    ours.backward(tape, dy)
    assert_close(ours.grads["weight"], theirs.weight.grad.numpy(), "gradient")
    assert not ours.grads["weight"][3].any()
    assert np.array_equal(
        fr.Embedding(11, 7, seed=0)(np.int32(4)), fr.Embedding(11, 7, seed=0).parameters["weight"][4]
    )


def test_embedding_repeats_are_summed() -> None:
    layer = fr.Embedding(4, 2, dtype="float64", seed=0)
    _, tape = layer.forward(np.array([1, 1, 1, 0]))
    layer.backward(tape, np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0], [5.0, 5.0]]))
    assert layer.grads["weight"].tolist() == [[5.0, 5.0], [111.0, 222.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3), (5, 7), (4, 3, 8), (2, 130), (33, 17)], ids=str)
@pytest.mark.parametrize("affine", ["both", "weight", "none"])
def test_layer_norm(shape: tuple[int, ...], dtype: str, affine: str) -> None:
    torch = pytest.importorskip("torch")
    options = {"elementwise_affine": affine != "none", "bias": affine == "both"}
    torch.manual_seed(0)
    theirs = torch.nn.LayerNorm(shape[-1], dtype=getattr(torch, dtype), **options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 1.0, 0.5)
    check_layer(
        fr.LayerNorm(shape[-1], dtype=dtype, **options), theirs, 3.0 + 2.0 * normal(*shape, dtype=dtype)
    )


def test_layer_norm_over_several_axes() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LayerNorm((3, 4), eps=1e-3, dtype=torch.float64)
    check_layer(fr.LayerNorm((3, 4), eps=1e-3, dtype="float64"), theirs, normal(5, 3, 4))


def test_layer_norm_gradients() -> None:
    layer = fr.LayerNorm(5, dtype="float64")
    layer.parameters["weight"] = normal(5)
    layer.parameters["bias"] = normal(5, seed=1)
    check_gradients(layer, normal(3, 5))


def test_layer_norm_of_one_value() -> None:
    """A row of one value is its own mean: y is the bias, and no gradient flows to x."""
    layer = fr.LayerNorm(1)
    layer.parameters["bias"] = 0.75
    y, tape = layer.forward(normal(5, 1, dtype="float32"))
    assert np.array_equal(y, np.full((5, 1), 0.75, "float32"))
    assert not layer.backward(tape, np.ones_like(y)).any()


def test_layer_norm_far_from_zero() -> None:
    """The variance does not cancel with a mean of 8192 far above the spread, nor in constant rows."""
    layer = fr.LayerNorm(64)
    half = np.round(normal(4, 32) * 256) / 256
    x = 8192.0 + np.concatenate([half, -half], axis=1)
    assert np.array_equal(x.astype("float32"), x)
    assert (x.mean(1) == 8192.0).all()
    want = (x - 8192.0) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    assert_close(layer(x.astype("float32")), want, "output")
    assert not layer(np.full((2, 64), 7.0, "float32")).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout(p: float, dtype: str) -> None:
    """Values are dropped or scaled by 1/(1-p) exactly; the mean is preserved; backward has the same mask."""
    layer = fr.Dropout(p, seed=3)
    x = np.ones((100, 1003), dtype)
    y, tape = layer.forward(x)
    assert np.array_equal(np.unique(y), np.array([0.0, 1.0 / (1.0 - p)], dtype))
    share = np.count_nonzero(y) / y.size
    # Six standard deviations of a binomial share.
    assert abs(share - (1.0 - p)) < 6.0 * np.sqrt(p * (1.0 - p) / y.size)
    for axis in (0, 1):
        shares = np.count_nonzero(y, axis=axis) / y.shape[axis]
        assert np.abs(shares - (1.0 - p)).max() < 6.0 * np.sqrt(p * (1.0 - p) / y.shape[axis])
    dy = normal(*x.shape, dtype=dtype)
    dx = layer.backward(tape, dy)
    assert np.array_equal(dx, dy * y)
    assert np.array_equal(layer.backward(tape, dy), dx)


def test_dropout_is_reproducible() -> None:
    x = np.ones((50, 7), "float32")
    first, second, other = fr.Dropout(0.5, seed=1), fr.Dropout(0.5, seed=1), fr.Dropout(0.5, seed=2)
    a, b = first(x), first(x)
    assert np.array_equal(second(x), a) and np.array_equal(second(x), b)
    assert not np.array_equal(a, b) and not np.array_equal(other(x), a)
    state = first.random_state()
    c = first(x)
    first.load_random_state(state)
    assert np.array_equal(first(x), c)


def test_dropout_modes() -> None:
    """Evaluation, and p = 0, change nothing; p = 1 drops everything, NaN and Inf as well."""
    x = normal(5, 6)
    layer = fr.Dropout(0.5, seed=0)
    assert np.array_equal(layer.eval()(x), x)
    assert not np.array_equal(layer.train()(x), x)
    assert np.array_equal(fr.Dropout(0.0)(x), x)
    x[0] = np.inf
    assert not fr.Dropout(1.0, seed=0)(x).any()
    masks = fr.Dropout(0.5, seed=0)
    assert np.array_equal(
        masks(np.asfortranarray(normal(5, 6))) != 0, fr.Dropout(0.5, seed=0)(normal(5, 6)) != 0
    )


def test_dropout_mask_is_independent_of_the_dtype_and_neighbours() -> None:
    """The value at a position depends on seed, offset and position alone."""
    long, short = np.ones(1000, "float32"), np.ones(37, "float32")
    whole = fr._core.dropout(long, 0.3, 5, 9)
    assert np.array_equal(fr._core.dropout(short, 0.3, 5, 9), whole[:37])
    assert np.array_equal(fr._core.dropout(long.astype("float64"), 0.3, 5, 9) != 0, whole != 0)
    assert not np.array_equal(fr._core.dropout(long, 0.3, 5, 10), whole)
    assert not np.array_equal(fr._core.dropout(long, 0.3, 6, 9), whole)


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_dropout_between_layers(cell: str) -> None:
    """Drawn anew at each call, repeated by seed, off in evaluation, the same in backward as in forward."""
    x = normal(6, 3, 4)

    def make() -> Any:
        return getattr(fr, cell)(4, 5, 2, dropout=0.4, bidirectional=True, dtype="float64", seed=2)

    layer = make()
    noise = layer.random_state()
    y, _, tape = layer.forward(x)
    assert np.array_equal(make()(x)[0], y)
    assert not np.array_equal(layer(x)[0], y)
    plain = layer.eval()(x)[0]
    assert np.array_equal(layer(x)[0], plain) and not np.array_equal(plain, y)
    layer.train()
    dy = normal(*y.shape)

    def value() -> float:
        layer.load_random_state(noise)
        return float(np.sum(layer(x)[0] * dy))

    dx, _ = layer.backward(tape, dy)
    assert relative_error(dx, numeric_gradient(value, x)) <= CENTRAL_DIFFERENCES
    name = "weight_ih_l0_reverse"
    numeric = numeric_gradient(value, layer.parameters[name])
    assert relative_error(layer.grads[name], numeric) <= CENTRAL_DIFFERENCES


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(reduction: str, dtype: str, smoothing: float, weighted: bool) -> None:
    torch = pytest.importorskip("torch")
    for rows, classes in ((1, 2), (9, 5), (33, 17), (6, 300)):
        logits = 3.0 * normal(rows, classes, dtype=dtype)
        rng = np.random.default_rng(rows)
        targets = rng.integers(0, classes, rows)
        if rows > 1:
            targets[1] = -100
        weight = rng.uniform(0.1, 2.0, classes).astype(dtype) if weighted else None
        tlogits = torch.tensor(logits, requires_grad=True)
        tloss = torch.nn.functional.cross_entropy(
            tlogits,
            torch.tensor(targets),
            None if weight is None else torch.tensor(weight),
            reduction=reduction,
            label_smoothing=smoothing,
        )
        tloss.sum().backward()
        loss, dlogits = fr.cross_entropy(
            logits, targets, weight, reduction=reduction, label_smoothing=smoothing
        )
        assert isinstance(loss, np.ndarray if reduction == "none" else float)
        assert_close(loss, tloss.detach().numpy(), "loss", dtype=dtype)
        assert dlogits.dtype == logits.dtype
        assert_close(dlogits, tlogits.grad.numpy(), "gradient")
        assert rows == 1 or not dlogits[1].any()


def test_cross_entropy_gradients() -> None:
    logits, targets = normal(2, 3, 5), np.array([[0, 4, 2], [7, 1, 1]])
    weight = np.array([1.0, 0.5, 2.0, 0.1, 0.7])
    options = {"weight": weight, "ignore_index": 7, "label_smoothing": 0.2}
    for reduction in ("mean", "sum", "none"):

        def value(kind: str = reduction) -> float:
            return float(np.sum(fr.cross_entropy(logits, targets, reduction=kind, **options)[0]))

        dlogits = fr.cross_entropy(logits, targets, reduction=reduction, **options)[1]
        assert relative_error(dlogits, numeric_gradient(value, logits)) <= CENTRAL_DIFFERENCES


def test_cross_entropy_extremes() -> None:
    """Large logits overflow nowhere; the mean over no valid target is NaN, with gradient zero."""
    for dtype, big in (("float32", 1e30), ("float64", 1e300)):
        logits = np.array([[big, -big, 0.0], [-big, -big, -big]], dtype)
        loss, dlogits = fr.cross_entropy(logits, np.array([0, 1]), reduction="none")
        assert_close(loss, np.array([0.0, np.log(3.0)]), "loss")
        assert_close(dlogits, np.array([[0.0, 0.0, 0.0], [1 / 3, -2 / 3, 1 / 3]]), "gradient")
    loss, dlogits = fr.cross_entropy(normal(2, 3), np.array([-100, -100]))
    assert np.isnan(loss) and not dlogits.any()
    loss, dlogits = fr.cross_entropy(np.zeros((0, 3)), np.zeros(0, np.int64), reduction="sum")
    assert loss == 0.0 and dlogits.shape == (0, 3)


def test_cross_entropy_of_poisoned_ignored_rows() -> None:
    """A row whose target is ignored contributes neither loss nor gradient, whatever its logits are."""
    logits = normal(3, 4)
    targets = np.array([1, -100, 2])
    want = fr.cross_entropy(logits, targets)
    logits[1] = np.nan
    loss, dlogits = fr.cross_entropy(logits, targets)
    assert loss == want[0] and np.array_equal(dlogits, want[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mse_loss(reduction: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    pred, target = normal(4, 5, dtype=dtype), normal(4, 5, dtype=dtype, seed=1)
    tpred = torch.tensor(pred, requires_grad=True)
    tloss = torch.nn.functional.mse_loss(tpred, torch.tensor(target), reduction=reduction)
    tloss.sum().backward()
    loss, dpred = fr.mse_loss(pred, target, reduction=reduction)
    assert_close(loss, tloss.detach().numpy(), "loss", dtype=dtype)
    assert dpred.dtype == pred.dtype
    assert_close(dpred, tpred.grad.numpy(), "gradient")


def test_dropout_in_place() -> None:
    x = np.random.default_rng(0).normal(size=(3, 50))
    want = _core.dropout(x, 0.5, 1, 2)
    out = x.copy()
    assert _core.dropout(out, 0.5, 1, 2, out) is out
    assert np.array_equal(out, want)
    for bad, error in ((x[:2], ValueError), (x.astype("float32"), TypeError), (x[::1], ValueError)):
        before = bad.copy()
        with pytest.raises(error, match=r"^out: expected"):
            _core.dropout(x, 0.5, 1, 2, bad)
        assert np.array_equal(bad, before)


def test_integers_and_logits_of_any_alignment() -> None:
    """As all other arrays, those are copied where kernels cannot read them."""
    tokens, logits = np.array([[1, 2, 0]]), np.random.default_rng(0).normal(size=(1, 3, 4))
    embedding = fr.Embedding(3, 4, dtype="float64", seed=0)
    lstm = fr.LSTM(4, 5, dtype="float64", seed=0)
    lengths = np.array([1, 0, 1])
    for lay in (LAYOUTS[name] for name in ("byte_misaligned", "transposed", "negative", "read_only")):
        assert np.array_equal(embedding(lay(tokens)), embedding(tokens))
        looked_up = embedding.lookup(lay(tokens))
        assert np.array_equal(
            lstm(looked_up, lengths=lay(lengths))[0], lstm(embedding(tokens), lengths=lengths)[0]
        )
        weight = np.arange(1, logits.shape[-1] + 1, dtype=logits.dtype)
        for got, want in zip(
            fr.cross_entropy(lay(logits), lay(tokens), weight=lay(weight)),
            fr.cross_entropy(logits, tokens, weight=weight),
            strict=True,
        ):
            assert np.array_equal(got, want)


def test_a_gradient_whose_shape_was_set_is_refused() -> None:
    embedding = fr.Embedding(5, 3, padding_idx=4, seed=0)
    y, tape = embedding.forward([1, 4])
    embedding.grads["weight"].shape = (1, 15)
    for given, dy in ((tape, y), (embedding.lookup([[1]]), np.zeros((5, 3), np.float32))):
        with pytest.raises(ValueError, match=r"^grads\['weight'\]: expected shape \(V, D\) = \(5, 3\)"):
            embedding.backward(given, dy)
