"""bf16 beside PyTorch's bfloat16, bf16x3 beside its float32, int8 beside ONNX Runtime's; beside float32.

Outputs, and in training the gradients of the input, are compared with float32's before anything is timed.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report

import fusedrnn as fr

SHAPES = ((100, 32, 256), (40, 64, 512), (100, 32, 128), (100, 8, 128), (100, 1, 256))
INT8_SHAPES = tuple((100, batch, hidden) for hidden in (256, 512) for batch in (1, 8, 32))
TOLERANCE = 0.1  # of the largest value: states of 8 bits, through 100 steps and back
Calls = dict[str, Callable[[], dict[str, Any]]]


def forward_call(net: Any, x: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"y": net(x)[0]}


def training_call(net: Any, x: Any) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        net.zero_grad()
        y, _, tape = net.forward(x)
        return {"y": y, "dx": net.backward(tape, y)[0]}

    return run


def torch_calls(net: Any, x: Any, compute: str) -> Calls:
    """The same network of PyTorch, in bfloat16 beside our bf16: the forward call and the training step."""
    import torch

    dtype = torch.bfloat16 if compute == "bf16" else torch.float32
    peer = getattr(torch.nn, type(net).__name__)(net.input_size, net.hidden_size)
    peer.load_state_dict({name: torch.tensor(array) for name, array in net.state_dict().items()})
    peer = peer.to(dtype)
    inputs = torch.from_numpy(x).to(dtype)

    def forward() -> dict[str, Any]:
        with torch.no_grad():
            return {"y": peer(inputs)[0].float().numpy()}

    def training() -> dict[str, Any]:
        for parameter in peer.parameters():
            parameter.grad = None
        given = inputs.detach().requires_grad_()
        y, _ = peer(given)
        y.backward(y.detach())
        return {"y": y.detach().float().numpy(), "dx": given.grad.float().numpy()}

    return {"forward": forward, "training": training}


def bf16_calls(net: Any, x: Any, compute: str, mode: str, with_torch: bool) -> Calls:
    rounding = type(net)(net.input_size, net.hidden_size, init=None, compute=compute)
    rounding.load_state_dict(net.state_dict())
    make = forward_call if mode == "forward" else training_call
    calls = {"ours": make(rounding, x), "float32": make(net, x)}
    if with_torch:
        calls["torch"] = torch_calls(net, x, compute)[mode]
    return calls


def int8_calls(net: Any, x: Any, threads: int) -> Calls:
    """Our int8 and float32, and ONNX Runtime's int8 where it is installed."""
    calls = {"ours": forward_call(net.quantize("int8"), x), "float32": forward_call(net, x)}
    try:
        import onnxruntime
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        return calls
    with tempfile.TemporaryDirectory() as folder:
        import fusedrnn.onnx

        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        fusedrnn.onnx.save(net, str(whole))
        quantize_dynamic(whole, small, weight_type=QuantType.QInt8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(str(small), options)
    names = [given.name for given in session.get_inputs()]
    batch, hidden = x.shape[1], net.hidden_size
    feed = {name: np.zeros((1, batch, hidden), np.float32) for name in names[1:]} | {names[0]: x}
    calls["onnxruntime"] = lambda: {"y": session.run(None, feed)[0].reshape(*x.shape[:2], hidden)}
    return calls


def run(threads: int, plan: harness.Plan, out: Path) -> None:
    """Measure, print and save the table as out/precision-`threads`.json and .txt."""
    peers = harness.usable_peers(("fusedrnn", "torch"), threads)
    title = f"{'ms':22}{'T, B, H':>14}{'ours':>10}{'float32':>10}{'peer':>10}{'x float32':>11}{'x peer':>8}"
    rows, lines = [], [title]
    print(title, flush=True)
    problems = []
    for compute in ("bf16", "bf16x3"):
        if fr.config()[f"{compute}_isa"] is None:
            print(f"{compute}: left out, this processor lacks its products")
            continue
        modes = [f"{compute} {mode}" for mode in ("forward", "training")]
        problems += list(itertools.product((fr.LSTM, fr.GRU), modes, SHAPES))
    problems += list(itertools.product((fr.LSTM, fr.GRU), ["int8"], INT8_SHAPES))
    for kind, what, (steps, batch, hidden) in problems:
        x = np.random.default_rng(0).standard_normal((steps, batch, hidden), dtype=np.float32)
        net = kind(hidden, hidden, seed=0)
        calls = (
            int8_calls(net, x, threads)
            if what == "int8"
            else bf16_calls(net, x, *what.split(), "torch" in peers)
        )
        name = f"{kind.__name__} {what}"
        harness.check_agreement({key: call() for key, call in calls.items()}, TOLERANCE, name)
        samples = harness.sample(calls, plan)
        ms = {key: statistics.median(seconds) * 1e3 for key, seconds in samples.items()}
        theirs = ms.get("torch", ms.get("onnxruntime", float("nan")))
        rows.append({"name": name, "shape": [steps, batch, hidden], "ms": ms})
        shape = f"{steps}, {batch}, {hidden}"
        numbers = f"{ms['ours']:10.3f}{ms['float32']:10.3f}{theirs:10.3f}"
        ratios = f"{ms['float32'] / ms['ours']:11.2f}{theirs / ms['ours']:8.2f}"
        lines.append(f"{name:22}{shape:>14}{numbers}{ratios}")
        print(lines[-1], flush=True)
    report.save_suite("precision", threads, peers, rows, lines, out)
