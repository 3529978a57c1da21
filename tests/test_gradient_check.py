"""check_gradients: right modules pass, and it says where others are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3, 2)).astype("f4")


def lstm_state() -> Any:
    return RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 4))


RIGHT: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "network": (fr.LSTM(2, 4, 2, dropout=0.5, seed=0), (X,), {"lengths": [4, 0, 2]}),
    "state": (fr.LSTM(2, 4, 2, seed=0), (X, lstm_state()), {}),
    "cell": (fr.GRUCell(2, 4, seed=0), (X[0], RNG.normal(size=(3, 4))), {}),
    "tokens": (fr.Sequential(fr.Embedding(5, 4, seed=0), fr.GRU(4, 3, seed=1)), (np.arange(4)[:, None],), {}),
    "model": (
        fr.Sequential(
            fr.Dropout(0.5, seed=0), fr.BatchNorm(2), fr.MGU(2, 3, seed=0), fr.Pool("attention", 3)
        ),
        (X,),
        {"mask": np.ones((4, 3), bool)},
    ),
    "decoder": (fr.AttentionDecoder("gru", 2, 3, 4, seed=0), (X, RNG.normal(size=(5, 3, 4))), {}),
    "nothing": (fr.Sequential(), (X,), {}),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_modules(name: str) -> None:
    module, inputs, options = RIGHT[name]
    before, noise = module.state_dict(), module.random_state()
    found = fr.check_gradients(module, *inputs, **options)
    assert found.error < 1e-6 and set(found.errors) >= set(module.parameters)
    np.testing.assert_equal(module.state_dict(), before)
    assert module.random_state() == noise and not module.flat_grads.any() and module.dtype == np.float32


class Scale(fr.Module):
    """y = gain * x, with one mistake or none."""

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.mistake = mistake
        self.parameter("gain", (2,), [1.0, 2.0])

    def __call__(self, x: Any) -> Any:
        y = self.forward(x)[0]
        return y + 1 if self.mistake == "call" else y

    def forward(self, x: Any) -> Any:
        return x * self.gain, (x, self.gain.copy())

    def backward(self, tape: Any, dy: Any, *, need_dx: bool = True) -> Any:
        x, gain = tape
        dgain = (dy * x).sum(axis=(0, 1))
        if self.mistake == "gain":
            dgain = dgain * [1, 1.01]
        if self.mistake == "nan":
            dgain = dgain * np.nan
        if self.mistake == "overwritten":
            self.grads["gain"][...] = dgain
        else:
            self.grads["gain"] += dgain
        dx = {"x": dy, "none": None, "shape": (dy * gain).T}.get(self.mistake, dy * gain)
        return dx


def test_where_a_mistake_is() -> None:
    assert fr.check_gradients(Scale(), X).error < 1e-8
    for mistake, name, least in (("gain", "1.gain", 1e-3), ("x", "x", 0.1), ("nan", "1.gain", np.nan)):
        found = fr.check_gradients(fr.Sequential(fr.Linear(2, 2, seed=0), Scale(mistake)), X)
        if mistake == "x":
            assert {n for n, error in found.errors.items() if error > 0.1} == {"x", "0.weight", "0.bias"}
        else:
            assert found.worst == name and (np.isnan(found.error) or found.error > least)
        assert np.isnan(least) or found.error > least
    for mistake, text in (
        ("call", "y: expected a call to return what forward does"),
        ("overwritten", r"grads\['gain'\]: expected backward to add to it"),
        ("none", r"x: expected a gradient of shape \(4, 3, 2\), got NoneType"),
        ("shape", r"x: expected a gradient of shape \(4, 3, 2\), got \(2, 3, 4\)"),
    ):
        with pytest.raises(ValueError, match=text):
            fr.check_gradients(Scale(mistake), X)


def test_the_repr_is_a_table() -> None:
    found = fr.check_gradients(fr.Linear(2, 60, seed=0), X, samples=10)
    lines = repr(found).splitlines()
    assert lines[0] == f"GradientCheck: error {found.error:.1e}, worst in {found.worst}"
    assert [line.split()[0] for line in lines[1:]] == ["x", "weight", "bias"]
    assert lines[2].endswith("10 of 120 values")
    assert repr(fr.check_gradients(fr.Sequential(), X[:0])).startswith("GradientCheck: error 0.0e+00")


def test_frozen_parameters_are_left_out() -> None:
    net = fr.Sequential(fr.Linear(2, 2, seed=0).requires_grad_(False), fr.Linear(2, 2, seed=1))
    assert list(fr.check_gradients(net, X).errors) == ["x", "1.weight", "1.bias"]


def test_what_it_refuses() -> None:
    linear: Any = fr.Linear(2, 2)
    for call, kind, text in (
        (lambda: fr.check_gradients(3, X), TypeError, "module: expected a Module, got int"),  # type: ignore[arg-type]
        (lambda: fr.check_gradients(linear, [1.0]), TypeError, "x: expected a numpy.ndarray, got list"),
        (lambda: fr.check_gradients(linear, X, samples=0), ValueError, "samples: expected an int >= 1"),
        (
            lambda: fr.check_gradients(linear, X, eps=0.0),
            ValueError,
            r"eps: expected a number in \[1e-12, 1.0",
        ),
        (lambda: fr.check_gradients(linear, X[..., :1]), ValueError, "x: expected shape"),
    ):
        with pytest.raises(kind, match=text):
            call()


def test_the_row_of_padding_stays() -> None:
    """It has no gradient, though the output depends on it; a wrong gradient of the others is still seen."""
    module = fr.Sequential(fr.Embedding(5, 3, padding_idx=2, seed=0), fr.GRU(3, 4, seed=1))
    tokens = np.array([[0, 2], [2, 1], [4, 3]])
    assert fr.check_gradients(module, tokens).error < 1e-6
    module[0].padding_idx = None
    assert "of 15" in repr(fr.check_gradients(module, tokens, samples=15)).splitlines()[1]
