"""The reference itself, by central differences: T=3, B=2, I=3, H=4."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from support import CELLS, numeric_gradient, random_params, random_problem, random_state
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

pytestmark = pytest.mark.once

T, B, I, H = 3, 2, 3, 4

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reverse": {"reverse": True},
    "lengths": {"lengths": np.array([2, 0])},
    "lengths_reverse": {"lengths": np.array([3, 2]), "reverse": True},
    "resets": {"resets": np.array([[True, False], [False, False], [False, True]])},
    "resets_reverse": {"resets": np.array([[True, False], [False, True], [True, True]]), "reverse": True},
    "resets_lengths": {
        "resets": np.array([[False, True], [True, False], [False, True]]),
        "lengths": np.array([3, 2]),
    },
}


def total(y: Any, state: Any, dy: Any, dstate: Any) -> float:
    """A scalar whose gradients with respect to y and the final state are dy and dstate."""
    return float(np.sum(y * dy) + sum(np.sum(s * d) for s, d in zip(state, dstate, strict=True)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("cell", "proj"), [*((cell, 0) for cell in CELLS), ("lstm", 2)])
def test_gradients(cell: str, proj: int, options: dict[str, Any]) -> None:
    problem = random_problem(cell, (T, B, I, H), proj=proj, seed=3, **options)
    if "resets" in options and options.get("lengths") is not None:
        state_rows = random_state(np.random.default_rng(7), cell, (B,), H, proj)
        problem = problem.with_(options={**options, "reset_state": state_rows})

    def value() -> float:
        y, state, _ = problem.run_reference()
        return total(y, state, problem.dy, problem.dstate)

    dx, dstate, dparams = reference.backward(problem.run_reference()[2], problem.dy, problem.dstate)
    pairs = [
        (problem.x, dx),
        *zip(problem.state, dstate, strict=True),
        *zip(problem.params, dparams, strict=True),
    ]
    for at, gradient in pairs:
        if at is None:
            assert gradient is None
            continue
        assert relative_error(gradient, numeric_gradient(value, at)) <= CENTRAL_DIFFERENCES


@pytest.mark.parametrize("cell", CELLS)
def test_stack_gradients(cell: str) -> None:
    rng = np.random.default_rng(5)
    layers = [[random_params(rng, cell, width, H) for _ in range(2)] for width in (I, 2 * H)]
    x, dy = rng.normal(size=(T, B, I)), rng.normal(size=(T, B, 2 * H))
    state, dstate = (random_state(rng, cell, (4, B), H) for _ in range(2))
    options = {"lengths": np.array([2, 3]), "resets": np.array([[False, True], [True, False], [False, True]])}

    def value() -> float:
        y, final, _ = reference.stack_forward(cell, x, layers, state, **options)
        return total(y, final, dy, dstate)

    tapes = reference.stack_forward(cell, x, layers, state, **options)[2]
    dx, dinitial, dparams = reference.stack_backward(tapes, dy, dstate)
    assert relative_error(dx, numeric_gradient(value, x)) <= CENTRAL_DIFFERENCES
    for at, gradient in zip(state, dinitial, strict=True):
        assert relative_error(gradient, numeric_gradient(value, at)) <= CENTRAL_DIFFERENCES
    for layer, grads in zip(layers, dparams, strict=True):
        for params, gradients in zip(layer, grads, strict=True):
            for at, gradient in zip(params[:4], gradients[:4], strict=True):
                assert relative_error(gradient, numeric_gradient(value, at)) <= CENTRAL_DIFFERENCES


@pytest.mark.parametrize("cell", CELLS)
def test_segment_borders_both_ways(cell: str) -> None:
    """resets[2] cuts a row of four steps into [0, 1] and [2, 3]; in either direction each runs on its own."""
    rng = np.random.default_rng(9)
    params, x = random_params(rng, cell, I, H), rng.normal(size=(4, 1, I))
    state = random_state(rng, cell, (1,), H)
    resets = np.array([[False], [False], [True], [False]])
    for reverse in (False, True):
        y, final, _ = reference.forward(cell, x, params, state, resets=resets, reverse=reverse)
        first = reference.forward(cell, x[:2], params, None if reverse else state, reverse=reverse)
        second = reference.forward(cell, x[2:], params, state if reverse else None, reverse=reverse)
        assert np.array_equal(y, np.concatenate([first[0], second[0]]))
        assert np.array_equal(final[0], (first if reverse else second)[1][0])


def test_reset_at_the_first_step() -> None:
    """Forward it replaces the initial state; backwards it changes nothing."""
    problem = random_problem("gru", (3, 1, I, H), seed=4)
    resets = np.array([[True], [False], [False]])
    for reverse in (False, True):
        y = problem.with_(options={"resets": resets, "reverse": reverse}).run_reference()[0]
        start = problem.state if reverse else None
        assert np.array_equal(y, problem.with_(state=start, options={"reverse": reverse}).run_reference()[0])


def test_length_zero_keeps_the_initial_state() -> None:
    problem = random_problem("lstm", (3, 2, I, H), lengths=np.array([0, 3]))
    y, final, tape = problem.run_reference()
    assert not y[:, 0].any()
    assert np.array_equal(final[0][0], problem.state[0][0]) and np.array_equal(
        final[1][0], problem.state[1][0]
    )
    dx, dstate, _ = reference.backward(tape, problem.dy, problem.dstate)
    assert not dx[:, 0].any()
    assert np.array_equal(dstate[0][0], problem.dstate[0][0])


@pytest.mark.parametrize("proj", [0, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_agrees_with_torch(cell: str, proj: int) -> None:
    """Two bidirectional layers in float64: outputs, final states and all gradients."""
    torch = pytest.importorskip("torch")
    proj = proj if cell == "lstm" else 0
    name, extra = {
        "lstm": ("LSTM", {"proj_size": proj}),
        "gru": ("GRU", {}),
        "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
        "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    }[cell]
    module = getattr(torch.nn, name)(I, 5, 2, bidirectional=True, dtype=torch.float64, **extra)
    weights = dict(module.named_parameters())
    layers = [
        [
            tuple(
                weights[f"{n}_l{k}{s}"].detach().numpy() if f"{n}_l{k}{s}" in weights else None
                for n in reference.PARAM_NAMES
            )
            for s in ("", "_reverse")
        ]
        for k in range(2)
    ]
    rng = np.random.default_rng(2)
    x, state = rng.normal(size=(7, B, I)), random_state(rng, cell, (4, B), 5, proj)
    tx = torch.tensor(x, requires_grad=True)
    tstate = [torch.tensor(s, requires_grad=True) for s in state]
    ty, tfinal = module(tx, tuple(tstate) if len(tstate) > 1 else tstate[0])
    tfinal = tfinal if isinstance(tfinal, tuple) else (tfinal,)
    y, final, tapes = reference.stack_forward(cell, x, layers, state)
    dy, dstate = rng.normal(size=y.shape), tuple(rng.normal(size=s.shape) for s in final)
    torch.autograd.backward([ty, *tfinal], [torch.tensor(d) for d in (dy, *dstate)])
    dx, dinitial, dparams = reference.stack_backward(tapes, dy, dstate)
    pairs = [(y, ty.detach()), (dx, tx.grad), *zip(final, (t.detach() for t in tfinal), strict=True)]
    pairs += [(d, t.grad) for d, t in zip(dinitial, tstate, strict=True)]
    for k, grads in enumerate(dparams):
        for s, gradients in zip(("", "_reverse"), grads, strict=True):
            for n, gradient in zip(reference.PARAM_NAMES, gradients, strict=True):
                if gradient is not None:
                    pairs.append((gradient, weights[f"{n}_l{k}{s}"].grad))
    for got, want in pairs:
        assert_close(got, want.numpy(), "gradient")
