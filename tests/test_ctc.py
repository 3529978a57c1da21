"""CTC: loss, gradient, alignment and decoding against sums over all paths, a slow reference and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sequence_reference as reference
from support import num_threads, numeric_gradient
from tolerances import assert_close

import fusedrnn as fr

DTYPES = ("float64", "float32")
Case = tuple[Any, Any, Any, Any]  # logits, targets, input_lengths, target_lengths


def problem(
    seed: int, steps: int, batch: int, classes: int, labels: int, blank: int = 0, scale: float = 1.0
) -> Case:
    """Lengths at random with zeros, labels with repeats; where there is a class beside the blank."""
    rng = np.random.default_rng([seed, steps, batch, classes, labels])
    logits = rng.normal(0, scale, (steps, batch, classes))
    others = np.delete(np.arange(classes), blank)
    labels = labels if others.size else 0
    targets = rng.choice(others, (batch, labels)) if labels else np.zeros((batch, 0), np.int64)
    target_lengths = rng.integers(0, labels + 1, batch)
    input_lengths = np.minimum(2 * target_lengths + rng.integers(0, steps + 1, batch), steps)
    if batch > 1:
        target_lengths[0], input_lengths[1] = 0, 0
    return logits, targets, input_lengths, target_lengths


def wanted(case: Case, blank: int, zero_infinity: bool = False) -> tuple[Any, Any]:
    """Losses and their gradients, each times 1."""
    logits, targets, input_lengths, target_lengths = case
    losses, gradient = np.zeros(logits.shape[1]), np.zeros(logits.shape)
    for b, (steps, count) in enumerate(zip(input_lengths, target_lengths, strict=True)):
        loss, d = reference.ctc(logits[:steps, b], targets[b, :count].tolist(), blank)
        if zero_infinity and loss == np.inf:
            loss, d = 0.0, np.zeros_like(d)
        losses[b], gradient[:steps, b] = loss, d
    return losses, gradient


SHAPES = [
    (5, 4, 1, 0, 0),
    (6, 5, 2, 3, 1),
    (9, 3, 3, 4, 0),
    (33, 4, 17, 12, 16),
    (40, 3, 33, 17, 5),
    (70, 2, 33, 33, 0),
    (150, 2, 9, 64, 3),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss(shape: tuple[int, ...], dtype: str) -> None:
    steps, batch, classes, labels, blank = shape
    for seed in range(3):
        case = problem(seed, steps, batch, classes, labels, blank)
        case = (case[0].astype(dtype), *case[1:])
        losses, gradient = wanted(case, blank)
        got, dlogits = fr.ctc_loss(*case, blank, "none")
        assert got.dtype == dlogits.dtype == dtype
        assert_close(got, losses, "loss")
        assert_close(dlogits, gradient, "gradient")
        finite = wanted(case, blank, True)
        got_sum, dsum = fr.ctc_loss(*case, blank, "sum", True)
        assert_close(np.array(got_sum), finite[0].sum(), "loss", dtype=dtype)
        assert_close(dsum, finite[1], "gradient")
        counts = np.maximum(case[3], 1)
        mean, dmean = fr.ctc_loss(*case, blank, zero_infinity=True)
        assert isinstance(mean, float)
        assert_close(np.array(mean), (finite[0] / counts).mean(), "loss", dtype=dtype)
        assert_close(dmean, finite[1] / (counts * batch)[:, None], "gradient")


@pytest.mark.parametrize("target", [(), (1,), (2, 2), (1, 2), (1, 1, 2), (2, 1, 2, 1)])
def test_loss_of_all_paths(target: tuple[int, ...]) -> None:
    """The reference and the kernels against the sum over every path that reads the target."""
    logits = np.random.default_rng(1).normal(0, 2, (6, 1, 3))
    want = -np.log(reference.all_labellings(logits[:, 0], 0)[target])
    assert_close(np.array(reference.ctc(logits[:, 0], target, 0)[0]), want, "loss", dtype="float64")
    got = fr.ctc_loss(logits, np.array([target], np.int64), [6], [len(target)])[0] * max(len(target), 1)
    assert_close(np.array(got), want, "loss", dtype="float64")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_numeric_gradient(reduction: Any) -> None:
    logits, targets, _, _ = problem(1, 7, 3, 4, 3, blank=2)
    lengths, counts = np.array([7, 5, 4]), np.array([3, 0, 2])

    def loss() -> float:
        return fr.ctc_loss(logits, targets, lengths, counts, 2, reduction)[0]

    dlogits = fr.ctc_loss(logits, targets, lengths, counts, 2, reduction)[1]
    assert np.abs(dlogits - numeric_gradient(loss, logits)).max() < 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [30.0, 300.0, 3000.0])
def test_overconfident_logits(scale: float, dtype: str) -> None:
    """Where exponentials underflow, in float32 or at all, the logarithms do not."""
    for seed in range(4):
        case = problem(seed, 40, 4, 12, 9, scale=scale)
        case = (case[0].astype(dtype), *case[1:])
        losses, gradient = wanted(case, 0)
        got, dlogits = fr.ctc_loss(*case, reduction="none")
        assert_close(got, losses, "loss")
        assert_close(dlogits, gradient, "gradient")


@pytest.mark.once
def test_float32_loses_nothing_over_many_steps() -> None:
    """What torch's float32 loses: its logarithms have an error of their size, which grows with the steps."""
    logits, targets, _, _ = problem(0, 500, 2, 60, 80, scale=5.0)
    case: Case = (logits.astype("float32"), targets, np.array([500, 311]), np.array([80, 61]))
    losses, gradient = wanted(case, 0)
    got, dlogits = fr.ctc_loss(*case, reduction="none")
    np.testing.assert_allclose(got, losses, rtol=3e-7)
    np.testing.assert_allclose(dlogits, gradient, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_path_that_exponentials_of_a_float_lose(dtype: str) -> None:
    """The best of all passes one step at e^-100; what float32 has left of the others is e^-160."""
    logits = np.full((6, 1, 3), -300.0)
    logits[:, 0, 0] = 0
    logits[2, 0, 1], logits[3, 0, 2] = 0, -100
    logits[0, 0, 1], logits[1, 0, 2] = -80, -80
    case: Case = (logits.astype(dtype), np.array([[1, 2]]), np.array([6]), np.array([2]))
    losses, gradient = wanted(case, 0)
    got, dlogits = fr.ctc_loss(*case, reduction="none")
    assert_close(got, losses, "loss")
    assert_close(dlogits, gradient, "gradient")


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearly_all_blank(dtype: str) -> None:
    """As at the start of training: what counts is 10^-600 of the largest forward value."""
    logits, targets, _, _ = problem(0, 260, 1, 5, 120)
    logits[:, :, 0] += 12
    case = (logits.astype(dtype), targets, np.array([260]), np.array([120]))
    losses, gradient = wanted(case, 0)
    got, dlogits = fr.ctc_loss(*case, reduction="none")
    assert_close(got, losses, "loss")
    assert_close(dlogits, gradient, "gradient")


def test_classes_without_probability() -> None:
    """-inf is probability 0: of a class that no path needs it changes nothing, else the loss is infinite."""
    logits, targets, lengths, counts = problem(3, 20, 2, 6, 4)
    targets[:], counts[:], lengths[:] = [[1, 2, 3, 4]], 4, 20
    alone = fr.ctc_loss(np.ascontiguousarray(logits[:, :, :5]), targets, lengths, counts, reduction="none")
    logits[:, :, 5] = -np.inf
    got, dlogits = fr.ctc_loss(logits, targets, lengths, counts, reduction="none")
    assert_close(got, alone[0], "loss")
    assert_close(dlogits[:, :, :5], alone[1], "gradient")
    assert not dlogits[:, :, 5].any()
    logits[:, 1, 3] = -np.inf
    got, dlogits = fr.ctc_loss(logits, targets, lengths, counts, reduction="none")
    assert got[1] == np.inf and np.isnan(dlogits[:, 1]).all()
    assert_close(dlogits[:, 0, :5], alone[1][:, 0], "gradient")
    # At some steps only, with another way through.
    logits[5:15, 1, 3] = 0
    want = reference.ctc(np.where(np.isinf(logits[:, 1]), -1e5, logits[:, 1]), [1, 2, 3, 4], 0)
    got, dlogits = fr.ctc_loss(logits, targets, lengths, counts, reduction="none")
    assert_close(got[1:], [want[0]], "loss")
    assert_close(dlogits[:, 1], want[1], "gradient")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_stays_in_its_sequence(bad: float) -> None:
    logits, targets, _, _ = problem(2, 12, 3, 5, 3)
    lengths, counts = np.array([12, 9, 12]), np.array([3, 2, 3])
    want = fr.ctc_loss(logits, targets, lengths, counts, reduction="none")
    logits[10, 1, 2] = bad  # past the end
    assert np.array_equal(fr.ctc_loss(logits, targets, lengths, counts, reduction="none")[1], want[1])
    logits[4, 1, 2] = bad
    for zero_infinity in (False, True):
        loss, dlogits = fr.ctc_loss(
            logits, targets, lengths, counts, reduction="none", zero_infinity=zero_infinity
        )
        assert np.isnan(loss[1]) and np.isnan(dlogits[:9, 1]).all() and not dlogits[9:, 1].any()
        assert np.array_equal(loss[[0, 2]], want[0][[0, 2]])
        assert np.array_equal(dlogits[:, [0, 2]], want[1][:, [0, 2]])
    assert np.isnan(fr.ctc_align(logits, targets, lengths, counts)[1]).tolist() == [False, True, False]
    for beam in (1, 3):
        assert np.isnan(fr.ctc_decode(logits, lengths, beam)[1]).tolist() == [False, True, False]


def test_nothing() -> None:
    """No sequences, no steps."""
    loss, dlogits = fr.ctc_loss(np.zeros((3, 0, 2)), np.zeros((0, 1), np.int64), [], [])
    assert np.isnan(loss) and dlogits.shape == (3, 0, 2)
    loss, dlogits = fr.ctc_loss(np.zeros((0, 2, 3)), [1], [0, 0], [0, 1], reduction="none")
    assert loss.tolist() == [0.0, np.inf] and dlogits.shape == (0, 2, 3)
    assert fr.ctc_decode(np.zeros((3, 0, 2)), beam=2)[0] == []
    assert fr.ctc_align(np.zeros((3, 0, 2)), np.zeros((0, 1), np.int64), [], [])[0].shape == (3, 0)


def test_forms_of_the_arguments() -> None:
    """Padded and concatenated targets, lists and other integers."""
    logits, targets, lengths, counts = problem(5, 15, 4, 6, 4)
    want = fr.ctc_loss(logits, targets, lengths, counts, reduction="none")
    padded = np.where(np.arange(4) < counts[:, None], targets, -7)
    flat = np.concatenate([row[:n] for row, n in zip(targets, counts, strict=True)])
    forms: list[Any] = [padded.astype(np.int32), padded.tolist(), flat, flat.astype(np.uint8), flat.tolist()]
    for form in forms:
        got = fr.ctc_loss(logits, form, tuple(lengths.tolist()), counts.tolist(), reduction="none")
        assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1], equal_nan=True)
    other = fr.ctc_loss(logits.swapaxes(0, 1).copy().swapaxes(0, 1), targets, lengths, counts)[1]
    assert np.array_equal(other, fr.ctc_loss(logits, targets, lengths, counts)[1], equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits_for_any_number_of_threads(dtype: str) -> None:
    logits, targets, lengths, counts = problem(6, 60, 13, 40, 20)
    logits = logits.astype(dtype)
    logits[:, 2] *= 1000
    results = []
    for threads in (1, 2, 3):
        with num_threads(threads):
            found = [*fr.ctc_loss(logits, targets, lengths, counts, reduction="none")]
            found += [*fr.ctc_align(logits, targets, lengths, counts)]
            for beam in (1, 4):
                labels, scores = fr.ctc_decode(logits, lengths, beam)
                found += [*labels, scores]
            results.append([array.tobytes() for array in found])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_align(dtype: str) -> None:
    """A path that reads the target, with the largest score of all such paths."""
    for seed, (steps, classes) in enumerate([(1, 2), (4, 3), (6, 3), (7, 2), (5, 4)]):
        logits, targets, lengths, counts = problem(seed, steps, 4, classes, 3)
        logits = logits.astype(dtype)
        alignment, scores = fr.ctc_align(logits, targets, lengths, counts)
        assert alignment.dtype == np.int64 and scores.dtype == dtype
        for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            assert (alignment[length:, b] == -1).all()
            log_p = reference.log_softmax(logits[:length, b].astype(np.float64))
            target = tuple(targets[b, :count].tolist())
            best = -np.inf
            for path in np.ndindex(*[classes] * int(length)):
                if reference.collapsed(path, 0) == target:
                    best = max(best, sum(row[c] for row, c in zip(log_p, path, strict=True)))
            assert_close(scores[b : b + 1], [best], "loss")
            found = alignment[:length, b]
            if best == -np.inf:
                assert (found == -1).all()
                continue
            path = [target[i] if i >= 0 else 0 for i in found]
            assert reference.collapsed(path, 0) == target
            assert (np.diff(found[found >= 0]) >= 0).all() and set(range(count)) <= set(found.tolist())
            own = sum(row[c] for row, c in zip(log_p, path, strict=True))
            assert_close(np.array([own]), [best], "loss", dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_best_path(dtype: str) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, (25, 6, 4)).astype(dtype)
    lengths = np.array([25, 0, 1, 7, 24, 25])
    labels, scores = fr.ctc_decode(logits, lengths, blank=2)
    for b, length in enumerate(lengths):
        rows = logits[:length, b].astype(np.float64)
        assert tuple(labels[b].tolist()) == reference.collapsed(rows.argmax(1).tolist(), 2)
        want = reference.log_softmax(rows).max(axis=1, initial=-np.inf).sum() if length else 0.0
        assert_close(scores[b : b + 1], [want], "loss")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wide_beam_finds_the_most_probable_labels(dtype: str) -> None:
    """With room for all label sequences the search is exact, and so are its probabilities."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        steps, classes = int(rng.integers(1, 6)), int(rng.integers(1, 4))
        blank = int(rng.integers(classes))
        logits = rng.normal(0, 1, (steps, 2, classes)).astype(dtype)
        labels, scores = fr.ctc_decode(logits, beam=300, blank=blank)
        for b in range(2):
            want = reference.all_labellings(logits[:, b].astype(np.float64), blank)
            best = max(want, key=lambda key: want[key])
            assert tuple(labels[b].tolist()) == best
            assert_close(scores[b : b + 1], [np.log(want[best])], "loss")


def test_narrow_beams() -> None:
    """Against a search over a dictionary of label sequences, pruned after each step."""
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, (30, 4, 7))
    for beam in (2, 3, 8):
        labels, scores = fr.ctc_decode(logits, beam=beam)
        for b in range(4):
            p = np.exp(reference.log_softmax(logits[:, b]))
            kept = {(): (1.0, 0.0)}
            for row in p:
                then: dict[tuple[int, ...], list[float]] = {}
                for y, (ends_blank, ends_label) in kept.items():
                    then.setdefault(y, [0.0, 0.0])[0] += (ends_blank + ends_label) * row[0]
                    for c in range(1, 7):
                        again = y[-1:] == (c,)
                        if again:
                            then[y][1] += ends_label * row[c]
                        part = ends_blank if again else ends_blank + ends_label
                        then.setdefault((*y, c), [0.0, 0.0])[1] += part * row[c]
                best = sorted(then, key=lambda y: -sum(then[y]))[:beam]
                kept = {y: (then[y][0], then[y][1]) for y in best}
            first = max(kept, key=lambda y: sum(kept[y]))
            assert tuple(labels[b].tolist()) == first
            assert_close(scores[b : b + 1], [np.log(sum(kept[first]))], "loss")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"targets": np.array([[1, 0], [2, 1]])}, "targets"),
        ({"targets": np.array([[1, -1], [2, 1]])}, "targets"),
        ({"targets": np.array([[1, 3], [2, 1]])}, "targets"),
        ({"targets": np.array([[1, 2**40], [2, 1]])}, "targets"),
        ({"targets": np.array([1, 2, 1])}, "targets"),
        ({"targets": np.array([1, 2, 1, 1, 1])}, "targets"),
        ({"targets": np.ones((1, 2), np.int64)}, "targets"),
        ({"targets": np.ones((1, 2, 2), np.int64)}, "targets"),
        ({"input_lengths": [6, 5]}, "input_lengths"),
        ({"input_lengths": [-1, 5]}, "input_lengths"),
        ({"input_lengths": [5]}, "input_lengths"),
        ({"target_lengths": [3, 2]}, "target_lengths"),
        ({"target_lengths": [2, -1]}, "target_lengths"),
        ({"target_lengths": [2**62, 2**62]}, "target_lengths"),
        ({"blank": 3}, "blank"),
        ({"blank": -1}, "blank"),
        ({"reduction": "batch"}, "reduction"),
        ({"logits": np.zeros((5, 2))}, "logits"),
        ({"logits": np.zeros((5, 2, 0))}, "logits"),
        ({"logits": np.zeros((5, 3, 3))}, "(targets|input_lengths)"),
    ],
)
def test_bad_values(change: dict[str, Any], name: str) -> None:
    arguments: dict[str, Any] = {
        "logits": np.zeros((5, 2, 3)),
        "targets": np.array([[1, 2], [2, 1]]),
        "input_lengths": [5, 4],
        "target_lengths": [2, 2],
    }
    fr.ctc_loss(**arguments)
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        fr.ctc_loss(**{**arguments, **change})


class OnGpu:
    """What says that it is an array on a GPU."""

    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012


@pytest.mark.parametrize("name", ["logits", "targets", "input_lengths", "target_lengths"])
def test_arrays_on_a_gpu_are_refused(name: str) -> None:
    arguments: dict[str, Any] = {
        "logits": np.zeros((5, 1, 3)),
        "targets": [[1, 2]],
        "input_lengths": [5],
        "target_lengths": [2],
    }
    for function in (fr.ctc_loss, fr.ctc_align):
        with pytest.raises(RuntimeError, match=rf"^{name}: expected .+, got a OnGpu on a GPU"):
            function(**{**arguments, name: OnGpu()})
    with pytest.raises(TypeError, match=r"^logits: expected a numpy.ndarray, got list; use numpy.asarray"):
        fr.ctc_loss(**{**arguments, "logits": [[[0.0]]]})


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_torch(reduction: Any) -> None:
    torch = pytest.importorskip("torch")
    for seed, zero_infinity in ((0, False), (1, True)):
        logits, targets, lengths, counts = problem(seed, 50, 9, 20, 15, blank=3)
        x = torch.tensor(logits, requires_grad=True)
        tensors = [torch.tensor(array) for array in (targets, lengths, counts)]
        want = torch.nn.functional.ctc_loss(
            x.log_softmax(-1), *tensors, 3, reduction, zero_infinity=zero_infinity
        )
        want.sum().backward()
        loss, dlogits = fr.ctc_loss(logits, targets, lengths, counts, 3, reduction, zero_infinity)
        assert_close(np.array(loss), want.detach().numpy(), "loss", dtype="float64")
        assert_close(dlogits, x.grad.numpy(), "gradient")
