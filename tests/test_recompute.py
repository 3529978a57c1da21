"""recompute=True: a smaller tape, and the same gradients bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fusedrnn as fr

Array = npt.NDArray[Any]


def _gradients(module: Any, x: Any, dy: Array, **options: Any) -> tuple[int, dict[str, Array]]:
    """Bytes of the tape, and the gradients of one step."""
    module.zero_grad()
    y, _, tape = module.forward(x, **options)
    dx, dstate = module.backward(tape, dy)
    states = dstate if isinstance(dstate, tuple) else (dstate,)
    found = {"y": y, "dx": dx, **{f"dstate{k}": state for k, state in enumerate(states)}}
    return tape.nbytes, {**found, **{name: grad.copy() for name, grad in module.grads.items()}}


@pytest.mark.parametrize("kind", ["lstm", "projected", "gru", "rnn", "relu"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("threads", [1, 2, 3])  # 2: a direction each; 3: a team for each direction
@pytest.mark.parametrize("plain", [True, False])
def test_same_bits(kind: str, dtype: str, batch: int, threads: int, plain: bool) -> None:
    seq_len, inputs, hidden = 23, 6, 35
    rng = np.random.default_rng(batch)
    options: dict[str, Any] = {"dtype": dtype, "seed": 1, "bidirectional": True, "num_layers": 2}
    options |= {"projected": {"proj_size": 9}, "relu": {"nonlinearity": "relu"}}.get(kind, {})
    module = {"gru": fr.GRU, "rnn": fr.RNN, "relu": fr.RNN}.get(kind, fr.LSTM)(inputs, hidden, **options)
    x = rng.standard_normal((seq_len, batch, inputs)).astype(dtype)
    dy = rng.standard_normal((seq_len, batch, 2 * (9 if kind == "projected" else hidden))).astype(dtype)
    extra: dict[str, Any] = {}
    if not plain:
        extra = {"lengths": rng.integers(0, seq_len + 1, batch), "resets": rng.random((seq_len, batch)) < 0.1}
    before = fr.get_num_threads()
    fr.set_num_threads(threads)
    try:
        full, expected = _gradients(module, x, dy, **extra)
        module.recompute = True
        small, found = _gradients(module, x, dy, **extra)
    finally:
        fr.set_num_threads(before)
    assert small < full
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_looked_up_inputs_and_functional() -> None:
    rng = np.random.default_rng(0)
    lookup = fr.Lookup(rng.standard_normal((4, 6)), rng.integers(0, 4, (23, 5)))
    dy = rng.standard_normal((23, 5, 35))
    params = [rng.standard_normal(shape) for shape in ((140, 6), (140, 35), (140,), (140,))]
    expected = fr.functional.backward(fr.functional.forward("lstm", lookup, params)[2], dy)
    _, _, tape = fr.functional.forward("lstm", lookup, params, recompute=True)
    found = fr.functional.backward(tape, dy)
    np.testing.assert_array_equal(found.x, expected.x)
    for got, want in zip(found.params[:4], expected.params[:4], strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("kind", "least"), [(fr.LSTM, 4.9), (fr.GRU, 50.0), (fr.RNN, 10.0)])
def test_how_much_smaller(kind: Any, least: float) -> None:
    x = np.ones((100, 32, 64), np.float32)
    sizes = [kind(64, 128, seed=0, recompute=recompute).forward(x)[2].nbytes for recompute in (False, True)]
    assert sizes[0] > least * sizes[1]


def test_option() -> None:
    assert "recompute=True" in repr(fr.GRU(2, 3, recompute=True, seed=0))
    with pytest.raises(TypeError, match=r"^recompute: expected "):
        fr.LSTM(2, 3, recompute=1)  # type: ignore[arg-type]
