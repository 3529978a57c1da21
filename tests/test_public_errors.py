"""Bad arguments to the public API: the right exception, with the argument's name, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import make_module

import fusedrnn as fr

pytestmark = pytest.mark.once


def module() -> Any:
    return make_module("lstm", 3, 5)


X = np.zeros((4, 2, 3))
STATE = (np.zeros((1, 2, 5)), np.zeros((1, 2, 5)))


def hidden(values: Any) -> Any:
    """The values with the first masked."""
    return np.ma.masked_array(values, np.arange(values.size).reshape(values.shape) == 0)


PUBLIC: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "input_size_negative": (lambda: fr.LSTM(-1, 5), ValueError, "input_size"),
    "input_size_kind": (lambda: fr.LSTM("3", 5), TypeError, "input_size"),  # type: ignore[arg-type]
    "hidden_size_zero": (lambda: fr.LSTM(3, 0), ValueError, "hidden_size"),
    "hidden_size_float": (lambda: fr.LSTM(3, 5.0), TypeError, "hidden_size"),  # type: ignore[arg-type]
    "num_layers_zero": (lambda: fr.GRU(3, 5, 0), ValueError, "num_layers"),
    "proj_size": (lambda: fr.LSTM(3, 5, proj_size=5), ValueError, "proj_size"),
    "proj_size_negative": (lambda: fr.LSTM(3, 5, proj_size=-1), ValueError, "proj_size"),
    "dropout": (lambda: fr.LSTM(3, 5, 2, dropout=1.5), ValueError, "dropout"),
    "dropout_nan": (lambda: fr.LSTM(3, 5, 2, dropout=float("nan")), ValueError, "dropout"),
    "dropout_kind": (lambda: fr.LSTM(3, 5, 2, dropout="a"), TypeError, "dropout"),  # type: ignore[arg-type]
    "dtype": (lambda: fr.LSTM(3, 5, dtype="float16"), TypeError, "dtype"),
    "dtype_unknown": (lambda: fr.LSTM(3, 5, dtype="double precision"), TypeError, "dtype"),
    "dtype_class": (lambda: fr.LSTM(3, 5, dtype=np.float16), TypeError, "dtype: expected float32 or float64"),
    "seed": (lambda: fr.LSTM(3, 5, seed="a"), TypeError, "seed"),  # type: ignore[arg-type]
    "seed_negative": (lambda: fr.LSTM(3, 5, seed=-1), ValueError, "seed"),
    "nonlinearity": (lambda: fr.RNN(3, 5, nonlinearity="gelu"), ValueError, "nonlinearity"),
    "bias_kind": (lambda: fr.LSTM(3, 5, bias=None), TypeError, "bias"),  # type: ignore[arg-type]
    "reset_after": (lambda: fr.GRUCell(3, 5, reset_after=False), ValueError, "reset_after"),
    "x_features": (lambda: module()(X[..., :2]), ValueError, "x"),
    "x_rank": (lambda: module()(X[0, 0]), ValueError, "x"),
    "x_dtype": (lambda: module()(X.astype("float32")), TypeError, "x"),
    "x_list": (lambda: module()(X.tolist()), TypeError, "x"),
    "x_none": (lambda: module()(None), TypeError, "x"),
    "state_shape": (lambda: module()(X, (STATE[0][:, :1], STATE[1])), ValueError, "state"),
    "state_bare": (lambda: module()(X, STATE[0]), TypeError, "state"),
    "state_long": (lambda: module()(X, (*STATE, STATE[0])), ValueError, "state"),
    "state_dtype": (lambda: module()(X, (STATE[0].astype("f4"), STATE[1])), TypeError, "state"),
    "state_layers": (lambda: module()(X, (np.zeros((2, 2, 5)), STATE[1])), ValueError, "state"),
    "lengths_shape": (lambda: module()(X, lengths=[1, 2, 3]), ValueError, "lengths"),
    "lengths_long": (lambda: module()(X, lengths=[1, 5]), ValueError, "lengths"),
    "lengths_negative": (lambda: module()(X, lengths=[1, -1]), ValueError, "lengths"),
    "lengths_float": (lambda: module()(X, lengths=[1.0, 2.0]), TypeError, "lengths"),
    "resets_shape": (lambda: module()(X, resets=np.zeros((2, 4), bool)), ValueError, "resets"),
    "resets_dtype": (lambda: module()(X, resets=np.zeros((4, 2), np.uint8)), TypeError, "resets"),
    "reset_state": (
        lambda: module()(X, resets=np.zeros((4, 2), bool), reset_state=(np.zeros((1, 4)),) * 2),
        ValueError,
        "reset_state",
    ),
    "tape_none": (lambda: module().backward(None, X), TypeError, "tape"),
    "tape_other": (
        lambda: module().backward(module().forward(X)[2], np.zeros((4, 2, 5))),
        ValueError,
        "tape",
    ),
    "functional_cell": (lambda: fr.functional.forward("elman", X, (None,) * 5), ValueError, "cell"),
    "functional_params": (lambda: fr.functional.forward("lstm", X, None), TypeError, "params"),  # type: ignore[arg-type]
    "functional_tape": (lambda: fr.functional.backward(None, X), TypeError, "tape"),  # type: ignore[arg-type]
    "linear_x": (lambda: fr.Linear(3, 4, dtype="float64")(np.zeros((2, 5))), ValueError, "x"),
    "linear_dtype": (lambda: fr.Linear(3, 4)(np.zeros((2, 3))), TypeError, "x"),
    "linear_size": (lambda: fr.Linear(3, -4), ValueError, "out_features"),
    "embedding_indices": (lambda: fr.Embedding(3, 4)(np.array([3])), ValueError, "indices"),
    "embedding_dtype": (lambda: fr.Embedding(3, 4)(np.array([0.0])), TypeError, "indices"),
    "no_gates": (lambda: fr.init.forget_gate_bias(np.zeros(8), gates=0), ValueError, "gates"),
    "gate": (lambda: fr.init.forget_gate_bias(np.zeros(8), gate=4), ValueError, "gate"),
    "dropout_p": (lambda: fr.Dropout(-0.5), ValueError, "p"),
    "layer_norm": (lambda: fr.LayerNorm(4)(np.zeros((2, 3), np.float32)), ValueError, "x"),
    "cross_entropy_targets": (
        lambda: fr.cross_entropy(np.zeros((2, 3)), np.array([0, 3])),
        ValueError,
        "targets",
    ),
    "cross_entropy_shape": (lambda: fr.cross_entropy(np.zeros((2, 3)), np.array([0])), ValueError, "targets"),
    "cross_entropy_kind": (lambda: fr.cross_entropy(np.zeros((2, 3)), np.zeros(2)), TypeError, "targets"),
    "cross_entropy_wrapped": (
        lambda: fr.cross_entropy(np.zeros((1, 3)), np.array([2**64 - 100], np.uint64)),
        ValueError,
        "targets",
    ),
    "embedding_wrapped": (
        lambda: fr.Embedding(3, 4)(np.array([2**64 - 1], np.uint64)),
        ValueError,
        "indices",
    ),
    "lengths_wrapped": (
        lambda: module()(X, lengths=np.array([1, 2**64 - 1], np.uint64)),
        ValueError,
        "lengths",
    ),
    "cross_entropy_reduction": (
        lambda: fr.cross_entropy(np.zeros((2, 3)), np.array([0, 1]), reduction="max"),
        ValueError,
        "reduction",
    ),
    "choice_array": (
        lambda: fr.IndRNN(2, 3, nonlinearity=np.array(["tanh", "relu"])),  # type: ignore[arg-type]
        ValueError,
        "nonlinearity: expected .*, got ndarray of shape",
    ),
    "mse_shape": (lambda: fr.mse_loss(np.zeros(3), np.zeros(4)), ValueError, "target"),
    "mse_dtype": (lambda: fr.mse_loss(np.zeros(3), np.zeros(3, np.float32)), TypeError, "target"),
    "mask_masked": (lambda: module()(X, mask=hidden(X[..., 0] == 0)), TypeError, "mask: .*without a mask"),
    "mask_resets_masked": (
        lambda: module()(X, mask=X[..., 0] == 0, resets=hidden(X[..., 0] == 0)),
        TypeError,
        "resets: .*without a mask",
    ),
    "init_state_masked": (
        lambda: fr.GRU(3, 5, init_state=hidden(np.zeros((1, 5)))),
        TypeError,
        "init_state: .*without a mask",
    ),
    **{
        f"ragged_{name}": (call, ValueError, f"{name}: expected an array, got lists of different lengths")
        for name, call in {
            "indices": lambda: fr.Embedding(3, 4)([[1, 2], [1]]),
            "lengths": lambda: module()(X, lengths=[[1], [1, 2]]),
            "targets": lambda: fr.ctc_loss(X, [[1, 2], [1]], [4, 4], [2, 1]),
        }.items()
    },
    "sgd_lr": (lambda: fr.optim.SGD(module(), lr=-1.0), ValueError, "lr"),
    "sgd_nesterov": (lambda: fr.optim.SGD(module(), lr=0.1, nesterov=True), ValueError, "nesterov"),
    "adam_betas": (lambda: fr.optim.Adam(module(), betas=(1.0, 0.9)), ValueError, "betas"),
    "adam_eps": (lambda: fr.optim.Adam(module(), eps=-1.0), ValueError, "eps"),
    "adam_decay": (lambda: fr.optim.AdamW(module(), weight_decay=-1.0), ValueError, "weight_decay"),
    "optimiser_kind": (lambda: fr.optim.Adam("module"), TypeError, "modules"),  # type: ignore[arg-type]
    "clip_norm": (lambda: fr.clip_grad_norm(module(), -1.0), ValueError, "max_norm"),
    "clip_value": (lambda: fr.clip_grad_value(module(), -1.0), ValueError, "clip_value"),
    "pad_empty": (lambda: fr.pad([]), ValueError, "sequences"),
    "pad_fraction": (
        lambda: fr.pad([np.zeros(2, np.int64)], value=0.5),
        ValueError,
        "value: expected a whole",
    ),
    "pad_nan": (lambda: fr.pad([np.zeros(2, np.int32)], value=np.nan), ValueError, "value: expected a whole"),
    "pad_bool": (lambda: fr.pad([np.zeros(2, bool)], value=2), ValueError, "value: expected 0..1"),
    "pad_range": (lambda: fr.pad([np.zeros(2, np.uint8)], value=-1), ValueError, "value: expected 0..255"),
    "pad_large": (lambda: fr.pad([np.zeros(2, np.float32)], value=1e300), ValueError, "value: expected a"),
    "pad_complex": (lambda: fr.pad([np.zeros(2)], value=1j), TypeError, "value: expected a number"),
    "pad_shape": (lambda: fr.pad([np.zeros((2, 3)), np.zeros((2, 4))]), ValueError, "sequences"),
    "unpad_lengths": (lambda: fr.unpad(np.zeros((2, 3)), np.array([1, 2, 3])), ValueError, "lengths"),
    "num_threads": (lambda: fr.set_num_threads(0), ValueError, "n"),
    "sigmoid_kind": (lambda: fr.functional.sigmoid(np.zeros(3, np.int64)), TypeError, "x"),
}


@pytest.mark.parametrize(("call", "kind", "name"), PUBLIC.values(), ids=PUBLIC)
def test_public_errors(call: Callable[[], Any], kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=rf"\b{name}\b"):
        call()


@pytest.mark.parametrize("what", ["dy", "dstate"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_relu"])
def test_failed_backward_changes_no_gradient(cell: str, what: str) -> None:
    """Two layers, two directions: a refusal comes before the first gradient is added."""
    layer = make_module(cell, 3, 5, 2, bidirectional=True)
    y, state, tape = layer.forward(X)
    bad = {"dy": np.ones_like(y)[..., :-1]} if what == "dy" else {"dy": np.ones_like(y)}
    if what == "dstate":
        wrong = np.ones((4, 2, 4))
        bad["dstate"] = (state[0], wrong) if cell == "lstm" else wrong
    with pytest.raises(ValueError, match=what):
        layer.backward(tape, **bad)
    with pytest.raises(TypeError, match="dy"):
        layer.backward(tape, np.ones(y.shape, np.float32))
    assert not layer.flat_grads.any()


MODULES = [c for c in map(vars(fr).get, fr.__all__) if isinstance(c, type) and issubclass(c, fr.Module)]


@pytest.mark.parametrize("kind", [*MODULES, type("Mine", (fr.LSTM,), {})], ids=lambda kind: kind.__name__)
def test_a_mistyped_keyword_names_the_class_that_was_called(kind: type[fr.Module]) -> None:
    with pytest.raises(TypeError, match=rf"^{kind.__name__}\.__init__\(\) got .* argument 'xyzzy'$"):
        kind(xyzzy=3)


@pytest.mark.parametrize("kind", [fr.LSTM, fr.GRU, fr.RNN, fr.MGU, fr.LIF, fr.LSTMCell, fr.Recurrent])
def test_a_mistyped_keyword_says_what_was_meant(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"'hiden_size'\. Did you mean 'hidden_size'\?$"):
        kind(3, hiden_size=4)


def test_options_of_a_constructor_of_ones_own_are_its_own() -> None:
    class Mine(fr.LSTM):
        def __init__(self, **options: Any) -> None:
            super().__init__(3, options.pop("width"), **options)

    assert Mine(width=4, bias=False).hidden_size == 4
