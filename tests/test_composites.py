"""Modules made of modules: one protocol of forward and backward, checked by central differences."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 2, 3))
WIDE: Any = {"dtype": "float64"}


class Residual(fr.Module):
    """y = x + gain * inner(x), with a parameter of its own."""

    def __init__(self, inner: fr.Module) -> None:
        super().__init__()
        self.inner = inner
        self.parameter("gain", (), init=0.5, dtype="float64")

    def forward(self, x: Any) -> tuple[Any, Any]:
        inner, tape = self.inner.forward(x)
        gain = float(self.gain)
        return x + gain * inner, (tape, inner, gain)

    def backward(self, tape: Any, dy: Any, *, need_dx: bool = True) -> Any:
        inner_tape, inner, gain = tape
        self.grads["gain"] += (dy * inner).sum()
        dx = self.inner.backward(inner_tape, gain * dy, need_dx=need_dx)
        return dy + dx if need_dx else None


def stack() -> fr.Module:
    return fr.Sequential(
        fr.Linear(3, 5, seed=1, **WIDE),
        fr.LSTM(5, 4, 2, bidirectional=True, seed=2, **WIDE),
        fr.LayerNorm(8, **WIDE),
        fr.GRU(8, 3, seed=3, **WIDE),
    )


MODELS: dict[str, Callable[[], Any]] = {
    "linear": lambda: fr.Linear(3, 3, seed=0, **WIDE),
    "layer_norm": lambda: fr.LayerNorm(3, **WIDE),
    "dropout": lambda: fr.Dropout(0.5, seed=0).eval(),
    "sequential": stack,
    "nested": lambda: fr.Sequential(Residual(fr.Sequential(stack(), Residual(stack()))), stack()),
    "empty": lambda: fr.Sequential(),
}


def loss(model: Any, x: Any, weights: Any) -> float:
    return float((np.asarray(model(x)) * weights).sum())


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str) -> None:
    model = MODELS[name]()
    y, tape = model.forward(X)
    assert np.array_equal(y, model(X))
    dy = RNG.normal(size=y.shape)
    dx = model.backward(tape, dy)
    flat, grads = model.flat_parameters, model.flat_grads
    for _ in range(3):
        direction, step = RNG.normal(size=X.shape), 1e-6
        slope = (loss(model, X + step * direction, dy) - loss(model, X - step * direction, dy)) / (2 * step)
        np.testing.assert_allclose((dx * direction).sum(), slope, rtol=1e-6, atol=1e-8)
        if flat.size:
            direction, kept = RNG.normal(size=flat.shape), flat.copy()
            flat[:] = kept + step * direction
            after = loss(model, X, dy)
            flat[:] = kept - step * direction
            slope = (after - loss(model, X, dy)) / (2 * step)
            flat[:] = kept
            np.testing.assert_allclose((grads * direction).sum(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_need_dx(name: str) -> None:
    """Without it there is no dx, and the gradients of the parameters are the same bits."""
    model = MODELS[name]()
    y, tape = model.forward(X)
    model.backward(tape, y.copy())
    want = model.flat_grads.copy()
    model.zero_grad()
    assert model.backward(tape, y.copy(), need_dx=False) is None
    assert np.array_equal(model.flat_grads, want)


def test_a_model_of_tokens() -> None:
    model = fr.Sequential(
        fr.Embedding(7, 4, seed=0, **WIDE), fr.LSTM(4, 5, seed=1, **WIDE), fr.Linear(5, 7, seed=2, **WIDE)
    )
    tokens = np.array([[0, 1], [2, 6], [5, 3]])
    optimiser, losses = fr.optim.Adam(model, lr=0.05), []
    for _ in range(60):
        logits, tape = model.forward(tokens)
        value, dlogits = fr.cross_entropy(logits, tokens)
        assert model.backward(tape, dlogits) is None
        losses.append(value)
        optimiser.step()
        model.zero_grad()
    assert losses[-1] < 0.1 * losses[0]
    assert model[0].grads["weight"].shape == (7, 4)


def test_dropout_in_a_sequence_is_that_of_the_tape() -> None:
    model = fr.Sequential(fr.Dropout(0.5, seed=1), fr.Linear(3, 2, seed=1, **WIDE))
    _, tape = model.forward(X)
    dy = np.ones((4, 2, 2))
    first = model.backward(tape, dy)
    assert np.array_equal(first, model.backward(tape, dy)) and (first == 0.0).any()


def test_the_tape() -> None:
    model = stack()
    _, tape = model.forward(X)
    assert tape.nbytes == sum(part.nbytes for part in tape.tapes) > 0
    with pytest.raises(ValueError, match="tape: expected a tape of this Sequential"):
        stack().backward(tape, np.ones((4, 2, 3)))
    model.append(fr.Linear(3, 3, **WIDE))
    with pytest.raises(ValueError, match="tape: expected one of 5 modules, got one of 4"):
        model.backward(tape, np.ones((4, 2, 3)))


def test_a_call_is_forward_without_the_tape() -> None:
    class Pair(fr.Module):
        def forward(self, x: Any, state: Any = None) -> tuple[Any, Any, Any]:
            return x, state, "tape"

    assert Pair()(1, state=2) == (1, 2)
    assert Residual(fr.Linear(3, 3, seed=0, **WIDE))(X).shape == X.shape
    for call in (fr.Module(), fr.ModuleList(), fr.Module().forward, fr.ModuleDict().forward):
        with pytest.raises(TypeError, match="expected a class that defines forward, got one without"):
            call(X)
    with pytest.raises(TypeError, match="expected a class that defines backward, got one without"):
        fr.Module().backward(None, X)


@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM, fr.GRU])
def test_which_have_a_state(kind: Any) -> None:
    assert kind(2, 3).has_state and not fr.Linear(2, 3).has_state and not fr.Sequential(kind(2, 3)).has_state


# ModuleList and ModuleDict


def linears(count: int) -> list[fr.Module]:
    return [fr.Linear(2, 2, seed=seed) for seed in range(count)]


def test_module_list() -> None:
    a, b, c, d = linears(4)
    layers = fr.ModuleList([a, b])
    layers.append(c)
    layers.insert(1, d)
    assert list(layers) == [a, d, b, c] and len(layers) == 4 and layers[-1] is c and b in layers
    assert list(layers[1:3]) == [d, b] and isinstance(layers[1:3], fr.ModuleList)
    assert [name for name, _ in layers.named_children()] == ["0", "1", "2", "3"]
    layers[0] = fr.Dropout(0.5)
    del layers[1]
    layers.extend([d])
    assert list(layers.parameters) == ["1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
    for bad in (lambda: layers.append(3), lambda: fr.ModuleList([a, None]), lambda: fr.Sequential([a])):
        with pytest.raises(TypeError, match=r"modules\[\d\]: expected a Module, got"):
            bad()
    assert len(layers) == 4


def test_module_dict() -> None:
    a, b, c, d = linears(4)
    heads = fr.ModuleDict({"left": a, "training": b})
    heads["left"] = c
    heads.update([("right", d)])
    assert list(heads) == heads.keys() == ["left", "training", "right"] and len(heads) == 3
    assert heads["left"] is c and "right" in heads and "up" not in heads and heads.values() == [c, b, d]
    assert heads.training is True
    del heads["training"]
    assert [name for name, _ in heads.items()] == ["left", "right"]
    assert list(heads.parameters) == ["left.weight", "left.bias", "right.weight", "right.bias"]
    for name, module, kind in (
        (3, a, TypeError),
        ("a.b", a, ValueError),
        ("", a, ValueError),
        ("a", 3, TypeError),
    ):
        with pytest.raises(kind, match="expected"):
            heads[name] = module  # type: ignore[index,assignment]
    assert len(heads) == 2


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(how: Callable[[Any], Any]) -> None:
    model = fr.Module()
    model.body, model.heads = stack(), fr.ModuleDict({"a": fr.ModuleList(linears(2))}).astype("float64")
    other = how(model)
    assert list(other.parameters) == list(model.parameters)
    assert np.array_equal(other.body(X), model.body(X)) and repr(other) == repr(model)
    other.flat_parameters[:] = 0.0
    assert model.flat_parameters.any() and not other.heads["a"][1].parameters["weight"].any()


# Lengths that no member looks at ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        fr.Sequential(fr.Linear(3, 3), fr.Tanh()),
        fr.Residual(fr.Linear(3, 3)),
        fr.Concat(fr.Linear(3, 2), fr.Tanh()),
        fr.Sequential(fr.Sequential(fr.Linear(3, 3)), fr.Residual(fr.Tanh())),
        fr.Sequential(),
    ],
    ids=lambda block: type(block).__name__,
)
def test_lengths_are_looked_at_by_someone(block: Any) -> None:
    """Steps of a batch are taken apart, so lengths change nothing; such as x cannot have are refused."""
    x = np.ones((5, 2, 3), np.float32)
    for lengths in ([5, 0], np.array([1, 2]), [4, 1], [2, 1, 2, 0, 0]):
        np.testing.assert_array_equal(block(x, lengths), block(x))
        np.testing.assert_array_equal(block.forward(x, lengths)[0], block(x))
    np.testing.assert_array_equal(block(x[:, 0], [3]), block(x[:, 0]))
    for bad, kind in (
        ([6, 1], ValueError),
        ([-1, 1], ValueError),
        ([1, 1, 1], ValueError),
        ([[1, 1]], ValueError),
        ([3, 1, 1, 1, 1], ValueError),
        ([1.5, 1.0], TypeError),
        ("ab", TypeError),
    ):
        for call in (block, block.forward):
            with pytest.raises(kind, match=r"^lengths: expected"):
                call(x, bad)
