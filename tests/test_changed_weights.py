"""Weights that change between calls: none are missed, and gradients are those of the forward call."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import HOST_CELLS, Array, in_threads, make_module, states_of

import fusedrnn as fr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2, 3))
TOKENS = RNG.integers(0, 3, (4, 2))


def fresh(module: Any, x: Array) -> Array:
    """The output of a copy, which has packed nothing yet."""
    return np.asarray(copy.deepcopy(module)(x)[0])


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_a_dictionary_follows_its_module_into_a_tree(cell: str) -> None:
    """What was handed out before a module joined a tree still writes to it, and calls see that."""
    module = make_module(cell, 3, 5)
    held = module.parameters
    net = fr.Module()
    net.rnn = module
    fr.optim.Adam(net)
    before = module(X)[0]
    held["weight_ih_l0"] = 0.0
    after = module(X)[0]
    assert not np.array_equal(after, before)
    assert np.array_equal(after, fresh(module, X))
    outer = fr.Module()
    outer.net, outer.head = net, fr.Linear(2, 2, dtype="float64")
    fr.optim.Adam(outer)
    module(X)
    held["bias_ih_l0"] = 0.0
    assert np.array_equal(module(X)[0], fresh(module, X))


def test_numbers_of_versions_are_given_once() -> None:
    """Threads that load at the same time leave no two states of the weights with one number."""
    lstm = fr.LSTM(2, 2, seed=0)
    state = lstm.state_dict()
    seen: list[int | None] = []

    def load() -> None:
        for _ in range(500):
            lstm.load_state_dict(state)
            seen.append(lstm._buffers.values.version)

    in_threads(load, 3)
    numbers = [number for number in seen if number is not None]
    assert lstm._buffers.values.version == max(numbers)
    views = lstm.parameters
    lstm.load_state_dict(state)
    assert lstm._buffers.values.version is None
    del views
    assert lstm._buffers.values.version not in (None, *numbers)


def test_a_load_that_fails_writes_nothing() -> None:
    """Values are converted before any is written: an overflow is found in time."""
    lstm = fr.LSTM(3, 5, 2, seed=0)
    x = X.astype("float32")
    before, y = lstm.state_dict(), lstm(x)[0]
    bad: dict[str, Any] = {name: np.ones(value.shape) for name, value in before.items()}
    bad["bias_hh_l1"] = np.full(20, 1e300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            lstm.load_state_dict(bad)
    for name, value in lstm.state_dict().items():
        assert np.array_equal(value, before[name]), name
    assert np.array_equal(lstm(x)[0], y)


def test_loading_the_modules_own_arrays() -> None:
    """The values are those before the load, also where one parameter gets another's."""
    gru = fr.GRU(3, 5, seed=0, init="torch")
    before = gru.state_dict()
    own = gru.parameters
    gru.load_state_dict({**own, "bias_ih_l0": own["bias_hh_l0"], "bias_hh_l0": own["bias_ih_l0"]})
    after = gru.state_dict()
    assert np.array_equal(after["bias_ih_l0"], before["bias_hh_l0"])
    assert np.array_equal(after["bias_hh_l0"], before["bias_ih_l0"])


def test_an_interrupted_write_is_seen() -> None:
    """If the library is stopped while it writes, calls look at the weights themselves from then on."""
    lstm = fr.LSTM(3, 5, seed=0)
    x = X.astype("float32")
    lstm(x)
    buffers = lstm._buffers
    buffers.__enter__()
    buffers.parameters[:] = 0.5
    assert np.array_equal(lstm(x)[0], fresh(lstm, x))


@pytest.mark.parametrize("hidden", [64, 128, 256])
@pytest.mark.parametrize("factor", [0.5, 2.0, -1.0])
def test_scaled_weights_are_seen(factor: float, hidden: int) -> None:
    """As many words as these have sums that a difference of all exponents, or of all signs, may vanish in."""
    module = make_module("lstm", hidden, hidden, 1, dtype="float32")
    x = np.ones((1, 1, hidden), "float32")
    parameters = module.parameters
    before = module(x)[0]
    for name in "weight_ih_l0", "weight_hh_l0":
        parameters[name] *= factor
    assert not np.array_equal(module(x)[0], before)
    assert np.array_equal(module(x)[0], fresh(module, x))


@pytest.mark.parametrize("layers", [1, 2])
def test_no_packing_under_another_packings_name(layers: int) -> None:
    """A thread swaps the weights while calls pack them; afterwards each of the two gives its own result."""
    module = make_module("lstm", 64, 64, layers, dtype="float32")
    x = np.ones((1, 1, 64), "float32")
    flat = module.flat_parameters
    choices = [flat.copy(), (flat * 0.5).astype("float32")]
    want = []
    for values in choices:
        flat[:] = values
        want.append(fresh(module, x))
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for values in choices:
                flat[:] = values

    for turn in range(1000):
        stop.clear()
        swapper = threading.Thread(target=swap)
        swapper.start()
        for _ in range(5):
            module(x)
        stop.set()
        swapper.join()
        flat[:] = choices[turn % 2]
        assert np.array_equal(module(x)[0], want[turn % 2]), turn


# Tapes


def linear() -> tuple[Any, Callable[[], tuple[Array, Any]]]:
    module = fr.Linear(3, 6, dtype="float64", seed=1)
    return module, lambda: module.forward(X)


def layer_norm() -> tuple[Any, Callable[[], tuple[Array, Any]]]:
    module = fr.LayerNorm(3, dtype="float64")
    module.parameters["weight"] = [1.0, 2.0, 3.0]
    return module, lambda: module.forward(X)


def cell_step() -> tuple[Any, Callable[[], tuple[Array, Any]]]:
    module = fr.GRUCell(3, 5, dtype="float64", seed=1)
    return module, lambda: module.forward(X[0])


def network(cell: str, recompute: bool) -> tuple[Any, Callable[[], tuple[Array, Any]]]:
    module = make_module(cell, 3, 5, 2, bidirectional=True)
    module.recompute = recompute
    return module, lambda: module.forward(X)[::2]


KINDS: dict[str, Callable[[], tuple[Any, Callable[[], tuple[Array, Any]]]]] = {
    "linear": linear,
    "layer_norm": layer_norm,
    "cell": cell_step,
    **{
        f"{cell}{'_recompute' * recompute}": lambda cell=cell, recompute=recompute: network(cell, recompute)
        for cell in HOST_CELLS
        for recompute in (False, True)
    },
}


@pytest.mark.parametrize("held", [False, True], ids=["loaded", "written"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_forward_call(kind: str, held: bool) -> None:
    """Whatever happened to the parameters since, by the library's own writes or through a view."""
    module, forward = KINDS[kind]()
    y, tape = forward()
    dy = RNG.normal(size=y.shape)

    def gradients() -> list[Array]:
        module.zero_grad()
        parts = module.backward(tape, dy)
        dx, state = parts if isinstance(parts, tuple) else (parts, ())
        return [dx, *states_of(state), module.flat_grads.copy()]

    want = gradients()
    if held:
        module.flat_parameters[:] *= 2.0
    else:
        module.load_state_dict({name: 2.0 * value for name, value in module.state_dict().items()})
    for got, value in zip(gradients(), want, strict=True):
        assert np.array_equal(got, value)
    assert not np.array_equal(forward()[0], y)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rows", [3, 50], ids=["table", "rows"])
def test_gradients_of_a_lookup_are_those_of_the_forward_call(rows: int, recompute: bool) -> None:
    embedding = fr.Embedding(rows, 3, dtype="float64", seed=1)
    lstm = fr.LSTM(3, 5, dtype="float64", seed=2, recompute=recompute)
    given = TOKENS.copy()
    tokens = embedding.lookup(given)
    y, _, tape = lstm.forward(tokens)
    params = {name.removesuffix("_l0"): array for name, array in lstm.state_dict().items()}
    _, _, plain = fr.functional.forward("lstm", tokens, params, recompute=recompute)
    dy = RNG.normal(size=y.shape)

    def gradients() -> list[Array]:
        lstm.zero_grad()
        dx = lstm.backward(tape, dy)[0]
        functional = fr.functional.backward(plain, dy)
        assert functional.x is not None
        return [dx, lstm.flat_grads.copy(), functional.x, *functional.params.values()]

    want = gradients()
    embedding.parameters["weight"] = 7.0
    given[:] = 0
    for got, value in zip(gradients(), want, strict=True):
        assert np.array_equal(got, value)


def test_indices_belong_to_the_tape() -> None:
    embedding = fr.Embedding(5, 2, dtype="float64", seed=0)
    tokens = np.array([4, 4, 1])
    y, tape = embedding.forward(tokens)
    tokens[:] = 0
    embedding.backward(tape, np.ones_like(y))
    assert embedding.grads["weight"][:, 0].tolist() == [0.0, 1.0, 0.0, 0.0, 2.0]


def test_a_lookup_follows_its_embedding() -> None:
    """It stands for the embedding's weight, also after that has moved into a tree."""
    embedding = fr.Embedding(3, 3, dtype="float64", seed=0)
    tokens = embedding.lookup(TOKENS)
    net = fr.Module()
    net.embedding, net.rnn = embedding, fr.LSTM(3, 5, dtype="float64", seed=1)
    net.parameters["embedding.weight"] = 0.25
    assert (np.asarray(tokens) == 0.25).all()
    assert np.array_equal(net.rnn(tokens)[0], net.rnn(np.full((4, 2, 3), 0.25))[0])


def test_tapes_of_unchanged_weights_share_one_copy() -> None:
    module = fr.Linear(3, 6, dtype="float64", seed=1)
    x = X.reshape(-1, 3)
    first, second = module.forward(x)[1], module.forward(x)[1]
    assert first.saved[1] is second.saved[1]
    weight = module.parameters["weight"]
    third = module.forward(x)[1]
    assert third.saved[1] is first.saved[1]
    weight[0, 0] += 1.0
    fourth = module.forward(x)[1]
    assert not np.shares_memory(fourth.saved[1]["weight"], first.saved[1]["weight"])
    weight[0, 0] = np.nan
    assert module.forward(x)[1].saved[1] is module.forward(x)[1].saved[1]
