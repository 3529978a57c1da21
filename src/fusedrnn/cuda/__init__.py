"""CUDA: what is there, and the arithmetic of float32. Arrays on a GPU go where NumPy arrays go.

`fusedrnn.functional` takes arrays of PyTorch, CuPy and JAX on a GPU and returns arrays of the same library;
modules moved by `.to("cuda")` do, too.
"""

from fusedrnn.cuda.errors import Error
from fusedrnn.cuda.loader import missing
from fusedrnn.cuda.modes import get_float32_mode, set_float32_mode

__all__ = ["Error", "get_float32_mode", "is_available", "missing", "set_float32_mode"]


def is_available() -> bool:
    """Return whether calls can run on a GPU; if not, `missing()` says why."""
    return not missing()
