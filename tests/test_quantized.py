"""Weights in bfloat16 and int8 against the scheme of docs/quantized.md, and against float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quantized_support import FORMATS, draw, product, run, to_bf16
from reference import CELLS as REFERENCE
from support import (
    MODULE_CELLS,
    Array,
    assert_ran,
    make_module,
    run_python,
)
from tolerances import assert_close, relative_error

import fusedrnn as fr
from fusedrnn import _core

SIZES = (1, 7, 17, 33, 100)
# Relative error of y against the float32 network after the default initialisation; docs/quantized.md.
ERROR = {"bf16": 0.004, "int8": 0.02}

# Against the scheme -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("hidden", SIZES)
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_scheme(cell: str, weights: str, hidden: int, batch: int) -> None:
    """Each step from the h that the kernel gave, so that a value next to a tie rounds as the kernel's did."""
    x, params, state = draw(cell, (6, batch, hidden + 2, hidden))
    y, final = run(cell, [[params]], weights, x, state)
    w_ih, w_hh, b_ih, b_hh, _ = params
    want = np.empty(y.shape)
    states = [part[0].astype(np.float64) for part in state]
    for t in range(6):
        states[0] = (y[t - 1] if t else state[0][0]).astype(np.float32)
        a = product(weights, w_ih, x[t]) + b_ih
        b = product(weights, w_hh, states[0]) + b_hh
        rows = [
            REFERENCE[cell].step(a[i], b[i], tuple(part[i].astype(np.float64) for part in states))
            for i in range(batch)
        ]
        states = [np.array(part) for part in zip(*rows, strict=True)]
        want[t] = states[0]
    assert_close(y, want, "output")
    for got, expected in zip(final, states, strict=True):
        assert_close(got[0], expected, "state")


@pytest.mark.parametrize(("hidden", "proj"), [(2, 1), (17, 5), (33, 32), (100, 17)])
@pytest.mark.parametrize("weights", FORMATS)
def test_projection(weights: str, hidden: int, proj: int) -> None:
    """W_hr reads the h of the network that has none, whose W_hh and h are filled up with zeros."""
    x, params, state = draw("lstm", (4, 3, 9, hidden), proj)
    y, final = run("lstm", [[params]], weights, x, state)
    w_ih, w_hh, b_ih, b_hh, w_hr = params
    wide = np.zeros((4 * hidden, hidden), np.float32)
    wide[:, :proj] = w_hh
    c = state[1]
    for t in range(4):
        h = np.zeros((1, 3, hidden), np.float32)
        h[0, :, :proj] = y[t - 1] if t else state[0][0]
        u, (_, c) = run("lstm", [[(w_ih, wide, b_ih, b_hh, None)]], weights, x[t : t + 1], (h, c))
        assert_close(y[t], product(weights, w_hr, u[0]), "output")
    assert np.array_equal(final[1], c) and np.array_equal(final[0][0], y[3])


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("inputs", [0, 1, 2, 3, 31, 64, 257, 1000])
@pytest.mark.parametrize("weights", FORMATS)
def test_exact_sums(weights: str, inputs: int, batch: int) -> None:
    """Integers for which every scale is 1 and every sum below 2**24: any order and ISA gives just these."""
    rng = np.random.default_rng([inputs, batch])
    for hidden in (1, 16, 37):
        w, x = (rng.integers(-127, 128, (n, inputs)).astype(np.float32) for n in (hidden, batch))
        u, h = (rng.integers(-9, 10, (n, hidden)).astype(np.float32) for n in (hidden, batch))
        for a in (w, x, u, h):
            a[:, -1:] = rng.choice([-127, 127], (len(a), a[:, -1:].shape[1]))
        y, _ = run("rnn_relu", [[(w, u, None, None, None)]], weights, x[None], (h[None],))
        exact = x.astype(np.int64) @ w.T.astype(np.int64) + h.astype(np.int64) @ u.T.astype(np.int64)
        assert np.array_equal(y[0], np.maximum(exact, 0))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("inputs", [4096, 131072])
def test_largest_sums(inputs: int, sign: int) -> None:
    """No sum is cut off, up to the largest that int32 holds."""
    w = np.full((3, inputs), sign * 127, np.float32)
    y, _ = run("rnn_relu", [[(w, np.ones((3, 3), "f4"), None, None, None)]], "int8", w[None, :2])
    assert np.array_equal(y, np.full((1, 2, 3), np.float32(127 * 127 * inputs)))
    w = np.full((1, 131073), 127, np.float32)
    with pytest.raises(ValueError, match=r"weight_ih: expected I <= 131072 .*, got 131073"):
        _core.Quantized("rnn_relu", [[(w, w[:, :1], None, None, None)]], "int8")
    assert run("rnn_relu", [[(w, w[:, :1], None, None, None)]], "bf16", w[None])[0][0, 0, 0] > 2e9


def test_bf16_rounds_to_nearest_even() -> None:
    """One, two and a half units around ties, large and small, by the product with 1."""
    values = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3e38, -1 - 2**-9, 0.0, 1e-20, -7.1])
    w = np.concatenate([values, np.random.default_rng(1).normal(size=64).astype(np.float32)])
    params = (w[:, None], np.zeros((len(w), len(w)), "f4"), None, None, None)
    for x in (1, -1):
        y, _ = run("rnn_relu", [[params]], "bf16", np.full((1, 1, 1), x, "f4"))
        assert np.array_equal(y[0, 0], np.maximum(to_bf16(w) * x, 0))
    assert to_bf16(values[:1]) == 1 and to_bf16(values[1:2]) == 1 + 2**-6


ISA_SCRIPT = """
import sys; import numpy as np; from test_quantized import one_step
np.savez(sys.argv[1], **one_step())
"""


def one_step() -> dict[str, Array]:
    """Every cell and format from given states: on each ISA the same integers go into the sums."""
    found: dict[str, Array] = {"isa": np.array(fr.config()["isa"])}
    for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        for weights in FORMATS:
            x, params, state = draw(cell, (1, 3, 19, 33))
            found[f"{cell} {weights}"] = run(cell, [[params]], weights, x, state)[0]
    return found


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "neon"])
def test_isas_agree(isa: str, tmp_path: Path) -> None:
    config = fr.config()
    if isa not in config["isas_built"] or isa not in config["isas_supported"]:
        isa = "scalar"
    target = str(tmp_path / "theirs.npz")
    assert_ran(run_python("-c", ISA_SCRIPT, target, FUSEDRNN_ISA=isa))
    with np.load(target) as theirs:
        assert str(theirs["isa"]) == isa
        for name, array in one_step().items():
            if name != "isa":
                assert_close(theirs[name], array, "output", name)


# Against the float32 network --------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_error(cell: str, weights: str) -> None:
    """The error that docs/quantized.md tells to expect, and not much less: the weights really are rounded."""
    module = make_module(cell, 64, 128, dtype="float32")
    x = np.random.default_rng(3).normal(size=(100, 2, 64)).astype(np.float32)
    error = relative_error(module.quantize(weights)(x)[0], module(x)[0])
    assert ERROR[weights] / 5 < error < ERROR[weights]


@pytest.mark.parametrize("weights", FORMATS)
def test_memory(weights: str) -> None:
    """A half and a quarter of the bytes, and what the biases and the scales take."""
    module = fr.LSTM(256, 256, seed=1)
    share = module.quantize(weights).nbytes / module.flat_parameters.nbytes
    assert 0 < share - {"bf16": 0.5, "int8": 0.25}[weights] < 0.006 or (weights == "bf16" and share == 0.5)
    assert fr.GRU(1, 1).quantize(weights).nbytes > 0


def test_dropout_is_off() -> None:
    module = fr.GRU(5, 9, 2, dropout=0.9, seed=1)
    x = np.ones((4, 2, 5), np.float32)
    assert module.training
    assert relative_error(module.quantize("bf16")(x)[0], module.eval()(x)[0]) < 0.01


def test_snapshot() -> None:
    """Later changes of the float32 network do not reach it."""
    module = fr.LSTM(5, 9, seed=1)
    network, x = module.quantize("int8"), np.ones((4, 2, 5), np.float32)
    step = network.stream(batch_size=2)
    want = network(x)[0]
    module.flat_parameters[...] = 7
    assert np.array_equal(network(x)[0], want)
    assert np.array_equal(step(x[0]), want[0])
    assert not np.array_equal(module.quantize("int8")(x)[0], want)
