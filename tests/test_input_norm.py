"""batch_norm against a network whose products are computed, normalised and differentiated one by one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import data_cells
import numpy as np
import pytest
import reference
from support import Array, layer_params, make_module, num_threads, states_of
from test_masked_cells import normal, random_call, random_state
from tolerances import assert_close

import fusedrnn as fr

pytestmark = pytest.mark.once
EPS = 1e-5


@dataclass
class Normed:
    """Of one layer and direction: W x normalised, what it was divided by, and the parameters."""

    x: Array
    counts: Array
    values: Array
    std: Array
    params: tuple[Any, ...]
    gain: Array
    tape: Any


def normed(x: Array, counts: Array, w: Array, running: tuple[Array, Array] | None) -> tuple[Array, Array]:
    """(W x - mean) / std of steps (T, B, I) that count, and std."""
    products = np.einsum("tbi,gi->tbg", x, w)
    if running is None:
        rows = products[counts]
        mean, var = rows.mean(axis=0), rows.var(axis=0)
    else:
        mean, var = running
    std = np.sqrt(var + EPS)
    return (products - mean) / std, std


def run(name: str, net: Any, call: dict[str, Any]) -> tuple[Array, Any, list[list[Normed]]]:
    """y, the final states and what backward needs."""
    x = call["x"].astype(np.float64)
    seq_len, batch = x.shape[:2]
    lengths = np.full(batch, seq_len) if call["lengths"] is None else call["lengths"]
    counts = np.arange(seq_len)[:, None] < lengths
    saved = dict(net.named_buffers())
    finals: list[Any] = []
    kept: list[list[Normed]] = []
    for layer, params in enumerate(layer_params(net)):
        outputs = []
        kept.append([])
        for direction, (w, *others) in enumerate(params):
            at, suffix = len(finals), net._suffixes(layer)[direction]
            w = w.astype(np.float64)
            running = saved[f"running_mean{suffix}"], saved[f"running_var{suffix}"]
            values, std = normed(x, counts, w, None if net.training else running)
            gain = net.parameters[f"gain_ih{suffix}"].astype(np.float64)
            y, final, tape = reference.forward(
                name,
                values * gain,
                (np.eye(len(w)), *others),
                tuple(part[at] for part in states_of(call["state"])),
                lengths=lengths,
                resets=call["resets"],
                reset_state=None
                if call["reset_state"] is None
                else tuple(part[at] for part in states_of(call["reset_state"])),
                reverse=direction == 1,
            )
            outputs.append(y)
            finals.append(final)
            kept[-1].append(Normed(x, counts, values, std, (w, *others), gain, tape))
        x = np.concatenate(outputs, axis=2)
    return x, tuple(np.stack(part) for part in zip(*finals, strict=True)), kept


def gradients(net: Any, kept: Sequence[Sequence[Normed]], dy: Array, dstate: Any) -> tuple[Array, Any, Any]:
    """dx, dstate and the gradients of the parameters by name."""
    flow, starts, grads = dy.astype(np.float64), {}, {}
    for layer in range(len(kept) - 1, -1, -1):
        total: Any = 0.0
        parts = np.split(flow, len(kept[layer]), axis=2)
        for direction, (own, part) in enumerate(zip(kept[layer], parts, strict=True)):
            at, suffix = layer * len(parts) + direction, net._suffixes(layer)[direction]
            last = tuple(end[at] for end in states_of(dstate))
            d_scaled, starts[at], found = reference.backward(own.tape, part, last)
            rows, n = d_scaled[own.counts], own.values[own.counts]
            d_values = rows * own.gain
            if net.training:
                d_values = d_values - d_values.mean(axis=0) - n * (d_values * n).mean(axis=0)
            d_products = np.zeros_like(d_scaled)
            d_products[own.counts] = d_values / own.std
            total = total + d_products @ own.params[0]
            grads["weight_ih" + suffix] = np.einsum("tbg,tbi->gi", d_products, own.x)
            grads["gain_ih" + suffix] = (rows * n).sum(axis=0)
            names = reference.cell_of(own.tape.cell).param_names
            grads |= {f"{n}{suffix}": g for n, g in list(zip(names, found, strict=True))[1:]}
        flow = total
    stacked = tuple(np.stack(part) for part in zip(*(starts[k] for k in sorted(starts)), strict=True))
    return flow, stacked, grads


def made(name: str, dtype: str = "float64", inputs: int = 4, **options: Any) -> Any:
    net = make_module(name, inputs, 6, dtype=dtype, **{"batch_norm": True, **options})
    rng = np.random.default_rng(8)
    for each, array in net.parameters.items():
        array[...] = rng.normal(size=array.shape) * 0.5 + (each[:4] == "gain")
    for _, array in net.named_buffers():
        array[...] = rng.uniform(0.5, 1.5, array.shape)
    return net


KINDS = [
    (dtype, kind, training)
    for dtype in ("float64", "float32")
    for kind in ("plain", "both")
    for training in (True, False)
]
OTHERS = ("gru", "rnn_tanh", "ligru", "slstm", "min_gru", "peephole")
CASES = [*(("lstm", *each) for each in KINDS), *((name, "float64", "both", True) for name in OTHERS)]


@pytest.mark.parametrize("inputs", [4, 40])  # fewer than there are steps, and more
@pytest.mark.parametrize(("name", "dtype", "kind", "training"), CASES)
def test_reference(name: str, dtype: str, kind: str, training: bool, inputs: int) -> None:
    """Outputs, final states and all gradients of two layers; the tape serves twice."""
    net = made(name, dtype, inputs, num_layers=2, bidirectional=kind == "both")
    net.train(training)
    call = random_call(net, kind)
    if name == "slstm":  # n is positive
        call["state"] = tuple(np.abs(part) for part in call["state"])
    want_y, want_final, kept = run(name, net, call)
    y, final, tape = net.forward(**call)
    assert_close(y, want_y, "output")
    for part, want in zip(states_of(final), want_final, strict=True):
        assert_close(part, want, "state")
    dy, dstate = normal(*y.shape, dtype=dtype, seed=2), random_state(net, 5, 90)
    want_dx, want_start, want_grads = gradients(net, kept, dy, dstate)
    for each in net.parameters:
        net.parameters[each][...] += 1  # the tape has those of forward
    for times in (1, 2):
        dx, start = net.backward(tape, dy, dstate)
        assert_close(dx, want_dx, "gradient", "dx")
        if call["lengths"] is not None:
            assert not dx[np.arange(6)[:, None] >= call["lengths"]].any()
        for part, want in zip(states_of(start), want_start, strict=True):
            assert_close(part, want, "gradient", "dstate")
        for each, grad in net.grads.items():
            assert_close(grad, times * want_grads[each], "gradient", each)


def test_running_statistics() -> None:
    """They move by a tenth in training mode, the variance with Bessel's correction, and are saved."""
    net = made("gru")
    x, lengths = normal(6, 5, 4), np.array([4, 0, 6, 1, 5])
    x[4:, 0] = np.nan  # what does not count
    before = {name: array.copy() for name, array in net.named_buffers()}
    net(x, lengths=lengths)
    rows = x[np.arange(6)[:, None] < lengths] @ net.parameters["weight_ih_l0"].T
    buffers = dict(net.named_buffers())
    want = {"running_mean_l0": rows.mean(axis=0), "running_var_l0": rows.var(axis=0, ddof=1)}
    for name, new in want.items():
        assert_close(buffers[name], 0.9 * before[name] + 0.1 * new, "state")
    moved = {name: array.copy() for name, array in buffers.items()}
    y = net.eval()(x[:, 2:3])[0]
    net.train().forward(np.zeros((0, 5, 4)))
    for name, array in net.named_buffers():
        assert np.array_equal(array, moved[name])
    assert np.isfinite(fr.GRU(0, 6, batch_norm=True)(np.zeros((3, 2, 0), np.float32))[0]).all()
    twin = fr.GRU(4, 6, batch_norm=True, dtype="float64", init=None)
    twin.load_state_dict(net.state_dict())
    for other in (twin, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert np.array_equal(other.eval()(x[:, 2:3])[0], y)
    stream = twin.stream()
    assert_close(np.stack([stream(step).copy() for step in x[:, 2]]), y[:, 0], "output")


def test_options_around_it() -> None:
    """Look-ups are their rows, masks and dropout join, frozen networks hand gradients on, biases may lack."""
    options = {"weight_dropout": 0.3, "locked_dropout": (0.0, 0.2), "learned_state": True, "num_layers": 2}
    net = made("lstm", bias=False, **options)
    table, tokens = normal(9, 4), np.random.default_rng(0).integers(0, 9, (6, 5))
    offset = net._noise.offset
    y, _, tape = net.forward(fr.Lookup(table, tokens))
    net._noise.offset = offset
    want, _, other = net.forward(table[tokens])
    assert np.array_equal(y, want)
    dtable, _ = net.backward(tape, np.ones_like(y))
    grads = net.flat_grads.copy()
    net.requires_grad_(False)
    dx, _ = net.backward(other, np.ones_like(y))
    assert np.array_equal(net.flat_grads, grads)
    summed = np.zeros_like(table)
    np.add.at(summed, tokens, dx)
    assert_close(dtable, summed, "gradient")
    mask = np.random.default_rng(1).random((6, 5)) < 0.7
    plain = made("gru")
    x = np.where(mask[..., None], normal(6, 5, 4), np.nan)
    y, _, tape = plain.forward(x, mask=mask)
    dx, _ = plain.backward(tape, np.ones_like(y))
    assert np.isfinite(y).all() and np.isfinite(dx).all() and not dx[~mask].any()


def test_bits_do_not_depend_on_threads() -> None:
    found = []
    for threads in (1, 2, 3):
        net = fr.LSTM(16, 40, 2, bidirectional=True, batch_norm=True, recompute=threads == 2, seed=0)
        with num_threads(threads):
            y, final, tape = net.forward(normal(20, 17, 16, dtype="float32"))
            dx, _ = net.backward(tape, np.array(y), final)
        found.append([y, dx, *states_of(final), *net.grads.values(), *dict(net.named_buffers()).values()])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert np.array_equal(one, two)


def test_it_is_undone_by_the_scale_of_the_input() -> None:
    """What normalisation is for: another scale and offset of x give the same outputs."""
    net = fr.LSTM(4, 6, batch_norm=True, seed=0, dtype="float64")
    x = normal(50, 8, 4)
    np.testing.assert_allclose(net(1e3 * x + 7)[0], net(x)[0], atol=1e-4)


def test_arguments() -> None:
    for make, message in (
        (
            lambda: fr.LSTM(3, 4, layer_norm=True, batch_norm=True),
            "batch_norm: expected False, since lstm_layer",
        ),
        (lambda: made("gru")(np.ones((1, 1, 4))), "batch_norm: expected two steps that count"),
        (lambda: fr.LSTM(3, 4, batch_norm=True).quantize("int8"), "expected a network without batch_norm"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="batch_norm: expected a bool"):
        fr.LSTM(3, 4, batch_norm=1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="batch_norm: expected 0 or evaluation mode"):
        fr.checkpoint(fr.LSTM(3, 4, batch_norm=True), np.zeros((6, 2, 3), np.float32), 2)
    net = made("gru")
    before = {name: array.copy() for name, array in net.named_buffers()}
    with pytest.raises(ValueError, match="state: expected shape"):
        net(normal(6, 5, 4), np.zeros((1, 4, 6)))
    for name, array in net.named_buffers():
        assert np.array_equal(array, before[name])
    assert fr.LiGRU(3, 4).batch_norm and data_cells.CELLS["ligru"].make(3, 4).batch_norm is False
