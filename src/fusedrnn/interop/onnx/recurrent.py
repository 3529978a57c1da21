"""RNN, LSTM and GRU nodes as modules: attributes, the order of gates, layouts and the reverse direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.checks import check_choice
from fusedrnn.nn.recurrent import GRU, LSTM, RNN
from fusedrnn.nn.recurrent_base import Recurrent

__all__ = ["GATES", "RecurrentNode", "recurrent_node", "reordered"]

# The blocks of ONNX's weights in the order of ours: i o f c to i f g o, and z r h to r z n.
GATES = {"RNN": (0,), "LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
_USUAL = {"RNN": ("Tanh",), "LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}
_KNOWN = {
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "input_forget",
    "layout",
    "linear_before_reset",
    "output_sequence",
}


def reordered(rows: Array, gates: tuple[int, ...]) -> Array:
    """Blocks of rows in another order."""
    blocks = rows.reshape(len(gates), -1, *rows.shape[1:])
    return np.ascontiguousarray(blocks[list(gates)].reshape(rows.shape))


@dataclass(frozen=True)
class RecurrentNode:
    """What a node does around its module, whose only layer runs forward or in both directions."""

    reverse: bool
    batch_first: bool

    def run(self, module: Recurrent[Any], x: Array, lengths: Any, state: list[Array | None]) -> list[Array]:
        """Y, Y_h and for an LSTM Y_c, all in the node's layout."""
        if x.ndim != 3:
            raise ValueError(f"X: expected 3 axes, got shape {x.shape}")
        directions, width = (2 if module.bidirectional else 1), module._network.widths[-1]
        if self.batch_first:
            x = np.swapaxes(x, 0, 1)
            state = [None if s is None else np.swapaxes(s, 0, 1) for s in state]
        x = np.ascontiguousarray(x)
        backwards = self._backwards(x, lengths) if self.reverse else None
        if backwards is not None:
            x = np.take_along_axis(x, backwards, 0)
        initial = self._initial(x, state, (directions, x.shape[1], width))
        y, final = module(x, initial, lengths=lengths)
        if backwards is not None:
            y = np.take_along_axis(y, backwards, 0)
        y = y.reshape(*y.shape[:2], directions, width)
        finals = list(final) if isinstance(final, tuple) else [final]
        if self.batch_first:
            return [np.swapaxes(y, 0, 1), *(np.swapaxes(s, 0, 1) for s in finals)]
        return [np.swapaxes(y, 1, 2), *finals]

    @staticmethod
    def _initial(x: Array, state: list[Array | None], shape: tuple[int, ...]) -> Any:
        if all(s is None for s in state):
            return None
        full = [np.zeros(shape, x.dtype) if s is None else np.ascontiguousarray(s) for s in state]
        return tuple(full) if len(full) == 2 else full[0]

    @staticmethod
    def _backwards(x: Array, lengths: Any) -> Any:
        """The step that comes at each place of every row when the row is read from its end."""
        steps = np.arange(x.shape[0])[:, None]
        ends = np.full(x.shape[1], x.shape[0]) if lengths is None else np.asarray(lengths)
        if ends.shape != (x.shape[1],):
            raise ValueError(f"sequence_lens: expected shape (B,) = ({x.shape[1]},), got {ends.shape}")
        return np.where(steps < ends, ends - 1 - steps, steps)[:, :, None]


def recurrent_node(
    op: str, attributes: Mapping[str, Any], weights: Mapping[str, Array]
) -> tuple[Recurrent[Any], RecurrentNode]:
    """Build the module of a node, and what the node does around it.

    Args:
        op: "RNN", "LSTM" or "GRU".
        attributes: the node's attributes by name, strings as str.
        weights: W (D, G*H, I), R (D, G*H, H), and B (D, 2*G*H) and P (D, 3*H) where they are given.

    Raises:
        ValueError: what no module computes, by its name, or weights whose shapes do not fit.
    """
    direction = _choice(attributes, "direction", "forward", ("forward", "reverse", "bidirectional"))
    directions = 2 if direction == "bidirectional" else 1
    layout = _choice(attributes, "layout", 0, (0, 1))
    unknown = sorted(set(attributes) - _KNOWN)
    if unknown:
        raise ValueError(f"attribute {unknown[0]}: not one that is understood")
    # 0 bounds everything to 0 by the letter; runtimes take it for none, but not of an RNN.
    if attributes.get("clip") or (op == "RNN" and "clip" in attributes):
        raise ValueError(
            f"clip: expected none, got {attributes['clip']}; it cuts what goes into the activations, and "
            "cell_clip cuts c"
        )
    options = _options(op, attributes, directions, "P" in weights)
    w, r = weights["W"], weights["R"]
    blocks = len(GATES[op])
    if w.ndim != 3 or w.shape[1] % blocks or not w.shape[1]:
        raise ValueError(f"W: expected shape (D, {blocks}*H, I), got {w.shape}")
    hidden = w.shape[1] // blocks
    _check_shapes(weights, attributes, directions, blocks, hidden)
    classes: dict[str, Any] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
    module = classes[op](
        w.shape[2],
        hidden,
        bias="B" in weights,
        bidirectional=directions == 2,
        dtype=w.dtype.name,
        init=None,
        **options,
    )
    loaded: dict[str, Array] = {}
    for index, suffix in enumerate(("_l0", "_l0_reverse")[:directions]):
        part = {"weight_ih": w[index], "weight_hh": r[index]}
        if "B" in weights:
            part["bias_ih"], part["bias_hh"] = np.split(weights["B"][index], 2)
        part = {name: reordered(rows, GATES[op]) for name, rows in part.items()}
        if "P" in weights:
            p = np.split(weights["P"][index], 3)
            part |= {"peephole_i": p[0], "peephole_o": p[1], "peephole_f": p[2]}
        if options.get("coupled_gates"):
            part = _coupled(part)
        loaded |= {name + suffix: np.ascontiguousarray(rows) for name, rows in part.items()}
    module.load_state_dict(loaded)
    return module, RecurrentNode(direction == "reverse", layout == 1)


def _choice(attributes: Mapping[str, Any], name: str, default: Any, choices: tuple[Any, ...]) -> Any:
    return check_choice(name, attributes.get(name, default), choices)


def _options(op: str, attributes: Mapping[str, Any], directions: int, peephole: bool) -> dict[str, Any]:
    """The options of the class, and a refusal of what it does not compute."""
    usual = _USUAL[op]
    found = [str(name) for name in attributes.get("activations", usual * directions)]
    activations = [name.capitalize() for name in found]
    options: dict[str, Any] = {}
    if op == "RNN" and activations and set(activations) <= {"Tanh", "Relu"} and len(set(activations)) == 1:
        options["nonlinearity"] = activations[0].lower()
    elif tuple(activations) != usual * directions:
        raise ValueError(f"activations: expected {list(usual)} for each direction, got {found}")
    if attributes.get("activation_alpha") or attributes.get("activation_beta"):
        raise ValueError(
            "activation_alpha, activation_beta: expected none, since no activation here has them"
        )
    if op == "GRU" and not attributes.get("linear_before_reset", 0):
        options["reset_after"] = False
    if op == "LSTM":
        options["peephole"] = peephole
        options["coupled_gates"] = bool(attributes.get("input_forget", 0))
    return options


def _check_shapes(
    weights: Mapping[str, Array], attributes: Mapping[str, Any], directions: int, blocks: int, hidden: int
) -> None:
    if attributes.get("hidden_size", hidden) != hidden:
        raise ValueError(f"hidden_size: expected {hidden}, as W has it, got {attributes['hidden_size']}")
    inputs = weights["W"].shape[2]
    expected = {
        "W": (directions, blocks * hidden, inputs),
        "R": (directions, blocks * hidden, hidden),
        "B": (directions, 2 * blocks * hidden),
        "P": (directions, 3 * hidden),
    }
    for name, array in weights.items():
        if array.shape != expected[name]:
            raise ValueError(f"{name}: expected shape {expected[name]}, got {array.shape}")
        if array.dtype != weights["W"].dtype or array.dtype not in (np.float32, np.float64):
            raise ValueError(f"{name}: expected float32 or float64, all alike, got {array.dtype}")


def _coupled(part: dict[str, Array]) -> dict[str, Array]:
    """f = 1 - i as ONNX has it is sigmoid(-a_i), which is the gate f of ours, whose i is 1 - f."""
    changed = {}
    for name, rows in part.items():
        if name.startswith("peephole"):
            if name != "peephole_i":
                changed[name] = -part["peephole_i"] if name == "peephole_f" else rows
        else:
            i, _, g, o = np.split(rows, 4)
            changed[name] = np.concatenate([-i, g, o])
    return changed
