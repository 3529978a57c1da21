"""Calls of modules: tapes, gradients, states, empty sizes, changed weights, and the short ways."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from support import HOST_CELLS, bare, make_module, states_of
from tolerances import assert_close

import fusedrnn as fr


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_backward_works_in_eval(cell: str) -> None:
    module = make_module(cell, 3, 5, 2).eval()
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    y, _, tape = module.forward(x)
    module.backward(tape, np.ones_like(y))
    trained = make_module(cell, 3, 5, 2)
    trained.load_state_dict(module.state_dict())
    trained.backward(trained.forward(x)[2], np.ones_like(y))
    assert np.array_equal(module.flat_grads, trained.flat_grads) and module.flat_grads.any()


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_gradients_accumulate(cell: str) -> None:
    """backward adds, a tape serves again, and zero_grad clears."""
    module = make_module(cell, 3, 5, 2, bidirectional=True)
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    y, _, tape = module.forward(x)
    dy = np.random.default_rng(1).normal(size=y.shape)
    dx, _ = module.backward(tape, dy)
    once = module.flat_grads.copy()
    again, _ = module.backward(tape, dy)
    assert np.array_equal(again, dx)
    assert_close(module.flat_grads, 2.0 * once, "gradient")
    module.zero_grad()
    assert not module.flat_grads.any()
    assert module.backward(tape, dy, need_dx=False)[0] is None
    assert np.array_equal(module.flat_grads, once)


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_dy_may_be_none(cell: str) -> None:
    """With a gradient of the final state alone, as with dy = 0."""
    module = make_module(cell, 3, 5, 2, bidirectional=True)
    y, state, tape = module.forward(np.random.default_rng(0).normal(size=(4, 2, 3)))
    dlast = bare(tuple(np.random.default_rng(k).normal(size=s.shape) for k, s in enumerate(states_of(state))))
    want, dwant = module.backward(tape, np.zeros_like(y), dstate=dlast)
    grads = module.flat_grads.copy()
    module.zero_grad()
    dx, dstate = module.backward(tape, None, dstate=dlast)
    assert np.array_equal(dx, want) and np.array_equal(module.flat_grads, grads) and grads.any()
    for a, b in zip(states_of(dstate), states_of(dwant), strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(ValueError, match="dy"):
        module.backward(tape)


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_outputs_of_a_tape_are_read_only(cell: str) -> None:
    module = make_module(cell, 3, 5)
    x = np.ones((4, 2, 3))
    y, state, _ = module.forward(x)
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 0.0
    assert all(s.flags.writeable for s in states_of(state))
    assert module(x)[0].flags.writeable


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_the_state_returned_is_the_callers(cell: str) -> None:
    """Writing to the final state after forward changes no gradient."""
    module = make_module(cell, 3, 5, 2)
    x = np.random.default_rng(0).normal(size=(4, 2, 3))
    y, state, tape = module.forward(x)
    want = module.backward(tape, np.ones_like(y))[0]
    for s in states_of(state):
        s[...] = np.nan
    assert np.array_equal(module.backward(tape, np.ones_like(y))[0], want)


def test_tape_nbytes() -> None:
    """In proportion to the steps, more for more layers, asked without running backward."""
    module = make_module("lstm", 3, 40, dtype="float32")

    def nbytes(steps: int, layer: Any = module) -> int:
        return int(layer.forward(np.zeros((steps, 4, 3), "float32"))[2].nbytes)

    gates_and_cell = 5 * 40 * 4 * 4
    assert nbytes(100) - nbytes(50) >= 50 * gates_and_cell * 0.8
    assert nbytes(100) - nbytes(50) <= 50 * gates_and_cell * 2.0
    assert nbytes(50, make_module("lstm", 3, 40, 2, dtype="float32")) > 1.9 * nbytes(50)
    assert "nbytes" in repr(module.forward(np.zeros((5, 4, 3), "float32"))[2])


def test_weights_changed_between_forward_and_backward() -> None:
    """Gradients are those of the forward call that made the tape, whatever happened to the weights since."""
    module = make_module("gru", 3, 5)
    x = np.random.default_rng(0).normal(size=(1, 2, 3))
    y, _, tape = module.forward(x)
    dy = np.ones_like(y)
    before = module.backward(tape, dy)[0]
    module.parameters["weight_ih_l0"] *= 2.0
    assert np.array_equal(module.backward(tape, dy)[0], before)
    assert not np.array_equal(module(x)[0], y)


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (0, 0, 3), (4, 2, 0), (0, 3)], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", HOST_CELLS)
def test_empty_sizes(cell: str, bidirectional: bool, shape: tuple[int, ...]) -> None:
    """T = 0, B = 0 and I = 0 are defined: no steps keep the state, no features leave the biases."""
    module = make_module(cell, shape[-1], 5, 2, bidirectional=bidirectional)
    x = np.zeros(shape)
    lead = states_of(module(x)[1])
    state = tuple(np.random.default_rng(k).normal(size=s.shape) for k, s in enumerate(lead))
    y, final, tape = module.forward(x, bare(state))
    out = (3 if cell == "lstm_proj" else 5) * (1 + bidirectional)
    assert y.shape == (*shape[:-1], out)
    dx, dstate = module.backward(tape, np.ones(y.shape), dstate=bare(state))
    assert dx.shape == shape
    if shape[0] == 0:
        for got, want in zip(states_of(final) + states_of(dstate), state * 2, strict=True):
            assert np.array_equal(got, want)
        assert not module.flat_grads.any()
    if shape == (4, 2, 0):
        with_inputs = make_module(cell, 1, 5, 2, bidirectional=bidirectional)
        rest = module.state_dict()
        with_inputs.load_state_dict({n: p for n, p in rest.items() if p.size}, strict=False)
        assert_close(y, with_inputs(np.zeros((4, 2, 1)), bare(state))[0], "output")


@pytest.mark.parametrize("how", ["state", "x"])
def test_results_do_not_alias_the_inputs(how: str) -> None:
    module = make_module("gru", 5, 5)
    x, state = np.ones((1, 2, 5)), np.ones((1, 2, 5))
    y, final = module(x[:0] if how == "state" else x, state)
    final[...] = 7.0
    y[...] = 7.0
    assert (x == 1.0).all() and (state == 1.0).all()


def test_no_change_of_the_weights_is_missed() -> None:
    """Packed weights follow every way of writing to the parameters, with views handed out or not."""
    x = np.ones((2, 3, 4), np.float32)

    def fresh(module: Any) -> None:
        """The module agrees with one that has packed nothing yet."""
        np.testing.assert_array_equal(module(x)[0], copy.deepcopy(module)(x)[0])

    lstm, other = fr.LSTM(4, 5, seed=0), fr.LSTM(4, 5, seed=1)
    seen = [lstm(x)[0]]

    def changed() -> None:
        fresh(lstm)
        seen.append(lstm(x)[0])
        assert not np.array_equal(seen[-1], seen[-2])

    lstm.load_state_dict(other.state_dict())
    changed()
    optimizer = fr.optim.SGD(lstm, lr=0.5)
    y, _, tape = lstm.forward(x)
    lstm.backward(tape, y)
    optimizer.step()
    changed()
    held = lstm.parameters["weight_hh_l0"]
    held += 0.1
    changed()
    optimizer.step()
    changed()
    held -= 0.1
    changed()
    lstm.flat_parameters[:] *= 0.5
    changed()
    parent = fr.Module()
    parent.rnn = lstm
    parent.load_state_dict({f"rnn.{name}": array for name, array in other.state_dict().items()})
    changed()
    parent.parameters["rnn.bias_ih_l0"][0] += 1
    changed()
    cell = fr.GRUCell(4, 5, seed=0)
    before = cell(x[0])
    cell.load_state_dict({name: 2 * array for name, array in cell.state_dict().items()})
    assert not np.array_equal(cell(x[0]), before)


@pytest.mark.parametrize("cell", HOST_CELLS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plain_calls_equal_general_ones(cell: str, dtype: str) -> None:
    """A call without options takes a short cut; any option leads past it."""
    module = make_module(cell, 5, 9, dtype=dtype)
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 5), (4, 3, 5), (1, 1, 5), (0, 3, 5), (4, 0, 5)):
        x = rng.standard_normal(shape).astype(dtype)
        state = None
        for _ in range(2):
            lengths = np.full(shape[1], shape[0])
            expected, expected_state = module(x, state, lengths=lengths)
            y, found = module(x, state)
            np.testing.assert_array_equal(y, expected)
            assert y.flags.writeable
            assert type(found) is type(expected_state)
            for got, want in zip(states_of(found), states_of(expected_state), strict=True):
                np.testing.assert_array_equal(got, want)
            # Arrays that have to be copied first, and a state of another kind of sequence.
            np.testing.assert_array_equal(module(np.asfortranarray(x), state)[0], expected)
            if isinstance(state, tuple):
                np.testing.assert_array_equal(module(x, list(state))[0], expected)
            state = found
    with pytest.raises(TypeError):
        module(x.astype("float16"))
    with pytest.raises(ValueError, match=r"^state"):
        module(np.zeros((1, 2, 5), dtype), state)


@pytest.mark.parametrize("cell", HOST_CELLS)
@pytest.mark.parametrize("recompute", [False, True])
def test_plain_training_equals_the_general_one(cell: str, recompute: bool) -> None:
    module = make_module(cell, 5, 9, dtype="float64")
    module.recompute = recompute
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 5), (4, 3, 5), (0, 3, 5), (4, 0, 5)):
        x = rng.standard_normal(shape)
        state = module(rng.standard_normal((1, shape[1], 5)))[1]
        results = []
        for options in ({"lengths": np.full(shape[1], shape[0])}, {}):
            module.zero_grad()
            y, final, tape = module.forward(x, state, **options)
            assert not y.flags.writeable
            dx, dstate = module.backward(tape, np.ones_like(y), final)
            grads = [grad.copy() for grad in module.grads.values()]
            results.append([y, *states_of(final), dx, *states_of(dstate), *grads])
        for want, got in zip(*results, strict=True):
            np.testing.assert_array_equal(got, want)
        assert module.backward(tape, np.ones_like(y), need_dx=False)[0] is None
