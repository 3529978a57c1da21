"""Every cell and option in training, beside the plain compiled cell and the same written out in PyTorch.

The peer is a loop over steps with autograd whose input product is taken for all steps at once. Outputs and
the gradients of the input and of weight_ih are compared before anything is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report

import fusedrnn as fr

SHAPES = ((100, 32, 128), (100, 1, 256), (100, 4, 64))
TOLERANCE = 2e-3
Tensor = Any
Tensors = dict[str, Tensor]
# From the blocks of W_ih x + b_ih and of W_hh h + b_hh, the states and all parameters: the next states.
Step = Callable[[Any, list[Tensor], list[Tensor], list[Tensor], Tensors], list[Tensor]]


def lstm(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    i, f, g, o = (a + b for a, b in zip(x, h, strict=True))
    c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def peephole(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    i, f, g, o = (a + b for a, b in zip(x, h, strict=True))
    i, f = i + p["peephole_i_l0"] * s[1], f + p["peephole_f_l0"] * s[1]
    c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o + p["peephole_o_l0"] * c) * torch.tanh(c), c]


def coupled(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    f, g, o = (a + b for a, b in zip(x, h, strict=True))
    f = torch.sigmoid(f)
    c = f * s[1] + (1 - f) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def clipped(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    i, f, g, o = (a + b for a, b in zip(x, h, strict=True))
    c = torch.clamp(torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g), -3.0, 3.0)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def normalised(torch: Any, v: Tensor, gain: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(v, v.shape[-1:], gain, None, 1e-5)


def layer_norm(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    i, f, g, o = (a + b for a, b in zip(x, h, strict=True))
    c = torch.sigmoid(f) * s[1] + torch.sigmoid(i) * torch.tanh(g)
    u = normalised(torch, c, p["gain_c_l0"]) + p["bias_c_l0"]
    return [torch.sigmoid(o) * torch.tanh(u), c]


def zoneout(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    return [new + m * (old - new) for new, old, m in zip(lstm(torch, x, h, s, p), s, p["m"], strict=True)]


def reset_before(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    r, z = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
    w, b = (p[name].chunk(3)[2] for name in ("weight_hh_l0", "bias_hh_l0"))
    n = torch.tanh(x[2] + torch.nn.functional.linear(r * s[0], w, b))
    return [n + z * (s[0] - n)]


def gru(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    r, z = torch.sigmoid(x[0] + h[0]), torch.sigmoid(x[1] + h[1])
    n = torch.tanh(x[2] + r * h[2])
    return [n + z * (s[0] - n)]


def mgu(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    f = torch.sigmoid(x[0] + h[0])
    return [(1 - f) * s[0] + f * torch.tanh(x[1] + f * h[1])]


def indrnn(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    return [torch.relu(x[0] + p["u_l0"] * s[0])]


def mingru(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    z = torch.sigmoid(x[0])
    return [(1 - z) * s[0] + z * x[1]]


def minlstm(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    softplus = torch.nn.functional.softplus
    f = torch.sigmoid(softplus(-x[1]) - softplus(-x[0]))
    return [f * s[0] + (1 - f) * x[2]]


def sru(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    f, r = torch.sigmoid(x[1] + p["v_f_l0"] * s[1]), torch.sigmoid(x[2] + p["v_r_l0"] * s[1])
    c = f * s[1] + (1 - f) * x[0]
    return [r * c + (1 - r) * x[3], c]


def ligru(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    z = torch.sigmoid(x[0] + h[0])
    return [z * s[0] + (1 - z) * torch.relu(x[1] + h[1])]


def slstm(torch: Any, x: list[Tensor], h: list[Tensor], s: list[Tensor], p: Tensors) -> list[Tensor]:
    i, f, z, o = (a + b for a, b in zip(x, h, strict=True))
    past = torch.nn.functional.logsigmoid(f) + torch.where(s[2] > 0, s[3], -1e30)
    m = torch.maximum(past, i)
    keep, write = torch.exp(past - m), torch.exp(i - m)
    c, n = keep * s[1] + write * torch.tanh(z), keep * s[2] + write
    return [torch.sigmoid(o) * c / n, c, n, m]


# name: (our network, the plain cell that its cost is relative to, the step)
VARIANTS: Mapping[str, tuple[Callable[..., Any], Callable[..., Any], Step]] = {
    "LSTM": (fr.LSTM, fr.LSTM, lstm),
    "LSTM peephole": (lambda *a, **o: fr.LSTM(*a, peephole=True, **o), fr.LSTM, peephole),
    "LSTM coupled_gates": (lambda *a, **o: fr.LSTM(*a, coupled_gates=True, **o), fr.LSTM, coupled),
    "LSTM cell_clip": (lambda *a, **o: fr.LSTM(*a, cell_clip=3.0, **o), fr.LSTM, clipped),
    "LSTM layer_norm": (lambda *a, **o: fr.LSTM(*a, layer_norm=True, **o), fr.LSTM, layer_norm),
    "LSTM recurrent_dropout": (lambda *a, **o: fr.LSTM(*a, recurrent_dropout=0.3, **o), fr.LSTM, lstm),
    "LSTM weight_dropout": (lambda *a, **o: fr.LSTM(*a, weight_dropout=0.3, **o), fr.LSTM, lstm),
    "LSTM zoneout": (lambda *a, **o: fr.LSTM(*a, zoneout=0.1, **o), fr.LSTM, zoneout),
    "LSTM batch_norm": (lambda *a, **o: fr.LSTM(*a, batch_norm=True, **o), fr.LSTM, lstm),
    "GRU": (fr.GRU, fr.GRU, gru),
    "GRU reset_before": (lambda *a, **o: fr.GRU(*a, reset_after=False, **o), fr.GRU, reset_before),
    "MGU": (fr.MGU, fr.GRU, mgu),
    "IndRNN": (fr.IndRNN, fr.GRU, indrnn),
    "MinGRU": (fr.MinGRU, fr.GRU, mingru),
    "MinLSTM": (fr.MinLSTM, fr.LSTM, minlstm),
    "SRU": (fr.SRU, fr.LSTM, sru),
    "LiGRU": (fr.LiGRU, fr.GRU, ligru),
    "SLSTM": (fr.SLSTM, fr.LSTM, slstm),
}


def training(net: Any, x: Any, dy: Any) -> dict[str, Any]:
    """Our training step."""
    net.zero_grad()
    y, _, tape = net.forward(x)
    dx, _ = net.backward(tape, dy)
    return {"y": y, "dx": dx, "weight_ih": net.grads["weight_ih_l0"]}


def masks(torch: Any, net: Any, steps: int, batch: int) -> tuple[Any, Any, list[Any]]:
    """What weight_hh and h before it are multiplied by, and what zoneout keeps of each state in each step.

    In evaluation these are what is expected; None where the network has no such option.
    """

    def draw(p: float, *shape: int) -> Tensor:
        return (torch.rand(shape) >= p).float() / (1 - p)

    if not net.training:
        return None, None, [net.zoneout] * steps
    hidden, rows = net.hidden_size, len(net._spec.gate_names) * net.hidden_size
    weight = draw(net.weight_dropout, rows, hidden) if net.weight_dropout else None
    state = draw(net.recurrent_dropout, batch, hidden) if net.recurrent_dropout else None
    kept = [(torch.rand(steps, batch, hidden) < p).float().unbind() for p in net.zoneout if any(net.zoneout)]
    return weight, state, list(zip(*kept, strict=True)) or [()] * steps


def loop(net: Any, step: Step, x: Any, dy: Any, compiled: bool = False) -> Callable[[], dict[str, Any]]:
    """The training step of the loop, with the weights of our network, its step by torch.compile if asked."""
    import torch

    equations = torch.compile(partial(step, torch)) if compiled else partial(step, torch)

    kept = {name: array for name, array in net.state_dict().items() if name in net.parameters}
    p = {name: torch.tensor(array, requires_grad=True) for name, array in kept.items()}
    inputs, flow = torch.tensor(x, requires_grad=True), torch.tensor(dy)
    count = len(net._spec.gate_names)
    zeros = [torch.zeros(x.shape[1], net.hidden_size) for _ in net._spec.state_names]

    def run() -> dict[str, Any]:
        inputs.grad = None
        for tensor in p.values():
            tensor.grad = None
        if "gain_hh_l0" in p:
            products = torch.nn.functional.linear(inputs, p["weight_ih_l0"])
            projected = normalised(torch, products, p["gain_ih_l0"]) + p["bias_ih_l0"]
        elif "gain_ih_l0" in p:
            products = torch.nn.functional.linear(inputs, p["weight_ih_l0"])
            norm = (None, None, p["gain_ih_l0"], p["bias_ih_l0"], True)
            projected = torch.nn.functional.batch_norm(products.flatten(0, 1), *norm).view_as(products)
        else:
            projected = torch.nn.functional.linear(inputs, p["weight_ih_l0"], p["bias_ih_l0"])
        dropped, d, kept = masks(torch, net, *x.shape[:2])
        weight_hh, bias_hh = p.get("weight_hh_l0"), p.get("bias_hh_l0")
        if dropped is not None:
            weight_hh = weight_hh * dropped
        if step is reset_before:  # which multiplies the last gate itself
            weight_hh, bias_hh = (both[: 2 * net.hidden_size] for both in (weight_hh, bias_hh))
        s, outputs = zeros, []
        for gx, m in zip(projected.unbind(0), kept, strict=True):
            h: list[Tensor] = []
            if weight_hh is not None:
                gh = torch.nn.functional.linear(s[0] if d is None else s[0] * d, weight_hh, bias_hh)
                if "gain_hh_l0" in p:
                    gh = normalised(torch, gh, p["gain_hh_l0"])
                h = list(gh.chunk(2 if step is reset_before else count, -1))
            s = equations(list(gx.chunk(count, -1)), h, s, p | {"m": m})
            outputs.append(s[0])
        y = torch.stack(outputs)
        y.backward(flow)
        weight = p["weight_ih_l0"].grad.numpy()
        return {"y": y.detach().numpy(), "dx": inputs.grad.numpy(), "weight_ih": weight}

    return run


def run(threads: int, plan: harness.Plan, out: Path, compiled: bool = False) -> None:
    """Measure, print and save the table as out/cells-`threads`.json and .txt.

    compiled: also the loop whose step went through torch.compile, which takes up to a minute for each.
    """
    peers = harness.usable_peers(("fusedrnn", "torch"), threads)
    heads = ("ours", "plain", "cost", "torch loop", "ratio", "compiled", "ratio")
    title = "{:22}{:>14}{:>10}{:>10}{:>7}{:>12}{:>7}{:>10}{:>7}".format("ms of training", "T, B, H", *heads)
    rows, lines = [], [title]
    print(title, flush=True)
    for name, (make, plain, step) in VARIANTS.items():
        for steps, batch, hidden in SHAPES:
            rng = np.random.default_rng(0)
            x, dy = (rng.standard_normal((steps, batch, hidden), dtype=np.float32) for _ in range(2))
            net, other = make(hidden, hidden, seed=0), plain(hidden, hidden, seed=0)
            calls = {
                "ours": lambda net=net, x=x, dy=dy: training(net, x, dy),
                "plain": lambda net=other, x=x, dy=dy: training(net, x, dy),
            }
            if "torch" in peers:
                peer_calls = {"torch loop": loop(net, step, x, dy)}
                if compiled:
                    peer_calls["compiled"] = loop(net, step, x, dy, compiled=True)
                calls |= peer_calls
                # Of what is drawn each has its own.
                net.train(not (net.weight_dropout or net.recurrent_dropout or any(net.zoneout)))
                compared = {key: calls[key]() for key in ("ours", *peer_calls)}
                harness.check_agreement(compared, TOLERANCE, f"{name} {steps, batch, hidden}")
            net.train()
            samples = harness.sample(calls, plan)
            ms = {key: statistics.median(seconds) * 1e3 for key, seconds in samples.items()}
            theirs, fused = (ms.get(key, float("nan")) for key in ("torch loop", "compiled"))
            cost, ratio = ms["ours"] / ms["plain"], theirs / ms["ours"]
            rows.append(
                {"cell": name, "shape": [steps, batch, hidden], "ms": ms, "cost": cost, "ratio": ratio}
            )
            shape = f"{steps}, {batch}, {hidden}"
            numbers = f"{ms['ours']:10.3f}{ms['plain']:10.3f}{cost:7.2f}{theirs:12.2f}{ratio:7.1f}"
            numbers += f"{fused:10.2f}{fused / ms['ours']:7.1f}"
            lines.append(f"{name:22}{shape:>14}{numbers}")
            print(lines[-1], flush=True)
    report.save_suite("cells", threads, peers, rows, lines, out)
