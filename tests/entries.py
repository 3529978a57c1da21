"""One valid call of every compiled entry; the error tests and the fuzzer derive the invalid ones from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from entry import Array, B, Entry, H, I, P, T, draw
from sequence_entries import SEQUENCE_ENTRIES

from fusedrnn import _core


def _params(gates: int, proj: int) -> tuple[Any, ...]:
    rows = gates * H
    projection = draw(proj, H) if proj else None
    return (draw(rows, I), draw(rows, proj or H), draw(rows), draw(rows), projection)


def _state(cell: str, proj: int) -> tuple[Array, ...]:
    return tuple(draw(B, width) for width in (proj or H, H)[: _core.cells[cell]["states"]])


def _forward(cell: str, proj: int = 0) -> Entry:
    params = _params(int(_core.cells[cell]["gates"]), proj)
    arguments = {
        "cell": cell,
        "x": draw(T, B, I),
        "params": params,
        "state": _state(cell, proj),
        "lengths": np.array([5, 0, 2]),
        "resets": np.zeros((T, B), bool),
        "reset_state": _state(cell, proj),
        "reverse": False,
        "save": True,
        "recompute": False,
        "cache": _core.WeightCache(),
        "version": 1,
        "out": np.zeros((T, B, proj or H)),
        "state_out": _state(cell, proj),
    }
    optional = frozenset({"state", "lengths", "resets", "reset_state", "cache", "out", "state_out"})
    return Entry(
        _core.forward, arguments, frozenset({"out", "state_out"}), optional, frozenset({"x", "params"})
    )


def _tape_from_arrays(cell: str) -> Entry:
    entry = _forward(cell)
    memory = np.zeros(
        _core.TAPE_LABEL_BYTES // 8 + T * B * _core.tape_row_bytes(cell, H, False, 8, False) // 8
    )
    entry.function(**{**entry.arguments, "tape_out": memory})
    kept = {
        name: value
        for name, value in entry.arguments.items()
        if name not in ("save", "cache", "version", "out", "state_out")
    }
    arguments = {**kept, "y": entry.arguments["out"], "tape": memory}
    optional = frozenset({"state", "lengths", "resets", "reset_state"})
    return Entry(
        _core.tape_from_arrays,
        arguments,
        optional=optional,
        free=frozenset({"x", "params"}),
        open_axes=frozenset({("tape", (), 0)}),
    )


def _lookup_forward(cell: str) -> Entry:
    entry = _forward(cell)
    entry.arguments |= {"x": draw(7, I), "indices": np.arange(T * B).reshape(T, B) % 6}
    entry.optional |= {"indices"}  # where x has three axes
    entry.free |= {"indices"}
    entry.open_axes |= {("x", (), 0)}
    return entry


def _backward(cell: str, proj: int = 0) -> Entry:
    params = _params(int(_core.cells[cell]["gates"]), proj)
    tape = _core.forward(cell, draw(T, B, I), params, _state(cell, proj), save=True)[2]
    arguments = {
        "tape": tape,
        "dy": draw(T, B, proj or H),
        "dstate": _state(cell, proj),
        "dparams": tuple(None if p is None else np.zeros_like(p) for p in params),
        "need_dx": True,
        "dx": np.zeros((T, B, I)),
        "accumulate_dx": False,
    }
    return Entry(
        _core.backward, arguments, frozenset({"dparams", "dx"}), frozenset({"dy", "dstate", "dparams", "dx"})
    )


def _backward_rows() -> Entry:
    kept = {
        name: value for name, value in _backward("gru").arguments.items() if name in ("tape", "dy", "dstate")
    }
    return Entry(_core.backward_rows, kept, optional=frozenset({"dy", "dstate"}))


def _lookup_backward(cell: str) -> Entry:
    entry = _backward(cell)
    tape = _lookup_forward(cell).call(out=None, state_out=None)[2]
    entry.arguments |= {"tape": tape, "dx": np.zeros((7, I))}
    return entry


def _stream() -> Any:
    return _core.Stream("lstm", [_params(4, 0)], B)


def _stream_new() -> Entry:
    arguments = {"cell": "lstm", "layers": [_params(4, 0)], "batch_size": B}
    return Entry(
        _core.Stream, arguments, free=frozenset({"layers"}), open_axes=frozenset({("layers", (0, 0), 1)})
    )


def _single(value: Any) -> Any:
    """The same arrays in float32."""
    if isinstance(value, tuple):
        return tuple(None if item is None else item.astype("f4") for item in value)
    return value.astype("f4")


def _quantized() -> Any:
    return _core.Quantized("lstm", [[_single(_params(4, 0))]], "int8")


def _quantized_new(weights: str) -> Entry:
    arguments = {"cell": "lstm", "layers": [[_single(_params(4, 0))]], "weights": weights}
    open_axes = frozenset({("layers", (0, 0, 0), 1)})
    return Entry(_core.Quantized, arguments, free=frozenset({"layers"}), open_axes=open_axes)


def _quantized_forward(weights: str, proj: int = 0) -> Entry:
    network = _core.Quantized("lstm", [[_single(_params(4, proj))]], weights)
    arguments = {
        "x": _single(draw(T, B, I)),
        "out": np.zeros((T, B, proj or H), np.float32),
        "state": tuple(a[None] for a in _single(_state("lstm", proj))),
        "lengths": np.array([5, 0, 2]),
        "resets": np.zeros((T, B), bool),
        "reset_state": tuple(a[None] for a in _single(_state("lstm", proj))),
    }
    optional = frozenset({"state", "lengths", "resets", "reset_state"})
    return Entry(network.forward, arguments, frozenset({"out"}), optional, frozenset({"x"}))


def _quantized_stream() -> Any:
    return _core.QuantizedStream(_quantized(), B)


def _normed() -> tuple[Array, Array, Array]:
    y, mean, rstd = _core.layer_norm_forward(draw(B, H), draw(H), draw(H), 1e-5)
    return y, mean, rstd


def _optimiser(names: tuple[str, ...], numbers: dict[str, Any]) -> dict[str, Any]:
    return {**{name: np.abs(draw(9)) for name in names}, **numbers}


SGD = {
    "lr": 0.1,
    "momentum": 0.9,
    "dampening": 0.0,
    "weight_decay": 0.1,
    "nesterov": False,
    "first": False,
}
ADAM = {
    "lr": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "decoupled": True,
    "step": 1,
}
X = frozenset({"x"})

# Makers of fresh entries with fresh arrays, by name: the compiled name, then a variant after a colon.
ENTRIES: dict[str, Callable[[], Entry]] = {
    "forward:lstm": lambda: _forward("lstm"),
    "forward:projected": lambda: _forward("lstm", P),
    "forward:gru": lambda: _forward("gru"),
    "forward:rnn_tanh": lambda: _forward("rnn_tanh"),
    "forward:rnn_relu": lambda: _forward("rnn_relu"),
    "forward:lookup": lambda: _lookup_forward("gru"),
    "ForwardCall:lstm": lambda: replace(_forward("lstm"), function=_core.ForwardCall),
    "BackwardCall:gru": lambda: replace(_backward("gru"), function=_core.BackwardCall),
    "run_calls": lambda: Entry(_core.run_calls, {"calls": []}),  # a call runs once: test_threads.py has some
    "StagedCalls": lambda: Entry(_core.StagedCalls, {"stages": [[], []]}),  # likewise
    "backward:lstm": lambda: _backward("lstm"),
    "backward:projected": lambda: _backward("lstm", P),
    "backward:gru": lambda: _backward("gru"),
    "backward:lookup": lambda: _lookup_backward("gru"),
    "backward_rows": _backward_rows,
    "tape_from_arrays": lambda: _tape_from_arrays("gru"),
    "Stream": _stream_new,
    "Stream:call": lambda: Entry(_stream(), {"x": draw(B, I)}),
    "Stream:get_state": lambda: Entry(_stream().get_state, {}),
    "Stream:set_state": lambda: Entry(_stream().set_state, {"state": [_state("lstm", 0)]}),
    "Stream:reset": lambda: Entry(
        _stream().reset,
        {"rows": np.array([1, 2])},
        optional=frozenset({"rows"}),
        unbound=frozenset({"rows"}),
    ),
    "Stream:refresh": lambda: Entry(_stream().refresh, {"layers": [_params(4, 0)]}),
    "Quantized:bf16": lambda: _quantized_new("bf16"),
    "Quantized:int8": lambda: _quantized_new("int8"),
    "Quantized:forward:bf16": lambda: _quantized_forward("bf16"),
    "Quantized:forward:int8": lambda: _quantized_forward("int8", P),
    "QuantizedStream": lambda: Entry(_core.QuantizedStream, {"network": _quantized(), "batch_size": B}),
    "QuantizedStream:call": lambda: Entry(_quantized_stream(), {"x": _single(draw(B, I))}),
    "QuantizedStream:get_state": lambda: Entry(_quantized_stream().get_state, {}),
    "QuantizedStream:set_state": lambda: Entry(
        _quantized_stream().set_state,
        {"state": tuple(a[None] for a in _single(_state("lstm", 0)))},
        optional=frozenset({"state"}),
    ),
    "QuantizedStream:reset": lambda: Entry(
        _quantized_stream().reset,
        {"rows": np.array([1, 2])},
        optional=frozenset({"rows"}),
        unbound=frozenset({"rows"}),
    ),
    "PlainCall": lambda: Entry(
        _core.PlainCall,
        {"cell": "lstm", "params": _params(4, P), "cache": _core.WeightCache()},
        free=frozenset({"params"}),
        open_axes=frozenset({("params", (0,), 1)}),
    ),
    "WeightCache": lambda: Entry(_core.WeightCache, {}),
    "get_num_threads": lambda: Entry(_core.get_num_threads, {}),
    "set_detect_changes": lambda: Entry(_core.set_detect_changes, {"enabled": False}),
    "set_num_threads": lambda: Entry(_core.set_num_threads, {"n": 1}),
    "config": lambda: Entry(_core.config, {}),
    "measure_limits": lambda: Entry(_core.measure_limits, {}),
    "exp": lambda: Entry(_core.exp, {"x": draw(B, I)}, unbound=X),
    "sigmoid": lambda: Entry(_core.sigmoid, {"x": draw(B, I)}, unbound=X),
    "tanh": lambda: Entry(_core.tanh, {"x": draw(B, I)}, unbound=X),
    "linear_forward": lambda: Entry(
        _core.linear_forward,
        {"x": draw(B, I), "weight": draw(H, I), "bias": draw(H), "out": np.zeros((B, H))},
        frozenset({"out"}),
        frozenset({"bias", "out"}),
        frozenset({"x", "weight"}),
    ),
    "linear_backward": lambda: Entry(
        _core.linear_backward,
        {
            "x": draw(B, I),
            "weight": draw(H, I),
            "dy": draw(B, H),
            "dweight": draw(H, I),
            "dbias": draw(H),
            "need_dx": True,
        },
        frozenset({"dweight", "dbias"}),
        frozenset({"dweight", "dbias"}),
        frozenset({"x", "weight"}),
    ),
    "embedding_forward": lambda: Entry(
        _core.embedding_forward,
        {"indices": np.array([0, 4, 4, 2]), "weight": draw(5, H)},
        free=frozenset({"weight"}),
        unbound=frozenset({"indices", "weight"}),
    ),
    "embedding_backward": lambda: Entry(
        _core.embedding_backward,
        {"indices": np.array([0, 4, 4, 2]), "dy": draw(4, H), "dweight": draw(5, H)},
        frozenset({"dweight"}),
        free=frozenset({"indices", "dy", "dweight"}),
        unbound=frozenset({"dweight"}),
    ),
    "layer_norm_forward": lambda: Entry(
        _core.layer_norm_forward,
        {"x": draw(B, H), "weight": draw(H), "bias": draw(H), "eps": 1e-5},
        optional=frozenset({"weight", "bias"}),
        free=frozenset({"x", "weight"}),
        open_axes=frozenset({("x", (), 0)}),
    ),
    "layer_norm_backward": lambda: Entry(
        _core.layer_norm_backward,
        {
            "x": draw(B, H),
            "weight": draw(H),
            "dy": draw(B, H),
            "mean": _normed()[1],
            "rstd": _normed()[2],
            "dweight": draw(H),
            "dbias": draw(H),
        },
        frozenset({"dweight", "dbias"}),
        frozenset({"weight", "dweight", "dbias"}),
        frozenset({"x", "weight"}),
    ),
    "cross_entropy": lambda: Entry(
        _core.cross_entropy,
        {
            "logits": draw(B, H),
            "targets": np.array([0, 5, -100]),
            "weight": np.abs(draw(H)),
            "ignore_index": -100,
            "label_smoothing": 0.1,
            "mean": True,
        },
        optional=frozenset({"weight"}),
        free=frozenset({"logits"}),
    ),
    "spare_like": lambda: Entry(_core.spare_like, {"x": draw(B, I)}, unbound=X),
    "dropout": lambda: Entry(_core.dropout, {"x": draw(B, I), "p": 0.5, "seed": 1, "offset": 0}, unbound=X),
    "sgd_step": lambda: Entry(
        _core.sgd_step,
        _optimiser(("param", "grad", "momentum_buf"), SGD),
        frozenset({"param", "momentum_buf"}),
        frozenset({"momentum_buf"}),
        frozenset({"param"}),
    ),
    "adam_step": lambda: Entry(
        _core.adam_step,
        _optimiser(("param", "grad", "exp_avg", "exp_avg_sq"), ADAM),
        frozenset({"param", "exp_avg", "exp_avg_sq"}),
        free=frozenset({"param"}),
    ),
    "norm": lambda: Entry(_core.norm, {"x": draw(B, I), "p": 2.0}, unbound=X),
    "scale_": lambda: Entry(_core.scale_, {"x": draw(B, I), "factor": 0.5}, X, unbound=X),
    "clamp_": lambda: Entry(_core.clamp_, {"x": draw(B, I), "lo": -0.1, "hi": 0.1}, X, unbound=X),
    **SEQUENCE_ENTRIES,
}

# Callables of the compiled module that an entry above stands for, those without arguments to get wrong,
# and those of programs, which test_programs.py and test_program_cells.py call with wrong ones.
COVERED = {name.split(":")[0] for name in ENTRIES} | {
    "DecoderMemory",
    "DecoderSampling",
    "DecoderTape",
    "PackedDecoder",
    "LayerTape",
    "LayerCall",
    "run_program",
    "define_program",
    "cell_definition",  # takes a key
    "tape_row_bytes",  # takes sizes
    "xla_handler",  # takes a function, of all JAX programs of the process
    "Torch",  # and TensorNetwork, run_network: test_interop_torch.py
    "TensorNetwork",
    "run_network",
}


def arrays_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Array]]:
    """(path, array) for every array in an argument: tuples and lists are walked through."""
    if isinstance(value, np.ndarray):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for k, item in enumerate(value):
            yield from arrays_in(item, (*path, k))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`value` with the item at `path` exchanged."""
    if not path:
        return new
    items = list(value)
    items[path[0]] = replaced(items[path[0]], path[1:], new)
    return type(value)(items)


def name_of(entry: Entry, argument: str, path: tuple[Any, ...]) -> str:
    """What an error calls the array: the weight's own name inside a parameter tuple, else the argument's."""
    if argument in ("params", "layers") and path:
        return entry.weights[path[-1]]
    if argument == "dparams" and path:
        return "d" + entry.weights[path[-1]]
    return argument
