"""Where gradients vanish or explode: their norms by step and layer, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.interpret.figures import new_figure
from fusedrnn.interpret.members import Floats, as_floats, flattened, studied, walked
from fusedrnn.interpret.records import is_plain
from fusedrnn.listing import Listed
from fusedrnn.nn.members import backward_member
from fusedrnn.nn.module import Module
from fusedrnn.nn.recurrent_base import Recurrent

# Beyond these, a step or a layer that far away hardly counts, or counts for everything.
_VANISHED, _EXPLODED = 1e-4, 1e4


class GradientFlow(Listed):
    """Norms of gradients; its repr is a table with advice.

    Attributes:
        norms: {member: (T,) float64}: norm of the gradient of each member's output at each step, over batch
            and features; (1,) of a member without time; a layer of a plain network is a member.
        reach: {recurrent member: (T,) float64}: how much the last output of a network depends on its input k
            steps before, relative to the last step: the norm of a random direction's gradient.
        parameters: {name: (norm of the gradient, norm of the values)}.
        findings: sentences on what is wrong, and what to do; empty where nothing is.
    """

    def __init__(
        self, norms: dict[str, Floats], reach: dict[str, Floats], parameters: dict[str, tuple[float, float]]
    ) -> None:
        self.norms, self.reach, self.parameters = norms, reach, parameters
        self.findings = [*_over_time(reach), *_over_layers(norms), *_stuck(parameters)]

    def figure(self) -> Any:
        """Return a matplotlib Figure of the norms by step, and of the reach by distance.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        figure = new_figure(9.0, 3.5)
        left, right = figure.subplots(1, 2)
        tiny = np.finfo(np.float64).tiny
        for name, norms in self.norms.items():
            if len(norms) > 1:
                left.semilogy(np.maximum(norms, tiny), label=name)
        for name, reach in self.reach.items():
            right.semilogy(np.maximum(reach, tiny), label=name)
        left.set(title="gradient of the output of", xlabel="step", ylabel="norm")
        right.set(title="influence on the last output of", xlabel="steps before the last")
        for axes in (left, right):
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
        return figure

    def __repr__(self) -> str:
        width = max(map(len, self.norms), default=0)
        lines = ["GradientFlow: norms of gradients at the first and the last step"]
        for name, norms in self.norms.items():
            far = f"   reach {self.reach[name][-1]:.1e}" if name in self.reach else ""
            lines.append(f"  {name:{width}}  {norms[0]:.1e}  {norms[-1]:.1e}{far}")
        return "\n".join([*lines, *(self.findings or ["nothing vanishes or explodes"])])


def gradient_flow(
    model: Module,
    loss: Callable[[Any, Any], tuple[Any, Array]],
    x: npt.ArrayLike,
    targets: Any,
    lengths: npt.ArrayLike | None = None,
) -> GradientFlow:
    """Measure the gradients of one batch, member by member and step by step.

    Args:
        model: a Sequential, or any one module; members of other composites are not looked into. A copy in
            float64 and evaluation mode is measured, and its gradients stay apart from the model's.
        loss: a function of (output, targets) that returns the loss and the gradient of the output.
        x: the model's input, floats or tokens.
        targets: what the loss takes.
        lengths: (B,) of an integer dtype, each in 0..T, or None.

    Raises:
        TypeError, ValueError: as the model's forward and the loss.
        RuntimeError: the model is on a GPU.

    Paper: Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063.
    """
    copied = studied(model, "gradient_flow")
    if not np.size(x):
        raise ValueError(f"x: expected at least one step of one sequence, got shape {np.shape(x)}")
    copied.zero_grad()  # of the copy
    steps = list(walked(_unstacked(copied), as_floats(x), lengths))
    dy: Any = np.asarray(loss(steps[-1][2], targets)[1], np.float64)
    norms, reach = {}, {}
    for place in reversed(range(len(steps))):
        name, member, _, tape, _ = steps[place]
        norms[name] = _by_step(dy, getattr(member, "batch_first", False))
        dy = backward_member(member, tape, dy, place > 0)
    # Before another gradient goes through the networks.
    parameters = {
        f"{name}.{own}": (float(np.linalg.norm(gradient)), float(np.linalg.norm(member.state_dict()[own])))
        for name, member, *_ in steps
        for own, gradient in member.grads.items()
    }
    for (name, member, _, _, ends), x_of in zip(steps, [None, *(step[2] for step in steps)], strict=False):
        if isinstance(member, Recurrent):
            reach[name] = _reach(member, as_floats(x if x_of is None else x_of), ends)
    return GradientFlow(dict(reversed(norms.items())), reach, parameters)


def _unstacked(model: Module) -> Iterator[tuple[str, Module]]:
    """Yield (name, member), with each layer of a plain network as a member, "0.l1"."""
    for name, member in flattened(model):
        if not (isinstance(member, Recurrent) and member.num_layers > 1 and is_plain(member)):
            yield name, member
            continue
        inputs = member.input_size
        for layer in range(member.num_layers):
            size = member.state_dict()["weight_hh" + member._suffixes(layer)[0]].shape[1]
            one: Recurrent[Any] = Recurrent(
                *(member._spec.name, inputs, size),
                bias=member.bias,
                batch_first=member.batch_first,
                bidirectional=member.bidirectional,
                dtype="float64",
                init=None,
            )
            suffixes = zip(member._suffixes(layer), one._suffixes(0), strict=True)
            state = member.state_dict()
            one.load_state_dict(
                {
                    own + new: state[own + old]
                    for old, new in suffixes
                    for own in member._spec.parameter_names
                    if own + old in state
                }
            )
            inputs = size * len(one._suffixes(0))
            yield f"{name}.l{layer}", one.eval()


def _by_step(gradient: Floats, batch_first: bool) -> Floats:
    """Return the norm at each step, of (T, B, F) or (T, F); of (B, F) one number."""
    if gradient.ndim < 3:
        return np.linalg.norm(gradient).reshape(1)
    found: Floats = np.sqrt((gradient**2).sum(axis=(0, 2) if batch_first else (1, 2)))
    return found


def _reach(network: Any, x: Floats, lengths: Any) -> Floats:
    """Return the norms of dx by distance from the last step, of a random gradient of the last output."""
    y, _, tape = network.forward(x) if lengths is None else network.forward(x, lengths=lengths)
    time = int(network.batch_first and y.ndim == 3)
    dy = np.zeros_like(y)
    by_row, dy_by_row = (a[:, None] if a.ndim == 2 else a.swapaxes(0, 1) if time else a for a in (y, dy))
    steps, rows = by_row.shape[:2]
    ends = np.full(rows, steps) if lengths is None else np.asarray(lengths)
    # The forward direction alone: the other one reads its last step first.
    width = y.shape[-1] // (2 if network.bidirectional and network.merge == "concat" else 1)
    rng = np.random.default_rng(0)
    for row in map(int, np.flatnonzero(ends)):
        dy_by_row[ends[row] - 1, row, :width] = rng.standard_normal(width)
    dx = network.backward(tape, dy)[0]
    dx = dx[:, None] if dx.ndim == 2 else dx.swapaxes(0, 1) if time else dx
    squares = np.zeros(steps)
    for row in range(rows):
        squares[: ends[row]] += (dx[: ends[row], row] ** 2).sum(axis=-1)[::-1]
    found = np.sqrt(squares[: ends.max(initial=0)])
    top = found[0] if len(found) and found[0] > 0.0 else 1.0
    shared: Floats = found / top
    return shared


def _over_time(reach: dict[str, Floats]) -> list[str]:
    found = []
    for name, norms in reach.items():
        if len(norms) < 2:
            continue
        if norms[1:].max() > _EXPLODED:
            found.append(
                f"{name}: gradients explode over time, by {norms[1:].max():.0e} in {int(norms.argmax())} "
                "steps. Clip them (clip_grad_norm, Trainer(clip=1.0)), lower lr, start weight_hh orthogonal "
                "(init='default')."
            )
        elif (gone := np.flatnonzero(norms < _VANISHED)).size:
            found.append(
                f"{name}: gradients vanish over time: what was {int(gone[0])} steps before has less than "
                f"{_VANISHED:.0e} of the influence of the last step. Use an LSTM or GRU, a larger "
                "forget_bias, init='default', fewer steps (Conv1d with stride), or attention "
                "(Pool('attention'))."
            )
    return found


def _over_layers(norms: dict[str, Floats]) -> list[str]:
    totals = {name: float(np.linalg.norm(values)) for name, values in norms.items()}
    if not totals:
        return []
    (first, low), (last, high) = next(iter(totals.items())), list(totals.items())[-1]
    if high == 0.0:
        return [
            f"{last}: the loss has no gradient at all: is it at its minimum, or are all targets left out?"
        ]
    if low < _VANISHED * high:
        return [
            f"gradients vanish between {last} and {first}, to {low / high:.0e}. Put Residual around layers, "
            "LayerNorm between them, and activations that do not saturate."
        ]
    if low > _EXPLODED * high:
        return [
            f"gradients explode between {last} and {first}, by {low / high:.0e}. Clip them, put LayerNorm "
            "between layers, and start with smaller weights."
        ]
    return []


def _stuck(parameters: dict[str, tuple[float, float]]) -> list[str]:
    broken = [name for name, (norm, _) in parameters.items() if not np.isfinite(norm)]
    if broken:
        return [
            f"{', '.join(broken)}: the gradient is not finite: look at inputs and targets for NaN, lower lr."
        ]
    dead = [name for name, (norm, _) in parameters.items() if norm == 0.0]
    if dead and len(dead) < len(parameters):
        return [
            f"{', '.join(dead)}: the gradient is exactly 0: frozen, not used, or behind units that are dead."
        ]
    return []
