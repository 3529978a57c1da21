"""Quantized networks in files, pickles and copies: the same bits come back."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from quantized_support import FORMATS
from support import MODULE_CELLS, make_module, states_of

import fusedrnn as fr


def sizes(cell: str, dtype: str = "float32", seed: int = 0, **options: Any) -> Any:
    return make_module(cell, 6, 19, 2, bidirectional=True, dtype=dtype, seed=seed, **options)


def assert_same_state(a: Any, b: Any) -> None:
    one, two = a.state_dict(), b.state_dict()
    assert list(one) == list(two)
    for name, array in one.items():
        assert array.dtype == two[name].dtype and array.tobytes() == two[name].tobytes(), name


@pytest.mark.parametrize("way", ["npz", "safetensors", "pickle", "deepcopy"])
@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_state_comes_back_bit_for_bit(cell: str, weights: str, way: str, tmp_path: Path) -> None:
    network = sizes(cell).quantize(weights)
    state = network.state_dict()
    if way == "pickle":
        other = pickle.loads(pickle.dumps(network))
    elif way == "deepcopy":
        other = copy.deepcopy(network)
    else:
        other = sizes(cell, seed=1).quantize(weights)
        if way == "npz":
            np.savez(tmp_path / "q.npz", **state)
            other.load_state_dict(np.load(tmp_path / "q.npz"))
        else:
            safetensors.numpy.save_file(state, tmp_path / "q")
            other.load_state_dict(safetensors.numpy.load_file(tmp_path / "q"))
    assert_same_state(network, other)
    assert repr(other) == repr(network) and other.nbytes == network.nbytes
    x = np.random.default_rng(0).normal(size=(5, 3, 6)).astype(np.float32)
    for got, want in zip(states_of(other(x)[0]), states_of(network(x)[0]), strict=True):
        assert np.array_equal(got, want)
    assert sum(array.nbytes for array in state.values()) < (0.55 if weights == "bf16" else 0.4) * 4 * sum(
        array.size for array in sizes(cell).state_dict().values()
    )


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-31, 3e38, np.nan, np.inf])
def test_state_of_extreme_rows(value: float, weights: str) -> None:
    """Rows of zeros, of all but nothing, of the largest numbers and of none keep their bits."""
    lstm = fr.LSTM(6, 19, seed=0)
    lstm.parameters["weight_ih_l0"][3] = value
    lstm.parameters["weight_hh_l0"][5, 1:] = value
    network = lstm.quantize(weights)
    other = pickle.loads(pickle.dumps(network))
    if np.isfinite(value) or weights == "bf16":
        assert_same_state(network, other)
    x = np.ones((2, 1, 6), np.float32)
    assert np.array_equal(network(x)[0], other(x)[0], equal_nan=True)


def test_state_of_any_scale() -> None:
    """Whatever the largest value of a row is, its quotient by 127 is found again."""
    rng = np.random.default_rng(3)
    lstm = fr.LSTM(4, 512, bias=False, seed=0)
    rows = rng.normal(size=(2048, 4)) * 10.0 ** rng.uniform(-29, 37, (2048, 1))
    lstm.parameters["weight_ih_l0"] = rows.astype(np.float32)
    network = lstm.quantize("int8")
    assert "bias_ih_l0" not in network.state_dict()
    assert_same_state(network, pickle.loads(pickle.dumps(network)))


def test_state_names_and_refusals() -> None:
    network = fr.LSTM(4, 9, proj_size=3, seed=1).quantize("int8")
    state = network.state_dict()
    kinds = {name: (array.shape, array.dtype.name) for name, array in state.items()}
    assert kinds == {
        "weight_ih_l0": ((36, 4), "int8"),
        "weight_hh_l0": ((36, 3), "int8"),
        "weight_hr_l0": ((3, 9), "int8"),
        "scale_ih_l0": ((36,), "float32"),
        "scale_hh_l0": ((36,), "float32"),
        "scale_hr_l0": ((3,), "float32"),
        "bias_ih_l0": ((36,), "float32"),
    }
    for change, kind, text in (
        (
            {"weight_ih_l0": state["weight_ih_l0"].astype(np.float32)},
            TypeError,
            "weight_ih_l0: expected int8",
        ),
        ({"scale_hr_l0": np.zeros(4, np.float32)}, ValueError, r"scale_hr_l0: expected shape \(3,\)"),
        ({"surplus": np.zeros(1)}, ValueError, "missing: none; unexpected: surplus"),
    ):
        with pytest.raises(kind, match=text):
            network.load_state_dict({**state, **change})
    with pytest.raises(ValueError, match="missing: bias_ih_l0; unexpected: none"):
        network.load_state_dict({name: array for name, array in state.items() if name != "bias_ih_l0"})
    with pytest.raises(TypeError, match="state_dict: expected a mapping"):
        network.load_state_dict([])  # type: ignore[arg-type]
    assert all(np.array_equal(array, state[name]) for name, array in network.state_dict().items())
