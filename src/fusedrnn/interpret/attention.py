"""Where a model looks: the weights of its attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.interpret.figures import new_figure
from fusedrnn.interpret.members import Floats, as_floats, flattened, studied, walked
from fusedrnn.listing import Listed
from fusedrnn.nn.module import Module
from fusedrnn.nn.pool import Pool
from fusedrnn.nn.self_attention import SelfAttention


class AttentionMap(Listed):
    """The weights of one module.

    Attributes:
        name: of the module in its model.
        weights: float64; of a `SelfAttention` (B, heads, T, T), how much a step (third axis) looks at
            another; of a `Pool` (B, 1, 1, T). A row adds up to 1, or to 0 at steps that do not count.
    """

    def __init__(self, name: str, weights: Floats) -> None:
        self.name, self.weights = name, weights

    def figure(self, sequence: int = 0, labels: Any = None) -> Any:
        """Return a matplotlib Figure of one sequence, an image for each head.

        Args:
            sequence: which of the batch.
            labels: T words or characters for the steps, or None.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        heads = self.weights[sequence]
        figure = new_figure(3.4 * len(heads), 3.2 if heads.shape[1] > 1 else 1.6)
        for place, head in enumerate(heads, 1):
            axes = figure.add_subplot(1, len(heads), place)
            axes.imshow(head, cmap="viridis", vmin=0.0, interpolation="none", aspect="auto")
            axes.set(title=f"{self.name}, head {place}", xlabel="looks at step", ylabel="step")
            if labels is not None:
                axes.set_xticks(np.arange(len(labels)), labels)
                if len(head) == len(labels):
                    axes.set_yticks(np.arange(len(labels)), labels)
        return figure

    def __repr__(self) -> str:
        return f"AttentionMap({self.name!r}, weights={self.weights.shape})"


def attention_maps(
    model: Module, x: npt.ArrayLike, lengths: npt.ArrayLike | None = None
) -> list[AttentionMap]:
    """Return the weights of every `SelfAttention` and attention `Pool` of a model, in their order.

    Those of an `AttentionDecoder` are what its forward returns as alpha.

    Args:
        model: such a module, or a Sequential with some; those inside of other composites are not seen.
        x: its input, floats or tokens.
        lengths: (B,) of an integer dtype, each in 0..T, or None.

    Raises:
        TypeError, ValueError: as the model's forward; ValueError also where there is no attention.
        RuntimeError: the model is on a GPU.
    """
    found = []
    for name, member, y, tape, _ in walked(flattened(studied(model, "interpret")), as_floats(x), lengths):
        if isinstance(member, SelfAttention):
            found.append(AttentionMap(name, _heads(member, y.shape, tape)))
        elif isinstance(member, Pool) and member.kind == "attention":
            weights = tape.saved[-1]
            rows = weights[None] if weights.ndim == 1 else weights if member.batch_first else weights.T
            found.append(AttentionMap(name, np.array(rows)[:, None, None]))
    if not found:
        raise ValueError("model: expected a SelfAttention or an attention Pool, by itself or in a Sequential")
    return found


def _heads(member: SelfAttention, shape: tuple[int, ...], tape: Any) -> Floats:
    """Return the weights of all heads, put where they belong, from what the tape holds for each."""
    weights, counts = tape.saved[2], tape.saved[3]
    time = int(member.batch_first and len(shape) == 3)
    steps, batch = shape[time], shape[1 - time] if len(shape) == 3 else 1
    found = np.zeros((batch, member.num_heads, steps, steps))
    width = member.embed_dim // member.num_heads
    for (part, rows, columns), matrix in zip(
        member._heads(shape, counts, member.batch_first), weights, strict=True
    ):
        number = part[-1] if part else 0
        at = np.arange(steps)[rows]
        found[number, columns.start // width][np.ix_(at, at)] = matrix
    return found
