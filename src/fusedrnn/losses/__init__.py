"""Losses. Each returns the loss and its gradients; there is no tape to keep.

loss, dpred = fusedrnn.losses.huber_loss(pred, target, delta=2.0)
"""

from fusedrnn.losses.classification import binary_cross_entropy_with_logits
from fusedrnn.losses.likelihood import gaussian_nll_loss, negative_binomial_nll_loss, student_t_nll_loss
from fusedrnn.losses.regression import huber_loss, l1_loss, quantile_loss, smooth_l1_loss
from fusedrnn.training.losses import cross_entropy, mse_loss

__all__ = [
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "gaussian_nll_loss",
    "huber_loss",
    "l1_loss",
    "mse_loss",
    "negative_binomial_nll_loss",
    "quantile_loss",
    "smooth_l1_loss",
    "student_t_nll_loss",
]


def __dir__() -> list[str]:
    return __all__
