"""RNN transducer: loss and gradient against sums over all paths, a slow recursion and torchaudio's values."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import numpy as np
import pytest
from support import num_threads, numeric_gradient
from tolerances import assert_close

import fusedrnn as fr

DTYPES = ("float64", "float32")


def log_softmax(logits: Any) -> Any:
    x = logits - logits.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def over_all_paths(logits: Any, labels: list[int], blank: int) -> float:
    """The loss of one sequence: a path is the step at which each label is emitted."""
    log_p, steps = log_softmax(logits), len(logits)
    total = -np.inf
    for at in itertools.combinations_with_replacement(range(steps), len(labels)):
        score, u = 0.0, 0
        for t in range(steps):
            while u < len(labels) and at[u] == t:
                score += log_p[t, u, labels[u]]
                u += 1
            score += log_p[t, u, blank]
        total = np.logaddexp(total, score)
    return -total


def recursion(logits: Any, labels: list[int], blank: int) -> tuple[float, Any]:
    """Loss and gradient of one sequence, cell by cell."""
    log_p, steps, count = log_softmax(logits), len(logits), len(labels)
    if not steps:
        return (np.inf if count else 0.0), np.zeros_like(logits)
    alpha, beta = (np.full((steps + 1, count + 2), -np.inf) for _ in range(2))
    for t, u in np.ndindex(steps, count + 1):
        came = -np.inf if t or u else 0.0
        if t:
            came = np.logaddexp(came, alpha[t - 1, u] + log_p[t - 1, u, blank])
        if u:
            came = np.logaddexp(came, alpha[t, u - 1] + log_p[t, u - 1, labels[u - 1]])
        alpha[t, u] = came
    beta[steps, count] = 0
    gradient = np.zeros_like(logits)
    ends = alpha[steps - 1, count] + log_p[steps - 1, count, blank]
    for t, u in itertools.product(range(steps)[::-1], range(count + 1)[::-1]):
        moves = [(blank, beta[t + 1, u] + log_p[t, u, blank])]
        if u < count:
            moves.append((labels[u], beta[t, u + 1] + log_p[t, u, labels[u]]))
        beta[t, u] = np.logaddexp.reduce([score for _, score in moves])
        for label, score in moves:
            taken = np.exp(alpha[t, u] + score - ends)
            gradient[t, u] += taken * np.exp(log_p[t, u])
            gradient[t, u, label] -= taken
    return -ends, gradient


def problem(
    seed: int, batch: int, steps: int, labels: int, classes: int, blank: int, scale: float = 1
) -> Any:
    rng = np.random.default_rng([seed, batch, steps, labels, classes])
    logits = rng.normal(0, scale, (batch, steps, labels + 1, classes))
    others = np.delete(np.arange(classes), blank)
    targets = rng.choice(others, (batch, labels)) if labels else np.zeros((batch, 0), np.int64)
    lengths, counts = rng.integers(1, steps + 1, batch), rng.integers(0, labels + 1, batch)
    lengths[-1], counts[-1] = steps, labels
    if batch > 1:
        lengths[0], counts[0] = 0, 0
    return logits, targets, lengths, counts


def wanted(case: Any, blank: int) -> tuple[Any, Any]:
    logits, targets, lengths, counts = case
    logits = logits.astype("float64")
    losses, gradient = np.zeros(len(logits)), np.zeros(logits.shape)
    for b, (steps, count) in enumerate(zip(lengths, counts, strict=True)):
        part = b, slice(steps), slice(count + 1)
        losses[b], gradient[part] = recursion(logits[part], targets[b, :count].tolist(), blank)
    return losses, gradient


SHAPES = [
    (1, 1, 0, 1, 0),
    (2, 1, 2, 3, 1),
    (4, 5, 3, 4, -1),
    (3, 7, 9, 17, 0),
    (3, 12, 4, 33, 5),
    (2, 3, 20, 9, 3),
]


def test_all_paths() -> None:
    for seed, (steps, count) in itertools.product(range(3), [(1, 0), (1, 2), (3, 2), (4, 3)]):
        logits, targets, *_ = problem(seed, 1, steps, count, 5, 2)
        loss, _ = fr.transducer_loss(logits, targets, [steps], [count], 2, reduction="sum")
        assert_close(
            np.array(loss), over_all_paths(logits[0], targets[0].tolist(), 2), "loss", dtype="float64"
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss(shape: tuple[int, ...], dtype: str) -> None:
    *sizes, blank = shape
    for seed, scale in ((0, 1.0), (1, 8.0)):
        case = problem(seed, *sizes, blank, scale)
        case = (case[0].astype(dtype), *case[1:])
        losses, gradient = wanted(case, blank)
        got, dlogits = fr.transducer_loss(*case, blank, reduction="none")
        assert got.dtype == dlogits.dtype == dtype
        assert_close(got, losses, "loss")
        assert_close(dlogits, gradient, "gradient")
        mean, dmean = fr.transducer_loss(*case, blank)
        assert_close(np.array(mean), losses.mean(), "loss", dtype=dtype)
        assert_close(dmean, gradient / sizes[0], "gradient")
        clamped = fr.transducer_loss(*case, blank, clamp=0.05)[1]
        assert_close(clamped, gradient.clip(-0.05, 0.05) / sizes[0], "gradient")


def test_values_of_torchaudio() -> None:
    # torchaudio 2.x, test/torchaudio_unittest/rnnt/utils.py, B = 1, T = 2, U = 3, D = 5
    logits = np.full((1, 2, 3, 5), 0.1)
    logits[0, 0, 0, 1] = logits[0, 0, 1, 2] = logits[0, 1, 0, 1] = 0.6
    logits[0, 0, 2, 2:4] = 0.2, 0.8
    logits[0, 1, 1, 2] = logits[0, 1, 2, 2] = 0.2
    logits[0, 1, 2, 0] = 0.7
    loss, dlogits = fr.transducer_loss(logits, [[1, 2]], [2], [2], reduction="sum")
    assert abs(loss - 5.09566688538) < 1e-6
    rows = dlogits[0, 0, 0], dlogits[0, 1, 2]
    np.testing.assert_allclose(rows[0], [0.17703132, -0.39992708, 0.17703132, 0.17703132, -0.13116692], 1e-6)
    np.testing.assert_allclose(rows[1], [0.30741188, 0.16871123, 0.18645471, 0.16871123, -0.83128875], 1e-6)


def test_fastemit() -> None:
    case = problem(3, 3, 5, 3, 6, 0)
    loss, dlogits = fr.transducer_loss(*case, 0, fastemit_lambda=0.5, reduction="sum")
    plain, dplain = fr.transducer_loss(*case, 0, reduction="sum")
    assert loss == plain
    # Gradients of what is emitted: of blanks as before, of labels half as much again.
    logits, targets, lengths, counts = case
    rows = logits.reshape(-1, 6)
    emitted = np.exp(log_softmax(rows)).reshape(logits.shape)
    for b, u in np.ndindex(3, 3):
        if u >= counts[b]:
            continue
        label = targets[b, u]
        for t in range(lengths[b]):
            # Solve for the flows: dlogits = p (P_b + P_l) at the classes that are neither.
            other = next(c for c in range(1, 6) if c != label)
            both = dplain[b, t, u, other] / emitted[b, t, u, other]
            of_label = both * emitted[b, t, u, label] - dplain[b, t, u, label]
            extra = 0.5 * of_label * emitted[b, t, u]
            extra[label] -= 0.5 * of_label
            np.testing.assert_allclose(dlogits[b, t, u] - dplain[b, t, u], extra, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_joiner(dtype: str) -> None:
    rng = np.random.default_rng(5)
    batch, steps, labels, classes, hidden = 4, 9, 6, 13, 7
    _, targets, lengths, counts = problem(0, batch, steps, labels, classes, 12)
    joiner = fr.TransducerJoiner(hidden, classes, dtype=dtype, seed=0)
    enc = rng.normal(0, 1, (batch, steps, hidden)).astype(dtype)
    pred = rng.normal(0, 1, (batch, labels + 1, hidden)).astype(dtype)
    joined = np.tanh(enc[:, :, None] + pred[:, None])
    logits = joiner(enc[:, :, None], pred[:, None])
    assert_close(logits, joined @ joiner.parameters["weight"].T + joiner.parameters["bias"], "output")
    for options in ({}, {"reduction": "none", "fastemit_lambda": 0.3}, {"clamp": 0.01}):
        joiner.zero_grad()
        loss, denc, dpred = joiner.loss(enc, pred, targets, lengths, counts, **options)
        want, dlogits = fr.transducer_loss(logits, targets, lengths, counts, **options)
        assert_close(np.asarray(loss), np.asarray(want), "loss", dtype=dtype)
        djoined = dlogits @ joiner.parameters["weight"] * (1 - joined**2)
        assert_close(denc, djoined.sum(2), "gradient")
        assert_close(dpred, djoined.sum(1), "gradient")
        rows = dlogits.reshape(-1, classes)
        assert_close(joiner.grads["weight"], rows.T @ joined.reshape(-1, hidden), "gradient")
        assert_close(joiner.grads["bias"], rows.sum(0), "gradient")


@pytest.mark.once
def test_joiner_of_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedrnn.sequence import transducer

    rng = np.random.default_rng(5)
    _, *rest = problem(0, 3, 6, 5, 4, 3)
    joiner = fr.TransducerJoiner(3, 4, dtype="float64", seed=0)
    enc, pred = rng.normal(0, 1, (3, 6, 3)), rng.normal(0, 1, (3, 6, 3))
    whole = joiner.loss(enc, pred, *rest)
    for cells in (1, 4, 13):
        monkeypatch.setattr(transducer, "_TILE_BYTES", cells * 4 * 8)
        for got, want in zip(joiner.loss(enc, pred, *rest), whole, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)


def test_joiner_numerically() -> None:
    rng = np.random.default_rng(1)
    _, *rest = problem(0, 2, 4, 3, 5, 4)
    joiner = fr.TransducerJoiner(3, 5, dtype="float64", seed=0)
    enc, pred = rng.normal(0, 1, (2, 4, 3)), rng.normal(0, 1, (2, 4, 3))
    joiner.zero_grad()
    _, denc, dpred = joiner.loss(enc, pred, *rest)
    grads = {name: grad.copy() for name, grad in joiner.grads.items()}

    def loss() -> float:
        return joiner.loss(enc, pred, *rest)[0]  # type: ignore[return-value]

    pairs = [(enc, denc), (pred, dpred), *((joiner.parameters[name], grads[name]) for name in grads)]
    for array, got in pairs:
        np.testing.assert_allclose(got, numeric_gradient(loss, array), rtol=1e-6, atol=1e-8)


def test_threads_give_equal_bits() -> None:
    case = problem(0, 7, 40, 12, 100, 0)
    case = (case[0].astype("float32"), *case[1:])
    results = []
    for count in (1, 2, 3):
        with num_threads(count):
            results.append(fr.transducer_loss(*case, 0, reduction="none"))
    for loss, dlogits in results[1:]:
        assert (loss == results[0][0]).all()
        assert (dlogits == results[0][1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ends_of_the_range(dtype: str) -> None:
    case = problem(0, 2, 4, 3, 5, 0)
    logits = case[0].astype(dtype)
    counts, lengths = np.array([2, 3]), np.array([3, 4])
    large = logits * (1e37 if dtype == "float32" else 1e300)
    loss, dlogits = fr.transducer_loss(large, case[1], lengths, counts, 0, reduction="none")
    assert not np.isnan(loss).any()
    never = logits.copy()
    never[0, :, 0, case[1][0, 0]] = -np.inf
    loss, dlogits = fr.transducer_loss(never, case[1], lengths, counts, 0, reduction="none")
    assert loss[0] == np.inf
    assert np.isfinite(loss[1])
    assert np.isnan(dlogits[0, :3, :3]).all()
    assert not dlogits[0, 3].any()
    assert np.isfinite(dlogits[1]).all()
    for bad in (np.nan, np.inf):
        wrong = logits.copy()
        wrong[0, 1, 1, 2] = bad
        loss, dlogits = fr.transducer_loss(wrong, case[1], lengths, counts, 0, reduction="none", clamp=1.0)
        assert np.isnan(loss[0])
        assert np.isnan(dlogits[0, :3, :3]).all()
        assert np.isfinite(dlogits[1]).all()
        # Past the ends nothing counts.
        wrong = logits.copy()
        wrong[0, 3] = wrong[0, :, 3] = bad
        loss, dlogits = fr.transducer_loss(wrong, case[1], lengths, counts, 0, reduction="none")
        assert np.isfinite(loss).all()
        assert np.isfinite(dlogits).all()


@pytest.mark.once
def test_the_joiner_takes_a_tenth_of_the_logits() -> None:
    batch, steps, count, size, classes = 2, 60, 20, 16, 3000
    rng = np.random.default_rng(0)
    enc, pred = (rng.standard_normal((batch, n, size), dtype=np.float32) for n in (steps, count + 1))
    joiner = fr.TransducerJoiner(size, classes, seed=0)
    targets = rng.integers(0, classes - 1, (batch, count))
    tracemalloc.start()
    joiner.loss(enc, pred, targets, [steps] * batch, [count] * batch)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * batch * steps * (count + 1) * classes / 5  # of the logits and their gradient


@pytest.mark.once
def test_errors() -> None:
    logits, targets, lengths, counts = problem(0, 2, 4, 3, 5, 0)
    call = fr.transducer_loss
    for arguments, message in (
        ((logits[0], targets, lengths, counts), r"logits: expected shape \(B, T, U\+1, V\)"),
        ((logits, targets[:, :2], lengths, counts), r"targets: expected shape \(B, U\) = \(2, 3\)"),
        ((logits, targets * 0, lengths, [3, 3], 0), "other than blank = 0, got 0 at place 0 of sequence 0"),
        ((logits, targets + 9, lengths, [3, 3], 0), r"targets: expected values in \[0, V\) = \[0, 5\)"),
        ((logits, targets, [5, 1], counts), r"logit_lengths: expected values in 0..T = 0..4, got 5"),
        ((logits, targets, lengths, [0, 4]), r"target_lengths: expected values in 0..U = 0..3, got 4"),
        ((logits, targets, lengths[:1], counts), r"logit_lengths: expected shape \(B,\)"),
        ((logits, targets, lengths, counts, 5), "blank: expected an int <= 4"),
        ((logits, targets, lengths, counts, 0, -1, -0.5), "fastemit_lambda"),
        ((logits, targets, lengths, counts, 0, float("nan")), "clamp"),
        ((logits, targets, lengths, counts, 0, -1, 0, "all"), "reduction"),
    ):
        with pytest.raises(ValueError, match=message):
            call(*arguments)
    with pytest.raises(TypeError, match="logits"):
        call(logits.astype("float16"), targets, lengths, counts)
    joiner = fr.TransducerJoiner(3, 5, dtype="float64", seed=0)
    enc, pred = np.zeros((2, 4, 3)), np.zeros((2, 4, 3))
    with pytest.raises(ValueError, match=r"pred: expected shape \(B, U\+1, H\)"):
        joiner.loss(enc, pred[:1], targets, lengths, counts)
    with pytest.raises(TypeError, match="enc: "):
        joiner.loss(enc.astype("float32"), pred, targets, lengths, counts)
    assert not any(grad.any() for grad in joiner.grads.values())
    assert repr(joiner) == "TransducerJoiner(3, 5, blank=4, dtype='float64')"
