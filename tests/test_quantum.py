"""QuantumLSTM against circuits as dense matrices, and its gradients against differences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import num_threads, numeric_gradient
from tolerances import CENTRAL_DIFFERENCES, assert_close, relative_error

import fusedrnn as fr

DTYPES = ("float64", "float32")
NAMES = ("weight_ih", "weight_hh", "bias_ih", "angles", "weight_out", "bias_out")
# Q, L, I, H, T, B
SHAPES = [(1, 1, 2, 1, 3, 1), (2, 2, 1, 3, 4, 5), (3, 1, 3, 2, 3, 17), (4, 2, 2, 5, 5, 9), (5, 3, 1, 2, 2, 3)]


# The reference: qubit 0 is the first factor of every Kronecker product.


def on_qubit(matrix: Any, q: int, qubits: int) -> Any:
    factors = [matrix if k == q else np.eye(2) for k in range(qubits)]
    return functools.reduce(np.kron, factors)


@functools.cache
def cnot(control: int, target: int, qubits: int) -> Any:
    zero, one, flip = np.diag([1, 0]), np.diag([0, 1]), np.array([[0, 1], [1, 0]])
    flipped = on_qubit(flip, target, qubits) @ on_qubit(one, control, qubits)
    return on_qubit(zero, control, qubits) + flipped


def ry(angle: float) -> Any:
    return np.array(
        [[np.cos(angle / 2), -np.sin(angle / 2)], [np.sin(angle / 2), np.cos(angle / 2)]], complex
    )


def rz(angle: float) -> Any:
    return np.diag([np.exp(-0.5j * angle), np.exp(0.5j * angle)])


def circuit(v: Any, angles: Any) -> Any:
    """The expectations of Z (Q,) for values v (Q,) and angles (L, Q, 3)."""
    qubits = len(v)
    state = np.zeros(2**qubits, complex)
    state[0] = 1
    hadamard = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    for q in range(qubits):
        encoding = rz(np.arctan(v[q] ** 2)) @ ry(np.arctan(v[q])) @ hadamard
        state = on_qubit(encoding, q, qubits) @ state
    for layer in angles:
        for distance in (1, 2):
            for q in range(qubits) if distance < qubits else ():
                state = cnot(q, (q + distance) % qubits, qubits) @ state
        for q, (a, b, c) in enumerate(layer):
            state = on_qubit(rz(c) @ ry(b) @ rz(a), q, qubits) @ state
    sign = np.diag([1.0, -1.0])
    return np.array([(state.conj() @ on_qubit(sign, q, qubits) @ state).real for q in range(qubits)])


def reference(module: fr.QuantumLSTM, x: Any, state: Any, lengths: Any) -> tuple[Any, Any, Any]:
    """y and the state of sequences (T, B, I), step by step in float64."""
    w = {name: module.parameters[name].astype(np.float64) for name in NAMES}
    y = np.zeros((*x.shape[:2], module.hidden_size))
    h_n, c_n = (part[0].astype(np.float64) for part in state)
    for b, n in enumerate(lengths):
        h, c = h_n[b], c_n[b]
        for t in range(n):
            v = (w["weight_ih"] @ x[t, b] + w["bias_ih"] + w["weight_hh"] @ h).reshape(4, -1)
            z = np.stack([circuit(v[gate], w["angles"][gate]) for gate in range(4)])
            a = np.einsum("ghq,gq->gh", w["weight_out"].reshape(4, -1, module.qubits), z)
            a += w["bias_out"].reshape(4, -1)
            i, f, o = 1 / (1 + np.exp(-a[[0, 1, 3]]))
            c = f * c + i * np.tanh(a[2])
            h = o * np.tanh(c)
            y[t, b] = h
        h_n[b], c_n[b] = h, c
    return y, h_n[None], c_n[None]


def problem(shape: tuple[int, ...], dtype: str, **options: Any) -> tuple[fr.QuantumLSTM, Any, Any, Any]:
    """A module, sequences, a state and lengths with a zero among them."""
    Q, L, I, H, T, B = shape
    rng = np.random.default_rng(shape)
    module = fr.QuantumLSTM(I, H, Q, L, dtype=dtype, seed=rng, **options)
    state = tuple(rng.standard_normal((1, B, H)).astype(dtype) for _ in range(2))
    lengths = rng.integers(0, T + 1, B)
    lengths[: min(B, 2)] = [T, 0][: min(B, 2)]
    return module, rng.standard_normal((T, B, I)).astype(dtype), state, lengths


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (8, 1, 2, 3, 2, 1)], ids=str)
def test_forward(shape: tuple[int, ...], dtype: str) -> None:
    module, x, state, lengths = problem(shape, dtype)
    want, *want_state = reference(module, x.astype(np.float64), state, lengths)
    y, found, tape = module.forward(x, state, lengths)
    assert y.dtype == found[0].dtype == dtype and tape.nbytes > y.nbytes
    assert_close(y, want, "output")
    for part, expected in zip(found, want_state, strict=True):
        assert_close(part, expected, "state")
    for again, first in zip(module(x, state, lengths)[1], found, strict=True):
        assert np.array_equal(again, first)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients(shape: tuple[int, ...]) -> None:
    """Of everything, in float64 against differences, and in float32 against float64."""
    module, x, state, lengths = problem(shape, "float64")
    rng = np.random.default_rng(5)
    dy, dh, dc = (rng.standard_normal(part.shape) for part in (module(x)[0], *state))

    def loss() -> float:
        y, (h, c) = module(x, state, lengths)
        return float((y * dy).sum() + (h * dh).sum() + (c * dc).sum())

    def gradients(cast: Callable[[Any], Any]) -> dict[str, Any]:
        *_, tape = module.forward(cast(x), tuple(map(cast, state)), lengths)
        for _ in range(2):
            module.zero_grad()
            dx, (dh_0, dc_0) = module.backward(tape, cast(dy), (cast(dh), cast(dc)))
        return {"x": dx, "h": dh_0, "c": dc_0, **{name: module.grads[name].copy() for name in NAMES}}

    got = gradients(lambda array: array)
    inputs = {"x": x, "h": state[0], "c": state[1], **{name: module.parameters[name] for name in NAMES}}
    for name, array in inputs.items():
        want = numeric_gradient(loss, array)
        error = relative_error(got[name], np.where(np.abs(want) < 1e-12, 0, want))
        assert error <= CENTRAL_DIFFERENCES, (name, error)
    module.astype("float32")
    for name, value in gradients(lambda array: array.astype(np.float32)).items():
        assert_close(value, got[name], "gradient", name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_qubit_in_closed_form(dtype: str) -> None:
    """Without rotations a qubit's Z is -sin(arctan v), also where v or its fourth power is past the range."""
    v = np.array([0, 1e-20, -0.5, 2, 1e5, -1e12, 3e25, -np.finfo(dtype).max / 4], dtype)
    module = fr.QuantumLSTM(1, 1, 1, dtype=dtype, init=None)
    module.parameters["weight_ih"] = 1
    module.parameters["weight_out"][3] = 1  # of the output gate alone
    module.parameters["bias_out"][1] = 1e4  # the forget gate is 1, so that c stays
    far = np.full((1, len(v), 1), 1e4, dtype)
    y, _, tape = module.forward(v[None, :, None], (far * 0, far))
    wide = v.astype(np.longdouble)
    z = -wide / np.sqrt(1 + wide * wide)
    assert_close(y[0, :, 0], 1 / (1 + np.exp(-z)), "output")
    dx, _ = module.backward(tape, np.ones_like(y))
    sigmoid = 1 / (1 + np.exp(-z))
    assert_close(dx[0, :, 0], -sigmoid * (1 - sigmoid) / (1 + wide * wide) ** 1.5, "gradient")


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_bits_for_every_number_of_threads(dtype: str) -> None:
    module, x, state, lengths = problem((4, 2, 3, 5, 20, 70), dtype)
    results = []
    for threads in (1, 2, 3):
        with num_threads(threads):
            module.zero_grad()
            y, found, tape = module.forward(x, state, lengths)
            dx, dstate = module.backward(tape, np.ones_like(y), found)
            results.append([y, *found, dx, *dstate, module.flat_grads.copy()])
    for result in results[1:]:
        assert all(np.array_equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_what_stands_past_the_end_is_not_looked_at() -> None:
    module, x, state, lengths = problem((3, 1, 3, 2, 4, 21), "float32")
    past = np.arange(4)[:, None] >= lengths
    results = []
    for filler in (0, np.nan, np.inf):
        module.zero_grad()
        x[past] = filler
        y, found, tape = module.forward(x, state, lengths)
        dy = np.where(past[..., None], np.float32(filler), np.float32(1))
        dx, dstate = module.backward(tape, np.broadcast_to(dy, y.shape))
        assert not y[past].any() and not dx[past].any()
        results.append([y, *found, dx, *dstate, module.flat_grads.copy()])
    for result in results[1:]:
        assert all(np.array_equal(one, other) for one, other in zip(result, results[0], strict=True))
    assert np.array_equal(found[0][:, lengths == 0], state[0][:, lengths == 0])


def test_layouts() -> None:
    """Batch first, one sequence alone, and none."""
    module, x, state, _ = problem((3, 2, 2, 4, 5, 3), "float64")
    turned = fr.QuantumLSTM(2, 4, 3, 2, batch_first=True, dtype="float64")
    turned.load_state_dict(module.state_dict())
    y, found, tape = module.forward(x, state)
    dx, dstate = module.backward(tape, y)
    for other, of_x in ((turned, x.swapaxes(0, 1)), (turned, np.ascontiguousarray(x.swapaxes(0, 1)))):
        other.zero_grad()
        y_t, found_t, tape_t = other.forward(of_x, state)
        assert np.array_equal(y_t, y.swapaxes(0, 1)) and np.array_equal(found_t, found)
        dx_t, _ = other.backward(tape_t, y_t)
        assert np.array_equal(dx_t, dx.swapaxes(0, 1)) and np.array_equal(
            turned.flat_grads, module.flat_grads
        )
    for of_one in (module, turned):
        y_1, (h_1, c_1), tape_1 = of_one.forward(x[:, 1], tuple(part[:, 1] for part in state))
        assert y_1.shape == (5, 4) and h_1.shape == c_1.shape == (1, 4)
        assert np.array_equal(y_1, y[:, 1]) and np.array_equal(h_1, found[0][:, 1])
        dx_1, (dh_1, _) = of_one.backward(tape_1, y_1)
        assert np.array_equal(dx_1, dx[:, 1]) and np.array_equal(dh_1, dstate[0][:, 1])
    for empty in (x[:0], x[:, :0]):
        y_0, found_0, tape_0 = module.forward(empty)
        dx_0, dstate_0 = module.backward(tape_0, y_0)
        assert dx_0.shape == empty.shape and not np.any(found_0) and not np.any(dstate_0)


def test_frozen_and_without_dx() -> None:
    module, x, *_ = problem((2, 1, 2, 3, 3, 4), "float32")
    y, _, tape = module.forward(x)
    dx, _ = module.backward(tape, y)
    module.zero_grad()
    module.requires_grad_(False)
    assert np.array_equal(module.backward(tape, y)[0], dx) and not module.flat_grads.any()
    assert module.backward(tape, y, need_dx=False)[0] is None
    assert not np.any(module.backward(tape, None)[0])


def test_inside_of_a_model() -> None:
    model = fr.Sequential(fr.QuantumLSTM(2, 3, 2, seed=0), fr.Pool("last"), fr.Linear(3, 1, seed=1))
    x = np.random.default_rng(0).standard_normal((4, 3, 2))
    assert fr.check_gradients(model, x, lengths=[4, 2, 3]).error < 1e-7


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "qubits: expected an int <= 8, got 9", lambda m: fr.QuantumLSTM(1, 1, 9)),
        (ValueError, "layers: expected an int >= 1, got 0", lambda m: fr.QuantumLSTM(1, 1, 2, 0)),
        (TypeError, "qubits: expected an int", lambda m: fr.QuantumLSTM(1, 1, 2.0)),
        (ValueError, r"x: expected shape \(T, B, I\).* with I = 2, got \(3, 2, 4\)", lambda m: m(X[..., :4])),
        (TypeError, "x: expected float32, got float64", lambda m: m(X[..., :2].astype(np.float64))),
        (TypeError, r"state: expected a tuple \(h, c\)", lambda m: m(X[..., :2], X)),
        (ValueError, r"state\[0\]: expected shape \(1, B, H\)", lambda m: m(X[..., :2], (X, X))),
        (ValueError, "lengths: expected values in", lambda m: m(X[..., :2], lengths=[4, 0])),
        (ValueError, r"dy: expected shape \(3, 2, 3\)", lambda m: m.backward(m.forward(X[..., :2])[2], X)),
        (RuntimeError, "cuda", lambda m: m.to("cuda")),
    ],
)
def test_errors(error: type[Exception], match: str, call: Callable[[fr.QuantumLSTM], Any]) -> None:
    with pytest.raises((error, ValueError) if error is RuntimeError else error, match=match):
        call(fr.QuantumLSTM(2, 3, 2, seed=0))


X = np.ones((3, 2, 6), np.float32)
