"""Sequential and Stateful one step at a time: the rows of the call over the whole sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

import fusedrnn as fr

pytestmark = pytest.mark.once

WIDE: Any = {"dtype": "float64"}
STEPS, SIZE = 9, 6


def layers() -> list[fr.Module]:
    return [
        fr.Linear(SIZE, SIZE, seed=0, **WIDE),
        fr.LayerNorm(SIZE, **WIDE),
        fr.GELU(),
        fr.LSTM(SIZE, SIZE, 2, dropout=0.5, seed=1, **WIDE),
        fr.Dropout(0.5, seed=2),
        fr.Residual(fr.Sequential(fr.GRU(SIZE, SIZE, seed=3, **WIDE), fr.Tanh())),
        fr.Concat(fr.Sequential(), fr.RNN(SIZE, SIZE, seed=4, **WIDE), fr.Sigmoid()),
        fr.BatchNorm(3 * SIZE, **WIDE),
        fr.Linear(3 * SIZE, SIZE, seed=5, **WIDE),
        fr.SelfAttention(SIZE, 2, True, seed=6, **WIDE),
        fr.Hybrid(SIZE, dropout=0.5, seed=7, **WIDE),
        fr.Softmax(),
    ]


MODELS: dict[str, Callable[[], Any]] = {
    "sequential": lambda: fr.Sequential(*layers()),
    "named": lambda: fr.Sequential({f"layer {i}": module for i, module in enumerate(layers())}),
    "stateful": lambda: fr.Stateful(
        fr.Linear(SIZE, SIZE, seed=0, **WIDE),
        fr.LSTM(SIZE, SIZE, seed=1, **WIDE),
        fr.Stateful(fr.GRU(SIZE, SIZE, seed=2, **WIDE), fr.ReLU()),
    ),
    "mixed": lambda: fr.Sequential(fr.Stateful(fr.GRU(SIZE, SIZE, seed=2, **WIDE)), fr.Tanh()),
    "start": lambda: fr.Sequential(
        fr.GRU(SIZE, SIZE, learned_state=True, batch_first=True, seed=1, **WIDE), fr.ReLU()
    ),
}


def steps_of(batch: int) -> Any:
    return np.random.default_rng(batch).standard_normal((STEPS, batch, SIZE))


def settled(model: Any) -> Any:
    """The model with statistics of its own and a start that is not zero, in training mode."""
    for name, array in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            array[...] = np.random.default_rng(0).uniform(0.5, 2.0, array.shape)
    for name, array in model.parameters.items():
        if "initial" in name or "state" in name:
            array[...] = 0.3
    return model.train()


def whole(model: Any, x: Any) -> Any:
    """y of the call in evaluation mode, laid out by time."""
    first = next(iter(model))
    swapped = getattr(first, "batch_first", False)
    y = model.eval()(x.swapaxes(0, 1) if swapped else x)
    y = y[0] if model.has_state else y
    return y.swapaxes(0, 1) if swapped else y


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_steps_equal_the_sequence(name: str, batch: int) -> None:
    """Whatever mode the model is in, and twice: after a reset, too."""
    model, x = settled(MODELS[name]()), steps_of(batch)
    step = model.stream(batch)
    found = [np.stack([step(part).copy() for part in x])]
    step.reset()
    found.append(np.stack([step(part).copy() for part in x]))
    assert model.training and not int(model.state_dict().get("7.num_batches_tracked", 0))
    want = whole(model, x)
    for y in found:
        assert_close(y, want, "output")
    if batch == 1:
        step.reset()
        assert_close(np.stack([step(part[0]).copy() for part in x]), want[:, 0], "output")


def test_tokens() -> None:
    model = fr.Sequential(fr.Embedding(50, 16, seed=0), fr.GRU(16, 32, seed=1), fr.Linear(32, 50, seed=2))
    tokens = np.random.default_rng(0).integers(0, 50, (STEPS, 4))
    step, want = model.stream(4), model(tokens)
    for row, y in zip(tokens, want, strict=True):
        assert_close(step(row), y, "output")


@pytest.mark.parametrize("name", MODELS)
def test_a_state_goes_on(name: str) -> None:
    model, x = settled(MODELS[name]()), steps_of(3)
    step = model.stream(3)
    want = [step(part).copy() for part in x]
    other = model.stream(3)
    for part in x[:4]:
        other(part)
    kept = other.state
    fresh = model.stream(3)
    fresh.state = kept
    for part, y in zip(x[4:], want[4:], strict=True):
        assert np.array_equal(fresh(part), y)
    fresh.state = None
    assert np.array_equal(fresh(x[0]), want[0])
    with pytest.raises(TypeError, match=rf"^state: expected a tuple of {len(kept)} states"):
        fresh.state = (*kept, None)


def test_a_state_of_stateful_is_that_of_its_calls() -> None:
    model, x = MODELS["stateful"](), steps_of(3)
    y, state = model(x)
    step = model.stream(3)
    for part in x:
        last = step(part)
    assert_close(last, y[-1], "output")
    again = model.stream(3)
    again.state = state
    assert_close(again(x[0]), model(x[:1], state)[0][0], "output")
    assert_close(again(x[1]), model(x[:2], step.state)[0][1], "output")
    with pytest.raises((TypeError, ValueError)):
        again.state = (state[0], (np.zeros((1, 3, SIZE + 1)),))
    assert_close(again(x[2]), model(x[:3], state)[0][2], "output")


def test_reset_of_rows_and_refresh() -> None:
    model, x = settled(MODELS["sequential"]()), steps_of(3)
    step = model.stream(3)
    first = step(x[0]).copy()
    second = step(x[1]).copy()
    step.reset(rows=[1])
    third = step(x[0])
    np.testing.assert_allclose(third[1], first[1], rtol=1e-12)
    assert not np.allclose(third[[0, 2]], first[[0, 2]])
    model[3].parameters["weight_hh_l0"][...] *= 2
    step.reset()
    assert np.array_equal(step(x[0]), first)
    step.refresh()
    step.reset()
    step(x[0])
    assert not np.allclose(step(x[1]), second)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: fr.Sequential(fr.GRU(3, 4), fr.Pool("last")),
            "stream: expected .*, got 1, a Pool, which has no",
        ),
        (
            lambda: fr.Sequential({"c": fr.Conv1d(3, 4, 2)}),
            "stream: expected .*, got c, a Conv1d, which has no",
        ),
        (
            lambda: fr.Sequential({"rnn": fr.GRU(3, 4, bidirectional=True)}),
            "rnn: stream: expected bidirectional=False",
        ),
        (
            lambda: fr.Sequential(fr.Residual(fr.Sequential(fr.Tanh(), fr.SelfAttention(4)))),
            "0.module.1: stream: expected causal=True",
        ),
        (lambda: fr.Concat, ""),
        (
            lambda: fr.Sequential(fr.Concat(fr.Tanh(), fr.GRUCell(3, 3))),
            "stream: expected .* got 0.1, a GRUCell",
        ),
        (lambda: fr.Sequential(fr.Softmax(1)), "stream: expected .* got 0, a Softmax"),
    ],
)
def test_the_part_that_has_none_is_named(model: Callable[[], Any], message: str) -> None:
    if not message:
        assert not hasattr(model(), "stream")
        return
    with pytest.raises(ValueError, match=f"^{message}"):
        model().stream()


def test_errors_of_arguments() -> None:
    model = fr.Sequential(fr.GRU(3, 4, seed=0))
    with pytest.raises(ValueError, match=r"^batch_size: expected an int >= 1, got 0"):
        model.stream(0)
    with pytest.raises(TypeError, match=r"^batch_size: expected an int"):
        model.stream(1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^max_len: expected an int >= 1"):
        model.stream(1, 0)
    with pytest.raises(ValueError, match=r"^rows"):
        model.stream(2).reset([2])


def test_a_module_of_ones_own() -> None:
    """With a `stream` it is a part as any other; without, it is named."""

    class Sums(fr.Module):
        def forward(self, x: Any) -> Any:
            return np.cumsum(x, axis=0), None

    class Streamed(Sums):
        def stream(self, batch_size: int = 1) -> Any:
            return Step(batch_size)

    class Step:
        def __init__(self, batch: int) -> None:
            self.state = np.zeros((batch, 3), np.float32)

        def __call__(self, x: Any) -> Any:
            self.state = self.state + x
            return self.state

        def reset(self, rows: Any = None) -> None:
            self.state = np.zeros_like(self.state)

        def refresh(self) -> None:
            pass

    with pytest.raises(ValueError, match=r"got 0, a Sums, which has no stream"):
        fr.Sequential(Sums()).stream()
    model, x = fr.Sequential(Streamed(), fr.Tanh()), np.ones((4, 2, 3), np.float32)
    step = model.stream(2)
    assert_close(np.stack([step(part) for part in x]), model(x), "output")
