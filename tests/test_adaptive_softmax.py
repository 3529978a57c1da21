"""AdaptiveSoftmax against its formula written out class by class."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import fusedrnn as fr

pytestmark = pytest.mark.once

SIZE, CLASSES, CUTOFFS = 9, 23, (4, 8, 9)


def layer(dtype: str = "float64", bias: bool = True, **options: Any) -> fr.AdaptiveSoftmax:
    return fr.AdaptiveSoftmax(SIZE, CLASSES, CUTOFFS, 2.0, bias, dtype=dtype, seed=3, **options)


def inputs(dtype: str = "float64") -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    h, targets = rng.normal(0, 2, (6, 5, SIZE)).astype(dtype), rng.integers(0, CLASSES, (6, 5))
    targets[5, 3] = CUTOFFS[1]  # alone in its cluster
    return h, targets


def log_softmax(logits: Any) -> Any:
    return logits - np.log(np.exp(logits).sum())


def written_out(state: dict[str, Any], h: Any) -> Any:
    """log P of all classes for one h, in float64."""
    state = {name: array.astype(float) for name, array in state.items()}
    head = log_softmax(state["head.weight"] @ h + state.get("head.bias", 0.0))
    parts = [head[: CUTOFFS[0]]]
    for i in range(len(CUTOFFS)):
        logits = state[f"tail.{i}.1.weight"] @ (state[f"tail.{i}.0.weight"] @ h)
        parts.append(head[CUTOFFS[0] + i] + log_softmax(logits))
    return np.concatenate(parts)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("bias", [False, True])
def test_values(dtype: str, bias: bool) -> None:
    softmax = layer(dtype, bias)
    h, targets = inputs(dtype)
    want = np.array([written_out(softmax.state_dict(), row) for row in h.reshape(-1, SIZE).astype(float)])
    want = want.reshape(6, 5, CLASSES)
    found = softmax.log_prob(h)
    assert found.dtype == dtype
    assert_close(found, want, "output")
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=1e-5)
    best = softmax.predict(h)
    np.testing.assert_array_equal(best, want.argmax(-1))
    assert best.dtype == np.int64 and len(set(np.searchsorted(CUTOFFS, best, "right").flat)) > 2
    each = -np.take_along_axis(want, targets[..., None], -1)[..., 0]
    for reduction, value in (("none", each), ("sum", each.sum()), ("mean", each.mean())):
        assert_close(np.array(softmax.loss(h, targets, reduction=reduction)[0]), value, "loss", dtype=dtype)
    one, dh = softmax.loss(h[0, 0], targets[0, 0])
    assert_close(np.array(one), each[0, 0], "loss", dtype=dtype)
    assert dh.shape == (SIZE,)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [-100, 2, 20])
def test_gradients(reduction: Any, ignored: int) -> None:
    softmax = layer()
    h, targets = inputs()
    targets[0, :3] = ignored

    def total() -> float:
        loss, _ = softmax.loss(h, targets, ignored, reduction)
        return float(np.sum(loss))

    _, dh = softmax.loss(h, targets, ignored, reduction)
    grads = {name: grad.copy() for name, grad in softmax.grads.items()}
    softmax.loss(h, targets, ignored, reduction)
    for name, grad in softmax.grads.items():
        assert_close(grad, 2 * grads[name], "gradient", name)
    parameters = softmax.parameters
    assert not dh[targets == ignored].any() and dh[targets != ignored].all()
    rng = np.random.default_rng(1)
    for name, array, gradient in (("h", h, dh), *((n, parameters[n], grads[n]) for n in parameters)):
        assert gradient.any() == (not name.startswith("tail.1")), name  # a cluster of one class is certain
        for place in rng.integers(0, array.size, 12):
            index = np.unravel_index(place, array.shape)
            kept, step = array[index], 1e-3
            values = []
            for k in (-2, -1, 1, 2):
                array[index] = kept + k * step
                values.append(total())
            array[index] = kept
            slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
            np.testing.assert_allclose(gradient[index], slope, rtol=1e-7, atol=1e-9, err_msg=name)


def test_each_cluster_alone() -> None:
    """Targets of one cluster leave the gradients of the others 0, and of none those of all."""
    h, targets = inputs()
    edges = (0, *CUTOFFS, CLASSES)
    for part, (low, high) in enumerate(pairwise(edges)):
        softmax = layer()
        _, dh = softmax.loss(h, np.clip(targets, low, high - 1))
        assert dh.all() and softmax.grads["head.weight"].any()
        for i in range(len(CUTOFFS)):
            assert softmax.grads[f"tail.{i}.0.weight"].any() == (i == part - 1 and high - low > 1)
    for rows in (0, 3):
        softmax = layer()
        loss, dh = softmax.loss(np.ones((rows, SIZE)), np.full(rows, -100))
        assert np.isnan(loss) and dh.shape == (rows, SIZE) and not dh.any()
        assert not any(grad.any() for grad in softmax.grads.values())
        assert softmax.loss(np.ones((rows, SIZE)), np.full(rows, -100), reduction="sum")[0] == 0.0
        assert softmax.predict(np.ones((rows, SIZE))).shape == (rows,)


def test_names_and_shapes_are_pytorchs() -> None:
    softmax = layer("float32")
    assert {name: array.shape for name, array in softmax.state_dict().items()} == {
        "head.weight": (7, 9),
        "head.bias": (7,),
        "tail.0.0.weight": (4, 9),
        "tail.0.1.weight": (4, 4),
        "tail.1.0.weight": (2, 9),
        "tail.1.1.weight": (1, 2),
        "tail.2.0.weight": (1, 9),
        "tail.2.1.weight": (14, 1),
    }
    assert repr(softmax) == "AdaptiveSoftmax(9, 23, cutoffs=[4, 8, 9], div_value=2.0, head_bias=True)"
    again = eval(repr(layer()), {"AdaptiveSoftmax": fr.AdaptiveSoftmax})
    again.load_state_dict(layer().state_dict())
    np.testing.assert_array_equal(again.log_prob(inputs()[0]), layer().log_prob(inputs()[0]))


def test_pytorchs() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.AdaptiveLogSoftmaxWithLoss(SIZE, CLASSES, list(CUTOFFS), 2.0, True).double()
    softmax = layer(init=None)
    softmax.load_state_dict(theirs.state_dict())
    h, targets = inputs()
    x = torch.tensor(h.reshape(-1, SIZE), requires_grad=True)
    output, loss = theirs(x, torch.tensor(targets.reshape(-1)))
    loss.backward()
    got, dh = softmax.loss(h, targets)
    assert_close(np.array(got), float(loss.detach()), "loss")
    assert_close(-softmax.loss(h, targets, reduction="none")[0].reshape(-1), output.detach(), "loss")
    assert_close(dh.reshape(-1, SIZE), x.grad, "gradient")
    softmax.zero_grad()
    softmax.loss(h, targets)
    for name, parameter in theirs.named_parameters():
        assert_close(softmax.grads[name], parameter.grad, "gradient", name)
    assert_close(softmax.log_prob(h).reshape(-1, CLASSES), theirs.log_prob(x).detach(), "output")
    np.testing.assert_array_equal(softmax.predict(h).reshape(-1), theirs.predict(x))


def test_it_learns_and_freezes() -> None:
    rng = np.random.default_rng(0)
    h = rng.normal(0, 1, (300, SIZE)).astype(np.float32)
    targets = np.digitize(h[:, 0], np.linspace(-1.5, 1.5, CLASSES - 1))
    softmax = layer("float32")
    optimizer = fr.optim.Adam(softmax, lr=0.02)
    before, _ = softmax.loss(h, targets)
    for _ in range(150):
        softmax.zero_grad()
        loss, _ = softmax.loss(h, targets)
        optimizer.step()
    assert loss < 0.7 * before
    softmax.zero_grad()
    softmax.tail.requires_grad_(False)
    softmax.loss(h, targets)
    assert [name for name, grad in softmax.grads.items() if grad.any()] == ["head.weight", "head.bias"]


def test_errors_change_nothing() -> None:
    softmax = layer()
    h, targets = inputs()
    for bad in (CLASSES, -1, -101):
        wrong = targets.copy()
        wrong[5, 4] = bad
        with pytest.raises(ValueError, match=rf"targets: expected values in \[0, C\) = \[0, 23\).*got {bad}"):
            softmax.loss(h, wrong)
    with pytest.raises(ValueError, match=r"targets: expected shape \(\.\.\.\) = \(6, 5\), got \(5,\)"):
        softmax.loss(h, targets[0])
    with pytest.raises(TypeError, match="targets: expected an integer dtype"):
        softmax.loss(h, targets.astype(float))
    with pytest.raises(ValueError, match="reduction: expected"):
        softmax.loss(h, targets, reduction="max")  # type: ignore[call-overload]
    for call in (softmax.log_prob, softmax.predict, lambda h: softmax.loss(h, targets)):
        with pytest.raises(ValueError, match=r"h: expected shape \(\.\.\., 9\)"):
            call(h[..., 1:])
        with pytest.raises(TypeError, match="h: expected float64, got float32"):
            call(h.astype("float32"))
        with pytest.raises(TypeError, match=r"h: expected a numpy\.ndarray, got list"):
            call(h.tolist())
        with pytest.raises(TypeError, match="MaskedArray"):
            call(np.ma.masked_array(h))
    assert not any(grad.any() for grad in softmax.grads.values())


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((0, 9, [3]), ValueError, "in_features: expected an int >= 1"),
        ((8, 1, [1]), ValueError, "n_classes: expected an int >= 2"),
        ((8, 9, []), ValueError, "cutoffs: expected one or more rising class numbers"),
        ((8, 9, [3, 3]), ValueError, "cutoffs: expected one or more rising class numbers"),
        ((8, 9, [5, 3]), ValueError, "cutoffs: expected one or more rising class numbers"),
        ((8, 9, [0, 3]), ValueError, r"cutoffs\[0\]: expected an int >= 1"),
        ((8, 9, [3, 9]), ValueError, r"cutoffs\[1\]: expected an int <= 8"),
        ((8, 9, [3.0]), TypeError, r"cutoffs\[0\]: expected an int"),
        ((8, 9, 3), TypeError, "cutoffs: expected a sequence of ints"),
        ((8, 9, [3, 5]), ValueError, r"div_value: expected in_features // div_value\^2 >= 1 for cluster 1"),
        ((8, 9, [3], 0.5), ValueError, r"div_value: expected a number in \[1.0, inf\]"),
        ((8, 9, [3], 1e300), ValueError, "div_value: expected in_features"),
        ((8, 9, [3], float("nan")), ValueError, "div_value: expected a number"),
        ((8, 9, [3], 2.0, 1), TypeError, "head_bias: expected a bool"),
    ],
)
def test_arguments(arguments: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"^{message}"):
        fr.AdaptiveSoftmax(*arguments)
