"""ONNX files: `load` makes modules of them, `save` writes modules. Needs `fusedrnn[onnx]`."""

from fusedrnn.interop.onnx.export import save
from fusedrnn.interop.onnx.graph import Graph
from fusedrnn.interop.onnx.reading import load

__all__ = ["Graph", "load", "save"]


def __dir__() -> list[str]:
    return __all__
