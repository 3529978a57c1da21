"""Parameter groups, frozen modules and other dtypes of whole models."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

OPTIMISERS: dict[str, Callable[..., Any]] = {
    "sgd": fr.optim.SGD,
    "momentum": lambda modules, **options: fr.optim.SGD(modules, momentum=0.9, nesterov=True, **options),
    "adam": fr.optim.Adam,
    "adamw": fr.optim.AdamW,
}


def model() -> Any:
    return fr.Sequential(fr.Linear(3, 4, seed=0), fr.GRU(4, 5, seed=1), fr.Linear(5, 2, seed=2))


def train(net: Any, optimiser: Any, steps: int = 3) -> None:
    for step in range(steps):
        net.flat_grads[:] = np.sin(np.arange(net.flat_grads.size) + step)
        optimiser.step()


def values(net: Any) -> Any:
    return np.concatenate([array.ravel() for array in net.state_dict().values()])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_groups_are_optimisers_of_their_own(name: str) -> None:
    """The same bits as one optimiser for each group."""
    make, net, apart = OPTIMISERS[name], model(), model()
    groups = [{"params": net[0], "lr": 0.5}, {"params": [net[2], net[1]], "weight_decay": 0.25}]
    grouped = make(groups, lr=0.125)
    first, second = make(apart[0], lr=0.5), make([apart[2], apart[1]], lr=0.125, weight_decay=0.25)
    for step in range(3):
        for one in (net, apart):
            one.flat_grads[:] = np.sin(np.arange(one.flat_grads.size) + step)
        grouped.step()
        first.step()
        second.step()
        assert np.array_equal(values(net), values(apart)), step
    assert [group["lr"] for group in grouped.param_groups] == [0.5, 0.125]
    assert grouped.param_groups[1]["params"] == [net[2], net[1]]
    assert not np.array_equal(values(net), values(model()))


def test_settings_of_groups() -> None:
    net = model()
    optimiser = fr.optim.SGD([{"params": net[0], "lr": 0.5}, {"params": net[2]}], lr=0.25, weight_decay=0.125)
    first, second = optimiser.param_groups
    optimiser.lr = 1.0
    assert (first["lr"], second["lr"], optimiser.lr) == (0.5, 1.0, 1.0)
    second["lr"] = 2.0
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 2.0]
    assert dict(second)["weight_decay"] == 0.125 and len(second) == len(list(second)) == 6
    del first["lr"]
    assert first["lr"] == 1.0
    for name, value, kind in (
        ("lr", -1.0, ValueError),
        ("lr", "fast", TypeError),
        ("speed", 1.0, ValueError),
    ):
        with pytest.raises(kind, match=f"{name}: expected"):
            second[name] = value
    with pytest.raises(ValueError, match="nesterov: expected momentum > 0"):
        second["nesterov"] = True
    second["momentum"] = 0.5
    second["nesterov"] = True
    with pytest.raises(ValueError, match="nesterov: expected momentum > 0"):
        second["momentum"] = 0.0
    train(net, optimiser)
    assert "lr': 2.0" in repr(optimiser) and repr(optimiser).startswith("SGD([{")
    assert len(fr.optim.SGD(net).param_groups) == 1


@pytest.mark.parametrize("name", OPTIMISERS)
def test_state_of_groups(name: str) -> None:
    """Saved and loaded, it goes on with the same bits."""

    def build() -> tuple[Any, Any]:
        net = model()
        return net, OPTIMISERS[name]([{"params": net[0], "lr": 0.5}, {"params": [net[1], net[2]]}], lr=0.1)

    net, optimiser = build()
    train(net, optimiser)
    optimiser.param_groups[0]["lr"] = 0.75
    state = optimiser.state_dict()
    assert state["group.0.lr"] == 0.75
    other, loaded = build()
    other.load_state_dict(net.state_dict())
    loaded.load_state_dict(state)
    assert loaded.param_groups[0]["lr"] == 0.75
    copied = pickle.loads(pickle.dumps((net, optimiser)))
    for one in ((net, optimiser), (other, loaded), copied, copy.deepcopy((net, optimiser))):
        train(*one)
        assert np.array_equal(values(one[0]), values(net))
    with pytest.raises(ValueError, match=r"missing: group\.0\.lr"):
        loaded.load_state_dict({key: value for key, value in state.items() if key != "group.0.lr"})
    with pytest.raises(ValueError, match="lr: expected a number"):
        loaded.load_state_dict({**state, "group.0.lr": -1.0})
    assert loaded.param_groups[0]["lr"] == 0.75


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda net: [], ValueError, "modules: expected a Module, a list of them or of groups, got none"),
        (lambda net: [{"lr": 0.5}], ValueError, r"modules\[0\]: expected a group with 'params'"),
        (
            lambda net: [{"params": net[0]}, net[1]],
            TypeError,
            r"modules\[1\]: expected a group as",
        ),
        (lambda net: [{"params": net[0]}, {"params": net}], ValueError, "modules that share nothing"),
        (lambda net: [{"params": net.parameters}], TypeError, "give the module itself"),
        (lambda net: [{"params": net, "momentum": 0.5}], ValueError, "momentum: expected one of lr, betas"),
    ],
)
def test_bad_groups(make: Callable[[Any], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        fr.optim.Adam(make(model()))


# Frozen modules


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_frozen_modules_stay(name: str, frozen: tuple[int, ...]) -> None:
    """And the others get the bits that they get without them."""
    net, free = model(), model()
    for index in frozen:
        assert net[index].requires_grad_(False) is net[index] and not net[index].requires_grad
    assert net.requires_grad == (len(frozen) < 3)
    before = net.state_dict()
    train(net, OPTIMISERS[name](net, lr=0.1, weight_decay=0.5))
    train(free, OPTIMISERS[name](free, lr=0.1, weight_decay=0.5))
    for key, value in net.state_dict().items():
        want = before[key] if int(key[0]) in frozen else free.state_dict()[key]
        assert np.array_equal(value, want), key
    assert list(net.parameters) == list(free.parameters)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: fr.LSTM(4, 4, 2, bidirectional=True, seed=0),
        lambda: fr.GRU(4, 4, seed=0),
        lambda: fr.MGU(4, 4, seed=0),
        lambda: fr.GRUCell(4, 4, seed=0),
        lambda: fr.Linear(4, 4, seed=0),
        lambda: fr.LayerNorm(4),
        lambda: fr.Embedding(5, 4, seed=0),
        lambda: fr.Linear(4, 5, weight_of=fr.Embedding(5, 4, seed=0)),
        lambda: fr.CRF(4, seed=0),
    ],
    ids=["stack", "gru", "program", "cell", "linear", "norm", "embedding", "tied", "crf"],
)
def test_no_gradient_is_computed_for_frozen_modules(make: Callable[[], Any], frozen: bool) -> None:
    """And what flows through them keeps its bits."""
    rng = np.random.default_rng(0)
    found = []
    for freeze in (False, frozen):
        module = make()
        for part in (module, *module._tied.values()) if isinstance(module, fr.Linear) else (module,):
            part.requires_grad_(not freeze)
            part.flat_grads[:] = 3.0
        rng = np.random.default_rng(0)
        x = rng.standard_normal((3, 2, 4)).astype(np.float32)
        if isinstance(module, fr.CRF):
            dx = module.loss(x, np.array([[1, 2], [3, 0], [1, 1]]))[1]
        elif isinstance(module, fr.Embedding):
            y, tape = module.forward(np.array([1, 4]))
            dx = module.backward(tape, np.ones_like(y))
        else:
            x = x[0] if isinstance(module, fr.GRUCell) else x
            y, *_, tape = module.forward(x)
            dx = module.backward(tape, rng.standard_normal(y.shape).astype(np.float32))
            dx = dx[0] if isinstance(dx, tuple) else dx
        found.append(dx)
        changed = (module.flat_grads != 3.0).any()
        assert bool(changed) != freeze
        for part in module._tied.values() if isinstance(module, fr.Linear) else ():
            assert bool((part.flat_grads != 3.0).any()) != freeze
    assert found[0] is None or np.array_equal(found[0], found[1])


def test_thawed_and_copied() -> None:
    net = model()
    net.requires_grad_(False)
    assert not net.requires_grad and not copy.deepcopy(net).requires_grad
    optimiser, before = fr.optim.SGD(net, lr=0.5), values(net)
    train(net, optimiser)
    assert np.array_equal(values(net), before)
    net[1].requires_grad_()
    train(net, optimiser)
    changed = values(net) != before
    assert changed[16:-12].any() and not changed[:16].any() and not changed[-12:].any()
    with pytest.raises(TypeError, match="requires_grad: expected a bool"):
        net.requires_grad_(0)  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [2.0, 1.0, np.inf])
def test_clipping_leaves_frozen_gradients_out(p: float) -> None:
    net, parts = model(), model()
    for one in (net, parts):
        one.flat_grads[:] = np.arange(one.flat_grads.size)
    net[1].requires_grad_(False)
    kept = net[1].flat_grads.copy()
    norm = fr.clip_grad_norm(net, 1.0, p)
    assert norm == pytest.approx(fr.clip_grad_norm([parts[0], parts[2]], 1.0, p), rel=1e-6)
    for index in (0, 2):
        np.testing.assert_allclose(net[index].flat_grads, parts[index].flat_grads, rtol=1e-6)
    assert np.array_equal(net[1].flat_grads, kept)
    fr.clip_grad_value(net, 1e-3)
    assert net[0].flat_grads.max() <= 1e-3 and np.array_equal(net[1].flat_grads, kept)
    net.requires_grad_(False)
    assert fr.clip_grad_norm(net, 1.0) == 0.0


# Other dtypes


def test_astype() -> None:
    net = model()
    net.append(fr.Dropout(0.1, seed=0))
    net.buffer("mean", 2, init=0.5)
    net.buffer("count", (), init=3, dtype="int64")
    net.flat_grads[:] = 0.5
    x = np.random.default_rng(0).normal(size=(3, 2, 3))
    want, held = net.eval()(x.astype("float32")), net.parameters
    assert net.astype("float64") is net and net.dtype == np.float64
    assert net.parameters is held and held["1.weight_hh_l0"].dtype == np.float64
    assert net.mean.dtype == np.float64 and net.count.dtype == np.int64 and net.flat_grads[0] == 0.5
    y = net(x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, want, atol=1e-5)
    out, tape = net.forward(x)
    assert net.backward(tape, out).dtype == np.float64
    assert net[1].stream()(x[0, :1] @ np.zeros((3, 4))).dtype == np.float64
    with pytest.raises(TypeError, match="float32"):
        net[1].quantize("int8")
    net.astype("float32")
    assert np.array_equal(net(x.astype("float32")), want)
    assert net[1].quantize("int8").dtype == np.float32
    with pytest.raises(TypeError, match="dtype: expected float32 or float64"):
        net.astype("float16")


def test_astype_makes_one_dtype_of_several() -> None:
    net = fr.Sequential(fr.Linear(2, 2, dtype="float64", seed=0), fr.Linear(2, 2, seed=1))
    with pytest.raises(
        TypeError, match=r"1: expected float64 as the other parameters, got float32; see astype"
    ):
        net.parameters  # noqa: B018
    net.astype("float64")
    assert net.flat_parameters.dtype == np.float64


def test_what_was_made_before_astype_is_refused() -> None:
    net = model()
    optimiser = fr.optim.Adam(net)
    y, tape = net[0].forward(np.ones((2, 3), "float32"))
    net.astype("float64")
    with pytest.raises(ValueError, match="of another dtype: float64; make a new optimiser"):
        optimiser.step()
    with pytest.raises(TypeError, match="float"):
        net[0].backward(tape, y)
