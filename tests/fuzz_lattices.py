"""Calls for fuzz_sequences.py of CTC and of the conditional random field."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_entries import garbage, mutated
from fuzz_oracle import check_same, outcome, plain
from fuzz_subjects import Arguments, Rng, chance, drawn, given, laid_out, maybe, pick

import fusedrnn as fr


def lattices(rng: Rng) -> None:
    """A loss or decoder over sequences, in any layout, as of copies; arguments nearly right."""
    steps, batch, classes = pick(rng, [0, 1, 2, 7, 30]), pick(rng, [0, 1, 3, 9]), pick(rng, [1, 2, 5, 33])
    dtype = pick(rng, ["f4", "f8"])
    scores = drawn(rng, (steps, batch, classes), dtype) * pick(rng, [1.0, 30.0])
    lengths = maybe(rng, 0.6, lambda: rng.integers(0, steps + 1, batch))
    make = crf if chance(rng, 0.5) else ctc
    function, twin, arguments = make(rng, scores, lengths)
    if chance(rng, 0.3):
        name, valid = pick(rng, list(arguments)), list(arguments.values())
        wrong = mutated if chance(rng, 0.7) else lambda rng, _, valid: garbage(rng, valid)
        arguments[name] = wrong(rng, arguments[name], valid)
    print("   ", make.__name__, function.__name__, flush=True)
    with np.errstate(all="ignore"):
        got, want = outcome(function, **arguments), outcome(twin, **plain(arguments))
    check_same(f"{make.__name__} {function.__name__}", got, want)


def ctc(rng: Rng, scores: Any, lengths: Any) -> tuple[Any, Any, Arguments]:
    steps, batch, classes = scores.shape
    blank = int(rng.integers(classes))
    if chance(rng, 0.3):
        beam = pick(rng, [1, 1, 2, 8])
        decode = given({"logits": scores, "lengths": lengths, "beam": beam, "blank": blank})
        return fr.ctc_decode, fr.ctc_decode, decode
    labels = pick(rng, [0, 1, 4])
    # All but the blank; where there is no other class, targets are wrong or empty.
    targets = (blank + rng.integers(1, max(2, classes), (batch, labels))) % classes
    arguments: Arguments = {
        "logits": scores,
        "targets": laid_out(rng, targets.astype(pick(rng, ["i8", "i4"]))),
        "input_lengths": np.full(batch, steps) if lengths is None else lengths,
        "target_lengths": rng.integers(0, labels + 1, batch),
        "blank": blank,
    }
    if chance(rng, 0.3):
        return fr.ctc_align, fr.ctc_align, arguments
    options = {"reduction": pick(rng, ["mean", "sum", "none"]), "zero_infinity": chance(rng, 0.5)}
    return fr.ctc_loss, fr.ctc_loss, {**arguments, **options}


def crf(rng: Rng, scores: Any, lengths: Any) -> tuple[Any, Any, Arguments]:
    tags = scores.shape[-1]
    options: Arguments = {"dtype": scores.dtype.name, "batch_first": chance(rng, 0.3), "seed": 0}
    if options["batch_first"]:
        scores = scores.swapaxes(0, 1)
    one, other = fr.CRF(tags, **options), fr.CRF(tags, **options)
    arguments: Arguments = given({"emissions": scores, "lengths": lengths})
    if chance(rng, 0.5):
        name = pick(rng, ["decode", "decode", "marginals"])
        if name == "decode":
            arguments["n_best"] = pick(rng, [1, 2, 7])
        return getattr(one, name), getattr(other, name), arguments
    arguments["tags"] = laid_out(rng, rng.integers(0, tags, scores.shape[:2]))
    arguments["reduction"] = pick(rng, ["mean", "sum", "none"])
    return loss_of(one), loss_of(other), arguments


def loss_of(field: Any) -> Any:
    """The loss with all gradients."""

    def loss(**arguments: Any) -> Any:
        value, demissions = field.loss(**arguments)
        return value, demissions, dict(field.grads)

    return loss
