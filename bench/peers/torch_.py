"""PyTorch on the CPU: torch.nn modules under inference_mode, or with autograd."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from problems import Array, ClassifierProblem, LayerProblem, ModelProblem, Problem, StreamProblem

PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def available() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def version() -> str:
    """Version of torch."""
    import torch

    return str(torch.__version__)


def set_threads(n: int) -> None:
    """Use n threads inside an operation and one between operations."""
    import torch

    torch.set_num_threads(n)
    torch.set_num_interop_threads(1)


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

    def __init__(self, problem: LayerProblem) -> None:
        import torch

        self.torch = torch
        kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}[problem.cell]
        self.module = kind(problem.input_size, problem.hidden_size)
        data = {name: torch.from_numpy(array) for name, array in problem.data().items()}
        self.x, self.dy = data.pop("x"), data.pop("dy")
        self.module.load_state_dict(data)

    def call(self) -> None:
        """What is timed."""
        with self.torch.inference_mode():
            self.y, _ = self.module(self.x)

    def output(self) -> dict[str, Array]:
        """y."""
        self.call()
        return {"y": self.y.numpy()}


class Training(Forward):
    """Forward and backward of one layer, every gradient."""

    def __init__(self, problem: LayerProblem) -> None:
        super().__init__(problem)
        self.x.requires_grad_()

    def call(self) -> None:
        """What is timed."""
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None
        self.y, _ = self.module(self.x)
        self.y.backward(self.dy)

    def output(self) -> dict[str, Array]:
        """y and the gradients of x, every weight and bias."""
        self.call()
        grads = {name: getattr(self.module, name).grad.numpy() for name in PARAMETERS}
        return {"y": self.y.detach().numpy(), "dx": self.x.grad.numpy(), **grads}


class PackedTraining(Training):
    """Training on a PackedSequence: the batch sorted by length beforehand, as packing likes it best."""

    def __init__(self, problem: LayerProblem, lengths: Array) -> None:
        super().__init__(problem)
        self.order = np.argsort(-lengths, kind="stable")
        self.lengths = self.torch.from_numpy(lengths[self.order])
        self.x = self.x.detach()[:, self.order].contiguous().requires_grad_()
        self.pack, self.unpack = (
            self.torch.nn.utils.rnn.pack_padded_sequence,
            self.torch.nn.utils.rnn.pad_packed_sequence,
        )
        self.dy = self.pack(self.dy[:, self.order], self.lengths).data

    def call(self) -> None:
        """What is timed: the output stays packed."""
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None
        self.packed, _ = self.module(self.pack(self.x, self.lengths))
        self.packed.data.backward(self.dy)

    def output(self) -> dict[str, Array]:
        """y and the gradients, in the order of the batch as it was."""
        self.call()
        back = np.argsort(self.order)
        y, _ = self.unpack(self.packed, total_length=self.x.shape[0])
        grads = {name: getattr(self.module, name).grad.numpy() for name in PARAMETERS}
        return {"y": y.detach().numpy()[:, back], "dx": self.x.grad.numpy()[:, back], **grads}


class Stream(Forward):
    """One step at a time: the module called with T = 1 and the state it returned before."""

    def __init__(self, problem: StreamProblem) -> None:
        super().__init__(problem)
        self.steps, self.state = self.torch.from_numpy(problem.steps()), None

    def call(self) -> None:
        """What is timed."""
        with self.torch.inference_mode():
            self.y, self.state = self.module(self.x, self.state)

    def output(self) -> dict[str, Array]:
        """The outputs of the first steps."""
        outputs = []
        for x in self.steps:
            self.x = x.view(1, 1, -1)
            self.call()
            outputs.append(self.y.flatten().numpy())
        return {"y": np.stack(outputs)}


class Model:
    """Training step of the character language model."""

    def __init__(self, problem: ModelProblem) -> None:
        import torch

        self.torch = torch
        self.problem = problem
        data = {name: torch.from_numpy(array) for name, array in problem.data().items()}
        self.inputs, self.targets = data["inputs"], data["targets"]
        hidden, vocabulary = problem.hidden_size, problem.vocabulary
        self.embedding = torch.nn.Embedding(vocabulary, problem.embedding_size)
        self.lstm = torch.nn.LSTM(problem.embedding_size, hidden)
        self.linear = torch.nn.Linear(hidden, vocabulary)
        self.embedding.load_state_dict({"weight": data["embedding"]})
        self.lstm.load_state_dict({name: data[name] for name in PARAMETERS})
        self.linear.load_state_dict({"weight": data["linear_weight"], "bias": data["linear_bias"]})
        self.parameters = [p for m in (self.embedding, self.lstm, self.linear) for p in m.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=problem.lr)

    def call(self) -> None:
        """What is timed."""
        hidden, _ = self.lstm(self.embedding(self.inputs))
        logits = self.linear(hidden)
        self.loss = self.torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        self.loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.parameters, self.problem.max_norm)
        self.optimizer.step()

    def output(self) -> dict[str, Array]:
        """The losses of the first steps."""
        losses = []
        for _ in range(self.problem.checked_steps):
            self.call()
            losses.append(self.loss.item())
        return {"losses": np.array(losses)}


class Classifier:
    """Training step of the sequence classifier."""

    def __init__(self, problem: ClassifierProblem) -> None:
        import torch

        self.torch = torch
        self.problem = problem
        data = {name: torch.from_numpy(array) for name, array in problem.data().items()}
        self.x, self.labels = data.pop("x"), data.pop("labels")
        head = {"weight": data.pop("linear_weight"), "bias": data.pop("linear_bias")}
        hidden = problem.hidden_size
        self.lstm = torch.nn.LSTM(problem.input_size, hidden, problem.num_layers, bidirectional=True)
        self.linear = torch.nn.Linear(2 * hidden, problem.classes)
        self.lstm.load_state_dict(data)
        self.linear.load_state_dict(head)
        parameters = [*self.lstm.parameters(), *self.linear.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=problem.lr)

    def call(self) -> None:
        """What is timed."""
        hidden, _ = self.lstm(self.x)
        logits = self.linear(hidden.mean(dim=0))
        self.loss = self.torch.nn.functional.cross_entropy(logits, self.labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss.backward()
        self.optimizer.step()

    def output(self) -> dict[str, Array]:
        """The losses of the first steps."""
        losses = []
        for _ in range(self.problem.checked_steps):
            self.call()
            losses.append(self.loss.item())
        return {"losses": np.array(losses)}
