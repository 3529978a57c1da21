"""Layers, single-step cells, losses and optimisers on a GPU against the same on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_support import assert_same, host, own_or, same_library
from support import make_module, states_of
from tolerances import assert_close

import fusedrnn as fr


@pytest.mark.parametrize("make", [fr.RNNCell, fr.LSTMCell, fr.GRUCell])
@pytest.mark.parametrize("name", ["own", "torch"])
def test_cells(name: str, make: Any, where: str) -> None:
    convert = own_or(where, name)
    plain, moved = make(3, 5, seed=1), make(3, 5, seed=1).to("cuda")
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    state, tape = plain.forward(x)
    got_state, got_tape = moved.forward(convert(x))
    assert_same(states_of(got_state), states_of(state))
    state, tape = plain.forward(x, state)
    got_state, got_tape = moved.forward(convert(x), got_state)
    assert_same(states_of(got_state), states_of(state))
    dx, dstate = plain.backward(tape, state)
    got_dx, got_dstate = moved.backward(got_tape, convert(state))
    assert_same(got_dx, dx, "gradient")
    assert_same(states_of(got_dstate), states_of(dstate), "gradient")
    assert_same(host(moved.flat_grads), plain.flat_grads, "gradient")
    assert_same(states_of(moved(convert(x[0]))), states_of(plain(x[0])))


LAYERS: dict[str, tuple[Callable[[], Any], Any]] = {
    "linear": (lambda: fr.Linear(4, 3, seed=1), (2, 3, 4)),
    "linear_no_bias": (lambda: fr.Linear(4, 3, bias=False, seed=1, dtype="float64"), (5, 4)),
    "layer_norm": (lambda: fr.LayerNorm((3, 4)), (2, 3, 4)),
    "layer_norm_no_bias": (lambda: fr.LayerNorm(4, bias=False, dtype="float64"), (2, 4)),
    "layer_norm_plain": (lambda: fr.LayerNorm(4, elementwise_affine=False), (2, 4)),
    "dropout": (lambda: fr.Dropout(0.3, seed=1), (7, 5)),
    "dropout_all": (lambda: fr.Dropout(1.0, seed=1), (3, 2)),
    "dropout_eval": (lambda: fr.Dropout(0.3, seed=1).eval(), (7, 5)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["own", "torch"])
def test_layers(name: str, layer: str, where: str) -> None:
    make, shape = LAYERS[layer]
    convert = own_or(where, name)
    plain, moved = make(), make().to("cuda")
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(plain.dtype)
    for _ in range(2):
        y, tape = plain.forward(x)
        got_y, got_tape = moved.forward(convert(x))
        assert_same(got_y, y)
        assert same_library(got_y, convert(x))
        assert got_tape.shape == y.shape
        dy = rng.normal(size=y.shape).astype(y.dtype)
        assert_same(moved.backward(got_tape, convert(dy)), plain.backward(tape, dy), "gradient")
        assert_same(host(moved.flat_grads), plain.flat_grads, "gradient")
    if "dropout" in layer:
        np.testing.assert_array_equal(host(got_y), y)
    swapped = np.swapaxes(x, 0, 1) if x.ndim == 3 and layer == "linear" else x
    assert_same(moved.eval()(convert(swapped)), plain.eval()(swapped))


def test_embedding(where: str) -> None:
    plain, moved = (
        fr.Embedding(7, 3, padding_idx=2, seed=1),
        fr.Embedding(7, 3, padding_idx=2, seed=1).to("cuda"),
    )
    indices = np.array([[1, 2, 1], [6, 1, 0]])
    dy = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    y, tape = plain.forward(indices)
    got_y, got_tape = moved.forward(indices)
    assert_same(got_y, y)
    plain.backward(tape, dy)
    for convert in (own_or(where, "own"), own_or(where, "torch")):
        moved.zero_grad()
        moved.backward(got_tape, convert(dy))
        assert_same(host(moved.flat_grads), plain.flat_grads, "gradient")
    assert_same(moved(own_or(where, "torch")(indices)), y)
    with pytest.raises(ValueError, match=r"indices: expected values in \[0, V\) = \[0, 7\), got 0\.\.7"):
        moved([0, 7])
    nothing = np.zeros(0, int)
    assert moved.forward(nothing)[0].shape == (0, 3)
    moved.backward(moved.forward(nothing)[1], own_or(where, "own")(np.zeros((0, 3), np.float32)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["own", "torch"])
def test_losses(name: str, reduction: Any, where: str) -> None:
    if where == "numpy" and name == "own":
        pytest.skip("NumPy's arrays go to the CPU, whose own tests cover them")
    convert = own_or(where, name)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 3, 5)).astype(np.float32)
    targets = rng.integers(0, 5, (4, 3))
    targets[0, 0] = -100
    weight = rng.random(5).astype(np.float32)
    for options in (
        {},
        {"label_smoothing": 0.2},
        {"weight": weight, "label_smoothing": 0.1},
        {"weight": weight},
    ):
        want = fr.cross_entropy(logits, targets, reduction=reduction, **options)
        given = {key: convert(value) if key == "weight" else value for key, value in options.items()}
        got = fr.cross_entropy(convert(logits), targets, reduction=reduction, **given)
        assert_same(got[0], np.float32(want[0]) if reduction != "none" else want[0], "loss")
        assert_same(got[1], want[1], "gradient")
        assert same_library(got[1], convert(logits))
    pred, target = logits[0], logits[1]
    want = fr.mse_loss(pred, target, reduction)
    got = fr.mse_loss(convert(pred), convert(target), reduction)
    assert_same(got[0], np.float32(want[0]) if reduction != "none" else want[0], "loss")
    assert_same(got[1], want[1], "gradient")
    with pytest.raises(ValueError, match=r"targets: expected values in"):
        fr.cross_entropy(convert(logits), targets + 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 31, 256, 1500])
def test_rows_that_the_threads_of_a_block_share(width: int, dtype: Any, where: str) -> None:
    if where == "numpy":
        pytest.skip("NumPy's arrays go to the CPU, whose own tests cover them")
    own = own_or(where, "own")
    rng = np.random.default_rng(width)
    plain, moved = fr.LayerNorm(width, dtype=dtype), fr.LayerNorm(width, dtype=dtype).to("cuda")
    x, dy = (rng.normal(size=(70, width)).astype(dtype) for _ in range(2))
    x[3] *= np.asarray(1e30, dtype)  # squares overflow in float32
    y, tape = plain.forward(x)
    got, got_tape = moved.forward(own(x))
    assert_same(got, y)
    assert_same(moved.backward(got_tape, own(dy)), plain.backward(tape, dy), "gradient")
    assert_same(host(moved.flat_grads), plain.flat_grads, "gradient")
    targets = rng.integers(0, width, 70)
    targets[5] = -100
    weight = rng.random(width).astype(dtype)
    for options in ({}, {"weight": weight, "label_smoothing": 0.1}):
        given = {key: own(value) if key == "weight" else value for key, value in options.items()}
        loss, dlogits = fr.cross_entropy(dy, targets, **options)
        got_loss, got_dlogits = fr.cross_entropy(own(dy), targets, **given)
        assert_same(np.asarray(got_loss, dtype), np.asarray(loss, dtype), "loss")
        assert_same(got_dlogits, dlogits, "gradient")


OPTIMISERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda m: fr.optim.SGD(m, 0.1, weight_decay=0.01),
    "momentum": lambda m: fr.optim.SGD(m, 0.1, momentum=0.9, dampening=0.1),
    "nesterov": lambda m: fr.optim.SGD(m, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda m: fr.optim.Adam(m, 0.01, weight_decay=0.01),
    "adamw": lambda m: fr.optim.AdamW(m, 0.01),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers(name: str, where: str) -> None:
    plain, moved = make_module("gru", 3, 4), make_module("gru", 3, 4).to("cuda")
    optimisers = [OPTIMISERS[name](module) for module in (plain, moved)]
    rng = np.random.default_rng(0)
    convert = own_or(where, "own")
    for _ in range(4):
        gradient = rng.normal(size=plain.flat_grads.shape)
        for module, value in ((plain, gradient), (moved, convert(gradient))):
            module.flat_grads[...] = value
            fr.clip_grad_value(module, 1.5)
        norms = [fr.clip_grad_norm(module, 0.8) for module in (plain, moved)]
        assert_same(np.float64(norms[1]), np.float64(norms[0]))
        for optimiser in optimisers:
            optimiser.step()
        assert_same(host(moved.flat_parameters), plain.flat_parameters, "parameter")
    saved = optimisers[1].state_dict()
    for key, value in optimisers[0].state_dict().items():
        assert type(saved[key]) is np.ndarray
        if "." in key:
            assert_same(saved[key], value, "parameter")
    fresh = OPTIMISERS[name](moved)
    fresh.load_state_dict(saved)
    for key, value in fresh.state_dict().items():
        np.testing.assert_array_equal(value, saved[key])
    moved.to("cpu")
    with pytest.raises(
        RuntimeError, match=r"GRU: expected it on cuda:0 as when the optimiser was made, got it on cpu"
    ):
        optimisers[1].step()


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_norms(p: float, where: str) -> None:
    plain, moved = fr.Linear(3, 2, dtype="float64"), fr.Linear(3, 2, dtype="float64").to("cuda")
    convert = own_or(where, "own")
    for gradient in (np.zeros(8), np.full(8, 1e300), np.arange(-4.0, 4.0), np.array([1, np.inf] * 4)):
        for module, value in ((plain, gradient), (moved, convert(gradient))):
            module.flat_grads[...] = value
        norms = [fr.clip_grad_norm(module, 1.0, p) for module in (plain, moved)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-12)
    moved.flat_grads[...] = convert(np.array([1, np.nan] * 4))
    assert np.isnan(fr.clip_grad_norm(moved, 1.0, p))


def test_training_reaches_the_same_weights(where: str) -> None:
    class Net(fr.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = fr.LSTM(3, 6, 2, dropout=0.2, seed=1)
            self.head = fr.Linear(6, 4, seed=2)

    convert = own_or(where, "own")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 3, 3)).astype(np.float32)
    targets = rng.integers(0, 4, (5, 3))
    nets = [Net(), Net().to("cuda")]
    for net, given in zip(nets, (x, convert(x)), strict=True):
        adam = fr.optim.Adam(net, 0.01)
        for _ in range(3):
            adam.zero_grad()
            y, _, tape = net.rnn.forward(given)
            logits, head_tape = net.head.forward(y)
            _, dlogits = fr.cross_entropy(logits, targets)
            net.rnn.backward(tape, net.head.backward(head_tape, dlogits), need_dx=False)
            adam.step()
    for name, value in nets[0].state_dict().items():
        assert_close(nets[1].state_dict()[name], value, "parameter", name)


def test_refused_arrays_of_layers_and_losses(where: str) -> None:
    own = own_or(where, "own")
    wide, x = np.zeros((2, 3)), np.zeros((2, 3), np.float32)
    norm, linear = fr.LayerNorm(3).to("cuda"), fr.Linear(3, 3).to("cuda")
    with pytest.raises(TypeError, match=r"x: expected dtype float32 as weight, got float64"):
        norm(own(wide))
    with pytest.raises(TypeError, match=r"dy: expected .*float32, got .*float64"):
        linear.backward(linear.forward(own(x))[1], own(wide))
    if where == "numpy":
        return
    with pytest.raises(TypeError, match=r"weight: expected dtype float32 as logits, got float64"):
        fr.cross_entropy(own(x), [0, 1], weight=own(wide[0]))
    with pytest.raises(TypeError, match=r"weight: expected an array on cuda:0, got a ndarray"):
        fr.cross_entropy(own(x), [0, 1], weight=x[0])
