"""ONNX Runtime on the CPU: a session whose inputs and outputs are bound to fixed arrays."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from problems import Array, LayerProblem, Problem, StreamProblem

from peers import onnx_model

threads = 1


def available() -> bool:
    """Whether onnxruntime, and onnx to build the model, are installed."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def version() -> str:
    """Version of onnxruntime."""
    import onnxruntime

    return str(onnxruntime.__version__)


def set_threads(n: int) -> None:
    """Sessions made from now on use n threads inside an operator."""
    global threads
    threads = n


def supports(problem: Problem, mode: str) -> bool:
    """Inference of single layers."""
    return isinstance(problem, LayerProblem) and mode in ("forward", "stream")


def setup(problem: LayerProblem, mode: str) -> Any:
    """A run of the problem."""
    return Stream(problem) if isinstance(problem, StreamProblem) else Forward(problem)


def open_session(model: bytes) -> Any:
    """A session with one operator after another, `threads` threads in each."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its idle threads would spin on beside the other peers' turns.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bind(session: Any, inputs: dict[str, Array], outputs: dict[str, Array]) -> Any:
    """A binding that reads and writes these arrays in place."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    return binding


class Forward:
    """Inference of one layer."""

    def __init__(self, problem: LayerProblem) -> None:
        self.session = open_session(onnx_model.model_bytes(problem))
        self.x = problem.data()["x"]
        self.y = np.empty((problem.seq_len, 1, problem.batch, problem.hidden_size), np.float32)
        self.binding = bind(self.session, {"x": self.x}, {"y": self.y})

    def call(self) -> None:
        """What is timed."""
        self.session.run_with_iobinding(self.binding)

    def output(self) -> dict[str, Array]:
        """y."""
        self.call()
        return {"y": self.y[:, 0].copy()}


class Stream:
    """One step at a time: two bindings take turns, each reading the state that the other wrote."""

    def __init__(self, problem: StreamProblem) -> None:
        self.session = open_session(onnx_model.model_bytes(problem, with_state=True))
        self.steps, self.x = problem.steps(), np.zeros((1, 1, problem.input_size), np.float32)
        self.y = np.empty((1, 1, 1, problem.hidden_size), np.float32)
        names = onnx_model.state_names(problem)
        a, b = ({name: np.zeros((1, 1, problem.hidden_size), np.float32) for name in names} for _ in range(2))
        self.states = (a, b)  # the bindings hold bare pointers
        self.now, self.next = (
            bind(
                self.session,
                {"x": self.x, **old},
                {"y": self.y, **{f"{name}_n": array for name, array in new.items()}},
            )
            for old, new in ((a, b), (b, a))
        )

    def call(self) -> None:
        """What is timed."""
        self.session.run_with_iobinding(self.now)
        self.now, self.next = self.next, self.now

    def output(self) -> dict[str, Array]:
        """The outputs of the first steps."""
        outputs = []
        for x in self.steps:
            self.x[...] = x
            self.call()
            outputs.append(self.y.ravel().copy())
        return {"y": np.stack(outputs)}
