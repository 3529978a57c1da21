"""Weights and Sequential models of Keras files as modules; `fusedrnn.keras` is the public name."""

from fusedrnn.interop.keras.model import Model
from fusedrnn.interop.keras.reading import load, load_weights

__all__ = ["Model", "load", "load_weights"]


def __dir__() -> list[str]:
    return __all__
