"""ONNX files: `import fusedrnn.onnx`; needs onnx (extra `onnx`).

graph = fusedrnn.onnx.load("model.onnx")    # a module
fusedrnn.onnx.save(lstm, "lstm.onnx")
"""

from fusedrnn.interop.onnx import *  # noqa: F403
from fusedrnn.interop.onnx import __all__ as __all__
