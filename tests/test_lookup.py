"""Lookup: a table and indices in place of the rows themselves give the same outputs and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from support import states_of

import fusedrnn as fr

Array = npt.NDArray[Any]
KINDS = {"lstm": fr.LSTM, "gru": fr.GRU, "rnn": fr.RNN}
T, B, I, H = 13, 4, 5, 19


def _run(module: Any, x: Any, dy: Array, **options: Any) -> tuple[list[Array], Array, dict[str, Array]]:
    """Outputs, final states and the gradients of the initial ones; those of the input, and of parameters."""
    module.zero_grad()
    y, state, tape = module.forward(x, **options)
    dx, dstate = module.backward(tape, dy)
    results = [y, *states_of(state), *states_of(dstate)]
    return results, dx, {name: grad.copy() for name, grad in module.grads.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 11, 300], ids="V={}".format)
@pytest.mark.parametrize("layout", ["time", "batch_first", "stacked", "single"])
@pytest.mark.parametrize("threads", [1, 2])
def test_lookup_equals_rows(kind: str, rows: int, layout: str, threads: int) -> None:
    rng = np.random.default_rng(rows)
    options: dict[str, Any] = {"dtype": "float64", "seed": 1, "bidirectional": True}
    shape: tuple[int, ...] = (T, B)
    extra: dict[str, Any] = {}
    if layout == "batch_first":
        options["batch_first"], shape = True, (B, T)
    elif layout == "stacked":
        options["num_layers"] = 2
        extra = {"lengths": [3, 13, 0, 7], "resets": rng.random((T, B)) < 0.2}
    elif layout == "single":
        shape = (T,)
    module = KINDS[kind](I, H, **options)
    table, indices = rng.standard_normal((rows, I)), rng.integers(0, rows, shape)
    dy = rng.standard_normal((*shape, 2 * H))
    before = fr.get_num_threads()
    fr.set_num_threads(threads)
    try:
        expected, dx, grads = _run(module, table[indices], dy, **extra)
        outputs, dtable, found = _run(module, fr.Lookup(table, indices), dy, **extra)
    finally:
        fr.set_num_threads(before)
    for got, want in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(got, want)
    summed = np.zeros_like(table)
    np.add.at(summed, indices, dx)
    np.testing.assert_allclose(dtable, summed, rtol=1e-10, atol=1e-12)
    for name, grad in grads.items():
        np.testing.assert_allclose(found[name], grad, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("rows", [3, 300])
def test_functional_and_inference(rows: int) -> None:
    rng = np.random.default_rng(2)
    module = fr.GRU(I, H, dtype="float64", seed=1)
    params = {name.removesuffix("_l0"): array for name, array in module.parameters.items()}
    lookup = fr.Lookup(rng.standard_normal((rows, I)), rng.integers(0, rows, (T, B)))
    dy = rng.standard_normal((T, B, H))
    expected, dx, grads = _run(module, lookup, dy)
    np.testing.assert_array_equal(module(lookup)[0], expected[0])
    y, _, tape = fr.functional.forward("gru", lookup, params)
    np.testing.assert_array_equal(y, expected[0])
    found = fr.functional.backward(tape, dy)
    assert found.x is not None and found.x.shape == lookup.table.shape
    np.testing.assert_array_equal(found.x, dx)
    for name, grad in found.params.items():
        np.testing.assert_array_equal(grad, grads[name + "_l0"], err_msg=name)


@pytest.mark.parametrize("rows", [5, 300])
def test_embedding_takes_the_tables_gradient(rows: int) -> None:
    rng = np.random.default_rng(3)
    embedding = fr.Embedding(rows, I, padding_idx=2, dtype="float64", seed=1)
    module = fr.LSTM(I, H, dtype="float64", seed=1)
    indices, dy = rng.integers(0, 5, (T, B)), rng.standard_normal((T, B, H))
    x, tape = embedding.forward(indices)
    embedding.backward(tape, _run(module, x, dy)[1])
    expected = embedding.grads["weight"].copy()
    embedding.zero_grad()
    lookup = embedding.lookup(indices)
    embedding.backward(lookup, _run(module, lookup, dy)[1])
    np.testing.assert_allclose(embedding.grads["weight"], expected, rtol=1e-10, atol=1e-12)
    assert not embedding.grads["weight"][2].any()


def test_tables_of_no_use() -> None:
    lstm = fr.LSTM(I, H, dtype="float64", seed=1)
    table = np.ones((4, I))
    y, _, tape = lstm.forward(fr.Lookup(table, np.zeros((0, B), int)))
    assert y.shape == (0, B, H)
    dx, _ = lstm.backward(tape, y)
    np.testing.assert_array_equal(dx, np.zeros((4, I)))
    y, _, tape = lstm.forward(fr.Lookup(table, np.zeros((T, 0), int)))
    np.testing.assert_array_equal(lstm.backward(tape, y)[0], np.zeros((4, I)))


def test_a_lookup_reads_as_an_array() -> None:
    table = np.arange(6.0).reshape(3, 2)
    lookup = fr.Lookup(table, [[0, 2], [1, 1]])
    assert lookup.shape == (2, 2, 2) and lookup.ndim == 3 and lookup.dtype == np.float64
    np.testing.assert_array_equal(np.asarray(lookup), table[[[0, 2], [1, 1]]])
    assert np.asarray(lookup, dtype=np.float32).dtype == np.float32
    assert repr(lookup) == "Lookup(table=(3, 2), indices=(2, 2), dtype=float64)"


def test_errors() -> None:
    table = np.zeros((3, I), np.float32)
    lstm = fr.LSTM(I, H, seed=1)
    with pytest.raises(TypeError, match=r"^indices: expected .*int"):
        fr.Lookup(table, np.zeros((T, B)))
    with pytest.raises(TypeError, match=r"^table: expected a numpy.ndarray, got list"):
        fr.Lookup([[1.0]], [[0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^table: expected shape \(V, I\), got \(3,\)"):
        fr.Lookup(table[:, 0], [[0]])
    for size in (T, 1):  # looked up by the kernels, and copied beforehand
        for bad in (-1, 3):
            with pytest.raises(
                ValueError, match=rf"^indices: expected values in \[0, V\) = \[0, 3\), got {bad}"
            ):
                lstm(fr.Lookup(table, np.full((size, 1), bad)))
    with pytest.raises(ValueError, match=r"^x: expected shape \(T, B, I\)"):
        lstm(fr.Lookup(np.zeros((3, I + 1), np.float32), [[0]]))
    embedding = fr.Embedding(3, I, seed=1)
    with pytest.raises(ValueError, match=r"^tape: expected a lookup of this Embedding"):
        embedding.backward(fr.Lookup(table, [[0]]), table)
    with pytest.raises(ValueError, match=r"^dy: expected shape \(V, D\) = \(3, 5\), got \(1, 1, 5\)"):
        embedding.backward(embedding.lookup([[0]]), np.zeros((1, 1, I), np.float32))


@pytest.mark.parametrize("size", [0, 1, T])  # nothing to look up, copied beforehand, looked up by the kernels
def test_a_table_whose_shape_was_set(size: int) -> None:
    table = np.zeros((3, I))
    lookup = fr.Lookup(table, np.zeros((size, 1), int))
    table.shape = (I, 3)
    lstm = fr.LSTM(I, H, seed=1, dtype="float64")
    for call in (lstm, lstm.forward, lambda x: np.asarray(x)):
        with pytest.raises(ValueError, match=rf"^table: expected shape \(3, {I}\), as .*, got \({I}, 3\)"):
            call(lookup)
    params = {name.removesuffix("_l0"): value for name, value in lstm.parameters.items()}
    with pytest.raises(ValueError, match=r"^table: expected shape"):
        fr.functional.forward("lstm", lookup, params)
