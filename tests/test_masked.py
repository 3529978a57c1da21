"""Masked arrays are refused by name wherever an array is taken: their masks would be lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import _core, init

pytestmark = pytest.mark.once


def masked(*shape: int, dtype: Any = "float32") -> Any:
    values = np.ones(shape, dtype)
    return np.ma.array(values, mask=np.zeros(shape, bool))


X = np.ones((4, 2, 3), "float32")
ONES = np.ones((4, 2, 5), "float32")
STATE = (np.zeros((1, 2, 5), "float32"), masked(1, 2, 5))
lstm = fr.LSTM(3, 5, seed=0)
double = fr.LSTM(3, 5, 2, seed=0)
linear = fr.Linear(3, 4, seed=0)
embedding = fr.Embedding(5, 3, seed=0)
norm = fr.LayerNorm(3)
dropout = fr.Dropout(0.5, seed=0)
step = lstm.stream(2)
small = lstm.quantize("int8")
weights = tuple(lstm.parameters[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def backward(module: Any, x: Any, *dy: int) -> Any:
    y, *_, tape = module.forward(x)
    return module.backward(tape, masked(*y.shape))


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "x": (lambda: lstm(masked(4, 2, 3)), "x"),
    "x_forward": (lambda: lstm.forward(masked(4, 2, 3)), "x"),
    "x_stack": (lambda: double(masked(4, 2, 3)), "x"),
    "state": (lambda: lstm(X, STATE), "state"),
    "state_stack": (lambda: double(X, (masked(2, 2, 5), np.zeros((2, 2, 5), "float32"))), "state"),
    "lengths": (lambda: lstm(X, lengths=masked(2, dtype=np.int64)), "lengths"),
    "resets": (lambda: lstm(X, resets=masked(4, 2, dtype=bool)), "resets"),
    "reset_state": (lambda: lstm(X, resets=np.zeros((4, 2), bool), reset_state=STATE), "reset_state"),
    "dy": (lambda: backward(lstm, X), "dy"),
    "dstate": (lambda: lstm.backward(lstm.forward(X)[2], ONES, STATE), "dstate"),
    "functional_x": (lambda: fr.functional.forward("lstm", masked(4, 2, 3), (*weights, None)), "x"),
    "functional_params": (
        lambda: fr.functional.forward("lstm", X, (masked(20, 3), *weights[1:], None)),
        "weight_ih",
    ),
    "functional_dy": (
        lambda: fr.functional.backward(
            fr.functional.forward("lstm", X, (*weights, None))[2], masked(4, 2, 5)
        ),
        "dy",
    ),
    "sigmoid": (lambda: fr.functional.sigmoid(masked(3)), "x"),
    "stream": (lambda: step(masked(2, 3)), "x"),
    "stream_rows": (lambda: step.reset(masked(2, dtype=bool)), "rows"),
    "stream_state": (lambda: setattr(step, "state", STATE), "state"),
    "quantized": (lambda: small(masked(4, 2, 3)), "x"),
    "quantized_resets": (lambda: small(X, resets=masked(4, 2, dtype=bool)), "resets"),
    "quantized_stream": (lambda: small.stream(2)(masked(2, 3)), "x"),
    "cell": (lambda: fr.GRUCell(3, 5, seed=0)(masked(2, 3)), "x"),
    "cell_state": (lambda: fr.GRUCell(3, 5, seed=0)(X[0], masked(2, 5)), "state"),
    "linear": (lambda: linear(masked(2, 3)), "x"),
    "linear_dy": (lambda: backward(linear, X), "dy"),
    "embedding": (lambda: embedding(masked(2, 3, dtype=np.int64)), "indices"),
    "embedding_dy": (lambda: backward(embedding, np.array([1, 2])), "dy"),
    "lookup_indices": (lambda: embedding.lookup(masked(2, 3, dtype=np.int64)), "indices"),
    "lookup_table": (lambda: fr.Lookup(masked(5, 3), np.array([[1, 2]])), "table"),
    "layer_norm": (lambda: norm(masked(2, 3)), "x"),
    "layer_norm_dy": (lambda: backward(norm, X), "dy"),
    "dropout": (lambda: dropout(masked(2, 3)), "x"),
    "logits": (lambda: fr.cross_entropy(masked(2, 3), np.array([0, 1])), "logits"),
    "targets": (lambda: fr.cross_entropy(X[0], masked(2, dtype=np.int64)), "targets"),
    "weight": (lambda: fr.cross_entropy(X[0], np.array([0, 1]), masked(3)), "weight"),
    "ctc_logits": (lambda: fr.ctc_loss(masked(4, 2, 3), [[1], [2]], [4, 4], [1, 1]), "logits"),
    "ctc_targets": (lambda: fr.ctc_loss(X, masked(2, 1, dtype=np.int64), [4, 4], [1, 1]), "targets"),
    "ctc_lengths": (lambda: fr.ctc_decode(X, masked(2, dtype=np.int64)), "lengths"),
    "emissions": (lambda: fr.CRF(3).decode(masked(4, 2, 3)), "emissions"),
    "tags": (lambda: fr.CRF(3).loss(X, masked(4, 2, dtype=np.int64)), "tags"),
    "constraints": (lambda: fr.CRF(3, masked(3, 3, dtype=bool)), "constraints"),
    "pred": (lambda: fr.mse_loss(masked(2, 3), X[0]), "pred"),
    "target": (lambda: fr.mse_loss(X[0], masked(2, 3)), "target"),
    "pad": (lambda: fr.pad([X[0], masked(2, 3)]), r"sequences\[1\]"),
    "unpad": (lambda: fr.unpad(masked(4, 2, 3), [1, 2]), "x"),
    "unpad_lengths": (lambda: fr.unpad(X, masked(2, dtype=np.int64)), "lengths"),
    "init": (lambda: init.orthogonal(masked(3, 3), rng=0), "array"),
    "parameters": (lambda: lstm.parameters.__setitem__("bias_ih_l0", masked(20)), "bias_ih_l0"),
    "load": (lambda: lstm.load_state_dict({**lstm.state_dict(), "bias_ih_l0": masked(20)}), "bias_ih_l0"),
    "norm": (lambda: _core.norm(masked(3), 2.0), "x"),
}


@pytest.mark.parametrize("name", CALLS)
def test_masked_arrays_are_refused(name: str) -> None:
    call, argument = CALLS[name]
    with pytest.raises(
        TypeError, match=rf"^{argument}.*: expected an array without a mask, got a MaskedArray"
    ):
        call()


def test_optimiser_states() -> None:
    optimizer = fr.optim.Adam(linear, lr=0.1)
    state = optimizer.state_dict()
    state["exp_avg.bias"] = masked(4)
    with pytest.raises(TypeError, match=r"exp_avg\.bias: expected an array without a mask"):
        optimizer.load_state_dict(state)


def test_other_subclasses_are_taken(tmp_path: Any) -> None:
    """Arrays in files give the results of arrays in memory."""
    X.tofile(tmp_path / "x")
    x = np.memmap(tmp_path / "x", "float32", "r", shape=X.shape)
    assert np.array_equal(lstm(x)[0], lstm(X)[0])
    assert np.array_equal(small(x)[0], small(X)[0])
    step.reset()
    want = step(X[0]).copy()
    step.reset()
    assert np.array_equal(step(x[0]), want)
