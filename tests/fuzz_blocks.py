"""Building blocks for fuzz_sequences.py, and their constructors for calls with garbage."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_subjects import Arguments, Rng, Subject, chance, drawn, given, like, maybe, pick

import fusedrnn as fr


def block(rng: Rng) -> Subject:
    """A block over time, or a model of several."""
    dtype, batch_first = pick(rng, ["float32", "float64"]), chance(rng, 0.3)
    shared: Arguments = {"batch_first": batch_first, "dtype": dtype}
    width, seed = pick(rng, [1, 2, 6]), {"seed": int(rng.integers(1000))}
    kind = pick(rng, ["pool", "conv", "norm", "attention", "hybrid", "activation", "model"])
    pool = pick(rng, ["last", "mean", "max", "attention"])
    name, axis = pick(rng, ["Tanh", "Sigmoid", "ReLU", "GELU", "Softmax"]), pick(rng, [0, 1, -1])
    sizes: Arguments = {
        "kernel_size": pick(rng, [1, 2, 3]),
        "stride": pick(rng, [1, 1, 2]),
        "padding": pick(rng, [0, 1, "causal"]),
        "dilation": pick(rng, [1, 2]),
    }
    causal = chance(rng, 0.5)

    def make() -> Any:
        if kind == "pool":
            return fr.Pool(pool, width, **shared, **seed)
        if kind == "conv":
            return fr.Conv1d(width, 3, **sizes, **shared, **seed)
        if kind == "norm":
            return fr.BatchNorm(width, **shared)
        if kind == "attention":
            return fr.SelfAttention(width, causal=causal, **shared, **seed)
        if kind == "hybrid":
            return fr.Hybrid(width, 1, num_heads=width, **shared, **seed)
        if kind == "activation":
            return fr.Softmax(axis) if name == "Softmax" else getattr(fr, name)()
        return fr.Sequential(
            fr.Conv1d(width, 4, **sizes, **shared, **seed),
            fr.Concat(fr.LSTM(4, 2, **shared, **seed), fr.Sequential(fr.GELU(), fr.Dropout(0.3, seed=1))),
            fr.Residual(fr.SelfAttention(6, 2, causal, **shared, **seed)),
            fr.Pool(pool, 6, **shared, **seed),
        )

    def draw(rng: Rng) -> Arguments:
        seq_len, batch = pick(rng, [0, 1, 4, 9]), pick(rng, [0, 1, 3])
        leading = (batch, seq_len) if batch_first else (seq_len, batch)
        arguments: Arguments = {"x": drawn(rng, (*leading, width), dtype)}
        if kind == "activation" or (kind == "norm" and seq_len == 1):
            arguments["x"] = drawn(rng, (2, *leading, width), dtype)  # one row alone has no variance
            return arguments
        arguments["lengths"] = maybe(rng, 0.5, lambda: rng.integers(min(2, seq_len), seq_len + 1, batch))
        if kind in ("pool", "attention", "hybrid"):
            arguments["mask"] = maybe(rng, 0.3, lambda: rng.random(leading) < 0.7)
        return given(arguments)

    return Subject(
        f"{kind}({width}, {pool}, {name}, {axis}, {sizes}, {causal}, {shared})",
        make,
        draw,
        lambda rng, results: {"dy": like(rng, results[0]), "need_dx": chance(rng, 0.8)},
    )


def constructors() -> dict[str, tuple[Any, Arguments]]:
    """Those of the blocks, with arguments that they accept."""
    shared: Arguments = {"batch_first": False, "dtype": "float32", "seed": 0, "init": "torch"}
    linear = fr.Linear(2, 2, seed=0)
    x = np.ones((3, 2, 2), np.float32)
    return {
        "Pool": (fr.Pool, {"kind": "attention", "features": 2, **shared}),
        "Conv1d": (
            fr.Conv1d,
            {
                "in_channels": 2,
                "out_channels": 3,
                "kernel_size": 2,
                "stride": 1,
                "padding": "same",
                "dilation": 1,
                "bias": True,
                **shared,
            },
        ),
        "BatchNorm": (
            fr.BatchNorm,
            {"num_features": 2, "eps": 1e-5, "momentum": 0.1, "affine": True, "batch_first": False},
        ),
        "SelfAttention": (
            fr.SelfAttention,
            {"embed_dim": 4, "num_heads": 2, "causal": True, "bias": True, **shared},
        ),
        "Hybrid": (
            fr.Hybrid,
            {
                "size": 4,
                "num_layers": 2,
                "cell": "gru",
                "num_heads": 2,
                "attention_layer": 1,
                "expansion": 2,
                "dropout": 0.5,
                **shared,
            },
        ),
        "Residual": (fr.Residual, {"module": linear}),
        "Softmax": (fr.Softmax, {"axis": 0}),
        "GELU": (fr.GELU, {"approximate": "tanh"}),
        "Sequential": (fr.Sequential(linear, fr.Pool()), {"x": x, "lengths": [1, 2], "mask": None}),
        "check_gradients": (fr.check_gradients, {"module": linear, "x": x, "samples": 2, "eps": 1e-6}),
    }
