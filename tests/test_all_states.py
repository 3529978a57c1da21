"""all_states: what y has of the states beyond h, and the gradients that come back with dy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from support import layer_params, make_module, num_threads, numeric_gradient, states_of
from test_masked_cells import normal, random_call, random_state
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

import fusedrnn as fr

CASES = [
    *(("lstm", dtype, kind, 2, True) for dtype in ("float64", "float32") for kind in ("plain", "both")),
    ("lstm", "float64", "plain", 1, False),
    ("lstm_proj", "float64", "both", 2, True),
    *((name, "float64", "both", 1, True) for name in ("peephole", "sru", "lif", "slstm")),
]


@pytest.mark.parametrize(("name", "dtype", "kind", "layers", "both"), CASES)
def test_reference(name: str, dtype: str, kind: str, layers: int, both: bool) -> None:
    """States after all steps, and all gradients with those of these states, of tapes and computed again."""
    net = make_module(name, 4, 11, layers, dtype=dtype, bidirectional=both, all_states=True)
    rng = np.random.default_rng(5)
    for array in net.parameters.values():
        array[...] = rng.normal(size=array.shape) * 0.6
    call = random_call(net, kind)
    if name == "slstm":  # n is positive
        for part in (*call["state"], *(call["reset_state"] or ())):
            np.abs(part, out=part)
    parts = {key: None if call[key] is None else states_of(call[key]) for key in ("state", "reset_state")}
    want_y, want_final, tapes = reference.stack_forward(
        name.removesuffix("_proj"),
        call["x"],
        layer_params(net),
        parts["state"],
        lengths=call["lengths"],
        resets=call["resets"],
        reset_state=parts["reset_state"],
    )
    outer = want_y.shape[2]
    widths = [width for width in net._network.widths[1:] for _ in tapes[-1]]
    wanted = np.zeros((*want_y.shape[:2], outer + sum(widths)))
    wanted[..., :outer] = want_y
    columns = outer + np.cumsum([0, *widths])
    for k in range(1, len(net._network.widths)):
        for direction, tape in enumerate(tapes[-1]):
            at = columns[(k - 1) * len(tapes[-1]) + direction]
            for row, steps in enumerate(tape.rows):
                for step in steps:
                    wanted[step.t, row, at : at + net._network.widths[k]] = step.after[k]
    y, final, kept = net.forward(**call)
    assert_close(y, wanted, "output")
    assert np.array_equal(net(**call)[0], y)
    for part, want in zip(states_of(final), want_final, strict=True):
        assert_close(part, want, "state")
    dy, dstate = normal(*y.shape, dtype=dtype, seed=2), random_state(net, 5, 90)
    count = len(tapes[-1])
    flow, want_grads = dy[..., :outer].astype(np.float64), {}
    starts: dict[int, Any] = {}
    for layer in range(layers - 1, -1, -1):
        total: Any = 0.0
        for direction, part in enumerate(np.split(flow, count, axis=2)):
            row, top = layer * count + direction, layer + 1 == layers
            beyond = [
                dy[..., columns[k * count + direction] :][..., :width].astype(np.float64)
                for k, width in enumerate(net._network.widths[1:])
            ]
            last = tuple(end[row] for end in states_of(dstate))
            dx, starts[row], grads = reference.backward(
                tapes[layer][direction], part, last, beyond if top else ()
            )
            total = total + dx
            names = tapes[layer][direction], net._suffixes(layer)[direction]
            for each, grad in zip(reference.cell_of(names[0].cell).param_names, grads, strict=True):
                want_grads[each + names[1]] = grad
        flow = total
    for recompute in (False, True):
        net.recompute = recompute
        net.zero_grad()
        dx, start = net.backward(net.forward(**call)[2] if recompute else kept, dy, dstate)
        assert_close(dx, flow, "gradient", "dx")
        for k, part in enumerate(states_of(start)):
            assert_close(part, np.stack([starts[row][k] for row in sorted(starts)]), "gradient", "dstate")
        for each, grad in net.grads.items():
            assert_close(grad, want_grads[each], "gradient", each)


@pytest.mark.once
@pytest.mark.parametrize(
    "options",
    [
        {"layer_norm": True, "num_layers": 2},
        {"zoneout": 0.3, "recurrent_dropout": 0.3, "merge": "mul", "bidirectional": True},
        {"hidden_size": [5, 7], "residual": False, "locked_dropout": 0.4, "learned_reset_state": True},
    ],
    ids=["layer_norm", "masks", "sizes"],
)
def test_numeric_gradients(options: dict[str, Any]) -> None:
    net = fr.LSTM(**{"input_size": 3, "hidden_size": 5, **options}, all_states=True, dtype="float64", seed=1)
    call, offset = random_call(net, "both"), net._noise.offset

    def value() -> float:
        net._noise.offset = offset
        return float(np.vdot(dy, net(**call)[0]))

    y, _, _ = net.forward(**call)
    dy = normal(*y.shape)
    net._noise.offset = offset
    dx, _ = net.backward(net.forward(**call)[2], dy)
    for at, grad in ((call["x"], dx), (net.parameters["bias_ih_l0"], net.grads["bias_ih_l0"])):
        assert relative_error(grad, numeric_gradient(value, at)) < CENTRAL_DIFFERENCES


@pytest.mark.once
def test_layouts_and_masks() -> None:
    """batch_first, one sequence, steps that are left out, windows; any number of threads."""
    net = fr.LSTM(4, 9, all_states=True, dtype="float64", seed=0)
    turned = fr.LSTM(4, 9, all_states=True, batch_first=True, dtype="float64", seed=0)
    x = normal(6, 5, 4)
    y, (h, c), tape = net.forward(x)
    assert np.array_equal(y[-1], np.concatenate([h[0], c[0]], axis=1))
    dx, _ = net.backward(tape, y.copy())
    other, _, turned_tape = turned.forward(x.swapaxes(0, 1))
    assert np.array_equal(other.swapaxes(0, 1), y)
    assert np.array_equal(turned.backward(turned_tape, other.copy())[0].swapaxes(0, 1), dx)
    single, _, tape = net.forward(x[:, 0])
    assert_close(single, y[:, 0], "output")
    assert_close(net.backward(tape, single.copy())[0], dx[:, 0], "gradient")
    mask = np.ones((6, 5), bool)
    mask[2] = False
    masked, _, tape = net.forward(x, mask=mask)
    kept = [0, 1, 3, 4, 5]
    want, _, other_tape = net.forward(x[kept])
    assert np.array_equal(masked[kept], want) and not masked[2].any()
    assert np.array_equal(
        net.backward(tape, masked.copy())[0][kept], net.backward(other_tape, want.copy())[0]
    )
    out, _, tape = fr.checkpoint(net, x, 2)
    assert np.array_equal(out, y)
    assert_close(tape.backward(y.copy())[0], dx, "gradient")
    found = []
    for threads in (1, 2, 3):
        wide = fr.LSTM(16, 136, all_states=True, seed=0)
        with num_threads(threads):
            y, _, tape = wide.forward(normal(20, 3, 16, dtype="float32"))
            found.append([y, wide.backward(tape, np.array(y))[0], wide.flat_grads])
    for others in found[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(found[0], others, strict=True))


@pytest.mark.once
def test_arguments() -> None:
    with pytest.raises(ValueError, match="all_states: expected False, since gru has one state, h, got True"):
        fr.GRU(3, 4, all_states=True)
    with pytest.raises(TypeError, match="all_states: expected a bool"):
        fr.LSTM(3, 4, all_states=1)  # type: ignore[arg-type]
    net = fr.LSTM(3, 4, all_states=True)
    assert repr(net) == "LSTM(3, 4, all_states=True)"
    with pytest.raises(ValueError, match="stream: expected all_states=False, got True"):
        net.stream()
    with pytest.raises(ValueError, match="quantize: expected a network without all_states"):
        net.quantize("int8")
    y, _, tape = net.forward(np.zeros((2, 1, 3), np.float32))
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 1, 8\)|dy: expected shape"):
        net.backward(tape, y[..., :4])
