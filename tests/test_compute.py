"""Products in bfloat16 against references that round as they do, and where they are refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_support import to_bf16
from reference import CELLS as REFERENCE
from support import MODULE_CELLS, Array, make_module, run_python, states_of
from tolerances import assert_close, relative_error

import fusedrnn as fr
from fusedrnn import _core

HAS_BF16 = _core.config()["bf16_isa"] is not None
WITHOUT = "this CPU lacks its products; tests/native has their kernels in an emulation"
# Of a network against the one in float32: rounding to 8 bits, or to 16, over some steps.
DISTANCES = {"bf16": 0.02, "bf16x3": 1e-4}
each_compute = pytest.mark.parametrize(
    "compute",
    [
        pytest.param(name, marks=pytest.mark.skipif(_core.config()[f"{name}_isa"] is None, reason=WITHOUT))
        for name in DISTANCES
    ],
)
needs_bf16 = pytest.mark.skipif(
    not HAS_BF16, reason="neither AMX nor AVX512_BF16; tests/native has their kernels in an emulation"
)
DISTANCE = DISTANCES["bf16"]
SHAPES = [(1, 1, 1, 1), (3, 2, 5, 7), (5, 16, 17, 16), (4, 33, 70, 40), (2, 65, 33, 130), (2, 3, 600, 20)]


def product(a: Array, b: Array) -> Array:
    """Return a b^T of rounded operands, exact but for the last bits of float64."""
    return np.asarray(to_bf16(a).astype(np.float64) @ to_bf16(b).astype(np.float64).T)


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def train(network: Any, x: Array, **options: Any) -> list[Array]:
    """Return y, the final state, dx, the initial state's gradient and those of all parameters."""
    y, final, tape = network.forward(x, **options)
    network.zero_grad()
    dx, start = network.backward(tape, draw(*y.shape, seed=1))
    parts = [part for state in (final, start) for part in states_of(state)]
    return [y.copy(), dx, *parts, *[grad.copy() for grad in network.grads.values()]]


@needs_bf16
@pytest.mark.parametrize("out", [1, 16, 33])
@pytest.mark.parametrize("inputs", [1, 31, 64, 513])
@pytest.mark.parametrize("rows", [1, 7, 17, 48, 65, 550])
def test_linear(rows: int, inputs: int, out: int) -> None:
    layer = fr.Linear(inputs, out, seed=0, compute="bf16")
    x, dy = draw(rows, inputs), draw(rows, out, seed=1)
    y, tape = layer.forward(x)
    dx = layer.backward(tape, dy)
    weight, bias = layer.parameters["weight"], layer.parameters["bias"]
    assert_close(y, product(x, weight) + bias, "output")
    assert_close(dx, product(dy, weight.T), "gradient")
    assert_close(layer.grads["weight"], product(dy.T, x.T), "gradient")
    assert_close(layer.grads["bias"], dy.sum(axis=0, dtype=np.float64), "gradient")
    assert np.array_equal(layer(x), y)


@needs_bf16
@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_forward(cell: str, sizes: tuple[int, int, int, int]) -> None:
    """Each step from the h that the kernel gave, so that a value next to a tie rounds as the kernel's did."""
    steps, batch, inputs, hidden = sizes
    network = fr.Recurrent(cell, inputs, hidden, seed=0, compute="bf16")
    x = draw(steps, batch, inputs)
    y, final = network(x)
    p = {name.removesuffix("_l0"): value for name, value in network.parameters.items()}
    states = [np.zeros((batch, hidden)) for _ in range(fr.CELLS[cell].states)]
    want = np.empty(y.shape)
    for t in range(steps):
        states[0] = y[t - 1] if t else np.zeros((batch, hidden), np.float32)
        a = product(x[t], p["weight_ih"]) + p["bias_ih"]
        b = product(states[0], p["weight_hh"]) + p["bias_hh"]
        rows = [
            REFERENCE[cell].step(a[i], b[i], tuple(s[i].astype(float) for s in states)) for i in range(batch)
        ]
        states = [np.array(part) for part in zip(*rows, strict=True)]
        want[t] = states[0]
    assert_close(y, want, "output")
    for got, expected in zip(states_of(final), states, strict=True):
        assert_close(got[0], expected, "state")


@each_compute
@pytest.mark.parametrize("options", [{}, {"lengths": True}, {"resets": True}])
@pytest.mark.parametrize("bidirectional", [False, True])
# Where a relu's input is near 0, rounding decides its gradient: tests/native has a reference that rounds.
@pytest.mark.parametrize("cell", [cell for cell in MODULE_CELLS if cell != "rnn_relu"])
def test_near_float32(cell: str, bidirectional: bool, options: dict[str, bool], compute: str) -> None:
    network = make_module(cell, 33, 40, num_layers=2, bidirectional=bidirectional, seed=0, dtype="float32")
    x, rng = draw(6, 18, 33), np.random.default_rng(0)
    given: dict[str, Any] = {}
    if "lengths" in options:
        given["lengths"] = rng.integers(0, 7, 18)
    if "resets" in options:
        given["resets"] = rng.random((6, 18)) < 0.2
    want = train(network, x, **given)
    network.compute = compute
    got = train(network, x, **given)
    assert not np.array_equal(got[0], want[0])
    for mine, full in zip(got, want, strict=True):
        assert relative_error(mine, full) < DISTANCES[compute]


@needs_bf16
@pytest.mark.parametrize("make", [fr.MGU, fr.SLSTM, fr.MinGRU, fr.LiGRU])
def test_defined_cells(make: Any) -> None:
    network = make(33, 40, seed=0)
    want = train(network, draw(5, 20, 33))
    network.compute = "bf16"
    for mine, full in zip(train(network, draw(5, 20, 33)), want, strict=True):
        assert relative_error(mine, full) < 2 * DISTANCE


@needs_bf16
@pytest.mark.parametrize(
    "options", [{"reset_after": False}, {"layer_norm": True}, {"recurrent_dropout": 0.3}, {"zoneout": 0.2}]
)
def test_options_of_a_gru(options: dict[str, Any]) -> None:
    results = []
    for compute in ("float32", "bf16"):
        network = fr.GRU(33, 40, seed=0, compute=compute, **options)
        results.append(train(network, draw(5, 20, 33)))
    assert not np.array_equal(results[0][0], results[1][0])
    for full, mine in zip(*results, strict=True):
        assert relative_error(mine, full) < 2 * DISTANCE


@each_compute
@pytest.mark.parametrize("batch", [3, 40])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_same_bits(cell: str, batch: int, compute: str) -> None:
    """Of any number of threads, of one row alone, of a stream, and of gates computed again."""
    x = draw(6, batch, 30)
    before = fr.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            fr.set_num_threads(threads)
            results.append(train(getattr(fr, cell)(30, 70, seed=0, compute=compute), x))
    finally:
        fr.set_num_threads(before)
    results.append(train(getattr(fr, cell)(30, 70, seed=0, compute=compute, recompute=True), x))
    for other in results[1:]:
        assert all(np.array_equal(mine, first) for mine, first in zip(other, results[0], strict=True))
    network = getattr(fr, cell)(30, 70, seed=0, compute=compute)
    assert np.array_equal(network(x[:, 1:2])[0][:, 0], results[0][0][:, 1])
    step = network.stream(batch_size=batch)
    assert np.array_equal(np.array([step(x_t).copy() for x_t in x]), results[0][0])


@needs_bf16
def test_lookup() -> None:
    network, table = fr.GRU(24, 40, seed=0, compute="bf16"), fr.Embedding(11, 24, seed=0)
    tokens = np.random.default_rng(0).integers(0, 11, (9, 5))
    y, _, tape = network.forward(table.lookup(tokens))
    want, _, full = network.forward(table(tokens))
    assert np.array_equal(y, want)
    network.backward(tape, np.ones_like(y))
    sums = {name: grad.copy() for name, grad in network.grads.items()}
    network.zero_grad()
    network.backward(full, np.ones_like(y))
    for name, grad in network.grads.items():
        assert relative_error(sums[name], grad) < DISTANCE


@needs_bf16
def test_where_it_is_kept() -> None:
    network = fr.LSTM(5, 7, seed=0, compute="bf16")
    x = draw(4, 3, 5)
    assert "compute='bf16'" in repr(network) and "compute='bf16'" in repr(fr.Linear(3, 4, compute="bf16"))
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert twin.compute == "bf16" and np.array_equal(twin(x)[0], network(x)[0])
    full = copy.deepcopy(network)
    full.compute = "float32"
    assert not np.array_equal(full(x)[0], network(x)[0])
    y, _, tape = fr.functional.forward("lstm", x, _params(network), compute="bf16")
    assert np.array_equal(y, network(x)[0])
    fr.functional.backward(tape, np.ones_like(y))
    # A network of float64 multiplies float64.
    assert network.astype("float64").compute == "float32"
    assert network.astype("float32").compute == "bf16"


def _params(network: Any) -> dict[str, Array]:
    return {name.removesuffix("_l0"): value for name, value in network.parameters.items()}


@needs_bf16
def test_precision_of_the_process() -> None:
    try:
        fr.set_float32_matmul_precision("medium")
        assert fr.get_float32_matmul_precision() == "medium"
        assert fr.GRU(3, 4).compute == fr.Linear(3, 4).compute == "bf16"
        assert fr.GRU(3, 4, dtype="float64").compute == fr.GRU(3, 4, compute="float32").compute == "float32"
    finally:
        fr.set_float32_matmul_precision("highest")
    assert fr.GRU(3, 4).compute == "float32"


@needs_bf16
def test_saved_as_it_is(tmp_path: Path) -> None:
    """However it was chosen, for modules inside of others too, and whatever new ones take."""
    fr.set_float32_matmul_precision("medium")
    try:
        models = [fr.GRU(8, 8, seed=0), fr.Hybrid(8, seed=0), fr.SelfAttention(8, seed=0)]
        models.append(fr.Sequential(fr.Linear(8, 8, seed=0), fr.LSTM(8, 8, seed=0)))
        models[-1][0].compute = "float32"
    finally:
        fr.set_float32_matmul_precision("highest")
    models += [fr.GRU(8, 8, seed=0), fr.Residual(fr.Linear(8, 8, seed=0))]
    models[-2].compute = "bf16"
    x = draw(5, 3, 8)
    for model in models:
        fr.save(model, tmp_path / "model")
        for precision in ("highest", "medium"):
            fr.set_float32_matmul_precision(precision)
            try:
                again = fr.load(tmp_path / "model")
            finally:
                fr.set_float32_matmul_precision("highest")
            want, found = model(x), again(x)
            if model.has_state:
                want, found = want[0], found[0]
            assert np.array_equal(want, found), repr(model)


@each_compute
@pytest.mark.parametrize("name", ["gru:bf16", "t:bf16", "t:bf16:bf16", "gru:bf16x3", "t:bf16x3:bf16"])
def test_a_cell_whose_name_says_it(name: str, compute: str) -> None:
    """Users give names: one that looks like a key of the library's is one of their cell alone."""

    def step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
        return {"h": fr.sym.tanh(x.r + h.r) + x.z + h.z + x.n + h.n}

    x = draw(4, 2, 5)
    for chosen in ("float32", compute):
        found, want = (
            train(fr.Recurrent(fr.define_cell(n, "r z n", "h", step), 5, 6, seed=0, compute=chosen), x)
            for n in (name, "t")
        )
        assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True))


def test_refused() -> None:
    with pytest.raises(ValueError, match="compute: expected 'float32', 'bf16x3' or 'bf16', got 'fp16'"):
        fr.LSTM(3, 4, compute="fp16")
    with pytest.raises(ValueError, match="compute: expected None or 'float32' with float64, got 'bf16'"):
        fr.Linear(3, 4, dtype="float64", compute="bf16")
    with pytest.raises(ValueError, match="precision: expected 'highest', 'high' or 'medium', got 'low'"):
        fr.set_float32_matmul_precision("low")


def test_refused_without_the_instructions() -> None:
    program = (
        "import fusedrnn as fr\n"
        "assert fr.config()['bf16_isa'] is None\n"
        "for make in (lambda: fr.GRU(3, 4, compute='bf16'), lambda: fr.Linear(3, 4, compute='bf16'),\n"
        "             lambda: fr.set_float32_matmul_precision('medium')):\n"
        "    try:\n"
        "        make()\n"
        "    except ValueError as error:\n"
        "        assert 'on a CPU without AMX or AVX512_BF16' in str(error), error\n"
        "    else:\n"
        "        raise AssertionError\n"
        "import numpy as np\n"
        "from fusedrnn import _core\n"
        "x = np.ones((2, 3), np.float32)\n"
        "try:\n"
        "    _core.linear_forward(x, x, None, compute='bf16')\n"
        "except ValueError as error:\n"
        "    assert 'products of bfloat16' in str(error), error\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    done = run_python("-c", program, FUSEDRNN_ISA="scalar")
    assert done.returncode == 0, done.stderr


@needs_bf16
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activations(name: str) -> None:
    """Of inputs that rounding leaves as they are, through a cell that does nothing else."""
    x = (np.arange(0x3000, 0x4300, dtype=np.uint32) << 16).view(np.float32)
    x = np.concatenate([-x[::-1], x])
    cell = fr.define_cell("alone", "u", "h", lambda x, h, s, p: {"h": getattr(fr.sym, name)(x.u)}, bias=False)
    network = fr.Recurrent(cell, 1, 1, init=None, compute="bf16")
    network.parameters["weight_ih_l0"] = np.ones((1, 1), np.float32)
    y = network(x.reshape(1, -1, 1))[0].ravel()
    exact = x.astype(np.float64)
    want = np.tanh(exact) if name == "tanh" else 1 / (1 + np.exp(-exact))
    counted = np.abs(want) > np.finfo(np.float32).tiny
    ulp = np.abs(y - want)[counted] / np.spacing(np.abs(want[counted]).astype(np.float32))
    bound = 5.0 if name == "tanh" else 4.0 + np.abs(exact[counted])
    assert (ulp <= bound).all()
    assert (np.abs(y) <= 1).all()


def test_an_instruction_set_by_name_is_used_or_refused() -> None:
    uses = {
        "FUSEDRNN_BF16_ISA": "fr.config()",
        "FUSEDRNN_INT8_ISA": "fr.GRU(3, 4).quantize('int8')",
    }
    for variable, use in uses.items():
        program = (
            f"import fusedrnn as fr\ntry:\n    {use}\nexcept RuntimeError as error:\n"
            f"    assert str(error).startswith('{variable}: expected one of'), error\n"
            "else:\n    raise AssertionError\n"
        )
        for environment in ({variable: "typo"}, {variable: "amx", "FUSEDRNN_ISA": "scalar"}):
            done = run_python("-c", program, **environment)
            assert done.returncode == 0, done.stderr


@needs_bf16
def test_learning() -> None:
    """As far as in float32 on the copy of a running sum's sign."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 64, 4), dtype=np.float32)
    target = (x[..., 0].cumsum(axis=0) > 0).astype(np.int64)
    losses = []
    for compute in ("float32", "bf16"):
        network = fr.Sequential(
            fr.GRU(4, 32, seed=0, compute=compute), fr.Linear(32, 2, seed=0, compute=compute)
        )
        optimizer = fr.optim.Adam(network, lr=1e-2)
        for _ in range(60):
            y, tape = network.forward(x)
            loss, dy = fr.cross_entropy(y, target)
            network.zero_grad()
            network.backward(tape, dy)
            optimizer.step()
        losses.append(loss)
    assert losses[0] < 0.25 and abs(losses[0] - losses[1]) < 0.03
