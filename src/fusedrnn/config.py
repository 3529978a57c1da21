"""Threads, and what this build and this machine can do."""

from __future__ import annotations

from typing import Any

from fusedrnn import _core
from fusedrnn.cuda import loader


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels of this process use; results do not depend on it.

    Args:
        n: from 1 to what the build supports.

    Raises:
        TypeError: n is not an int.
        ValueError: n is below 1 or above what the build supports.
    """
    _core.set_num_threads(n)


def get_num_threads() -> int:
    """Return how many threads the kernels use."""
    return _core.get_num_threads()


def config() -> dict[str, Any]:
    """Return version, instruction sets built and supported, threads, CPU, compiler, and CUDA's state."""
    return {**_core.config(), "cuda": loader.describe()}


def show_config() -> None:
    """Print `config()`, one entry a line."""
    entries = config()
    width = max(map(len, entries))
    for name, value in entries.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"{name:<{width}}  {text}")
