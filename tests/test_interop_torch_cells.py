"""fusedrnn.torch's cells of one step beside torch.nn's."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_support import pair  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.interop.torch import kernels, ops  # noqa: E402

pytestmark = pytest.mark.once

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTMCell", {}),
    ("LSTMCell", {"bias": False}),
    ("GRUCell", {}),
    ("GRUCell", {"bias": False}),
    ("RNNCell", {}),
    ("RNNCell", {"nonlinearity": "relu", "bias": False}),
]
KINDS = ["LSTMCell", "GRUCell", "RNNCell"]


def parts_of(hx: Any) -> list[Any]:
    return list(hx) if isinstance(hx, tuple) else [] if hx is None else [hx]


def state_for(cell: Any, *leading: int) -> Any:
    h, c = (torch.randn(*leading, 7, dtype=cell.weight_hh.dtype, requires_grad=True) for _ in range(2))
    return (h, c) if isinstance(cell, torch.nn.LSTMCell) else h


def states(cell: Any, x: Any, hx: Any = None) -> list[Any]:
    """The state after each step of x."""
    found = []
    for step in x:
        hx = cell(step, hx)
        found += parts_of(hx)
    return found


def results(cell: Any, x: Any, hx: Any = None, run: Any = states) -> list[Any]:
    """The states, and all gradients of a function of them."""
    leaves, found = [x, *parts_of(hx), *cell.parameters()], run(cell, x, hx)
    loss = sum((part.sin() * (i + 1)).sum() for i, part in enumerate(found))
    return [*found, *torch.autograd.grad(loss, leaves)]


def same(some: Any, others: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("leading", [(), (1,), (3,), (33,), (0,)])
def test_as_torch(kind: str, options: Any, dtype: Any, tolerance: float, leading: tuple[int, ...]) -> None:
    theirs, ours = pair(kind, dtype, **options)
    x = torch.randn(4, *leading, 5, dtype=dtype, requires_grad=True)
    for hx in (None, state_for(ours, *leading)):
        for got, want in zip(results(ours, x, hx), results(theirs, x, hx), strict=True):
            scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
            torch.testing.assert_close(got, want, rtol=0, atol=tolerance * scale)
    want = parts_of(ours(x[0], hx))
    with torch.no_grad():
        found = parts_of(ours(x[0], hx))
    assert same(found, want) and all(part.grad_fn is None for part in found)


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize("leading", [(), (3,)])
def test_the_short_way(
    kind: str, options: Any, leading: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits of the general way, which is not gone and takes what the short one leaves."""
    _, ours = pair(kind, **options)
    x = torch.randn(3, *leading, 5, dtype=torch.float64, requires_grad=True)
    hx, runs, apply = state_for(ours, *leading), [], ops.apply
    monkeypatch.setattr(ops, "apply", lambda *args: (runs.append(True), apply(*args))[1])
    for given in (None, hx):
        short = results(ours, x, given)
        assert not runs
        with monkeypatch.context() as without:
            without.setattr(ops, "is_common", lambda: False)
            assert same(results(ours, x, given), short)
        assert len(runs) == 3
        runs.clear()
    scattered = torch.stack([x, x], -1)[..., 0]
    assert same(parts_of(ours(scattered[0], hx)), parts_of(ours(x[0], hx))) and not runs
    if isinstance(hx, tuple):
        assert same(ours(x[0], list(hx)), ours(x[0], hx)) and len(runs) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(), (3,)])
def test_gradients_of_both_orders(kind: str, leading: tuple[int, ...]) -> None:
    _, ours = pair(kind)
    x = torch.randn(2, *leading, 5, dtype=torch.float64, requires_grad=True)
    state = parts_of(state_for(ours, *leading))

    def run(x: Any, *given: Any) -> tuple[Any, ...]:
        hx = tuple(given[: len(state)]) if len(state) > 1 else given[0]
        for step in x:
            hx = ours(step, hx)
        return tuple(parts_of(hx))

    given = (x, *state, *ours.parameters())
    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)
    # Of c or of h alone.
    for i in range(len(state)):
        assert torch.autograd.gradcheck(lambda *args, i=i: run(*args)[i], given)
        assert torch.autograd.gradgradcheck(lambda *args, i=i: run(*args)[i], given, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parameters(kind: str) -> None:
    theirs, ours = pair(kind)
    x = torch.randn(3, 5, dtype=torch.float64)
    found = []
    for cell in (theirs, ours):
        cell.weight_ih.requires_grad_(False)
        parts_of(cell(x, state_for(cell, 3)))[0].sum().backward()
        assert cell.weight_ih.grad is None and cell.weight_hh.grad is not None
        cell.requires_grad_(False)
        assert parts_of(cell(x))[0].grad_fn is None
        leaf = x.clone().requires_grad_()
        parts_of(cell(leaf))[-1].square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", [*KINDS, "LSTM", "MGU"])
def test_parameters_of_inference_mode(kind: str) -> None:
    """They cannot train, which torch says, whatever was called before; their values count in any mode."""
    with torch.inference_mode():
        ours = getattr(ft, kind)(5, 7)
        x = torch.randn(3, 2, 5)[0 if "Cell" in kind else slice(None)]
        before = parts_of(ours(x))[0]
        for p in ours.parameters():
            p.mul_(2)  # without a count of versions
        want = parts_of(ours(x))[0]
    assert not torch.equal(before, want)
    x = x.clone()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            ours(x)
        with torch.no_grad():
            assert torch.equal(parts_of(ours(x))[0], want)
    loaded = getattr(ft, kind)(5, 7)
    loaded.load_state_dict(ours.state_dict())
    parts_of(loaded(x))[0].sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_changes_in_place(kind: str) -> None:
    """Of what backward reads they are found; of c, which it does not read, they do no harm."""
    _, ours = pair(kind)
    x, hx = torch.randn(3, 5, dtype=torch.float64), state_for(ours, 3)
    leaves = list(ours.parameters())
    want = torch.autograd.grad(parts_of(ours(x, hx))[0].sum(), leaves)
    for changed in (0, 1) if kind == "LSTMCell" else (0,):
        parts = parts_of(ours(x, hx))
        loss = parts[0].sum()
        parts[changed].detach().add_(1)
        if changed == 1:
            assert same(torch.autograd.grad(loss, leaves), want)
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
    for changed in (x, parts_of(hx)[-1].detach(), ours.weight_hh.detach()):
        loss = parts_of(ours(x, hx))[0].sum()
        changed.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    want = parts_of(ours(x, hx))[0]
    ours.weight_hh.data.mul_(0.5)  # past autograd's count of versions
    assert not torch.equal(parts_of(ours(x, hx))[0], want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_and_hooks(kind: str, use_reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where copies are kept, backward runs forward once more."""
    _, ours = pair(kind)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def run(x: Any) -> Any:
        return parts_of(ours(x, ours(x)))[0]

    def grads(y: Any) -> list[Any]:
        ours.zero_grad()
        y.square().sum().backward()
        return [p.grad.clone() for p in ours.parameters()]

    want = grads(run(x))
    torch.testing.assert_close(grads(checkpoint(run, x, use_reentrant=use_reentrant)), want)
    runs: list[bool] = []
    kernels_run = kernels.run
    monkeypatch.setattr(kernels, "run", lambda *args: (runs.append(True), kernels_run(*args))[1])
    for pack, count in ((lambda t: t, 2), (lambda t: t.clone(), 4)):
        runs.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = run(x)
        assert same(grads(y), want) and len(runs) == count


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_compile_and_export(kind: str, options: Any) -> None:
    _, ours = pair(kind, **options)
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    hx = state_for(ours, 4)
    torch.compiler.reset()  # each code may be compiled for so many modules alone
    compiled = torch.compile(states, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(ours, x, hx, compiled), results(ours, x, hx))
    one, given = x[:, 0].detach(), x[0].detach()
    assert same(compiled(ours, one), states(ours, one))
    exported = torch.export.export(ours, (given,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    assert any("fusedrnn.rnn" in str(node.target) for node in exported.graph.nodes)
    longer = given.repeat(3, 1)
    assert same(parts_of(exported.module()(longer)), parts_of(ours(longer)))


# Of torch's own rules for forward derivatives, which it loads at the first.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_functions(kind: str) -> None:
    """Gradients of each sample, an ensemble, and derivatives that there are not."""
    _, ours = pair(kind)
    x, params = torch.randn(4, 5, dtype=torch.float64), dict(ours.named_parameters())

    def loss(params: Any, x: Any) -> Any:
        return parts_of(torch.func.functional_call(ours, params, (x,)))[-1].square().sum()

    plain = {name: p.detach() for name, p in params.items()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(plain, x)
    want = torch.autograd.grad(loss(params, x), list(params.values()))
    torch.testing.assert_close([each[name].sum(0) for name in params], list(want))
    halves = {name: p.detach() / 2 for name, p in params.items()}
    stacked = {name: torch.stack([plain[name], halves[name]]) for name in params}
    both = torch.func.vmap(lambda params: loss(params, x))(stacked)
    torch.testing.assert_close(both, torch.stack([loss(plain, x), loss(halves, x)]))
    for refused in (lambda x: parts_of(ours(x))[0],):
        with pytest.raises(RuntimeError, match="expected derivatives in reverse"):
            torch.func.jvp(refused, (x,), (x,))
        with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="in reverse"):
            refused(torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_converted_copied_and_pickled(kind: str, options: Any) -> None:
    theirs, _ = pair(kind, **options)
    model, x = torch.nn.ModuleList([theirs]), torch.randn(3, 5, dtype=torch.float64)
    before, shown, want = list(model.parameters()), repr(model), parts_of(theirs(x))
    assert ft.convert(model)[0] is theirs and type(theirs) is getattr(ft, kind)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True)) and repr(model) == shown
    found = parts_of(theirs(x))
    torch.testing.assert_close(found, want)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[0]) is type(theirs) and same(parts_of(other[0](x)), found)
    assert type(ft.restore(model)[0]) is getattr(torch.nn, kind)
    assert same(parts_of(theirs(x)), want)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_as_torch(kind: str) -> None:
    """The kinds of torch.nn's errors, and their words where it has some."""
    theirs, ours = pair(kind)
    x, several = torch.zeros(4, 5, dtype=torch.float64), kind == "LSTMCell"

    def state(*shape: int) -> Any:
        h = torch.zeros(shape, dtype=torch.float64)
        return (h, h) if several else h

    calls = [
        (x[None], None),
        (x[0, 0], None),
        (x[:, :4], None),
        (x, state(3, 7)),
        (x, state(4, 6)),
        (x, state(1, 4, 7)),
        (x[0], state(6)),
    ]
    for call in calls:
        with pytest.raises((RuntimeError, ValueError)) as want:
            theirs(*call)
        with pytest.raises(want.type) as got:
            ours(*call)
        assert str(got.value) == str(want.value)
    for call, message in (
        ((x.float(), None), "input: expected torch.float64 as the parameters, got torch.float32"),
        ((x, state(7)), "hidden0: expected 2D as input, got 1D"),
        ((x[0], state(1, 7)), "hidden0: expected 1D as input, got 2D"),
    ):
        with pytest.raises(RuntimeError):
            theirs(*call)
        with pytest.raises(RuntimeError, match=message):
            ours(*call)
    with pytest.raises(TypeError, match=r"input: expected a torch.Tensor, got ndarray"):
        ours(x.numpy())
    with pytest.raises(TypeError, match=r"hx.*: expected a t.*, got ndarray"):
        ours(x, state(4, 7)[0].numpy() if several else state(4, 7).numpy())
    if several:
        with pytest.raises(TypeError, match="hx: expected a tuple of h and c, got Tensor"):
            ours(x, torch.zeros(2, 4, 7, dtype=torch.float64))
        for wrong, count in (((*state(4, 7), x), 3), ((), 0)):
            with pytest.raises(RuntimeError, match=f"hx: expected 2 hidden states, got {count}"):
                ours(x, wrong)
        with pytest.raises(RuntimeError, match="hidden1 has inconsistent hidden_size: got 6, expected 7"):
            ours(x, (state(4, 7)[0], state(4, 6)[0]))
        with pytest.raises(RuntimeError, match=r"hx\[1\]: expected torch.float64 as the parameters, got"):
            ours(x, (state(4, 7)[0], state(4, 7)[0].float()))
    half = getattr(ft, kind)(5, 7, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"float32 or torch.float64, got torch.bfloat16"):
        half(x.bfloat16())
    with pytest.raises(RuntimeError, match=r"meta"):
        getattr(ft, kind)(5, 7, device="meta")(torch.zeros(4, 5))


def test_the_nonlinearity() -> None:
    """It may change, as torch.nn's may."""
    theirs, ours = pair("RNNCell")
    x = torch.randn(3, 5, dtype=torch.float64)
    for name in ("tanh", "relu", "tanh"):
        theirs.nonlinearity = ours.nonlinearity = name
        torch.testing.assert_close(ours(x), theirs(x))
    ours.nonlinearity = "sine"
    with pytest.raises(RuntimeError, match="nonlinearity: expected 'tanh' or 'relu', got 'sine'"):
        ours(x)


def test_autocast_leaves_the_dtype() -> None:
    cell = ft.LSTMCell(5, 7)
    x, h = torch.randn(3, 5), torch.randn(3, 7)
    want = cell(x.bfloat16().float(), (h, h))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cell(x.bfloat16(), (h, h))
    assert same(found, want) and found[0].dtype is torch.float32
