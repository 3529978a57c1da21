"""Adam and AdamW."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.checks import check_number
from fusedrnn.optim.groups import Modules
from fusedrnn.optim.optimizer import Optimizer


class Adam(Optimizer):
    """Adam, with an L2 penalty.

    g = grad + weight_decay * p; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p = p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    Where v overflows (float32: gradients above 1e19), `step` leaves the parameter and its moments as they
    are, and raises ValueError after the others have taken it.

    Args:
        modules: a module, several that share nothing, or groups of them, as `Optimizer` says.
        lr: learning rate >= 0.
        betas: (b1, b2), each in [0, 1).
        eps: at least sqrt(tiny / (1 - b2)), tiny being the smallest normal number of the parameters' dtype
            (3.4e-18 for float32 by default): `step` refuses one whose square vanishes.
        weight_decay: >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Kingma and Ba 2014, arXiv:1412.6980v9.
    """

    _settings = ("lr", "betas", "eps", "weight_decay")
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        modules: Modules,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self._state = self._zeros(("exp_avg", "exp_avg_sq"))

    def _update(
        self, kernels: Any, parameters: Array, grads: Array, state: dict[str, Array], settings: dict[str, Any]
    ) -> None:
        kernels.adam_step(
            parameters,
            grads,
            state["exp_avg"],
            state["exp_avg_sq"],
            settings["lr"],
            *settings["betas"],
            settings["eps"],
            settings["weight_decay"],
            self._decoupled,
            self.step_count + 1,
        )

    def _check_setting(self, name: str, value: Any) -> Any:
        return _check_betas(value) if name == "betas" else super()._check_setting(name, value)

    def _check_state(self, name: str, values: Array) -> None:
        if name.startswith("exp_avg_sq.") and (values < 0).any():
            raise ValueError(
                f"{name}: expected values >= 0, means of squares, got {values[values < 0].min():.3g}"
            )


def _check_betas(betas: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas: expected a pair of numbers, got {betas!r}")
    # The largest float below 1: with 1 itself the bias correction would divide by zero.
    below_one = float(np.nextafter(1.0, 0.0))
    return check_number("betas[0]", betas[0], 0.0, below_one), check_number(
        "betas[1]", betas[1], 0.0, below_one
    )


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: p = p - lr * weight_decay * p, then Adam's step.

    Args:
        modules: a module, several that share nothing, or groups of them, as `Optimizer` says.
        lr: learning rate >= 0.
        betas: (b1, b2), each in [0, 1).
        eps: added to the denominator; at least sqrt(tiny / (1 - b2)), as `Adam` says.
        weight_decay: >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Loshchilov and Hutter 2017, arXiv:1711.05101v3.
    """

    _decoupled = True

    def __init__(
        self,
        modules: Modules,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(modules, lr, betas, eps, weight_decay)
