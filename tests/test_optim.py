"""SGD, Adam, AdamW and gradient clipping against PyTorch over 20 steps, and on the flat buffers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from support import DTYPES, Array
from tolerances import assert_close

import fusedrnn as fr

OPTIMISERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1}),
    "sgd_decay": ("SGD", {"lr": 0.1, "weight_decay": 0.05}),
    "sgd_momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "sgd_dampening": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05}),
    "sgd_nesterov": ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    "adam": ("Adam", {"lr": 0.02}),
    "adam_settings": ("Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.02}),
    "adamw_settings": ("AdamW", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.2}),
}


class Tree(fr.Module):
    """A small tree with parameters of several shapes."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.rnn = fr.GRU(3, 5, dtype=dtype, seed=0)
        self.head = fr.Linear(5, 2, dtype=dtype, seed=1)


def gradients(tree: Any, step: int) -> dict[str, Array]:
    rng = np.random.default_rng(step)
    return {name: rng.normal(size=p.shape).astype(p.dtype) for name, p in tree.parameters.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMISERS)
def test_against_torch(name: str, dtype: str) -> None:
    """20 steps with the same gradients, with a learning rate that changes on the way."""
    torch = pytest.importorskip("torch")
    kind, options = OPTIMISERS[name]
    tree = Tree(dtype)
    ours = getattr(fr.optim, kind)(tree, **options)
    tensors = {n: torch.tensor(p.copy(), requires_grad=True) for n, p in tree.parameters.items()}
    theirs = getattr(torch.optim, kind)(list(tensors.values()), **options)
    for step in range(20):
        if step == 10:
            ours.lr *= 0.5
            theirs.param_groups[0]["lr"] *= 0.5
        for n, g in gradients(tree, step).items():
            tree.grads[n] = g
            tensors[n].grad = torch.tensor(g)
        ours.step()
        theirs.step()
        for n, tensor in tensors.items():
            assert_close(tree.parameters[n], tensor.detach().numpy(), "parameter", f"{n}, step {step}")


def test_defaults_are_torchs() -> None:
    torch = pytest.importorskip("torch")
    for kind, names in (
        ("SGD", ("lr", "momentum", "dampening", "weight_decay", "nesterov")),
        ("Adam", ("lr", "betas", "eps", "weight_decay")),
        ("AdamW", ("lr", "betas", "eps", "weight_decay")),
    ):
        theirs = getattr(torch.optim, kind)([torch.zeros(1, requires_grad=True)]).defaults
        ours = getattr(fr.optim, kind)(fr.Linear(2, 2))
        for name in names:
            assert getattr(ours, name) == theirs[name], (kind, name)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_state_dict_resumes_exactly(name: str) -> None:
    """Stopping after 7 steps and going on from the saved state equals never stopping, bit for bit."""
    kind, options = OPTIMISERS[name]

    def steps(tree: Any, optimiser: Any, first: int, last: int) -> None:
        for step in range(first, last):
            for n, g in gradients(tree, step).items():
                tree.grads[n] = g
            optimiser.step()

    whole = Tree("float32")
    steps(whole, getattr(fr.optim, kind)(whole, **options), 0, 15)
    first = Tree("float32")
    optimiser = getattr(fr.optim, kind)(first, **options)
    steps(first, optimiser, 0, 7)
    second = Tree("float32")
    second.load_state_dict(first.state_dict())
    resumed = getattr(fr.optim, kind)(second, **{**options, "lr": 0.5})
    resumed.load_state_dict(optimiser.state_dict())
    steps(second, resumed, 7, 15)
    assert np.array_equal(second.flat_parameters, whole.flat_parameters)


@pytest.mark.parametrize("way", ["npz", "safetensors", "numbers"])
@pytest.mark.parametrize("kind", OPTIMISERS)
def test_state_in_files(kind: str, way: str, tmp_path: Path) -> None:
    """A state goes to files as it is, and what they give back takes every step that was to come."""
    name, options = OPTIMISERS[kind]
    trees = [Tree("float32"), Tree("float32")]
    first = getattr(fr.optim, name)(trees[0], **options)
    second = getattr(fr.optim, name)(trees[1])

    def step(optimiser: Any, tree: Tree, number: int) -> None:
        for parameter, g in gradients(tree, number).items():
            tree.grads[parameter] = g
        optimiser.step()

    step(first, trees[0], 0)
    first.lr = 0.1 / 3
    state, path = first.state_dict(), tmp_path / "state"
    assert all(type(value) is np.ndarray for value in state.values())
    trees[1].load_state_dict(trees[0].state_dict())
    if way == "npz":
        np.savez(path.with_suffix(".npz"), **state)
        second.load_state_dict(np.load(path.with_suffix(".npz")))
    elif way == "safetensors":
        safetensors.numpy.save_file(state, path)
        second.load_state_dict(safetensors.numpy.load_file(path))
    else:
        plain = {key: value.tolist() if value.size < 3 else value for key, value in state.items()}
        second.load_state_dict({**state, **{key: plain[key] for key in ("step", *first._settings)}})
    for setting in first._settings:
        assert type(getattr(second, setting)) is type(getattr(first, setting))
        assert getattr(second, setting) == getattr(first, setting)
    for number in (1, 2):
        step(first, trees[0], number)
        step(second, trees[1], number)
        assert np.array_equal(trees[0].flat_parameters, trees[1].flat_parameters), number


def test_bad_state_dict_writes_nothing() -> None:
    tree = Tree("float32")
    optimiser = fr.optim.Adam(tree)
    tree.flat_grads[:] = 1.0
    optimiser.step()
    before = optimiser.state_dict()
    for change, kind in (
        ({"step": -1}, ValueError),
        ({"lr": "fast"}, TypeError),
        ({"step": np.zeros((), np.int16)}, TypeError),
        ({"lr": np.zeros(1)}, ValueError),
        ({"betas": np.zeros(2, np.float32)}, TypeError),
        ({"exp_avg.head.bias": np.zeros(3, np.float32)}, ValueError),
        ({"exp_avg_sq.head.bias": np.zeros(2)}, TypeError),
        ({"exp_avg": {}}, ValueError),
        ({"surplus": 1}, ValueError),
        ({"exp_avg_sq.head.bias": None}, TypeError),
    ):
        ones = {n: np.ones_like(a) for n, a in before.items() if n.startswith("exp_avg.")}
        with pytest.raises(kind):
            optimiser.load_state_dict({**before, **ones, **change})
        with pytest.raises(ValueError, match=r"missing: exp_avg\.head\.bias; unexpected: none"):
            optimiser.load_state_dict({n: a for n, a in before.items() if n != "exp_avg.head.bias"})
        after = optimiser.state_dict()
        assert after["step"] == 1 and after["lr"] == before["lr"]
        for n, a in before.items():
            assert np.array_equal(after[n], a)


def test_parameters_stay_in_one_flat_buffer() -> None:
    """The views of the tree and of its children lie in the flat arrays, and a step writes through them."""
    tree = Tree("float64")
    optimiser = fr.optim.SGD(tree, lr=1.0)
    assert tree.flat_parameters.ndim == 1 and tree.flat_parameters.size == tree.num_parameters
    for name, view in tree.parameters.items():
        assert np.shares_memory(view, tree.flat_parameters), name
        assert np.shares_memory(tree.grads[name], tree.flat_grads), name
    for child in (tree.rnn, tree.head):
        assert np.shares_memory(child.flat_parameters, tree.flat_parameters)
    joined = np.concatenate([view.reshape(-1) for view in tree.parameters.values()])
    assert np.array_equal(joined, tree.flat_parameters)
    x = np.ones((2, 1, 3))
    before = tree.rnn(x)[0]
    y, _, tape = tree.rnn.forward(x)
    tree.rnn.backward(tape, np.ones_like(y))
    assert tree.flat_grads.any()
    head = tree.head.parameters["weight"].copy()
    optimiser.step()
    assert not np.array_equal(tree.rnn(x)[0], before)
    assert np.array_equal(tree.head.parameters["weight"], head)
    optimiser.zero_grad()
    assert not tree.flat_grads.any()


def test_several_modules() -> None:
    """A list of modules takes the steps that one tree of them takes."""
    tree, pair = Tree("float32"), Tree("float32")
    modules = [pair.rnn, pair.head]
    one, two = fr.optim.Adam(tree, lr=0.1), fr.optim.Adam(modules, lr=0.1)
    for step in range(3):
        for name, g in gradients(tree, step).items():
            tree.grads[name] = g
        pair.rnn.flat_grads[:] = tree.rnn.flat_grads
        pair.head.flat_grads[:] = tree.head.flat_grads
        norms = [fr.clip_grad_norm(m, 1.5) for m in (tree, modules)]
        assert np.isclose(*norms, rtol=1e-6)
        one.step()
        two.step()
    assert_close(pair.rnn.flat_parameters, tree.rnn.flat_parameters, "parameter")
    assert_close(pair.head.flat_parameters, tree.head.flat_parameters, "parameter")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, np.inf])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_clip_grad_norm(max_norm: float, norm_type: float, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tree = Tree(dtype)
    tensors = []
    for name, g in gradients(tree, 0).items():
        tree.grads[name] = g
        tensors.append(torch.zeros(g.shape, dtype=getattr(torch, dtype), requires_grad=True))
        tensors[-1].grad = torch.tensor(g)
    norm = fr.clip_grad_norm(tree, max_norm, norm_type)
    want = torch.nn.utils.clip_grad_norm_(tensors, max_norm, norm_type)
    assert isinstance(norm, float)
    assert_close(norm, want.item(), "gradient", dtype=dtype)
    for g, tensor in zip(tree.grads.values(), tensors, strict=True):
        assert_close(g, tensor.grad.numpy(), "gradient")


def test_clip_grad_norm_extremes() -> None:
    """Squares do not overflow; a NaN is reported and not hidden; zero gradients stay zero."""
    tree = Tree("float32")
    with pytest.raises(ValueError, match=r"^norm_type: expected a number > 0, got 0.0"):
        fr.clip_grad_norm(tree, 1.0, 0.0)
    assert fr.clip_grad_norm(tree, 1.0) == 0.0 and not tree.flat_grads.any()
    tree.flat_grads[:] = 1e30
    assert_close(
        fr.clip_grad_norm(tree, 1.0), 1e30 * np.sqrt(tree.num_parameters), "gradient", dtype="float32"
    )
    assert_close(np.linalg.norm(tree.flat_grads.astype("float64")), 1.0, "gradient", dtype="float32")
    tree.flat_grads[3] = np.nan
    with pytest.raises(ValueError, match="norm"):
        fr.clip_grad_norm(tree, 1.0, error_if_nonfinite=True)
    assert np.count_nonzero(np.isnan(tree.flat_grads)) == 1
    assert np.isnan(fr.clip_grad_norm(tree, 1.0))
    assert np.isnan(tree.flat_grads).any()


def test_clip_grad_value() -> None:
    tree = Tree("float64")
    tree.flat_grads[:] = np.linspace(-2, 2, tree.num_parameters)
    tree.flat_grads[0] = np.nan
    fr.clip_grad_value(tree, 0.75)
    assert np.isnan(tree.flat_grads[0])
    assert np.array_equal(
        tree.flat_grads[1:], np.clip(np.linspace(-2, 2, tree.num_parameters), -0.75, 0.75)[1:]
    )


BAD_SETTINGS: dict[str, tuple[Any, type[Exception]]] = {
    "lr": (-1.0, ValueError),
    "eps": (-1.0, ValueError),
    "weight_decay": (-1.0, ValueError),
    "momentum": (np.nan, ValueError),
    "dampening": (np.inf, ValueError),
    "nesterov": (1, TypeError),
    "betas": ((0.9, 1.0), ValueError),
}


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_settings_are_checked_wherever_they_are_set(kind: str) -> None:
    """As an argument, by assignment and in a state_dict; what is refused changes nothing."""
    make = getattr(fr.optim, kind)
    optimiser = make(Tree("float32"))
    before = optimiser.state_dict()
    for name in make._settings:
        for bad, error in (BAD_SETTINGS[name], ("fast", TypeError), (None, TypeError)):
            with pytest.raises(error, match=rf"^{name}"):
                make(Tree("float32"), **{name: bad})
            with pytest.raises(error, match=rf"^{name}"):
                setattr(optimiser, name, bad)
            with pytest.raises(error, match=rf"^{name}"):
                optimiser.load_state_dict({**before, name: bad})
        assert np.array_equal(getattr(optimiser, name), before[name])
    with pytest.raises(ValueError, match=r"^step_count"):
        optimiser.step_count = -1
    optimiser.step()


def test_nesterov_needs_momentum_wherever_it_is_set() -> None:
    match = r"^nesterov: expected momentum > 0 and dampening = 0, got"
    sgd = fr.optim.SGD(Tree("float32"))
    with pytest.raises(ValueError, match=match):
        sgd.nesterov = True
    sgd.momentum = 0.9
    sgd.nesterov = True
    for name, value in (("momentum", 0.0), ("dampening", 0.5)):
        with pytest.raises(ValueError, match=match):
            setattr(sgd, name, value)
    with pytest.raises(ValueError, match=match):
        sgd.load_state_dict({**sgd.state_dict(), "dampening": 0.5})
    sgd.step()
    assert (sgd.momentum, sgd.dampening, sgd.nesterov) == (0.9, 0.0, True)


@pytest.mark.parametrize("saved", [False, True])
def test_momentum_may_be_set_later(saved: bool) -> None:
    """Its first step takes the gradient as it is, also after a save, as if momentum began there."""
    tree, other = Tree("float64"), Tree("float64")
    late = fr.optim.SGD(tree, lr=0.1)
    tree.flat_grads[:] = 1.0
    late.step()
    late.momentum, late.dampening = 0.9, 0.5
    if saved:
        resumed = fr.optim.SGD(tree, lr=0.5)
        resumed.load_state_dict(late.state_dict())
        late = resumed
    other.load_state_dict(tree.state_dict())
    want = fr.optim.SGD(other, lr=0.1, momentum=0.9, dampening=0.5)
    for step in range(3):
        for name, g in gradients(tree, step).items():
            tree.grads[name] = g
            other.grads[name] = g
        late.step()
        want.step()
        assert np.array_equal(tree.flat_parameters, other.flat_parameters), step
    late.momentum = 0.0
    late.step()
    resumed = fr.optim.SGD(tree)
    resumed.load_state_dict(late.state_dict())
    assert resumed.momentum == 0.0 and "momentum_buffer.head.bias" in resumed.state_dict()


class Pair(fr.Module):
    """Two children of one size, in an order of choice."""

    def __init__(self, order: str) -> None:
        super().__init__()
        for seed, name in enumerate(sorted(order)):
            setattr(self, name, fr.Linear(3, 4, bias=False, dtype="float64", seed=seed))
        self.arrange(order)

    def arrange(self, order: str) -> None:
        children = {name: getattr(self, name) for name in order}
        for name in order:
            delattr(self, name)
        for name, child in children.items():
            setattr(self, name, child)


@pytest.mark.parametrize("kind", ["adam", "sgd_momentum"])
def test_moments_follow_their_parameters(kind: str) -> None:
    """Children put in another order between steps, or pickled with the optimiser, change no step."""
    name, options = OPTIMISERS[kind]
    pair, other = Pair("ab"), Pair("ab")
    one, two = (getattr(fr.optim, name)(tree, **options) for tree in (pair, other))
    for step in range(6):
        for parameter, g in gradients(pair, step).items():
            pair.grads[parameter] = g
            other.grads[parameter] = g
        one.step()
        two.step()
        if step == 2:
            other.arrange("ba")
            assert list(other.parameters) == ["b.weight", "a.weight"]
        if step == 4:
            other, two = pickle.loads(pickle.dumps((other, two)))
            other.arrange("ab")
    for parameter, value in pair.parameters.items():
        assert np.array_equal(value, other.parameters[parameter]), parameter
    for key, value in one.state_dict().items():
        assert np.array_equal(value, two.state_dict()[key]), key


def test_other_parameters_are_refused() -> None:
    """Also where they are as many as before; nothing is stepped, of the other modules either."""
    first, pair = fr.Linear(2, 2), Pair("ab")
    first.flat_grads[:] = 1.0
    optimiser = fr.optim.Adam([first, pair])
    before = first.flat_parameters.copy()
    kept = pair.a
    pair.a = fr.Linear(4, 3, bias=False, dtype="float64")
    with pytest.raises(
        ValueError, match=r"^Pair: expected the parameters .* of another shape: a.weight; make"
    ):
        optimiser.step()
    del pair.a
    pair.c = kept
    with pytest.raises(ValueError, match=r"^Pair: .* missing: a.weight; unexpected: c.weight; make"):
        optimiser.step()
    with pytest.raises(ValueError, match=r"^Pair: "):
        optimiser.state_dict()
    assert np.array_equal(first.flat_parameters, before) and optimiser.step_count == 0
    del pair.c
    pair.a = kept
    optimiser.step()
    assert optimiser.step_count == 1 and not np.array_equal(first.flat_parameters, before)
