"""Losses over sequences of labels and the decoder with attention as functions of torch's autograd."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import run_python
from tolerances import relative_error

torch = pytest.importorskip("torch")

from torch.autograd.forward_ad import dual_level, make_dual  # noqa: E402

import fusedrnn as fr  # noqa: E402
import fusedrnn.torch as ft  # noqa: E402

pytestmark = pytest.mark.once

REDUCTIONS = ["mean", "sum", "none"]


def randn(*shape: int) -> Any:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


@pytest.fixture
def tags() -> Any:
    return torch.tensor([[0, 2, 1], [1, 1, 0], [2, 0, 0], [1, 2, 2]])  # (T, B)


def test_ctc_loss() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 3, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 2, 2], [3, 4, 1], [2, 0, 0]])
    sizes = torch.tensor([9, 7, 5]), torch.tensor([3, 3, 1])
    for reduction in ("mean", "sum", "none"):
        results = []
        for function in (ft.ctc_loss, torch.nn.functional.ctc_loss):
            loss = function(logits.log_softmax(-1), targets, *sizes, reduction=reduction)
            (grad,) = torch.autograd.grad(loss.square().sum(), logits)
            results.append((loss, grad))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_of_ctc_and_transducer(reduction: str) -> None:
    logits = randn(5, 2, 4)
    given = torch.tensor([[1, 2], [3, 0]]), torch.tensor([5, 3]), torch.tensor([2, 1])
    assert torch.autograd.gradcheck(lambda x: ft.ctc_loss(x, *given, reduction=reduction), (logits,))
    lattice = randn(2, 5, 3, 4)
    assert torch.autograd.gradcheck(
        lambda x: ft.transducer_loss(x, *given, blank=0, reduction=reduction), (lattice,)
    )
    want, dlogits = fr.transducer_loss(lattice.numpy(force=True), *given, blank=0, reduction=reduction)
    loss = ft.transducer_loss(lattice, *given, blank=0, reduction=reduction)
    loss.sum().backward()
    np.testing.assert_allclose(loss.numpy(force=True), want)
    np.testing.assert_allclose(lattice.grad, dlogits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_crf(tags: Any, reduction: str, batch_first: bool) -> None:
    """Gradients, also where sequences weigh differently; values and decoding as those of the kernels."""
    crf = ft.CRF(3, "bio", batch_first, dtype=torch.float64)
    emissions, lengths = randn(4, 3, 3), torch.tensor([4, 1, 3])
    tags = torch.where(tags == 2, 1, tags)  # B or O: I must not follow O
    given = (emissions.transpose(0, 1), tags.T) if batch_first else (emissions, tags)

    def loss(*tensors: Any) -> Any:
        weights = dict(zip(dict(crf.named_parameters()), tensors[1:], strict=True))
        return torch.func.functional_call(crf, weights, (tensors[0], given[1], lengths, reduction))

    leaf = given[0].detach().requires_grad_()
    inputs = (leaf, *crf.parameters())
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=reduction != "none")
    host = fr.CRF(3, "bio", batch_first, dtype="float64")
    host.load_state_dict(crf.state_dict())
    array = leaf.numpy(force=True)
    np.testing.assert_allclose(
        loss(*inputs).numpy(force=True), host.loss(array, given[1], lengths, reduction)[0]
    )
    for got, want in zip(crf.decode(leaf, lengths), host.decode(array, lengths), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(crf.marginals(leaf, lengths), host.marginals(array, lengths))
    assert repr(crf) == repr(host)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_joiner(reduction: str) -> None:
    """Gradients, also where sequences weigh differently; values as those of the loss of its logits."""
    joiner = ft.TransducerJoiner(3, 4, blank=0, dtype=torch.float64)
    enc, pred = randn(2, 5, 3), randn(2, 3, 3)
    given = torch.tensor([[1, 2], [3, 0]]), torch.tensor([5, 3]), torch.tensor([2, 1])

    def loss(enc: Any, pred: Any, *tensors: Any) -> Any:
        weights = dict(zip(dict(joiner.named_parameters()), tensors, strict=True))
        arguments = enc, pred, *given, -1.0, 0.0, reduction
        return torch.func.functional_call(joiner, weights, arguments)

    inputs = enc, pred, *joiner.parameters()
    assert torch.autograd.gradcheck(loss, inputs)
    logits = joiner.logits(enc[:, :, None], pred[:, None])
    want = ft.transducer_loss(logits, *given, blank=0, reduction=reduction)
    torch.testing.assert_close(loss(*inputs), want)
    weight = torch.tensor([2.0, -3.0], dtype=torch.float64) if reduction == "none" else 1
    flows = [torch.autograd.grad((weight * value).sum(), inputs) for value in (loss(*inputs), want)]
    torch.testing.assert_close(*flows)
    # FastEmit and the clamp, whose gradients are not those of the loss that is returned.
    host = fr.TransducerJoiner(3, 4, 0, dtype="float64")
    host.load_state_dict(joiner.state_dict())
    joiner(enc, pred, *given, clamp=0.1, fastemit_lambda=0.5).backward()
    _, denc, dpred = host.loss(enc.numpy(force=True), pred.numpy(force=True), *given, 0.1, 0.5)
    np.testing.assert_allclose(enc.grad, denc)
    np.testing.assert_allclose(pred.grad, dpred)
    for name, p in joiner.named_parameters():
        np.testing.assert_allclose(p.grad, host.grads[name])
    assert repr(joiner) == repr(host)


@pytest.mark.parametrize(("cell", "layers"), [("lstm", 1), ("gru", 1), ("lstm", 2)])
def test_decoder(cell: str, layers: int) -> None:
    decoder = ft.AttentionDecoder(cell, 3, 4, 5, attention_size=2, num_layers=layers, dtype=torch.float64)
    host = fr.AttentionDecoder(cell, 3, 4, 5, attention_size=2, num_layers=layers, dtype="float64")
    host.load_state_dict(decoder.state_dict())
    x, memory, h = randn(3, 2, 3), randn(4, 2, 5), randn(layers, 2, 4)
    counts = torch.tensor([4, 2]), torch.tensor([3, 1])
    state = (h, 2 * h) if cell == "lstm" else h

    def run(x: Any, memory: Any, h: Any, *tensors: Any) -> Any:
        weights = dict(zip(dict(decoder.named_parameters()), tensors, strict=True))
        start = (h, 2 * h) if cell == "lstm" else h
        y, alpha, end = torch.func.functional_call(decoder, weights, (x, memory, *counts, start))
        return y, alpha, *(end if cell == "lstm" else (end,))

    inputs = (x, memory, h, *decoder.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    arrays = [t.numpy(force=True) for t in (x, memory)]
    start = tuple(s.numpy(force=True) for s in state) if cell == "lstm" else state.numpy(force=True)
    want = torch.utils._pytree.tree_leaves(host(*arrays, *counts, start))
    with torch.no_grad():
        for got, array in zip(run(*inputs), want, strict=True):
            np.testing.assert_array_equal(got, array)
    again = copy.deepcopy(decoder)(x, memory, *counts, state)[0]
    assert np.array_equal(again.detach(), want[0]) and "attention_size=2" in repr(decoder)


@pytest.mark.skipif(fr.config()["bf16x3_isa"] is None, reason="no AMX, whose products it multiplies in")
def test_decoder_multiplies_in_what_it_was_made_with(tmp_path: Path) -> None:
    """Given by name or by `set_float32_matmul_precision`; calls make a module each, at another time."""
    x, memory = torch.randn(3, 2, 3), torch.randn(4, 2, 5)
    plain = ft.AttentionDecoder("gru", 3, 8, 5)
    named = ft.AttentionDecoder("gru", 3, 8, 5, compute="bf16x3")
    want, y = plain(x, memory)[0], named(x, memory)[0]
    try:
        fr.set_float32_matmul_precision("high")
        set_by_process = ft.AttentionDecoder("gru", 3, 8, 5)
        assert torch.equal(plain(x, memory)[0], want)
    finally:
        fr.set_float32_matmul_precision("highest")
    set_by_process.load_state_dict(named.state_dict())
    for module in (set_by_process, copy.deepcopy(named), pickle.loads(pickle.dumps(named))):
        assert "compute='bf16x3'" in repr(module) and torch.equal(module(x, memory)[0], y)
    plain.load_state_dict(named.state_dict())
    assert 0 < relative_error(y.detach(), plain(x, memory)[0].detach()) < 1e-4
    # As a network: in float64 it multiplies float64.
    assert named.double()(x.double(), memory.double())[0].dtype == torch.float64
    with pytest.raises(ValueError, match="compute: expected None or 'float32' with float64, got 'bf16x3'"):
        ft.AttentionDecoder("gru", 3, 8, 5, compute="bf16x3", dtype=torch.float64)
    torch.save(set_by_process, tmp_path / "decoder")
    program = (
        "import sys, warnings, torch\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    decoder = torch.load(sys.argv[1], weights_only=False)\n"
        "said = ' '.join(str(one.message) for one in caught)\n"
        "assert \"compute='bf16x3', which this CPU\" in said, said\n"
        "assert decoder(torch.ones(3, 2, 3), torch.ones(4, 2, 5))[0].isfinite().all()\n"
    )
    done = run_python("-c", program, str(tmp_path / "decoder"), FUSEDRNN_ISA="scalar")
    assert done.returncode == 0, done.stderr


def test_decoder_called_again_backwards() -> None:
    """With the tape kept, without it, and through checkpoints."""
    decoder = ft.AttentionDecoder("gru", 3, 4, 5)
    x, memory = torch.randn(3, 2, 3), torch.randn(4, 2, 5)
    weights = list(decoder.parameters())
    y = decoder(x, memory)[0]
    once = torch.autograd.grad(y.square().sum(), weights, retain_graph=True)
    twice = torch.autograd.grad(2 * y.square().sum(), weights)
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * a, b)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = decoder(x, memory)[0]
    y.square().sum().backward()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(decoder.parameters(), once, strict=True))
    for reentrant in (True, False):
        decoder.zero_grad()
        leaf = x.clone().requires_grad_()
        y = torch.utils.checkpoint.checkpoint(lambda x: decoder(x, memory)[0], leaf, use_reentrant=reentrant)
        y.square().sum().backward()
        assert all(torch.equal(p.grad, grad) for p, grad in zip(decoder.parameters(), once, strict=True))


class Tagger(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = ft.AttentionDecoder("gru", 3, 3, 3, dtype=torch.float64)
        self.crf = ft.CRF(3, dtype=torch.float64)

    def forward(self, x: Any, tags: Any, lengths: Any) -> Any:
        return self.crf(self.decoder(x, x, None, lengths)[0], tags, lengths, "sum")


def test_gradients_of_each_sample(tags: Any) -> None:
    model, x, lengths = Tagger(), randn(4, 3, 3), torch.tensor([4, 1, 3])
    params = {name: p.detach() for name, p in model.named_parameters()}

    def of_one(params: Any, x: Any, tags: Any, count: Any) -> Any:
        return torch.func.functional_call(model, params, (x[:, None], tags[:, None], count[None]))

    each = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 1, 1, 0))(
        params, x.detach(), tags, lengths
    )
    model(x, tags, lengths).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad)


# Of the compiler itself, which looks at all tensors at hand.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_around_compiled_graphs(tags: Any) -> None:
    """Where these functions break the graph; what is before and after them is compiled."""
    model, x = Tagger(), randn(4, 3, 3)

    def loss(x: Any) -> Any:
        return 2 * model(x.tanh(), tags, None) + ft.ctc_loss(x, 1 + tags.T % 2, [4, 4, 2], [1, 0, 1])

    want, got = loss(x), torch.compile(loss, backend="aot_eager")(x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x), torch.autograd.grad(want, x))


def test_refused(tags: Any) -> None:
    crf, decoder = ft.CRF(3), ft.AttentionDecoder("lstm", 3, 4, 5)
    with pytest.raises(TypeError, match=r"emissions: expected float32, got float64"):
        crf(randn(4, 3, 3), tags)
    with pytest.raises(TypeError, match=r"emissions: expected a torch.Tensor, got ndarray"):
        crf(np.zeros((4, 3, 3), np.float32), tags)
    with pytest.raises(ValueError, match=r"emissions: expected shape \(T, B, K\) = \(4, 3, 3\)"):
        crf.decode(torch.zeros(4, 3, 2))
    with pytest.raises(ValueError, match=r"memory: expected shape \(S, B, M\)"):
        decoder(torch.zeros(3, 2, 3), torch.zeros(4, 2, 4))
    joiner, rows = ft.TransducerJoiner(3, 4), torch.zeros(2, 5, 3)
    with pytest.raises(
        ValueError, match=r"pred: expected shape \(B, U\+1, H\) = \(2, 5, 3\), got \(2, 5, 2\)"
    ):
        joiner(rows, rows[..., :2], tags, tags, tags)
    with pytest.raises(TypeError, match=r"pred: expected a torch.Tensor, got ndarray"):
        joiner(rows, rows.numpy(), tags, tags, tags)
    with pytest.raises(RuntimeError, match=r"logits: expected a tensor on the CPU, got one on meta"):
        ft.transducer_loss(torch.zeros(2, 5, 3, 4, device="meta"), tags, tags, tags)
    x = torch.randn(3, 2, 3, requires_grad=True)
    (dx,) = torch.autograd.grad(decoder(x, torch.randn(4, 2, 5))[0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="expected one derivative"):
        dx.sum().backward()


# Of torch's own rules for forward derivatives, which it loads at the first.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_derivatives_of_losses_that_there_are_not(tags: Any) -> None:
    """Refused with what to do, and not zero without a word; one derivative with its graph is the same."""
    crf, joiner = ft.CRF(3, dtype=torch.float64), ft.TransducerJoiner(3, 4, blank=0, dtype=torch.float64)
    labels = torch.tensor([[1, 2], [2, 1]])
    steps, counts = torch.tensor([4, 3]), torch.tensor([2, 1])
    losses = {
        lambda x: ft.ctc_loss(x, labels, steps, counts): (4, 2, 3),
        lambda x: ft.transducer_loss(x, labels, steps, counts, blank=0): (2, 4, 3, 3),
        lambda x: crf(x, tags): (4, 3, 3),
        lambda x: joiner(x, x[:, :3], labels, steps, counts): (2, 4, 3),
    }
    for loss, shape in losses.items():
        x = randn(*shape)
        (once,) = torch.autograd.grad(loss(x), x)
        (dx,) = torch.autograd.grad(loss(x), x, create_graph=True)
        assert torch.equal(dx, once)
        with pytest.raises(RuntimeError, match="expected one derivative, got a second one of a loss"):
            torch.autograd.grad(dx.square().sum(), x)
        with dual_level(), pytest.raises(RuntimeError, match="expected derivatives in reverse"):
            loss(make_dual(x.detach(), torch.ones_like(x)))
        torch.testing.assert_close(torch.func.grad(loss)(x.detach()), once)
