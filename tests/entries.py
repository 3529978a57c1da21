"""One valid call of every compiled entry; the error tests and the fuzzer derive the invalid ones from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn import _core

Array = npt.NDArray[Any]
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
T, B, I, H, P = 5, 3, 4, 6, 2


@dataclass
class Entry:
    """A function and arguments that it accepts.

    Attributes:
        written: arguments whose arrays the call writes to; all others are only read.
        optional: arguments that may be None.
        free: arguments whose sizes set those of the rest, so that an error may name another argument instead.
        unbound: arguments of which any shape is right, or none is wrong while the others fit.
        open_axes: (argument, path, axis) of single axes whose size nothing else fixes.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    written: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()
    unbound: frozenset[str] = frozenset()
    open_axes: frozenset[tuple[str, tuple[int, ...], int]] = frozenset()

    def call(self, **changes: Any) -> Any:
        return self.function(**{**self.arguments, **changes})


def _draw(*shape: int, dtype: str = "float64") -> Array:
    return np.random.default_rng([7, *shape]).uniform(-0.5, 0.5, shape).astype(dtype)


def _params(gates: int, proj: int) -> tuple[Any, ...]:
    rows = gates * H
    projection = _draw(proj, H) if proj else None
    return (_draw(rows, I), _draw(rows, proj or H), _draw(rows), _draw(rows), projection)


def _state(cell: str, proj: int) -> tuple[Array, ...]:
    return tuple(_draw(B, width) for width in (proj or H, H)[: _core.cells[cell]["states"]])


def _forward(cell: str, proj: int = 0) -> Entry:
    params = _params(int(_core.cells[cell]["gates"]), proj)
    arguments = {
        "cell": cell,
        "x": _draw(T, B, I),
        "params": params,
        "state": _state(cell, proj),
        "lengths": np.array([5, 0, 2]),
        "resets": np.zeros((T, B), bool),
        "reset_state": _state(cell, proj),
        "reverse": False,
        "save": True,
        "cache": _core.WeightCache(),
        "out": np.empty((T, B, proj or H)),
        "state_out": _state(cell, proj),
    }
    optional = frozenset({"state", "lengths", "resets", "reset_state", "cache", "out", "state_out"})
    return Entry(
        _core.forward, arguments, frozenset({"out", "state_out"}), optional, frozenset({"x", "params"})
    )


def _backward(cell: str, proj: int = 0) -> Entry:
    params = _params(int(_core.cells[cell]["gates"]), proj)
    tape = _core.forward(cell, _draw(T, B, I), params, _state(cell, proj), save=True)[2]
    arguments = {
        "tape": tape,
        "dy": _draw(T, B, proj or H),
        "dstate": _state(cell, proj),
        "dparams": tuple(None if p is None else np.zeros_like(p) for p in params),
        "need_dx": True,
        "dx": np.empty((T, B, I)),
        "accumulate_dx": False,
    }
    return Entry(
        _core.backward, arguments, frozenset({"dparams", "dx"}), frozenset({"dy", "dstate", "dparams", "dx"})
    )


def _stream() -> Any:
    return _core.Stream("lstm", [_params(4, 0)], B)


def _stream_new() -> Entry:
    arguments = {"cell": "lstm", "layers": [_params(4, 0)], "batch_size": B}
    return Entry(
        _core.Stream, arguments, free=frozenset({"layers"}), open_axes=frozenset({("layers", (0, 0), 1)})
    )


def _normed() -> tuple[Array, Array, Array]:
    return _core.layer_norm_forward(_draw(B, H), _draw(H), _draw(H), 1e-5)


def _optimiser(names: tuple[str, ...], numbers: dict[str, Any]) -> dict[str, Any]:
    return {**{name: np.abs(_draw(9)) for name in names}, **numbers}


def make_entries() -> dict[str, Entry]:
    """Fresh entries with fresh arrays, by name: the compiled name, then a variant after a colon."""
    x, y = _draw(B, I), _draw(B, H)
    weight, bias = _draw(H, I), _draw(H)
    stream = _stream()
    _, mean, rstd = _normed()
    indices = np.array([0, 4, 4, 2])
    adam = {
        "lr": 0.1,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "decoupled": True,
        "step": 1,
    }
    sgd = {
        "lr": 0.1,
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.1,
        "nesterov": False,
        "first": False,
    }
    every = frozenset({"x"})
    return {
        "forward:lstm": _forward("lstm"),
        "forward:projected": _forward("lstm", P),
        "forward:gru": _forward("gru"),
        "forward:rnn_tanh": _forward("rnn_tanh"),
        "forward:rnn_relu": _forward("rnn_relu"),
        "backward:lstm": _backward("lstm"),
        "backward:projected": _backward("lstm", P),
        "backward:gru": _backward("gru"),
        "Stream": _stream_new(),
        "Stream:call": Entry(stream, {"x": x}),
        "Stream:get_state": Entry(stream.get_state, {}),
        "Stream:set_state": Entry(stream.set_state, {"state": [_state("lstm", 0)]}),
        "Stream:reset": Entry(
            stream.reset,
            {"rows": np.array([1, 2])},
            optional=frozenset({"rows"}),
            unbound=frozenset({"rows"}),
        ),
        "Stream:refresh": Entry(stream.refresh, {"layers": [_params(4, 0)]}),
        "WeightCache": Entry(_core.WeightCache, {}),
        "get_num_threads": Entry(_core.get_num_threads, {}),
        "set_num_threads": Entry(_core.set_num_threads, {"n": 1}),
        "config": Entry(_core.config, {}),
        "measure_limits": Entry(_core.measure_limits, {}),
        "exp": Entry(_core.exp, {"x": x}, unbound=every),
        "sigmoid": Entry(_core.sigmoid, {"x": x}, unbound=every),
        "tanh": Entry(_core.tanh, {"x": x}, unbound=every),
        "linear_forward": Entry(
            _core.linear_forward,
            {"x": x, "weight": weight, "bias": bias, "out": np.empty((B, H))},
            frozenset({"out"}),
            frozenset({"bias", "out"}),
            frozenset({"x", "weight"}),
        ),
        "linear_backward": Entry(
            _core.linear_backward,
            {"x": x, "weight": weight, "dy": y, "dweight": _draw(H, I), "dbias": _draw(H), "need_dx": True},
            frozenset({"dweight", "dbias"}),
            frozenset({"dbias"}),
            frozenset({"x", "weight"}),
        ),
        "embedding_forward": Entry(
            _core.embedding_forward,
            {"indices": indices, "weight": _draw(5, H)},
            free=frozenset({"weight"}),
            unbound=frozenset({"indices", "weight"}),
        ),
        "embedding_backward": Entry(
            _core.embedding_backward,
            {"indices": indices, "dy": _draw(4, H), "dweight": _draw(5, H)},
            frozenset({"dweight"}),
            free=frozenset({"indices", "dy", "dweight"}),
            unbound=frozenset({"dweight"}),
        ),
        "layer_norm_forward": Entry(
            _core.layer_norm_forward,
            {"x": y, "weight": _draw(H), "bias": _draw(H), "eps": 1e-5},
            optional=frozenset({"weight", "bias"}),
            free=frozenset({"x"}),
            open_axes=frozenset({("x", (), 0)}),
        ),
        "layer_norm_backward": Entry(
            _core.layer_norm_backward,
            {
                "x": y,
                "weight": _draw(H),
                "dy": _draw(B, H),
                "mean": mean,
                "rstd": rstd,
                "dweight": _draw(H),
                "dbias": _draw(H),
            },
            frozenset({"dweight", "dbias"}),
            frozenset({"weight", "dweight", "dbias"}),
            frozenset({"x"}),
        ),
        "cross_entropy": Entry(
            _core.cross_entropy,
            {
                "logits": y,
                "targets": np.array([0, 5, -100]),
                "weight": np.abs(_draw(H)),
                "ignore_index": -100,
                "label_smoothing": 0.1,
            },
            optional=frozenset({"weight"}),
            free=frozenset({"logits"}),
        ),
        "dropout": Entry(_core.dropout, {"x": x, "p": 0.5, "seed": 1, "offset": 0}, unbound=every),
        "sgd_step": Entry(
            _core.sgd_step,
            _optimiser(("param", "grad", "momentum_buf"), sgd),
            frozenset({"param", "momentum_buf"}),
            frozenset({"momentum_buf"}),
            frozenset({"param"}),
        ),
        "adam_step": Entry(
            _core.adam_step,
            _optimiser(("param", "grad", "exp_avg", "exp_avg_sq"), adam),
            frozenset({"param", "exp_avg", "exp_avg_sq"}),
            free=frozenset({"param"}),
        ),
        "norm": Entry(_core.norm, {"x": x, "p": 2.0}, unbound=every),
        "scale_": Entry(_core.scale_, {"x": x.copy(), "factor": 0.5}, every, unbound=every),
        "clamp_": Entry(_core.clamp_, {"x": x.copy(), "lo": -0.1, "hi": 0.1}, every, unbound=every),
    }


# Callables of the compiled module that an entry above stands for, and those without arguments to get wrong.
COVERED = {name.split(":")[0] for name in make_entries()} | {"LayerTape"}


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


def name_of(argument: str, path: tuple[Any, ...]) -> str:
    """What an error calls the array: the weight's own name inside a parameter tuple, else the argument's."""
    if argument in ("params", "layers") and path:
        return WEIGHTS[path[-1]]
    if argument == "dparams" and path:
        return "d" + WEIGHTS[path[-1]]
    return argument
