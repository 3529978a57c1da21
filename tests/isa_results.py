"""Outputs and gradients of every cell at a few shapes, for one ISA. Usage: isa_results.py DTYPE FILE.npz"""

from __future__ import annotations

import sys

import numpy as np
from support import CELLS, Array, random_problem, states_of

import fusedrnn as fr

SHAPES = [(4, 3, 5, 9), (6, 13, 8, 33), (3, 1, 4, 64)]


def results(dtype: str) -> dict[str, Array]:
    """By name: all that forward and backward give."""
    found: dict[str, Array] = {}
    for cell in CELLS:
        for shape in SHAPES:
            problem = random_problem(cell, shape, dtype)
            y, state, tape = problem.run()
            grads = fr.functional.backward(tape, problem.dy, problem.dstate)
            arrays = [y, *state, grads.x, *states_of(grads.state), *grads.params[:4]]
            found.update({f"{cell} {shape} {k}": a for k, a in enumerate(arrays)})
    return found


if __name__ == "__main__":
    np.savez(sys.argv[2], isa=fr.config()["isa"], **results(sys.argv[1]))
