"""Where Python packages keep NVIDIA's cuBLAS, which products of matrices use if it is there."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

# NVIDIA's wheels for CUDA 13 and 12, and builds of PyTorch that bring their own.
_PACKAGES = ("nvidia.cu13", "nvidia.cublas", "torch")
_VERSIONS = (13, 12, 11)


def _folders() -> Iterator[Path]:
    for package in _PACKAGES:
        try:
            spec = find_spec(package)  # imports no more than the empty namespace `nvidia`
        except (ImportError, ValueError):
            continue
        if spec is not None:
            yield from (Path(place) / "lib" for place in spec.submodule_search_locations or ())


def candidates() -> list[str]:
    """Return the files of libcublas that installed packages have, best first."""
    files = (folder / f"libcublas.so.{version}" for folder in _folders() for version in _VERSIONS)
    return [str(file) for file in files if file.is_file()]
