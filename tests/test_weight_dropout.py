"""weight_dropout: masks on weight_hh, against the same network with weights that were masked before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from masked_reference import philox
from support import Array, make_module, num_threads, numeric_gradient, states_of
from tolerances import CENTRAL_DIFFERENCES, relative_error

import fusedrnn as fr
from fusedrnn import _core

CELLS = ["rnn_tanh", "lstm", "lstm_proj", "gru", "mgu"]
P = 0.3


def normal(*shape: int, dtype: str = "float64") -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def hidden_names(module: Any) -> list[str]:
    return [name for name in module.parameters if name.startswith("weight_hh")]


def masks_of(module: Any, tape: Any) -> dict[str, Array]:
    """The factors, 0 or 1/(1-p), of each weight_hh in the call that made the tape."""
    shapes = {name: module.parameters[name].shape for name in hidden_names(module)}
    pairs = zip(shapes.items(), tape.weight_dropout, strict=True)
    return {name: factors(shape, *drop).astype(module.dtype) for (name, shape), drop in pairs}


def factors(shape: tuple[int, ...], p: float, seed: int, stream: int) -> Array:
    """The lower and the upper halves of each Philox word, where dropout takes whole words."""
    size = int(np.prod(shape))
    words = philox(np.arange(-(-size // 8)), stream, seed)
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], axis=2).ravel()[:size]
    kept: Array = halves >= round(p * 2**16)
    return (kept / (1 - p) if p < 1 else 0.0 * kept).reshape(shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_is_the_network_of_masked_weights(
    cell: str, layers: int, directions: int, recompute: bool, dtype: str
) -> None:
    """Outputs and gradients have the bits of a network whose weights were masked beforehand."""
    options = {"bidirectional": directions == 2, "recompute": recompute, "dtype": dtype}
    ours = make_module(cell, 4, 9, layers, weight_dropout=P, **options)
    plain = make_module(cell, 4, 9, layers, **options)
    x, lengths = normal(6, 3, 4, dtype=dtype), np.array([6, 0, 4])
    resets = np.random.default_rng(0).random((6, 3)) < 0.2
    y, final, tape = ours.forward(x, lengths=lengths, resets=resets)
    masks = masks_of(ours, tape)
    plain.load_state_dict({n: a * masks.get(n, 1) for n, a in ours.state_dict().items() if n != "cell"})
    expected, end, other = plain.forward(x, lengths=lengths, resets=resets)
    assert np.array_equal(y, expected)
    dy = normal(*y.shape, dtype=dtype)
    # What is in the gradients stays, and the tape serves twice.
    for _ in range(2):
        dx, dstate = ours.backward(tape, dy, final)
        wanted, dstart = plain.backward(other, dy, end)
        assert np.array_equal(dx, wanted)
        for mine, theirs in zip(states_of(dstate), states_of(dstart), strict=True):
            assert np.array_equal(mine, theirs)
    for name, grad in ours.grads.items():
        want = plain.grads[name] * masks.get(name, 1)
        np.testing.assert_allclose(grad, want, rtol=4 * np.finfo(dtype).eps, atol=1e-6 * np.abs(want).max())
        assert name not in masks or not grad[masks[name] == 0].any()


def test_masks_have_the_rate_and_differ() -> None:
    """Each layer, direction and call has masks of its own, whose rate is p."""
    net = fr.GRU(3, 60, 2, bidirectional=True, weight_dropout=P, seed=3)
    x = normal(2, 1, 3, dtype="float32")
    found = []
    for _ in range(2):
        found += [mask.ravel() != 0 for mask in masks_of(net, net.forward(x)[2]).values()]
    size = found[0].size
    # Six standard deviations of a binomial share.
    assert all(abs(kept.mean() - (1 - P)) < 6 * np.sqrt(P * (1 - P) / size) for kept in found)
    correlations = np.corrcoef(np.array(found)) - np.eye(len(found))
    assert np.abs(correlations).max() < 6 / np.sqrt(size)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_by_central_differences(cell: str) -> None:
    net = make_module(cell, 3, 4, 2, weight_dropout=P, dropout=0.2)
    x = normal(4, 2, 3)
    noise = net.random_state()
    y, _, tape = net.forward(x)
    dy = normal(*y.shape)

    def value() -> float:
        net.load_random_state(noise)
        return float(np.sum(net(x)[0] * dy))

    dx, _ = net.backward(tape, dy)
    assert relative_error(dx, numeric_gradient(value, x)) <= CENTRAL_DIFFERENCES
    for name in ("weight_hh_l0", "weight_ih_l1"):
        numeric = numeric_gradient(value, net.parameters[name])
        assert relative_error(net.grads[name], numeric) <= CENTRAL_DIFFERENCES


def test_evaluation_and_seeds() -> None:
    """Evaluation is the expectation, the weights themselves; a seed gives the same masks, in any team."""
    net, plain = (fr.LSTM(4, 40, weight_dropout=p, seed=5) for p in (P, 0.0))
    x = normal(5, 3, 4, dtype="float32")
    state = net.random_state()
    results = []
    for threads in (1, 2, 3):
        with num_threads(threads):
            net.load_random_state(state)
            net.zero_grad()
            y, _, tape = net.forward(x)
            net.backward(tape, np.ones_like(y))
            results.append([y, *(grad.copy() for grad in net.grads.values())])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert not np.array_equal(net(x)[0], results[0][0])
    net.eval()
    assert np.array_equal(net(x)[0], plain(x)[0])
    assert net.forward(x)[2].weight_dropout == (None,)
    assert np.array_equal(net.stream(3)(x[0])[0], plain.stream(3)(x[0])[0])


def test_frozen_networks_get_no_gradients() -> None:
    net = fr.GRU(2, 3, weight_dropout=P, seed=0).requires_grad_(False)
    y, _, tape = net.forward(normal(3, 1, 2, dtype="float32"))
    net.backward(tape, np.ones_like(y))
    assert not any(grad.any() for grad in net.grads.values())


@pytest.mark.once
def test_errors_and_repr() -> None:
    assert repr(fr.GRU(2, 3, weight_dropout=0.5)) == "GRU(2, 3, weight_dropout=0.5)"
    with pytest.raises(ValueError, match=r"weight_dropout: expected 0, since .* has no weight_hh"):
        fr.MinGRU(2, 3, weight_dropout=0.5)
    with pytest.raises(ValueError, match="weight_dropout"):
        fr.LSTM(2, 3, weight_dropout=1.5)
    with pytest.raises(TypeError, match="weight_dropout"):
        fr.RNN(2, 3, weight_dropout="0.5")  # type: ignore[arg-type]


def test_kernels_refuse_masks_that_are_none() -> None:
    x = normal(2, 1, 2, dtype="float32")

    def run(net: Any, drop: Any) -> None:
        _core.forward(net._spec.name, x, net._plan.layers[0][0].weights, hidden_drop=drop)

    with pytest.raises(ValueError, match="hidden_drop: expected None, since the cell has no weight_hh"):
        run(fr.MinGRU(2, 3), (0.5, 0, 0))
    with pytest.raises(ValueError, match=r"p: expected a number in \[0, 1\], got 2"):
        run(fr.LSTM(2, 3), (2.0, 0, 0))
    with pytest.raises(ValueError, match="hidden_drop"):
        run(fr.LSTM(2, 3), (0.5, 0))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_ends_of_the_rate(p: float) -> None:
    """p = 0 keeps every element as it is, p = 1 none."""
    x = normal(257)
    assert np.array_equal(_core.dropout(x, p, 3, 4), x if p == 0 else np.zeros_like(x))
    assert_kernel_masks(7, p, "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [1, 6, 16, 145])
def test_a_mask_on_weights_of_any_size(hidden: int, dtype: str) -> None:
    """Masks whose elements fill no byte, no word and no vector, with rates that are no multiple of 2^-16."""
    for p in (1e-6, 0.1, 0.5, 0.7):
        assert_kernel_masks(hidden, p, dtype)


def assert_kernel_masks(hidden: int, p: float, dtype: str) -> None:
    """y and the gradients of the kernels have the bits of those with weights that were masked before."""
    rng = np.random.default_rng(hidden)
    x, w_ih, w_hh = (rng.standard_normal(s).astype(dtype) for s in ((4, 3, 2), (hidden, 2), (hidden, hidden)))
    w_hh.ravel()[::3] = 0.0  # weights that are zero have gradients where they are kept
    drop = (p, 2**40 + 5, 2**33 + 4)
    mask = factors(w_hh.shape, *drop).astype(dtype)
    y, _, tape = _core.forward("rnn_tanh", x, (w_ih, w_hh, None, None, None), save=True, hidden_drop=drop)
    expected, _, plain = _core.forward("rnn_tanh", x, (w_ih, w_hh * mask, None, None, None), save=True)
    assert np.array_equal(y, expected)
    dy, before = rng.standard_normal(y.shape).astype(dtype), rng.standard_normal(w_hh.shape).astype(dtype)
    sums = (np.zeros_like(w_ih), before.copy(), None, None, None)
    dx, _, _ = _core.backward(tape, dy, None, sums, True)
    wanted, _, (dw_ih, dw_hh, *_) = _core.backward(plain, dy, None, None, True)
    assert np.array_equal(dx, wanted) and np.array_equal(sums[0], dw_ih)
    assert np.array_equal(sums[1], before + dw_hh * mask)


def test_it_stays_what_the_network_was_made_with() -> None:
    """A network without it keeps a call that knows nothing of masks."""
    net = fr.LSTM(3, 4, seed=0)
    with pytest.raises(AttributeError, match="weight_dropout"):
        net.weight_dropout = 0.5  # type: ignore[misc]
    assert net.weight_dropout == 0.0 and fr.LSTM(3, 4, weight_dropout=0.5).weight_dropout == 0.5
