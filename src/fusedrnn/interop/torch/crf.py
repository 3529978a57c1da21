"""A conditional random field as a module of PyTorch."""

from __future__ import annotations

from typing import Any

import torch

from fusedrnn.interop.torch.host import as_array, check_tensor, on_host, outside_graphs
from fusedrnn.interop.torch.kernels import Tensor
from fusedrnn.interop.torch.loss_module import LossModule
from fusedrnn.sequence.crf import CRF as HostCRF
from fusedrnn.training.losses import Reduction


class CRF(LossModule):
    """Conditional random field over sequences of tags, the kernels of `fusedrnn.CRF` as a module of PyTorch.

        score(y) = start_transitions[y_0] + sum_t emissions[t, y_t]
                   + sum_t transitions[y_(t-1), y_t] + end_transitions[y_(T-1)]
        p(y) = exp(score(y)) / sum over all y' of exp(score(y'))

    Parameters, with pytorch-crf's names and shapes, initialised from U(-0.1, 0.1): start_transitions (K,),
    transitions (K, K) [from, to], end_transitions (K,). The module's forward is the loss.

    Args:
        num_tags: K >= 1.
        constraints: which tags may follow which: "bio", "bioes", a bool array (K, K) [from, to], or None, as
            for `fusedrnn.CRF`.
        batch_first: emissions are (B, T, K) and tags (B, T) instead of (T, B, K) and (T, B).
        device: of the parameters.
        dtype: of the parameters, torch.float32 or torch.float64.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Lafferty, McCallum and Pereira 2001, Conditional Random Fields.
    """

    def __init__(
        self,
        num_tags: int,
        constraints: Any = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(constraints, Tensor):
            constraints = constraints.numpy(force=True).copy()
        self.num_tags, self.constraints, self.batch_first = num_tags, constraints, batch_first
        self._declare(device, dtype)

    @outside_graphs
    def forward(
        self, emissions: Tensor, tags: Any, lengths: Any = None, reduction: Reduction = "mean"
    ) -> Tensor:
        """Return the negative log likelihood of tags.

        Args:
            emissions: (T, B, K) in the parameters' dtype, on the CPU.
            tags: (T, B) of an integer dtype, each in 0..K-1 and allowed by the constraints; past a sequence's
                end anything.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None. The loss of no steps is 0.
            reduction: "mean" over the sequences, "sum" or "none".

        Returns:
            The loss, a scalar, or (B,) with reduction="none".

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range, or tags that the constraints forbid.
            RuntimeError: a tensor that is not on the CPU, or a second derivative.
        """
        axis = 0 if self.batch_first else 1
        given = {"tags": tags, "lengths": lengths}
        return self._loss({"emissions": emissions}, given, (axis, axis, 0), reduction)

    @outside_graphs
    def decode(self, emissions: Tensor, lengths: Any = None) -> tuple[Tensor, Tensor]:
        """Return the best tags and their scores, by the Viterbi algorithm.

        Args:
            emissions: (T, B, K) in the parameters' dtype, on the CPU.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.

        Returns:
            tags: (T, B) torch.int64, -1 past a sequence's end.
            scores: (B,) score(tags), which is not normalised, without a gradient.

        Raises:
            TypeError, ValueError, RuntimeError: as `forward`.
        """
        tags, scores = self._host().decode(*self._read(emissions, lengths))
        return torch.from_numpy(tags), torch.from_numpy(scores)

    @outside_graphs
    def marginals(self, emissions: Tensor, lengths: Any = None) -> Tensor:
        """Return the probability of each tag at each step (T, B, K), 0 past a sequence's end.

        It has no gradient.

        Args:
            emissions: (T, B, K) in the parameters' dtype, on the CPU.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.

        Raises:
            TypeError, ValueError, RuntimeError: as `forward`.
        """
        return torch.from_numpy(self._host().marginals(*self._read(emissions, lengths)))

    def _read(self, emissions: Any, lengths: Any) -> tuple[Any, Any]:
        check_tensor("emissions", emissions)
        return as_array(emissions), as_array(on_host("lengths", lengths))

    def _new(self, dtype: Any, init: str | None, seed: int | None) -> HostCRF:
        return HostCRF(self.num_tags, self.constraints, self.batch_first, dtype=dtype, seed=seed, init=init)
