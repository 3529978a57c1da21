"""The arrays and the configuration in a Keras file: nothing is run, and nothing is read that is not there."""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import Any

import h5py
import numpy as np

from fusedrnn.arrays import Array

# Groups and arrays of a file, and how deep they may lie in each other: a file may hold circles.
_MOST_ENTRIES, _MOST_LEVELS = 100_000, 16
_MOST_CONFIG = 64 << 20  # bytes


def read(path: str | os.PathLike[str]) -> tuple[Any, dict[str, Array]]:
    """Return the configuration of a .keras file (None of a .weights.h5 file), and the arrays by their paths.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is neither, or damaged.
    """
    with open(path, "rb") as file:
        try:
            if zipfile.is_zipfile(file):
                return _archive(file)
            file.seek(0)
            return None, _arrays(file, os.fstat(file.fileno()).st_size)
        except MemoryError:
            raise
        # h5py, zipfile and json have many ways to refuse a file.
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ValueError(f"{os.fspath(path)}: not a Keras 3 file, or a damaged one: {reason}") from None


def _archive(file: Any) -> tuple[Any, dict[str, Array]]:
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        for name in ("config.json", "model.weights.h5"):
            if names.count(name) != 1:
                raise ValueError(f"expected one {name} in it, got {names.count(name)}")
        # What compresses better than weights do is no model.
        for name, most in (("config.json", _MOST_CONFIG), ("model.weights.h5", 16 * size + (1 << 20))):
            held = archive.getinfo(name).file_size
            if held > most:
                raise ValueError(f"{name}: expected at most {most} bytes, got {held}")
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    return config, _arrays(io.BytesIO(weights), len(weights))


def _arrays(file: Any, size: int) -> dict[str, Array]:
    """Return the arrays of floats below "layers", but the states of random generators."""
    with h5py.File(file, "r") as root:
        if "layer_names" in root.attrs:
            raise ValueError("expected the layout of Keras 3, got that of Keras 2")
        if not isinstance(root.get("layers"), h5py.Group):
            raise ValueError("expected a group 'layers'")
        found: dict[str, Any] = {}
        _collect(root["layers"], "", found, 0, 0)
        total = sum(_nbytes(name, dataset) for name, dataset in found.items())
        # Arrays that share their bytes would take more memory than the file.
        if total > size:
            raise ValueError(f"arrays of {total} bytes in a file of {size}")
        return {name: np.ascontiguousarray(dataset[()]) for name, dataset in found.items()}


def _collect(group: Any, prefix: str, found: dict[str, Any], level: int, count: int) -> int:
    """Add the datasets in a group and those below by their paths; return how many entries were seen."""
    for name in group:
        count += 1
        path = f"{prefix}{name}"
        if count > _MOST_ENTRIES or level > _MOST_LEVELS:
            raise ValueError(
                f"more than {_MOST_ENTRIES} entries, or more than {_MOST_LEVELS} levels of groups"
            )
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{path}: expected data inside the file, got a link")
        entry = group[name]
        if isinstance(entry, h5py.Group):
            count = _collect(entry, f"{path}/", found, level + 1, count)
        elif not isinstance(entry, h5py.Dataset):
            raise ValueError(f"{path}: expected an array, got {type(entry).__name__}")
        elif "seed_generator" not in path.split("/"):
            found[path] = entry
    return count


def _nbytes(name: str, dataset: Any) -> int:
    """Return the size of an array, whose bytes lie in the file."""
    if dataset.dtype not in (np.float32, np.float64) or "dtype" in dataset.attrs:
        kind = dataset.attrs.get("dtype", dataset.dtype)
        raise ValueError(f"{name}: expected float32 or float64, got {kind}")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{name}: expected data inside the file; other files are not read")
    # In one piece as Keras writes them: pieces and filters may stand for far more than the file holds.
    if dataset.chunks is not None or dataset.id.get_storage_size() != dataset.nbytes:
        raise ValueError(f"{name}: expected {dataset.nbytes} bytes in one piece")
    return int(dataset.nbytes)
