"""Modules and losses in NumPy code that HIPS autograd traces; `fusedrnn.autograd` is the public name."""

from fusedrnn.interop.autograd.calls import install
from fusedrnn.interop.autograd.losses import (
    crf_loss,
    cross_entropy,
    ctc_loss,
    linear_cross_entropy,
    mse_loss,
    transducer_joiner_loss,
    transducer_loss,
)
from fusedrnn.interop.autograd.tracing import parameter, value_and_backward

__all__ = [
    "crf_loss",
    "cross_entropy",
    "ctc_loss",
    "linear_cross_entropy",
    "mse_loss",
    "parameter",
    "transducer_joiner_loss",
    "transducer_loss",
    "value_and_backward",
]

install()


def __dir__() -> list[str]:
    return __all__
