"""PyTorch as an oracle: outputs, final states, every gradient, and a whole training curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import MODULE_CELLS, Array, make_module, states_of
from tolerances import TRAINING_CURVE, assert_close

import fusedrnn as fr

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def torch_module(cell: str, inputs: int, hidden: int, layers: int, dtype: str, **options: Any) -> Any:
    options = {"dtype": getattr(torch, dtype), **options}
    if cell == "lstm_proj":
        return torch.nn.LSTM(inputs, hidden, layers, proj_size=(hidden + 1) // 2, **options)
    if cell in ("lstm", "gru"):
        return getattr(torch.nn, cell.upper())(inputs, hidden, layers, **options)
    return torch.nn.RNN(inputs, hidden, layers, nonlinearity=cell.removeprefix("rnn_"), **options)


def arrays(module: Any) -> dict[str, Array]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def tensor(a: Array, grad: bool = True) -> Any:
    return torch.tensor(a, requires_grad=grad)


def check(
    cell: str,
    shape: tuple[int, int, int, int],
    layers: int = 1,
    dtype: str = "float64",
    *,
    with_state: bool = True,
    unbatched: bool = False,
    seed: int = 0,
    **options: Any,
) -> None:
    """One module of ours, loaded from torch's state_dict, against torch's own."""
    seq_len, batch, inputs, hidden = shape
    torch.manual_seed(seed)
    theirs = torch_module(cell, inputs, hidden, layers, dtype, **options)
    ours = make_module(cell, inputs, hidden, layers, dtype=dtype, **options)
    ours.load_state_dict(arrays(theirs))
    rng = np.random.default_rng([seed, *shape])
    lead = (batch, seq_len) if options.get("batch_first") else (seq_len, batch)
    x = rng.normal(size=(seq_len, inputs) if unbatched else (*lead, inputs)).astype(dtype)
    tx = tensor(x)
    state: Any = None
    tstate: Any = None
    if with_state:
        zero = states_of(theirs(tx)[1])
        state = tuple(rng.normal(size=tuple(s.shape)).astype(dtype) for s in zero)
        tstate = tuple(tensor(s) for s in state)
    bare = len(states_of(theirs(tx)[1])) == 1
    ty, tfinal = theirs(tx, tstate[0] if with_state and bare else tstate)
    y, final, tape = ours.forward(x, state[0] if with_state and bare else state)
    assert isinstance(final, tuple) == (not bare)
    inferred_y, inferred = ours(x, state[0] if with_state and bare else state)
    assert np.array_equal(inferred_y, y)
    assert_close(y, ty.detach().numpy(), "output", "y")
    for k, (got, want) in enumerate(zip(states_of(final), states_of(tfinal), strict=True)):
        assert_close(got, want.detach().numpy(), "state", f"state {k}")
        assert np.array_equal(states_of(inferred)[k], got)
    dy = rng.normal(size=y.shape).astype(dtype)
    dfinal = tuple(rng.normal(size=s.shape).astype(dtype) for s in states_of(final))
    torch.autograd.backward([ty, *states_of(tfinal)], [tensor(d, False) for d in (dy, *dfinal)])
    dx, dstate = ours.backward(tape, dy, dstate=dfinal[0] if bare else dfinal)
    assert_close(dx, tx.grad.numpy(), "gradient", "dx")
    for k, got in enumerate(states_of(dstate)):
        if with_state:
            assert_close(got, tstate[k].grad.numpy(), "gradient", f"dstate {k}")
    for name, parameter in theirs.named_parameters():
        assert_close(ours.grads[name], parameter.grad.numpy(), "gradient", name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_layers_and_directions(cell: str, layers: int, bidirectional: bool, dtype: str) -> None:
    check(cell, (6, 3, 5, 11), layers, dtype, bidirectional=bidirectional)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 2), (1, 4, 3, 8), (9, 1, 1, 9), (4, 13, 17, 31), (12, 2, 7, 40)], ids=str
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_shapes(cell: str, dtype: str, shape: tuple[int, int, int, int]) -> None:
    check(cell, shape, 2, dtype)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_one_unit(cell: str) -> None:
    check(cell, (5, 3, 1, 1), 2, bidirectional=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_random(cell: str, seed: int) -> None:
    rng = np.random.default_rng([seed, len(cell)])
    shape = tuple(int(n) for n in rng.integers([1, 1, 1, 2], [10, 9, 20, 36]))
    check(
        cell,
        shape,
        int(rng.integers(1, 4)),
        "float64" if seed % 2 else "float32",
        bias=bool(rng.integers(2)),
        bidirectional=bool(rng.integers(2)),
        batch_first=bool(rng.integers(2)),
        seed=seed,
    )


@pytest.mark.parametrize("option", ["bias", "batch_first", "with_state", "unbatched"])
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_options(cell: str, option: str) -> None:
    check(cell, (5, 4, 3, 9), 2, bidirectional=True, **{option: option in ("batch_first", "unbatched")})


@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_unbatched_ignores_batch_first(cell: str) -> None:
    check(cell, (5, 1, 3, 9), 2, unbatched=True, batch_first=True)


@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_packed_sequences(cell: str) -> None:
    """lengths against torch's packed sequences (which refuse length 0)."""
    torch.manual_seed(0)
    theirs = torch_module(cell, 3, 9, 2, "float64", bidirectional=True)
    ours = make_module(cell, 3, 9, 2, bidirectional=True)
    ours.load_state_dict(arrays(theirs))
    rng = np.random.default_rng(0)
    lengths = np.array([3, 7, 1, 5, 7])
    x = rng.normal(size=(7, 5, 3))
    tx = tensor(x)
    packed = torch.nn.utils.rnn.pack_padded_sequence(tx, torch.tensor(lengths), enforce_sorted=False)
    ty, tfinal = theirs(packed)
    ty = torch.nn.utils.rnn.pad_packed_sequence(ty)[0]
    y, final, tape = ours.forward(x, lengths=lengths)
    dy = rng.normal(size=y.shape)
    ty.backward(tensor(dy, False))
    dx, _ = ours.backward(tape, dy)
    assert_close(y, ty.detach().numpy(), "output", "y")
    for got, want in zip(states_of(final), states_of(tfinal), strict=True):
        assert_close(got, want.detach().numpy(), "state")
    assert_close(dx, tx.grad.numpy(), "gradient", "dx")
    for name, parameter in theirs.named_parameters():
        assert_close(ours.grads[name], parameter.grad.numpy(), "gradient", name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_single_step_cells(cell: str, bias: bool, dtype: str) -> None:
    """LSTMCell, GRUCell and RNNCell over three steps, forward and back."""
    name = {"lstm": "LSTMCell", "gru": "GRUCell"}.get(cell, "RNNCell")
    extra = {"nonlinearity": cell.removeprefix("rnn_")} if name == "RNNCell" else {}
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(5, 9, bias=bias, dtype=getattr(torch, dtype), **extra)
    ours = getattr(fr, name)(5, 9, bias=bias, dtype=dtype, **extra)
    ours.load_state_dict(arrays(theirs))
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(3, 4, 5)).astype(dtype)
    states = 2 if cell == "lstm" else 1
    start = tuple(rng.normal(size=(4, 9)).astype(dtype) for _ in range(states))
    dlast = tuple(rng.normal(size=(4, 9)).astype(dtype) for _ in range(states))
    txs, tstart = [tensor(x) for x in xs], tuple(map(tensor, start))
    tstate: Any = tstart if states == 2 else tstart[0]
    state: Any = start if states == 2 else start[0]
    tapes = []
    for x, tx in zip(xs, txs, strict=True):
        tstate = theirs(tx, tstate)
        inferred = ours(x, state)
        state, tape = ours.forward(x, state)
        for a, b in zip(states_of(inferred), states_of(state), strict=True):
            assert np.array_equal(a, b)
        tapes.append(tape)
    for got, want in zip(states_of(state), states_of(tstate), strict=True):
        assert_close(got, want.detach().numpy(), "state")
    torch.autograd.backward(list(states_of(tstate)), [tensor(d, False) for d in dlast])
    dstate: Any = dlast if states == 2 else dlast[0]
    for tape, tx in zip(tapes[::-1], txs[::-1], strict=True):
        dx, dstate = ours.backward(tape, dstate)
        assert_close(dx, tx.grad.numpy(), "gradient", "dx")
    for got, want in zip(states_of(dstate), tstart, strict=True):
        assert_close(got, want.grad.numpy(), "gradient", "dstate")
    for parameter_name, parameter in theirs.named_parameters():
        assert_close(ours.grads[parameter_name], parameter.grad.numpy(), "gradient", parameter_name)


class Classifier(fr.Module):
    """Embedding, two LSTM layers, Linear: a small sequence labeller."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.embed = fr.Embedding(11, 6, dtype=dtype)
        self.rnn = fr.LSTM(6, 12, 2, dtype=dtype)
        self.head = fr.Linear(12, 5, dtype=dtype)

    def forward(self, tokens: Array) -> tuple[Array, Any]:
        x, embedded = self.embed.forward(tokens)
        y, _, tape = self.rnn.forward(x)
        logits, projected = self.head.forward(y)
        return logits, (embedded, tape, projected)

    def backward(self, tapes: Any, dlogits: Array) -> None:
        embedded, tape, projected = tapes
        dx, _ = self.rnn.backward(tape, self.head.backward(projected, dlogits))
        self.embed.backward(embedded, dx)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_training_curve(dtype: str) -> None:
    """The same weights and data give PyTorch's loss at each of 200 Adam steps with clipped gradients."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    theirs = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Embedding(11, 6, dtype=kind),
            "rnn": torch.nn.LSTM(6, 12, 2, dtype=kind),
            "head": torch.nn.Linear(12, 5, dtype=kind),
        }
    )
    ours = Classifier(dtype)
    ours.load_state_dict(arrays(theirs))
    optimiser = fr.optim.Adam(ours, lr=1e-2)
    reference = torch.optim.Adam(theirs.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, (200, 7, 4))
    # Learnable: the class of a step is a function of its token and the one before.
    targets = (tokens + np.roll(tokens, 1, axis=1)) % 5
    got, want = [], []
    for x, target in zip(tokens, targets, strict=True):
        logits, tapes = ours.forward(x)
        loss, dlogits = fr.cross_entropy(logits, target)
        ours.zero_grad()
        ours.backward(tapes, dlogits)
        norm = fr.clip_grad_norm(ours, 0.5)
        optimiser.step()
        got.append((loss, norm))
        reference.zero_grad()
        tlogits = theirs["head"](theirs["rnn"](theirs["embed"](torch.tensor(x)))[0])
        tloss = torch.nn.functional.cross_entropy(tlogits.reshape(-1, 5), torch.tensor(target).reshape(-1))
        tloss.backward()
        tnorm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
        want.append((tloss.item(), tnorm.item()))
    curve, target_curve = np.array(got, np.float64), np.array(want)
    assert target_curve[-10:, 0].mean() < 0.8 * target_curve[:10, 0].mean()
    assert np.max(np.abs(curve - target_curve) / target_curve) <= TRAINING_CURVE[dtype]
