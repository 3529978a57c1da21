"""Masks: the state passes through the steps that are left out, wherever they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import HOST_CELLS, Array, bare, make_module, states_of
from tolerances import assert_close

import fusedrnn as fr

T, B, I, H = 9, 5, 3, 6


def problem(seed: int = 0) -> tuple[Array, Array]:
    """x, and a mask with holes, a row that is padded at the left, a full one and an empty one."""
    rng = np.random.default_rng(seed)
    mask = rng.random((T, B)) < 0.6
    mask[:, 1] = np.arange(T) >= 4
    mask[:, 2] = True
    mask[:, 3] = False
    return rng.normal(size=(T, B, I)), mask


@pytest.mark.parametrize("layout", ["time", "batch_first"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", HOST_CELLS)
def test_as_without_the_steps(cell: str, bidirectional: bool, layers: int, layout: str) -> None:
    """Each sequence gives what it gives with the steps cut out, gradients included."""
    x, mask = problem()
    rng = np.random.default_rng(1)
    module = make_module(cell, I, H, layers, bidirectional=bidirectional, batch_first=layout == "batch_first")
    alone = make_module(cell, I, H, layers, bidirectional=bidirectional)
    alone.load_state_dict(module.state_dict())

    def turn(array: Array) -> Array:
        return array.swapaxes(0, 1) if layout == "batch_first" else array

    shapes = [s.shape for s in states_of(module(turn(x))[1])]
    state = tuple(rng.normal(size=shape) for shape in shapes)
    dstate = tuple(rng.normal(size=shape) for shape in shapes)
    hidden = x.copy()
    hidden[~mask] = np.nan
    y, final, tape = module.forward(turn(hidden), bare(state), mask=turn(mask))
    assert not y.flags.writeable
    called, _ = module(turn(hidden), bare(state), mask=turn(mask))
    assert np.array_equal(called, y)
    dy = rng.normal(size=y.shape)
    nan = turn(dy.copy())
    nan[~mask] = np.nan
    dx, dstart = module.backward(tape, turn(nan), bare(dstate))
    y, dx = turn(y), turn(dx)
    assert not y[~mask].any() and not dx[~mask].any()
    for b in range(B):
        at = mask[:, b]
        part = bare(tuple(np.ascontiguousarray(s[:, b]) for s in state))
        y_b, final_b, tape_b = alone.forward(np.ascontiguousarray(x[at, b]), part)
        dpart = bare(tuple(np.ascontiguousarray(s[:, b]) for s in dstate))
        dx_b, dstart_b = alone.backward(tape_b, np.ascontiguousarray(turn(dy)[at, b]), dpart)
        assert_close(y[at, b], y_b, "output")
        assert_close(dx[at, b], dx_b, "gradient")
        for got, want in zip(
            states_of(final) + states_of(dstart), states_of(final_b) + states_of(dstart_b), strict=True
        ):
            assert_close(got[:, b], want, "output")
    assert_close(module.flat_grads, alone.flat_grads, "gradient")


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_prefixes_are_lengths(cell: str) -> None:
    x, _ = problem()
    lengths = np.array([3, 9, 0, 5, 1])
    mask = np.arange(T)[:, None] < lengths
    module = make_module(cell, I, H, 2, bidirectional=True)
    want, want_state = module(x, lengths=lengths)
    for options in ({"mask": mask}, {"mask": np.ones_like(mask), "lengths": lengths}):
        y, state = module(x, **options)
        assert np.array_equal(y, want)
        for got, expected in zip(states_of(state), states_of(want_state), strict=True):
            assert np.array_equal(got, expected)


def test_one_sequence_and_look_ups() -> None:
    lstm = fr.LSTM(I, H, dtype="float64", seed=0)
    embedding = fr.Embedding(3, I, dtype="float64", seed=1)
    tokens = np.random.default_rng(2).integers(0, 3, T)
    mask = np.arange(T) % 3 != 1
    y, _, tape = lstm.forward(embedding.lookup(tokens), mask=mask)
    want, _, want_tape = lstm.forward(embedding.lookup(tokens[mask]))
    assert np.array_equal(y[mask], want)
    dy = np.ones_like(y)
    assert np.array_equal(lstm.backward(tape, dy)[0], lstm.backward(want_tape, dy[mask])[0])
    rows = lstm.forward(embedding(tokens), mask=mask)[2]
    dx, _ = lstm.backward(rows, dy)
    assert dx.shape == (T, I) and not dx[~mask].any()
    assert lstm.backward(rows, dy, need_dx=False)[0] is None
    assert rows.nbytes > lstm.forward(embedding(tokens[mask]))[2].nbytes
    y, (h, _) = lstm(embedding(tokens), mask=np.zeros(T, bool))
    assert not y.any() and not h.any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_resets_move_to_the_next_step_that_counts(bidirectional: bool) -> None:
    x, mask = problem()
    gru = fr.GRU(I, H, dtype="float64", seed=0, bidirectional=bidirectional)
    resets = np.random.default_rng(3).random((T, B)) < 0.4
    moved = np.zeros_like(resets)
    for b in range(B):
        pending = False
        for t in range(T):
            pending = pending or resets[t, b]
            if mask[t, b]:
                moved[t, b], pending = pending, False
    state = np.ones((1 + bidirectional, B, H))
    y, final = gru(x, state, resets=resets, mask=mask)
    for b in range(B):
        at = mask[:, b]
        want, want_final = gru(
            np.ascontiguousarray(x[at, b]), state[:, b].copy(), resets=np.ascontiguousarray(moved[at, b])
        )
        assert_close(y[at, b], want, "output")
        assert_close(final[:, b], want_final, "output")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"mask": np.ones((T, B))}, TypeError, r"^mask: expected bool, got float64"),
        (
            {"mask": np.ones((B, T), bool)},
            ValueError,
            r"^mask: expected shape \(T, B\) = \(9, 5\), got \(5, 9\)",
        ),
        ({"mask": np.ones((T, B), bool), "lengths": [1]}, ValueError, r"^lengths: expected shape \(B,\)"),
        ({"mask": np.ones((T, B), bool), "lengths": [10] * B}, ValueError, r"^lengths: expected values"),
        ({"mask": np.ones((T, B), bool), "lengths": [1.0] * B}, TypeError, r"^lengths: "),
        ({"mask": np.ones((T, B), bool), "resets": np.ones((T, 1), bool)}, ValueError, r"^resets: "),
    ],
    ids=str,
)
def test_errors(options: dict[str, Any], error: type[Exception], match: str) -> None:
    gru = fr.GRU(I, H, dtype="float64", seed=0)
    x = np.ones((T, B, I))
    for call in (gru, gru.forward):
        with pytest.raises(error, match=match):
            call(x, **options)
        for wrong in (None, x[..., :1], x[0, 0]):
            with pytest.raises((TypeError, ValueError), match=r"^x: expected"):
                call(wrong, mask=np.ones((T, B), bool))  # type: ignore[arg-type]
    y, _, tape = gru.forward(x, mask=np.ones((T, B), bool))
    with pytest.raises(ValueError, match=r"^dy: expected shape \(9, 5, 6\), got \(8, 5, 6\)"):
        gru.backward(tape, y[1:])


@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_functions_as_modules(reverse: bool, lookup: bool) -> None:
    """Both give the same bits, with lengths, resets and states, gradients included."""
    x, mask = problem()
    rng = np.random.default_rng(4)
    gru = fr.GRU(I, H, dtype="float64", seed=0, bidirectional=True)
    suffix = "_l0_reverse" if reverse else "_l0"
    params = {
        name: gru.parameters[name + suffix] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    options = {"mask": mask, "lengths": np.array([9, 8, 7, 6, 5]), "resets": rng.random((T, B)) < 0.2}
    state = rng.normal(size=(2, B, H))
    given = fr.Lookup(x[0], rng.integers(0, B, (T, B))) if lookup else x
    y, final, tape = gru.forward(given, state, reset_state=state, **options)
    part, columns = int(reverse), slice(H, None) if reverse else slice(H)
    one = fr.functional.forward(
        "gru", given, params, state[part], reset_state=state[part], reverse=reverse, **options
    )
    assert np.array_equal(one[0], y[..., columns]) and np.array_equal(one[1], final[part])
    assert not one[0].flags.writeable and one[2].nbytes > 0
    dy, dstate = np.zeros_like(y), np.zeros_like(state)
    dy[..., columns], dstate[part] = rng.normal(size=(T, B, H)), rng.normal(size=(B, H))
    dx, dstart = gru.backward(tape, dy, dstate)
    got = fr.functional.backward(one[2], dy[..., columns].copy(), dstate[part])
    assert np.array_equal(got.x, dx) and np.array_equal(got.state, dstart[part])
    for name in params:
        assert np.array_equal(got.params[name], gru.grads[name + suffix])
    assert fr.functional.backward(one[2], None, dstate[part], need_dx=False).x is None
    with pytest.raises(ValueError, match=r"^dy: expected shape \(9, 5, 6\), got \(8, 5, 6\)"):
        fr.functional.backward(one[2], one[0][1:])


@pytest.mark.parametrize("layout", ["time", "batch_first", "single"])
def test_quantized_networks(layout: str) -> None:
    """As with the steps cut out."""
    x, mask = problem()
    x = x.astype(np.float32)
    network = fr.LSTM(I, H, 2, bidirectional=layout != "single", batch_first=layout == "batch_first", seed=0)
    small = network.quantize("int8")
    resets = np.random.default_rng(5).random((T, B)) < 0.3
    if layout == "single":
        x, mask, resets = x[:, 0].copy(), mask[:, 0], resets[:, 0] & mask[:, 0]
        y, final = small(x, mask=mask, resets=resets)
        want, want_final = small(x[mask], resets=resets[mask])
        assert np.array_equal(y[mask], want) and not y[~mask].any()
        assert all(map(np.array_equal, final, want_final))
        return
    resets &= mask
    turn = (lambda a: a.swapaxes(0, 1).copy()) if layout == "batch_first" else (lambda a: a)
    y, final = small(turn(x), mask=turn(mask), resets=turn(resets))
    y = turn(y)
    assert not y[~mask].any()
    for b in range(B):
        at = mask[:, b]
        want, want_final = small(turn(x[at, b][:, None]), resets=turn(resets[at, b][:, None]))
        assert np.array_equal(y[at, b], turn(want)[:, 0])
        assert all(np.array_equal(f[:, b], w[:, 0]) for f, w in zip(final, want_final, strict=True))


def test_errors_of_functions_and_quantized_networks() -> None:
    x, ones = np.ones((T, B, I), np.float32), np.ones((T, B), bool)
    lstm = fr.LSTM(I, H, seed=0)
    params = {name.removesuffix("_l0"): array for name, array in lstm.parameters.items()}
    for call in (lambda x, **o: fr.functional.forward("lstm", x, params, **o), lstm.quantize("bf16")):
        with pytest.raises(TypeError, match=r"^mask: expected bool, got float64"):
            call(x, mask=np.ones((T, B)))
        with pytest.raises(ValueError, match=r"^mask: expected shape \(T, B\) = \(9, 5\), got \(5, 9\)"):
            call(x, mask=ones.T)
        for wrong in (None, x[0, 0]):
            with pytest.raises((TypeError, ValueError), match=r"^x: expected"):
                call(wrong, mask=ones)
