"""Gradients of each example apart, against one backward for each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import num_threads

import fusedrnn as fr


def tokens(steps: int, batch: int) -> Any:
    return np.random.default_rng(7).integers(0, 6, (steps, batch))


def floats(*shape: int) -> Any:
    return np.random.default_rng(8).standard_normal(shape)


CASES: dict[str, Any] = {
    # Few steps beside the weights, and many, so that both ways are gone.
    "lstm": (
        lambda: fr.LSTM(5, 9, 2, bidirectional=True, dropout=0.3, dtype="float64", seed=0),
        floats(3, 4, 5),
    ),
    "gru": (lambda: fr.GRU(2, 3, 2, batch_first=True, dtype="float64", seed=0), floats(4, 30, 2)),
    "rnn": (lambda: fr.RNN(3, 17, bias=False, recompute=True, dtype="float64", seed=0), floats(4, 5, 3)),
    "linear": (lambda: fr.Linear(5, 3, dtype="float64", seed=0), floats(6, 5)),
    "steps": (lambda: fr.Linear(8, 9, dtype="float64", seed=0), floats(3, 4, 8)),
    "embedding": (lambda: fr.Embedding(6, 3, padding_idx=2, dtype="float64", seed=0), tokens(7, 4)),
    "tagger": (
        lambda: fr.Sequential(
            fr.Embedding(6, 4, dtype="float64", seed=0),
            fr.Dropout(0.2, seed=1),
            fr.LSTM(4, 5, dtype="float64", seed=2),
            fr.Linear(5, 6, dtype="float64", seed=3),
            fr.Tanh(),
        ),
        tokens(7, 4),
    ),
    "looked up": (
        lambda: fr.Sequential(
            fr.Embedding(6, 16, dtype="float64", seed=0),
            fr.GRU(16, 5, bidirectional=True, dtype="float64", seed=2),
            fr.Pool("mean"),
            fr.Linear(10, 2, dtype="float64", seed=3),
        ),
        tokens(40, 8),
    ),
}


def run(name: str) -> tuple[Any, Any, Any, Any]:
    """The module, its tape, a gradient of y, and the axis of the batch."""
    make, x = CASES[name]
    module = make()
    options: dict[str, Any] = {}
    if name in ("lstm", "gru", "rnn"):
        axis = 0 if name == "gru" else 1
        options["lengths"] = np.arange(x.shape[axis]) % (x.shape[1 - axis] + 1)
        options["resets"] = np.random.default_rng(3).random(x.shape[:2]) < 0.2
    results = module.forward(x, **options)
    dy = np.random.default_rng(9).standard_normal(results[0].shape)
    return module, results[-1], dy, 0 if dy.ndim == 2 or name == "gru" else 1


def one_by_one(module: Any, tape: Any, dy: Any, axis: int) -> list[dict[str, Any]]:
    found = []
    for b in range(dy.shape[axis]):
        alone = np.zeros_like(dy)
        index = (slice(None),) * axis + (b,)
        alone[index] = dy[index]
        module.zero_grad()
        module.backward(tape, alone)
        found.append({name: grad.copy() for name, grad in module.grads.items()})
    module.zero_grad()
    return found


def test_a_lookup_is_among_the_cases() -> None:
    assert isinstance(run("looked up")[1].tapes[0], fr.Lookup)


@pytest.mark.parametrize("name", CASES)
def test_against_one_backward_for_each(name: str) -> None:
    module, tape, dy, axis = run(name)
    wanted = one_by_one(module, tape, dy, axis)
    squares = [sum((grad**2).sum() for grad in grads.values()) for grads in wanted]
    norms = fr.per_example.norms(tape, dy)
    np.testing.assert_allclose(norms, np.sqrt(squares), 1e-10, 1e-14)
    assert not any(grad.any() for grad in module.grads.values())

    found = fr.per_example.fisher(tape, dy)
    assert found.keys() == module.grads.keys()
    for key, value in found.items():
        np.testing.assert_allclose(
            value, np.mean([grads[key] ** 2 for grads in wanted], axis=0), 1e-10, 1e-14
        )

    bound = float(np.median(norms))
    before = {key: np.full_like(grad, 0.5) for key, grad in module.grads.items()}
    for key, grad in module.grads.items():
        grad[...] = before[key]
    np.testing.assert_array_equal(fr.per_example.clip_and_sum(tape, dy, bound), norms)
    with np.errstate(divide="ignore"):
        shares = np.minimum(1, bound / norms)
    for key, grad in module.grads.items():
        total = sum(share * grads[key] for share, grads in zip(shares, wanted, strict=True))
        np.testing.assert_allclose(grad, before[key] + total, 1e-10, 1e-12)


def test_bits_do_not_depend_on_threads() -> None:
    lstm = fr.LSTM(32, 48, 2, seed=0)
    tape = lstm.forward(floats(40, 24, 32).astype("float32"))[-1]
    dy = np.ones((40, 24, 48), "float32")
    found = []
    for count in (1, 3):
        with num_threads(count):
            lstm.zero_grad()
            norms = fr.per_example.clip_and_sum(tape, dy, 1.0)
            found.append((norms, *(grad.copy() for grad in lstm.grads.values())))
    for one, three in zip(*found, strict=True):
        assert one.tobytes() == three.tobytes()


@pytest.mark.once
def test_frozen_parameters_do_not_count() -> None:
    module, tape, dy, _ = run("tagger")
    both = fr.per_example.norms(tape, dy)
    module[3].requires_grad_(False)
    fewer = fr.per_example.norms(tape, dy)
    assert (fewer < both).all()
    fr.per_example.clip_and_sum(tape, dy, 1.0)
    assert not module[3].grads["weight"].any()
    assert not fr.per_example.fisher(tape, dy)["3.weight"].any()


@pytest.mark.once
def test_errors() -> None:
    norms = fr.per_example.norms
    module, tape, dy, _ = run("lstm")
    with pytest.raises(TypeError, match="tape: expected a Tape, got int"):
        norms(3, dy)
    with pytest.raises(ValueError, match="dy: expected shape"):
        norms(tape, dy[:2])
    with pytest.raises(TypeError, match="dy"):
        norms(tape, dy.astype("float32"))
    for bound in (0.0, -1.0):
        with pytest.raises(ValueError, match="max_norm"):
            fr.per_example.clip_and_sum(tape, dy, bound)
    assert not any(grad.any() for grad in module.grads.values())
    x = np.ones((3, 2, 4), "float32")
    for network in (
        fr.LSTM(4, 5, proj_size=3),
        fr.GRU(4, 4, 2, residual=True),
        fr.RNN(4, 5, weight_dropout=0.5),
    ):
        y, _, of_network = network.forward(x)
        with pytest.raises(ValueError, match="per_example"):
            norms(of_network, y)
    y, _, of_masked = fr.GRU(4, 5).forward(x, mask=np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="mask: expected a forward without mask"):
        norms(of_masked, y)
    for other in (fr.Sequential(fr.LayerNorm(4)), fr.BatchNorm(4, affine=False)):
        y, of_other = other.forward(x)
        with pytest.raises(ValueError, match="does not take apart"):
            norms(of_other, y)
