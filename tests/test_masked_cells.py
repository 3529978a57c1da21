"""Recurrent dropout and zoneout: masks in the kernels, against a reference that draws them by itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import masked_reference
import numpy as np
import pytest
from support import Array, bare, make_module, num_threads, numeric_gradient, run_python, states_of
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

import fusedrnn as fr

CELLS = ["lstm", "gru", "rnn_tanh", "rnn_relu"]
OPTIONS: dict[str, dict[str, Any]] = {
    "recurrent": {"recurrent_dropout": 0.3},
    "zoneout": {"zoneout": 0.4},
    "both": {"recurrent_dropout": 0.5, "zoneout": 0.25},
}
MADE = {
    "peephole": lambda **o: fr.LSTM(3, 6, peephole=True, **o),
    "coupled": lambda **o: fr.LSTM(3, 6, coupled_gates=True, **o),
    "layer_norm_lstm": lambda **o: fr.LSTM(3, 6, layer_norm=True, **o),
    "layer_norm_gru": lambda **o: fr.GRU(3, 6, layer_norm=True, **o),
    "layer_norm_rnn": lambda **o: fr.RNN(3, 6, layer_norm=True, **o),
    "reset_before": lambda **o: fr.GRU(3, 6, reset_after=False, **o),
    "mgu": lambda **o: fr.MGU(3, 6, **o),
    "indrnn": lambda **o: fr.IndRNN(3, 6, nonlinearity="tanh", **o),
    "sru": lambda **o: fr.SRU(3, 6, **o),
    "min_gru": lambda **o: fr.MinGRU(3, 6, **o),
}


def normal(*shape: int, dtype: str = "float64", seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def noise_of(net: Any) -> tuple[int, int]:
    return net._noise.seed, net._noise.offset


def random_state(net: Any, batch: int, seed: int) -> Any:
    rows = net.num_layers * (2 if net.bidirectional else 1)
    parts = [
        normal(rows, batch, w, dtype=str(net.dtype), seed=seed + k) for k, w in enumerate(net._network.widths)
    ]
    return bare(tuple(parts))


def random_call(net: Any, kind: str) -> dict[str, Any]:
    """x, state, lengths, resets and reset_state; kind: "plain", "lengths", "resets" or "both"."""
    rng = np.random.default_rng(3)
    resets = kind in ("resets", "both")
    replacement = tuple(part[:, 0] for part in states_of(random_state(net, 1, 70))) if resets else None
    return {
        "x": normal(6, 5, net.input_size, dtype=str(net.dtype)),
        "state": random_state(net, 5, 50),
        "lengths": np.array([4, 0, 6, 1, 5]) if kind in ("lengths", "both") else None,
        "resets": rng.random((6, 5)) < 0.3 if resets else None,
        "reset_state": None if replacement is None else bare(replacement),
    }


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", ["plain", "lengths", "resets", "both"])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (1, True), (2, False), (2, True)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("option", list(OPTIONS))
@pytest.mark.parametrize("cell", CELLS)
def test_reference(
    cell: str, option: str, training: bool, layers: int, bidirectional: bool, kind: str, dtype: str
) -> None:
    """Outputs, final states and all gradients, in training and in evaluation mode."""
    hidden = 13 if layers == 1 else 9
    net = make_module(cell, 4, hidden, layers, bidirectional=bidirectional, dtype=dtype, **OPTIONS[option])
    net.train(training)
    call, noise = random_call(net, kind), noise_of(net)
    y, final, tape = net.forward(**call)
    dy, dfinal = normal(*y.shape, dtype=dtype), random_state(net, 5, 90)
    dx, dstate = net.backward(tape, dy, dfinal)
    want = masked_reference.run(cell, net, noise, call, dy, dfinal)
    assert_close(y, want.y, "output")
    assert_close(dx, want.dx, "gradient")
    for name, got, expected in (("state", final, want.final), ("gradient", dstate, want.dstate)):
        for part, other in zip(states_of(got), expected, strict=True):
            assert_close(part, other, name)
    for name, grad in net.grads.items():
        assert_close(grad, want.grads[name], "gradient", name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", [(7, 1, 70), (5, 40, 33), (3, 130, 8)])
@pytest.mark.parametrize("option", list(OPTIONS))
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_sizes(cell: str, option: str, shape: tuple[int, int, int], dtype: str) -> None:
    """Groups of many panels or rows."""
    seq_len, batch, hidden = shape
    net = make_module(cell, 4, hidden, dtype=dtype, **OPTIONS[option])
    call = {"x": normal(seq_len, batch, 4, dtype=dtype), "state": random_state(net, batch, 50)}
    call |= dict.fromkeys(("lengths", "resets", "reset_state"))
    noise = noise_of(net)
    y, _, tape = net.forward(**call)
    dy, dfinal = normal(*y.shape, dtype=dtype), random_state(net, batch, 90)
    dx, _ = net.backward(tape, dy, dfinal)
    want = masked_reference.run(cell, net, noise, call, dy, dfinal)
    assert_close(y, want.y, "output")
    assert_close(dx, want.dx, "gradient")
    for name, grad in net.grads.items():
        assert_close(grad, want.grads[name], "gradient", name)


def everything(net: Any, call: dict[str, Any]) -> dict[str, Array]:
    """All results of a call by name, with the masks of the network's first."""
    net._noise.offset = 0
    net.zero_grad()
    y, final, tape = net.forward(**call)
    dx, dstate = net.backward(tape, normal(*y.shape, dtype=str(net.dtype)), final)
    found = {"y": np.array(y), "dx": dx, **{n: np.array(g) for n, g in net.grads.items()}}
    for name, state in (("final", final), ("dstate", dstate)):
        found |= {f"{name}{k}": part for k, part in enumerate(states_of(state))}
    net._noise.offset = 0
    assert np.array_equal(net(**call)[0], y)
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "reset_before", "layer_norm_lstm"])
def test_bits_do_not_depend_on_threads_or_tapes(cell: str, batch: int, dtype: str) -> None:
    """1, 2 and 3 threads, with and without recompute; and a call without a tape."""
    options = {**OPTIONS["both"], "num_layers": 2, "bidirectional": True, "dtype": dtype, "seed": 1}
    if cell in CELLS:
        net = make_module(cell, 24, 40, **options)
    elif cell == "reset_before":
        net = fr.GRU(24, 40, reset_after=False, **options)
    else:
        net = fr.LSTM(24, 40, layer_norm=True, **options)
    rng = np.random.default_rng(0)
    call = {"x": normal(30, batch, 24, dtype=dtype), "resets": rng.random((30, batch)) < 0.1}
    call["lengths"] = rng.integers(1, 31, batch)
    found = []
    for threads in (1, 2, 3):
        for recompute in (False, True):
            net.recompute = recompute
            with num_threads(threads):
                found.append(everything(net, call))
    for other in found[1:]:
        for name, array in found[0].items():
            assert np.array_equal(array, other[name]), name


@pytest.mark.parametrize("option", list(OPTIONS))
@pytest.mark.parametrize("cell", list(MADE))
def test_other_cells(cell: str, option: str) -> None:
    """Forward is the plain network, a step at a time, with states that stay; gradients are numeric ones."""
    chosen = OPTIONS[option]
    if "recurrent_dropout" in chosen and cell in ("indrnn", "sru", "min_gru"):
        with pytest.raises(ValueError, match=r"recurrent_dropout: expected 0, since .* has no weight_hh"):
            MADE[cell](dtype="float64", seed=1, **chosen)
        return
    net, plain = (MADE[cell](dtype="float64", seed=1, **each) for each in (chosen, {}))
    for name, value in net.parameters.items():
        value += 0.3 * normal(*value.shape, seed=7)
        plain.parameters[name][...] = value
    x, state = normal(4, 2, 3), random_state(net, 2, 5)
    noise = noise_of(net)

    def restarted() -> tuple[Array, Any, Any]:
        net._noise.offset = noise[1]
        return net.forward(x, state)  # type: ignore[no-any-return]

    y, _, tape = restarted()
    (masks,) = masked_reference.masks_of(net, noise, 4, 2)
    # Where h is read outside of its product the plain network cannot be given a masked one for it alone.
    if "recurrent_dropout" not in chosen or cell in (
        "peephole",
        "coupled",
        "layer_norm_lstm",
        "layer_norm_rnn",
    ):
        now = states_of(state)
        for t in range(4):
            given = (masks.hidden * now[0], *now[1:])
            after = states_of(plain(x[t : t + 1], bare(given))[1])
            now = tuple(m[t] * a + (1 - m[t]) * b for m, a, b in zip(masks.stays, now, after, strict=True))
            assert_close(y[t], now[0][0], "output")
    dy, dfinal = normal(*y.shape), random_state(net, 2, 9)
    dx, dstate = net.backward(tape, dy, dfinal)

    def loss() -> float:
        y, final, _ = restarted()
        total = float(np.vdot(dy, y))
        return total + sum(
            float(np.vdot(a, b)) for a, b in zip(states_of(dfinal), states_of(final), strict=True)
        )

    wanted = [(x, dx), *zip(states_of(state), states_of(dstate), strict=True)]
    wanted += [(net.parameters[name], grad) for name, grad in net.grads.items()]
    for at, grad in wanted:
        assert relative_error(grad, numeric_gradient(loss, at, 1e-4)) < CENTRAL_DIFFERENCES


@pytest.mark.parametrize("reset_after", [True, False])
def test_recurrent_dropout_of_a_gru_leaves_the_state_whole(reset_after: bool) -> None:
    """With p = 1 nothing of h enters a product, and z*h is all that stays of it."""
    net = fr.GRU(3, 5, reset_after=reset_after, recurrent_dropout=1.0, dtype="float64", seed=0)
    x, h = normal(1, 2, 3), normal(1, 2, 5)
    p = net.parameters
    rows = x[0] @ p["weight_ih_l0"].T + p["bias_ih_l0"]
    r, z, n = np.split(rows, 3, axis=1)
    b_r, b_z, b_n = np.split(p["bias_hh_l0"], 3)
    r, z = (1 / (1 + np.exp(-v)) for v in (r + b_r, z + b_z))
    n = np.tanh(n + (r * b_n if reset_after else b_n))
    assert_close(net(x, h)[0][0], (1 - z) * n + z * h[0], "output")


def test_certain_zoneout_keeps_the_state() -> None:
    net = fr.LSTM(3, 5, zoneout=(1.0, 1.0), seed=0)
    x, state = normal(7, 2, 3, dtype="float32"), (normal(1, 2, 5, dtype="float32"),) * 2
    y, (h, c) = net(x, state)
    assert np.array_equal(y, np.broadcast_to(state[0], y.shape))
    assert np.array_equal(h, state[0])
    assert np.array_equal(c, state[1])


def test_masks_have_the_rate_and_differ() -> None:
    """Each layer, direction, state and call has masks of its own, whose rate is p."""
    net = fr.LSTM(3, 64, 2, bidirectional=True, zoneout=(0.2, 0.7), recurrent_dropout=0.4, seed=3)
    found: dict[float, list[Array]] = {0.2: [], 0.7: [], 0.4: []}
    for _ in range(2):
        noise = noise_of(net)
        net.forward(normal(20, 30, 3, dtype="float32"))
        for part in masked_reference.masks_of(net, noise, 20, 30):
            found[0.4].append(part.hidden == 0)
            for p, stays in zip((0.2, 0.7), part.stays, strict=True):
                found[p].append(stays)
    for p, masks in found.items():
        flat = np.array([mask.ravel() for mask in masks])
        # Six standard deviations of a binomial share.
        assert np.abs(flat.mean(axis=1) - p).max() < 6 * np.sqrt(p * (1 - p) / flat.shape[1])
        assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 6 / np.sqrt(flat.shape[1])


@pytest.mark.parametrize("option", list(OPTIONS))
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_evaluation_has_no_masks(cell: str, option: str) -> None:
    """The same every time, and a stream's; recurrent dropout alone is the plain network."""
    net, plain = (make_module(cell, 4, 9, 2, **o) for o in (OPTIONS[option], {}))
    x = normal(6, 3, 4)
    stream = net.stream(3)
    by_steps = np.stack([stream(step).copy() for step in x])
    offset = net._noise.offset
    net.eval()
    y, final, _ = net.forward(x)
    assert net._noise.offset == offset
    assert np.array_equal(net(x)[0], y)
    assert_close(by_steps, y, "output")
    for part, other in zip(states_of(stream.state), states_of(final), strict=True):
        assert_close(part, other, "output")
    same = relative_error(y, plain(x)[0]) < 1e-12
    assert same == (option == "recurrent")


def test_one_mask_for_each_sequence() -> None:
    """Recurrent dropout does not depend on the step, on lengths or on resets."""
    net = fr.RNN(2, 8, recurrent_dropout=0.5, dtype="float64", seed=0)
    x, noise = np.repeat(normal(1, 3, 2), 2, axis=0), noise_of(net)
    h = normal(1, 3, 8)
    # The second step starts from h, too: with the same mask it gives the same.
    y, _ = net(x, h, resets=np.array([[False], [True]]).repeat(3, axis=1), reset_state=h)
    assert np.array_equal(y[0], y[1])
    (masks,) = masked_reference.masks_of(net, noise, 2, 3)
    assert 0 < (masks.hidden == 0).sum() < masks.hidden.size


def test_weights_are_those_of_the_plain_network() -> None:
    """state_dict, copies and pickles; each has the same masks as the network it was made from."""
    net, plain = fr.LSTM(3, 5, zoneout=0.3, seed=1), fr.LSTM(3, 5, seed=2)
    assert list(net.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(net.state_dict())
    net.load_state_dict(plain.state_dict())
    cell = fr.define_cell("half", "a", "h", lambda x, h, s, p: {"h": 0.5 * (x.a + h.a)})
    own = fr.Recurrent(cell, 3, 5, zoneout=0.3, recurrent_dropout=0.1, seed=1)
    fr.Recurrent(cell, 3, 5, seed=2).load_state_dict(own.state_dict())
    assert own.cell is cell
    assert fr.Recurrent("gru", 3, 5, zoneout=0.3).cell == "gru"
    assert "cell" not in fr.Recurrent("gru", 3, 5, zoneout=0.3).state_dict()
    x = normal(4, 2, 3, dtype="float32")
    for network in (net, own):
        others = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
        y = network(x)[0]
        for other in others:
            assert np.array_equal(other(x)[0], y)
            assert other.zoneout == network.zoneout


def test_pickles_for_another_process() -> None:
    net = fr.LSTM(3, 5, zoneout=(0.3, 0.1), recurrent_dropout=0.2, seed=1)
    data = pickle.dumps(net).hex()
    x = normal(4, 2, 3, dtype="float32")
    code = f"""
import pickle, numpy as np
net = pickle.loads(bytes.fromhex("{data}"))
x = np.frombuffer(bytes.fromhex("{x.tobytes().hex()}"), np.float32).reshape(4, 2, 3)
print(net(x)[0].tobytes().hex())
"""
    done = run_python("-c", code)
    assert done.stdout.strip() == net(x)[0].tobytes().hex(), done.stderr


def test_random_state() -> None:
    """What was saved draws the same masks again, and weight dropout goes beside."""
    net = fr.GRU(3, 8, 2, zoneout=0.5, recurrent_dropout=0.5, weight_dropout=0.5, dropout=0.5, seed=1)
    x = normal(5, 2, 3, dtype="float32")
    before = net.random_state()
    y = net(x)[0]
    assert not np.array_equal(net(x)[0], y)
    net.load_random_state(before)
    assert np.array_equal(net(x)[0], y)


def test_arguments() -> None:
    for name in ("zoneout", "recurrent_dropout"):
        for value, kind in ((-0.1, ValueError), (1.5, ValueError), ("0.1", TypeError), (True, TypeError)):
            with pytest.raises(kind, match=f"{name}: expected a number"):
                fr.GRU(3, 4, **{name: value})
    with pytest.raises(
        ValueError, match=r"zoneout: expected a number, or one for each state \(h, c\), got 3"
    ):
        fr.LSTM(3, 4, zoneout=(0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"zoneout\[1\]: expected a number in"):
        fr.LSTM(3, 4, zoneout=(0.1, 2))
    with pytest.raises(
        ValueError, match="proj_size: expected 0, since lstm with zoneout works unit by unit on h"
    ):
        fr.LSTM(3, 4, proj_size=2, zoneout=0.1)
    net = fr.LSTM(3, 4, zoneout=0.1)
    with pytest.raises(ValueError, match="lstm with zoneout, a program"):
        net.quantize("int8")
    for name in ("zoneout", "recurrent_dropout"):
        with pytest.raises(AttributeError):
            setattr(net, name, 0.5)
    assert fr.LSTM(3, 4).zoneout == (0.0, 0.0)
    assert fr.LSTM(3, 4, zoneout=0).zoneout == (0.0, 0.0)
    assert fr.GRU(3, 4, zoneout=0)._spec is fr.GRU(3, 4)._spec


def test_repr() -> None:
    shown = repr(fr.LSTM(3, 4, peephole=True, zoneout=(0.1, 0.5), recurrent_dropout=0.25))
    assert shown == "LSTM(3, 4, recurrent_dropout=0.25, zoneout=(0.1, 0.5), peephole=True)"
    assert repr(fr.Recurrent("gru", 3, 4, zoneout=0.1)) == "Recurrent('gru', 3, 4, zoneout=0.1)"


@pytest.mark.parametrize("option", ["zoneout", "recurrent_dropout", "weight_dropout"])
def test_checkpoints_refuse_what_draws_anew(option: str) -> None:
    net = fr.GRU(3, 4, **{option: 0.5})
    x = normal(8, 2, 3, dtype="float32")
    with pytest.raises(RuntimeError, match=f"{option}: expected 0 or evaluation mode"):
        fr.checkpoint(net, x, 4)
    y, _, tape = fr.checkpoint(net.eval(), x, 4)
    tape.backward(np.ones_like(y))


def test_definitions_refuse_bad_masks() -> None:
    """What a definition says is checked before the kernels see it."""
    spec = fr.LSTM(3, 4, zoneout=0.3)._spec
    given = dict(spec.definition._native)
    for masks, message in (
        ([(1.5, 1.0, 0.0, 0.5, True)] * 2, "masks: expected probabilities"),
        ([(float("nan"), 1.0, 0.0, 0.5, True)] * 2, "masks: expected probabilities"),
        ([(0.5, 1.0, 0.0, 0.5, True)] * 10, "masks: expected at most 9"),
        ([(0.5, 1.0, 0.0, 0.5, True)], "expected names of the cell's values, got 'mask.1'"),
    ):
        with pytest.raises(ValueError, match=message):
            fr._core.define_program("test:masks", **(given | {"masks": masks}))
