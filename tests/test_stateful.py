"""Stateful: its members by hand, sequences in pieces, all gradients, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_support import WIDE

import fusedrnn as fr

RNG = np.random.default_rng(0)
X = RNG.normal(size=(9, 4, 3))
LENGTHS = np.array([9, 0, 5, 2])


def model() -> fr.Stateful:
    return fr.Stateful(
        fr.Linear(3, 3, seed=0, **WIDE),
        fr.LSTM(3, 4, 2, seed=1, **WIDE),
        fr.LayerNorm(4, **WIDE),
        fr.Stateful({"rnn": fr.GRU(4, 5, seed=2, **WIDE), "act": fr.Tanh()}),
        fr.Linear(5, 2, seed=3, **WIDE),
    )


def by_hand(net: Any, x: Any, state: Any, **options: Any) -> Any:
    inner = net[3]
    h, lstm = net[1](net[0](x), state[0], **options)
    h, gru = inner["rnn"](net[2](h), state[1][0], **options)
    return net[4](inner["act"](h)), (lstm, (gru,))


def some_state() -> Any:
    return tuple([RNG.normal(size=(2, 4, 4)) for _ in range(2)]), (RNG.normal(size=(1, 4, 5)),)


@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS}, {"mask": RNG.random((9, 4)) < 0.6}], ids=str)
def test_the_members_by_hand(options: Any) -> None:
    net, state = model(), some_state()
    want, final = by_hand(net, X, state, **options)
    y, found, tape = net.forward(X, state, **options)
    np.testing.assert_array_equal(y, want)
    for a, b in zip((*found[0], *found[1]), (*final[0], *final[1]), strict=True):
        np.testing.assert_array_equal(a, b)
    again, same = net(X, state, **options)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(same[1][0], found[1][0])
    plain = fr.Sequential(*net)
    np.testing.assert_array_equal(net(X, **options)[0], plain(X, **options))
    assert tape.nbytes > 0


def test_pieces_equal_the_whole() -> None:
    net = model()
    whole, final = net(X, lengths=LENGTHS)
    state, found = None, []
    for start in range(0, 9, 4):
        part = X[start : start + 4]
        y, state, _ = net.forward(part, state, np.clip(LENGTHS - start, 0, len(part)))
        found.append(y)
    np.testing.assert_array_equal(np.concatenate(found), whole)
    assert state is not None
    np.testing.assert_array_equal(state[1][0], final[1][0])


def test_gradients() -> None:
    """By differences in random directions: of x, of all parameters, and of the state before."""
    net, state = model(), some_state()
    y, final, tape = net.forward(X, state, LENGTHS)
    dy = RNG.normal(size=y.shape)
    dstate: Any = (tuple([RNG.normal(size=p.shape) for p in final[0]]), (RNG.normal(size=final[1][0].shape),))
    dx, dstart = net.backward(tape, dy, dstate)

    def loss(x: Any, start: Any) -> float:
        value, end = net(x, start, LENGTHS)
        parts = zip((*end[0], *end[1]), (*dstate[0], *dstate[1]), strict=True)
        return float((value * dy).sum() + sum([(a * b).sum() for a, b in parts]))

    flat, grads, step = net.flat_parameters, net.flat_grads.copy(), 1e-6
    for _ in range(4):
        ways = [RNG.normal(size=shape) for shape in (X.shape, flat.shape, (2, 4, 4), (2, 4, 4), (1, 4, 5))]
        sides = []
        for sign in (step, -step):
            kept = flat.copy()
            flat[:] += sign * ways[1]
            start = (
                tuple([p + sign * w for p, w in zip(state[0], ways[2:4], strict=True)]),
                (state[1][0] + sign * ways[4],),
            )
            sides.append(loss(X + sign * ways[0], start))
            flat[:] = kept
        found = [dx, grads, *dstart[0], *dstart[1]]
        slope = sum([float((g * w).sum()) for g, w in zip(found, ways, strict=True)])
        np.testing.assert_allclose(slope, (sides[0] - sides[1]) / (2 * step), rtol=2e-6)
    net.zero_grad()
    none, start = net.backward(tape, dy, (None, dstate[1]), need_dx=False)
    assert none is None and len(start) == 2 and np.isfinite(net.flat_grads).all()


def test_tokens_files_and_blocks(tmp_path: Path) -> None:
    net = fr.Stateful(
        {"e": fr.Embedding(5, 3, seed=0), "r": fr.GRU(3, 4, seed=1), "o": fr.Linear(4, 5, seed=2)}
    )
    tokens = RNG.integers(0, 5, (6, 2))
    y, state, tape = net.forward(tokens)
    dx, _ = net.backward(tape, np.ones_like(y))
    assert dx is None and net.flat_grads.any()
    fr.save(net, tmp_path / "net")
    again = fr.load(tmp_path / "net")
    assert repr(again) == repr(net) and isinstance(again, fr.Stateful)
    np.testing.assert_array_equal(again(tokens, state)[0], net(tokens, state)[0])
    # As a member of others it starts anew.
    outer = fr.Sequential(net, fr.Softmax())
    value, whole = outer.forward(tokens)
    assert outer.backward(whole, np.ones_like(value)) is None


def test_what_it_refuses() -> None:
    net, bad = model(), fr.Residual(fr.GRU(3, 3))
    y, _, tape = net.forward(X)
    grads = net.flat_grads
    for call, kind, text in (
        (lambda: fr.Stateful(bad), ValueError, r"modules\[0\]: expected a module with a state .* with a GRU"),
        (lambda: fr.Stateful({"a": bad}), ValueError, "a: expected a module with a state of its own"),
        (lambda: net.append(bad), ValueError, r"modules\[5\]: expected a module with a state of its own"),
        (lambda: fr.Stateful(3), TypeError, r"modules\[0\]: expected a Module"),  # type: ignore[arg-type]
        (lambda: net(X, X), ValueError, "state: expected a tuple of the states of 2 members, got ndarray"),
        (lambda: net(X, (None,)), ValueError, "state: expected a tuple of the states of 2 members, got 1"),
        (lambda: net(X, (X, None)), TypeError, "state: expected"),
        (lambda: net.backward(tape, y, (None,)), ValueError, "dstate: expected a tuple"),
        (lambda: net.backward(tape, y[:1]), ValueError, "dy: expected"),
    ):
        with pytest.raises(kind, match=f"^{text}"):
            call()
        assert len(net) == 5 and not grads.any()
