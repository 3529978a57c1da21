"""Initialisers: distributions, orthogonality, and the same numbers from the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import DTYPES, Array, make_module, num_threads

import fusedrnn as fr
from fusedrnn import init

pytestmark = pytest.mark.once

SHAPE = (300, 200)  # fan_out, fan_in

UNIFORM: dict[str, tuple[Callable[..., Array], float]] = {
    "xavier": (init.xavier_uniform, np.sqrt(6 / 500)),
    "xavier_gain": (lambda a, rng: init.xavier_uniform(a, 2.0, rng=rng), 2.0 * np.sqrt(6 / 500)),
    "he_in": (init.he_uniform, np.sqrt(6 / 200)),
    "he_out": (lambda a, rng: init.he_uniform(a, mode="fan_out", rng=rng), np.sqrt(6 / 300)),
    "torch": (lambda a, rng: init.torch_uniform(a, 64, rng=rng), 1 / 8),
}
NORMAL: dict[str, tuple[Callable[..., Array], float]] = {
    "xavier": (init.xavier_normal, np.sqrt(2 / 500)),
    "he_in": (init.he_normal, np.sqrt(2 / 200)),
    "he_out": (lambda a, rng: init.he_normal(a, mode="fan_out", rng=rng), np.sqrt(2 / 300)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNIFORM)
def test_uniform(name: str, dtype: str) -> None:
    fill, bound = UNIFORM[name]
    array = np.full(SHAPE, np.nan, dtype)
    assert fill(array, rng=0) is array
    assert np.abs(array).max() <= bound * (1 + 1e-6) and np.abs(array).max() > 0.999 * bound
    assert abs(array.mean()) < 6 * bound / np.sqrt(3 * array.size)
    assert abs(array.std() / (bound / np.sqrt(3)) - 1) < 0.01


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NORMAL)
def test_normal(name: str, dtype: str) -> None:
    fill, std = NORMAL[name]
    array = np.full(SHAPE, np.nan, dtype)
    assert fill(array, rng=0) is array
    assert abs(array.mean()) < 6 * std / np.sqrt(array.size)
    assert abs(array.std() / std - 1) < 0.02
    assert np.abs(array).max() > 3 * std


# Up to three blocks of reflections, and the ends of one.
ORTHOGONAL = [(8, 8), (20, 5), (5, 20), (1, 7), (7, 1), (1, 1), (96, 96), (97, 97), (300, 193), (50, 200)]


@pytest.mark.parametrize("shape", ORTHOGONAL, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_orthogonal(shape: tuple[int, int], dtype: str) -> None:
    q = init.orthogonal(np.empty(shape, dtype), 2.0, rng=0).astype("float64")
    product = q @ q.T if shape[0] <= shape[1] else q.T @ q
    assert np.abs(product - 4.0 * np.eye(min(shape))).max() < (1e-12 if dtype == "float64" else 1e-5)


def test_orthogonal_is_not_biased() -> None:
    """The first entry of random orthogonal matrices has mean 0: QR alone would give it one sign."""
    rng = np.random.default_rng(0)
    signs = [np.sign(init.orthogonal(np.empty((3, 3)), rng=rng)[0, 0]) for _ in range(400)]
    assert abs(np.mean(signs)) < 0.3


@pytest.mark.parametrize("n", [3, 100])
def test_orthogonal_is_uniform(n: int) -> None:
    """The trace of a uniform orthogonal matrix has mean 0 and variance 1; so has that of its rotations."""
    rng = np.random.default_rng(0)
    fixed = np.linalg.qr(np.random.default_rng(1).standard_normal((n, n)))[0]
    drawn = [init.orthogonal(np.empty((n, n)), rng=rng) for _ in range(1000)]
    for traces in ([np.trace(q) for q in drawn], [np.sum(q * fixed) for q in drawn]):
        assert abs(np.mean(traces)) < 0.13 and 0.8 < np.var(traces) < 1.25


def test_orthogonal_has_the_same_bits_on_any_threads() -> None:
    drawn = []
    for threads in (1, 2, 3):
        with num_threads(threads):
            drawn.append(init.orthogonal(np.empty((400, 300)), rng=0))
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], drawn[2])


def test_long_draws_are_those_of_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    for fill in (init.xavier_uniform, init.he_normal):
        whole = fill(np.empty((50, 7)), rng=0)
        monkeypatch.setattr(init, "_PART", 20)
        assert np.array_equal(fill(np.empty((50, 7)), rng=0), whole)
        monkeypatch.undo()


def test_forget_gate_bias() -> None:
    bias = np.zeros(12, np.float32)
    init.forget_gate_bias(bias, 1.5)
    assert bias.tolist() == [0.0] * 3 + [1.5] * 3 + [0.0] * 6


FILLS: dict[str, Callable[..., Any]] = {
    "xavier_uniform": init.xavier_uniform,
    "xavier_normal": init.xavier_normal,
    "he_uniform": init.he_uniform,
    "he_normal": init.he_normal,
    "orthogonal": init.orthogonal,
    "torch_uniform": lambda a, rng: init.torch_uniform(a, 3, rng=rng),
}


@pytest.mark.parametrize("name", FILLS)
def test_reproducible(name: str) -> None:
    """By int seed and by Generator, which goes on from where it is."""
    fill = FILLS[name]

    def drawn(rng: Any) -> Array:
        return np.asarray(fill(np.empty((6, 4)), rng=rng))

    assert np.array_equal(drawn(5), drawn(5)) and not np.array_equal(drawn(5), drawn(6))
    assert np.array_equal(drawn(np.random.default_rng(5)), drawn(5))
    generator = np.random.default_rng(5)
    assert not np.array_equal(drawn(generator), drawn(generator))
    assert not np.array_equal(drawn(None), drawn(None))


@pytest.mark.parametrize("name", FILLS)
def test_errors(name: str) -> None:
    fill = FILLS[name]
    with pytest.raises(TypeError, match="array"):
        fill(np.zeros((2, 2), np.int64), rng=0)
    with pytest.raises(TypeError, match="array"):
        fill([[0.0]], rng=0)
    frozen = np.zeros((2, 2))
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        fill(frozen, rng=0)
    with pytest.raises(TypeError, match="rng"):
        fill(np.zeros((2, 2)), rng="a")
    with pytest.raises(ValueError, match="rng"):
        fill(np.zeros((2, 2)), rng=-1)
    assert not frozen.any()


@pytest.mark.parametrize("fill", [fr.init.xavier_uniform, fr.init.xavier_normal, fr.init.orthogonal])
def test_a_gain_that_is_no_finite_number(fill: Any) -> None:
    array = np.zeros((2, 3))
    for gain, kind in ((np.nan, ValueError), (np.inf, ValueError), ("2", TypeError)):
        with pytest.raises(kind, match=r"^gain: expected a number"):
            fill(array, gain)
    assert not array.any()


@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_modules(cell: str) -> None:
    """Defaults: gate by gate Xavier inputs and orthogonal recurrence, zero biases but for the forget gate."""
    module = make_module(cell, 6, 10, 2, bidirectional=True, seed=4)
    again = make_module(cell, 6, 10, 2, bidirectional=True, seed=np.random.default_rng(4))
    other = make_module(cell, 6, 10, 2, bidirectional=True, seed=5)
    assert np.array_equal(module.flat_parameters, again.flat_parameters)
    assert not np.array_equal(module.flat_parameters, other.flat_parameters)
    for name, p in module.parameters.items():
        if name.startswith("weight_hh"):
            for block in np.split(p, p.shape[0] // 10):
                gram = block @ block.T if block.shape[0] <= block.shape[1] else block.T @ block
                assert np.abs(gram - np.eye(len(gram))).max() < 1e-12
        elif name.startswith("weight_ih"):
            assert np.abs(p).max() <= np.sqrt(6 / (10 + p.shape[1])) and p.std() > 0
        elif name.startswith("bias_ih") and cell.startswith("lstm"):
            assert p.tolist() == [0.0] * 10 + [1.0] * 10 + [0.0] * 20
        elif name.startswith("bias"):
            assert not p.any()


def test_modules_as_torch_does() -> None:
    module = fr.LSTM(6, 64, 2, init="torch", seed=0)
    for p in module.parameters.values():
        assert 0.11 < np.abs(p).max() <= 1 / 8
    assert fr.LSTM(6, 64, forget_bias=0.5, seed=0).parameters["bias_ih_l0"][64] == 0.5
    with pytest.raises(ValueError, match="init"):
        fr.LSTM(6, 64, init="keras")


@pytest.mark.parametrize("make", [fr.LSTM, fr.GRU, fr.RNN, fr.LSTMCell, fr.GRUCell, fr.RNNCell])
def test_no_initialisation(make: Any) -> None:
    """init=None draws nothing and leaves zeros, which a load replaces."""
    rng = np.random.default_rng(0)
    module = make(6, 64, init=None, seed=rng)
    if make in (fr.LSTMCell, fr.GRUCell, fr.RNNCell):
        assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state
    assert not module.flat_parameters.any()
    other = make(6, 64, seed=1)
    module.load_state_dict(other.state_dict())
    assert np.array_equal(module.flat_parameters, other.flat_parameters)


@pytest.mark.parametrize("make", [fr.Linear, fr.Embedding])
def test_layers_without_initialisation(make: Any) -> None:
    rng = np.random.default_rng(0)
    assert not make(6, 64, init=None, seed=rng).flat_parameters.any()
    assert rng.bit_generator.state == np.random.default_rng(0).bit_generator.state
    for method in ("default", "torch"):
        assert np.array_equal(
            make(6, 64, init=method, seed=1).flat_parameters, make(6, 64, seed=1).flat_parameters
        )
    with pytest.raises(ValueError, match=r"^init: expected 'default', 'torch' or None, got 'keras'"):
        make(6, 64, init="keras")


def test_float32_and_float64_draw_the_same_numbers() -> None:
    wide, narrow = (fr.GRU(5, 7, dtype=dtype, seed=3).flat_parameters for dtype in ("float64", "float32"))
    assert np.array_equal(wide.astype("float32"), narrow)
