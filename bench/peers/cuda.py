"""The peers on a GPU by name, ours first.

A peer is an object with
    missing() -> str              why it cannot be measured here; empty if it can
    version() -> str
    refusal(data) -> str          why it does not take the problem on; empty if it does
    setup(data)                   a run, with `call()`, which is timed, and `output()`, a dict of tensors
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import torch
from cuda_data import PARAMETERS, Data, Tensors, layer

import fusedrnn as fr


def finished(run: Any) -> Tensors:
    """y, and after training the gradients of x, every weight and bias."""
    if run.data.mode != "training":
        return {"y": run.y}
    return {"y": run.y.detach(), "dx": run.dx, **dict(zip(PARAMETERS, run.gradients, strict=True))}


class Fused:
    """fusedrnn.functional, on the kernel that a call takes by itself, or on one that is named."""

    def __init__(self, kernel: str | None = None) -> None:
        self.kernel = kernel

    def missing(self) -> str:
        """What fusedrnn itself says."""
        return fr.cuda.missing()

    def version(self) -> str:
        """Version of the package."""
        return fr.__version__

    def refusal(self, data: Data) -> str:
        """Of the kernel that is named, or that "fusedrnn" is that kernel."""
        if self.kernel is None:
            return ""
        try:
            if chosen(data, None) == self.kernel:
                return "what fusedrnn takes by itself"
            chosen(data, self.kernel)
        except RuntimeError as error:
            if "cannot run this" not in str(error):
                raise
            return str(error)
        return ""

    def setup(self, data: Data) -> FusedRun:
        """A run of the problem."""
        return FusedRun(data, self.kernel)


def chosen(data: Data, kernel: str | None) -> str:
    """The kernel that runs one step of the problem."""
    problem = data.problem
    with fr.cuda.set_kernel(kernel), fr.cuda.set_float32_mode(float32_mode(data)):
        params = list(data.weights.values())
        _, _, tape = fr.functional.forward(problem.cell, data.x[:1].contiguous(), params)
    return str(tape._layer.kernel)


def float32_mode(data: Data) -> str:
    """Our name of the arithmetic of float32; it does not matter to 16 bits."""
    return "tf32" if data.problem.precision == "tf32" else "ieee"


class FusedRun:
    """Forward keeps the tape in every mode: a functional call has no other."""

    def __init__(self, data: Data, kernel: str | None) -> None:
        self.data, self.kernel, self.params = data, kernel, list(data.weights.values())
        self.mode = float32_mode(data)
        self.x = data.x[:1].contiguous() if data.mode == "stream" else data.x
        self.state: Any = None

    def call(self) -> None:
        """What is timed."""
        fr.cuda.set_kernel(self.kernel)
        fr.cuda.set_float32_mode(self.mode)
        state = self.state if self.data.mode == "stream" else None
        self.y, self.state, tape = fr.functional.forward(self.data.problem.cell, self.x, self.params, state)
        self.ran: str = tape._layer.kernel
        if self.data.mode == "training":
            gradients = fr.functional.backward(tape, self.data.dy)
            self.dx, self.gradients = gradients.x, gradients.params[: len(PARAMETERS)]  # no projection

    def output(self) -> Tensors:
        """What `finished` says, or the outputs of a stream's first steps."""
        if self.data.mode == "stream":
            return streamed(self)
        self.call()
        return finished(self)


def streamed(run: Any) -> Tensors:
    """The outputs of the first steps, from zero states."""
    run.state, before, ys = None, run.x, []
    for x in run.data.x:
        run.x = x[None].contiguous()
        run.call()
        ys.append(run.y)
    run.x = before
    return {"y": torch.cat(ys)}


class Torch:
    """torch.nn with explicit dtypes; what it runs is cuDNN's choice."""

    def missing(self) -> str:
        """Nothing."""
        return ""

    def version(self) -> str:
        """Version of torch."""
        return str(torch.__version__)

    def refusal(self, data: Data) -> str:
        """None."""
        return ""

    def setup(self, data: Data) -> TorchRun:
        """A run of the problem."""
        return TorchRun(data)


class TorchRun:
    """Inference without autograd; training with it."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.module = layer(data.problem, device=data.device, dtype=data.dtype)
        self.module.load_state_dict(data.weights)
        self.x = data.x[:1].contiguous() if data.mode == "stream" else data.x.clone()
        self.x.requires_grad_(data.mode == "training")
        self.state: Any = None

    def call(self) -> None:
        """What is timed."""
        if self.data.mode != "training":
            with torch.inference_mode():
                self.y, self.state = self.module(self.x, self.state if self.data.mode == "stream" else None)
            return
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None
        self.y, _ = self.module(self.x)
        self.y.backward(self.data.dy)

    def output(self) -> Tensors:
        """What `finished` says, or the outputs of a stream's first steps."""
        if self.data.mode == "stream":
            return streamed(self)
        self.call()
        self.dx, self.gradients = self.x.grad, [getattr(self.module, name).grad for name in PARAMETERS]
        return finished(self)


class Foreign:
    """A library of recurrent layers on torch's tensors, with autograd."""

    def __init__(self, distribution: str, needed: str, run: type[ForeignRun]) -> None:
        self.distribution, self.needed, self.run = distribution, needed, run

    def missing(self) -> str:
        """Why it cannot be imported."""
        return import_problem(self.needed)

    def version(self) -> str:
        """Version of what is installed."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return "unknown"  # a folder of sources on the path

    def refusal(self, data: Data) -> str:
        """Of cells, precisions and modes that it lacks."""
        problem = data.problem
        if data.mode == "stream":
            return "not streamed"
        if problem.cell not in self.run.CELLS or problem.precision not in self.run.PRECISIONS:
            return f"no {problem.cell} in {problem.precision}"
        return ""

    def setup(self, data: Data) -> ForeignRun:
        """A run of the problem."""
        return self.run(data)


@cache
def import_problem(name: str) -> str:
    """Why a module cannot be imported; empty if it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a library does when it is imported
        return f"{type(error).__name__}: {error}"
    return ""


class ForeignRun(ABC):
    """Calls `layer`, batch first or not, and its backward; the input product is part of it, as of ours."""

    CELLS: tuple[str, ...] = ()
    PRECISIONS: tuple[str, ...] = ()

    def __init__(self, data: Data) -> None:
        self.data, self.training = data, data.mode == "training"
        self.x = data.x.clone().requires_grad_(self.training)
        self.params = [w.clone().requires_grad_(self.training) for w in data.weights.values()]

    @abstractmethod
    def layer(self) -> torch.Tensor:
        """y (T, B, H)."""

    def call(self) -> None:
        """What is timed."""
        if not self.training:
            with torch.no_grad():
                self.y = self.layer()
            return
        for tensor in (self.x, *self.params):
            tensor.grad = None
        self.y = self.layer()
        self.y.backward(self.data.dy)

    def output(self) -> Tensors:
        """What `finished` says."""
        self.call()
        self.dx, self.gradients = self.x.grad, [p.grad for p in self.params]
        return finished(self)


class FlashRun(ForeignRun):
    """flashrnn: the recurrent part of one head as wide as H by its fused kernel, compiled on first use."""

    CELLS, PRECISIONS = ("lstm", "gru", "rnn_tanh"), ("bf16", "fp16")

    def layer(self) -> torch.Tensor:
        """The order of its gates is torch's; those of a GRU's recurrent part start with the new gate."""
        flashrnn = importlib.import_module("flashrnn").flashrnn
        cell, H = self.data.problem.cell, self.data.problem.hidden_size
        G = self.data.problem.gates
        w_ih, w_hh, b_ih, b_hh = self.params
        recurrent, bias = w_hh.view(G, 1, H, H), (b_ih + b_hh).view(G, 1, H)
        if cell == "gru":
            recurrent = recurrent[[2, 0, 1]]
            bias = torch.stack([b_hh.view(G, H)[2], *bias[:2, 0], b_ih.view(G, H)[2]])[:, None]
        gates = torch.nn.functional.linear(self.x, w_ih).transpose(0, 1)
        states, _ = flashrnn(
            gates.reshape(*gates.shape[:2], G, 1, H).contiguous(),
            recurrent.contiguous(),
            bias.contiguous(),
            function={"rnn_tanh": "elman"}.get(cell, cell),
            backend="cuda_fused",
            dtype={"bf16": "bfloat16", "fp16": "float16"}[self.data.problem.precision],
        )
        y: torch.Tensor = states[0].reshape(*gates.shape[:2], H).transpose(0, 1)
        return y


class RlRun(ForeignRun):
    """torchrl's Triton kernels, which reset states inside of a sequence; float32."""

    CELLS, PRECISIONS = ("lstm", "gru"), ("tf32", "ieee")

    def layer(self) -> torch.Tensor:
        """Batch first, with an initial state for each step, of which the first is used."""
        triton = importlib.import_module(RL_MODULE)
        x = self.x.transpose(0, 1).contiguous()
        zeros = torch.zeros(*x.shape[:2], self.data.problem.hidden_size, device=x.device)
        starts = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        states = (zeros, zeros) if self.data.problem.cell == "lstm" else (zeros,)
        call = triton.lstm_triton if self.data.problem.cell == "lstm" else triton.gru_triton
        y: torch.Tensor = call(x, *states, *self.params, starts, input_precision=self.data.problem.precision)[
            0
        ]
        return y.transpose(0, 1)


RL_MODULE = "torchrl.modules.tensordict_module._rnn_triton"

CUDA_PEERS: dict[str, Any] = {
    "fusedrnn": Fused(),
    **{f"fusedrnn {kernel}": Fused(kernel) for kernel in ("cluster", "persistent", "step")},
    "torch": Torch(),
    "flashrnn": Foreign("flashrnn", "flashrnn", FlashRun),
    "torchrl": Foreign("torchrl", RL_MODULE, RlRun),
}
