"""A layer as the bytes of an ONNX model, for the runtimes that read one."""

from __future__ import annotations

import numpy as np
from problems import Array, LayerProblem

OPERATORS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN"}
# The gates in ONNX's order (i o f c; z r h), by their numbers in PyTorch's (i f g o; r z n).
GATE_ORDER = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn_tanh": (0,)}


def state_names(problem: LayerProblem) -> list[str]:
    """The state's inputs; its outputs end in _n."""
    return ["h", "c"] if problem.cell == "lstm" else ["h"]


def model_bytes(problem: LayerProblem, with_state: bool = False) -> bytes:
    """Input x (T, B, I), output y (T, 1, B, H); with the state (1, B, H) too, or from zero and without."""
    from onnx import TensorProto, helper, numpy_helper

    names = state_names(problem) if with_state else []
    state_shape = (1, problem.batch, problem.hidden_size)

    def values(shapes: dict[str, tuple[int, ...]]) -> list[object]:
        return [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
        ]

    attributes = {"hidden_size": problem.hidden_size}
    if problem.cell == "gru":
        attributes["linear_before_reset"] = 1
    # The empty name stands for sequence_lens, which is left out.
    inputs = ["x", "W", "R", "B", *(["", *names] if names else [])]
    outputs = ["y", *(f"{name}_n" for name in names)]
    graph = helper.make_graph(
        [helper.make_node(OPERATORS[problem.cell], inputs, outputs, **attributes)],
        "layer",
        values(
            {"x": (problem.seq_len, problem.batch, problem.input_size), **dict.fromkeys(names, state_shape)}
        ),
        values(
            {
                "y": (problem.seq_len, 1, problem.batch, problem.hidden_size),
                **{f"{name}_n": state_shape for name in names},
            }
        ),
        [numpy_helper.from_array(array, name) for name, array in weights(problem).items()],
    )
    opset = helper.make_opsetid("", 14)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def weights(problem: LayerProblem) -> dict[str, Array]:
    """W (1, G*H, I), R (1, G*H, H) and B (1, 2*G*H), which holds both biases."""
    data = problem.data()

    def reorder(name: str) -> Array:
        gates = np.split(data[name], problem.gates)
        return np.concatenate([gates[gate] for gate in GATE_ORDER[problem.cell]])

    return {
        "W": reorder("weight_ih_l0")[None],
        "R": reorder("weight_hh_l0")[None],
        "B": np.concatenate([reorder("bias_ih_l0"), reorder("bias_hh_l0")])[None],
    }
