"""fusedrnn.torch beside torch.nn: results, gradients, errors, and a model converted in place."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_support import pair  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402
from fusedrnn import _core  # noqa: E402
from fusedrnn.interop.torch import kernels, ops  # noqa: E402

pytestmark = [
    pytest.mark.once,
    # Of torch.nn's own LSTM, once in a process.
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


def flat(output: Any) -> list[Any]:
    y, state = output
    return [y, *(state if isinstance(state, tuple) else (state,))]


def compare(theirs: Any, ours: Any, x: Any, state: Any = None, tolerance: float = 1e-10) -> None:
    """Outputs and all gradients, of a function of every output."""
    grads = []
    outputs = []
    for module in (theirs, ours):
        module.zero_grad()
        leaf = x.detach().clone().requires_grad_()
        starts = [s.detach().clone().requires_grad_() for s in state or ()]
        hx = None if state is None else tuple(starts) if module.mode == "LSTM" else starts[0]
        found = flat(module(leaf, hx))
        sum((part.square() * (i + 1)).sum() for i, part in enumerate(found)).backward()
        outputs.append(found)
        grads.append([leaf.grad, *[s.grad for s in starts], *[p.grad for p in module.parameters()]])
    for a, b in zip(outputs[0] + grads[0], outputs[1] + grads[1], strict=True):
        scale = max(1.0, a.abs().max().item())
        assert a.shape == b.shape and (a - b).abs().max().item() <= tolerance * scale


CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 3, "bias": False}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    ("LSTM", {"proj_size": 2, "bias": False}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"batch_first": True, "bias": False}),
    ("RNN", {"num_layers": 2}),
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_as_torch(kind: str, options: dict[str, Any], dtype: Any, tolerance: float) -> None:
    theirs, ours = pair(kind, dtype, **options)
    x = torch.randn(6, 4, 5, dtype=dtype)
    batch = 6 if options.get("batch_first") else 4
    rows = ours.num_layers * (2 if ours.bidirectional else 1)
    widths = (ours.proj_size or 7, 7)[: 2 if kind == "LSTM" else 1]
    state = [torch.randn(rows, batch, width, dtype=dtype) for width in widths]
    compare(theirs, ours, x, tolerance=tolerance)
    compare(theirs, ours, x, state, tolerance)
    compare(theirs, ours, x[0], [s[:, 0] for s in state], tolerance)
    with torch.no_grad():
        assert torch.equal(ours(x)[0], ours(x.clone().requires_grad_())[0])


@pytest.mark.parametrize("seed", range(20))
def test_random_options(seed: int) -> None:
    """Any options and sizes, with a state or without, and packed: outputs and all gradients as torch.nn."""
    rng = random.Random(seed)
    kind = rng.choice(["LSTM", "GRU", "RNN"])
    options: dict[str, Any] = {
        "num_layers": rng.randint(1, 3),
        **{name: rng.random() < 0.5 for name in ("bias", "batch_first", "bidirectional")},
    }
    if kind == "RNN":
        options["nonlinearity"] = rng.choice(["tanh", "relu"])
    if kind == "LSTM" and rng.random() < 0.5:
        options["proj_size"] = rng.randint(1, 6)
    theirs, ours = pair(kind, **options)
    seq_len, batch = rng.randint(1, 9), rng.randint(1, 9)
    shape = (batch, seq_len, 5) if ours.batch_first else (seq_len, batch, 5)
    x, state = torch.randn(shape, dtype=torch.float64), None
    if rng.random() < 0.5:
        rows, widths = ours.num_layers * (1 + ours.bidirectional), (ours.proj_size or 7, 7)
        state = [torch.randn(rows, batch, w, dtype=torch.float64) for w in widths[: 1 + (kind == "LSTM")]]
    compare(theirs, ours, x, state)
    lengths = torch.tensor([rng.randint(1, seq_len) for _ in range(batch)])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, ours.batch_first, enforce_sorted=False)
    (want, *ends), (got, *found) = flat(theirs(packed)), flat(ours(packed))
    torch.testing.assert_close([got.data, *found], [want.data, *ends])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_packed_sequences_and_lengths(kind: str) -> None:
    theirs, ours = pair(kind, bidirectional=True)
    x, lengths = torch.randn(6, 4, 5, dtype=torch.float64), torch.tensor([2, 6, 1, 5])
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    h = torch.randn(2, 4, 7, dtype=torch.float64)
    state = (h, -h) if kind == "LSTM" else h
    want, got = flat(theirs(packed, state)), flat(ours(packed, state))
    torch.testing.assert_close(got[0].data, want[0].data)
    torch.testing.assert_close(got[1:], want[1:])
    y, _ = ours(x, state, lengths=lengths)
    torch.testing.assert_close(y, torch.nn.utils.rnn.pad_packed_sequence(want[0])[0])


def test_resets() -> None:
    _, ours = pair("GRU")
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[3] = True
    y, _ = ours(x, resets=resets)
    torch.testing.assert_close(y, torch.cat([ours(x[:3])[0], ours(x[3:])[0]]))


def test_dropout_repeats_with_the_seed_of_torch() -> None:
    _, ours = pair("LSTM", num_layers=2, dropout=0.5)
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    torch.manual_seed(1)
    first = ours(x)[0]
    assert not torch.equal(ours(x)[0], first)
    torch.manual_seed(1)
    assert torch.equal(ours(x)[0], first)
    ours.eval()
    assert torch.equal(ours(x)[0], ours(x)[0])


@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_through_dropout(bidirectional: bool) -> None:
    _, ours = pair("LSTM", num_layers=2, dropout=0.5, bidirectional=bidirectional)
    x = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)

    def run(x: Any) -> Any:
        torch.manual_seed(1)
        return ours(x)[0]

    assert torch.autograd.gradcheck(run, (x,))


def test_changed_weights_are_seen() -> None:
    """However they are written to, also past autograd's count of versions."""
    theirs, ours = pair("LSTM")
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    ours(x)
    for module in (theirs, ours):
        module.weight_hh_l0.data.mul_(0.5)
    compare(theirs, ours, x)


SHORT: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"batch_first": True, "proj_size": 3}),
    ("GRU", {}),
    ("GRU", {"batch_first": True}),
    ("RNN", {"bias": False}),
    ("LSTM", {"num_layers": 3, "bidirectional": True, "proj_size": 3, "batch_first": True}),
    ("LSTM", {"bidirectional": True, "bias": False}),
    ("GRU", {"num_layers": 3}),
    ("RNN", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"num_layers": 3, "bidirectional": True, "dropout": 0.4}),
    ("GRU", {"num_layers": 2, "batch_first": True, "dropout": 0.4}),
]


@pytest.mark.parametrize(("kind", "options"), SHORT)
def test_the_short_way(kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits of the general way, which is not gone and takes what the short one leaves."""
    _, ours = pair(kind, **options)
    batch_first = "batch_first" in options
    x = torch.randn((4, 6, 5) if batch_first else (6, 4, 5), dtype=torch.float64, requires_grad=True)
    rows = ours.num_layers * (1 + ours.bidirectional)
    h = torch.nn.Parameter(torch.randn(rows, 4, ours.proj_size or 7, dtype=torch.float64))
    hx = (h, torch.randn(rows, 4, 7, dtype=torch.float64)) if kind == "LSTM" else h
    runs: list[bool] = []
    run = kernels.run
    monkeypatch.setattr(kernels, "run", lambda *args: (runs.append(True), run(*args))[1])

    def results(x: Any, hx: Any = None, **steps: Any) -> list[Any]:
        torch.manual_seed(7)  # of masks
        found = flat(ours(x, hx, **steps))
        leaves = [x, *ours.parameters(), *([h] if hx is not None else [])]
        gradients = torch.autograd.grad(sum(part.sin().sum() for part in found), leaves, retain_graph=True)
        return [*found, *gradients]

    def check(x: Any, hx: Any = None, general: int = 0, **steps: Any) -> None:
        runs.clear()
        short = results(x, hx, **steps)
        assert len(runs) == general
        with monkeypatch.context() as without:
            without.setattr(ops, "apply_shortly", lambda *_: None)
            assert all(torch.equal(a, b) for a, b in zip(short, results(x, hx, **steps), strict=True))
        assert len(runs) == general + 1

    check(x)
    check(x, hx)
    check(x[:, :0] if batch_first else x[:0])
    check(x.transpose(0, 1))
    lengths, resets = torch.tensor([6, 0, 3, 5]), torch.rand(x.shape[:2]) < 0.4
    check(x, hx, lengths=lengths, resets=resets)
    check(x, resets=resets)
    check(x, general=1, lengths=lengths.int())
    with pytest.raises(ValueError, match=r"lengths\[0\]|lengths: expected"):
        ours(x, lengths=lengths + 1)
    # Parameters in other memory, and in the same memory but laid out otherwise.
    weight = ours.weight_hh_l0
    weight.data = weight.data.clone()
    ours.weight_hh_l0.data.mul_(0.5)
    check(x)
    memory = weight.data.new_empty(weight.numel()).uniform_(-1, 1)
    weight.data = memory.view(weight.shape)
    check(x)
    weight.data = memory.view(weight.shape[::-1]).T
    check(x, general=1)
    weight.data = memory.view(weight.shape)
    want = results(x)[0]
    torch.manual_seed(7)
    with torch.no_grad():
        y, _ = ours(x)
    assert torch.equal(y, want) and y.grad_fn is None


@pytest.mark.parametrize("batch_first", [False, True])
def test_versions_without_functions_for_c(batch_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 2.10, torch has no functions for C: the same bits by the general way."""
    x = torch.randn(6, 4, 5, dtype=torch.float64, requires_grad=True)

    def results() -> list[Any]:
        _, ours = pair("LSTM", batch_first=batch_first)
        y, (h, c) = ours(x)
        leaves = [x, *ours.parameters()]
        return [y, h, c, *torch.autograd.grad(y.sin().sum() + h.sum() + c.square().sum(), leaves)]

    want = results()
    older = SimpleNamespace(Tensor=object, nn=torch.nn, from_numpy=torch.from_numpy)
    for module in (kernels, ops):
        monkeypatch.setattr(module, "TORCH", _core.Torch(older))
    runs: list[bool] = []
    run = kernels.run
    monkeypatch.setattr(kernels, "run", lambda *args: (runs.append(True), run(*args))[1])
    assert all(torch.equal(a, b) for a, b in zip(results(), want, strict=True)) and runs == [True]


def test_compiled_calls_refuse() -> None:
    """What no caller of them gives."""
    _, ours = pair("GRU")
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    tape = kernels.forward(
        kernels.Options("gru", 1, False, False, 0.0),
        kernels.Inputs(x, None, None, None, (), tuple(ours.parameters())),
        True,
    )[1]
    with pytest.raises(ValueError, match=r"flows: expected 2, got 1"):
        kernels.TORCH.backward(*tape, (x,), True, False, True, False)
    for axes, message in ((3, "step_axes: expected 0 to 2, got 3"), (1, "flows: expected 1, got 2")):
        with pytest.raises(ValueError, match=message):
            kernels.TORCH.backward(*tape, (x, None), True, False, True, False, axes)
    with pytest.raises(TypeError, match="tape: expected a LayerTape, got None"):
        kernels.TORCH.backward([None], [None], (x, None), True, False, True, False)
    for tapes, drops in (([], []), (tape.layers, []), ([*tape.layers] * 3, [None])):
        with pytest.raises(ValueError, match="tapes: expected one or "):
            kernels.TORCH.backward(tapes, drops, (x, None), True, False, True, False)
    params = kernels.kernel_weights(kernels.parameters(tuple(ours.parameters())), 1)
    y, h = np.zeros((6, 4, 7)), np.zeros((1, 4, 7))
    for change, message in (
        ({"params": []}, "params: expected one or two for each of 1 layers, got 0"),
        ({"caches": [_core.WeightCache()] * 2}, "caches: expected as many as rows of params, got 2"),
        ({"x": x[0].numpy()}, r"x: expected 3 axes \(T, B, I\), got 2"),
        ({"finals": (h[0],)}, r"state: expected 3 axes \(layers\*D, B, width\), got 2"),
        ({"states": (h[:0],)}, r"state: expected layers\*D = 1, got 0"),
        ({"y": y[:5]}, "out: expected shape"),
    ):
        given = {"cell": "gru", "directions": 1, "params": params, "caches": [], "x": x.numpy(), "states": ()}
        given |= {"lengths": None, "resets": None, "drops": (None,), "save": False, "y": y, "finals": (h,)}
        with pytest.raises(ValueError, match=message):
            _core.run_network(**{**given, **change})
    with pytest.raises(TypeError, match="torch: expected a Torch, got None"):
        _core.TensorNetwork(None, "gru", 1, [["weight_ih_l0", "weight_hh_l0"]], [_core.WeightCache()], tuple)


def test_converted_in_place() -> None:
    """Parameters, the optimiser and hooks stay; back again, too."""
    model = torch.nn.Sequential(torch.nn.LSTM(5, 7, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    called: list[int] = []
    model[0].register_forward_hook(lambda *_: called.append(1))
    x, before = torch.randn(6, 2, 5, dtype=torch.float64), list(model.parameters())
    want = model(x)[0]
    assert ft.convert(model) is model and type(model[0]) is ft.LSTM
    y = model(x)[0]
    torch.testing.assert_close(y, want)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True)) and called == [1, 1]
    y.sum().backward()
    optimizer.step()
    after = model(x)[0]
    assert (after - want).abs().max() > 0.01
    assert type(ft.restore(model)[0]) is torch.nn.LSTM
    torch.testing.assert_close(model(x)[0], after)
    root = ft.convert(torch.nn.GRU(2, 3))
    assert type(root) is ft.GRU
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        ft.convert(3)


def test_copies_and_pickles() -> None:
    _, ours = pair("LSTM", num_layers=2)
    x = torch.randn(6, 2, 5, dtype=torch.float64)
    want = ours(x)[0]
    for module in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is ft.LSTM and torch.equal(module(x)[0], want)
    assert repr(ours) == "LSTM(5, 7, num_layers=2)"


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_errors_as_torch(kind: str) -> None:
    """The same kinds of errors as torch.nn raises."""
    theirs, ours = pair(kind)
    x = torch.randn(6, 4, 5, dtype=torch.float64)
    h = torch.zeros(1, 3, 7, dtype=torch.float64)
    calls = [
        (x[0, 0], None),
        (x[..., :4], None),
        (x.float(), None),
        (x, (h, h) if kind == "LSTM" else h),
        (x, (h[0], h[0]) if kind == "LSTM" else h[0]),
    ]
    good = torch.zeros(1, 4, 7, dtype=torch.float64)
    if kind == "LSTM":
        for wrong in ((), (good, good, good)):
            with pytest.raises(RuntimeError, match=rf"hx: expected 2 tensors \(h, c\), got {len(wrong)}"):
                ours(x, wrong, resets=torch.zeros(6, 4, dtype=torch.bool))
    for call in calls:
        with pytest.raises((RuntimeError, ValueError)) as want:
            theirs(*call)
        with pytest.raises(want.type):
            ours(*call)
    bad: list[dict[str, Any]] = [
        {"hidden_size": 0},
        {"num_layers": 0},
        {"dropout": 2.0},
        {"hidden_size": 1.5},
    ]
    for options in [*bad, *([] if kind == "LSTM" else [{"proj_size": 1}])]:
        given = {"input_size": 5, "hidden_size": 7, **options}
        with pytest.raises((TypeError, ValueError)) as want:
            getattr(torch.nn, kind)(**given)
        with pytest.raises(want.type):
            getattr(ft, kind)(**given)


def test_tensors_elsewhere() -> None:
    """What is on another device is refused, with what there is to do."""
    x, weight = torch.zeros(2, 1, 5, device="meta"), torch.zeros(7, 5)
    for tensors in ((x, (), (weight,)), (x.new_zeros(2, 1, 5, device="cpu"), (), (weight.to("meta"),))):
        with pytest.raises(
            RuntimeError, match=r"got one on meta; use .cpu\(\), or there torch.nn's own module"
        ):
            kernels.check(*tensors)


def test_what_the_kernels_do_not_take() -> None:
    lstm = ft.LSTM(5, 7, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"x: expected torch.float32 or torch.float64, got torch.bfloat16"):
        lstm(torch.zeros(2, 1, 5, dtype=torch.bfloat16))
    lstm = ft.LSTM(5, 7)
    with pytest.raises(ValueError, match="lengths: expected integers"):
        lstm(torch.zeros(2, 1, 5), lengths=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"resets: expected torch.bool \(2, 1\)"):
        lstm(torch.zeros(2, 1, 5), resets=torch.zeros(2, 1))


def test_not_imported_with_the_package() -> None:
    code = "import sys, fusedrnn; sys.exit('torch' in sys.modules or 'fusedrnn.torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
