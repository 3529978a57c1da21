"""Gradients of each example of a batch apart: their norms, their clipped sum, and their squares.

norms = fusedrnn.per_example.clip_and_sum(tape, dy, max_norm=1.0)   # adds to the gradients
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.checks import check_flag, check_number
from fusedrnn.nn.example_rows import Piece, Places, Products, pieces_of

__all__ = ["clip_and_sum", "fisher", "norms"]


def __dir__() -> list[str]:
    return __all__


def norms(tape: Any, dy: Array, *, batch_first: bool = False) -> npt.NDArray[np.float64]:
    """Return the Euclidean norm of the gradient of each example, of all parameters together.

    With x_t what a weight was multiplied by in step t and d_t the gradient of the product, the gradient of an
    example is the sum over t of d_t x_t^T, and the square of its norm the sum over s and t of

        (d_s . d_t) (x_s . x_t)

    which takes two products of T x T in place of the gradient itself; where T is large beside the weight, the
    gradient is made after all, of one example at a time. Where the steps of an example cancel each other, a
    norm is right to about 3e-4 of the sum of their norms in float32, and 1e-8 in float64. Gradients of
    parameters stay as they are, and so do modules; frozen parameters do not count.

    Args:
        tape: from `forward` of a recurrent network (RNN, LSTM or GRU, of any number of layers and
            directions, without projection), of a `Linear` or `Embedding`, or of a `Sequential` of these and
            of modules without parameters; or what `Embedding.lookup` returned.
        dy: gradient of y, as `backward` takes it. Each example's is that of its own loss: let the loss be
            summed over the batch. Of a lookup, the gradient of the rows (T, B, D).
        batch_first: whether examples lie along the first axis of arrays with three axes or more, where
            there is no recurrent network to say so. They lie along the first of two.

    Returns:
        (B,), added up in float64.

    Raises:
        TypeError: the tape is no tape, or dy not an array of the dtype of y.
        ValueError: dy has not the shape of y, or the tape is that of a module whose gradients are not taken
            apart: another one with parameters, `BatchNorm`, tied weights, options between layers, a mask.
        RuntimeError: the module is on a GPU.

    Paper: Goodfellow 2015, arXiv:1510.01799v2; over sequences: Bu et al. 2022, arXiv:2205.10683v3.
    """
    return np.sqrt(_squares(pieces_of(tape, dy, check_flag("batch_first", batch_first))))


def clip_and_sum(
    tape: Any, dy: Array, max_norm: float, *, batch_first: bool = False
) -> npt.NDArray[np.float64]:
    """Add to the gradients of parameters the sum of those of all examples, each clipped to a norm.

    An example's gradient g counts min(1, max_norm / |g|): what differentially private training adds noise to.

    Args:
        tape, dy, batch_first: as `norms`.
        max_norm: > 0.

    Returns:
        norms: (B,) float64, before clipping.

    Raises:
        TypeError, ValueError, RuntimeError: as `norms`; nothing has been added then.

    Paper: Abadi et al. 2016, arXiv:1607.00133v2.
    """
    bound = check_number("max_norm", max_norm)
    if bound == 0.0:
        raise ValueError("max_norm: expected a number > 0, got 0")
    pieces = pieces_of(tape, dy, check_flag("batch_first", batch_first))
    found = np.sqrt(_squares(pieces))
    with np.errstate(divide="ignore"):
        shares = np.minimum(1.0, bound / found)
    for piece in pieces:
        flows = piece.flows * shares.astype(piece.flows.dtype)[:, None, None]
        with piece.module._turn.take():
            _add(piece, flows)
    return found


def fisher(tape: Any, dy: Array, *, batch_first: bool = False) -> dict[str, Array]:
    """Return the mean over the examples of the squares of their gradients, element by element.

    With dy of the logarithm of a likelihood this is the diagonal of the empirical Fisher information, by
    which elastic weight consolidation holds parameters.

    Args:
        tape, dy, batch_first: as `norms`.

    Returns:
        {name: array} with the names, shapes and dtype of the module's gradients; zeros where frozen.

    Raises:
        TypeError, ValueError, RuntimeError: as `norms`.

    Paper: Kirkpatrick et al. 2016, arXiv:1612.00796v2.
    """
    pieces = pieces_of(tape, dy, check_flag("batch_first", batch_first))
    owner = tape._owner
    sums = {name: np.zeros_like(array) for name, array in owner.grads.items()}
    prefix = {id(module): f"{name}." if name else "" for name, module in owner.named_modules()}
    for piece in pieces:
        own, batch = prefix[id(piece.module)], len(piece.flows)
        for b in range(batch):
            for name, gradient in _gradients(piece, b).items():
                gradient *= gradient
                gradient /= batch
                sums[own + name] += gradient
    return sums


def _squares(pieces: list[Piece]) -> npt.NDArray[np.float64]:
    """Return the squares of the norms (B,)."""
    total: Any = 0.0
    for piece in pieces:
        total = total + (_of_places(piece) if isinstance(piece, Places) else _of_products(piece))
    return np.asarray(total, np.float64)


def _of_products(piece: Products) -> npt.NDArray[np.float64]:
    batch, steps, outputs = piece.flows.shape
    found = np.zeros(batch)
    if not steps:
        return found
    # By which way there are fewer multiplications.
    grams = [x for _, x in piece.weights if steps * (x.shape[2] + outputs) <= x.shape[2] * outputs]
    whole = [x for _, x in piece.weights if all(x is not other for other in grams)]
    for b in range(batch):
        flows = piece.flows[b]
        if grams:
            inputs = np.full((steps, steps), len(piece.biases), flows.dtype)
            for x in grams:
                inputs += _core.linear_forward(x[b], x[b], None)
            inputs *= _core.linear_forward(flows, flows, None)
            found[b] = inputs.sum(dtype=np.float64)
        elif piece.biases:
            found[b] = len(piece.biases) * _square(flows.sum(axis=0))
        for x in whole:
            found[b] += _square(_outer(flows, x[b]))
    return np.maximum(found, 0.0)


def _of_places(piece: Places) -> npt.NDArray[np.float64]:
    found = np.zeros(len(piece.flows))
    for b, (flows, indices) in enumerate(zip(piece.flows, piece.indices, strict=True)):
        found[b] = _square(_added_up(flows, indices)[1])
    return found


def _added_up(flows: Array, indices: Array) -> tuple[Array, Array]:
    """Return which rows of the table were looked up, and the sums of their gradients."""
    rows, place = np.unique(indices[indices >= 0], return_inverse=True)
    sums = np.zeros((len(rows), flows.shape[1]), flows.dtype)
    np.add.at(sums, place, flows[indices >= 0])
    return rows, sums


def _square(array: Array) -> float:
    return float(np.einsum("i,i->", array.ravel(), array.ravel(), dtype=np.float64))


def _outer(flows: Array, x: Array) -> Array:
    weight = np.zeros((flows.shape[1], x.shape[1]), flows.dtype)
    _core.linear_backward(x, weight.copy(), flows, weight, None, False)
    return weight


def _gradients(piece: Piece, b: int) -> dict[str, Array]:
    """Return the gradients of one example."""
    if isinstance(piece, Places):
        table = np.zeros_like(piece.module._own_grads["weight"])
        rows, sums = _added_up(piece.flows[b], piece.indices[b])
        table[rows] = sums
        return {"weight": table}
    found = {name: _outer(piece.flows[b], x[b]) for name, x in piece.weights}
    return {**found, **{name: piece.flows[b].sum(axis=0) for name in piece.biases}}


def _add(piece: Piece, flows: Array) -> None:
    """Add to the module's gradients what these flows make in place of the piece's own."""
    sums = piece.module._own_grads
    rows = flows.reshape(-1, flows.shape[2])
    if isinstance(piece, Places):
        indices = piece.indices.reshape(-1)
        used = indices >= 0
        _core.embedding_backward(indices[used], rows[used], sums["weight"])
        return
    for name, x in piece.weights:
        weight = piece.module._own[name]
        _core.linear_backward(x.reshape(-1, x.shape[2]), weight, rows, sums[name], None, False)
    for name in piece.biases:
        sums[name] += rows.sum(axis=0)
