"""Parameters and buffers of a user's own, and modules where they would not be found."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr


class Scale(fr.Module):
    """y = x * scale + shift; it counts its calls of forward."""

    def __init__(self, size: int = 3, dtype: str = "float64") -> None:
        super().__init__()
        self.parameter("scale", size, init=1.0, dtype=dtype)
        self.parameter("shift", (size,), init=np.arange(size))
        self.buffer("count", (), dtype=np.int64)
        self.buffer("mean", size, init=0.5)

    def forward(self, x: Any) -> tuple[Any, Any]:
        self.count = self.count + 1
        return x * self.scale + self.shift, (x, self.scale.copy())

    def backward(self, tape: Any, dy: Any, *, need_dx: bool = True) -> Any:
        x, scale = tape
        self.grads["scale"] += (dy * x).reshape(-1, dy.shape[-1]).sum(0)
        self.grads["shift"] += dy.reshape(-1, dy.shape[-1]).sum(0)
        return dy * scale if need_dx else None


class Net(fr.Module):
    """A Scale between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = fr.Linear(2, 3, dtype="float64", seed=1)
        self.own = Scale()
        self.last = fr.Linear(3, 2, dtype="float64", seed=2)


def test_they_are_listed_and_saved() -> None:
    net = Net()
    names = ["first.weight", "first.bias", "own.scale", "own.shift", "last.weight", "last.bias"]
    assert list(net.parameters) == names and list(net.grads) == names
    assert [name for name, _ in net.named_buffers()] == ["own.count", "own.mean"]
    assert net.num_parameters == net.flat_parameters.size == 6 + 3 + 3 + 3 + 6 + 2
    assert list(net.state_dict()) == [*names, "own.count", "own.mean"]
    assert net.own.shift.tolist() == [0.0, 1.0, 2.0] and net.own.shift.dtype == np.float64
    net.parameters["own.scale"] = [1.0, 2.0, 3.0]
    assert net.own(np.ones(3)).tolist() == [1.0, 3.0, 5.0]
    assert net.own.count == 1
    other = Net()
    other.load_state_dict(net.state_dict())
    assert other.own.count == 1 and other.own.scale.tolist() == [1.0, 2.0, 3.0]


def test_they_train_and_buffers_do_not() -> None:
    net = Net()
    optimiser = fr.optim.SGD(net, lr=0.5)
    y, tape = net.own.forward(np.ones((4, 3)))
    net.own.backward(tape, np.ones_like(y))
    optimiser.step()
    assert net.own.scale.tolist() == [-1.0] * 3 and net.own.shift.tolist() == [-2.0, -1.0, 0.0]
    assert net.own.mean.tolist() == [0.5] * 3
    assert sorted(optimiser.state_dict()) == sorted(fr.optim.SGD(Net(), lr=0.5).state_dict())


def test_added_to_what_has_parameters() -> None:
    """Values and gradients of those there were stay, and dictionaries that are held follow."""
    module = fr.Linear(2, 3, seed=0)
    before, held = module.state_dict(), module.parameters
    module.grads["bias"] = 2.0
    module.parameter("gain", (), init=4.0)
    assert list(module.parameters) == ["weight", "bias", "gain"] and module.parameters is held
    assert np.array_equal(held["weight"], before["weight"]) and held["gain"] == 4.0
    assert module.grads["bias"].tolist() == [2.0] * 3 and module.grads["gain"] == 0.0
    x = np.ones((1, 2), "float32")
    held["weight"] = 0.0
    assert np.array_equal(module(x)[0], before["bias"])


@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_have_arrays_of_their_own(how: Callable[[Any], Any]) -> None:
    net = Net()
    net.own(np.ones(3))
    other = how(net)
    other.own(np.ones(3))
    other.parameters["own.scale"] = 0.0
    assert (net.own.count, other.own.count) == (1, 2)
    assert net.own.scale.tolist() == [1.0] * 3 and other.own.scale.tolist() == [0.0] * 3


def test_initial_values() -> None:
    module = fr.Module()
    module.parameter("a", (4, 3), init=lambda array: fr.init.xavier_uniform(array, rng=0))
    want = fr.init.xavier_uniform(np.empty((4, 3), "float32"), rng=0)
    assert np.array_equal(module.a, want)
    module.buffer("seen", 2, init=[True, False], dtype=bool)
    assert module.seen.tolist() == [True, False]


def test_reading_is_not_writing() -> None:
    """`module.name` is read-only, so that reading it costs later calls nothing."""
    module = Scale()
    version = module._buffers.values.version
    with pytest.raises(ValueError, match="read-only"):
        module.scale[0] = 1.0
    with pytest.raises(TypeError, match=r"scale: a parameter; write to it with parameters\['scale'\]"):
        module.scale = np.zeros(3)
    module.mean = 0.25
    assert module.mean.tolist() == [0.25] * 3
    module.mean[1] = 7.0
    assert module.state_dict()["mean"].tolist() == [0.25, 7.0, 0.25]
    with pytest.raises(ValueError, match="shape"):
        module.mean = np.zeros(4)
    with pytest.raises(TypeError, match="Cannot cast"):
        module.count = 0.5
    assert module._buffers.values.version == version
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: m.parameter("scale", 3), ValueError, "name: expected a free attribute name"),
        (lambda m: m.buffer("mean", 3), ValueError, "name: expected a free attribute name"),
        (lambda m: m.parameter("training", 3), ValueError, "name: expected a free attribute name"),
        (lambda m: m.parameter("a.b", 3), ValueError, "name: expected a free attribute name"),
        (lambda m: m.parameter(3, 3), TypeError, "name: expected a string"),
        (lambda m: m.parameter("new", -1), ValueError, "shape: expected an int >= 0"),
        (lambda m: m.parameter("new", 2.0), TypeError, "shape: expected an int"),
        (lambda m: m.parameter("new", 2, init=np.zeros(3)), ValueError, r"new: expected shape \(2,\)"),
        (lambda m: m.parameter("new", 2, init="no"), TypeError, "new: expected values of float64"),
        (lambda m: m.parameter("new", 2, dtype="float32"), TypeError, "dtype: expected float64 as this"),
        (lambda m: m.parameter("new", 2, dtype="int64"), TypeError, "dtype: expected float32 or float64"),
        (lambda m: m.buffer("new", 2, dtype=object), TypeError, "dtype: expected one of floats"),
        (lambda m: m.add_module("scale", fr.Module()), ValueError, "name: expected a free attribute name"),
    ],
)
def test_refused(call: Callable[[Any], Any], kind: type[Exception], message: str) -> None:
    module = Scale()
    before = module.state_dict()
    with pytest.raises(kind, match=message):
        call(module)
    assert list(module.state_dict()) == list(before)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"own.count": np.float64(1.5)}, TypeError, "own.count: expected a dtype that casts to int64"),
        ({"own.mean": np.zeros(4)}, ValueError, r"own.mean: expected shape \(3,\)"),
        ({"own.mean": None}, ValueError, "missing: own.mean"),
        ({"own.other": np.zeros(4)}, ValueError, "unexpected: own.other"),
    ],
)
def test_a_bad_load_writes_nothing(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    net = Net()
    before = net.state_dict()
    given = {name: value + 1 for name, value in before.items()}
    given = {name: value for name, value in {**given, **change}.items() if value is not None}
    with pytest.raises(kind, match=message):
        net.load_state_dict(given)
    for name, value in net.state_dict().items():
        assert np.array_equal(value, before[name]), name


# Modules in plain containers


def layer() -> fr.Linear:
    return fr.Linear(2, 2, seed=0)


HIDDEN: dict[str, Callable[[], Any]] = {
    "list": lambda: [layer()],
    "tuple": lambda: (1, layer()),
    "dict": lambda: {"a": layer()},
    "set": lambda: {layer()},
    "list in list": lambda: [[], [layer()]],
    "dict of lists": lambda: {"a": {"b": [0, (layer(),)]}},
}
USES: dict[str, Callable[[Any], Any]] = {
    "parameters": lambda net: net.parameters,
    "flat": lambda net: net.flat_parameters,
    "count": lambda net: net.num_parameters,
    "state": lambda net: net.state_dict(),
    "load": lambda net: net.load_state_dict({}, strict=False),
    "optimiser": lambda net: fr.optim.Adam(net),
    "astype": lambda net: net.astype("float64"),
    "to": lambda net: net.to("cpu"),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_modules_in_plain_containers_are_refused(kind: str) -> None:
    net = fr.Module()
    with pytest.raises(TypeError, match=r"layers: modules in a \w+ are not found; use ModuleList or"):
        net.layers = HIDDEN[kind]()


@pytest.mark.parametrize("use", USES)
def test_modules_put_there_later_are_found_when_the_tree_is_used(use: str) -> None:
    outer, net = fr.Module(), fr.Module()
    net.layers, net.head = [], layer()
    outer.net = net
    USES[use](outer)
    net.layers.append({"a": layer()})
    with pytest.raises(TypeError, match=r"net\.layers: modules in a dict are not found"):
        USES[use](outer)


def test_children_may_stand_in_containers_too() -> None:
    net = fr.Module()
    net.head = layer()
    net.order = [net.head, (net.head, "twice"), 3]
    loop: list[Any] = [1]
    loop.append(loop)
    net.loop = loop
    assert list(net.parameters) == ["head.weight", "head.bias"]
    fr.optim.Adam(net)
