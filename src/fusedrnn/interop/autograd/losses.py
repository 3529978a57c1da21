"""Losses in traced code: the value alone is returned, and its gradient is kept for backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import numpy.typing as npt
from autograd.extend import defvjp_argnums, primitive

from fusedrnn.arrays import Array
from fusedrnn.interop.autograd.tracing import add_to, recording, refuse_second_derivatives
from fusedrnn.nn.layers import Linear
from fusedrnn.nn.module import Module
from fusedrnn.sequence.crf import CRF
from fusedrnn.sequence.ctc import ctc_loss as plain_ctc_loss
from fusedrnn.sequence.transducer import TransducerJoiner
from fusedrnn.sequence.transducer import transducer_loss as plain_transducer_loss
from fusedrnn.training.linear_cross_entropy import chunked_cross_entropy
from fusedrnn.training.losses import Reduction
from fusedrnn.training.losses import cross_entropy as plain_cross_entropy
from fusedrnn.training.losses import mse_loss as plain_mse_loss


class _Loss:
    """A loss that is computed: its function of arrays, and later their gradients.

    Attributes:
        axes: how many axes the gradients have after those of the loss, without reduction.
        sums: {name: array} of each module, what the function adds gradients of parameters to.
        gradients: of the inputs, once the function has run.
    """

    gradients: list[Array]

    def __init__(
        self, run: Callable[..., Any], axes: int = 0, *sums: tuple[Module, dict[str, Array]]
    ) -> None:
        self.run, self.axes, self.sums = run, axes, sums

    def __call__(self, *inputs: Any) -> Any:
        token = 0.0 if recording.token is None else recording.token
        return _value(self, token, *inputs)


@primitive
def _value(loss: _Loss, token: Any, *inputs: Any) -> Any:
    value, *loss.gradients = loss.run(*inputs)
    return value


def _vjp_of_value(argnums: tuple[int, ...], ans: Any, args: tuple[Any, ...], options: Any) -> Any:
    loss: _Loss = args[0]

    def vjp(g: Any) -> Any:
        refuse_second_derivatives(g, ans)
        flow = np.reshape(g, np.shape(g) + (1,) * loss.axes)
        for module, sums in loss.sums:
            for name, gradient in sums.items():
                add_to(module, name, gradient * gradient.dtype.type(g))
        gradients = [gradient * flow.astype(gradient.dtype) for gradient in loss.gradients]
        return [0.0 if argnum == 1 else gradients[argnum - 2] for argnum in argnums]

    return vjp


defvjp_argnums(_value, _vjp_of_value)


def _of_one_input(plain: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """Return a loss whose first argument gets a gradient as a function for traced code."""
    name = next(iter(inspect.signature(plain).parameters))

    @wraps(plain)
    def loss(*arguments: Any, **options: Any) -> Any:
        if not arguments:
            arguments = (options.pop(name),)
        return _Loss(lambda value: plain(value, *arguments[1:], **options), axes)(arguments[0])

    loss.__doc__ = (
        f"""Return the loss of `fusedrnn.{plain.__name__}`, which see; its gradient goes to {name}."""
    )
    return loss


cross_entropy = _of_one_input(plain_cross_entropy, 1)
mse_loss = _of_one_input(plain_mse_loss, 0)
ctc_loss = _of_one_input(plain_ctc_loss, 1)
transducer_loss = _of_one_input(plain_transducer_loss, 3)


def _scratch(module: Module) -> dict[str, Array]:
    """Return zeros in place of the gradients of a module's own parameters, none while it is frozen."""
    module._require_cpu("fusedrnn.autograd")
    return {name: np.zeros_like(array) for name, array in module._sums().items()}


def _check_summed(reduction: Reduction) -> None:
    if reduction not in ("mean", "sum"):
        raise ValueError(
            f"reduction: expected 'mean' or 'sum', got {reduction!r}; gradients of parameters are of one loss"
        )


def linear_cross_entropy(
    h: Any,
    head: Linear,
    targets: npt.ArrayLike,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> Any:
    """Return the loss of `fusedrnn.linear_cross_entropy`, which see; its gradient goes to h and head."""
    if not isinstance(head, Linear):
        raise TypeError(f"head: expected a Linear, got {type(head).__name__}")
    parts = [(module, _scratch(module)) for module in (head, *head._tied.values())]
    sums = {name: array for _, part in reversed(parts) for name, array in part.items()}

    def run(h: Any) -> Any:
        return chunked_cross_entropy(h, head, targets, ignore_index, label_smoothing, chunk, sums)

    return _Loss(run, 0, *parts)(h)


def crf_loss(
    crf: CRF,
    emissions: Any,
    tags: npt.ArrayLike,
    lengths: npt.ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Any:
    """Return the loss of `crf.loss`, which see; its gradient goes to the emissions and to the CRF.

    Raises:
        ValueError: reduction="none", besides what `crf.loss` raises.
    """
    if not isinstance(crf, CRF):
        raise TypeError(f"crf: expected a CRF, got {type(crf).__name__}")
    _check_summed(reduction)
    sums = _scratch(crf)
    return _Loss(lambda x: crf._loss(x, tags, lengths, reduction, sums), 0, (crf, sums))(emissions)


def transducer_joiner_loss(
    joiner: TransducerJoiner,
    enc: Any,
    pred: Any,
    targets: npt.ArrayLike,
    logit_lengths: npt.ArrayLike,
    target_lengths: npt.ArrayLike,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    reduction: Reduction = "mean",
) -> Any:
    """Return the loss of `joiner.loss`, which see; its gradient goes to enc, to pred and to the joiner.

    Raises:
        ValueError: reduction="none", besides what `joiner.loss` raises.
    """
    if not isinstance(joiner, TransducerJoiner):
        raise TypeError(f"joiner: expected a TransducerJoiner, got {type(joiner).__name__}")
    _check_summed(reduction)
    sums = _scratch(joiner)
    lattice_of = targets, logit_lengths, target_lengths

    def run(enc: Any, pred: Any) -> Any:
        return joiner._loss(enc, pred, lattice_of, clamp, fastemit_lambda, reduction, sums)

    return _Loss(run, 0, (joiner, sums))(enc, pred)
