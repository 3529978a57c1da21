"""Pooled: base of the estimators with one target for each sequence."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import fusedrnn as fr
from fusedrnn.checks import check_choice
from fusedrnn.estimators.base import SequenceEstimator
from fusedrnn.nn.pool import KINDS


class Pooled(SequenceEstimator):
    """Base of the estimators with one target for each sequence: a network, pooled over time, and a head."""

    pooling: str

    def __init__(
        self,
        cell: str = "gru",
        hidden_size: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pooling: str = "last",
        *,
        lr: float = 0.005,
        schedule: str | None = "one_cycle",
        epochs: int = 50,
        batch_size: int = 32,
        weight_decay: float = 0.01,
        clip: float | None = 1.0,
        patience: int | None = None,
        validation_fraction: float = 0.1,
        scale: bool = True,
        embedding_size: int = 32,
        min_count: int = 1,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self._set_parameters(locals())

    @abstractmethod
    def _outputs_size(self) -> int:
        """Return how many outputs the head has."""

    def _make_model(self, inputs: int, seed: int) -> fr.Sequential:
        check_choice("pooling", self.pooling, KINDS)
        layers, size = self._body(inputs, seed)
        layers["pool"] = fr.Pool(self.pooling, size, seed=seed + 3)
        layers["head"] = fr.Linear(size, self._outputs_size(), seed=seed + 4)
        return fr.Sequential(layers)
