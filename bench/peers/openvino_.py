"""OpenVINO on the CPU: one stream set for latency, float32, tensors that share memory with NumPy."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from problems import Array, LayerProblem, Problem, StreamProblem

from peers import onnx_model

threads = 1


def available() -> bool:
    """Whether openvino, and onnx to build the model, are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "openvino"))


def version() -> str:
    """Version of openvino."""
    import openvino

    return str(openvino.__version__).split("-")[0]


def set_threads(n: int) -> None:
    """Models compiled from now on use n threads."""
    global threads
    threads = n


def supports(problem: Problem, mode: str) -> bool:
    """Inference of single layers."""
    return isinstance(problem, LayerProblem) and mode in ("forward", "stream")


def setup(problem: LayerProblem, mode: str) -> Any:
    """A run of the problem."""
    return Stream(problem) if isinstance(problem, StreamProblem) else Forward(problem)


def compile_model(model: bytes) -> Any:
    """The model for the CPU. Without the hint, a CPU with bfloat16 would compute in it."""
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return core.compile_model(core.read_model(model=model), "CPU", settings)


def make_request(compiled: Any, tensors: dict[str, Array]) -> Any:
    """A request that reads and writes these arrays in place; the caller keeps them alive."""
    import openvino

    request = compiled.create_infer_request()
    for name, array in tensors.items():
        request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
    return request


class Forward:
    """Inference of one layer."""

    def __init__(self, problem: LayerProblem) -> None:
        self.x = problem.data()["x"]
        self.request = make_request(compile_model(onnx_model.model_bytes(problem)), {"x": self.x})

    def call(self) -> None:
        """What is timed."""
        self.request.infer(share_outputs=True)

    def output(self) -> dict[str, Array]:
        """y."""
        self.call()
        return {"y": self.request.get_tensor("y").data[:, 0].copy()}


class Stream:
    """One step at a time: two requests take turns, each reading the state that the other wrote."""

    def __init__(self, problem: StreamProblem) -> None:
        compiled = compile_model(onnx_model.model_bytes(problem, with_state=True))
        self.steps, self.x = problem.steps(), np.zeros((1, 1, problem.input_size), np.float32)
        names = onnx_model.state_names(problem)
        a, b = ({name: np.zeros((1, 1, problem.hidden_size), np.float32) for name in names} for _ in range(2))
        self.states = (a, b)  # the tensors do not keep them alive
        self.now, self.next = (
            make_request(
                compiled, {"x": self.x, **old, **{f"{name}_n": array for name, array in new.items()}}
            )
            for old, new in ((a, b), (b, a))
        )

    def call(self) -> None:
        """What is timed."""
        self.now.infer(share_outputs=True)
        self.now, self.next = self.next, self.now

    def output(self) -> dict[str, Array]:
        """The outputs of the first steps."""
        outputs = []
        for x in self.steps:
            self.x[...] = x
            self.call()
            outputs.append(self.next.get_tensor("y").data.ravel().copy())
        return {"y": np.stack(outputs)}
