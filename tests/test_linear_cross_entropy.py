"""Output layer and loss in chunks against the layer, the loss and the layer's backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import fusedrnn as fr

pytestmark = pytest.mark.once


def separately(h: Any, head: Any, targets: Any, **options: Any) -> tuple[float, Any]:
    logits, tape = head.forward(h)
    loss, dlogits = fr.cross_entropy(logits, targets, **options)
    return loss, head.backward(tape, dlogits)


@pytest.mark.parametrize("chunk", [None, 1, 4, 5, 100])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_the_three_calls(chunk: int | None, dtype: str, smoothing: float) -> None:
    rng = np.random.default_rng(0)
    h = rng.normal(0, 1, (3, 5, 7)).astype(dtype)
    targets = rng.integers(0, 33, (3, 5))
    targets[1, 2:] = -100
    head, other = (fr.Linear(7, 33, dtype=dtype, seed=1) for _ in range(2))
    wanted, dwanted = separately(h, other, targets, label_smoothing=smoothing)
    for _ in range(2):
        loss, dh = fr.linear_cross_entropy(h, head, targets, label_smoothing=smoothing, chunk=chunk)
        assert isinstance(loss, float)
        assert dh.dtype == h.dtype
        assert_close(np.array(loss), wanted, "loss", dtype=dtype)
        assert_close(dh, dwanted, "gradient")
    for name, grad in head.grads.items():
        assert_close(grad, 2 * other.grads[name], "gradient")


def test_tied_and_without_bias() -> None:
    rng = np.random.default_rng(0)
    table = fr.Embedding(9, 4, seed=0)
    head = fr.Linear(4, 9, weight_of=table, seed=1)
    h, targets = rng.normal(0, 1, (6, 4)).astype("float32"), rng.integers(0, 9, 6)
    wanted, dwanted = separately(h, head, targets)
    grads = {name: g.copy() for name, g in {**head.grads, **table.grads}.items()}
    head.zero_grad()
    table.zero_grad()
    loss, dh = fr.linear_cross_entropy(h, head, targets, chunk=4)
    assert_close(np.array(loss), wanted, "loss", dtype="float32")
    assert_close(dh, dwanted, "gradient")
    for name, grad in {**head.grads, **table.grads}.items():
        assert_close(grad, grads[name], "gradient")
    plain = fr.Linear(4, 9, bias=False, seed=1)
    wanted, dwanted = separately(h, plain, targets)
    assert_close(fr.linear_cross_entropy(h, plain, targets, chunk=4)[1], dwanted, "gradient")


def test_none_counts() -> None:
    head = fr.Linear(4, 9, seed=1)
    for rows in (0, 3):
        loss, dh = fr.linear_cross_entropy(np.ones((rows, 4), "float32"), head, np.full(rows, -100))
        assert np.isnan(loss)
        assert dh.shape == (rows, 4)
        assert not dh.any()
    assert not any(grad.any() for grad in head.grads.values())


def test_errors_change_nothing() -> None:
    head = fr.Linear(4, 9, seed=1)
    h = np.ones((3, 4), "float32")
    for targets, message in (
        ([1, 2, 9], r"targets: expected values in \[0, C\) = \[0, 9\).*got 9"),
        ([1, -1, 2], "got -1"),
        ([1, 2], "targets: expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            fr.linear_cross_entropy(h, head, targets, chunk=1)
    with pytest.raises(ValueError, match="h: expected shape"):
        fr.linear_cross_entropy(h[:, :3], head, [1, 2, 3])
    with pytest.raises(TypeError, match="h: "):
        fr.linear_cross_entropy(h.astype("float64"), head, [1, 2, 3])
    with pytest.raises(TypeError, match="head: expected a Linear, got LSTM"):
        fr.linear_cross_entropy(h, fr.LSTM(4, 4), [1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk"):
        fr.linear_cross_entropy(h, head, [1, 2, 3], chunk=0)
    assert not any(grad.any() for grad in head.grads.values())
