"""SGD, Adam and AdamW on the flat parameter arrays, with PyTorch's formulas."""

from fusedrnn.optim.adam import Adam, AdamW
from fusedrnn.optim.groups import ParameterGroup
from fusedrnn.optim.optimizer import Optimizer
from fusedrnn.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "ParameterGroup"]


def __dir__() -> list[str]:
    return __all__
