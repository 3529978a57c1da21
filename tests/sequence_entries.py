"""Valid calls of the compiled entries for sequences; see entries.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from entry import B, Entry, H, I, P, T, draw

from fusedrnn import _core


def _ctc(function: Callable[..., Any], **options: Any) -> Entry:
    arguments = {
        "logits": draw(T, B, H),
        "targets": np.array([[1, 2], [3, 3], [5, 1]]),
        "input_lengths": np.array([5, 4, 2]),
        "target_lengths": np.array([2, 0, 1]),
        "blank": 0,
        **options,
    }
    open_axes: Any = frozenset({("logits", (), 0), ("logits", (), 2), ("targets", (), 1)})
    return Entry(function, arguments, free=frozenset({"logits", "targets"}), open_axes=open_axes)


def _concatenated() -> Entry:
    entry = _ctc(_core.ctc_loss, mean=False, zero_infinity=True)
    entry.arguments["targets"] = np.array([1, 2, 5])
    entry.open_axes = frozenset({("logits", (), 0), ("logits", (), 2)})
    return entry


def _ctc_decode(beam: int) -> Entry:
    arguments = {"logits": draw(T, B, H), "lengths": np.array([5, 0, 2]), "beam": beam, "blank": 1}
    open_axes: Any = frozenset({("logits", (), 0), ("logits", (), 2)})
    optional = frozenset({"lengths"})
    return Entry(
        _core.ctc_decode, arguments, optional=optional, free=frozenset({"logits"}), open_axes=open_axes
    )


def _crf(function: Callable[..., Any], training: bool = False) -> Entry:
    arguments = {
        "emissions": draw(T, B, H),
        "lengths": np.array([5, 0, 2]),
        "start": draw(H),
        "transitions": draw(H, H),
        "end": draw(H),
    }
    targets = {"dstart": draw(H), "dtransitions": draw(H, H), "dend": draw(H)}
    if training:
        arguments |= {"tags": np.arange(T * B).reshape(T, B) % H, **targets, "mean": True}
    free = frozenset({"emissions", "start", "transitions", "end"})
    open_axes: Any = frozenset() if training else frozenset({("emissions", (), 0)})
    written = frozenset(targets) if training else frozenset()
    return Entry(function, arguments, written, frozenset({"lengths"}), free, open_axes=open_axes)


def _crf_nbest() -> Entry:
    entry = _crf(_core.crf_nbest)
    entry.arguments["n_best"] = 3
    return entry


def _ctc_prefix_step() -> Entry:
    arguments = {
        "logp": draw(H),
        "blanks": draw(B),
        "labels": draw(B),
        "last": np.array([-1, 2, 3]),
        "parents": np.array([-1, 0, 0]),
        "bonus": draw(B),
        "added": draw(B, H),
        "blank": 0,
        "beam": 4,
    }
    return Entry(_core.ctc_prefix_step, arguments, free=frozenset({"logp", "blanks"}))


def _beam_step() -> Entry:
    arguments = {
        "logits": draw(T, H),
        "totals": draw(T),
        "rows": np.array([0, 0, 2, 3, 3]),
        "allowed": np.ones((T, H), bool),
        "count": 4,
    }
    optional, free = frozenset({"allowed"}), frozenset({"logits"})
    return Entry(_core.beam_step, arguments, optional=optional, free=free, mixed=True)


def _decoder_params() -> tuple[Any, ...]:
    """Of a GRU without biases with A = P, M = I, two filters of width 3, coverage and its output fed back."""
    attention = ((P, H), (P, I), (P,), (P,))
    cell, past = ((3 * H, I + H), (3 * H, H)), ((P, 2), (2, 3), (P,))
    return (
        *(draw(*shape) for shape in (*attention, *cell)),
        *(None, None, draw(H, I + H)),
        *(draw(*shape) for shape in past),
        *(None, None),
    )


DECODER_WEIGHTS = (
    *("weight_query", "weight_memory", "bias_memory", "weight_energy"),
    *("weight_ih", "weight_hh", "bias_ih", "bias_hh"),
    *("weight_output", "weight_location", "weight_filter", "weight_coverage", "weight_window", "bias_window"),
)
DECODER_OPTIONS: dict[str, Any] = {"memory_size": I, "score": "additive", "current": True, "feeds": True}


def _decoder_pack() -> Entry:
    arguments = {"cell": "gru", "params": _decoder_params(), **DECODER_OPTIONS}
    open_axes: Any = frozenset({("params", (4,), 1)})
    return Entry(
        _core.decoder_pack,
        arguments,
        free=frozenset({"params"}),
        open_axes=open_axes,
        weights=DECODER_WEIGHTS,
        optional_weights=(2, 6, 7, 9, 10, 11, 12, 13),
    )


def _packed() -> _core.PackedDecoder:
    return _core.decoder_pack(cell="gru", params=_decoder_params(), **DECODER_OPTIONS)


def _decoder_prepare() -> Entry:
    arguments = {
        "decoder": _packed(),
        "memory": draw(T, B, I),
        "memory_lengths": np.array([5, 0, 2]),
        "table": draw(4, I),
        "contexts": False,
    }
    optional, free = frozenset({"memory_lengths", "table"}), frozenset({"memory", "table"})
    open_axes: Any = frozenset({("memory", (), 0), ("table", (), 0)})
    return Entry(_core.decoder_prepare, arguments, optional=optional, free=free, open_axes=open_axes)


def _prepared() -> _core.DecoderMemory:
    return _core.decoder_prepare(_packed(), draw(T, B, I), np.array([5, 0, 2]), None, False)


def _decoder_sampling() -> Entry:
    arguments = {
        "weight": draw(4, H),
        "bias": draw(4),
        "table": draw(4, I),
        "probability": 0.5,
        "seed": 1,
        "offset": 0,
    }
    free, open_axes = frozenset({"weight"}), frozenset({("weight", (), 1), ("table", (), 1)})
    return Entry(
        _core.decoder_sampling, arguments, optional=frozenset({"bias"}), free=free, open_axes=open_axes
    )


def _decoder_forward() -> Entry:
    arguments = {
        "prepared": _prepared(),
        "x": draw(T, B, I),
        "lengths": np.array([5, 0, 2]),
        "state": (draw(B, H), draw(B, H), draw(B, T), draw(B, T), None),
        "rows": None,
        "keep": True,
        "sampling": _core.decoder_sampling(draw(4, H), None, draw(4, I), 0.5, 1, 0),
        "places": None,
    }
    optional, free = frozenset({"lengths", "state", "sampling"}), frozenset({"x"})
    open_axes: Any = frozenset({("x", (), 0)})
    return Entry(_core.decoder_forward, arguments, optional=optional, free=free, open_axes=open_axes)


def _decoder_search() -> Entry:
    without_past = (*_decoder_params()[:9], *[None] * 5)
    packed = _core.decoder_pack(cell="gru", params=without_past, **DECODER_OPTIONS)
    arguments = {
        "prepared": _core.decoder_prepare(packed, draw(T, B, I), None, None, False),
        "head": _core.decoder_sampling(draw(4, H), None, draw(4, I), 0.0, 0, 0),
        "state": (draw(B, H),),
        "bos": 1,
        "eos": 2,
        "beam": 3,
        "divisors": np.arange(1.0, T + 1),
        "n_best": 2,
    }
    open_axes: Any = frozenset({("divisors", (), 0)})
    return Entry(
        _core.decoder_search, arguments, optional=frozenset({"state"}), open_axes=open_axes, mixed=True
    )


def _decoder_backward() -> Entry:
    *_, tape, _ = _core.decoder_forward(_prepared(), draw(T, B, I), None, None, None, True, None, None)
    arguments = {
        "tape": tape,
        "dy": draw(T, B, H),
        "dalpha": draw(T, B, T),
        "dstate": (draw(B, H),),
        "grads": _decoder_params(),
        "need_dx": True,
    }
    optional = frozenset({"dy", "dalpha", "dstate", "grads"})
    return Entry(_core.decoder_backward, arguments, frozenset({"grads"}), optional)


def _transducer(function: Callable[..., Any], **options: Any) -> Entry:
    arguments = {"logits": draw(T, H), "labels": np.arange(T) % (H + 2) - 2, "blank": 0, **options}
    open_axes: Any = frozenset({("logits", (), 1)})
    return Entry(function, arguments, free=frozenset({"logits"}), open_axes=open_axes, mixed=True)


def _transducer_lattice() -> Entry:
    arguments = {
        "emissions": -np.abs(draw(2, B, T, 4)).astype("float64"),
        "logit_lengths": np.array([5, 0, 2]),
        "target_lengths": np.array([3, 0, 1]),
        "label_factor": 1.0,
    }
    free, open_axes = frozenset({"emissions"}), frozenset({("emissions", (), 2), ("emissions", (), 3)})
    return Entry(_core.transducer_lattice, arguments, free=free, open_axes=open_axes)


def _quantum(function: Callable[..., Any]) -> Entry:
    """Two qubits and one layer."""
    arguments: dict[str, Any] = {
        "gx": draw(T, 8, B),
        "params": (draw(8, H), draw(8, 8), draw(4 * H, 2), draw(4 * H)),
        "lengths": np.array([5, 0, 2]),
        "state": (draw(H, B), draw(H, B)),
    }
    sizes, open_axes = "gx", {("gx", (), 0)}
    if function is _core.quantum_forward:
        arguments["keep"] = True
    else:
        *_, tape = _core.quantum_forward(**arguments, keep=True)
        del arguments["gx"], arguments["state"]
        arguments |= {"tape": tape, "c": draw(H, B), "dy": draw(T, H, B), "dstate": (draw(H, B), draw(H, B))}
        sizes, open_axes = "dy", set()
    return Entry(
        function,
        arguments,
        optional=frozenset({"lengths"}),
        free=frozenset({sizes, "params"}),
        open_axes=frozenset(open_axes),
        weights=("weight_hh", "unitaries", "weight_out", "bias_out"),
        optional_weights=(),
    )


SEQUENCE_ENTRIES: dict[str, Callable[[], Entry]] = {
    "ctc_loss": lambda: _ctc(_core.ctc_loss, mean=True, zero_infinity=False),
    "ctc_loss:concatenated": _concatenated,
    "ctc_align": lambda: _ctc(_core.ctc_align),
    "ctc_decode": lambda: _ctc_decode(1),
    "ctc_decode:beam": lambda: _ctc_decode(3),
    "crf_loss": lambda: _crf(_core.crf_loss, training=True),
    "crf_marginals": lambda: _crf(_core.crf_marginals),
    "crf_decode": lambda: _crf(_core.crf_decode),
    "decoder_pack": _decoder_pack,
    "crf_nbest": _crf_nbest,
    "beam_step": _beam_step,
    "ctc_prefix_step": _ctc_prefix_step,
    "decoder_prepare": _decoder_prepare,
    "decoder_forward": _decoder_forward,
    "decoder_sampling": _decoder_sampling,
    "decoder_search": _decoder_search,
    "decoder_backward": _decoder_backward,
    "transducer_emissions": lambda: _transducer(_core.transducer_emissions),
    "transducer_lattice": _transducer_lattice,
    "quantum_forward": lambda: _quantum(_core.quantum_forward),
    "quantum_backward": lambda: _quantum(_core.quantum_backward),
    "transducer_gradient": lambda: _transducer(
        _core.transducer_gradient,
        emissions=np.ones((4, T)),
        flow=np.ones((2, T)),
        factor=1.0,
        clamp=-1.0,
    ),
}
