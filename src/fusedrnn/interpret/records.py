"""What gates and cells do at every step, and how often they are saturated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.cells import CELLS
from fusedrnn.checks import check_number
from fusedrnn.inputs.masks import counted_steps
from fusedrnn.interpret.figures import new_figure
from fusedrnn.interpret.members import Floats
from fusedrnn.listing import Listed
from fusedrnn.losses.gamma import sigmoid
from fusedrnn.nn.recurrent_base import Recurrent

# Those between 0 and 1; the others are between -1 and 1.
_GATES = {"i", "f", "o", "r", "z"}


class Direction(NamedTuple):
    """One layer in one direction, by itself: its weights, and what it reads."""

    layer: int
    reverse: bool
    weights: dict[str, Floats]
    x: Floats


class CellRecord(Listed):
    """The gates and states of one layer and direction, of all steps.

    Attributes:
        layer: number of the layer.
        reverse: whether it runs from the end.
        values: {name: (T, B, H) float64}: gates i, f, g, o of an LSTM and r, z, n of a GRU, and states h and
            c after the step; 0 at steps that do not count.
        counts: (T, B) bool: the steps that count.
    """

    def __init__(
        self, part: Direction, kind: str, values: dict[str, Floats], counts: npt.NDArray[np.bool_]
    ) -> None:
        self.layer, self.reverse, self.values, self.counts = part.layer, part.reverse, values, counts
        self._part, self._kind = part, kind

    def saturation(self, low: float = 0.1, high: float = 0.9) -> dict[str, tuple[Floats, Floats]]:
        """Return for each gate how often each unit is saturated, as shares of the steps that count.

        A gate between 0 and 1 is saturated to the left below `low` and to the right above `high`; g, n and h,
        which lie between -1 and 1, below -high and above high. A forget gate that is always to the right
        keeps everything, one always to the left is no memory; a tanh at its ends passes no gradient.

        Args:
            low: in [0, 1].
            high: in [0, 1].

        Returns:
            {gate: (left (H,), right (H,))}, float64; NaN where no step counts.

        Raises:
            TypeError, ValueError: a limit is no number in [0, 1].

        Paper: Karpathy, Johnson and Fei-Fei 2015, arXiv:1506.02078.
        """
        low, high = check_number("low", low, 0.0, 1.0), check_number("high", high, 0.0, 1.0)
        found = {}
        for name, values in self.values.items():
            if name == "c" or (self._kind == "rnn_relu"):
                continue
            seen = values[self.counts]
            left = seen < (low if name in _GATES else -high)
            number = len(seen) or np.nan
            found[name] = (left.sum(axis=0) / number, (seen > high).sum(axis=0) / number)
        return found

    def figure(self) -> Any:
        """Return a matplotlib Figure: for each gate, a point for each unit, left against right.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        found = self.saturation()
        figure = new_figure(2.6 * max(len(found), 1), 2.9)
        for place, (name, (left, right)) in enumerate(found.items(), 1):
            axes = figure.add_subplot(1, len(found), place)
            axes.plot(left, right, "o", alpha=0.5, markersize=4)
            axes.plot([0, 1], [1, 0], color="gray", linewidth=0.8)
            axes.set(title=name, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="saturated left")
            axes.set_ylabel("saturated right" if place == 1 else "")
        return figure

    def __repr__(self) -> str:
        steps, rows, units = next(iter(self.values.values())).shape
        way = ", reverse" * self.reverse
        lines = [f"CellRecord: layer {self.layer}{way}, T={steps}, B={rows}, H={units}"]
        for name, (left, right) in self.saturation().items():
            lines.append(f"  {name}: saturated left {left.mean():.0%}, right {right.mean():.0%} of the steps")
        return "\n".join(lines)


def cell_records(
    network: Recurrent[Any], x: npt.ArrayLike, lengths: npt.ArrayLike | None = None
) -> list[CellRecord]:
    """Return the gates and states of an RNN, LSTM or GRU, layer by layer, forward before reverse.

    They are computed step by step in float64, from the network's weights, as if in evaluation mode and from
    zero states; outputs agree with the network's to its rounding.

    Args:
        network: an RNN, LSTM or GRU without proj_size and the options that change the cell or stand between
            layers (peepholes, layer_norm, zoneout, residual, merge, learned_state).
        x: floats (T, B, I), (B, T, I) with batch_first, or (T, I).
        lengths: (B,) of an integer dtype, each in 0..T, or None.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: x or lengths of the wrong shape, or a network with such options.
        RuntimeError: the network is on a GPU.
    """
    values, counts = _time_major(network, x, lengths)
    return [_recorded(part, network._spec.name, counts) for part in directions(network, values, counts)]


def _time_major(network: Any, x: Any, lengths: Any) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return x as (T, B, I), and which steps count.

    Raises:
        TypeError, ValueError, RuntimeError: as `cell_records`.
    """
    if not isinstance(network, Recurrent):
        raise TypeError(f"network: expected an RNN, LSTM or GRU, got {type(network).__name__}")
    network._require_cpu("interpret")
    if not is_plain(network):
        raise ValueError(
            "network: expected an RNN, LSTM or GRU without proj_size, zoneout and options that change the "
            f"cell or join layers, got {network!r}"
        )
    values = np.asarray(x)
    if values.dtype.kind != "f":
        raise TypeError(f"x: expected floats, got {values.dtype}; tokens go through an embedding first")
    if values.ndim not in (2, 3) or values.shape[-1] != network.input_size:
        raise ValueError(
            f"x: expected shape (T, B, I) or (T, I) with I = {network.input_size}, got {values.shape}"
        )
    if values.ndim == 2:
        values = values[:, None]
    elif network.batch_first:
        values = values.swapaxes(0, 1)
    return values.astype(np.float64), counted_steps(None, lengths, values.shape[:2], 0)


def is_plain(network: Recurrent[Any]) -> bool:
    """Whether all that a network does is its compiled cell, layer by layer."""
    return network._spec.name in CELLS and not (network.proj_size or network._joining)


def directions(network: Any, x: Floats, counts: npt.NDArray[np.bool_]) -> Iterator[Direction]:
    """Yield the layers and directions of a network with what each reads, x (T, B, I) first."""
    for layer in range(network.num_layers):
        outputs = []
        for suffix in network._suffixes(layer):
            own = {name: np.float64(array) for name, array in network._select(network._own, suffix).items()}
            part = Direction(layer, suffix.endswith("_reverse"), own, x)
            yield part
            outputs.append(_recorded(part, network._spec.name, counts).values["h"])
        x = np.concatenate(outputs, axis=-1)


def _recorded(part: Direction, kind: str, counts: npt.NDArray[np.bool_]) -> CellRecord:
    """Run one layer in one direction."""
    steps, batch, inputs = part.x.shape
    weight = part.weights["weight_hh"]
    size = weight.shape[1]
    bias = part.weights.get("bias_ih", np.zeros(len(weight)))
    bias_hh = part.weights.get("bias_hh", np.zeros(len(weight)))
    products = _core.linear_forward(
        part.x.reshape(steps * batch, inputs), part.weights["weight_ih"], bias
    ).reshape(steps, batch, len(weight))
    h, c = np.zeros((2, batch, size))
    names = (*CELLS[kind].gate_names, "h", "c") if kind == "lstm" else (*CELLS[kind].gate_names, "h")
    values = {name: np.zeros((steps, batch, size)) for name in names}
    for t in range(steps)[:: -1 if part.reverse else 1]:
        step = _step(kind, products[t], _core.linear_forward(h, weight, bias_hh), h, c)
        on = counts[t][:, None]
        h, c = np.where(on, step["h"], h), np.where(on, step.get("c", c), c)
        for name in names:
            values[name][t] = np.where(on, step[name], 0.0)
    return CellRecord(part, kind, values, counts)


def _step(kind: str, gx: Floats, gh: Floats, h: Floats, c: Floats) -> dict[str, Floats]:
    if kind == "lstm":
        i, f, g, o = np.split(gx + gh, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * c + i * g
        return {"i": i, "f": f, "g": g, "o": o, "c": c, "h": o * np.tanh(c)}
    if kind == "gru":
        (xr, xz, xn), (hr, hz, hn) = np.split(gx, 3, axis=-1), np.split(gh, 3, axis=-1)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        n = np.tanh(xn + r * hn)
        return {"r": r, "z": z, "n": n, "h": (1 - z) * n + z * h}
    return {"h": np.tanh(gx + gh) if kind == "rnn_tanh" else np.maximum(gx + gh, 0.0)}
