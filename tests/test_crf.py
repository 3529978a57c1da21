"""CRF: loss, gradients, marginals and best paths against sums over all paths and a slow reference."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import sequence_reference as reference
from support import num_threads, numeric_gradient
from tolerances import assert_close

import fusedrnn as fr

DTYPES = ("float64", "float32")
NAMES = ("start_transitions", "transitions", "end_transitions")


def module(size: int, seed: int = 0, dtype: str = "float64", **options: Any) -> fr.CRF:
    """With weights of about 1."""
    crf = fr.CRF(size, dtype=dtype, seed=seed, **options)
    rng = np.random.default_rng([seed, size])
    for name in NAMES:
        crf.parameters[name] = rng.normal(0, 1, crf.parameters[name].shape)
    return crf


def problem(
    steps: int, batch: int, size: int, dtype: str = "float64", scale: float = 1.0
) -> tuple[Any, Any, Any]:
    """Emissions, tags and lengths at random with a zero."""
    rng = np.random.default_rng([steps, batch, size])
    emissions = rng.normal(0, scale, (steps, batch, size)).astype(dtype)
    lengths = rng.integers(0, steps + 1, batch)
    lengths[:2] = [steps, 0][: min(batch, 2)]
    return emissions, rng.integers(0, size, (steps, batch)), lengths


def weights(crf: fr.CRF) -> list[Any]:
    """In float64."""
    return [array.astype(np.float64) for array in crf._weights()]


def assert_counts(got: Any, want: Any, what: str = "") -> None:
    """Close beside 1: gradients are expected counts less counts, which may leave nothing but rounding."""
    assert_close(got + 1, want + 1, "gradient", what)


SHAPES = [(1, 3, 1), (4, 3, 2), (7, 5, 5), (23, 9, 20), (12, 4, 33), (30, 17, 3), (9, 2, 7)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 40.0, 2000.0])
def test_loss(shape: tuple[int, int, int], dtype: str, scale: float) -> None:
    emissions, tags, lengths = problem(*shape, dtype, scale)
    crf = module(shape[2], dtype=dtype)
    losses, dx = np.zeros(shape[1]), np.zeros(emissions.shape)
    sums = [np.zeros(array.shape) for array in weights(crf)]
    for b, n in enumerate(lengths):
        if n:
            found = reference.crf(emissions[:n, b].astype(np.float64), tags[:n, b], *weights(crf))
            losses[b], dx[:n, b] = found[:2]
            for sum_, part in zip(sums, found[2:], strict=True):
                sum_ += part
    got, demissions = crf.loss(emissions, tags, lengths, "none")
    assert got.dtype == demissions.dtype == dtype
    assert_close(got, losses, "loss")
    assert_counts(demissions, dx)
    for name, want in zip(NAMES, sums, strict=True):
        assert_counts(crf.grads[name], want, name)
    # Gradients add up; the mean's are those of the sum divided by the batch.
    mean, dmean = crf.loss(emissions, tags, lengths)
    assert isinstance(mean, float)
    assert_close(np.array(mean), losses.mean(), "loss", dtype=dtype)
    assert_counts(dmean, dx / shape[1])
    for name, want in zip(NAMES, sums, strict=True):
        assert_counts(crf.grads[name], want * (1 + 1 / shape[1]), name)
    total, dsum = crf.loss(emissions, tags, lengths, "sum")
    assert_close(np.array(total), losses.sum(), "loss", dtype=dtype)
    assert np.array_equal(dsum, demissions)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 2, 3), (4, 3, 2), (4, 2, 5), (5, 3, 3)], ids=str)
def test_all_paths(shape: tuple[int, int, int], dtype: str) -> None:
    emissions, tags, lengths = problem(*shape, dtype)
    lengths[:] = np.maximum(lengths, 1)
    crf = module(shape[2], 3, dtype)
    loss = crf.loss(emissions, tags, lengths, "none")[0]
    best, scores = crf.decode(emissions, lengths)
    marginals = crf.marginals(emissions, lengths)
    assert best.dtype == np.int64 and scores.dtype == marginals.dtype == dtype
    for b, n in enumerate(lengths):
        x = emissions[:n, b].astype(np.float64)
        total, share, path, score = reference.crf_by_paths(x, *weights(crf))
        paths, all_scores = reference.tag_scores(x, *weights(crf))
        own = all_scores[(paths == tags[:n, b]).all(axis=1)][0]
        assert_close(loss[b : b + 1], [total - own], "loss")
        assert_close(marginals[:n, b], share, "output")
        assert not marginals[n:, b].any()
        assert best[:n, b].tolist() == path.tolist() and (best[n:, b] == -1).all()
        assert_close(scores[b : b + 1], [score], "loss")


@pytest.mark.parametrize("dtype", DTYPES)
def test_n_best_paths(dtype: str) -> None:
    """Against all of them, with some that the constraints forbid, and with fewer than were asked for."""
    for steps, size, constraints in (
        (1, 3, None),
        (4, 3, None),
        (4, 3, "bio"),
        (3, 5, "bioes"),
        (6, 1, None),
    ):
        emissions, _, lengths = problem(steps, 4, size, dtype)
        crf = module(size, dtype=dtype, constraints=constraints)
        start, transitions, end = weights(crf)
        tags, scores = crf.decode(emissions, lengths, n_best=30)
        assert tags.shape == (30, steps, 4) and scores.shape == (30, 4) and scores.dtype == dtype
        for b, n in enumerate(lengths):
            paths = [(0.0, ())] if n == 0 else []
            for path in itertools.product(range(size), repeat=n) if n else ():
                score = (
                    start[path[0]]
                    + end[path[-1]]
                    + sum(transitions[pair] for pair in itertools.pairwise(path))
                )
                score += sum(float(emissions[t, b, tag]) for t, tag in enumerate(path))
                if score > -np.inf:
                    paths.append((score, path))
            paths.sort(key=lambda pair: -pair[0])
            for i in range(30):
                if i >= len(paths):
                    assert scores[i, b] == -np.inf and (tags[i, :, b] == -1).all()
                    continue
                assert scores[i, b] == pytest.approx(paths[i][0], rel=1e-5 if dtype == "float32" else 1e-12)
                assert tuple(tags[i, :n, b]) == paths[i][1]
                assert (tags[i, n:, b] == -1).all()
        one, best = crf.decode(emissions, lengths)
        assert (tags[0] == one)[:, best > -np.inf].all()
    turned = module(size, dtype=dtype, batch_first=True)
    swapped = np.ascontiguousarray(emissions.swapaxes(0, 1))
    assert (turned.decode(swapped, lengths, 2)[0] == tags[:2].swapaxes(1, 2)).all()
    emissions[0, 0] = np.nan
    assert np.isnan(crf.decode(emissions, lengths, 3)[1]).any(axis=0).tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="n_best"):
        crf.decode(emissions, lengths, 0)


def test_numeric_gradients() -> None:
    emissions, tags, lengths = problem(6, 4, 3)
    crf = module(3)
    for reduction in ("mean", "sum"):
        crf.zero_grad()
        demissions = crf.loss(emissions, tags, lengths, reduction)[1]  # type: ignore[call-overload]
        grads = {name: array.copy() for name, array in crf.grads.items()}

        def loss(reduction: Any = reduction) -> float:
            return float(crf.loss(emissions, tags, lengths, reduction)[0])

        assert np.abs(demissions - numeric_gradient(loss, emissions)).max() < 1e-9
        for name in NAMES:
            assert np.abs(grads[name] - numeric_gradient(loss, crf.parameters[name])).max() < 1e-9, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("half", [False, True])
def test_values_past_the_range_of_exponentials(half: bool, dtype: str) -> None:
    """Parts of the tags that never meet. The one that matters has 10^-500 or less of the other's values.

    Either only the end decides for it, or it catches up in the second half.
    """
    allowed = np.kron(np.eye(2, dtype=bool), np.ones((2, 2), bool))
    crf = module(4, dtype=dtype, constraints=allowed)
    emissions, _, _ = problem(300, 2, 4, dtype)
    emissions[: 150 if half else 300, :, :2] += 9
    if half:
        emissions[150:, :, 2:] += 9
    crf.parameters["end_transitions"] = np.array([0, 0, 90, 90]) if half else np.array([-1e5, -1e5, 0, 0])
    tags = np.random.default_rng(0).integers(2, 4, (300, 2))
    losses, demissions = crf.loss(emissions, tags, reduction="none")
    sums = np.zeros((4, 4))
    for b in range(2):
        found = reference.crf(emissions[:, b].astype(np.float64), tags[:, b], *weights(crf))
        assert_close(losses[b : b + 1], found[:1], "loss")
        assert_close(demissions[:, b], found[1], "gradient")
        sums += found[3]
    assert_close(crf.grads["transitions"], sums, "gradient")


def spans(tags: list[int], scheme: str) -> bool:
    """Whether tags are those of whole spans: written from the meaning of the letters."""
    parts = {"bio": "BI", "bioes": "BIES"}[scheme]
    names = ["O"] + [letter + str(kind) for kind in range(9) for letter in parts]
    opened = ""
    for tag in tags:
        letter, kind = names[tag][0], names[tag][1:]
        if letter in "IE" and opened != kind:
            return False
        if letter in "OBS" and opened and scheme == "bioes":
            return False
        opened = kind if letter in "BI" else ""
    return not (opened and scheme == "bioes")


@pytest.mark.parametrize(("scheme", "size"), [("bio", 1), ("bio", 5), ("bioes", 1), ("bioes", 5)])
def test_constraints(scheme: Any, size: int) -> None:
    """The paths with probability are just those of whole spans; others are refused as targets."""
    crf = module(size, constraints=scheme)
    emissions = np.random.default_rng(0).normal(0, 2, (4, 1, size))
    paths, scores = reference.tag_scores(emissions[:, 0], *weights(crf))
    allowed = [spans(path.tolist(), scheme) for path in paths]
    assert np.array_equal(np.isfinite(scores), allowed)
    total, share, best, _ = reference.crf_by_paths(emissions[:, 0], *weights(crf))
    assert_close(crf.marginals(emissions)[:, 0], share, "output")
    assert crf.decode(emissions)[0][:, 0].tolist() == best.tolist()
    for path, score, right in zip(paths, scores, allowed, strict=True):
        before = crf.flat_grads.copy()
        if right:
            loss = crf.loss(emissions, path[:, None], reduction="sum")[0]
            assert_close(np.array(loss), total - score, "loss", dtype="float64")
            masks = crf._allowed
            assert masks is not None and not crf.grads["transitions"][~masks[1]].any()
        else:
            with pytest.raises(ValueError, match=r"^tags: expected .* that the constraints allow"):
                crf.loss(emissions, path[:, None])
            assert np.array_equal(crf.flat_grads, before)


def test_a_matrix_of_constraints() -> None:
    allowed = np.array([[True, False, True], [True, True, True], [False, True, False]])
    crf = module(3, constraints=allowed)
    allowed[:] = False  # a copy was taken
    emissions = np.random.default_rng(0).normal(0, 2, (5, 1, 3))
    total, share, best, score = reference.crf_by_paths(emissions[:, 0], *weights(crf))
    assert np.isfinite(total)
    assert_close(crf.marginals(emissions)[:, 0], share, "output")
    tags, scores = crf.decode(emissions)
    assert tags[:, 0].tolist() == best.tolist()
    assert_close(scores, [score], "loss")
    none = module(2, constraints=np.zeros((2, 2), bool))
    assert none.decode(np.zeros((2, 1, 2)))[1][0] == -np.inf
    assert np.isnan(none.marginals(np.zeros((2, 1, 2)))).all()


@pytest.mark.parametrize(
    ("size", "constraints", "kind", "name"),
    [
        (4, "bio", ValueError, "num_tags"),
        (6, "bioes", ValueError, "num_tags"),
        (5, "iob", ValueError, "constraints"),
        (5, np.ones((5, 4), bool), ValueError, "constraints"),
        (5, np.ones((5, 5)), TypeError, "constraints"),
        (0, None, ValueError, "num_tags"),
        (2.5, None, TypeError, "num_tags"),
    ],
)
def test_bad_constructions(size: Any, constraints: Any, kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=f"^{name}: expected"):
        fr.CRF(size, constraints)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_nan_stays_in_its_sequence(bad: float) -> None:
    emissions, tags, _ = problem(9, 10, 4)
    lengths = np.full(10, 9)
    lengths[1] = 6
    crf = module(4)
    want = crf.loss(emissions, tags, lengths, "none"), crf.marginals(emissions, lengths)
    best = crf.decode(emissions, lengths)
    emissions[7, 1, 2] = bad  # past the end
    assert np.array_equal(crf.loss(emissions, tags, lengths, "none")[1], want[0][1])
    emissions[3, 1, 2] = bad
    losses, demissions = crf.loss(emissions, tags, lengths, "none")
    marginals = crf.marginals(emissions, lengths)
    others = np.arange(10) != 1
    assert np.isnan(losses[1]) and np.isnan(demissions[:6, 1]).all() and not demissions[6:, 1].any()
    assert np.isnan(marginals[:6, 1]).all()
    assert np.array_equal(losses[others], want[0][0][others])
    assert np.array_equal(demissions[:, others], want[0][1][:, others])
    assert np.array_equal(marginals[:, others], want[1][:, others])
    found, scores = crf.decode(emissions, lengths)
    assert np.array_equal(found[:, others], best[0][:, others])
    assert ((found[:6, 1] >= 0) & (found[:6, 1] < 4)).all() and not np.isfinite(scores[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits_for_any_number_of_threads(dtype: str) -> None:
    emissions, tags, lengths = problem(40, 27, 18, dtype)
    emissions[:, 3] *= 1000
    results = []
    for threads in (1, 2, 3):
        crf = module(18, dtype=dtype)
        with num_threads(threads):
            found = [*crf.loss(emissions, tags, lengths, "none"), crf.flat_grads]
            found += [*crf.decode(emissions, lengths), crf.marginals(emissions, lengths)]
        results.append([array.tobytes() for array in found])
    assert results[0] == results[1] == results[2]


def test_module() -> None:
    """Weights by pytorch-crf's names, in a tree, copied, pickled, trained."""
    rng = np.random.default_rng(0)
    crf = fr.CRF(5, "bio", seed=0)
    assert {name: array.shape for name, array in crf.parameters.items()} == {
        "start_transitions": (5,),
        "transitions": (5, 5),
        "end_transitions": (5,),
    }
    assert np.abs(crf.flat_parameters).max() <= 0.1 and crf.flat_parameters.std() > 0.03
    state = {name: rng.normal(0, 1, array.shape) for name, array in crf.parameters.items()}
    tagger = fr.ModuleDict({"head": fr.Linear(3, 5, seed=0), "crf": crf})
    tagger.load_state_dict({f"crf.{name}": value for name, value in state.items()}, strict=False)
    for name, value in state.items():
        assert_close(crf.parameters[name], value, "parameter")
    emissions = rng.normal(0, 1, (6, 3, 5)).astype(np.float32)
    want = crf.decode(emissions)
    for other in (copy.deepcopy(crf), pickle.loads(pickle.dumps(crf))):
        assert np.array_equal(other.decode(emissions)[1], want[1]) and repr(other) == repr(crf)
    optimizer = fr.optim.Adam(crf, lr=0.1)
    losses = []
    for _ in range(20):
        losses.append(crf.loss(emissions, want[0])[0])
        optimizer.step()
        crf.zero_grad()
    assert losses[-1] < 0.6 * losses[0]
    wide = crf.astype("float64")
    with pytest.raises(TypeError, match=r"^emissions: expected float64"):
        wide.loss(emissions, want[0])


def test_batch_first() -> None:
    emissions, tags, lengths = problem(7, 5, 4)
    crf, first = module(4), module(4, batch_first=True)
    turned = np.ascontiguousarray(emissions.swapaxes(0, 1))
    want, got = crf.loss(emissions, tags, lengths), first.loss(turned, tags.T, lengths)
    assert got[0] == want[0] and np.array_equal(got[1].swapaxes(0, 1), want[1])
    assert np.array_equal(first.flat_grads, crf.flat_grads)
    assert np.array_equal(first.decode(turned, lengths)[0].T, crf.decode(emissions, lengths)[0])
    assert np.array_equal(first.marginals(turned, lengths).swapaxes(0, 1), crf.marginals(emissions, lengths))


@pytest.mark.parametrize(
    ("change", "kind", "name"),
    [
        ({"tags": np.full((4, 2), 3)}, ValueError, "tags"),
        ({"tags": np.full((4, 2), -1)}, ValueError, "tags"),
        ({"tags": np.zeros((3, 2), np.int64)}, ValueError, "tags"),
        ({"tags": np.zeros(4, np.int64)}, ValueError, "tags"),
        ({"tags": np.zeros((4, 2))}, TypeError, "tags"),
        ({"lengths": [4, 5]}, ValueError, "lengths"),
        ({"lengths": [4, -1]}, ValueError, "lengths"),
        ({"lengths": [4]}, ValueError, "lengths"),
        ({"emissions": np.zeros((4, 2, 4))}, ValueError, "emissions"),
        ({"emissions": np.zeros((4, 3))}, ValueError, "emissions"),
        ({"emissions": np.zeros((4, 2, 3), np.float32)}, TypeError, "emissions"),
        ({"emissions": [[[0.0]]]}, TypeError, "emissions"),
        ({"reduction": "tokens"}, ValueError, "reduction"),
    ],
)
def test_bad_arguments(change: dict[str, Any], kind: type[Exception], name: str) -> None:
    """Refused before a gradient is added."""
    crf = module(3)
    arguments: dict[str, Any] = {"emissions": np.zeros((4, 2, 3)), "tags": np.zeros((4, 2), np.int64)}
    with pytest.raises(kind, match=rf"^{name}: expected"):
        crf.loss(**{**arguments, **change})
    assert not crf.flat_grads.any()


def test_nothing() -> None:
    crf = module(3)
    loss, demissions = crf.loss(np.zeros((4, 0, 3)), np.zeros((4, 0), np.int64))
    assert np.isnan(loss) and demissions.shape == (4, 0, 3)
    losses, demissions = crf.loss(np.zeros((0, 2, 3)), np.zeros((0, 2), np.int64), reduction="none")
    assert losses.tolist() == [0.0, 0.0] and demissions.shape == (0, 2, 3)
    assert crf.decode(np.zeros((0, 2, 3)))[0].shape == (0, 2)
    assert not crf.flat_grads.any()


class OnGpu:
    """What says that it is an array on a GPU."""

    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012


def test_arrays_on_a_gpu_are_refused() -> None:
    crf, x = module(3), np.zeros((4, 2, 3))
    calls: dict[str, Any] = {
        "emissions": lambda: crf.decode(OnGpu()),  # type: ignore[arg-type]
        "tags": lambda: crf.loss(x, OnGpu()),  # type: ignore[call-overload]
        "lengths": lambda: crf.marginals(x, OnGpu()),  # type: ignore[arg-type]
    }
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match=rf"^{name}: expected .+, got a OnGpu on a GPU"):
            call()
