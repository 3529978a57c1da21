"""SGD, Adam and AdamW on the flat parameter arrays, and schedules of their rates, with PyTorch's formulas."""

from fusedrnn.optim.adam import Adam, AdamW
from fusedrnn.optim.groups import ParameterGroup
from fusedrnn.optim.one_cycle import NoamLR, OneCycleLR
from fusedrnn.optim.optimizer import Optimizer
from fusedrnn.optim.plateau import ReduceLROnPlateau
from fusedrnn.optim.schedules import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    Scheduler,
    SequentialLR,
    StepLR,
)
from fusedrnn.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LinearLR",
    "MultiStepLR",
    "NoamLR",
    "OneCycleLR",
    "Optimizer",
    "ParameterGroup",
    "ReduceLROnPlateau",
    "Scheduler",
    "SequentialLR",
    "StepLR",
]


def __dir__() -> list[str]:
    return __all__
