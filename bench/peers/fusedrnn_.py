"""fusedrnn through its public modules."""

from __future__ import annotations

from typing import Any

import numpy as np
from problems import Array, LayerProblem, ModelProblem, Problem

import fusedrnn as fr

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def available() -> bool:
    """Always: it is what is measured."""
    return True


def version() -> str:
    """Version of the package."""
    return fr.__version__


def set_threads(n: int) -> None:
    """Use n threads."""
    fr.set_num_threads(n)


def supports(problem: Problem) -> bool:
    """Every problem."""
    return True


def setup(problem: Problem, mode: str) -> Any:
    """A run of the problem."""
    if isinstance(problem, ModelProblem):
        return Model(problem)
    return Forward(problem) if mode == "forward" else Training(problem)


class Forward:
    """Inference of one layer."""

    def __init__(self, problem: LayerProblem) -> None:
        data = problem.data()
        kind = {"lstm": fr.LSTM, "gru": fr.GRU, "rnn_tanh": fr.RNN}[problem.cell]
        self.module: Any = kind(problem.input_size, problem.hidden_size)
        self.module.load_state_dict({name: data[name] for name in PARAMETERS})
        self.x, self.dy = data["x"], data["dy"]

    def call(self) -> None:
        """What is timed."""
        self.y, _ = self.module(self.x)

    def output(self) -> dict[str, Array]:
        """y."""
        self.call()
        return {"y": self.y}


class Training(Forward):
    """Forward and backward of one layer, every gradient."""

    def call(self) -> None:
        """What is timed."""
        self.module.zero_grad()
        self.y, _, tape = self.module.forward(self.x)
        self.dx, _ = self.module.backward(tape, self.dy)

    def output(self) -> dict[str, Array]:
        """y and the gradients of x, every weight and bias."""
        self.call()
        return {"y": self.y, "dx": self.dx, **{name: self.module.grads[name].copy() for name in PARAMETERS}}


class Model:
    """Training step of the character language model."""

    def __init__(self, problem: ModelProblem) -> None:
        data = problem.data()
        self.problem = problem
        self.inputs, self.targets = data["inputs"], data["targets"]
        hidden, vocabulary = problem.hidden_size, problem.vocabulary
        self.embedding = fr.Embedding(vocabulary, problem.embedding_size)
        self.lstm = fr.LSTM(problem.embedding_size, hidden)
        self.linear = fr.Linear(hidden, vocabulary)
        self.embedding.load_state_dict({"weight": data["embedding"]})
        self.lstm.load_state_dict({name: data[name] for name in PARAMETERS})
        self.linear.load_state_dict({"weight": data["linear_weight"], "bias": data["linear_bias"]})
        self.modules = [self.embedding, self.lstm, self.linear]
        self.optimizer = fr.optim.Adam(self.modules, lr=problem.lr)

    def call(self) -> None:
        """What is timed."""
        embedded = self.embedding.lookup(self.inputs)
        hidden, _, lstm_tape = self.lstm.forward(embedded)
        logits, linear_tape = self.linear.forward(hidden)
        self.loss, dlogits = fr.cross_entropy(logits, self.targets)
        self.optimizer.zero_grad()
        dhidden = self.linear.backward(linear_tape, dlogits)
        dembedded, _ = self.lstm.backward(lstm_tape, dhidden)
        self.embedding.backward(embedded, dembedded)
        fr.clip_grad_norm(self.modules, self.problem.max_norm)
        self.optimizer.step()

    def output(self) -> dict[str, Array]:
        """The losses of the first steps."""
        losses = []
        for _ in range(self.problem.checked_steps):
            self.call()
            losses.append(float(self.loss))
        return {"losses": np.array(losses)}
