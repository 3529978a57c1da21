"""fusedrnn through its public modules."""

from __future__ import annotations

from typing import Any

import numpy as np
from problems import Array, ClassifierProblem, LayerProblem, ModelProblem, Problem, StreamProblem

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


def supports(problem: Problem, mode: str) -> bool:
    """Every problem."""
    return True


def setup(problem: Problem, mode: str) -> Any:
    """A run of the problem."""
    if isinstance(problem, ModelProblem):
        return Model(problem)
    if isinstance(problem, ClassifierProblem):
        return Classifier(problem)
    if isinstance(problem, StreamProblem):
        return Stream(problem)
    return Forward(problem) if mode == "forward" else Training(problem)


class Forward:
    """Inference of one layer."""

    def __init__(self, problem: LayerProblem, **options: Any) -> None:
        data = problem.data()
        kind = {"lstm": fr.LSTM, "gru": fr.GRU, "rnn_tanh": fr.RNN}[problem.cell]
        self.module: Any = kind(problem.input_size, problem.hidden_size, **options)
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
    """Forward and backward of one layer, every gradient; with lengths (B,) or resets (T, B) if given."""

    def __init__(
        self, problem: LayerProblem, lengths: Array | None = None, resets: Array | None = None, **options: Any
    ) -> None:
        super().__init__(problem, **options)
        self.borders = {"lengths": lengths, "resets": resets}

    def call(self) -> None:
        """What is timed."""
        self.module.zero_grad()
        self.y, _, self.tape = self.module.forward(self.x, **self.borders)
        self.dx, _ = self.module.backward(self.tape, self.dy)

    def output(self) -> dict[str, Array]:
        """y and the gradients of x, every weight and bias."""
        self.call()
        return {"y": self.y, "dx": self.dx, **{name: self.module.grads[name].copy() for name in PARAMETERS}}


class Stream:
    """One step at a time through the step object; of the quantized network, if a kind is given."""

    def __init__(self, problem: StreamProblem, quantized: str | None = None) -> None:
        layer = Forward(problem)
        module = layer.module if quantized is None else layer.module.quantize(quantized)
        self.step = module.stream()
        self.steps, self.x = problem.steps(), layer.x[0, 0]

    def call(self) -> None:
        """What is timed."""
        self.y = self.step(self.x)

    def output(self) -> dict[str, Array]:
        """The outputs of the first steps."""
        return {"y": np.stack([self.step(x).copy() for x in self.steps])}


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


class Classifier:
    """Training step of the sequence classifier."""

    def __init__(self, problem: ClassifierProblem) -> None:
        data = problem.data()
        self.problem = problem
        self.x, self.labels = data.pop("x"), data.pop("labels")
        head = {"weight": data.pop("linear_weight"), "bias": data.pop("linear_bias")}
        hidden = problem.hidden_size
        self.lstm = fr.LSTM(problem.input_size, hidden, problem.num_layers, bidirectional=True)
        self.linear = fr.Linear(2 * hidden, problem.classes)
        self.lstm.load_state_dict(data)
        self.linear.load_state_dict(head)
        self.optimizer = fr.optim.Adam([self.lstm, self.linear], lr=problem.lr)

    def call(self) -> None:
        """What is timed."""
        hidden, _, lstm_tape = self.lstm.forward(self.x)
        logits, linear_tape = self.linear.forward(hidden.mean(axis=0))
        self.loss, dlogits = fr.cross_entropy(logits, self.labels)
        self.optimizer.zero_grad()
        dmean = self.linear.backward(linear_tape, dlogits)
        # torch also computes the gradient of x only where it is asked for.
        self.lstm.backward(lstm_tape, np.broadcast_to(dmean / len(hidden), hidden.shape), need_dx=False)
        self.optimizer.step()

    def output(self) -> dict[str, Array]:
        """The losses of the first steps."""
        losses = []
        for _ in range(self.problem.checked_steps):
            self.call()
            losses.append(float(self.loss))
        return {"losses": np.array(losses)}
