"""Networks and cells of fusedrnn.torch have the bits of those of NumPy's side, on each instruction set."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch_networks import DRAWING, NETWORKS, equal, flat, inputs, made, name_of  # noqa: E402

import fusedrnn as fr  # noqa: E402
import fusedrnn.torch as ft  # noqa: E402

# Those that torch.nn has, too, whose calls go another way.
STOCK: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("LSTM", (), {}),
    ("LSTM", (), {"proj_size": 2, "bias": False}),
    ("GRU", (), {}),
    ("RNN", (), {"nonlinearity": "relu"}),
]
DEEP = {"num_layers": 2, "bidirectional": True}
ALL = [*STOCK, *NETWORKS, *DRAWING]
# States that are given are for one number of layers and directions.
CASES = ALL + [(k, first, {**o, **DEEP}) for k, first, o in ALL if not {"init_state"} & set(o)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bits_of_the_network(case: Any, dtype: Any) -> None:
    """Outputs and all gradients, with lengths, resets and a state."""
    ours, net = made(case, dtype)
    ours.eval(), net.eval()
    x, lengths = inputs(dtype), torch.tensor([5, 0, 3])
    resets = torch.rand(5, 3) < 0.4
    state = [
        torch.randn(rows, 3, width, dtype=dtype, requires_grad=True)
        for _, rows, width in ours._state_shapes()
    ]
    for given in ([], state):
        hx = None if not given else tuple(state) if len(state) > 1 else state[0]
        host = None if hx is None else [part.detach().numpy() for part in given]
        found = flat(ours(x, hx, lengths=lengths, resets=resets))
        packed = None if host is None else tuple(host) if len(host) > 1 else host[0]
        y, final, tape = net.forward(x.detach().numpy(), packed, lengths.numpy(), resets.numpy())
        assert equal(found, flat((y, final)))
        flows = [torch.randn_like(part) for part in found]
        grads = torch.autograd.grad(found, [x, *given, *ours.parameters()], flows)
        dy, *dfinal = [flow.numpy() for flow in flows]
        net.zero_grad()
        dx, dstate = net.backward(tape, dy, tuple(dfinal) if len(dfinal) > 1 else dfinal[0])
        starts = dstate if isinstance(dstate, tuple) else (dstate,)
        assert equal(grads, [dx, *starts[: len(given)], *net.grads.values()])
    with torch.no_grad():
        again = flat(ours(x, hx, lengths=lengths, resets=resets))
    assert all(torch.equal(a, b) and a.grad_fn is None for a, b in zip(again, found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_bits_of_the_cell(kind: str, dtype: Any) -> None:
    ours, cell = getattr(ft, kind)(3, 9, dtype=dtype), getattr(fr, kind)(3, 9, dtype=str(dtype)[6:])
    cell.load_state_dict(ours.state_dict())
    x, count = inputs(dtype)[0].detach().requires_grad_(), 2 if kind == "LSTMCell" else 1
    state = tuple(torch.randn(3, 9, dtype=dtype, requires_grad=True) for _ in range(count))
    flows = tuple(torch.randn(3, 9, dtype=dtype) for _ in range(count))

    def packed(parts: tuple[Any, ...]) -> Any:
        return parts if count > 1 else parts[0]

    found = ours(x, packed(state))
    found = found if count > 1 else (found,)
    grads = torch.autograd.grad(found, [x, *state, *ours.parameters()], flows)
    want, tape = cell.forward(x.detach().numpy(), packed(tuple(part.detach().numpy() for part in state)))
    assert equal(found, want if count > 1 else [want])
    dx, dstate = cell.backward(tape, packed(tuple(flow.numpy() for flow in flows)))
    assert equal(grads, [dx, *(dstate if count > 1 else [dstate]), *cell.grads.values()])
