"""A tape holds what forward was given: what happens to the arrays' attributes later does not reach it.

Whether their values were changed is found on request.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support import assert_ran, run_python

import fusedrnn as fr

T, B, I, H = 12, 8, 6, 8
Arrays = dict[str, np.ndarray[Any, Any]]


def arrays(width: int = H, rows: int = 1) -> Arrays:
    """Return x, states, resets and replacements, each with memory of its own."""
    rng = np.random.default_rng(0)
    made = {
        "x": rng.standard_normal((T, B, I)),
        "h": rng.standard_normal((rows, B, width)),
        "c": rng.standard_normal((rows, B, width)),
        "reset_h": rng.standard_normal((rows, B, width)),
        "reset_c": rng.standard_normal((rows, B, width)),
    }
    result: Arrays = {name: array.astype(np.float32) for name, array in made.items()}
    return {**result, "resets": rng.random((T, B)) < 0.2}


# A run of forward returns what it reads by name, and a function that runs backward and returns all gradients.
Run = Callable[[], tuple[Arrays, Callable[[], list[Any]]]]


def recurrent(kind: str, extra: bool = True, **options: Any) -> Run:
    def run() -> tuple[Arrays, Callable[[], list[Any]]]:
        module = getattr(fr, kind)(I, H, seed=0, **options)
        a = arrays(rows=module.num_layers * (2 if module.bidirectional else 1))
        if module.batch_first:
            a |= {name: a[name].swapaxes(0, 1).copy() for name in ("x", "resets")}
        state, reset = (
            (a["h"], a["reset_h"]) if kind != "LSTM" else ((a["h"], a["c"]), (a["reset_h"], a["reset_c"]))
        )
        lengths = np.arange(B) + T - B
        y, _, tape = (
            module.forward(a["x"], state, lengths, a["resets"], reset)
            if extra
            else module.forward(a["x"], state)
        )
        used = [] if kind != "LSTM" else ["c", "reset_c"]
        names = ["x", "h", *used[:1], *(["resets", "reset_h", *used[1:]] if extra else [])]
        dy = np.ones(y.shape, np.float32)

        def backward() -> list[Any]:
            dx, dstate = module.backward(tape, dy)
            return [dx, dstate, module.flat_grads]

        return {**{name: a[name] for name in names}, "y": y}, backward

    return run


def functional(cell: str, reverse: bool) -> Run:
    def run() -> tuple[Arrays, Callable[[], list[Any]]]:
        a, gates = arrays(), fr.CELLS[cell].gates
        rng = np.random.default_rng(1)
        params = [rng.standard_normal(s).astype(np.float32) for s in ((gates * H, I), (gates * H, H))]
        state, reset = a["h"][0].copy(), a["reset_h"][0].copy()
        y, _, tape = fr.functional.forward(
            cell, a["x"], params, state, resets=a["resets"], reset_state=reset, reverse=reverse
        )
        dy = np.ones((T, B, H), np.float32)
        used = {"x": a["x"], "h": state, "resets": a["resets"], "reset_h": reset, "y": y}
        return used, lambda: list(fr.functional.backward(tape, dy))

    return run


def cell(kind: str) -> Run:
    def run() -> tuple[Arrays, Callable[[], list[Any]]]:
        module, a = getattr(fr, kind)(I, H, seed=0), arrays()
        x, h = a["x"][0].copy(), a["h"][0].copy()
        _, tape = module.forward(x, h)
        dh = np.ones((B, H), np.float32)
        return {"x": x, "h": h}, lambda: [*module.backward(tape, dh), module.flat_grads]

    return run


def layer(kind: str) -> Run:
    def run() -> tuple[Arrays, Callable[[], list[Any]]]:
        module = {"Linear": lambda: fr.Linear(I, H, seed=0), "LayerNorm": lambda: fr.LayerNorm(I)}[kind]()
        x = arrays()["x"]
        y, tape = module.forward(x)
        dy = np.random.default_rng(2).standard_normal(y.shape).astype(np.float32)
        return {"x": x}, lambda: [module.backward(tape, dy), module.flat_grads]

    return run


def embedding() -> tuple[Arrays, Callable[[], list[Any]]]:
    module, indices = fr.Embedding(9, I, seed=0), np.arange(T * B).reshape(T, B) % 9
    y, tape = module.forward(indices)
    dy = np.ones(y.shape, np.float32)

    def backward() -> list[Any]:
        module.backward(tape, dy)
        return [module.flat_grads]

    return {"indices": indices}, backward


RUNS: dict[str, Run] = {
    "LSTM": recurrent("LSTM"),
    "LSTM plain": recurrent("LSTM", False),
    "GRU": recurrent("GRU"),
    "GRU plain": recurrent("GRU", False),
    "RNN": recurrent("RNN", batch_first=True),
    "recompute": recurrent("LSTM", recompute=True),
    "recompute plain": recurrent("GRU", False, recompute=True),
    "stack": recurrent("GRU", num_layers=2, bidirectional=True),
    "functional": functional("gru", False),
    "reverse": functional("rnn_tanh", True),
    "GRUCell": cell("GRUCell"),
    "Linear": layer("Linear"),
    "LayerNorm": layer("LayerNorm"),
    "Embedding": embedding,
}


def flat(values: list[Any]) -> list[bytes]:
    found: list[bytes] = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += flat(list(value))
        elif value is not None:
            found.append(value.tobytes())
    return found


def changes_of(array: Any) -> Iterator[tuple[str, Any]]:
    """Yield attributes and values that NumPy lets one set."""
    yield "shape", array.shape[::-1]
    yield "shape", (-1,)
    yield "shape", (1, 1, 1, *array.shape)
    yield "shape", (-1, array.shape[-1])
    yield "dtype", np.dtype(f"u{array.itemsize}")
    yield "dtype", np.dtype("u1")
    yield "strides", (0,) * array.ndim


def check_attributes(name: str) -> None:
    """Gradients keep their bits whatever is set on the arrays between forward and backward."""
    _, backward = RUNS[name]()
    want = flat(backward())
    used, _ = RUNS[name]()
    for key, array in used.items():
        for attribute, value in changes_of(array):
            again, backward = RUNS[name]()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                setattr(again[key], attribute, value)
            assert flat(backward()) == want, (name, key, attribute, value)


@pytest.mark.parametrize("name", RUNS)
def test_attributes_set_after_forward(name: str) -> None:
    assert_ran(run_python("-c", f"import test_tapes\ntest_tapes.check_attributes({name!r})"))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("before", [False, True])
def test_a_layout_that_changes_after_forward(before: bool, layers: int) -> None:
    x = arrays()["x"]
    net = fr.GRU(I, H, layers, batch_first=before, seed=0)
    y, _, tape = net.forward(x)
    expected, dstate = net.backward(tape, np.ones_like(y))
    net.batch_first = not before
    dx, changed = net.backward(tape, np.ones_like(y))
    assert np.array_equal(dx, expected) and np.array_equal(changed, dstate)


def test_a_new_shape_does_not_move_memory() -> None:
    """Sizes at which reading or writing by the new shape leaves the arrays by far."""
    script = """
import numpy as np, fusedrnn as fr
module = fr.LSTM(64, 32, seed=0)
for shape in (8, 4000, 64), (-1, 64), (-1,):
    x = np.ones((4000, 8, 64), "float32")
    y, _, tape = module.forward(x)
    dy = np.ones_like(y)
    x.shape = shape
    y.shape = (-1,)
    dx, _ = module.backward(tape, dy)
    assert dx.shape == (4000, 8, 64)
"""
    assert_ran(run_python("-W", "ignore::DeprecationWarning", "-c", script))


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("rows", [3, 200], ids=["table", "rows"])
def test_a_look_up_that_changes_after_forward(rows: int, functional: bool) -> None:
    """Its indices, and the shapes of its arrays."""

    def backward(change: Callable[[fr.Lookup], None]) -> list[bytes]:
        rng = np.random.default_rng(0)
        x = fr.Lookup(rng.standard_normal((rows, I)), rng.integers(0, rows, (T, B)))
        params = [rng.standard_normal(shape) for shape in ((3 * H, I), (3 * H, H))]
        module = fr.GRU(I, H, dtype="float64", seed=0)
        y, _, tape = fr.functional.forward("gru", x, params) if functional else module.forward(x)
        dy = np.ones_like(y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            change(x)
        if functional:
            return flat(list(fr.functional.backward(tape, dy)))
        return flat([*module.backward(tape, dy), module.flat_grads])

    want = backward(lambda x: None)
    assert backward(lambda x: x.indices.fill(0)) == want
    assert backward(lambda x: x.indices.fill(10**9)) == want
    assert backward(lambda x: setattr(x.indices, "shape", (-1,))) == want
    assert backward(lambda x: setattr(x.table, "shape", (-1,))) == want
    assert backward(lambda x: setattr(x.table, "shape", (I, rows))) == want


@pytest.fixture
def detecting() -> Iterator[None]:
    fr.set_detect_changes(True)
    yield
    fr.set_detect_changes(False)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "Embedding"])
def test_changed_values_are_found(name: str, detecting: None) -> None:
    """Any element of any array that backward reads, unless forward had to copy the array."""
    used, backward = RUNS[name]()
    want = flat(backward())
    copied = {"resets"} if name == "RNN" else set()  # with the batch first
    for key in used.keys() - copied:
        for part in 0, 0.5, 1:
            again, backward = RUNS[name]()
            elements = again[key]
            elements.flags.writeable = True
            elements = elements.reshape(-1)
            position = int(part * (elements.size - 1))
            kept = elements[position]
            elements[position] = not kept if elements.dtype == np.bool_ else kept + 1
            with pytest.raises(RuntimeError, match="got changed values"):
                backward()
            elements[position] = kept
            assert flat(backward()) == want


def test_an_embedding_keeps_its_indices(detecting: None) -> None:
    _, backward = embedding()
    want = flat(backward())
    again, backward = embedding()
    again["indices"][:] = 0
    assert flat(backward()) == want


def test_the_changed_array_is_named(detecting: None) -> None:
    module = fr.LSTM(I, H, seed=0)
    a = arrays()
    _, _, tape = module.forward(a["x"], (a["h"], a["c"]))
    before = module.flat_grads.copy()
    a["c"][0, 1, 2] += 1
    with pytest.raises(RuntimeError, match=r"tape: expected state\[1\] as it was after forward"):
        module.backward(tape, np.ones((T, B, H), np.float32))
    assert np.array_equal(module.flat_grads, before)


def test_not_a_number_is_no_change(detecting: None) -> None:
    module, x = fr.GRU(I, H, seed=0), np.full((T, B, I), np.nan, np.float32)
    y, _, tape = module.forward(x)
    module.backward(tape, np.ones_like(y))


def test_changes_are_not_looked_for_by_default() -> None:
    module, x = fr.GRU(I, H, seed=0), np.ones((T, B, I), np.float32)
    y, _, tape = module.forward(x)
    x[:] = 0
    module.backward(tape, np.ones_like(y))
    with pytest.raises(TypeError, match="enabled: expected a bool"):
        fr.set_detect_changes(1)  # type: ignore[arg-type]
