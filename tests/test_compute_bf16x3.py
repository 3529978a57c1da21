"""Products of two bfloat16 a factor: within 1e-5 or so of exact ones; and where they are refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quantized_support import to_bf16
from support import Array, run_python
from test_compute import DISTANCES, draw, train
from test_saving_forged import forge, setting
from tolerances import relative_error

import fusedrnn as fr

needs_bf16x3 = pytest.mark.skipif(
    fr.config()["bf16x3_isa"] is None, reason="no AMX; tests/native has its kernels in an emulation"
)
# Of a product: what two roundings leave of either factor, and what one leaves of both.
# Of a network: over some steps and back.
PRODUCT, DISTANCE = 3 * 2**-16, DISTANCES["bf16x3"]


def product(a: Array, b: Array) -> Array:
    """Return a b^T as three products of bfloat16 make it, exact but for the last bits of float64."""
    first = [to_bf16(factor).astype(np.float64) for factor in (a, b)]
    rest = [
        to_bf16((factor - near).astype(np.float32)).astype(np.float64)
        for factor, near in zip((a, b), first, strict=True)
    ]
    return np.asarray(first[0] @ first[1].T + rest[0] @ first[1].T + first[0] @ rest[1].T)


@needs_bf16x3
@pytest.mark.parametrize("out", [1, 16, 33])
@pytest.mark.parametrize("inputs", [1, 31, 64, 513])
@pytest.mark.parametrize("rows", [1, 7, 17, 48, 65, 550])
def test_linear(rows: int, inputs: int, out: int) -> None:
    layer = fr.Linear(inputs, out, seed=0, compute="bf16x3", bias=False)
    x, dy = draw(rows, inputs), draw(rows, out, seed=1)
    y, tape = layer.forward(x)
    dx, weight = layer.backward(tape, dy), layer.parameters["weight"]
    results = [(y, x, weight), (dx, dy, weight.T), (layer.grads["weight"], dy.T, x.T)]
    for got, a, b in results:
        # What rounds on the way is the sum alone: as near as float32's is to the exact product.
        assert relative_error(got, product(a, b)) < 1e-6
        exact = a.astype(np.float64) @ b.astype(np.float64).T
        assert (np.abs(got - exact) <= (PRODUCT + 1e-6) * (np.abs(a) @ np.abs(b).T)).all()
        assert got.size < 100 or relative_error(got, exact) < 1.2e-5
    assert np.array_equal(layer(x), y)


@needs_bf16x3
@pytest.mark.parametrize(
    "make",
    [
        lambda: fr.MGU(33, 40, seed=0),
        lambda: fr.SLSTM(33, 40, seed=0),
        lambda: fr.MinGRU(33, 40, seed=0),
        lambda: fr.GRU(33, 40, seed=0, reset_after=False),
        lambda: fr.GRU(33, 16, seed=0, layer_norm=True),
        lambda: fr.LSTM(33, 40, seed=0, proj_size=16),
        lambda: fr.LSTM(33, 48, seed=0, weight_dropout=0.3),
    ],
)
def test_other_cells(make: Any) -> None:
    """Gradients of weights whose panels are not a whole number of tiles among them."""
    results = []
    for compute in ("float32", "bf16x3"):
        network = make()
        network.compute = compute
        results.append(train(network, draw(5, 20, 33)))
    for full, mine in zip(*results, strict=True):
        assert relative_error(mine, full) < DISTANCE


@needs_bf16x3
def test_values_that_are_not_ordinary() -> None:
    """What is not finite gives NaN, for it has no rest; small ones keep at least the bits of bfloat16."""
    layer = fr.Linear(1, 1, bias=False, compute="bf16x3")
    layer.parameters["weight"] = np.ones((1, 1), np.float32)
    x = np.array([[np.inf], [-np.inf], [np.nan], [0.0], [-0.0], [1e-37], [3.3e38], [-1.0]], np.float32)
    y = layer(x)
    assert np.isnan(y[:3]).all() and not y[3:5].any()
    np.testing.assert_allclose(y[5], x[5], rtol=2**-8)
    np.testing.assert_allclose(y[6:], x[6:], rtol=2**-16)


@needs_bf16x3
@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    module = fr.SelfAttention(24, 3, causal=causal, seed=0)
    x, dy = draw(9, 3, 24), draw(9, 3, 24, seed=1)
    results = []
    for compute in ("float32", "bf16x3"):
        module.compute = compute
        y, tape = module.forward(x)
        module.zero_grad()
        results.append([y, module.backward(tape, dy), *[grad.copy() for grad in module.grads.values()]])
        if causal:
            step = module.stream(batch_size=3, max_len=9)
            assert relative_error(np.array([step(x_t).copy() for x_t in x]), y) < DISTANCE
    for full, mine in zip(*results, strict=True):
        assert relative_error(mine, full) < DISTANCE
    assert not np.array_equal(results[0][0], results[1][0])


@needs_bf16x3
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score": "general", "query": "current", "input_feeding": True},
        {"coverage": True},
        {"num_layers": 2},
    ],
)
def test_decoder(options: dict[str, Any]) -> None:
    decoder = fr.AttentionDecoder("gru", 20, 50, 50, seed=0, **options)
    x, memory = draw(6, 33, 20), 0.3 * draw(9, 33, 50)
    results = []
    for compute in ("float32", "bf16x3"):
        decoder.compute = compute
        y, alpha, _, tape = decoder.forward(x, memory, np.arange(33) % 10, np.arange(33) % 7)
        decoder.zero_grad()
        dx, dmemory, _ = decoder.backward(tape, draw(*y.shape, seed=1))
        results.append([y, alpha, dx, dmemory, *[grad.copy() for grad in decoder.grads.values()]])
    for full, mine in zip(*results, strict=True):
        assert relative_error(mine, full) < 2 * DISTANCE
    assert not np.array_equal(results[0][0], results[1][0])
    embedding, head = fr.Embedding(12, 20, seed=1), fr.Linear(50, 12, seed=2, compute="bf16x3")
    if "num_layers" not in options:
        found = fr.decode.beam_search((embedding, decoder, head), memory[:, :2], 0, 1, 3, 8)
        decoder.compute = head.compute = "float32"
        want = fr.decode.beam_search((embedding, decoder, head), memory[:, :2], 0, 1, 3, 8)
        np.testing.assert_allclose(found.scores, want.scores, DISTANCE)


@needs_bf16x3
def test_where_it_is_kept(tmp_path: Path) -> None:
    network, x = fr.LSTM(5, 7, seed=0, compute="bf16x3"), draw(4, 3, 5)
    assert "compute='bf16x3'" in repr(network)
    fr.save(network, tmp_path / "model")
    want = network(x)[0]
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), fr.load(tmp_path / "model")):
        assert twin.compute == "bf16x3" and np.array_equal(twin(x)[0], want)
    params = {name.removesuffix("_l0"): value for name, value in network.parameters.items()}
    y, _, tape = fr.functional.forward("lstm", x, params, compute="bf16x3")
    assert np.array_equal(y, want)
    fr.functional.backward(tape, np.ones_like(y))
    network.compute = "bf16"
    assert not np.array_equal(network(x)[0], want)


@needs_bf16x3
@pytest.mark.parametrize(
    "make",
    [
        lambda: fr.Linear(8, 8, seed=0, dtype="float64"),
        lambda: fr.GRU(8, 8, seed=0, dtype="float64", compute="float32"),
        lambda: fr.SelfAttention(8, seed=0, dtype="float64"),
    ],
)
def test_saved_where_it_was_made_in_float64(make: Any, tmp_path: Path) -> None:
    module = make()
    module.astype("float32")
    module.compute = "bf16x3"
    fr.save(module, tmp_path / "model")
    assert fr.load(tmp_path / "model").compute == "bf16x3"


@needs_bf16x3
@pytest.mark.parametrize("dtype", ["float16", "int64"])
def test_an_x_that_no_network_takes(dtype: str) -> None:
    params = {name.removesuffix("_l0"): value for name, value in fr.GRU(3, 4).parameters.items()}
    with pytest.raises(TypeError, match=f"x: expected dtype float32 or float64, got {dtype}"):
        fr.functional.forward("gru", draw(2, 1, 3).astype(dtype), params, compute="bf16x3")


def test_precision_of_the_process() -> None:
    """It is what "high" takes where there is AMX; elsewhere that is float32, and no error."""
    expected = "float32" if fr.config()["bf16x3_isa"] is None else "bf16x3"
    try:
        fr.set_float32_matmul_precision("high")
        assert fr.get_float32_matmul_precision() == "high"
        assert fr.GRU(3, 4).compute == fr.Linear(3, 4).compute == fr.SelfAttention(4).compute == expected
        assert fr.GRU(3, 4, dtype="float64").compute == "float32"
    finally:
        fr.set_float32_matmul_precision("highest")


@needs_bf16x3
def test_files_of_earlier_versions(tmp_path: Path) -> None:
    """The first had `compute` among a module's options alone, the next the names of those in bf16."""

    def first(content: Any, _: Any) -> None:
        del content["bf16"], content["bf16x3"]
        content["modules"][0]["options"]["compute"] = "bf16x3"

    def second(content: Any, _: Any) -> None:
        del content["bf16x3"]
        content["bf16"] = [""]

    for change, compute in ((first, "bf16x3"), (second, "bf16")):
        assert fr.load(forge(tmp_path / compute, change, fr.GRU(3, 4))).compute == compute


@needs_bf16x3
def test_without_the_instructions(tmp_path: Path) -> None:
    """Refused where it is asked for by name; a file that says it is a model in float32, and a warning."""
    network = fr.Sequential(fr.GRU(3, 4, seed=0, compute="bf16x3"), fr.Linear(4, 2, seed=0))
    network[1].compute = "bf16"
    fr.save(network, tmp_path / "model")
    np.save(tmp_path / "y.npy", network(np.ones((2, 1, 3), np.float32)))
    forge(tmp_path / "damaged", setting("evaluating", ["7"]), network)
    program = (
        "import os, sys, pytest, fusedrnn as fr\n"
        "os.chdir(sys.argv[1])\n"
        "for refused in (lambda: fr.load('damaged'), lambda: fr.GRU(3, 4, compute='bf16x3')):\n"
        "    with pytest.raises(ValueError):\n"
        "        refused()\n"
    )
    done = run_python("-c", program, str(tmp_path), FUSEDRNN_ISA="scalar")
    assert done.returncode == 0, done.stderr
    program = (
        "import os, sys, warnings, pytest, numpy as np, fusedrnn as fr\n"
        "os.chdir(sys.argv[1])\n"
        "for compute, needed in (('bf16x3', 'AMX'), ('bf16', 'AMX or AVX512_BF16')):\n"
        "    with pytest.raises(ValueError, match=rf'on a CPU without {needed} \\('):\n"
        "        fr.GRU(3, 4, compute=compute)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    network = fr.load('model')\n"
        "said = [str(one.message) for one in caught]\n"
        "assert \"compute='bf16', which this CPU\" in said[0], said\n"
        "assert \"compute='bf16x3', which\" in said[1] and len(said) == 2, said\n"
        "assert {one.filename for one in caught} == {'<string>'}, caught\n"
        "assert network[0].compute == network[1].compute == 'float32'\n"
        "y = network(np.ones((2, 1, 3), np.float32))\n"
        "np.testing.assert_allclose(y, np.load('y.npy'), atol=0.02)\n"
    )
    done = run_python("-c", program, str(tmp_path), FUSEDRNN_ISA="scalar")
    assert done.returncode == 0, done.stderr
    # Without tiles there is bfloat16, but not three products of it.
    program = (
        "import pytest, fusedrnn as fr\n"
        "assert fr.config()['bf16x3_isa'] is None\n"
        "network = fr.GRU(3, 4, compute='bf16')\n"
        "with pytest.raises(ValueError) as refusal:\n"
        "    network.compute = 'bf16x3'\n"
        "said = str(refusal.value)\n"
        "assert \"compute: expected None, 'float32' or 'bf16' on a CPU without AMX (or \" in said, said\n"
        "assert \"FUSEDRNN_BF16_ISA leave their kernels out), got 'bf16x3'\" in said, said\n"
        "assert network.compute == 'bf16'\n"
        "fr.set_float32_matmul_precision('high')\n"
        "assert fr.GRU(3, 4).compute == fr.Linear(3, 4).compute == 'float32'\n"
    )
    done = run_python("-c", program, FUSEDRNN_BF16_ISA="avx512bf16")
    assert done.returncode == 0, done.stderr


@needs_bf16x3
def test_pickles_without_the_instructions(tmp_path: Path) -> None:
    """As files: in float32, and a warning where there would be another result."""
    modules = [fr.GRU(3, 4, seed=0, compute="bf16x3"), fr.Linear(3, 4, seed=0, compute="bf16")]
    modules.append(fr.GRU(3, 4, seed=0, compute="bf16x3").astype("float64"))
    (tmp_path / "pickle").write_bytes(pickle.dumps(modules))
    np.save(tmp_path / "y.npy", modules[0](np.ones((2, 1, 3), np.float32))[0])
    program = (
        "import os, pickle, sys, warnings, numpy as np\n"
        "os.chdir(sys.argv[1])\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    modules = pickle.load(open('pickle', 'rb'))\n"
        "said = [str(one.message) for one in caught if one.category is UserWarning]\n"
        "assert len(said) == 2 and \"compute='bf16x3', which this CPU\" in said[0], said\n"
        "assert \"compute='bf16', which this CPU\" in said[1], said\n"
        "modules[2].astype('float32')\n"
        "assert {module.compute for module in modules} == {'float32'}\n"
        "y = modules[0](np.ones((2, 1, 3), np.float32))[0]\n"
        "np.testing.assert_allclose(y, np.load('y.npy'), atol=1e-4)\n"
    )
    done = run_python("-c", program, str(tmp_path), FUSEDRNN_ISA="scalar")
    assert done.returncode == 0, done.stderr


@needs_bf16x3
def test_a_class_of_ones_own_without_the_instructions(tmp_path: Path) -> None:
    """Its constructor asks for what the file says; only while the file is read is that not refused."""
    source = (
        "import sys, warnings, pytest, fusedrnn as fr\n"
        "class Own(fr.Module):\n"
        "    def __init__(self, compute):\n"
        "        super().__init__()\n"
        "        self.network = fr.GRU(3, 4, compute=compute)\n"
    )
    done = run_python("-c", source + "fr.save(Own('bf16x3'), sys.argv[1])", str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    source += (
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    assert fr.load(sys.argv[1], [Own]).network.compute == 'float32'\n"
        "assert len(caught) == 1, caught\n"
        "with pytest.raises(ValueError, match=r'on a CPU without AMX \\('):\n"
        "    Own('bf16x3')\n"
    )
    done = run_python("-c", source, str(tmp_path / "model"), FUSEDRNN_ISA="scalar")
    assert done.returncode == 0, done.stderr
