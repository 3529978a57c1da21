"""CTC, CRF, transducers and decoders beside PyTorch, torchaudio, pytorch-crf and JAX, in one thread or more.

Outputs are compared before anything is timed. A floor is arithmetic: the multiply-adds of the lattice at the
measured peak of double precision, half of float's, and exponentials at a nanosecond each.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import report
import sequence_attention
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


def loads(module: str) -> bool:
    """Return whether a peer can be imported; say why not."""
    try:
        importlib.import_module(module)
    # OSError: libraries of its own that do not fit those that are there.
    except (ImportError, OSError, RuntimeError) as error:
        print(f"{module}: left out, {str(error).splitlines()[0]}")
        return False
    return True


def problems() -> dict[str, tuple[dict[str, Call], float, float]]:
    """What is measured, by name."""
    found = {}
    for sizes in ((200, 32, 30, 40), (500, 16, 60, 80)):
        found["CTC T {} B {} V {} L {}".format(*sizes)] = ctc(*sizes)
    for cell, *sizes4 in (("gru", 30, 32, 30, 256), ("gru", 30, 32, 30, 128), ("gru", 20, 1, 20, 128)):
        found["Attention {} T {} B {} S {} H {}".format(cell, *sizes4)] = sequence_attention.decoder(
            cell, *sizes4
        )
    found["Luong gru T 30 B 32 S 30 H 128"] = sequence_attention.decoder("gru", 30, 32, 30, 128, luong=True)
    for library in (False, True):
        if library and not loads("torchaudio.functional"):
            continue
        name = "Transducer, torchaudio" if library else "Transducer, loop"
        found[f"{name} 8 200 30 500"] = sequence_decoding.transducer(8, 200, 30, 500, library)
    for alone in (False, True):
        name = "Beam search one by one" if alone else "Beam search"
        found[f"{name} B 32 H 256"] = sequence_decoding.beam_search(32, 30, 256, 60, 30, alone)
    found["Norms lstm T 50 B 32 H 256"] = sequence_decoding.norms(50, 32, 256)
    if not loads("torchcrf"):
        return found
    for sizes3 in ((50, 32, 20), (100, 64, 40)):
        name = "T {} B {} K {}".format(*sizes3)
        found[f"CRF {name}"] = crf(*sizes3, False)
        found[f"Viterbi {name}"] = crf(*sizes3, True)
    return found


def run(threads: int, plan: harness.Plan, out: Path) -> None:
    """Measure, print and save the table as out/sequence-`threads`.json and .txt."""
    peers = harness.usable_peers(("fusedrnn", "torch", "jax"), threads)
    limits = harness.measure_limits(threads)
    peak = 0.5e9 * float(limits["peak_gflops"]) if limits else float("nan")
    rows, lines = [], [f"{'ms a call':38}{'fusedrnn':>10}{'peer':>10}{'ratio':>8}{'of the floor':>14}  peer"]
    for name, (calls, products, exponentials) in problems().items() if "torch" in peers else ():
        harness.check_agreement({peer: call() for peer, call in calls.items()}, TOLERANCE, name)
        samples = harness.sample(calls, plan)
        times = {peer: statistics.median(seconds) * 1e3 for peer, seconds in samples.items()}
        ours = times.pop("fusedrnn")
        best = min(times, key=lambda peer: times[peer])
        theirs = times[best]
        floor = 1e3 * (2 * products / peak + exponentials * 1e-9 / threads)
        rows.append(
            {"problem": name, "ms": {"fusedrnn": ours, **times}, "ratio": theirs / ours, "floor_ms": floor}
        )
        lines.append(f"{name:38}{ours:10.3f}{theirs:10.2f}{theirs / ours:8.1f}{floor / ours:14.2f}  {best}")
        print("\n".join(lines[-2:] if len(rows) == 1 else lines[-1:]), flush=True)
    report.save_suite("sequence", threads, peers, rows, lines, out)
