"""The joiner of an RNN transducer as a module of PyTorch."""

from __future__ import annotations

from typing import Any

from torch import nn

from fusedrnn.interop.torch.host import outside_graphs
from fusedrnn.interop.torch.kernels import Tensor
from fusedrnn.interop.torch.loss_module import LossModule
from fusedrnn.sequence.transducer import TransducerJoiner as HostJoiner
from fusedrnn.training.losses import Reduction


class TransducerJoiner(LossModule):
    """Joiner of an RNN transducer with its loss, the kernels of `fusedrnn.TransducerJoiner` in PyTorch.

        logits(t, u) = tanh(enc_t + pred_u) weight^T + bias

    The module's forward is the loss, and the (B, T, U+1, V) logits of `transducer_loss` never exist. The
    gradients come with it in one pass.

    Parameters, both initialised from U(-1/sqrt(H), 1/sqrt(H)): weight (V, H), bias (V,).

    Args:
        hidden_size: H >= 1, size of what the encoder and the prediction network return.
        num_classes: V >= 1, with the blank.
        blank: class that stands for no label; negative ones count from the end.
        device: of the parameters.
        dtype: of the parameters, torch.float32 or torch.float64.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Graves 2012, arXiv:1211.3711v1, with the joint network of Graves et al. 2013, arXiv:1303.5778v1.
    """

    def __init__(
        self, hidden_size: int, num_classes: int, blank: int = -1, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.hidden_size, self.num_classes, self.blank = hidden_size, num_classes, blank
        self._declare(device, dtype)

    @outside_graphs
    def forward(
        self,
        enc: Tensor,
        pred: Tensor,
        targets: Any,
        logit_lengths: Any,
        target_lengths: Any,
        clamp: float = -1.0,
        fastemit_lambda: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Return the transducer's loss.

        Args:
            enc: (B, T, H) in the parameters' dtype, on the CPU.
            pred: (B, U+1, H) in the parameters' dtype: row u is what follows the first u labels.
            targets, logit_lengths, target_lengths, clamp, fastemit_lambda, reduction: as in
                `transducer_loss`.

        Returns:
            The loss, a scalar, or (B,) with reduction="none".

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range.
            RuntimeError: a tensor that is not on the CPU, or a second derivative.
        """
        tensors = {"enc": enc, "pred": pred}
        given = {
            "targets": targets,
            "logit_lengths": logit_lengths,
            "target_lengths": target_lengths,
        }
        options = {"clamp": clamp, "fastemit_lambda": fastemit_lambda}
        return self._loss(tensors, given, (0,) * 5, reduction, **options)

    def logits(self, enc: Tensor, pred: Tensor) -> Tensor:
        """Return logits (..., V) of enc and pred, (..., H) each, of shapes that broadcast.

        They are torch's own operations, for decoding one cell after another.
        """
        return nn.functional.linear((enc + pred).tanh(), self.weight, self.bias)

    def _new(self, dtype: Any, init: str | None, seed: int | None) -> HostJoiner:
        return HostJoiner(self.hidden_size, self.num_classes, self.blank, dtype=dtype, seed=seed, init=init)
