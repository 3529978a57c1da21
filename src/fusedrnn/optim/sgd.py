"""SGD."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from fusedrnn.arrays import Array, as_array
from fusedrnn.checks import check_flag, check_number
from fusedrnn.optim.groups import Modules
from fusedrnn.optim.optimizer import Optimizer


class SGD(Optimizer):
    """Stochastic gradient descent.

    g = grad + weight_decay * p; buf = momentum * buf + (1 - dampening) * g, in the first step with momentum
    buf = g; g = g + momentum * buf with nesterov, else buf; p = p - lr * g.

    Args:
        modules: a module, several that share nothing, or groups of them, as `Optimizer` says.
        lr: learning rate >= 0.
        momentum: >= 0.
        dampening: of the momentum.
        weight_decay: >= 0, L2 penalty.
        nesterov: needs momentum > 0 and dampening 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.
    """

    _settings = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    # Whether the momentum buffer waits for its first step.
    _fresh: bool = True

    def __init__(
        self,
        modules: Modules,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            modules,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )

    def _prepare(self, settings: Mapping[str, Any]) -> None:
        if settings.get("momentum") and not self._state_names:
            self._state, self._fresh = self._zeros(("momentum_buffer",)), True

    def step(self) -> None:
        """Update every parameter from its gradient; raises what `Optimizer.step` does."""
        super().step()
        if self._fresh:
            self._fresh = not any(own.get("momentum", self.momentum) for own in self._own_settings)

    def _update(
        self, kernels: Any, parameters: Array, grads: Array, state: dict[str, Array], settings: dict[str, Any]
    ) -> None:
        kernels.sgd_step(
            parameters,
            grads,
            state["momentum_buffer"] if settings["momentum"] else None,
            *settings.values(),
            self._fresh,
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a `state_dict`, with a momentum buffer or without; raises what the base's does."""
        super().load_state_dict(state_dict)
        self._fresh = not any(as_array(array).any() for state in self._state for array in state.values())

    def _states_in(self, state_dict: Mapping[str, Any], settings: list[dict[str, Any]]) -> tuple[str, ...]:
        saved = any(str(name).startswith("momentum_buffer.") for name in state_dict)
        used = any(own.get("momentum") for own in settings)
        return ("momentum_buffer",) if saved or used else ()

    def _check_setting(self, name: str, value: Any) -> Any:
        if name == "nesterov":
            return check_flag(name, value)
        if name == "dampening":
            return check_number(name, value, -sys.float_info.max, sys.float_info.max)
        return super()._check_setting(name, value)

    def _check_together(self, settings: Mapping[str, Any]) -> None:
        if settings["nesterov"] and (not settings["momentum"] or settings["dampening"]):
            raise ValueError(
                "nesterov: expected momentum > 0 and dampening = 0, got "
                f"momentum={settings['momentum']}, dampening={settings['dampening']}"
            )
