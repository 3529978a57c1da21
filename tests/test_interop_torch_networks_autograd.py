"""The networks of fusedrnn.torch that torch.nn has not, under what PyTorch does with modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import assert_ran, run_python

torch = pytest.importorskip("torch")

from torch_networks import DRAWING, NETWORKS, flat, inputs, made, name_of  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.interop.torch.hosts import Host, Inputs  # noqa: E402

pytestmark = pytest.mark.once


def given(ours: Any, x: Any, training: bool = True) -> Inputs:
    """The op's arguments."""
    lengths, resets = torch.tensor([5, 2, 3]), torch.rand(5, 3) < 0.4
    state = [torch.ones(rows, 3, width, dtype=x.dtype) for _, rows, width in ours._state_shapes()]
    lists = state, list(ours.parameters()), [b.clone() for b in ours.buffers()]
    seed = torch.tensor([7])
    return Inputs(x, lengths, resets, seed, *lists, ours._text, ours._number, training)


@pytest.mark.parametrize("case", [NETWORKS[4], NETWORKS[14], DRAWING[1], DRAWING[5]], ids=name_of)
def test_ops(case: Any) -> None:
    """torch's checks of both ops, and the gradients of the one that has them."""
    ours, _ = made(case)
    args, ops = given(ours, inputs()), torch.ops.fusedrnn
    torch.library.opcheck(ops.recurrent.default, (*args, True))
    torch.library.opcheck(ops.recurrent.default, (*args._replace(training=False), True))
    y, tape, finals, _ = ops.recurrent(*args, True)

    def function(x: Any, *params: Any) -> Any:
        return ops.recurrent(*args._replace(x=x, params=list(params)), True)[0]

    assert torch.autograd.gradcheck(function, (args.x, *args.params), fast_mode=True)
    plain = torch.utils._pytree.tree_map(lambda t: t.detach() if isinstance(t, torch.Tensor) else t, args)
    flows = y.detach(), tape.detach(), y.detach(), [part.detach() for part in finals]
    for needs in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(ops.recurrent_backward.default, (*plain, *flows, *needs))


@pytest.mark.parametrize("case", [NETWORKS[4], DRAWING[1]], ids=name_of)
def test_compile_in_one_graph(case: Any) -> None:
    ours, _ = made(case)
    x, found = inputs(), []
    for module in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        y, state = module(x, lengths=torch.tensor([5, 0, 3]))
        found.append(
            [y, *flat((y, state))[1:], *torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])]
        )
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_export() -> None:
    """A program holds what its network is: it runs where the module is gone."""
    ours, _ = made(NETWORKS[9])
    x = inputs().detach()
    exported = torch.export.export(
        ours, (x,), dynamic_shapes=((dict.fromkeys((0, 1), torch.export.Dim.AUTO)),)
    )
    assert any("fusedrnn.recurrent" in str(node.target) for node in exported.graph.nodes)
    longer = x.repeat(2, 3, 1)
    want = ours(longer)[0]
    ours._host = None
    assert torch.equal(exported.module()(longer)[0], want)


def test_a_saved_graph_beside_other_networks(tmp_path: Path) -> None:
    """In another process its number is that of another network, even one of the same parameters."""
    ours, x = ft.VariantLSTM(3, 4, cell_clip=0.01).eval(), inputs(torch.float32).detach()
    torch.export.save(torch.export.export(ours, (x,)), tmp_path / "graph.pt2")
    torch.save((x, ours(x)[0].detach(), ours._number), tmp_path / "want.pt")
    code = """
import sys, torch, fusedrnn.torch as ft
graph = torch.export.load(sys.argv[1] + "/graph.pt2").module()
x, want, number = torch.load(sys.argv[1] + "/want.pt")
others = [ft.VariantLSTM(3, 4) for _ in range(number + 1)]
assert others[-1]._number == number
assert torch.equal(graph(x)[0], want)
"""
    assert_ran(run_python("-c", code, str(tmp_path)))


def test_functions_of_functions() -> None:
    """Gradients of each sample, and an ensemble."""
    ours, _ = made(NETWORKS[4])
    x = inputs()
    params = {name: p.detach() for name, p in ours.named_parameters()}

    def loss(params: Any, x: Any) -> Any:
        return torch.func.functional_call(ours, params, (x[:, None],))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(params, x.detach())
    ours(x)[0].square().sum().backward()
    want = [p.grad for p in ours.parameters()]
    torch.testing.assert_close([each[name].sum(0) for name in params], want)
    stacked = {name: torch.stack([p, 2 * p]) for name, p in params.items()}

    def run(weights: Any) -> Any:
        return torch.func.functional_call(ours, weights, (x.detach(),))[0]

    y = torch.func.vmap(run)(stacked)
    assert all(torch.equal(y[i], run({name: p[i] for name, p in stacked.items()})) for i in range(2))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("case", [NETWORKS[4], DRAWING[1]], ids=name_of)
def test_checkpoint(case: Any, use_reentrant: bool) -> None:
    ours, _ = made(case)
    x, found = inputs(), []
    checkpoint = torch.utils.checkpoint.checkpoint
    for run in (
        lambda x: ours(x)[0],
        lambda x: checkpoint(lambda x: ours(x)[0], x, use_reentrant=use_reentrant),
    ):
        ours.zero_grad()
        torch.manual_seed(3)
        run(x).square().sum().backward()
        found.append([p.grad.clone() for p in ours.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("case", [NETWORKS[4], DRAWING[1], DRAWING[5]], ids=name_of)
def test_saved_tensor_hooks_without_the_tape(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where copies are kept, backward runs forward once more, with the masks of the first time."""
    ours, _ = made(case)
    runs: list[bool] = []
    forward = Host.forward
    monkeypatch.setattr(Host, "forward", lambda *args: (runs.append(True), forward(*args))[1])
    x, found = inputs(), []
    for pack, count in ((lambda t: t, 1), (lambda t: t.clone(), 2)):
        runs.clear()
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y, _ = ours(x)
        found.append(torch.autograd.grad(y.square().sum(), [x, *ours.parameters()]))
        assert len(runs) == count
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("compiled", [False, True])
def test_changes_in_place_are_found(compiled: bool) -> None:
    ours, _ = made(NETWORKS[4])
    module = torch.compile(ours, fullgraph=True, backend="aot_eager") if compiled else ours
    for changed in ("y", "weight"):
        y, _ = module(inputs())
        with torch.no_grad():
            (y if changed == "y" else ours.weight_ih_l0).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


# Of torch's own rules for forward derivatives, which it loads at the first.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_derivatives_that_are_refused() -> None:
    ours, _ = made(NETWORKS[0])
    x = inputs()
    (dx,) = torch.autograd.grad(ours(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="expected one derivative, got a second one"):
        dx.sum().backward()
    with pytest.raises(RuntimeError, match="expected derivatives in reverse"):
        torch.func.jvp(lambda x: ours(x)[0], (x.detach(),), (x.detach(),))
