"""bptt and checkpoint: long sequences in pieces, with the bits of the plain call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once

Array = npt.NDArray[Any]
KINDS: dict[str, Any] = {"lstm": fr.LSTM, "gru": fr.GRU, "rnn": fr.RNN, "sru": fr.SRU, "mgu": fr.MGU}


def network(kind: str, **options: Any) -> Any:
    return KINDS[kind](3, 5, 2, seed=1, dtype="float64", **options)


def parts(state: Any) -> tuple[Array, ...]:
    return state if isinstance(state, tuple) else (state,)


def start(net: Any, batch: int, scale: float = 1.0) -> Any:
    rng = np.random.default_rng(7)
    _, state = net(np.zeros((1, batch, 3)))
    found = tuple(scale * rng.standard_normal(part.shape) for part in parts(state))
    return found if isinstance(state, tuple) else found[0]


def options(net: Any, seq_len: int, batch: int, which: str) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    found: dict[str, Any] = {}
    if "lengths" in which:
        found["lengths"] = np.array([seq_len, 0, 9, 4][:batch])
    if "resets" in which:
        found["resets"] = rng.random((seq_len, batch)) < 0.2
        found["reset_state"] = start(net, batch, 0.5)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["", "lengths", "resets", "lengths resets"])
@pytest.mark.parametrize("window", [1, 5, 40])
def test_windows_are_the_plain_call(kind: str, which: str, window: int) -> None:
    """Outputs, the final state, and gradients in which each window's start is a constant."""
    seq_len, batch = 13, 4
    net = network(kind)
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((seq_len, batch, 3)), start(net, batch)
    given = options(net, seq_len, batch, which)
    y, final = net(x, state, **given)
    dy = rng.standard_normal(y.shape)
    windows = fr.bptt(net, x, window, state, **given)
    assert len(windows) == -(-seq_len // window)
    ys, dxs = [], []
    for index, (part, backward) in enumerate(windows):
        ys.append(part)
        dxs.append(backward(dy[index * window : (index + 1) * window]))
    assert np.array_equal(np.concatenate(ys), y)
    for got, expected in zip(parts(windows.state), parts(final), strict=True):
        assert np.array_equal(got, expected)
    grads = net.flat_grads.copy()
    net.zero_grad()
    now = state
    for index, begin in enumerate(range(0, seq_len, window)):
        piece = slice(begin, begin + window)
        one = {"lengths": np.clip(given["lengths"] - begin, 0, len(x[piece]))} if "lengths" in which else {}
        if "resets" in which:
            one |= {"resets": given["resets"][piece], "reset_state": given["reset_state"]}
        _, now, tape = net.forward(x[piece], now, **one)
        assert np.array_equal(net.backward(tape, dy[piece])[0], dxs[index])
    assert np.array_equal(net.flat_grads, grads)


def test_windows_see_new_weights_and_may_be_skipped() -> None:
    net = fr.GRU(3, 5, seed=0)
    x = np.ones((10, 2, 3), np.float32)
    windows = fr.bptt(net, x, 4)
    _, backward = next(windows)
    net.flat_parameters[...] *= 0.5
    y, _ = next(windows)
    other = fr.GRU(3, 5, seed=0)
    _, state = other(x[:4])
    other.flat_parameters[...] *= 0.5
    assert np.array_equal(y, other(x[4:8], state)[0])
    assert backward(np.ones((4, 2, 5), np.float32), need_dx=False) is None and len(windows) == 1
    assert "window 2 of 3" in repr(windows)
    assert len(list(windows)) == 1 and list(windows) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["", "lengths", "resets", "lengths resets"])
@pytest.mark.parametrize("every", [1, 5, 40])
@pytest.mark.parametrize("flows", ["y", "state", "both"])
def test_checkpoints_are_the_plain_call(kind: str, which: str, every: int, flows: str) -> None:
    seq_len, batch = 13, 4
    net = network(kind)
    rng = np.random.default_rng(0)
    x, state = rng.standard_normal((seq_len, batch, 3)), start(net, batch)
    given = options(net, seq_len, batch, which)
    y, final, tape = net.forward(x, state, **given)
    dy = rng.standard_normal(y.shape) if flows != "state" else None
    dfinal = start(net, batch) if flows != "y" else None
    dx, dstate = net.backward(tape, dy, dfinal)
    grads = net.flat_grads.copy()
    net.zero_grad()
    y2, final2, tape2 = fr.checkpoint(net, x, every, state, **given)
    dx2, dstate2 = tape2.backward(dy, dfinal)
    for got, expected in [(y2, y), *zip(parts(final2), parts(final), strict=True)]:
        assert np.array_equal(got, expected)
    for got, expected in [(dx2, dx), *zip(parts(dstate2), parts(dstate), strict=True)]:
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(net.flat_grads, grads, rtol=1e-12, atol=1e-12)
    net.zero_grad()
    assert tape2.backward(dy, dfinal, need_dx=False)[0] is None  # usable again
    np.testing.assert_allclose(net.flat_grads, grads, rtol=1e-12, atol=1e-12)


def test_checkpoints_take_less_memory() -> None:
    net = fr.LSTM(6, 24, 2, seed=1)
    x = np.zeros((400, 2, 6), np.float32)
    assert fr.checkpoint(net, x, 20)[2].nbytes < net.forward(x)[2].nbytes / 20


@pytest.mark.parametrize("single", [False, True])
def test_layouts_and_look_ups(single: bool) -> None:
    """batch_first, one sequence, and a table whose gradients of all pieces add up."""
    net = fr.LSTM(3, 5, batch_first=True, seed=1, dtype="float64")
    embedding = fr.Embedding(7, 3, seed=2, dtype="float64")
    tokens = np.random.default_rng(0).integers(0, 7, 12 if single else (2, 12))
    place = (slice(4, 8),) if single else (slice(None), slice(4, 8))
    for x in (embedding.parameters["weight"][tokens], embedding.lookup(tokens)):
        y, _, tape = net.forward(x)
        net.zero_grad()
        dx, _ = net.backward(tape, y)
        grads = net.flat_grads.copy()
        net.zero_grad()
        y2, _, tape2 = fr.checkpoint(net, x, 4)
        dx2, _ = tape2.backward(y2)
        assert np.array_equal(y, y2)
        np.testing.assert_allclose(dx2, dx, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(net.flat_grads, grads, rtol=1e-12, atol=1e-13)
        pieces = list(fr.bptt(net, x, 4))
        assert np.array_equal(pieces[1][0], y[place])
        dpiece = pieces[1][1](y[place])
        assert (
            dpiece.shape == (embedding.parameters["weight"] if isinstance(x, fr.Lookup) else x[place]).shape
        )


def test_refused() -> None:
    x = np.ones((10, 2, 3), np.float32)
    both = fr.GRU(3, 5, bidirectional=True)
    net = fr.GRU(3, 5, 2, dropout=0.5)
    for call in (fr.bptt, fr.checkpoint):
        with pytest.raises(
            ValueError, match="bidirectional=False: the reverse direction starts from the end"
        ):
            call(both, x, 4)
        with pytest.raises(TypeError, match="network: expected a recurrent network, got Linear"):
            call(fr.Linear(3, 5), x, 4)
        with pytest.raises(ValueError, match="an int >= 1"):
            call(net.eval(), x, 0)
        with pytest.raises(ValueError, match=r"lengths: expected values in 0..T = 0..10, got 3..11"):
            call(net, x, 4, lengths=[3, 11])
        with pytest.raises(ValueError, match=r"lengths: expected shape \(B,\) = \(2,\), got \(3,\)"):
            call(net, x, 4, lengths=[3, 4, 5])
        with pytest.raises(ValueError, match=r"resets: expected shape"):
            call(net, x, 4, resets=np.zeros((9, 2), bool))
        with pytest.raises(ValueError, match="reset_state: expected None without resets"):
            call(net, x, 4, reset_state=np.zeros((2, 5), np.float32))
        with pytest.raises(ValueError, match="x: expected shape"):
            call(net, x[0, 0], 4)
    with pytest.raises(RuntimeError, match=r"dropout: expected 0 or evaluation mode, got 0\.5"):
        fr.checkpoint(net.train(), x, 4)
    with pytest.raises(ValueError, match="got T = 0"):
        fr.checkpoint(net.eval(), x[:0], 4)
    y, _, tape = fr.checkpoint(net, x, 4)
    assert "segments=3" in repr(tape)
    with pytest.raises(ValueError, match="dy: expected an array unless dstate is given"):
        tape.backward()
    with pytest.raises(ValueError, match="dy: expected shape"):
        tape.backward(y[:4])
    net.parameters["weight_ih_l0"][0, 0] += 1
    with pytest.raises(RuntimeError, match="tape: expected the parameters as they were in forward"):
        tape.backward(y)
    assert not net.flat_grads.any()
    assert list(fr.bptt(net, x[:0], 4)) == []
