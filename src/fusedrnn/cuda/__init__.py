"""CUDA: what is there, the arithmetic of float32, and which kernel runs.

Arrays on a GPU go where NumPy arrays go: `fusedrnn.functional` takes those of PyTorch, CuPy and JAX and
returns arrays of the same library; modules moved by `.to("cuda")` do, too.
"""

from fusedrnn.cuda.errors import Error
from fusedrnn.cuda.loader import missing
from fusedrnn.cuda.modes import get_float32_mode, get_kernel, set_float32_mode, set_kernel

__all__ = [
    "Error",
    "get_float32_mode",
    "get_kernel",
    "is_available",
    "missing",
    "set_float32_mode",
    "set_kernel",
]


def __dir__() -> list[str]:
    return __all__


def is_available() -> bool:
    """Return whether calls can run on a GPU; if not, `missing()` says why."""
    return not missing()
