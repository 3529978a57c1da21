"""Block-diagonal weight_hh: units that see those of their own head alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.cells import CellSpec
from fusedrnn.checks import check_size
from fusedrnn.init import orthogonal


def check_heads(spec: CellSpec, heads: int, sizes: tuple[int, ...], proj_size: int) -> int:
    """Return the number of heads.

    Raises:
        TypeError: not an int.
        ValueError: below 1, no divisor of a layer's size, or the cell has no square weight_hh.
    """
    count = check_size("num_heads", heads)
    if count == 1:
        return count
    if "weight_hh" not in spec.parameter_names:
        raise ValueError(f"num_heads: expected 1, since {spec.label} has no weight_hh, got {count}")
    if proj_size:
        raise ValueError(f"num_heads: expected 1 with a projection, got {count}")
    for size in sizes:
        if size % count:
            raise ValueError(f"num_heads: expected a divisor of hidden_size = {size}, got {count}")
    return count


def clear_apart(weight: Array, heads: int) -> None:
    """Set to zero what of (G*H, H) lies between two heads."""
    size = weight.shape[1]
    each = size // heads
    rows = weight.reshape(-1, heads, each, size)
    for head in range(heads):
        rows[:, head, :, : head * each] = 0
        rows[:, head, :, (head + 1) * each :] = 0


def between(shape: tuple[int, ...], heads: int) -> npt.NDArray[np.bool_]:
    """Return where a weight_hh of a shape (G*H, H) lies between two heads."""
    within = np.ones(shape, bool)
    clear_apart(within, heads)
    return ~within


def draw_heads(weight: Array, heads: int, method: str | None, rng: np.random.Generator) -> None:
    """Leave the blocks of the heads in a weight_hh that was drawn, orthogonal each with "default"."""
    size = weight.shape[1]
    each = size // heads
    if method == "default":
        for gate in weight.reshape(-1, size, size):
            for start in range(0, size, each):
                block = slice(start, start + each)
                orthogonal(gate[block, block], rng=rng)
    clear_apart(weight, heads)
