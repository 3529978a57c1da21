"""NumPy as a careful user writes it: one matrix product for all inputs, one a step, one a weight gradient."""

from __future__ import annotations

import numpy as np
from problems import Array, LayerProblem, Problem, StreamProblem

LARGEST = 2.5e8  # past this its time tells nothing new


def available() -> bool:
    """Always: fusedrnn needs it."""
    return True


def version() -> str:
    """Version of NumPy."""
    return np.__version__


def set_threads(n: int) -> None:
    """Nothing left to do: the BLAS read the environment when NumPy was imported."""


def supports(problem: Problem, mode: str) -> bool:
    """Single layers over whole sequences."""
    return isinstance(problem, LayerProblem) and not isinstance(problem, StreamProblem)


def setup(problem: LayerProblem, mode: str) -> Run:
    """A run of the problem."""
    return {"lstm": LSTM, "gru": GRU, "rnn_tanh": RNN}[problem.cell](problem, mode)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), which only overflows to the right limit."""
    return 0.5 * np.tanh(0.5 * x) + 0.5


class Run:
    """What the cells share. dgx, dgh (T, B, G*H) are gradients of the gates' input and recurrent parts."""

    def __init__(self, problem: LayerProblem, mode: str) -> None:
        data = problem.data()
        self.x, self.dy, self.mode = data["x"], data["dy"], mode
        self.w, self.u = data["weight_ih_l0"], data["weight_hh_l0"]
        self.b_ih, self.b_hh = data["bias_ih_l0"], data["bias_hh_l0"]
        self.seq_len, self.batch, self.hidden = problem.seq_len, problem.batch, problem.hidden_size
        # Row 0 is the initial state.
        self.h = np.zeros((self.seq_len + 1, self.batch, self.hidden), np.float32)

    def forward(self) -> None:
        """Fill h[1:] and whatever backward needs."""
        raise TypeError("Run.forward: expected a cell's own")

    def backward(self) -> tuple[Array, Array]:
        """Return dgx and dgh."""
        raise TypeError("Run.backward: expected a cell's own")

    def call(self) -> None:
        """What is timed."""
        self.forward()
        if self.mode == "training":
            dgx, dgh = (d.reshape(self.seq_len * self.batch, -1) for d in self.backward())
            x, h = (a.reshape(self.seq_len * self.batch, -1) for a in (self.x, self.h[:-1]))
            self.grads = {
                "dx": (dgx @ self.w).reshape(self.x.shape),
                "weight_ih_l0": dgx.T @ x,
                "weight_hh_l0": dgh.T @ h,
                "bias_ih_l0": dgx.sum(axis=0),
                "bias_hh_l0": dgh.sum(axis=0),
            }

    def output(self) -> dict[str, Array]:
        """y, and in training the gradients of x, every weight and bias."""
        self.call()
        return {"y": self.h[1:].copy(), **(self.grads if self.mode == "training" else {})}


class RNN(Run):
    """h' = tanh(W x + b_ih + U h + b_hh)."""

    def forward(self) -> None:
        """Fill h[1:]."""
        gx = self.x @ self.w.T + (self.b_ih + self.b_hh)
        for t in range(self.seq_len):
            np.tanh(gx[t] + self.h[t] @ self.u.T, out=self.h[t + 1])

    def backward(self) -> tuple[Array, Array]:
        """Both parts of the gate share one gradient."""
        dg = 1 - self.h[1:] ** 2
        dh = np.zeros((self.batch, self.hidden), np.float32)
        for t in reversed(range(self.seq_len)):
            dg[t] *= self.dy[t] + dh
            dh = dg[t] @ self.u
        return dg, dg


class LSTM(Run):
    """Gates i, f, g, o; c' = f*c + i*g; h' = o*tanh(c')."""

    def forward(self) -> None:
        """Fill h[1:], the cell states and the activated gates."""
        n = self.hidden
        self.c = np.zeros_like(self.h)
        self.gates = self.x @ self.w.T + (self.b_ih + self.b_hh)
        for t in range(self.seq_len):
            gate = self.gates[t]
            gate += self.h[t] @ self.u.T
            gate[:, : 2 * n] = sigmoid(gate[:, : 2 * n])
            gate[:, 2 * n : 3 * n] = np.tanh(gate[:, 2 * n : 3 * n])
            gate[:, 3 * n :] = sigmoid(gate[:, 3 * n :])
            i, f, g, o = np.split(gate, 4, axis=1)
            self.c[t + 1] = f * self.c[t] + i * g
            self.h[t + 1] = o * np.tanh(self.c[t + 1])

    def backward(self) -> tuple[Array, Array]:
        """Both parts of the gates share one gradient."""
        dg = np.empty_like(self.gates)
        dh = dc = np.zeros((self.batch, self.hidden), np.float32)
        for t in reversed(range(self.seq_len)):
            i, f, g, o = np.split(self.gates[t], 4, axis=1)
            tanh_c = np.tanh(self.c[t + 1])
            dh = dh + self.dy[t]
            dc = dc + dh * o * (1 - tanh_c**2)
            parts = (
                dc * g * i * (1 - i),
                dc * self.c[t] * f * (1 - f),
                dc * i * (1 - g**2),
                dh * tanh_c * o * (1 - o),
            )
            np.concatenate(parts, axis=1, out=dg[t])
            dc = dc * f
            dh = dg[t] @ self.u
        return dg, dg


class GRU(Run):
    """Gates r, z, n = tanh(gx_n + r*gh_n); h' = (1-z)*n + z*h."""

    def forward(self) -> None:
        """Fill h[1:], the activated gates and the recurrent part of n."""
        n = self.hidden
        self.gates = self.x @ self.w.T + self.b_ih
        self.gh_n = np.empty((self.seq_len, self.batch, n), np.float32)
        for t in range(self.seq_len):
            gate, gh = self.gates[t], self.h[t] @ self.u.T + self.b_hh
            gate[:, : 2 * n] = sigmoid(gate[:, : 2 * n] + gh[:, : 2 * n])
            self.gh_n[t] = gh[:, 2 * n :]
            r, z, candidate = np.split(gate, 3, axis=1)
            np.tanh(candidate + r * self.gh_n[t], out=candidate)
            self.h[t + 1] = candidate + z * (self.h[t] - candidate)

    def backward(self) -> tuple[Array, Array]:
        """The recurrent part of n carries the factor r."""
        dgx, dgh = np.empty_like(self.gates), np.empty_like(self.gates)
        dh = np.zeros((self.batch, self.hidden), np.float32)
        for t in reversed(range(self.seq_len)):
            r, z, n = np.split(self.gates[t], 3, axis=1)
            dh = dh + self.dy[t]
            dn = dh * (1 - z) * (1 - n**2)
            dr = dn * self.gh_n[t] * r * (1 - r)
            dz = dh * (self.h[t] - n) * z * (1 - z)
            np.concatenate((dr, dz, dn), axis=1, out=dgx[t])
            np.concatenate((dr, dz, dn * r), axis=1, out=dgh[t])
            dh = dh * z + dgh[t] @ self.u
        return dgx, dgh
