"""Modules as ONNX files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.checks import check_flag
from fusedrnn.interop.onnx.recurrent import GATES, reordered
from fusedrnn.libraries import needed
from fusedrnn.nn.blocks import Sequential
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.layers import Dropout, Linear
from fusedrnn.nn.module import Module
from fusedrnn.nn.recurrent import GRU, LSTM, RNN
from fusedrnn.nn.recurrent_base import Recurrent

__all__ = ["save"]

_OPSET, _IR = 17, 8


def save(
    module: Module, path: str | os.PathLike[str], *, lengths: bool = False, states: bool = False
) -> None:
    """Write a module for inference as an ONNX file of opset 17, which ONNX Runtime and others run.

    The file's inputs are x (T, B, I), or (B, T, I) with batch_first, or indices (T, B) int64 where the first
    module is an `Embedding`, and with `lengths` also lengths (B,) int32, with `states` h_0 and c_0. Its
    outputs are y and, for a recurrent network by itself, h_n and c_n, in the module's shapes; T and B are
    free. `load` makes modules of such a file again.

    Args:
        module: `RNN`, `LSTM` or `GRU`, or a `Sequential` of them, `Embedding`, `Linear`, such a `Sequential`
            and `Dropout`, which does nothing in inference. On the CPU or a GPU.
        path: the file to write; one that is there is replaced.
        lengths: whether every recurrent layer takes lengths as an input of the file.
        states: whether a recurrent network by itself takes its initial state as inputs of the file.

    Raises:
        ModuleNotFoundError: the package onnx is not installed.
        TypeError: a module of another kind; it is named.
        ValueError: an option that ONNX has not, as proj_size, cell_clip, layer_norm, zoneout or merge.
    """
    with needed("fusedrnn.onnx", "onnx"):
        import onnx
        from onnx import helper

    alone = not isinstance(module, Sequential)
    members = list(_members(module, ""))
    if check_flag("states", states) and not (alone and isinstance(module, RNN | LSTM | GRU)):
        raise ValueError(
            f"states: expected False, since {type(module).__name__} is no network by itself, got True"
        )
    if not members:
        raise ValueError("module: expected modules in it, got an empty Sequential")
    writer = _Writer(check_flag("lengths", lengths), states)
    name = "x"
    for index, (place, each) in enumerate(members):
        name = writer.add(each, name, place, index == 0)
    writer.node("Identity", [name], ["y"])
    first, kind = writer.first, writer.kind
    outputs = [("y", kind, writer.shape)]
    if alone and isinstance(module, RNN | LSTM | GRU):
        outputs += [(each, kind, writer.state_shape) for each in writer.finals]
    graph = helper.make_graph(
        writer.nodes,
        "fusedrnn",
        [helper.make_tensor_value_info(*each) for each in [first, *writer.inputs]],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [onnx.numpy_helper.from_array(array, each) for each, array in writer.constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], producer_name="fusedrnn"
    )
    model.ir_version = _IR
    onnx.checker.check_model(model)
    with open(path, "wb") as file:
        file.write(model.SerializeToString())


def _members(module: Module, name: str) -> Iterator[tuple[str, Module]]:
    """Yield (dotted number, member) of a module, those of Sequentials one by one."""
    if not isinstance(module, Sequential):
        yield name, module
        return
    for index, member in enumerate(module):
        yield from _members(member, f"{name}.{index}" if name else str(index))


class _Writer:
    """The nodes and constants of a file, module by module."""

    def __init__(self, lengths: bool, states: bool) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self.inputs: list[tuple[str, int, list[Any]]] = []
        self.finals: list[str] = []
        self.first: tuple[str, int, list[Any]]
        self.kind = 0
        self.shape: list[Any] = []
        self.state_shape: list[Any] = []
        self._states = states
        self._lengths = ""
        if lengths:
            from onnx import TensorProto

            self.inputs.append(("lengths", TensorProto.INT32, ["B"]))
            self._lengths = "lengths"

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{len(self.nodes)}", **attributes))
        return outputs[0]

    def _constant(self, name: str, array: Array | list[int]) -> str:
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def add(self, module: Module, x: str, name: str, first: bool) -> str:
        """Append the nodes of a module that takes x; return the name of what it makes."""
        from onnx import TensorProto, helper

        at = f"{name}." if name else ""
        if isinstance(module, Dropout):
            if first:
                raise TypeError("module: expected a module with parameters first, got Dropout")
            return x
        if not isinstance(module, RNN | LSTM | GRU | Embedding | Linear):
            raise TypeError(
                f"{name or 'module'}: expected RNN, LSTM, GRU, Embedding, Linear, Dropout or a Sequential of "
                f"them, got {type(module).__name__}"
            )
        self.kind = helper.np_dtype_to_tensor_dtype(module.dtype)
        # A Linear that is tied has the weight of its embedding.
        owners = [module, *(module._tied.values() if isinstance(module, Linear) else ())]
        values = {name: np.asarray(array) for each in owners for name, array in each.state_dict().items()}
        steps = ["T", "B"]
        if isinstance(module, Recurrent) and module.batch_first:
            steps = ["B", "T"]
        if first:
            sizes = {Embedding: [], Linear: [getattr(module, "in_features", 0)]}.get(
                type(module), [getattr(module, "input_size", 0)]
            )
            kind = TensorProto.INT64 if isinstance(module, Embedding) else self.kind
            self.first = (x, kind, [*steps, *sizes])
            self.shape = [*steps, 0]
        if isinstance(module, Embedding):
            self.shape = [*self.shape[:2], module.embedding_dim]
            return self.node(
                "Gather", [self._constant(at + "weight", values["weight"]), x], [at + "rows"], axis=0
            )
        if isinstance(module, Linear):
            self.shape = [*self.shape[:2], module.out_features]
            weight = self._constant(at + "weight", values["weight"].T)
            y = self.node("MatMul", [x, weight], [at + "product"])
            if "bias" in values:
                y = self.node("Add", [y, self._constant(at + "bias", values["bias"])], [at + "sum"])
            return y
        return self._recurrent(module, x, at, values)

    def _recurrent(self, module: Recurrent[Any], x: str, at: str, values: dict[str, Array]) -> str:
        op = next(kind.__name__ for kind in (RNN, LSTM, GRU) if isinstance(module, kind))
        options = dict(module._cell_options)
        for refused in ("cell_clip", "layer_norm", "proj_size"):
            if refused in options or (refused == "proj_size" and module.proj_size):
                raise ValueError(f"{at}{refused}: expected none, since ONNX has none; leave it out")
        if refused := module._beside() or ("zoneout" if any(module.zoneout) else ""):
            raise ValueError(f"{at}{refused}: expected a network without it, since ONNX has none")
        directions = 2 if module.bidirectional else 1
        hidden, states = module._network.widths[-1], 2 if op == "LSTM" else 1
        attributes: dict[str, Any] = {
            "hidden_size": hidden,
            "direction": "bidirectional" if module.bidirectional else "forward",
        }
        if op == "LSTM":
            attributes["input_forget"] = int(options.get("coupled_gates", False))
        elif op == "GRU":
            attributes["linear_before_reset"] = int(options.get("reset_after", True))
        else:
            attributes["activations"] = [getattr(module, "nonlinearity", "tanh").capitalize()] * directions
        initial = self._initial(module, states, directions) if self._states else [""] * states
        if module.batch_first:
            x = self.node("Transpose", [x], [f"{at}time_major"], perm=[1, 0, 2])
        finals: list[list[str]] = [[] for _ in range(states)]
        merged = self._constant(f"{at}merged", [0, 0, directions * hidden])
        for layer in range(module.num_layers):
            inputs = [x, *self._weights(op, module, values, at, layer)]
            inputs[4:4] = [self._lengths, *(f"{each}_l{layer}" if each else "" for each in initial)]
            if states == 1 and inputs[-1] == "":
                inputs.pop()  # P, which LSTM alone has
            made = [f"{at}Y_l{layer}", *(f"{at}Y_{each}_l{layer}" for each in "hc"[:states])]
            self.node(op, inputs, made, **attributes)
            for each, all_layers in zip(made[1:], finals, strict=True):
                all_layers.append(each)
            y = self.node("Transpose", [made[0]], [f"{at}steps_l{layer}"], perm=[0, 2, 1, 3])
            x = self.node("Reshape", [y, merged], [f"{at}y_l{layer}"])
        if module.batch_first:
            x = self.node("Transpose", [x], [f"{at}batch_major"], perm=[1, 0, 2])
        if not at:
            self.finals = ["h_n", "c_n"][:states]
            self.state_shape = [directions * module.num_layers, "B", hidden]
            for name, parts in zip(self.finals, finals, strict=True):
                self.node("Concat", parts, [name], axis=0)
        self.shape = [*self.shape[:2], directions * hidden]
        return x

    def _initial(self, module: Recurrent[Any], states: int, directions: int) -> list[str]:
        """The inputs h_0 and c_0, and a part of them for each layer."""
        names = ["h_0", "c_0"][:states]
        for name in names:
            shape = [directions * module.num_layers, "B", module._network.widths[-1]]
            self.inputs.append((name, self.kind, shape))
            borders = [
                self._constant(f"{name}_row{layer}", [layer * directions])
                for layer in range(module.num_layers + 1)
            ]
            axes = self._constant(f"{name}_axes", [0])
            for layer in range(module.num_layers):
                self.node("Slice", [name, *borders[layer : layer + 2], axes], [f"{name}_l{layer}"])
        return names

    def _weights(
        self, op: str, module: Recurrent[Any], values: dict[str, Array], at: str, layer: int
    ) -> Iterable[str]:
        """Names of W, R, B and P of a layer; B and P are "" where there are none."""
        suffixes = module._suffixes(layer)
        own = [{n: values[n + s] for n in module._spec.parameter_names if n + s in values} for s in suffixes]
        names = {"W": "", "R": "", "B": "", "P": ""}
        for part in own:
            peephole = {each: part.pop(f"peephole_{each}", None) for each in "iof"}
            if module._cell_options.get("coupled_gates"):
                part.update({n: _uncoupled(rows) for n, rows in part.items()})
                peephole["i"] = None if peephole["f"] is None else -peephole["f"]
            # The order of three and four gates is its own inverse's argsort.
            gates = tuple(int(i) for i in np.argsort(GATES[op]))
            part.update({n: reordered(rows, gates) for n, rows in part.items()})
            if peephole["o"] is not None:
                part["P"] = np.concatenate([peephole[each] for each in "iof"])
        names["W"] = self._constant(f"{at}W_l{layer}", np.stack([part["weight_ih"] for part in own]))
        names["R"] = self._constant(f"{at}R_l{layer}", np.stack([part["weight_hh"] for part in own]))
        if "bias_ih" in own[0]:
            biases = [np.concatenate([part["bias_ih"], part["bias_hh"]]) for part in own]
            names["B"] = self._constant(f"{at}B_l{layer}", np.stack(biases))
        if "P" in own[0]:
            names["P"] = self._constant(f"{at}P_l{layer}", np.stack([part["P"] for part in own]))
        return names.values()


def _uncoupled(rows: Array) -> Array:
    """Blocks f, g, o as i, f, g, o whose f is not read, where ONNX has f = 1 - i."""
    f, g, o = np.split(rows, 3)
    return np.concatenate([-f, f, g, o])
