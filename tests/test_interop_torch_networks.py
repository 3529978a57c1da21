"""The networks of fusedrnn.torch that torch.nn has not, beside those of NumPy's side."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_networks import DRAWING, NETWORKS, SMOOTH, equal, flat, inputs, made, name_of  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402

pytestmark = pytest.mark.once


@pytest.mark.parametrize("case", SMOOTH + DRAWING, ids=name_of)
def test_gradcheck(case: Any) -> None:
    """In training mode, with the same masks in each call."""
    ours, _ = made(case)
    x = inputs(seq_len=4)
    state = [
        torch.randn(rows, 3, width, dtype=x.dtype, requires_grad=True)
        for _, rows, width in ours._state_shapes()
    ]
    resets = torch.rand(4, 3) < 0.4

    def run(x: Any, *given: Any) -> tuple[Any, ...]:
        torch.manual_seed(3)
        own = given[: len(state)] if case[2].get("init_state") is None and given else ()
        hx = None if not own else own if len(own) > 1 else own[0]
        return tuple(flat(ours(x, hx, lengths=torch.tensor([4, 2, 3]), resets=resets)))

    leaves = [] if "learned_state" in case[2] or "init_state" in case[2] else state
    assert torch.autograd.gradcheck(run, (x, *leaves, *(ours.parameters() if leaves else ())), fast_mode=True)
    params = tuple(ours.parameters())
    assert torch.autograd.gradcheck(lambda *_: run(x), params, fast_mode=True)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_between_heads_are_not_loaded(assign: bool) -> None:
    """As on NumPy's side, which leaves them out of gradients; told as torch tells of another shape."""
    options = {"num_layers": 2, "bidirectional": True, "num_heads": 2}
    model = torch.nn.Sequential(ft.VariantGRU(3, 4, **options))
    given = {name: value + 1 for name, value in ft.VariantGRU(3, 4, **options).state_dict().items()}
    state = {f"0.{name}": value * (value != 1) for name, value in given.items()}
    assert model.load_state_dict(state, assign=assign)
    before = model[0].weight_hh_l1_reverse.detach().clone()
    full = {**state, "0.weight_hh_l1_reverse": torch.ones(12, 4)}
    message = (
        r"Sequential:\s+0\.weight_hh_l1_reverse: expected zeros between the 2 heads, got weights of units"
    )
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=message) as caught:
            model.load_state_dict(full, strict, assign)
        assert "missing" not in str(caught.value).lower()
        assert torch.equal(model[0].weight_hh_l1_reverse, before)
        assert isinstance(model[0].weight_hh_l1_reverse, torch.nn.Parameter)
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight_hh_l0"):
        model.load_state_dict({**state, "0.weight_hh_l0": torch.ones(12, 3)})
    whole = ft.VariantGRU(3, 4, 2, bidirectional=True)
    assert whole.load_state_dict(given) and (whole.num_heads, model[0].num_heads) == (1, 2)


@pytest.mark.parametrize("case", DRAWING, ids=name_of)
def test_masks_come_from_the_seed_of_torch(case: Any) -> None:
    ours, _ = made(case)
    x = inputs()
    results = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        results.append(ours(x)[0])
    # Batch normalisation alone draws nothing.
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


@pytest.mark.parametrize("case", [NETWORKS[4], NETWORKS[9], NETWORKS[13]], ids=name_of)
def test_layouts(case: Any) -> None:
    """batch_first, one sequence, packed sequences: as lengths and time-major."""
    ours, _ = made(case)
    turned, _ = made(case, batch_first=True)
    turned.load_state_dict(ours.state_dict())
    x, lengths = inputs(), torch.tensor([3, 5, 1])
    want = flat(ours(x, lengths=lengths))
    got = flat(turned(x.transpose(0, 1), lengths=lengths))
    assert torch.equal(got[0].transpose(0, 1), want[0]) and torch.equal(got[1], want[1])
    one = flat(ours(x[:, 0]))
    assert all(torch.equal(a, b[:, 0]) for a, b in zip(one, flat(ours(x)), strict=True))
    state = [torch.ones(rows, width, dtype=x.dtype) for _, rows, width in ours._state_shapes()]
    hx = tuple(state) if len(state) > 1 else state[0]
    wide = tuple(part[:, None] for part in state)
    both = flat(ours(x[:, 0], hx)), flat(ours(x[:, :1], wide if len(state) > 1 else wide[0]))
    assert all(torch.equal(a, b[:, 0]) for a, b in zip(*both, strict=True))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, final = ours(packed)
    found = [torch.nn.utils.rnn.pad_packed_sequence(y)[0], *flat((y, final))[1:]]
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_batch_norm_moves_its_buffers() -> None:
    """As NumPy's side; in evaluation mode they stay. Compiled, too."""
    ours, net = made(("LiGRU", (), {"num_layers": 2}))
    x = inputs()
    for module in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")):
        y, _ = module(x, lengths=torch.tensor([5, 2, 4]))
        want, _ = net(x.detach().numpy(), lengths=np.array([5, 2, 4]))
        assert equal([y], [want])
        state = net.state_dict()
        assert all(np.array_equal(value.numpy(), state[name]) for name, value in ours.state_dict().items())
        assert "running_mean_l1" in state and abs(state["running_mean_l1"]).min() > 0
    before = copy.deepcopy(ours.state_dict())
    ours.eval()(x)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("case", [NETWORKS[9], DRAWING[1], DRAWING[5]], ids=name_of)
def test_copies_and_pickles(case: Any) -> None:
    ours, _ = made(case)
    x = inputs()
    want = ours.eval()(x)[0]
    for module in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is type(ours) and torch.equal(module(x)[0], want) and repr(module) == repr(ours)
        assert module._number != ours._number
        with torch.no_grad():
            next(module.parameters()).zero_()
        assert not torch.equal(module(x)[0], want) and torch.equal(ours(x)[0], want)


@pytest.mark.parametrize("kind", [ft.LSTM, ft.MGU])
def test_copies_with_parametrizations(kind: Any) -> None:
    ours, x = kind(3, 4), inputs(torch.float32).detach()
    want = ours(x)[0]
    torch.nn.utils.parametrizations.weight_norm(ours, "weight_hh_l0")
    again = copy.deepcopy(ours)
    torch.testing.assert_close(again(x)[0], want)
    with torch.no_grad():
        again.parametrizations.weight_hh_l0.original0.mul_(2)
    assert torch.equal(again(x)[0], copy.deepcopy(again)(x)[0]) and not torch.equal(again(x)[0], ours(x)[0])


@pytest.mark.parametrize("case", [DRAWING[5], NETWORKS[14]], ids=name_of)
def test_changed_buffers_are_seen(case: Any) -> None:
    ours, net = made(case)
    x = inputs()
    for module in (ours.eval(), torch.compile(ours, fullgraph=True, backend="aot_eager")):
        for buffer in ours.buffers():
            buffer.add_(0.5)
        net.load_state_dict(ours.state_dict())
        assert equal([module(x)[0]], [net.eval()(x.detach().numpy())[0]])


def test_changed_weights_are_seen() -> None:
    """However they are written to, laid out or exchanged; and other dtypes."""
    ours, net = made(NETWORKS[0])
    x = inputs()
    weight = ours.weight_hh_l0

    def check() -> None:
        net.load_state_dict(ours.state_dict())
        with torch.no_grad():
            assert equal([ours(x)[0]], [net(x.detach().numpy())[0]])

    check()
    weight.data.mul_(0.5)
    check()
    weight.data = weight.data.clone()
    check()
    memory = torch.randn(weight.numel(), dtype=x.dtype)
    weight.data = memory.view(weight.shape[::-1]).T
    check()
    ours.weight_hh_l0 = torch.nn.Parameter(torch.randn_like(weight))
    check()
    y = ours(x)[0]
    torch.testing.assert_close(ours.float()(x.float())[0], y.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.double()(x)[0], ours(x)[0])


def test_frozen_parameters_and_inputs() -> None:
    ours, _ = made(NETWORKS[4])
    x = inputs().detach()
    ours(x)[0].sum().backward()
    want = ours.weight_ih_l0.grad.clone()
    ours.zero_grad()
    for name, p in ours.named_parameters():
        p.requires_grad_(name == "weight_ih_l0")
    ours(x)[0].sum().backward()
    assert torch.equal(ours.weight_ih_l0.grad, want) and ours.weight_ih_l1.grad is None
    ours.requires_grad_(False)
    leaf = inputs()
    ours(leaf)[0].sum().backward()
    assert leaf.grad is not None and torch.equal(ours.weight_ih_l0.grad, want)


def test_threads_share_a_module() -> None:
    ours, _ = made(NETWORKS[4])
    xs = [torch.randn(6, 2, 3, dtype=torch.float64) for _ in range(8)]

    def step(x: Any) -> list[Any]:
        return list(torch.autograd.grad(ours(x)[0].square().sum(), list(ours.parameters())))

    want, got = [step(x) for x in xs], {}

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = step(xs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for i in range(8) for a, b in zip(got[i], want[i], strict=True))


def test_what_they_refuse() -> None:
    with pytest.raises(TypeError, match="seed: expected none"):
        ft.MGU(3, 4, seed=1)
    with pytest.raises(ValueError, match="nonlinearity: expected 'relu' or 'tanh', got 'sine'"):
        ft.IndRNN(3, 4, nonlinearity="sine")
    ours, _ = made(NETWORKS[4])
    x, state = inputs(), [torch.zeros(4, 3, 4, dtype=torch.float64) for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"hx: expected 2 tensors \(h, c\), got 3"):
        ours(x, tuple(state))
    with pytest.raises(RuntimeError, match=r"Expected hidden c size \(4, 3, 4\), got \[4, 2, 4\]"):
        ours(x, (state[0], state[1][:, :2]))
    with pytest.raises(RuntimeError, match=r"Expected 3, got 2"):
        ours(x[..., :2])
    with pytest.raises(ValueError, match="does not match weight dtype"):
        ours(x.float())
    with pytest.raises(ValueError, match=r"lengths\[0\]|lengths: expected"):
        ours(x, lengths=torch.tensor([9, 1, 1]))
    half = ft.MGU(3, 4, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"x: expected torch.float32 or torch.float64, got torch.bfloat16"):
        half(torch.zeros(2, 1, 3, dtype=torch.bfloat16))
    meta = ft.MGU(3, 4, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        meta(torch.zeros(2, 1, 3))


@pytest.mark.parametrize("kind", [ft.LSTM, ft.MGU])
@pytest.mark.parametrize("name", ["lengths", "resets"])
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 5)])
def test_what_is_no_tensor(kind: Any, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected a torch.Tensor, got list"):
        kind(5, 7)(torch.zeros(shape), **{name: [1, 1, 1]})


@pytest.mark.parametrize("kind", [ft.LSTM, ft.GRU, ft.MGU])
def test_an_input_that_is_no_tensor(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"input: expected a torch.Tensor or PackedSequence, got ndarray"):
        kind(5, 7)(np.zeros((4, 3, 5), np.float32))


@pytest.mark.parametrize("kind", [ft.LSTM, ft.GRU, ft.MGU])
def test_a_state_that_is_no_tensor(kind: Any) -> None:
    for state in (np.zeros((1, 3, 7), np.float32), [0.0], 5):
        with pytest.raises(TypeError, match=r"hx: expected a torch.Tensor for each state, got [a-z]"):
            kind(5, 7)(torch.zeros(4, 3, 5), state)


@pytest.mark.parametrize("kind", [ft.LSTM, ft.MGU])
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.float32])
def test_lengths_that_are_no_integers(kind: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"lengths: expected integers \(B,\) = \(3,\), got torch"):
        kind(5, 7)(torch.zeros(4, 3, 5), lengths=torch.ones(3, dtype=dtype))


def test_signatures() -> None:
    """Words of the class in NumPy, those of torch in place of dtype and seed."""
    shown = inspect.signature(ft.VariantLSTM).parameters
    assert {"peephole", "num_layers", "device", "dtype"} <= set(shown) and "seed" not in shown
    assert list(inspect.signature(ft.Recurrent).parameters)[:3] == ["cell", "input_size", "hidden_size"]
    torch.manual_seed(1)
    first = ft.MGU(3, 4)
    torch.manual_seed(1)
    assert (
        torch.equal(ft.MGU(3, 4).weight_ih_l0, first.weight_ih_l0)
        and first.weight_ih_l0.dtype is torch.float32
    )
