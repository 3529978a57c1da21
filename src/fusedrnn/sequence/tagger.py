"""Tagger: a network that scores tags at each step, with a conditional random field over them."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.nn.containers import check_module
from fusedrnn.nn.members import backward_member, call_member, forward_member
from fusedrnn.nn.module import Module
from fusedrnn.sequence.crf import CRF


class Tagger(Module):
    """A network that gives each tag's score at each step, and the conditional random field over them.

        trainer = fr.training.Trainer(tagger, tagger.loss, fr.optim.Adam(tagger))

    y is the network's, (T, B, K); the field takes part in `loss` alone, which trains it.

    Args:
        network: any module from x to scores of K tags.
        crf: a `CRF` of K tags; None for tags that do not depend on each other.

    Raises:
        TypeError: an argument of the wrong kind.
    """

    def __init__(self, network: Module, crf: CRF | None = None) -> None:
        super().__init__()
        check_module("network", network)
        if crf is not None and not isinstance(crf, CRF):
            raise TypeError(f"crf: expected a CRF or None, got {type(crf).__name__}")
        self.network, self.crf = network, crf

    def __call__(
        self, x: Any, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> Array:
        """Return the scores of the network, and keep no tape; arguments as `forward`."""
        scores: Array = call_member(self.network, x, lengths, mask)
        return scores

    def forward(
        self, x: Any, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> tuple[Array, Any]:
        """Return the scores of the network, and the tape.

        Args:
            x: input of the network.
            lengths: (B,) of an integer dtype, each in 0..T, or None.
            mask: bool, laid out as x: false for steps that are left out; or None.
        """
        return forward_member(self.network, x, lengths, mask)

    def backward(self, tape: Any, dy: Array, *, need_dx: bool = True) -> Any:
        """Add to the gradients of the network; return dx, or None without need_dx."""
        return backward_member(self.network, tape, dy, need_dx)

    def loss(
        self, output: Array, targets: npt.ArrayLike, lengths: npt.ArrayLike | None = None
    ) -> tuple[float, Array]:
        """Return the negative log likelihood of tags, the mean over sequences, and the gradient of output.

        It adds to the gradients of the field.

        Args:
            output: scores, of forward.
            targets: (T, B) tags in 0..K-1; past the ends anything.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.

        Raises:
            TypeError: there is no field.
        """
        if self.crf is None:
            raise TypeError("loss: expected a Tagger with a crf, got one without; use fr.cross_entropy")
        loss, gradient = self.crf.loss(output, targets, lengths=lengths)
        return float(loss), gradient
