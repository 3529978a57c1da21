"""Training: the loop, losses, and the clipping of gradients."""

from fusedrnn.training.data import SequenceData
from fusedrnn.training.diagnosis import DivergedError
from fusedrnn.training.early_stopping import EarlyStopping
from fusedrnn.training.trainer import Trainer

__all__ = ["DivergedError", "EarlyStopping", "SequenceData", "Trainer"]


def __dir__() -> list[str]:
    return __all__
