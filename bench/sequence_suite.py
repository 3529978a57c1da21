"""CTC, CRF, transducers and decoders beside PyTorch, torchaudio and pytorch-crf, in one thread or more.

Outputs are compared before anything is timed. A floor is arithmetic: the multiply-adds of the lattice at the
measured peak of double precision, half of float's, and exponentials at a nanosecond each.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report
import sequence_decoding

import fusedrnn as fr

Call = Callable[[], dict[str, Any]]
TOLERANCE = 1e-2  # what torch loses in float32; the tests hold ours against float64


def ctc(steps: int, batch: int, classes: int, labels: int) -> tuple[dict[str, Call], float, float]:
    """The calls, multiply-adds and exponentials of CTC losses with gradients."""
    import torch

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((steps, batch, classes), dtype=np.float32)
    targets = rng.integers(1, classes, (batch, labels))
    lengths, counts = np.full(batch, steps), np.full(batch, labels)
    x = torch.tensor(logits, requires_grad=True)
    tensors = [torch.tensor(array) for array in (targets, lengths, counts)]

    def ours() -> dict[str, Any]:
        loss, dlogits = fr.ctc_loss(logits, targets, lengths, counts)
        return {"loss": np.array(loss), "gradient": dlogits}

    def theirs() -> dict[str, Any]:
        x.grad = None
        loss = torch.nn.functional.ctc_loss(x.log_softmax(-1), *tensors)
        loss.backward()
        return {"loss": loss.detach().numpy(), "gradient": x.grad.numpy()}

    rows = steps * batch
    return {"fusedrnn": ours, "torch": theirs}, rows * (2 * labels + 1) * 7, rows * classes


def crf(steps: int, batch: int, tags: int, decode: bool) -> tuple[dict[str, Call], float, float]:
    """The calls, multiply-adds and exponentials of a CRF's loss with gradients, or of its best paths."""
    import torch
    from torchcrf import CRF

    rng = np.random.default_rng(0)
    emissions = rng.standard_normal((steps, batch, tags), dtype=np.float32)
    gold = rng.integers(0, tags, (steps, batch))
    other, own = CRF(tags), fr.CRF(tags)
    own.load_state_dict(other.state_dict())
    x, gold_tensor = torch.tensor(emissions, requires_grad=True), torch.tensor(gold)

    def ours() -> dict[str, Any]:
        if decode:
            return {"tags": own.decode(emissions)[0]}
        own.zero_grad()
        loss, demissions = own.loss(emissions, gold)
        return {"loss": np.array(loss), "gradient": demissions, "weights": own.grads["transitions"]}

    def theirs() -> dict[str, Any]:
        if decode:
            with torch.no_grad():
                return {"tags": np.array(other.decode(x)).T}
        x.grad = None
        other.zero_grad()
        loss = -other(x, gold_tensor, reduction="mean")
        loss.backward()
        weights = other.transitions.grad.numpy()
        return {"loss": loss.detach().numpy(), "gradient": x.grad.numpy(), "weights": weights}

    products = steps * batch * tags * tags
    found: dict[str, Call] = {"fusedrnn": ours, "pytorch-crf": theirs}
    return found, products * (1 if decode else 3), 0 if decode else steps * batch * tags


LUONG: dict[str, Any] = {"score": "general", "query": "current", "input_feeding": True}


def decoder(
    cell: str, steps: int, batch: int, source: int, size: int, luong: bool = False
) -> tuple[dict[str, Call], float, float]:
    """The calls, multiply-adds and exponentials of a training step of a decoder: Bahdanau's, or Luong's.

    Luong's has the general score, the query after the step, and its output fed to the next.
    """
    import torch

    rng = np.random.default_rng(0)
    x, flow = (rng.standard_normal((steps, batch, size), dtype=np.float32) for _ in range(2))
    memory = rng.standard_normal((source, batch, size), dtype=np.float32)
    own = fr.AttentionDecoder(cell, size, size, size, seed=0, **(LUONG if luong else {}))
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in own.state_dict().items()}
    other = (torch.nn.GRUCell if cell == "gru" else torch.nn.LSTMCell)(2 * size, size)
    for name, parameter in other.named_parameters():
        parameter.data = weights[f"{name}_l0"].detach()
    tx, tm = (torch.tensor(array, requires_grad=True) for array in (x, memory))
    tflow = torch.tensor(flow)

    def ours() -> dict[str, Any]:
        own.zero_grad()
        _, _, _, tape = own.forward(x, memory)
        dx, dmemory, _ = own.backward(tape, flow)
        return {"dx": dx, "dmemory": dmemory, "weights": own.grads["weight_memory"]}

    def theirs() -> dict[str, Any]:
        for tensor in (tx, tm, *weights.values()):
            tensor.grad = None
        other.zero_grad()
        rows = tm.transpose(0, 1)
        keys = torch.nn.functional.linear(rows, weights["weight_memory"], weights.get("bias_memory"))
        h = c = y = torch.zeros(batch, size)
        outputs = []

        def context() -> Any:
            if luong:
                energies = torch.bmm(keys, h[..., None])[..., 0]
            else:
                query = torch.nn.functional.linear(h, weights["weight_query"])
                energies = torch.tanh(keys + query[:, None]) @ weights["weight_energy"]
            return torch.bmm(torch.softmax(energies, 1)[:, None], rows)[:, 0]

        for t in range(steps):
            inputs = torch.cat([tx[t], y if luong else context()], 1)
            h, c = (other(inputs, h), c) if cell == "gru" else other(inputs, (h, c))
            y = h
            if luong:
                joined = torch.cat([context(), h], 1)
                y = torch.tanh(torch.nn.functional.linear(joined, weights["weight_output"]))
            outputs.append(y)
        torch.stack(outputs).backward(tflow)
        key_gradient = weights["weight_memory"].grad
        return {"dx": tx.grad.numpy(), "dmemory": tm.grad.numpy(), "weights": key_gradient.numpy()}

    gates = 3 if cell == "gru" else 4
    extra = 2 if luong else 1
    products = steps * batch * size * (size * (3 * gates + extra) + source) + batch * source * size * size
    # tanh once forward and once backward, of an output alone where the score is a product.
    exponentials = steps * batch * size if luong else 2 * steps * batch * source * size
    return {"fusedrnn": ours, "torch": theirs}, 3 * products / 2, exponentials / 8


def problems() -> dict[str, tuple[dict[str, Call], float, float]]:
    """What is measured, by name."""
    found = {}
    for sizes in ((200, 32, 30, 40), (500, 16, 60, 80)):
        found["CTC T {} B {} V {} L {}".format(*sizes)] = ctc(*sizes)
    for cell, *sizes4 in (("gru", 30, 32, 30, 256), ("gru", 30, 32, 30, 128), ("gru", 20, 1, 20, 128)):
        found["Attention {} T {} B {} S {} H {}".format(cell, *sizes4)] = decoder(cell, *sizes4)
    found["Luong gru T 30 B 32 S 30 H 128"] = decoder("gru", 30, 32, 30, 128, luong=True)
    for library in (False, True):
        if library and importlib.util.find_spec("torchaudio") is None:
            print("torchaudio: not installed, left out")
            continue
        name = "Transducer, torchaudio" if library else "Transducer, loop"
        found[f"{name} 8 200 30 500"] = sequence_decoding.transducer(8, 200, 30, 500, library)
    for alone in (False, True):
        name = "Beam search one by one" if alone else "Beam search"
        found[f"{name} B 32 H 256"] = sequence_decoding.beam_search(32, 30, 256, 60, 30, alone)
    found["Norms lstm T 50 B 32 H 256"] = sequence_decoding.norms(50, 32, 256)
    if importlib.util.find_spec("torchcrf") is None:
        print("pytorch-crf: not installed, left out")
        return found
    for sizes3 in ((50, 32, 20), (100, 64, 40)):
        name = "T {} B {} K {}".format(*sizes3)
        found[f"CRF {name}"] = crf(*sizes3, False)
        found[f"Viterbi {name}"] = crf(*sizes3, True)
    return found


def run(threads: int, plan: harness.Plan, out: Path) -> None:
    """Measure, print and save the table as out/sequence-`threads`.json and .txt."""
    peers = harness.usable_peers(("fusedrnn", "torch"), threads)
    limits = harness.measure_limits(threads)
    peak = 0.5e9 * float(limits["peak_gflops"]) if limits else float("nan")
    rows, lines = [], [f"{'ms a call':38}{'fusedrnn':>10}{'peer':>10}{'ratio':>8}{'of the floor':>14}"]
    for name, (calls, products, exponentials) in problems().items() if "torch" in peers else ():
        harness.check_agreement({peer: call() for peer, call in calls.items()}, TOLERANCE, name)
        samples = harness.sample(calls, plan)
        times = {peer: statistics.median(seconds) * 1e3 for peer, seconds in samples.items()}
        ours, theirs = times.values()
        floor = 1e3 * (2 * products / peak + exponentials * 1e-9 / threads)
        rows.append({"problem": name, "ms": times, "ratio": theirs / ours, "floor_ms": floor})
        lines.append(f"{name:38}{ours:10.3f}{theirs:10.2f}{theirs / ours:8.1f}{floor / ours:14.2f}")
        print("\n".join(lines[-2:] if len(rows) == 1 else lines[-1:]), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"sequence-{threads}"
    result = {"suite": "sequence", "machine": report.machine(threads, peers), "results": rows}
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    stem.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    print(f"\nsaved {stem}.json and {stem}.txt")
