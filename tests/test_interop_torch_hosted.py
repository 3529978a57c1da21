"""QuantumLSTM and Hybrid of fusedrnn.torch, beside those of NumPy's side."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_networks import equal, inputs, name_of  # noqa: E402

import fusedrnn as fr  # noqa: E402
import fusedrnn.torch as ft  # noqa: E402
from fusedrnn.interop.torch.hosts import Inputs  # noqa: E402

pytestmark = pytest.mark.once

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("QuantumLSTM", (3, 4), {"qubits": 3, "layers": 2}),
    ("QuantumLSTM", (3, 1), {"qubits": 1}),
    ("Hybrid", (3,), {"expansion": 2}),
    ("Hybrid", (3, 3), {"cell": "gru", "num_heads": 3, "attention_layer": 0}),
    ("Hybrid", (3, 1), {"cell": "rnn", "expansion": 0, "dropout": 0.4}),
]


def made(case: Any, dtype: Any = torch.float64, **more: Any) -> tuple[Any, Any]:
    """A module, and that of NumPy's side with its weights, each drawn anew."""
    torch.manual_seed(5)
    kind, sizes, options = case
    ours = getattr(ft, kind)(*sizes, **options, **more, dtype=dtype)
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.5)
    net = getattr(fr, kind)(*sizes, **options, **more, dtype=str(dtype)[6:], init=None)
    net.load_state_dict(ours.state_dict())
    return ours, net


def flat(found: Any) -> list[Any]:
    """y and the states, if there are any."""
    return [found[0], *found[1]] if isinstance(found, tuple) else [found]


def start(ours: Any, batch: int, dtype: Any = torch.float64) -> list[Any]:
    """Initial states, if there are any."""
    shapes = [(rows, batch, width) for _, rows, width in ours._state_shapes()]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def given_state(state: list[Any]) -> tuple[Any, ...]:
    return (tuple(state),) if state else ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bits_of_numpys_side(case: Any, dtype: Any) -> None:
    """Outputs and all gradients, with lengths, a state, and a mask where there is one."""
    ours, net = made(case, dtype)
    ours.eval(), net.eval()
    x, lengths, state = inputs(dtype), torch.tensor([5, 0, 3]), start(ours, 3, dtype)
    mask = {} if state else {"mask": torch.rand(5, 3) < 0.7}
    found = flat(ours(x, *given_state(state), lengths=lengths, **mask))
    host = {name: tensor.numpy() for name, tensor in {"lengths": lengths, **mask}.items()}
    y, *final, tape = net.forward(
        x.detach().numpy(), *given_state([s.detach().numpy() for s in state]), **host
    )
    assert equal(found, [y, *(final[0] if final else ())])
    flows = [torch.randn_like(part) for part in found]
    grads = torch.autograd.grad(found, [x, *state, *ours.parameters()], flows)
    dy, *dfinal = [flow.numpy() for flow in flows]
    back = net.backward(tape, dy, *given_state(dfinal))
    dx, dstate = back if state else (back, ())
    assert equal(grads, [dx, *dstate, *net.grads.values()])
    with torch.no_grad():
        again = flat(ours(x, *given_state(state), lengths=lengths, **mask))
    assert all(torch.equal(a, b) and a.grad_fn is None for a, b in zip(again, found, strict=True))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_gradcheck(case: Any) -> None:
    """In training mode, with the same masks in each call."""
    ours, _ = made(case)
    x, state = inputs(seq_len=4), start(ours, 3)
    mask = {} if state else {"mask": torch.rand(4, 3) < 0.7}

    def run(x: Any, *given: Any) -> tuple[Any, ...]:
        torch.manual_seed(3)
        hx = given_state(list(given[: len(state)]))
        return tuple(flat(ours(x, *hx, lengths=torch.tensor([4, 2, 3]), **mask)))

    assert torch.autograd.gradcheck(run, (x, *state, *ours.parameters()), fast_mode=True)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_ops_and_one_graph(case: Any) -> None:
    ours, _ = made(case)
    x, state, ops = inputs(), start(ours, 3), torch.ops.fusedrnn
    marks = None if state else torch.rand(5, 3) < 0.7
    lists = state, list(ours.parameters()), list(ours.buffers())
    args = Inputs(x, None, marks, torch.tensor([7]), *lists, ours._text, ours._number, True)
    torch.library.opcheck(ops.recurrent.default, (*args, True))
    y, tape, finals, _ = ops.recurrent(*args, True)
    plain = torch.utils._pytree.tree_map(lambda t: t.detach() if isinstance(t, torch.Tensor) else t, args)
    flows = y.detach(), tape.detach(), y.detach(), [part.detach() for part in finals]
    for needs in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(ops.recurrent_backward.default, (*plain, *flows, *needs))
    found = []
    for module in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        got = flat(module(x, lengths=torch.tensor([5, 0, 3])))
        found.append([*got, *torch.autograd.grad(got[0].square().sum(), [x, *ours.parameters()])])
    torch.compiler.reset()  # it counts the graphs of a function, which all networks share, and stops at some
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_layouts(case: Any) -> None:
    """batch_first, one sequence, packed sequences: as lengths and time-major."""
    ours, _ = made(case)
    ours.eval()
    turned, net = made(case, batch_first=True)
    turned.eval(), net.eval()
    x, lengths = inputs().detach(), torch.tensor([3, 5, 1])
    mask = {} if start(ours, 3) else {"mask": torch.rand(5, 3) < 0.7}
    want = flat(ours(x, lengths=lengths, **mask))
    across = {name: m.T for name, m in mask.items()}
    got = flat(turned(x.transpose(0, 1), lengths=lengths, **across))
    assert torch.equal(got[0].transpose(0, 1), want[0])
    host = flat(net(x.transpose(0, 1).contiguous().numpy(), lengths=lengths.numpy(), **across))
    assert equal(got, host)
    assert repr(turned) != repr(ours) and "batch_first=True" in repr(turned)
    one, three = flat(ours(x[:, 0])), flat(ours(x))
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(a, b[:, 0])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, *finals = flat(ours(packed)) if start(ours, 3) else [ours(packed)]
    found = [torch.nn.utils.rnn.pad_packed_sequence(y)[0], *finals]
    for a, b in zip(found, flat(ours(x, lengths=lengths)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_copies_pickles_and_state_dicts(case: Any) -> None:
    ours, net = made(case)
    x = inputs().detach()
    assert set(ours.state_dict()) == set(net.state_dict())
    want = flat(ours.eval()(x))[0]
    other = type(ours)(*case[1], **case[2], dtype=torch.float64).eval()
    assert not torch.equal(flat(other(x))[0], want)
    other.load_state_dict(ours.state_dict())
    for module in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), other):
        assert type(module) is type(ours) and torch.equal(flat(module(x))[0], want)
        assert repr(module) == repr(ours) and module._number != ours._number
        for p in module.parameters():
            p.data.mul_(0.5)
        assert not torch.equal(flat(module(x))[0], want) and torch.equal(flat(ours(x))[0], want)


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=name_of)
def test_weights_of_the_forward_count(case: Any) -> None:
    """Those of each call, though calls share one network of NumPy's side; autograd finds changes in place."""
    ours, _ = made(case)
    x = inputs()
    first, params = flat(ours(x))[0].square().sum(), list(ours.parameters())
    want = torch.autograd.grad(first, params, retain_graph=True)
    changed = {name: (2 * p).detach() for name, p in ours.named_parameters()}
    torch.func.functional_call(ours, changed, (x,))
    got = torch.autograd.grad(first, params)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    y = flat(ours(x))[0]
    with torch.no_grad():
        params[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_masks_come_from_the_seed_of_torch() -> None:
    """Each dropout of a Hybrid has its own."""
    ours = ft.Hybrid(40, 2, expansion=0, dropout=0.5)
    x, results = torch.randn(6, 2, 40), []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        results.append(ours(x))
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
    assert torch.equal(ours.eval()(x), ours(x))
    net = ours._host.net(torch.float32)
    streams = {(m._noise.seed, m._noise.offset >> 32) for m in net.modules() if m._noise is not None}
    assert len(streams) == len(net.random_state()) == 5


def test_functions_of_functions() -> None:
    """Gradients of each sample, and checkpoints."""
    for case in (CASES[0], CASES[2]):
        ours, _ = made(case)
        x = inputs()
        params = {name: p.detach() for name, p in ours.named_parameters()}

        def loss(params: Any, x: Any, ours: Any = ours) -> Any:
            return flat(torch.func.functional_call(ours, params, (x[:, None],)))[0].square().sum()

        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(params, x.detach())
        run = torch.utils.checkpoint.checkpoint(ours, x, use_reentrant=False)
        flat(run)[0].square().sum().backward()
        want = [p.grad for p in ours.parameters()]
        torch.testing.assert_close([each[name].sum(0) for name in params], want)


def test_what_a_network_is_stays() -> None:
    """Options that are set later are refused, where torch.nn's count at the next call; not batch_first."""
    made = [(ft.Hybrid(3), "dropout", 0.5), (ft.MGU(3, 4), "zoneout", 0.1)]
    made += [(ft.VariantLSTM(3, 4), "compute", "bf16"), (ft.QuantumLSTM(3, 4), "qubits", 2)]
    for module, name, value in made:
        for each in (module, copy.deepcopy(module)):
            with pytest.raises(
                AttributeError, match=rf"{name}: expected as an argument, \w+\(\.\.\., {name}="
            ):
                setattr(each, name, value)
        x = inputs(torch.float32).detach()
        want = flat(module.eval()(x))[0]
        module.batch_first = True
        assert torch.equal(flat(module(x.transpose(0, 1)))[0].transpose(0, 1), want)
        module.extra = 5  # attributes of one's own


def test_products_are_those_of_the_time_when_it_was_made() -> None:
    """As on NumPy's side; copies and pickles keep them, and torch's own setting is another."""
    if fr.config()["bf16_isa"] is None:
        pytest.skip("needs a processor with products of bfloat16")
    x, before = torch.randn(5, 3, 64), torch.get_float32_matmul_precision()
    ours = ft.VariantGRU(64, 64)
    want = ours(x)[0]
    fr.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(ours(x)[0], want)
        lower = ft.VariantGRU(64, 64)
        assert torch.equal(copy.deepcopy(ours)(x)[0], want)
    finally:
        fr.set_float32_matmul_precision("highest")
    lower.load_state_dict(ours.state_dict())
    assert not torch.equal(lower(x)[0], want) and torch.allclose(lower(x)[0], want, atol=0.05)
    assert torch.equal(pickle.loads(pickle.dumps(lower))(x)[0], lower(x)[0])
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(ours(x)[0], want)
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_they_refuse() -> None:
    with pytest.raises(TypeError, match="seed: expected none"):
        ft.Hybrid(3, seed=1)
    with pytest.raises(ValueError, match=r"qubits: expected .*8, got 9"):
        ft.QuantumLSTM(3, 4, qubits=9)
    quantum, hybrid = ft.QuantumLSTM(3, 4), ft.Hybrid(3)
    x, marks = torch.zeros(4, 2, 3), torch.ones(4, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="resets: expected None, a QuantumLSTM has none"):
        quantum(x, resets=marks)
    with pytest.raises(ValueError, match=r"mask: expected torch.bool \(4, 2\), got torch.float32 \(4, 2\)"):
        hybrid(x, mask=marks.float())
    with pytest.raises(TypeError, match=r"mask: expected a torch.Tensor, got list"):
        hybrid(x, mask=[True])
    with pytest.raises(TypeError, match=r"input: expected a torch.Tensor or PackedSequence, got ndarray"):
        hybrid(np.zeros((4, 2, 3), np.float32))
    with pytest.raises(RuntimeError, match="Expected 3, got 2"):
        hybrid(x[..., :2])
    with pytest.raises(RuntimeError, match=r"hx: expected 2 tensors \(h, c\), got 1"):
        quantum(x, (torch.zeros(1, 2, 4),))
