"""SGD, Adam and AdamW on the flat parameter arrays, with PyTorch's formulas."""

from fusedrnn.optim.optimizer import SGD, Adam, AdamW, Optimizer

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]


def __dir__() -> list[str]:
    return __all__
