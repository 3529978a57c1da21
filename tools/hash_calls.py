"""The public calls that hash_results.py makes, and the arrays that they get."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

import fusedrnn as fr

CELLS = {"rnn_tanh": (1, 1), "rnn_relu": (1, 1), "lstm": (4, 2), "gru": (3, 1)}  # gates, states

Results = dict[str, Any]


class Random:
    """Arrays of one case, seeded by its name: whichever others run before it."""

    def __init__(self, name: str, dtype: str) -> None:
        self.rng, self.dtype = np.random.default_rng(zlib.crc32(name.encode())), dtype

    def normal(self, *shape: int, scale: float = 1.0, dtype: str | None = None) -> Any:
        return (self.rng.normal(size=shape) * scale).astype(dtype or self.dtype)

    def weights(self, cell: str, inputs: int, hidden: int, proj: int = 0, bias: bool = True) -> list[Any]:
        gates, out = CELLS[cell][0] * hidden, proj or hidden
        shapes = [(gates, inputs), (gates, out), (gates,), (gates,), (proj, hidden)]
        arrays = [self.normal(*shape, scale=(out + 1) ** -0.5) for shape in shapes]
        return [*arrays[:2], *(arrays[2:4] if bias else (None, None)), arrays[4] if proj else None]

    def state(self, cell: str, hidden: int, proj: int, *leading: int) -> tuple[Any, ...]:
        widths = (proj or hidden, hidden)[: CELLS[cell][1]]
        types = (self.dtype, "float32" if self.dtype == "float16" else self.dtype)
        return tuple(
            self.normal(*leading, w, scale=0.5, dtype=t) for w, t in zip(widths, types, strict=False)
        )

    def load(self, module: Any) -> Any:
        """The module, with weights and a place in its noise that do not come from its own initialisation."""
        module.load_state_dict({k: self.normal(*v.shape, scale=0.3) for k, v in module.parameters.items()})
        module.load_random_state(dict.fromkeys(module.random_state(), (7, 0)))
        return module


class Foreign:
    """An array of a library that nobody knows: the emulated build takes it from DLPack."""

    def __init__(self, array: Any) -> None:
        self._array, self.shape = array, array.shape

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def foreign(value: Any) -> Any:
    """The same arrays as `Foreign`, in tuples and lists, too."""
    if isinstance(value, (tuple, list)):
        return type(value)(foreign(item) for item in value)
    return Foreign(value) if isinstance(value, np.ndarray) else value


def same(value: Any) -> Any:
    return value


def bare(state: tuple[Any, ...]) -> Any:
    """A state as a cell takes it: that of one array without the tuple."""
    return state[0] if len(state) == 1 else state


def functional(
    name: str,
    cell: str,
    dtype: str,
    shape: tuple[int, int, int, int],
    traits: str = "",
    *,
    threads: int = 1,
    convert: Callable[[Any], Any] = same,
) -> Results:
    """One layer and direction, forward and backward, with what `traits` names."""
    has = set(traits.split())
    r, (seq_len, batch, inputs, hidden) = Random(name, dtype), shape
    proj = max(hidden // 2, 1) if "proj" in has else 0
    x, weights = r.normal(*shape[:3]), r.weights(cell, inputs, hidden, proj, "nobias" not in has)
    state = r.state(cell, hidden, proj, batch)
    dy, dstate = r.normal(seq_len, batch, proj or hidden), r.state(cell, hidden, proj, batch)
    options: dict[str, Any] = {"reverse": "reverse" in has, "recompute": "recompute" in has}
    if "lengths" in has:
        options["lengths"] = r.rng.integers(0, seq_len + 1, batch)
    if "resets" in has or "reset_row" in has or "reset_each" in has:
        options["resets"] = convert(r.rng.random((seq_len, batch)) < 0.3)
        if "resets" not in has:
            leading = (batch,) if "reset_each" in has else ()
            options["reset_state"] = convert(bare(r.state(cell, hidden, proj, *leading)))
    if "strided" in has:  # batch first in memory, padded rows, weights and dy that run backwards
        x = np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
        dy = np.pad(dy, ((0, 0), (0, 0), (1, 2)))[..., 1:-2]
        if convert is same:
            weights[:2] = [np.ascontiguousarray(w[::-1])[::-1] for w in weights[:2]]
            dy = np.ascontiguousarray(dy[..., ::-1])[..., ::-1]
    given = convert(x)
    for trait, rows in (("lookup", 4), ("wide_lookup", 10 * seq_len * batch + 1)):
        if trait in has:
            table = convert(r.normal(rows, inputs))
            given = fr.Lookup(table, r.rng.integers(0, rows, (seq_len, batch)))
    start = None if "nostate" in has else convert(bare((state[0], *([None] * len(state[1:])))))
    start = start if "h_only" in has or "nostate" in has else convert(bare(state))
    fr.set_num_threads(threads)
    y, final, tape = fr.functional.forward(cell, given, convert(weights), start, **options)
    dy = None if "nody" in has else convert(dy)
    end = None if "nodstate" in has else convert(bare(dstate))
    grads = fr.functional.backward(tape, dy, end, need_dx="nodx" not in has)
    again = fr.functional.backward(tape, dy, end) if "twice" in has else None
    results = {"y": y, "state": final, "dx": grads.x, "dstate": grads.state}
    results |= dict(zip(("dW", "dU", "db", "dbh", "dP"), grads.params, strict=True))
    return results | ({"again": [again.x, again.params]} if again else {})


def make(kind: str, *sizes: int, **options: Any) -> Any:
    """A recurrent module of a cell's name, or with "lstm_proj" one with projection."""
    if kind == "lstm_proj":
        return fr.LSTM(*sizes, proj_size=sizes[1] // 2, **options)
    if kind.startswith("rnn_"):
        options["nonlinearity"] = kind[4:]
    return {"l": fr.LSTM, "g": fr.GRU, "r": fr.RNN}[kind[0]](*sizes, **options)


def network(name: str, kind: str, dtype: str, traits: str, threads: int = 1, device: str = "cpu") -> Results:
    """A module: inference, training with gradients and, where it can, a stream."""
    has = set(traits.split())
    r, cell, (seq_len, batch, inputs, hidden) = Random(name, dtype), kind.split("_proj")[0], (7, 5, 9, 18)
    proj = hidden // 2 if kind == "lstm_proj" else 0
    flags = {flag: flag in has for flag in ("bidirectional", "batch_first", "recompute")}
    layers = 1 if "one" in has else 2
    dropout = 0.4 if "dropout" in has else 0.0
    module = make(
        kind, inputs, hidden, layers, bias="nobias" not in has, dropout=dropout, dtype=dtype, **flags
    )
    r.load(module)
    if device != "cpu":
        module.to(device)
    directions = 1 + flags["bidirectional"]
    single, rows = "single" in has, layers * directions
    leading = (seq_len,) if single else (batch, seq_len) if flags["batch_first"] else (seq_len, batch)
    x: Any = r.normal(*leading, inputs)
    if "lookup" in has:
        x = fr.Lookup(r.normal(4, inputs), r.rng.integers(0, 4, leading))
    state = bare(r.state(cell, hidden, proj, *((rows,) if single else (rows, batch))))
    options: dict[str, Any] = {}
    if "lengths" in has:
        options["lengths"] = r.rng.integers(0, seq_len + 1, 1 if single else batch)
    if "resets" in has:
        options["resets"] = r.rng.random(leading) < 0.3
        options["reset_state"] = bare(r.state(cell, hidden, proj, rows))
    fr.set_num_threads(threads)
    results: Results = {}
    if not dropout:
        results["called"] = module(x, state, **options)
    y, final, tape = module.forward(x, state, **options)
    dx, dstate = module.backward(tape, r.normal(*y.shape), state)
    results |= {"y": y, "state": final, "dx": dx, "dstate": dstate, "grads": list(module.grads.values())}
    if device == "cpu" and directions == 1 and not dropout and "lookup" not in has:
        results["stream"] = streamed(module, r, 3, cell, hidden, proj)
    return results


def streamed(module: Any, r: Random, batch: int, cell: str, hidden: int, proj: int) -> list[Any]:
    """Steps of a stream whose state is set, and some rows of it cleared, in between."""
    step = module.stream(batch_size=batch)
    found = [step(r.normal(batch, module.input_size)).copy() for _ in range(2)]
    step.state = bare(r.state(cell, hidden, proj, module.num_layers, batch))
    found.append(step(r.normal(batch, module.input_size)).copy())
    step.reset([1])
    found += [step(r.normal(batch, module.input_size)).copy(), step.state]
    step.reset()
    return [*found, step(r.normal(batch, module.input_size)).copy()]


def quantized(name: str, kind: str, weights: str, traits: str) -> Results:
    has = set(traits.split())
    r, cell, bidirectional = Random(name, "float32"), kind.split("_proj")[0], "bidirectional" in has
    seq_len, batch, inputs, hidden = 6, 4, 11, 40 if "wide" in has else 20
    proj = hidden // 2 if kind == "lstm_proj" else 0
    module = make(kind, inputs, hidden, 2, bidirectional=bidirectional, batch_first="batch_first" in has)
    network = r.load(module).quantize(weights)
    leading = (batch, seq_len) if "batch_first" in has else (seq_len, batch)
    rows = 4 if bidirectional else 2
    options: dict[str, Any] = {}
    if "lengths" in has:
        options["lengths"] = r.rng.integers(0, seq_len + 1, batch)
        options["resets"] = r.rng.random(leading) < 0.3
    state = bare(r.state(cell, hidden, proj, rows, batch))
    results = {"called": network(r.normal(*leading, inputs), state, **options)}
    if not bidirectional:
        results["stream"] = streamed_quantized(network, r, module, cell, hidden, proj)
    return results


def streamed_quantized(net: Any, r: Random, module: Any, cell: str, hidden: int, proj: int) -> list[Any]:
    step, found = net.stream(batch_size=2), []
    step.state = bare(r.state(cell, hidden, proj, module.num_layers, 2))
    for _ in range(3):
        found.append(step(r.normal(2, module.input_size)).copy())
    return [*found, step.state]


def one_step(name: str, kind: str, dtype: str, single: bool, device: str = "cpu") -> Results:
    """RNNCell, LSTMCell or GRUCell."""
    r, leading = Random(name, dtype), () if single else (5,)
    options = {"nonlinearity": kind[4:]} if kind.startswith("rnn_") else {}
    cell = {"l": fr.LSTMCell, "g": fr.GRUCell, "r": fr.RNNCell}[kind[0]](6, 19, dtype=dtype, **options)
    r.load(cell).to(device)
    state = bare(r.state(kind, 19, 0, *leading))
    final, tape = cell.forward(r.normal(*leading, 6), state)
    dx, dstate = cell.backward(tape, bare(r.state(kind, 19, 0, *leading)))
    return {"state": final, "dx": dx, "dstate": dstate, "grads": list(cell.grads.values())}


def plain(kind: str, inputs: int, outputs: int, dtype: str) -> Any:
    """A layer without a time loop."""
    if kind.startswith("linear"):
        return fr.Linear(inputs, outputs, bias=kind == "linear", dtype=dtype)
    if kind.startswith("layer_norm"):
        return fr.LayerNorm(inputs, elementwise_affine=kind == "layer_norm", dtype=dtype)
    return (
        fr.Embedding(inputs, outputs, padding_idx=1, dtype=dtype) if kind == "embedding" else fr.Dropout(0.3)
    )


def layer(name: str, kind: str, dtype: str, device: str = "cpu") -> Results:
    """A layer without a time loop, on few and many rows."""
    r, results = Random(name, dtype), {}
    for count, inputs, outputs in ((1, 2, 1), (5, 7, 9), (33, 40, 65), (200, 96, 64)):
        module = r.load(plain(kind, inputs, outputs, dtype)).to(device)
        x = r.rng.integers(0, inputs, (count, 2)) if kind == "embedding" else r.normal(count, 2, inputs)
        y, tape = module.forward(x)
        results[f"{count}"] = [y, module.backward(tape, r.normal(*y.shape)), list(module.grads.values())]
    return results


def loss(name: str, dtype: str, reduction: str, smoothing: float) -> Results:
    r = Random(name, dtype)
    logits, targets = r.normal(5, 13, 37, scale=4.0), r.rng.integers(0, 37, (5, 13))
    targets[0, :3] = -100
    options = {"reduction": reduction, "label_smoothing": smoothing}
    return {
        "entropy": fr.cross_entropy(logits, targets, **options),
        "weighted": fr.cross_entropy(logits, targets, abs(r.normal(37)), **options),
        "mse": fr.mse_loss(r.normal(9, 21), r.normal(9, 21), reduction),
    }


OPTIMISERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda m: fr.optim.SGD(m, lr=0.1),
    "sgd_momentum": lambda m: fr.optim.SGD(m, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "sgd_nesterov": lambda m: fr.optim.SGD(m, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda m: fr.optim.Adam(m, lr=0.01, weight_decay=0.1),
    "adamw": lambda m: fr.optim.AdamW(m, lr=0.01),
}


def optimiser(name: str, kind: str, dtype: str, device: str = "cpu") -> Results:
    """Steps with clipped gradients."""
    r = Random(name, dtype)
    module = r.load(fr.LSTM(9, 18, dtype=dtype)).to(device)
    steps, norms = OPTIMISERS[kind](module), []
    for power in (2.0, 1.0, float("inf")):
        for grad in module.grads.values():
            grad[...] = r.normal(*grad.shape)
        norms.append(np.float64(fr.clip_grad_norm(module, 3.0, power)))
        fr.clip_grad_value(module, 0.2)
        steps.step()
    return {"norms": norms, "parameters": list(module.state_dict().values())}


def training(name: str, dtype: str, threads: int) -> Results:
    """Embedding, network and Linear, as a language model trains."""
    r = Random(name, dtype)
    embedding = r.load(fr.Embedding(23, 12, dtype=dtype))
    rnn = r.load(fr.LSTM(12, 48, 2, dropout=0.2, dtype=dtype))
    head = r.load(fr.Linear(48, 23, dtype=dtype))
    steps, losses = fr.optim.Adam([embedding, rnn, head], lr=0.01), []
    fr.set_num_threads(threads)
    for _ in range(3):
        tokens = r.rng.integers(0, 23, (30, 8))
        looked = embedding.lookup(tokens)
        y, _, tape = rnn.forward(looked)
        logits, head_tape = head.forward(y)
        value, dlogits = fr.cross_entropy(logits, (tokens + 1) % 23)
        dx, _ = rnn.backward(tape, head.backward(head_tape, dlogits))
        embedding.backward(looked, dx)
        losses.append(np.float64(value))
        fr.clip_grad_norm([embedding, rnn, head], 1.0)
        steps.step()
        steps.zero_grad()
    return {"losses": losses, "parameters": [list(m.parameters.values()) for m in (embedding, rnn, head)]}
