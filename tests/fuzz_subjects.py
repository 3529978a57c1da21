"""What fuzz_sequences.py calls: modules of every kind, each with arguments that it takes, drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from support import LAYOUTS, Array

import fusedrnn as fr

Rng = np.random.Generator
Arguments = dict[str, Any]


@dataclass
class Subject:
    """A module under test.

    Attributes:
        name: what it is.
        make: makes another of the same kind, sizes and options.
        draw: draws arguments for a call and for forward.
        flow: draws arguments for backward, given what forward returned before the tape.
        module: the one that lives through the sequence.
    """

    name: str
    make: Callable[[], Any]
    draw: Callable[[Rng], Arguments]
    flow: Callable[[Rng, tuple[Any, ...]], Arguments]
    module: Any = None

    def fresh(self) -> Any:
        """A module of the same weights, gradients and noise with buffers of its own that has done nothing."""
        other, module = self.make(), self.module
        other.load_state_dict(module.state_dict())
        other.flat_grads[...] = module.flat_grads
        other.load_random_state(module.random_state())
        for mine, its in zip(other.modules(), module.modules(), strict=True):
            mine.training = its.training
            for name in ("recompute", "compute"):
                if hasattr(its, name):
                    setattr(mine, name, getattr(its, name))
        return other


def chance(rng: Rng, p: float) -> bool:
    return bool(rng.random() < p)


def pick(rng: Rng, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def values(rng: Rng, shape: tuple[int, ...], dtype: Any) -> Array:
    """Values of the usual size, now and then with some at the ends of the range."""
    array = np.asarray(rng.standard_normal(shape)).astype(dtype)
    if array.size and array.dtype.kind == "f" and chance(rng, 0.03):
        special = pick(rng, [0.0, -0.0, np.nan, np.inf, -np.inf, 1e30, 1e-42])
        array.reshape(-1)[rng.integers(array.size)] = special
    return array


def laid_out(rng: Rng, array: Array) -> Array:
    """The same values, by turns in another memory layout."""
    if chance(rng, 0.6) or not array.size or not array.ndim:
        return array
    return LAYOUTS[pick(rng, sorted(LAYOUTS))](array)


def drawn(rng: Rng, shape: tuple[int, ...], dtype: Any) -> Array:
    return laid_out(rng, values(rng, shape, dtype))


def maybe(rng: Rng, p: float, make: Callable[[], Any]) -> Any:
    return make() if chance(rng, p) else None


def given(arguments: Arguments) -> Arguments:
    """Without those that are None."""
    return {name: value for name, value in arguments.items() if value is not None}


def like(rng: Rng, value: Any, holes: bool = False) -> Any:
    """Gradients in the shapes of results; parts of a pair may be None."""
    if isinstance(value, tuple):
        parts = tuple(maybe(rng, 0.8 if holes else 1.0, lambda part=part: like(rng, part)) for part in value)
        return parts if any(part is not None for part in parts) else tuple(like(rng, v) for v in value)
    return drawn(rng, value.shape, value.dtype)


# Recurrent networks


def recurrent(rng: Rng) -> Subject:
    kind = pick(rng, ["LSTM", "GRU", "RNN", "SRU", "MinGRU"])
    inputs, hidden = pick(rng, [0, 1, 3, 4, 8, 17]), pick(rng, [1, 2, 5, 8, 9, 16])
    if chance(rng, 0.1):
        inputs, hidden = 64, 64  # enough for threads
    options: Arguments = {
        "num_layers": pick(rng, [1, 1, 1, 2, 3]),
        "bias": chance(rng, 0.8),
        "batch_first": chance(rng, 0.3),
        "bidirectional": chance(rng, 0.3),
        "dtype": pick(rng, ["float32", "float64"]),
        "recompute": chance(rng, 0.2),
        "seed": int(rng.integers(1000)),
        "init": "torch",
    }
    if options["num_layers"] > 1 and chance(rng, 0.4):
        options["dropout"] = 0.5
    if kind == "LSTM" and hidden > 1 and chance(rng, 0.3):
        options["proj_size"] = hidden // 2
    elif kind == "LSTM" and chance(rng, 0.3):
        options |= {"peephole": True, "cell_clip": pick(rng, [None, 0.5])}
    elif kind in ("LSTM", "GRU", "RNN") and chance(rng, 0.2):
        options["layer_norm"] = True
    elif kind == "GRU" and chance(rng, 0.2):
        options["reset_after"] = False
    if kind == "RNN":
        options["nonlinearity"] = pick(rng, ["tanh", "relu"])
    if kind in ("LSTM", "GRU", "RNN") and chance(rng, 0.1):
        options["weight_dropout"] = 0.3
    if "proj_size" not in options and chance(rng, 0.15):
        options["zoneout"] = 0.3
    if "proj_size" not in options and kind in ("LSTM", "GRU", "RNN") and chance(rng, 0.15):
        options["recurrent_dropout"] = 0.3
    if options["bidirectional"] and chance(rng, 0.2):
        options["merge"] = pick(rng, ["sum", "mean", "mul"])
    for name, p in (("residual", 0.3 * (options["num_layers"] > 1)), ("learned_state", 0.1)):
        options[name] = chance(rng, p)
    if chance(rng, 0.1):
        options["locked_dropout"] = (0.2, 0.4)

    def draw(rng: Rng) -> Arguments:
        return recurrent_arguments(rng, kind, inputs, hidden, options)

    def flow(rng: Rng, results: tuple[Any, ...]) -> Arguments:
        y, state = results
        dy = maybe(rng, 0.8, lambda: like(rng, y))
        dstate = like(rng, state, holes=True) if dy is None or chance(rng, 0.5) else None
        return {"dy": dy, "dstate": dstate, "need_dx": chance(rng, 0.8)}

    return Subject(
        f"{kind}({inputs}, {hidden}, {options})",
        lambda: getattr(fr, kind)(inputs, hidden, **options),
        draw,
        flow,
    )


def recurrent_arguments(rng: Rng, kind: str, inputs: int, hidden: int, options: Arguments) -> Arguments:
    dtype, rows = options["dtype"], options["num_layers"] * (2 if options["bidirectional"] else 1)
    widths = [options.get("proj_size") or hidden, hidden][: 2 if kind in ("LSTM", "SRU") else 1]
    seq_len, batch, single = pick(rng, [0, 1, 2, 5, 12]), pick(rng, [0, 1, 2, 3, 8]), chance(rng, 0.15)
    if hidden == 64 and chance(rng, 0.3):
        seq_len, batch = 60, 16
    leading = (seq_len,) if single else (seq_len, batch)
    if options["batch_first"]:
        leading = leading[::-1]
    batch = 1 if single else batch

    def states(lead: tuple[int, ...]) -> Any:
        parts = tuple(drawn(rng, (rows, *lead, width), dtype) for width in widths)
        return parts if len(parts) == 2 else parts[0]

    x: Any = drawn(rng, (*leading, inputs), dtype)
    if inputs and chance(rng, 0.2):
        table_rows = pick(rng, [1, 2, 3, 40])
        table = drawn(rng, (table_rows, inputs), dtype)
        x = fr.Lookup(table, rng.integers(0, table_rows, leading))
    resets = maybe(rng, 0.25, lambda: laid_out(rng, rng.random(leading) < 0.3))
    by_rows = (batch,) if chance(rng, 0.5) else ()
    return given(
        {
            "x": x,
            "state": maybe(rng, 0.4, lambda: states(() if single else (batch,))),
            "lengths": maybe(rng, 0.25, lambda: rng.integers(0, seq_len + 1, batch)),
            "resets": resets,
            "reset_state": None if resets is None else maybe(rng, 0.5, lambda: states(by_rows)),
            "mask": maybe(rng, 0.15, lambda: laid_out(rng, rng.random(leading) < 0.7)),
        }
    )


class Functional(fr.Module):
    """`fusedrnn.functional` with the weights of a layer."""

    def __init__(self, cell: str, layer: Any) -> None:
        super().__init__()
        self.cell = cell
        self.layer = layer

    def forward(self, x: Any, **options: Any) -> Any:
        views = {name.removesuffix("_l0"): view for name, view in self.layer.parameters.items()}
        return fr.functional.forward(self.cell, x, views, **options)

    def __call__(self, x: Any, **options: Any) -> Any:
        return self.forward(x, **options)[:2]

    def backward(self, tape: Any, **options: Any) -> Any:
        return fr.functional.backward(tape, **options)


def functional(rng: Rng) -> Subject:
    inputs, hidden = pick(rng, [0, 1, 3, 8]), pick(rng, [1, 2, 5, 8])
    dtype, seed = pick(rng, ["float32", "float64"]), int(rng.integers(1000))
    kind, cell = pick(rng, [("LSTM", "lstm"), ("GRU", "gru"), ("RNN", "rnn_tanh")])
    shape: Arguments = {"num_layers": 1, "bidirectional": False, "batch_first": False, "dtype": dtype}

    def draw(rng: Rng) -> Arguments:
        arguments = recurrent_arguments(rng, kind, inputs, hidden, shape)
        while len(arguments["x"].shape) != 3 or "mask" in arguments:
            arguments = recurrent_arguments(rng, kind, inputs, hidden, shape)
        for name in {"state", "reset_state"} & arguments.keys():
            value = arguments[name]
            arguments[name] = tuple(v[0] for v in value) if isinstance(value, tuple) else value[0]
        options = {"reverse": chance(rng, 0.3), "recompute": chance(rng, 0.3)}
        return {**arguments, **options}

    def flow(rng: Rng, results: tuple[Any, ...]) -> Arguments:
        return {"dy": like(rng, results[0]), "dstate": maybe(rng, 0.5, lambda: like(rng, results[1], True))}

    return Subject(
        f"functional({cell}, {inputs}, {hidden}, {dtype})",
        lambda: Functional(cell, getattr(fr, kind)(inputs, hidden, dtype=dtype, seed=seed, init="torch")),
        draw,
        flow,
    )


def cell(rng: Rng) -> Subject:
    kind, inputs, hidden = pick(rng, ["LSTMCell", "GRUCell", "RNNCell"]), pick(rng, [0, 1, 4, 9]), 5
    dtype, bias = pick(rng, ["float32", "float64"]), chance(rng, 0.8)

    def draw(rng: Rng) -> Arguments:
        leading = () if chance(rng, 0.3) else (pick(rng, [0, 1, 3, 8]),)
        parts = tuple(drawn(rng, (*leading, hidden), dtype) for _ in range(2))
        state = maybe(rng, 0.6, lambda: parts if kind == "LSTMCell" else parts[0])
        return given({"x": drawn(rng, (*leading, inputs), dtype), "state": state})

    return Subject(
        f"{kind}({inputs}, {hidden}, {bias}, {dtype})",
        lambda: getattr(fr, kind)(inputs, hidden, bias, dtype=dtype, seed=3, init="torch"),
        draw,
        lambda rng, results: {"dstate": like(rng, results[0], True), "need_dx": chance(rng, 0.8)},
    )


# Other layers


def leading_axes(rng: Rng) -> tuple[int, ...]:
    return tuple(pick(rng, [0, 1, 2, 3, 7, 20]) for _ in range(pick(rng, [0, 1, 1, 2, 3])))


def linear(rng: Rng) -> Subject:
    inputs, outputs = pick(rng, [0, 1, 3, 8, 33]), pick(rng, [1, 2, 7, 16])
    dtype, bias = pick(rng, ["float32", "float64"]), chance(rng, 0.8)
    return Subject(
        f"Linear({inputs}, {outputs}, {bias}, {dtype})",
        lambda: fr.Linear(inputs, outputs, bias, dtype=dtype, seed=1),
        lambda rng: {"x": drawn(rng, (*leading_axes(rng), inputs), dtype)},
        lambda rng, results: {"dy": like(rng, results[0]), "need_dx": chance(rng, 0.8)},
    )


def layer_norm(rng: Rng) -> Subject:
    sizes = pick(rng, [(1,), (3,), (8,), (20,), (2, 3)])
    dtype, affine, bias = pick(rng, ["float32", "float64"]), chance(rng, 0.7), chance(rng, 0.7)
    return Subject(
        f"LayerNorm({sizes}, {affine}, {bias}, {dtype})",
        lambda: fr.LayerNorm(sizes, 1e-5, affine, bias, dtype=dtype),
        lambda rng: {"x": drawn(rng, (*leading_axes(rng), *sizes), dtype)},
        lambda rng, results: {"dy": like(rng, results[0])},
    )


def dropout(rng: Rng) -> Subject:
    p, dtype = pick(rng, [0.0, 0.3, 1.0]), pick(rng, ["float32", "float64"])
    return Subject(
        f"Dropout({p}, {dtype})",
        lambda: fr.Dropout(p, seed=1),
        lambda rng: {"x": drawn(rng, leading_axes(rng), dtype)},
        lambda rng, results: {"dy": like(rng, results[0])},
    )


def embedding(rng: Rng) -> Subject:
    rows, width, dtype = pick(rng, [1, 2, 5, 40]), pick(rng, [1, 3, 8]), pick(rng, ["float32", "float64"])
    padding = maybe(rng, 0.3, lambda: int(rng.integers(-rows, rows)))

    def draw(rng: Rng) -> Arguments:
        kind = pick(rng, ["i8", "i8", "i4", "u1", "u8"])
        return {"indices": laid_out(rng, rng.integers(0, rows, leading_axes(rng)).astype(kind))}

    return Subject(
        f"Embedding({rows}, {width}, {padding}, {dtype})",
        lambda: fr.Embedding(rows, width, padding, dtype=dtype, seed=1),
        draw,
        lambda rng, results: {"dy": like(rng, results[0])},
    )


class Tagger(fr.Module):
    """Layers of every kind in one tree; the head may share the embedding's weight."""

    def __init__(self, tied: bool, dtype: Any) -> None:
        super().__init__()
        self.embedding = fr.Embedding(6, 4, 0, dtype=dtype, seed=1)
        self.rnn = fr.LSTM(4, 5, 2, dropout=0.3, proj_size=4, dtype=dtype, seed=2, init="torch")
        self.norm = fr.LayerNorm(4, dtype=dtype)
        self.dropout = fr.Dropout(0.2, seed=3)
        weight_of = self.embedding if tied else None
        self.head = fr.Linear(4, 6, weight_of=weight_of, dtype=dtype, seed=4)

    def __call__(self, tokens: Any, **options: Any) -> Any:
        return self.head(self.dropout(self.norm(self.rnn(self.embedding.lookup(tokens), **options)[0])))

    def forward(self, tokens: Any, **options: Any) -> Any:
        looked_up = self.embedding.lookup(tokens)
        y, _, rnn = self.rnn.forward(looked_up, **options)
        normed, norm = self.norm.forward(y)
        dropped, drop = self.dropout.forward(normed)
        logits, head = self.head.forward(dropped)
        return logits, (looked_up, rnn, norm, drop, head)

    def backward(self, tape: Any, dy: Any) -> Any:
        looked_up, rnn, norm, drop, head = tape
        flow = self.norm.backward(norm, self.dropout.backward(drop, self.head.backward(head, dy)))
        dtable, dstate = self.rnn.backward(rnn, flow)
        self.embedding.backward(looked_up, dtable)
        return dtable, dstate


def tagger(rng: Rng) -> Subject:
    tied, dtype = chance(rng, 0.5), pick(rng, ["float32", "float64"])

    def draw(rng: Rng) -> Arguments:
        seq_len, batch = pick(rng, [0, 1, 5, 12]), pick(rng, [0, 1, 3])
        lengths = maybe(rng, 0.5, lambda: rng.integers(0, seq_len + 1, batch))
        mask = maybe(rng, 0.2, lambda: rng.random((seq_len, batch)) < 0.7)
        return given({"tokens": rng.integers(0, 6, (seq_len, batch)), "lengths": lengths, "mask": mask})

    return Subject(
        f"Tagger({tied}, {dtype})",
        lambda: Tagger(tied, dtype),
        draw,
        lambda rng, results: {"dy": like(rng, results[0])},
    )


KINDS = (recurrent, recurrent, recurrent, functional, cell, linear, layer_norm, dropout, embedding, tagger)


def subject(rng: Rng, *more: Callable[[Rng], Subject]) -> Subject:
    """Any of them or of others, its module made."""
    found: Subject = pick(rng, (*KINDS, *more))(rng)
    found.module = found.make()
    if chance(rng, 0.3):
        found.module.eval()
    return found
