"""RNN, LSTM and GRU on a GPU with x of bfloat16 or float16: float32 parameters, rounded for each call.

Against `fr.functional`, called layer by layer with rounded weights, and against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fake_cupy
import numpy as np
import pytest
from cuda_support import MODULE, Foreign, converter, host, same_library
from support import MODULE_CELLS, make_module, random_lengths, states_of
from test_cuda_functional import MODES
from tolerances import relative_error

import fusedrnn as fr
from fusedrnn import _core

torch: Any = pytest.importorskip("torch")
HALVES = ["bfloat16", "float16"]
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def tensors(where: str, dtype: str) -> Callable[[Any], Any]:
    """Return what makes torch's arrays on the device: h in 16 bits, the c of a pair (h, c) in float32."""
    convert = converter("torch", "gpu" if where == "gpu" else "emulated")

    def make(value: Any) -> Any:
        if isinstance(value, tuple):
            return (make(value[0]), *convert(value[1:]))
        if value is None or value.dtype == bool:
            return convert(value)
        return convert(value.astype(np.float32)).to(getattr(torch, dtype))

    return make


def equal(got: Any, want: Any) -> None:
    """Both have the same type and bits."""
    for one, other in zip(states_of(got), states_of(want), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(host(one), host(other))


class ByFunctional:
    """A network of one direction, run layer by layer by `fr.functional` with rounded weights."""

    def __init__(self, module: Any, make: Callable[[Any], Any]) -> None:
        values = module.state_dict()
        self.cell = module._spec.name
        self.layers = [
            [make(values[name]) if (name := f"{w}_l{layer}{suffix}") in values else None for w in WEIGHTS]
            for layer in range(module.num_layers)
            for suffix in ("", "_reverse")[: 1 + module.bidirectional]
        ]

    def run(self, row: int, steps: Any, state: Any, options: dict[str, Any]) -> Any:
        own = dict(options)
        if own.get("reset_state") is not None:
            own["reset_state"] = tuple(part[row] for part in own["reset_state"])
        start = None if state is None else tuple(part[row] for part in state)
        y, final, tape = fr.functional.forward(self.cell, steps, self.layers[row], start, **own)
        return y, states_of(final), tape


def random_options(rng: Any, module: Any, seq_len: int, batch: int, make: Any) -> tuple[Any, dict[str, Any]]:
    """An initial state, and lengths, resets and their state."""
    directions = 1 + module.bidirectional
    rows, widths = module.num_layers * directions, module._network.widths

    def draw(*lead: int) -> Any:
        return make(tuple(rng.normal(size=(*lead, width)).astype(np.float32) for width in widths))

    options = {
        "lengths": random_lengths(rng, seq_len, batch),
        "resets": make(rng.random((seq_len, batch)) < 0.3),
        "reset_state": draw(rows),
    }
    return draw(rows, batch), options


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_a_stack_is_functional_layer_by_layer(cell: str, dtype: str, recompute: bool, where: str) -> None:
    rng, make = np.random.default_rng(0), tensors(where, dtype)
    module = make_module(cell, 5, 16, 2, dtype="float32", recompute=recompute).to("cuda")
    x = make(rng.normal(size=(6, 4, 5)))
    state, options = random_options(rng, module, 6, 4, make)
    given = {name: states_of(value) for name, value in (("state", state), *options.items())}
    bare = {name: value[0] if len(value) == 1 else value for name, value in given.items()}
    y, final, tape = module.forward(x, **bare)
    layers, plain = [], ByFunctional(module, make)
    steps: Any = x
    for row in range(2):
        steps, last, layer_tape = plain.run(row, steps, state, {**options, "recompute": recompute})
        layers.append(layer_tape)
        equal([part[row] for part in states_of(final)], last)
    equal(y, steps)
    assert final is not None and tape.layers[0].math == {"bfloat16": "bf16", "float16": "fp16"}[dtype]
    equal(module(x, **bare)[0], y)
    dy, dstate = make(rng.normal(size=y.shape)), random_options(rng, module, 6, 4, make)[0]
    dx, dstart = module.backward(tape, dy, bare_state(dstate))
    flow = dy
    for row in (1, 0):
        grads = fr.functional.backward(layers[row], flow, tuple(part[row] for part in dstate))
        flow = grads.x
        equal([part[row] for part in states_of(dstart)], states_of(grads.state))
        for name, grad in zip(WEIGHTS, grads.params, strict=True):
            if grad is not None:
                np.testing.assert_array_equal(host(module.grads[f"{name}_l{row}"]), host(grad))
    equal(dx, flow)
    assert module.flat_grads.dtype == module.flat_parameters.dtype == np.float32


def bare_state(state: Any) -> Any:
    return state[0] if len(state) == 1 else state


@pytest.mark.parametrize("layout", ["time", "batch_first", "single"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_errors_are_those_of_the_type(cell: str, dtype: str, layout: str, where: str) -> None:
    # A seed where rounding flips no relu, whose gradient jumps there.
    rng, make = np.random.default_rng(8), tensors(where, dtype)
    options: dict[str, Any] = {"bidirectional": True, "batch_first": layout == "batch_first", "num_layers": 2}
    module = make_module(cell, 16, 24, dtype="float32", **options).to("cuda")
    shape = {"time": (6, 4, 16), "batch_first": (4, 6, 16), "single": (6, 16)}[layout]
    x = make(rng.normal(size=shape))
    extra: dict[str, Any] = {}
    if layout == "batch_first":
        extra = {"lengths": [6, 2, 0, 5], "resets": make(rng.random((4, 6)) < 0.3)}
    y, state, tape = module.forward(x, **extra)
    dy = make(rng.normal(size=y.shape))
    dstate = bare_state(
        make(tuple(rng.normal(size=part.shape).astype(np.float32) for part in states_of(state)))
    )
    dx, dstart = module.backward(tape, dy, dstate)
    exact = make_module(cell, 16, 24, dtype="float64", **options)
    exact.load_state_dict({name: host(make(value)) for name, value in module.state_dict().items()})
    want, want_state, want_tape = exact.forward(
        host(x).astype(float), **{k: host(v) for k, v in extra.items()}
    )
    wide = [host(part).astype(float) for part in states_of(dstate)]
    want_dx, want_dstart = exact.backward(want_tape, host(dy).astype(float), bare_state(tuple(wide)))
    # The second layer's inputs are rounded, too.
    forward, gradient = (2 * limit for limit in MODES[dtype])
    assert relative_error(host(y), want) <= forward
    assert relative_error(host(dx), want_dx) <= gradient
    for got, expected in zip(states_of(state), states_of(want_state), strict=True):
        assert relative_error(host(got), expected) <= forward
    for got, expected in zip(states_of(dstart), states_of(want_dstart), strict=True):
        assert relative_error(host(got), expected) <= gradient
    for name, expected in exact.grads.items():
        assert relative_error(host(module.grads[name]), expected) <= gradient


@pytest.mark.parametrize("dtype", HALVES)
def test_both_directions_are_functional(dtype: str, where: str) -> None:
    rng, make = np.random.default_rng(0), tensors(where, dtype)
    module = make_module("gru", 5, 16, 1, bidirectional=True, dtype="float32").to("cuda")
    x, plain = make(rng.normal(size=(6, 4, 5))), ByFunctional(module, make)
    y, _, tape = module.forward(x, lengths=[6, 2, 0, 5])
    halves, tapes = [], []
    for row in range(2):
        part, _, layer_tape = plain.run(row, x, None, {"lengths": [6, 2, 0, 5], "reverse": row == 1})
        halves.append(part)
        tapes.append(layer_tape)
    equal(y, torch.cat(halves, 2))
    dy = make(rng.normal(size=y.shape))
    module.backward(tape, dy)
    for row, suffix in enumerate(("", "_reverse")):
        grads = fr.functional.backward(tapes[row], dy[..., 16 * row : 16 * (row + 1)])
        for name, grad in zip(WEIGHTS[:4], grads.params, strict=False):
            np.testing.assert_array_equal(host(module.grads[f"{name}_l0{suffix}"]), host(grad))


@pytest.mark.parametrize("dtype", HALVES)
def test_dropout_keeps_the_units_of_float32(dtype: str, where: str) -> None:
    rng, make = np.random.default_rng(0), tensors(where, dtype)
    module = make_module("lstm", 5, 16, 2, dropout=0.4, dtype="float32").to("cuda")
    x, plain = make(rng.normal(size=(6, 4, 5))), ByFunctional(module, make)
    module.load_random_state({"": (7, 3)})
    y, _, tape = module.forward(x)
    below, _, below_tape = plain.run(0, x, None, {})
    ones = np.ones((6, 4, 16), np.float32)
    kept = converter("torch", "gpu" if where == "gpu" else "emulated")(_core.dropout(ones, 0.4, 7, 3))
    dropped = (below.float() * kept).to(below.dtype)
    want, _, above_tape = plain.run(1, dropped, None, {})
    equal(y, want)
    dy = make(rng.normal(size=y.shape))
    dx, _ = module.backward(tape, dy)
    flow = fr.functional.backward(above_tape, dy).x
    equal(dx, fr.functional.backward(below_tape, (flow.float() * kept).to(flow.dtype)).x)
    module.eval()
    equal(module(x)[0], plain.run(1, below, None, {})[0])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["own", "torch", "jax", "other"])
def test_every_library_comes_in_and_goes_out(name: str, dtype: str, where: str) -> None:
    if name == "own" and (where == "gpu" or dtype == "bfloat16"):
        pytest.skip(
            "NumPy has no bfloat16, and not every CuPy has 16 bits: other libraries' arrays are tested"
        )
    rng, make = np.random.default_rng(0), tensors(where, dtype)
    module = make_module("lstm", 4, 6, 2, bidirectional=True, batch_first=True, dtype="float32").to("cuda")
    values = {n: rng.normal(size=s) for n, s in {"x": (3, 5, 4), "h": (4, 3, 6), "c": (4, 3, 6)}.items()}

    def give(value: Any, wide: bool = False) -> Any:
        if name == "jax":
            array = converter("jax", "gpu" if where == "gpu" else "emulated")(value.astype(np.float32))
            return array if wide else array.astype(dtype)
        if name == "own":
            array = value.astype(np.float32 if wide else np.float16)
            return fake_cupy.asarray(array) if where == "fake_cupy" else array
        array = make(value).float() if wide else make(value)
        return Foreign(array) if name == "other" else array

    def bits(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(bits, value))
        return host(torch.from_dlpack(value) if name == "other" and hasattr(value, "__dlpack__") else value)

    x, state = (
        give(values["x"]),
        (give(values["h"]), give(make(values["c"]).float().cpu().numpy(), wide=True)),
    )
    plain = make(values["x"]), (make(values["h"]), make(values["c"]).float())
    want, want_state, want_tape = module.forward(*plain)
    y, final, tape = module.forward(x, state)
    assert str(y.dtype).rpartition(".")[2] == dtype
    assert [str(part.dtype).rpartition(".")[2] for part in final] == [dtype, "float32"]
    if name != "other":
        assert all(same_library(part, x) for part in (y, *final))
    np.testing.assert_array_equal(bits(y).astype(np.float32), host(want).astype(np.float32))
    dx, dstart = module.backward(tape, y, final)
    want_dx, want_dstart = module.backward(want_tape, want, want_state)
    for got, expected in zip((dx, *dstart), (want_dx, *want_dstart), strict=True):
        assert str(got.dtype).rpartition(".")[2] == str(expected.dtype).rpartition(".")[2]
        np.testing.assert_array_equal(bits(got).astype(np.float32), host(expected).astype(np.float32))


@pytest.mark.parametrize("rows", [3, 60])
@pytest.mark.parametrize("dtype", HALVES)
def test_lookups(dtype: str, rows: int, where: str) -> None:
    rng, make = np.random.default_rng(0), tensors(where, dtype)
    module = make_module("gru", 5, 16, dtype="float32", batch_first=True).to("cuda")
    table, indices = make(rng.normal(size=(rows, 5))), rng.integers(0, 3, (4, 6))
    y, _, tape = module.forward(fr.Lookup(table, indices))
    steps = fr.Lookup(table, indices.swapaxes(0, 1).copy())
    want, _, want_tape = ByFunctional(module, make).run(0, steps, None, {})
    equal(y.transpose(0, 1), want)
    dy = make(rng.normal(size=y.shape))
    dx, _ = module.backward(tape, dy)
    equal(dx, fr.functional.backward(want_tape, dy.transpose(0, 1)).x)
    assert dx.shape == table.shape


def test_small_arrays_come_in_any_order(where: str) -> None:
    rng, make = np.random.default_rng(0), tensors(where, "bfloat16")
    module = make_module("lstm", 3, 4, dtype="float32").to("cuda")
    x, state = make(rng.normal(size=(6, 5, 3))), make(tuple(rng.normal(size=(2, 1, 5, 4)).astype(np.float32)))
    resets = make(rng.random((6, 5)) < 0.3)
    turned = tuple(part.transpose(1, 2).contiguous().transpose(1, 2) for part in state)
    assert not turned[0].is_contiguous()
    want = module(x, state, None, resets)
    equal(module(x, turned, None, resets.T.contiguous().T)[0], want[0])


@pytest.mark.parametrize("dtype", HALVES)
def test_changed_weights_are_seen(dtype: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, make = np.random.default_rng(0), tensors(where, dtype)
    module = make_module("lstm", 5, 16, dtype="float32").to("cuda")
    x = make(rng.normal(size=(6, 4, 5)))
    rounded, real = [], MODULE.round  # type: ignore[union-attr]
    monkeypatch.setattr(MODULE, "round", lambda *arguments: rounded.append(0) or real(*arguments))

    def check() -> None:
        equal(module(x)[0], ByFunctional(module, make).run(0, x, None, {})[0])

    optimiser = fr.optim.SGD(module, 0.5)
    check()
    check()
    assert len(rounded) == 4
    for _ in range(2):
        optimiser.zero_grad()
        y, _, tape = module.forward(x)
        module.backward(tape, torch.ones_like(y))
        before = host(module.flat_grads)
        before = before.copy()
        optimiser.step()
        # The tape has its weights.
        optimiser.zero_grad()
        module.backward(tape, torch.ones_like(y))
        np.testing.assert_array_equal(host(module.flat_grads), before)
        check()
    assert len(rounded) == 12
    module.load_state_dict({name: value * 2 for name, value in module.state_dict().items()})
    check()
    assert len(rounded) == 16
    view = module.parameters["weight_hh_l0"]
    view[...] = view * 0.5
    check()
    view[...] = view * 0.5
    check()
    assert len(rounded) == 24


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("optimiser", [fr.optim.SGD, fr.optim.Adam])
def test_training_lowers_a_loss(optimiser: Any, dtype: str, where: str) -> None:
    rng, make = np.random.default_rng(0), tensors(where, dtype)
    module = fr.GRU(4, 8, 2, seed=1).to("cuda")
    x, target = make(rng.normal(size=(8, 4, 4))), make(np.tanh(rng.normal(size=(8, 4, 8))))
    steps, losses = optimiser(module, 0.5 if optimiser is fr.optim.SGD else 0.02), []
    for _ in range(12):
        steps.zero_grad()
        y, _, tape = module.forward(x)
        losses.append(float(((y.float() - target.float()) ** 2).mean()))
        module.backward(tape, (y - target) / 4, need_dx=False)
        steps.step()
    assert losses[-1] < 0.9 * losses[0]
    assert all(value.dtype == np.float32 for value in module.state_dict().values())


def test_types_take_turns(where: str) -> None:
    rng = np.random.default_rng(0)
    module = make_module("lstm", 5, 16, dtype="float32").to("cuda")
    plain = make_module("lstm", 5, 16, dtype="float32")
    x = rng.normal(size=(6, 4, 5)).astype(np.float32)
    for dtype in ("bfloat16", "float32", "float16", "bfloat16"):
        y, _, tape = module.forward(tensors(where, dtype)(x))
        assert y.dtype == getattr(torch, dtype)
        limit = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}[dtype]
        assert relative_error(host(y), plain(x)[0]) <= limit
        module.backward(tape, y)
