"""Bad input raises the right exception, names the argument, and changes nothing. It never crashes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from entries import COVERED, ENTRIES, arrays_in, name_of, replaced
from support import Array, assert_ran, random_problem, run_python

import fusedrnn as fr
from fusedrnn import _core

pytestmark = pytest.mark.once

Case = tuple[str, str, tuple[Any, ...]]  # entry, argument, path inside the argument


def array_cases() -> Iterator[Case]:
    """Every array that any compiled entry takes."""
    for name, make in ENTRIES.items():
        entry = make()
        for argument, value in entry.arguments.items():
            for path, _ in arrays_in(value):
                yield name, argument, path


def identity(case: Any) -> str:
    name, argument, path = case
    return "-".join([name, argument, *map(str, path)])


ARRAYS = list(array_cases())
NAMED = re.compile(r"\b(\w+)(?:\[\d+\])*: expected .+, got .+")


def refuse(case: Case, new: Callable[[Array], Any], kind: type[Exception], free: bool = True) -> None:
    """The call with one array exchanged raises `kind`, names the argument, and changes none of its arrays."""
    name, argument, path = case
    entry = ENTRIES[name]()
    value = entry.arguments[argument]
    old = dict(arrays_in(value))[path]
    arguments = {**entry.arguments, argument: replaced(value, path, new(old))}
    held = [(a, a.tobytes()) for v in arguments.values() for _, a in arrays_in(v) if a.dtype.kind != "O"]
    with pytest.raises(kind) as caught:
        entry.function(**arguments)
    assert type(caught.value) is kind
    message = str(caught.value)
    match = NAMED.search(message)
    assert match, message
    names = {name_of(entry, argument, path), argument}
    if free and argument in entry.free:
        names |= {name_of(entry, a, p) for a, v in entry.arguments.items() for p, _ in arrays_in(v)}
    assert match[1] in names, message
    for a, content in held:
        assert a.tobytes() == content


def test_every_entry_is_covered() -> None:
    """A new compiled function or class has to be added to entries.py."""
    public = {name for name in dir(_core) if not name.startswith("_") and callable(getattr(_core, name))}
    assert public == COVERED
    for name, make in ENTRIES.items():
        entry = make()
        entry.call()
        methods = {m for m in dir(_core.Stream) if not m.startswith("_")}
        assert name != "Stream" or methods == {"get_state", "set_state", "reset", "refresh"}


@pytest.mark.parametrize("case", ARRAYS, ids=identity)
def test_wrong_dtype(case: Case) -> None:
    name, argument, path = case
    old = dict(arrays_in(ENTRIES[name]().arguments[argument]))[path]
    kinds = ["f2", "c16", "O", "U1", ">f8" if old.dtype.kind == "f" else "f8", "u1"]
    if old.dtype.kind == "f":
        kinds += ["i8", "?"]
        floats = [
            a for v in ENTRIES[name]().arguments.values() for _, a in arrays_in(v) if a.dtype.kind == "f"
        ]
        if len(floats) > 1 and not ENTRIES[name]().mixed:
            kinds.append("f8" if old.dtype == np.float32 else "f4")
    else:
        kinds += ["i4", "u8"]
    with np.errstate(all="ignore"):  # the label of a tape is not numbers
        for kind in kinds:
            refuse(case, lambda a, k=kind: a.astype(k), TypeError)  # type: ignore[misc]


@pytest.mark.parametrize("case", ARRAYS, ids=identity)
def test_not_an_array(case: Case) -> None:
    for value in ("x", 3, 1.5, object(), [[1.0, 2.0]], {}):
        refuse(case, lambda a, v=value: v, TypeError, free=False)  # type: ignore[misc]
    name, argument, path = case
    entry = ENTRIES[name]()
    # None stands for "not given" where that is possible: whole arguments, states in part, biases, gradients.
    inside = argument in ("state", "dstate", "reset_state", "state_out", "dparams")
    inside = inside or (bool(path) and path[-1] in entry.optional_weights)
    if argument not in entry.optional and not (path and inside):
        refuse(case, lambda a: None, TypeError, free=False)


@pytest.mark.parametrize("case", [c for c in ARRAYS if c[1] not in ENTRIES[c[0]]().unbound], ids=identity)
def test_wrong_shape(case: Case) -> None:
    """Every axis one too long and one too short, one axis too many and one too few."""
    name, argument, path = case
    entry = ENTRIES[name]()
    old = dict(arrays_in(entry.arguments[argument]))[path]
    axes = [k for k in range(old.ndim) if (argument, path, k) not in entry.open_axes]
    for axis in axes:
        refuse(case, lambda a, k=axis: np.concatenate([a, a.take([0], k)], k), ValueError)  # type: ignore[misc]
        refuse(case, lambda a, k=axis: a.take(range(a.shape[k] - 1), k).copy(), ValueError)  # type: ignore[misc]
    refuse(case, lambda a: a[None, None].copy(), ValueError)
    refuse(case, lambda a: np.array(a.reshape(-1)[0]), ValueError)


@pytest.mark.parametrize("case", [c for c in ARRAYS if c[1] in ENTRIES[c[0]]().written], ids=identity)
def test_read_only_target(case: Case) -> None:
    def frozen(a: Array) -> Array:
        copy = a.copy()
        copy.flags.writeable = False
        return copy

    refuse(case, frozen, ValueError)


def overlapping_pairs() -> Iterator[tuple[Case, Case]]:
    """Every array that is written to, with every other array of the same call and dtype."""
    for name, make in ENTRIES.items():
        entry = make()
        found = [(a, p, old) for a, v in entry.arguments.items() for p, old in arrays_in(v)]
        for a, p, old in found:
            for b, q, other in found:
                if a in entry.written and (a, p) != (b, q) and old.dtype == other.dtype:
                    yield (name, a, p), (name, b, q)


@pytest.mark.parametrize("pair", list(overlapping_pairs()), ids=lambda pair: " ".join(map(identity, pair)))
def test_overlap(pair: tuple[Case, Case]) -> None:
    """A target whose last element is the first of another argument: refused, or written as if alone."""
    (name, a, p), (_, b, q) = pair
    entry, alone = ENTRIES[name](), ENTRIES[name]()
    first, second = dict(arrays_in(entry.arguments[a]))[p], dict(arrays_in(entry.arguments[b]))[q]
    memory = np.concatenate([first.reshape(-1), second.reshape(-1)[1:]])
    # The element in common has one value, in the call without an overlap as well.
    first.reshape(-1)[-1] = second.reshape(-1)[0]
    memory[first.size - 1] = second.reshape(-1)[0]
    target = memory[: first.size].reshape(first.shape)
    arguments = dict(entry.arguments)
    arguments[a] = replaced(arguments[a], p, target)
    arguments[b] = replaced(arguments[b], q, memory[first.size - 1 :].reshape(second.shape))
    before = memory.copy()
    message = ""
    try:
        entry.function(**arguments)
    except ValueError as error:
        message = str(error)
    if message:
        assert "overlap" in message
        assert np.array_equal(memory, before)
    else:
        alone.call(**{a: replaced(alone.arguments[a], p, first)})
        assert b not in entry.written
        assert np.array_equal(target, first)


SCALARS: list[tuple[str, str, Any, type[Exception]]] = [
    ("forward:lstm", "cell", "elman", ValueError),
    ("forward:lstm", "cell", "", ValueError),
    ("forward:lstm", "cell", 3, TypeError),
    ("forward:lstm", "cell", None, TypeError),
    ("forward:lstm", "params", None, TypeError),
    ("forward:lstm", "params", (), ValueError),
    ("forward:lstm", "params", (None,) * 5, TypeError),
    ("forward:lstm", "state", 5, TypeError),
    ("forward:lstm", "state", (None,), ValueError),
    ("forward:lstm", "state", (None,) * 3, ValueError),
    ("forward:lstm", "reset_state", (None,) * 3, ValueError),
    ("forward:lstm", "lengths", np.array([5, -1, 2]), ValueError),
    ("forward:lstm", "lengths", np.array([6, 0, 2]), ValueError),
    ("forward:lstm", "lengths", np.array([2**62, 0, 2]), ValueError),
    ("forward:lstm", "cache", "cache", TypeError),
    ("forward:lstm", "reverse", "no", TypeError),
    ("forward:lstm", "save", None, TypeError),
    ("forward:lstm", "reverse", None, TypeError),
    ("forward:lstm", "reverse", np.array([True, False]), TypeError),
    ("backward:lstm", "tape", None, TypeError),
    ("backward:lstm", "tape", np.zeros(3), TypeError),
    ("backward:lstm", "dstate", (None,) * 3, ValueError),
    ("backward:lstm", "dparams", (None,) * 4, ValueError),
    ("backward:lstm", "need_dx", "yes", TypeError),
    ("backward:lstm", "need_dx", None, TypeError),
    ("backward:lstm", "accumulate_dx", None, TypeError),
    ("Stream", "cell", "elman", ValueError),
    ("Stream", "layers", [], ValueError),
    ("Stream", "layers", None, TypeError),
    ("Stream", "batch_size", -1, ValueError),
    ("Stream", "batch_size", 1.5, TypeError),
    ("Stream", "batch_size", 2**80, TypeError),
    ("Stream:set_state", "state", [], ValueError),
    ("Stream:set_state", "state", None, TypeError),
    ("Stream:reset", "rows", np.array([3]), ValueError),
    ("Stream:reset", "rows", np.array([-1]), ValueError),
    ("Stream:reset", "rows", np.array([[0]]), ValueError),
    ("Stream:refresh", "layers", [], ValueError),
    ("set_num_threads", "n", 0, ValueError),
    ("set_num_threads", "n", -2, ValueError),
    ("set_num_threads", "n", 1.5, TypeError),
    ("set_num_threads", "n", None, TypeError),
    ("linear_backward", "need_dx", "yes", TypeError),
    ("linear_backward", "need_dx", None, TypeError),
    ("sgd_step", "nesterov", None, TypeError),
    ("embedding_forward", "indices", np.array([0, 5]), ValueError),
    ("embedding_forward", "indices", np.array([-1, 0]), ValueError),
    ("embedding_backward", "indices", np.array([0, 4, 4, 5]), ValueError),
    ("embedding_backward", "indices", np.array([0, 4, 4, -1]), ValueError),
    ("layer_norm_forward", "eps", "x", TypeError),
    ("layer_norm_forward", "eps", -1.0, ValueError),
    ("cross_entropy", "targets", np.array([0, 6, 1]), ValueError),
    ("cross_entropy", "targets", np.array([0, -1, 1]), ValueError),
    ("cross_entropy", "label_smoothing", 1.5, ValueError),
    ("cross_entropy", "label_smoothing", -0.5, ValueError),
    ("cross_entropy", "label_smoothing", float("nan"), ValueError),
    ("cross_entropy", "ignore_index", "x", TypeError),
    ("dropout", "p", -0.1, ValueError),
    ("dropout", "p", 1.1, ValueError),
    ("dropout", "p", float("nan"), ValueError),
    ("dropout", "p", None, TypeError),
    ("dropout", "seed", -1, ValueError),
    ("dropout", "seed", 2**64, ValueError),
    ("dropout", "seed", None, TypeError),
    ("dropout", "offset", 1.5, TypeError),
    ("sgd_step", "lr", "x", TypeError),
    ("adam_step", "step", 0, ValueError),
    ("adam_step", "step", "x", TypeError),
    ("adam_step", "beta1", None, TypeError),
    ("norm", "p", "x", TypeError),
    ("scale_", "factor", None, TypeError),
    ("clamp_", "lo", "x", TypeError),
]


@pytest.mark.parametrize(("name", "argument", "value", "kind"), SCALARS, ids=lambda v: str(v)[:20])
def test_bad_values(name: str, argument: str, value: Any, kind: type[Exception]) -> None:
    entry = ENTRIES[name]()
    held = [(a, a.tobytes()) for v in entry.arguments.values() for _, a in arrays_in(v)]
    with pytest.raises(kind, match=rf"\b{argument}\b|weight_ih") as caught:
        entry.call(**{argument: value})
    assert issubclass(caught.type, kind)
    for a, content in held:
        assert a.tobytes() == content


@pytest.mark.parametrize("name", list(ENTRIES))
def test_surplus_and_missing_arguments(name: str) -> None:
    entry = ENTRIES[name]()
    with pytest.raises(TypeError):
        entry.call(surplus=1)
    if entry.arguments and name not in ("Stream:reset",):
        with pytest.raises(TypeError):
            entry.function()


def test_classes_without_a_constructor() -> None:
    with pytest.raises(TypeError):
        _core.LayerTape()
    with pytest.raises((TypeError, AttributeError)):
        ENTRIES["backward:lstm"]().arguments["tape"].seq_len = 3


def test_message_format() -> None:
    """`name: expected (symbolic = actual), got`."""
    problem = random_problem("lstm", (3, 2, 4, 128))
    params = (problem.params[0], np.zeros((512, 64)), *problem.params[2:])
    want = "weight_hh: expected shape (4*H, H) = (512, 128), got (512, 64)"
    with pytest.raises(ValueError, match=f"^{re.escape(want)}$"):
        problem.with_(params=params).run()
    want = "lengths: expected shape (B,) = (2,), got (3,)"
    with pytest.raises(ValueError, match=f"^{re.escape(want)}$"):
        problem.with_(options={"lengths": np.array([1, 2, 3])}).run()


def test_enormous_sizes() -> None:
    """Products are checked before anything is allocated."""
    params = random_problem("lstm", (1, 1, 1, 4)).params
    for shape in ((2**40, 2**19, 1), (2**59, 1, 1), (1, 2**59, 1), (2**31, 2**28, 1)):
        x = np.broadcast_to(np.zeros((1, 1, 1)), shape)
        with pytest.raises((MemoryError, ValueError)):
            fr.functional.forward("lstm", x, params)
    many = np.broadcast_to(np.zeros((1, 1, 1)), (100_000, 1, 1))[:, :0]
    assert _core.forward("lstm", many, params)[0].shape == (100_000, 0, 4)


def test_long_sequences() -> None:
    """T above 65,535: a million steps work."""
    params = random_problem("gru", (1, 1, 1, 1), "float32").params
    x = np.broadcast_to(np.float32(0.5), (1_000_000, 1, 1))
    y, _, tape = fr.functional.forward("gru", x, params)
    assert abs(y[-1, 0, 0] - y[65_536, 0, 0]) < 1e-6
    dx = fr.functional.backward(tape, np.broadcast_to(np.float32(1.0), y.shape)).x
    assert np.isfinite(dx).all() and abs(dx[500_000, 0, 0] - dx[70_000, 0, 0]) < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_garbage(seed: int) -> None:
    """Random arguments for every compiled entry, in another process: death by a signal is a failure."""
    options = f"{os.environ.get('ASAN_OPTIONS', '')}:allocator_may_return_null=1"
    done = run_python("fuzz_entries.py", str(seed), timeout=240, ASAN_OPTIONS=options)
    assert_ran(done)
    assert done.stdout.splitlines()[-1].startswith("done:")
