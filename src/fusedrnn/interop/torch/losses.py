"""Losses over sequences of labels as functions of autograd."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fusedrnn.interop.torch.kernels import Tensor
from fusedrnn.sequence.ctc import ctc_loss as kernel_ctc_loss
from fusedrnn.training.losses import check_reduction


def _array(name: str, given: Any) -> Any:
    """Return an array on the memory of a tensor of the CPU; lists go to the kernels as they are."""
    if not isinstance(given, Tensor):
        return given
    if not given.is_cpu:
        raise RuntimeError(f"{name}: expected a tensor on the CPU, got one on {given.device}; use .cpu()")
    return given.detach().numpy()


class _CTCLoss(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, *given: Any) -> Tensor:
        losses, dlogits = kernel_ctc_loss(_array("logits", logits), *given[:4], "none", given[4])
        ctx.save_for_backward(torch.from_numpy(dlogits))
        return torch.from_numpy(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Any, ...]:
        (dlogits,) = ctx.saved_tensors
        return (dlogits * dlosses[:, None], None, None, None, None, None)


def ctc_loss(
    logits: Tensor,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: Literal["mean", "sum", "none"] = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Return torch.nn.functional.ctc_loss of log_softmax(logits), whose gradient comes with it in one pass.

    The equations and the reduction are those of `fusedrnn.ctc_loss`. A log-softmax before it changes nothing.

    Args:
        logits: (T, B, V), torch.float32 or torch.float64, on the CPU.
        targets: (B, S), or (sum of target_lengths,), of an integer dtype.
        input_lengths: (B,) of an integer dtype, each in 0..T.
        target_lengths: (B,) of an integer dtype, each in 0..S.
        blank: class that stands for no label.
        reduction: "mean", "sum" or "none".
        zero_infinity: whether an infinite loss counts as 0 with gradient 0.

    Returns:
        The loss, a scalar, or (B,) with reduction="none".

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or range.
        RuntimeError: a tensor that is not on the CPU, or a second derivative.

    Paper: Graves et al. 2006, Connectionist Temporal Classification.
    """
    check_reduction(reduction)
    given = [
        _array("targets", targets),
        _array("input_lengths", input_lengths),
        _array("target_lengths", target_lengths),
    ]
    losses: Tensor = _CTCLoss.apply(logits, *given, blank, zero_infinity)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return (losses / torch.as_tensor(target_lengths).clamp(min=1).to(losses.dtype)).mean()
