"""init_state, learned_reset_state, num_heads, and the forget gates of SLSTM."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import data_cells
import numpy as np
import pytest
import reference
import test_data_cells
from support import Array, layer_params, make_module, num_threads, numeric_gradient, states_of
from test_masked_cells import normal, random_call, random_state
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

import fusedrnn as fr


def reset_gradients(name: str, net: Any, call: dict[str, Any], dy: Array, dstate: Any) -> list[list[Array]]:
    """Of each layer and direction what arrives at each state where a reset puts another in its place.

    Each stretch between two resets is a sequence of its own, which begins with what the reset gave it.
    """
    x, resets = call["x"].astype(np.float64), call["resets"]
    seq_len, batch = x.shape[:2]
    lengths = np.full(batch, seq_len) if call["lengths"] is None else call["lengths"]
    given = [
        [part[at].astype(np.float64) for part in states_of(call["state"])] for at in range(net._network.rows)
    ]
    kept: list[Any] = []
    for layer, params in enumerate(layer_params(net)):
        outputs = []
        for direction, each in enumerate(params):
            at = layer * len(params) + direction
            fill = [net.parameters[f"reset_{s}"][at, 0].astype(np.float64) for s in net._unmasked.state_names]
            y = np.zeros((seq_len, batch, each[1].shape[1]))
            tapes = []
            for b in range(batch):
                # The borders in the order in which the rows are run through.
                cuts = [t for t in range(1 - direction, lengths[b]) if resets[t, b]]
                if direction == 0 and lengths[b] and resets[0, b]:
                    cuts = [0, *cuts]
                edges = [0, *[t for t in cuts if t], int(lengths[b])]
                stretches = [(s, e) for s, e in pairwise(edges) if e > s]
                stretches = stretches[::-1] if direction else stretches
                for k, (s, e) in enumerate(stretches):
                    fresh = k == 0 and not (direction == 0 and resets[0, b])
                    start = [part[b] for part in given[at]] if fresh else fill
                    out, _, tape = reference.forward(
                        name, x[s:e, b : b + 1], each, [part[None] for part in start], reverse=direction == 1
                    )
                    y[s:e, b] = out[:, 0]
                    tapes.append((b, s, e, fresh, k + 1 == len(stretches), tape))
            outputs.append(y)
            kept.append(tapes)
        x = np.concatenate(outputs, axis=2)
    found: list[list[Array]] = [[] for _ in kept]
    flow = dy.astype(np.float64)
    directions = 1 + net.bidirectional
    for layer in range(net.num_layers - 1, -1, -1):
        below: Any = None
        for direction, part in enumerate(np.split(flow, directions, axis=2)):
            at = layer * directions + direction
            total = [np.zeros(end.shape[2]) for end in states_of(dstate)]
            for b, s, e, fresh, ends, tape in kept[at]:
                last = [
                    end[at][b : b + 1] if ends else np.zeros((1, end.shape[2])) for end in states_of(dstate)
                ]
                dx, starts, _ = reference.backward(tape, part[s:e, b : b + 1], last)
                below = np.zeros((seq_len, batch, dx.shape[2])) if below is None else below
                below[s:e, b] += dx[:, 0]
                if not fresh:
                    total = [one + start[0] for one, start in zip(total, starts, strict=True)]
            found[at] = total
        flow = below
    return found


@pytest.mark.parametrize(
    ("name", "dtype", "kind", "layers"),
    [
        *(("lstm", dtype, kind, 2) for dtype in ("float64", "float32") for kind in ("resets", "both")),
        *((name, "float64", "both", 1) for name in ("gru", "rnn_tanh", "peephole", "lif_recurrent", "mgu")),
    ],
)
def test_learned_reset_state(name: str, dtype: str, kind: str, layers: int) -> None:
    """Outputs are those of a reset_state that is given; the gradient is the sum over all resets."""
    net = make_module(name, 4, 9, layers, dtype=dtype, bidirectional=True, learned_reset_state=True)
    rng = np.random.default_rng(5)
    for array in net.parameters.values():
        array[...] = rng.normal(size=array.shape) * 0.6
    call = random_call(net, kind) | {"reset_state": None}
    parts = [net.parameters[f"reset_{state}"][:, 0] for state in net._unmasked.state_names]
    given = net._unmasked.pack_state(parts)
    y, _, _ = net.forward(**call)
    want_y, _, other = net.forward(**call | {"reset_state": given})
    assert np.array_equal(y, want_y)
    dy, dstate = normal(*y.shape, dtype=dtype, seed=2), random_state(net, 5, 90)
    want_dx, _ = net.backward(other, dy, dstate)
    want_grads = {n: grad.copy() for n, grad in net.grads.items()}
    for state in net._unmasked.state_names:  # a state that was given has no gradient
        assert not want_grads[f"reset_{state}"].any()
    wanted = reset_gradients(name, net, call, dy, dstate)
    for recompute in (False, True):
        net.zero_grad()
        net.recompute = recompute
        dx, _ = net.backward(net.forward(**call)[2], dy, dstate)
        assert np.array_equal(dx, want_dx)
        for k, state in enumerate(net._unmasked.state_names):
            want = np.stack([each[k] for each in wanted])[:, None]
            assert_close(net.grads[f"reset_{state}"], want, "gradient", state)
        for each, grad in net.grads.items():
            if not each.startswith("reset_"):
                assert np.array_equal(grad, want_grads[each])


@pytest.mark.parametrize(
    "options",
    [
        {"proj_size": 5},
        {"layer_norm": True},
        {"layer_norm": True, "proj_size": 5},
        {"proj_size": 5, "zoneout": (0, 0.3)},
    ],
    ids=["projected", "layer_norm", "both", "zoneout"],
)
def test_numeric_gradients_of_reset_states(options: dict[str, Any]) -> None:
    net = fr.LSTM(4, 9, 2, dtype="float64", seed=1, learned_reset_state=True, **options).eval()
    for name in ("reset_h", "reset_c"):
        net.parameters[name][...] = normal(*net.parameters[name].shape, seed=3)
    call = random_call(net, "both") | {"reset_state": None}
    y, _, tape = net.forward(**call)
    dy = normal(*y.shape)
    net.backward(tape, dy)
    for name in ("reset_h", "reset_c", *[each for each in net.parameters if each.startswith("weight_hr")]):
        numeric = numeric_gradient(lambda: float(np.vdot(dy, net(**call)[0])), net.parameters[name])
        assert relative_error(net.grads[name], numeric) < CENTRAL_DIFFERENCES


def test_bits_do_not_depend_on_threads() -> None:
    found = []
    resets = np.random.default_rng(0).random((20, 17)) < 0.2
    for batch in (17, 2):
        for threads in (1, 2, 3):
            net = fr.LSTM(16, 136, learned_reset_state=True, num_heads=4, seed=0)
            with num_threads(threads):
                y, final, tape = net.forward(normal(20, batch, 16, dtype="float32"), resets=resets[:, :batch])
                net.backward(tape, np.array(y), final)
            found.append(net.grads)
        for other in found[-2:]:
            for name, grad in other.items():
                assert np.array_equal(grad, found[-3][name]), name


@pytest.mark.once
def test_init_state(tmp_path: Path) -> None:
    x = normal(6, 3, 4)
    start = tuple(normal(2, 9, seed=k) for k in (1, 2))
    net = fr.LSTM(4, 9, 2, init_state=start, dtype="float64", seed=0)
    repeated = tuple(part[:, None].repeat(3, axis=1) for part in start)
    plain = fr.LSTM(4, 9, 2, dtype="float64", seed=0)
    y, _ = plain(x, repeated)
    assert np.array_equal(net(x)[0], y)
    assert np.array_equal(net(x, repeated)[0], y)
    stream = net.stream(3)
    assert_close(np.stack([stream(step).copy() for step in x]), y, "output")
    assert list(net.state_dict())[-2:] == ["init_h", "init_c"]
    assert "init_state=..." in repr(net)
    other = fr.LSTM(4, 9, 2, init_state=tuple(np.zeros_like(part) for part in start), dtype="float64")
    other.load_state_dict(net.state_dict())
    fr.save(net, tmp_path / "net.npz")
    for twin in (other, copy.deepcopy(net), fr.load(tmp_path / "net.npz")):
        assert np.array_equal(twin(x)[0], y)
    learned = fr.LSTM(4, 9, 2, init_state=start, learned_state=True, dtype="float64", seed=0)
    assert np.array_equal(learned.parameters["c0"][:, 0], start[1])
    assert np.array_equal(learned(x)[0], y)


@pytest.mark.once
def test_normal_states() -> None:
    """Drawn for each row and call in training mode, zeros in evaluation mode; once where they are learned."""
    net = fr.GRU(4, 400, init_state="normal", dtype="float64", seed=0)
    for array in net.parameters.values():  # then h is a quarter of what it was two steps before
        array[...] = 0
    x, offset = np.zeros((2, 30, 4)), net._noise.offset
    first, second = (net.forward(x)[0][1] * 4 for _ in range(2))
    assert not np.array_equal(first, second)
    for drawn in (first, second):
        assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 1) < 0.03
        assert abs(np.corrcoef(drawn)[np.triu_indices(30, 1)]).max() < 0.25
    net._noise.offset = offset
    assert np.array_equal(net(x)[0][1] * 4, first)
    _, start = net.backward(net.forward(x)[2], np.ones((2, 30, 400)))
    assert start.any()
    assert not net.eval()(x)[0].any()
    learned = fr.GRU(4, 400, init_state="normal", learned_state=True, seed=0)
    assert abs(learned.parameters["h0"].std() - 1) < 0.1
    assert np.array_equal(learned(x[0].astype("float32"))[0], learned(x[0].astype("float32"))[0])
    assert not fr.GRU(4, 5, init_state="normal", learned_state=True, init=None).flat_parameters.any()


@pytest.mark.once
@pytest.mark.parametrize("make", [fr.LSTM, fr.SLSTM, fr.GRU])
def test_heads(make: Any) -> None:
    """Blocks are orthogonal, and nothing passes from head to head, in training either."""
    net = make(3, 12, 2, num_heads=3, bidirectional=True, seed=0, dtype="float64")
    head = np.arange(12) // 4
    apart = head[:, None] != head
    optimiser = fr.optim.AdamW(net, lr=0.1)
    x = normal(5, 4, 3)
    for _ in range(3):
        y, _, tape = net.forward(x)
        net.backward(tape, np.array(y))
        optimiser.step()
        net.zero_grad()
    fresh = make(3, 12, num_heads=3, seed=0).parameters["weight_hh_l0"].reshape(-1, 12, 12)[1]
    np.testing.assert_allclose(fresh[4:8, 4:8] @ fresh[4:8, 4:8].T, np.eye(4), atol=1e-6)
    for name, weight in net.parameters.items():
        if name.startswith("weight_hh"):
            assert (
                not weight.reshape(-1, 12, 12)[:, apart].any() and weight.reshape(-1, 12, 12)[:, ~apart].all()
            )
    full = {name: np.ones_like(value) for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"^1\.weight_hh_l0: expected zeros between the 3 heads"):
        fr.Sequential(fr.Dropout(), net).load_state_dict({f"1.{name}": value for name, value in full.items()})
    assert fr.check_gradients(net, x).error < 1e-6
    one = make(3, 12, num_heads=3, seed=0, dtype="float64")
    y, _, tape = one.forward(x)
    dy = np.zeros_like(y)
    dy[..., 4:8] = 1
    one.backward(tape, dy)
    for name in ("weight_hh_l0", "bias_ih_l0"):
        others = one.grads[name].reshape(-1, 3, 4, *one.grads[name].shape[1:])[:, [0, 2]]
        assert one.grads[name].any() and not others.any()


@pytest.mark.once
def test_slstm(monkeypatch: pytest.MonkeyPatch) -> None:
    """With exponential forget gates against the reference; sums that overflow exp alone; from zeros."""
    monkeypatch.setitem(data_cells.CELLS, "slstm_exp", data_cells.SLSTM_EXP)
    monkeypatch.setitem(reference.DATA, "slstm_exp", data_cells.SLSTM_EXP.reference)
    everything = test_data_cells.OPTIONS["everything"]
    test_data_cells.test_against_the_reference("slstm_exp", "float64", everything)
    for forget_gate in ("sigmoid", "exp"):
        net = fr.SLSTM(2, 8, forget_gate=forget_gate, seed=0)
        x = normal(40, 3, 2, dtype="float32") * 300
        y, (_, _, n, _), tape = net.forward(x)
        dx, _ = net.backward(tape, np.ones_like(y))
        assert np.isfinite(y).all() and np.isfinite(dx).all() and np.isfinite(net.flat_grads).all()
        # A mean of values of tanh, whatever the weights are.
        assert np.abs(y).max() <= 1 + 1e-6 and n.min() >= 1 and np.abs(y[-1]).max() > 0.1


@pytest.mark.once
def test_arguments() -> None:
    for options, message in (
        ({"init_state": "ones"}, "init_state: expected 'zeros', 'normal' or a state, got 'ones'"),
        ({"init_state": (np.zeros((1, 4)),)}, r"init_state: expected 2 array\(s\)"),
        ({"init_state": (np.zeros((1, 4)), np.zeros((2, 4)))}, r"init_state\[1\]: expected shape"),
        ({"init_state": (np.zeros((1, 4)), np.full((1, 4), np.nan))}, r"init_state\[1\]: expected finite"),
        ({"num_heads": 3}, "num_heads: expected a divisor of hidden_size = 4, got 3"),
        ({"num_heads": 0}, "num_heads: expected an int >= 1"),
        ({"num_heads": 2, "proj_size": 2}, "num_heads: expected 1 with a projection, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            fr.LSTM(3, 4, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_heads: expected 1, since mingru has no weight_hh, got 2"):
        fr.MinGRU(3, 4, num_heads=2)
    with pytest.raises(ValueError, match="forget_gate: expected 'sigmoid' or 'exp', got 'relu'"):
        fr.SLSTM(3, 4, forget_gate="relu")
    for name, value in (("learned_reset_state", 1), ("init_state", 3), ("num_heads", "2")):
        with pytest.raises(TypeError, match=f"{name}: expected"):
            fr.LSTM(3, 4, **{name: value})  # type: ignore[arg-type]
    for options in ({"learned_reset_state": True}, {"num_heads": 2}):
        (name, _), *_ = options.items()
        if name != "num_heads":
            with pytest.raises(ValueError, match=f"quantize: expected a network without {name}"):
                fr.LSTM(3, 4, **options).quantize("int8")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="init_state: expected 0 or evaluation mode, got normal"):
        fr.checkpoint(fr.LSTM(3, 4, init_state="normal"), np.zeros((6, 2, 3), np.float32), 2)
    fr.LSTM(3, 4, num_heads=2).quantize("int8")
