"""fusedrnn.torch under what PyTorch does with modules: compilation, checkpoints, functions of functions."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from tolerances import assert_close

torch = pytest.importorskip("torch")

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.interop.torch import kernels  # noqa: E402

pytestmark = pytest.mark.once


@pytest.fixture(params=[{}, {"num_layers": 2, "bidirectional": True}], ids=["one_layer", "more"])
def lstm(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(1)
    return ft.LSTM(3, 4, dtype=torch.float64, **request.param)


@pytest.fixture
def x() -> Any:
    torch.manual_seed(2)
    return torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)


def grads(module: Any, loss: Any) -> list[Any]:
    module.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_gradcheck(kind: str, x: Any) -> None:
    module = getattr(ft, kind)(3, 4, num_layers=2, dtype=torch.float64)
    h = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)

    def outputs(x: Any, h: Any, *_: Any) -> tuple[Any, ...]:
        y, state = module(x, (h, 2 * h) if kind == "LSTM" else h)
        return y, *(state if kind == "LSTM" else (state,))

    assert torch.autograd.gradcheck(outputs, (x, h, *module.parameters()), fast_mode=True)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_second_derivatives(kind: str, options: dict[str, Any]) -> None:
    """The gradients of all gradients' squares, as torch.nn has them; lengths and resets by differences."""
    sizes = {**options, "batch_first": True, "dtype": torch.float64}
    ours, stock = getattr(ft, kind)(3, 4, **sizes), getattr(torch.nn, kind)(3, 4, **sizes)
    stock.load_state_dict(ours.state_dict())
    rows = 4 if "bidirectional" in options else 1
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, rows, 2, 4, dtype=torch.float64, requires_grad=True)

    def outputs(module: Any, *steps: Any) -> list[Any]:
        lengths, resets = steps if steps else (None, None)
        more = {"lengths": lengths, "resets": resets} if steps else {}
        y, state = module(x, tuple(h) if kind == "LSTM" else h[0], **more)
        return [y, *(state if kind == "LSTM" else (state,))]

    found = []
    for module in (ours, stock):
        leaves = [x, h, *module.parameters()]
        grads = torch.autograd.grad(sum(o.pow(3).sum() for o in outputs(module)), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), leaves))
    for got, want in zip(*found, strict=True):
        assert_close(got.numpy(), want.numpy(), "gradient")
    steps = torch.tensor([5, 2]), torch.rand(2, 5) < 0.3
    assert torch.autograd.gradgradcheck(lambda *_: outputs(ours, *steps)[0], (x, h), fast_mode=True)


def test_second_derivatives_with_dropout() -> None:
    module = ft.GRU(3, 4, num_layers=2, dropout=0.5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)

    def dropped(x: Any) -> Any:
        torch.manual_seed(3)
        return module(x)[0]

    assert torch.autograd.gradgradcheck(dropped, (x,), fast_mode=True)


def test_derivatives_that_are_refused(lstm: Any, x: Any) -> None:
    """A third one; a second one of a projection, or under torch.func."""
    (dx,) = torch.autograd.grad(lstm(x)[0].sum(), x, create_graph=True)
    (dxx,) = torch.autograd.grad(dx.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dxx.sum().backward()
    projected = ft.LSTM(x.shape[2], 4, proj_size=2, dtype=x.dtype)
    (dx,) = torch.autograd.grad(projected(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="without projections for second derivatives"):
        dx.sum().backward()

    def squared(x: Any) -> Any:
        return torch.func.grad(lambda x: lstm(x)[0].sum())(x).square().sum()

    with pytest.raises(RuntimeError, match="expected one derivative"):
        torch.func.grad(squared)(x.detach())


# Of torch's own rules for forward derivatives, which it loads at the first.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("tracked", [True, False])
def test_forward_derivatives_are_refused(lstm: Any, x: Any, tracked: bool) -> None:
    """And not left out, where gradients in reverse are turned off."""
    with (
        torch.set_grad_enabled(tracked),
        pytest.raises(RuntimeError, match="expected derivatives in reverse"),
    ):
        torch.func.jvp(lambda x: lstm(x)[0], (x.detach(),), (x.detach(),))
    dual = torch.autograd.forward_ad
    with torch.set_grad_enabled(tracked), dual.dual_level():
        given = dual.make_dual(x.detach(), x.detach())
        with pytest.raises(RuntimeError, match="expected derivatives in reverse"):
            lstm(given)


def test_negated_views(lstm: Any, x: Any) -> None:
    """Tensors whose values are negated as they are read: imaginary parts of conjugates are."""
    weights = {name: p.detach() for name, p in lstm.named_parameters()}
    y, _ = torch.func.functional_call(lstm, weights, (-x,))
    weights = {name: torch._neg_view(-w) for name, w in weights.items()}
    assert torch.equal(torch.func.functional_call(lstm, weights, (torch._neg_view(x),))[0], y)


@pytest.mark.parametrize("compiled", [False, True])
def test_changes_in_place_are_found(lstm: Any, x: Any, compiled: bool) -> None:
    """Of y, which the tape refers to, and of weights; changes of the final states do no harm."""
    module = torch.compile(lstm, fullgraph=True, backend="aot_eager") if compiled else lstm
    want = grads(lstm, lstm(x)[0].sum())
    y, state = module(x)
    with torch.no_grad():
        for part in state:
            part.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(grads(lstm, y.sum()), want, strict=True))
    for changed in ("y", "weight"):
        y, _ = module(x)
        with torch.no_grad():
            (y if changed == "y" else lstm.weight_hh_l0).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_ops(kind: str, x: Any) -> None:
    """torch's checks of both ops, and the gradients of the one that has them."""
    module = getattr(ft, kind)(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    params, state = list(module.parameters()), [torch.ones(4, 2, 4, dtype=torch.float64, requires_grad=True)]
    count = 2 if kind == "LSTM" else 1
    given = x, torch.tensor([5, 3]), None, None, state * count, params
    options = kind.lower(), 2, True, False, 0.0
    torch.library.opcheck(torch.ops.fusedrnn.rnn.default, (*given, *options, True))
    y, h, c, tape = torch.ops.fusedrnn.rnn(*given, *options, True)
    assert tape.numel() == 0 and c.numel() == (h.numel() if kind == "LSTM" else 0)

    def function(*tensors: Any) -> Any:
        return torch.ops.fusedrnn.rnn(*tensors[:1], *given[1:5], list(tensors[1:]), *options, True)[:2]

    assert torch.autograd.gradcheck(function, (x, *params), fast_mode=True)
    flows = [y.detach(), h.detach(), c.detach() if kind == "LSTM" else None]
    plain = torch.utils._pytree.tree_map(lambda t: t.detach() if isinstance(t, torch.Tensor) else t, given)
    args = (*plain, *options, y.detach(), tape.detach(), *flows)
    torch.library.opcheck(torch.ops.fusedrnn.rnn_backward.default, args)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(lstm: Any, x: Any, use_reentrant: bool) -> None:
    want = grads(lstm, lstm(x)[0].sum())
    checkpoint = torch.utils.checkpoint.checkpoint
    y = checkpoint(lambda x: lstm(x)[0], x, use_reentrant=use_reentrant)
    torch.testing.assert_close(grads(lstm, y.sum()), want)


def test_saved_tensor_hooks_without_the_tape(lstm: Any, x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where copies are kept, backward runs forward once more."""
    runs: list[bool] = []
    run = kernels.run
    monkeypatch.setattr(kernels, "run", lambda *args: (runs.append(True), run(*args))[1])
    want = grads(lstm, lstm(x)[0].square().sum())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        y, _ = lstm(x)
    same = grads(lstm, y.square().sum())
    assert not runs
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y, _ = lstm(x)
    got = grads(lstm, y.square().sum())
    assert len(runs) == 1
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(want, same, got, strict=True))


def test_tape_goes_with_the_graph(lstm: Any, x: Any) -> None:
    """Who keeps a loss after backward does not keep the tape with it."""
    loss = lstm(x)[0].sum()
    node = loss.grad_fn.next_functions[0][0]
    loss.backward(retain_graph=True)
    assert node.tape is not None
    loss.backward()
    assert node.tape is None


def test_compile_in_one_graph(lstm: Any, x: Any) -> None:
    want = lstm(x, lengths=torch.tensor([5, 3]))
    gradients = grads(lstm, want[0].square().sum())
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    got = compiled(x, lengths=torch.tensor([5, 3]))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads(lstm, got[0].square().sum()), gradients)


def test_export(lstm: Any, x: Any) -> None:
    given = x.detach()
    sizes = dict.fromkeys((0, 1), torch.export.Dim.AUTO)
    exported = torch.export.export(lstm, (given,), dynamic_shapes=(sizes,))
    assert any("fusedrnn.rnn" in str(node.target) for node in exported.graph.nodes)
    for longer in (given, given.repeat(2, 3, 1)):
        torch.testing.assert_close(exported.module()(longer)[0], lstm(longer)[0])


def test_gradients_of_each_sample(lstm: Any, x: Any) -> None:
    params = {name: p.detach() for name, p in lstm.named_parameters()}

    def loss(params: Any, x: Any) -> Any:
        return torch.func.functional_call(lstm, params, (x[:, None],))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(params, x.detach())
    want = grads(lstm, lstm(x)[0].square().sum())
    torch.testing.assert_close([each[name].sum(0) for name, _ in lstm.named_parameters()], want)


def test_several_networks_at_once(lstm: Any, x: Any) -> None:
    """vmap over parameters: an ensemble."""
    weights = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in lstm.named_parameters()}

    def run(weights: Any) -> Any:
        return torch.func.functional_call(lstm, weights, (x.detach(),))[0]

    y = torch.func.vmap(run)(weights)
    for i in range(2):
        torch.testing.assert_close(y[i], run({name: w[i] for name, w in weights.items()}))


def test_autocast_leaves_the_dtype(x: Any) -> None:
    gru = ft.GRU(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = gru(torch.nn.Linear(3, 4)(x.detach().float()))
    assert y.dtype is torch.float32


# Without the interpreter's end, in which torch 2.13 aborts where one of its threads yet has a sharded tensor
# to let go of, with torch.nn.Linear too.
RANK = """
import os, sys, torch, fusedrnn.torch as ft
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
rank = int(sys.argv[1])
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.Sequential(getattr(ft, sys.argv[3])(3, 4, dtype=torch.float64))
x = torch.randn(5, 4, 3, dtype=torch.float64)
half = x[:, 2 * rank : 2 * rank + 2]
want = torch.autograd.grad(model(x)[0].square().mean(), list(model.parameters()))
parallel = torch.nn.parallel.DistributedDataParallel(model)
parallel(half)[0].square().mean().backward()
for p, g in zip(model.parameters(), want):
    torch.testing.assert_close(p.grad, g)

del parallel
model.zero_grad()
mesh = dist.init_device_mesh("cpu", (2,))
fully_shard(model[0], mesh=mesh)  # its parameters are there for each call alone
fully_shard(model, mesh=mesh)
y, _ = model(half)
assert model[0].weight_ih_l0.to_local().shape == (8, 3)
y.square().mean().backward()
for p, g in zip(model.parameters(), want):
    torch.testing.assert_close(p.grad.full_tensor(), g)
torch.optim.SGD(model.parameters(), 0.1).step()
assert not torch.equal(model(half)[0], y)
dist.destroy_process_group()
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["LSTM", "SLSTM"])
def test_two_processes(tmp_path: Any, kind: str) -> None:
    """DDP, and parameters that are there for each call alone."""
    command = [sys.executable, "-c", RANK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), kind], env=environment)
        for rank in range(2)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
