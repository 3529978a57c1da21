"""fusedrnn.torch under what PyTorch does with modules: compilation, checkpoints, functions of functions."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.interop.torch import kernels  # noqa: E402

pytestmark = pytest.mark.once


@pytest.fixture
def lstm() -> Any:
    torch.manual_seed(1)
    return ft.LSTM(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)


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


def test_second_derivatives_are_refused(lstm: Any, x: Any) -> None:
    (dx,) = torch.autograd.grad(lstm(x)[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="expected one derivative"):
        dx.sum().backward()


def test_changes_in_place_are_found(lstm: Any, x: Any) -> None:
    for changed in ("y", "weight"):
        y, _ = lstm(x)
        with torch.no_grad():
            (y if changed == "y" else lstm.weight_hh_l0).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_opcheck(lstm: Any, x: Any) -> None:
    params = list(lstm.parameters())
    args = (x, torch.tensor([5, 3]), None, None, [], params, "lstm", 2, True, False, 0.0, True)
    torch.library.opcheck(torch.ops.fusedrnn.rnn.default, args)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(lstm: Any, x: Any, use_reentrant: bool) -> None:
    want = grads(lstm, lstm(x)[0].sum())
    checkpoint = torch.utils.checkpoint.checkpoint
    y = checkpoint(lambda x: lstm(x)[0], x, use_reentrant=use_reentrant)
    torch.testing.assert_close(grads(lstm, y.sum()), want)


def test_saved_tensor_hooks_without_the_tape(lstm: Any, x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where copies are kept, backward runs forward once more."""
    found: list[bool] = []
    attached = kernels.attached
    monkeypatch.setattr(
        kernels, "attached", lambda h: (found.append(attached(h) is not None), attached(h))[1]
    )
    want = grads(lstm, lstm(x)[0].square().sum())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y, _ = lstm(x)
    got = grads(lstm, y.square().sum())
    assert found == [True, False] and all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_compile_in_one_graph(lstm: Any, x: Any) -> None:
    want = lstm(x, lengths=torch.tensor([5, 3]))
    gradients = grads(lstm, want[0].square().sum())
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    got = compiled(x, lengths=torch.tensor([5, 3]))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(grads(lstm, got[0].square().sum()), gradients)


def test_export(lstm: Any, x: Any) -> None:
    exported = torch.export.export(lstm, (x.detach(),))
    assert any("fusedrnn.rnn" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x.detach())[0], lstm(x)[0])


def test_gradients_of_each_sample(lstm: Any, x: Any) -> None:
    params = {name: p.detach() for name, p in lstm.named_parameters()}

    def loss(params: Any, x: Any) -> Any:
        return torch.func.functional_call(lstm, params, (x[:, None],))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(params, x.detach())
    want = grads(lstm, lstm(x)[0].square().sum())
    torch.testing.assert_close([each[name].sum(0) for name, _ in lstm.named_parameters()], want)


def test_autocast_leaves_the_dtype(x: Any) -> None:
    gru = ft.GRU(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = gru(torch.nn.Linear(3, 4)(x.detach().float()))
    assert y.dtype is torch.float32


RANK = """
import sys, torch, fusedrnn.torch as ft
import torch.distributed as dist
rank = int(sys.argv[1])
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[2], 2), rank=rank, world_size=2)
torch.manual_seed(0)
lstm = ft.LSTM(3, 4, dtype=torch.float64)
x = torch.randn(5, 4, 3, dtype=torch.float64)
want = torch.autograd.grad(lstm(x)[0].square().mean(), list(lstm.parameters()))
model = torch.nn.parallel.DistributedDataParallel(lstm)
model(x[:, 2 * rank : 2 * rank + 2])[0].square().mean().backward()
for p, g in zip(lstm.parameters(), want):
    torch.testing.assert_close(p.grad, g)
dist.destroy_process_group()
"""


def test_two_processes(tmp_path: Any) -> None:
    command = [sys.executable, "-c", RANK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment) for rank in range(2)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
