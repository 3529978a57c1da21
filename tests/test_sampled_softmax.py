"""SampledSoftmax against the formula written out, and against the whole softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import fusedrnn as fr

SIZE, CLASSES = 5, 11


def layer(samples: int = 6, distribution: Any = "log_uniform", dtype: str = "float64") -> fr.SampledSoftmax:
    return fr.SampledSoftmax(SIZE, CLASSES, samples, distribution, dtype=dtype, seed=3)


def problem(dtype: str = "float64") -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((4, 3, SIZE)).astype(dtype), rng.integers(0, CLASSES, (4, 3))


def by_formula(softmax: Any, h: Any, targets: Any) -> Any:
    """Losses under the next draw of the layer."""
    chances = np.log((np.arange(CLASSES) + 2) / (np.arange(CLASSES) + 1)) / np.log(CLASSES + 1)
    if softmax.distribution == "uniform":
        chances[:] = 1 / CLASSES
    classes, shifts = softmax._draw()
    counts = np.zeros(CLASSES)
    counts[classes] = np.exp(shifts) * softmax.n_samples * chances[classes]
    assert abs(counts - np.round(counts)).max() < 1e-9
    assert round(counts.sum()) == softmax.n_samples
    o = h @ softmax.parameters["weight"].T + softmax.parameters["bias"]
    losses = np.empty(targets.shape)
    for place in np.ndindex(targets.shape):
        t, e = targets[place], np.exp(o[place])
        others = np.arange(CLASSES) != t
        z = e[t] + (counts / (softmax.n_samples * chances) * e)[others].sum()
        losses[place] = -np.log(e[t] / z)
    return losses


@pytest.mark.parametrize("distribution", ["log_uniform", "uniform"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_formula(distribution: str, dtype: str) -> None:
    h, targets = problem(dtype)
    for samples in (1, 6, 40):
        softmax = layer(samples, distribution, dtype)
        wanted = by_formula(layer(samples, distribution), h.astype("float64"), targets)
        losses, dh = softmax.loss(h, targets, reduction="none")
        assert losses.dtype == dh.dtype == dtype
        assert_close(losses, wanted, "loss")


@pytest.mark.once
def test_gradients() -> None:
    h, targets = problem()
    targets[1, 2] = -7
    state = layer().random_state()
    softmax = layer()

    def value() -> float:
        softmax.load_random_state(state)
        return float(softmax.loss(h, targets, -7)[0])

    softmax.load_random_state(state)
    _, dh = softmax.loss(h, targets, -7)
    grads = {name: grad.copy() for name, grad in softmax.grads.items()}
    for array, gradient in ((h, dh), *((softmax.parameters[name], grads[name]) for name in grads)):
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + 1e-6
            up = value()
            array[place] = kept - 1e-6
            down = value()
            array[place] = kept
            assert abs((up - down) / 2e-6 - gradient[place]) < 1e-8
    assert not dh[1, 2].any()


@pytest.mark.once
def test_many_samples_and_evaluation_are_the_whole_softmax() -> None:
    h, targets = problem()
    for distribution in ("uniform", "log_uniform"):
        softmax = layer(400_000, distribution)
        wanted, _ = fr.cross_entropy(softmax(h), targets)
        assert softmax.loss(h, targets)[0] == pytest.approx(wanted, rel=2e-3)
        softmax.zero_grad()
        loss, dh = softmax.eval().loss(h, targets)
        assert loss == pytest.approx(wanted, rel=1e-12)
        whole = fr.Linear(SIZE, CLASSES, dtype="float64", init=None)
        whole.load_state_dict(softmax.state_dict())
        logits, tape = whole.forward(h)
        dwhole = whole.backward(tape, fr.cross_entropy(logits, targets)[1])
        assert_close(dh, dwhole, "gradient")
        for name, grad in softmax.grads.items():
            assert_close(grad, whole.grads[name], "gradient", name)


@pytest.mark.once
def test_draws_go_on_and_repeat_from_a_state() -> None:
    h, targets = problem()
    softmax = layer()
    state = softmax.random_state()
    first, second = softmax.loss(h, targets)[0], softmax.loss(h, targets)[0]
    assert first != second
    softmax.load_random_state(state)
    assert softmax.loss(h, targets)[0] == first
    softmax.requires_grad_(False).zero_grad()
    softmax.loss(h, targets)
    assert not any(grad.any() for grad in softmax.grads.values())


@pytest.mark.once
def test_errors() -> None:
    h, targets = problem()
    softmax = layer()
    for arguments, kind, message in (
        ((h[..., :4], targets), ValueError, "h"),
        ((h.astype("float32"), targets), TypeError, "h"),
        ((h, targets[:2]), ValueError, r"targets: expected shape \(...\) = \(4, 3\)"),
        ((h, targets + CLASSES), ValueError, r"targets: expected values in \[0, C\) = \[0, 11\)"),
        ((h, targets * 1.0), TypeError, "targets"),
        ((h, targets, -100, "all"), ValueError, "reduction"),
    ):
        with pytest.raises(kind, match=message):
            softmax.loss(*arguments)
    assert not any(grad.any() for grad in softmax.grads.values())
    for sizes, message in (((0, 5, 2), "in_features"), ((2, 1, 2), "n_classes"), ((2, 5, 0), "n_samples")):
        with pytest.raises(ValueError, match=message):
            fr.SampledSoftmax(*sizes)
    with pytest.raises(ValueError, match="distribution"):
        fr.SampledSoftmax(2, 5, 2, "zipf")
    assert repr(softmax) == "SampledSoftmax(5, 11, 6, distribution='log_uniform', dtype='float64')"
