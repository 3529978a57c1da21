"""fusedrnn.autograd: gradients beside those of hand-written backward calls, and beside differences."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fusedrnn as fr

ag = pytest.importorskip("autograd")

import autograd.numpy as anp  # noqa: E402

import fusedrnn.autograd as fa  # noqa: E402

pytestmark = pytest.mark.once

T, B, I, H = 5, 3, 4, 6
LENGTHS = np.array([5, 0, 3])


def draw(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def check_by_differences(f: Callable[..., Any], modules: list[fr.Module], *arguments: Any) -> None:
    """Gradients of the parameters of each module in float64, along a random direction."""
    for module in modules:
        module.zero_grad()
    value_of = fa.value_and_backward(f)
    value_of(*arguments)
    gradients = [module.flat_grads.copy() for module in modules]
    for module, gradient in zip(modules, gradients, strict=True):
        flat, ends = module.flat_parameters, []
        kept, direction = flat.copy(), draw(99, flat.size)
        for step in (1e-6, -1e-6):
            flat[...] = kept + step * direction
            ends.append(value_of(*arguments))
        flat[...] = kept
        slope = gradient @ direction
        assert abs(slope) > 1e-3
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-8)


def test_as_by_hand() -> None:
    """A tagger, bit for bit: one function in place of three backward calls in the right order."""
    tokens = np.random.default_rng(0).integers(0, 20, (T, B))
    tags = tokens % 4
    embedding, head = fr.Embedding(20, I, seed=0), fr.Linear(2 * H, 4, seed=2)
    lstm = fr.LSTM(I, H, num_layers=2, bidirectional=True, dropout=0.3, seed=1)
    modules = (embedding, lstm, head)

    def loss(tokens: Any, tags: Any) -> Any:
        y, _ = lstm(embedding(tokens), lengths=LENGTHS)
        return fa.cross_entropy(head(y), tags)

    by_trace = fa.value_and_backward(loss)(tokens, tags)
    traced = [module.flat_grads.copy() for module in modules]
    for module in modules:
        module.zero_grad()
    again = fr.LSTM(I, H, num_layers=2, bidirectional=True, dropout=0.3, seed=1)  # the same dropout
    x, embedding_tape = embedding.forward(tokens)
    y, _, lstm_tape = again.forward(x, lengths=LENGTHS)
    logits, head_tape = head.forward(y)
    by_hand, dlogits = fr.cross_entropy(logits, tags)
    dx, _ = again.backward(lstm_tape, head.backward(head_tape, dlogits))
    embedding.backward(embedding_tape, dx)
    assert type(by_trace) is float and by_trace == by_hand
    for found, module in zip(traced, (embedding, again, head), strict=True):
        assert found.any() and np.array_equal(found, module.flat_grads)


@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS}, {"mask": draw(0, T, B) > 0}])
@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM, fr.GRU])
def test_every_output_and_input(kind: Any, options: dict[str, Any]) -> None:
    """y and the final state, x and the initial state; one network called twice."""
    network = kind(I, I, bidirectional=True, dtype="float64", seed=0)
    down = fr.Linear(2 * I, I, dtype="float64", seed=1)
    x = draw(1, T, B, I)

    def loss(x: Any) -> Any:
        y, state = network(down(anp.concatenate([x, x * x], -1)), **options)
        z, last = network(down(anp.sin(y)), state, **options)
        last = last if isinstance(last, tuple) else (last,)
        return anp.sum(z**2) + sum(anp.sum(anp.cos((i + 1) * part)) for i, part in enumerate(last))

    check_by_differences(loss, [network, down], x)


def test_resets_and_lookup() -> None:
    embedding = fr.Embedding(3, I, dtype="float64", seed=0)
    gru = fr.GRU(I, H, dtype="float64", seed=1)
    tokens = np.random.default_rng(2).integers(0, 3, (T, B))
    resets = draw(3, T, B) > 0.5

    def loss(tokens: Any) -> Any:
        y, h = gru(embedding.lookup(tokens), resets=resets)
        return anp.sum(anp.sin(y)) + anp.sum(h**2)

    check_by_differences(loss, [embedding, gru], tokens)


def test_cells_and_layers() -> None:
    """A loop over steps in Python, as anyone would write it."""
    options: Any = {"dtype": "float64"}
    cells = [fr.LSTMCell(I, H, seed=0, **options), fr.GRUCell(H, H, seed=1, **options)]
    norm = fr.LayerNorm(H, **options)
    x = draw(4, T, B, I)

    def loss(x: Any) -> Any:
        state, h = None, anp.zeros((B, H))
        for step in x:
            state = cells[0](step, state)
            h = cells[1](norm(state[0]), h)
        return anp.mean(h**2) + anp.sum(state[1])

    check_by_differences(loss, [*cells, norm], x)


def test_attention_decoder() -> None:
    encoder = fr.GRU(I, H, dtype="float64", seed=0)
    decoder = fr.AttentionDecoder("lstm", I, H, H, dtype="float64", seed=1)
    source, target = draw(5, 4, B, I), draw(6, T, B, I)

    def loss(source: Any, target: Any) -> Any:
        memory, last = encoder(source)
        y, alpha, (h, c) = decoder(target, memory, memory_lengths=[4, 2, 3], state=(last, anp.tanh(last)))
        return anp.sum(y**2) + anp.sum(anp.sin(3 * alpha)) + anp.sum(h * c)

    check_by_differences(loss, [encoder, decoder], source, target)


class Highway(fr.Module):
    """A composition without a backward: its gate is traced NumPy code."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = fr.GRU(I, I, dtype="float64", seed=0)
        self.parameter("gate", (I,), init=0.3, dtype="float64")

    def __call__(self, x: Any) -> Any:
        y, _ = self.gru(x)
        return self.gate * y + (1 - self.gate) * x


class Scale(fr.Module):
    """One step of a trace: it has a backward, and forward calls of others are its own affair."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = fr.Linear(I, I, dtype="float64", seed=3)
        self.parameter("gain", (), init=0.5, dtype="float64")

    def forward(self, x: Any, shift: Any = None) -> Any:
        assert type(x) is np.ndarray and type(self.gain) is np.ndarray
        self.inner(x)
        y, tape = self.inner.forward(x)
        gain = self.gain.copy()
        return gain * y + (0 if shift is None else shift), (tape, y, gain)

    def backward(self, tape: Any, dy: Any, *, need_dx: bool = True) -> Any:
        inner_tape, y, gain = tape
        self.grads["gain"] += (dy * y).sum()
        return self.inner.backward(inner_tape, gain * dy, need_dx=need_dx), dy


def test_modules_of_ones_own() -> None:
    highway, scale = Highway(), Scale()
    model = fr.Sequential(highway, fr.Linear(I, I, dtype="float64", seed=1), Highway())
    x = draw(7, T, B, I)

    def loss(x: Any) -> Any:
        y = model(x)
        shifted = scale(y, anp.sin(y))
        weight = fa.parameter(model[1], "weight")
        return anp.sum(shifted**2) + 0.1 * anp.sum(weight**3)

    check_by_differences(loss, [model, scale], x)
    assert type(highway.gate) is np.ndarray


def test_losses_times_a_number() -> None:
    """Every loss beside its own gradient, with what flows back to it."""
    logits = draw(8, T, B, 5)
    labels = np.random.default_rng(9).integers(1, 5, (B, 2))
    cases: list[tuple[Any, Any, Any, tuple[Any, ...]]] = [
        (fa.cross_entropy, fr.cross_entropy, logits, (np.full((T, B), 2),)),
        (fa.mse_loss, fr.mse_loss, logits, (np.zeros_like(logits),)),
        (fa.ctc_loss, fr.ctc_loss, logits, (labels, [5, 4, 5], [2, 1, 0])),
        (fa.transducer_loss, fr.transducer_loss, draw(10, B, T, 3, 6), (labels, [5, 4, 5], [2, 1, 0])),
    ]
    for traced, plain, values, rest in cases:
        for reduction in ("mean", "sum", "none"):
            value, gradient = plain(values, *rest, reduction=reduction)

            def f(x: Any, traced: Any = traced, rest: Any = rest, reduction: str = reduction) -> Any:
                return anp.sum(-2.0 * traced(x, *rest, reduction=reduction))

            found, slope = ag.value_and_grad(f)(values)
            assert found == pytest.approx(-2 * np.sum(value)), plain
            np.testing.assert_allclose(slope, -2 * gradient, atol=1e-15)
    # What flows back to each loss of several has to reach its own rows.
    weights = np.array([1.0, -3.0, 0.5])
    for traced, plain, values, rest in cases[2:]:
        slope = ag.grad(lambda x, f=traced, r=rest: anp.sum(weights * f(x, *r, reduction="none")))(values)
        _, gradient = plain(values, *rest, reduction="none")
        along = (1, B, 1) if plain is fr.ctc_loss else (B, 1, 1, 1)
        np.testing.assert_allclose(slope, weights.reshape(along) * gradient, atol=1e-15)


def test_losses_with_parameters() -> None:
    """Those that add to grads themselves where they are called: here it waits for the trace's backward."""
    options: Any = {"dtype": "float64"}
    below = fr.Linear(I, 5, seed=0, **options)
    crf, joiner = fr.CRF(5, seed=1, **options), fr.TransducerJoiner(5, 6, seed=2, **options)
    embedding = fr.Embedding(7, 5, seed=3, **options)
    tied = fr.Linear(5, 7, weight_of=embedding, **options)
    x, tags = draw(11, T, B, I), np.random.default_rng(12).integers(0, 5, (T, B))

    def loss(x: Any) -> Any:
        emissions = below(x)
        first = fa.crf_loss(crf, emissions, tags, LENGTHS)
        rows = anp.swapaxes(emissions, 0, 1)
        lattice = tags[:2].T, [5, 4, 5], [2, 1, 2]
        second = fa.transducer_joiner_loss(joiner, rows, rows[:, :3], *lattice)
        third = fa.linear_cross_entropy(emissions, tied, tags, chunk=4)
        return 0.5 * first - 2.0 * second + 3.0 * third

    check_by_differences(loss, [below, crf, joiner, embedding, tied], x)
    for call in (
        lambda: fa.crf_loss(crf, draw(1, T, B, 5), tags, reduction="none"),
        lambda: fa.transducer_joiner_loss(joiner, x, x, tags, 0, 0, reduction="none"),
    ):
        with pytest.raises(ValueError, match="reduction: expected 'mean' or 'sum', got 'none'"):
            call()


def test_frozen_modules() -> None:
    """No gradients of theirs, but those of what is below."""
    below, frozen = fr.Linear(I, I, seed=0), fr.GRU(I, I, seed=1).requires_grad_(False)
    x = draw(13, T, B, I).astype(np.float32)
    fa.value_and_backward(
        lambda: anp.sum(frozen(below(x))[0]) + anp.sum(fa.parameter(frozen, "bias_hh_l0"))
    )()
    assert below.flat_grads.any() and not frozen.flat_grads.any()


def test_own_functions_of_autograd() -> None:
    """grad and jacobian of inputs and states, outside of value_and_backward."""
    lstm = fr.LSTM(I, H, dtype="float64", seed=0)
    x, h, c = draw(14, T, B, I), draw(15, 1, B, H), draw(16, 1, B, H)
    y, _, tape = lstm.forward(x, (h, c))
    dx, dstate = lstm.backward(tape, np.cos(y))
    by_hand = lstm.flat_grads.copy()
    lstm.zero_grad()
    found = ag.grad(lambda x: anp.sum(anp.sin(lstm(x, (h, c))[0])))(x)
    assert np.array_equal(found, dx) and np.array_equal(lstm.flat_grads, by_hand)
    starts = ag.grad(lambda state: anp.sum(anp.sin(lstm(x, state)[0])))((h, c))
    assert all(map(np.array_equal, starts, dstate))
    rows = ag.jacobian(lambda x: lstm(x, (h, c))[0][-1, 0])(x)
    assert rows.shape == (H, T, B, I) and not rows[:, :, 1:].any()
    for index in range(H):
        only = np.zeros_like(y)
        only[-1, 0, index] = 1
        np.testing.assert_allclose(rows[index], lstm.backward(tape, only)[0], atol=1e-15)


def test_results() -> None:
    """What a function returns beside the loss, and how often it runs."""
    gru = fr.GRU(I, H, seed=0)
    calls = []

    def loss(x: Any, scale: float) -> Any:
        calls.append(scale)
        y, h = gru(x)
        return scale * anp.mean(y), {"h": h, "all": [h, (y, 3)]}, "text"

    x = draw(17, T, B, I).astype(np.float32)
    value, beside, text = fa.value_and_backward(loss)(x, scale=2.0)
    y, h = gru(x)
    assert calls == [2.0] and text == "text" and type(value) is float
    assert type(beside["h"]) is np.ndarray and np.array_equal(beside["h"], h)
    assert beside["all"][1][1] == 3 and np.array_equal(beside["all"][1][0], y)
    once = gru.flat_grads.copy()
    fa.value_and_backward(loss)(x, 2.0)
    np.testing.assert_allclose(gru.flat_grads, 2 * once, rtol=1e-5, atol=1e-7)


def test_what_is_refused() -> None:
    gru, crf = fr.GRU(I, H, dtype="float64", seed=0), fr.CRF(3)
    x = draw(18, T, B, I)
    run = fa.value_and_backward
    with pytest.raises(TypeError, match="f: expected a function, got float"):
        run(1.0)
    with pytest.raises(ValueError, match=r"f: expected a loss of shape \(\), got \(5, 3, 6\)"):
        run(lambda: gru(x)[0])()
    with pytest.raises(ValueError, match="f: expected a loss that depends on a module, got a constant float"):
        run(lambda: 1.0)()
    with pytest.raises(TypeError, match="f: expected a loss, a scalar, got NoneType"):
        run(lambda: None)()
    with pytest.raises(TypeError, match="reset_state: expected a plain array, which gets no gradient"):
        run(lambda: gru(x, resets=x[..., 0] > 0, reset_state=gru(x)[1]))()
    with pytest.raises(TypeError, match="x: expected dtype float64 as weight_ih, got float32"):
        run(lambda: anp.sum(gru(x.astype(np.float32))[0]))()
    with pytest.raises(
        ValueError, match=r"name: expected a parameter of this module's own \(.*\), got 'weight'"
    ):
        fa.parameter(gru, "weight")
    with pytest.raises(TypeError, match="head: expected a Linear, got CRF"):
        fa.linear_cross_entropy(x, crf, 0)
    with pytest.raises(TypeError, match="CRF: expected a class that defines forward"):
        run(lambda: crf(x))()
    assert not gru.flat_grads.any()
    # After all of these nothing is traced.
    assert type(gru(x)[0]) is np.ndarray


def test_no_second_derivative() -> None:
    """Neither of autograd's own nor in a function of ours: an error, where a part would be missing."""
    gru = fr.GRU(I, H, dtype="float64", seed=0)
    x = draw(19, T, B, I)

    def slope(x: Any) -> Any:
        return anp.sum(ag.grad(lambda x: anp.sum(gru(x)[0] ** 2))(x) ** 2)

    for call in (lambda: ag.grad(slope)(x), lambda: fa.value_and_backward(slope)(x)):
        with pytest.raises(
            NotImplementedError, match=r"a derivative of a gradient.*functional\.double_backward"
        ):
            call()


def test_threads_trace_apart() -> None:
    """One thread calls a module while another traces it."""
    gru = fr.GRU(I, H, seed=0)
    x = draw(20, T, B, I).astype(np.float32)
    seen: list[Any] = []

    def loss() -> Any:
        y, _ = gru(x)
        thread = threading.Thread(target=lambda: seen.append(gru(x)[0]))
        thread.start()
        thread.join()
        return anp.sum(y)

    fa.value_and_backward(loss)()
    assert type(seen[0]) is np.ndarray


def test_the_tagger_of_readme_and_of_the_page() -> None:
    """Half the lines, and the same bits after a step."""
    found: list[tuple[int, Any]] = []
    for page, part, name in (
        ("README.md", "class Tagger", "model"),
        ("docs/autograd.md", "tagger = ", "tagger"),
    ):
        text = (Path(__file__).parents[1] / page).read_text()
        blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        (block,) = [block for block in blocks if part in block]
        names: dict[str, Any] = {"np": np, "fr": fr}
        exec(compile(block, page, "exec"), names)
        found.append((len([line for line in block.splitlines() if line]), names[name].flat_parameters))
    (lines, parameters), (fewer, same) = found
    assert fewer * 2 <= lines and np.array_equal(parameters, same)
