"""The compiled module `_cuda`: imported when it is first needed, and what is missing if it cannot serve."""

import importlib
from functools import cache
from types import ModuleType

from fusedrnn import _core
from fusedrnn.cuda import cublas

# Of this build, or of a distribution beside it.
_NAMES = ("fusedrnn._cuda", "fusedrnn_cuda13._cuda")


@cache
def _search() -> tuple[ModuleType | None, str]:
    """Return the compiled module, or None and why there is none."""
    for name in _NAMES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
            continue
        if module.__version__ != _core.__version__:
            distribution = name.partition(".")[0].replace("_", "-")
            wanted = f"{distribution}=={_core.__version__}"
            return None, f"expected {wanted}, got {module.__version__}; pip install {wanted}"
        module.offer_cublas(cublas.candidates())
        return module, ""
    return None, "not built: this build has no fusedrnn._cuda (it takes nvcc and FUSEDRNN_CUDA=ON)"


def find() -> ModuleType | None:
    """Return the compiled module, or None if this build has none."""
    return _search()[0]


def missing() -> str:
    """Return what is missing before a call can run on a GPU; empty if nothing is."""
    module, problem = _search()
    return problem if module is None else str(module.missing())


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
