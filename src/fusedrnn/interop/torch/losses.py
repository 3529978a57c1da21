"""Losses over sequences of labels as functions of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

from fusedrnn.interop.torch.host import as_array, check_tensor, on_host, outside_graphs
from fusedrnn.interop.torch.kernels import Tensor
from fusedrnn.interop.torch.ops import each, refuse_forward
from fusedrnn.sequence.ctc import ctc_loss as kernel_ctc_loss
from fusedrnn.sequence.transducer import transducer_loss as kernel_transducer_loss
from fusedrnn.training.losses import Reduction, check_reduction


def losses_of(run: Callable[..., Any], axes: Any, *inputs: Any) -> Tensor:
    """Return the losses (B,), or their scalar, that `run` finds for the arrays of the inputs.

    Args:
        run: returns the losses and the gradients of the first inputs.
        axes: says for each gradient which of its axes is that of the sequences, None without one, and
            whether the input has it, too.
    """
    # Comes from the inputs as far as autograd knows, and holds none of their memory.
    anchor = sum([t[..., :0].sum() for t in inputs[: len(axes)]])
    losses: Tensor = _Losses.apply(run, axes, anchor, *inputs)[0]
    return losses


class _Losses(Function):
    """The losses and the gradients of the inputs, which the same pass gives."""

    @staticmethod
    def forward(run: Callable[..., Any], axes: Any, anchor: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        return tuple([torch.as_tensor(found) for found in run(*[as_array(t) for t in inputs])])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.axes, ctx.others = inputs[1], len(inputs) - 2 - len(output)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[2], *output[1:])

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor, *_: Any) -> tuple[Any, ...]:
        anchor, *gradients = ctx.saved_tensors
        found = []
        for gradient, (axis, kept) in zip(gradients, ctx.axes, strict=True):
            flow = dlosses.reshape([-1 if i == axis else 1 for i in range(gradient.dim())])
            found.append(gradient * flow if kept else (gradient * flow).sum(axis))
        if torch.is_grad_enabled():
            found = list(_Once.apply(anchor, *found))
        return None, None, None, *found, *(None,) * ctx.others

    jvp = staticmethod(refuse_forward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return each(_Losses, info, in_dims, args)


class _Once(Function):
    """Gradients as they are, which come from the inputs, so that their own derivative is refused."""

    generate_vmap_rule = True

    @staticmethod
    def forward(anchor: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple([gradient.clone() for gradient in gradients])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None: ...

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        raise RuntimeError(_NOT_TWICE)

    jvp = staticmethod(refuse_forward)


_NOT_TWICE = (
    "fusedrnn.torch: expected one derivative, got a second one of a loss over sequences; "
    "compute what needs it with operations of torch"
)


@outside_graphs
def ctc_loss(
    logits: Tensor,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: Reduction = "mean",
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
    check_tensor("logits", logits)
    given = [
        on_host("targets", targets),
        on_host("input_lengths", input_lengths),
        on_host("target_lengths", target_lengths),
    ]

    def run(*arrays: Any) -> Any:
        return kernel_ctc_loss(*arrays, blank, "none", zero_infinity)

    losses = losses_of(run, ((1, True),), logits, *given)
    if reduction == "mean":
        losses = losses / torch.as_tensor(target_lengths).clamp(min=1).to(losses.dtype)
    return reduced(losses, reduction)


@outside_graphs
def transducer_loss(
    logits: Tensor,
    targets: Any,
    logit_lengths: Any,
    target_lengths: Any,
    blank: int = -1,
    clamp: float = -1.0,
    fastemit_lambda: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the RNN transducer's loss of softmax(logits), whose gradient comes with it in one pass.

    The equations are those of `fusedrnn.transducer_loss`, arguments and reductions those of torchaudio's
    `rnnt_loss`.

    Args:
        logits: (B, T, U+1, V), torch.float32 or torch.float64, on the CPU.
        targets: (B, U) of an integer dtype, each in 0..V-1 and not the blank; past a target's end anything.
        logit_lengths: (B,) of an integer dtype, each in 0..T.
        target_lengths: (B,) of an integer dtype, each in 0..U.
        blank: class that stands for no label; negative ones count from the end.
        clamp: bound of each element of the gradient of a sequence's loss, if above 0.
        fastemit_lambda: gradients by way of labels count 1 + this. >= 0.
        reduction: "mean" over the sequences, "sum" or "none".

    Returns:
        The loss, a scalar, or (B,) with reduction="none".

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or range.
        RuntimeError: a tensor that is not on the CPU, or a second derivative.

    Paper: Graves 2012, arXiv:1211.3711v1.
    """
    check_reduction(reduction)
    check_tensor("logits", logits)
    given = [
        on_host("targets", targets),
        on_host("logit_lengths", logit_lengths),
        on_host("target_lengths", target_lengths),
    ]

    def run(*arrays: Any) -> Any:
        options = {"fastemit_lambda": fastemit_lambda, "reduction": "none"}
        return kernel_transducer_loss(*arrays, blank, clamp, **options)

    return reduced(losses_of(run, ((0, True),), logits, *given), reduction)


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Return losses (B,) as they are, their sum, or their mean."""
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()
