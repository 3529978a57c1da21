"""The compiled module `_cuda`: imported when it is first needed, and what is missing if it cannot serve."""

import importlib
from functools import cache
from types import ModuleType

from fusedrnn.cuda import cublas


@cache
def find() -> ModuleType | None:
    """Return the compiled module, or None if this build has none."""
    try:
        module = importlib.import_module("fusedrnn._cuda")
    except ModuleNotFoundError as error:
        if error.name != "fusedrnn._cuda":
            raise
        return None
    module.offer_cublas(cublas.candidates())
    return module


def missing() -> str:
    """Return what is missing before a call can run on a GPU; empty if nothing is."""
    module = find()
    if module is None:
        return "not built: this build has no fusedrnn._cuda (it takes nvcc and FUSEDRNN_CUDA=ON)"
    return str(module.missing())


def load() -> ModuleType:
    """Return the compiled module.

    Raises:
        RuntimeError: it was not built, or there is no driver or no device; the message says which.
    """
    lacking = missing()
    module = find()
    if module is None or lacking:
        raise RuntimeError(f"cuda: expected a CUDA device, got none; {lacking}")
    return module


def describe() -> str:
    """Return what `config` says about CUDA."""
    module = find()
    lacking = missing()
    if module is None:
        return lacking
    built = f"built for {module.targets}"
    if lacking:
        return f"{built}; {lacking}"
    devices = [
        f"cuda:{number} {name} ({architecture // 10}.{architecture % 10})"
        for number, (name, architecture) in enumerate(module.devices())
    ]
    return "; ".join([built, f"cuBLAS {module.cublas()}", *devices])
