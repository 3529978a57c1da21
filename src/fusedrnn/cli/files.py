"""Files: safetensors with a checksum, and writing that never leaves half a file behind.

Layout: tensors as they are. The header's metadata has one entry, `fusedrnn`: a SHA-256 of everything else, a
space, and JSON with `format` (which kind of file), `version` and `content`. So a changed bit is an error, and
not another model. Several entries would be written in no particular order, and equal files would differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from fusedrnn.cli.errors import CliError

Tensors = dict[str, npt.NDArray[Any]]

VERSION = 1
_ENTRY = "fusedrnn"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by a file that holds `data`: either all of it gets there, or the old file stays.

    Raises:
        CliError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise CliError(f"{path}: cannot write: {error.strerror or error}") from None


def _sync_folder(folder: Path) -> None:
    """Make the new name last; file systems without this operation are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(path: Path, kind: str, tensors: Mapping[str, npt.NDArray[Any]], content: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able description atomically.

    Raises:
        CliError: the file cannot be written.
    """
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    text = json.dumps({"format": kind, "version": VERSION, "content": content}, sort_keys=True)
    metadata = {_ENTRY: f"{_checksum(text, arrays)} {text}"}
    write_atomically(path, safetensors.numpy.save(arrays, metadata))


def load(path: Path, kind: str) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save` wrote: the tensors and the description.

    Raises:
        CliError: no such file, another kind of file, or a damaged one.
    """
    try:
        return parse(path.read_bytes(), kind)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}") from None
    except CliError as error:
        raise CliError(f"{path}: {error}") from None


def parse(data: bytes, kind: str) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors and the description from the bytes of a file.

    Raises:
        CliError: another kind of file, or a damaged one.
    """
    try:
        tensors: Tensors = safetensors.numpy.load(data)
        entry = _metadata(data).get(_ENTRY)
    except MemoryError:
        raise
    except Exception as error:  # the reader has many ways to refuse a file
        raise CliError(f"not a safetensors file, or a damaged one ({error})") from None
    if entry is None:
        raise CliError(f"expected a {kind}, got another safetensors file")
    checksum, _, text = entry.partition(" ")
    if checksum != _checksum(text, tensors):
        raise CliError("damaged: the contents do not match their checksum")
    return tensors, _content(text, kind)


def _metadata(data: bytes) -> dict[str, str]:
    """The header's metadata; the reader has checked the header before."""
    size = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    return metadata


def _content(text: str, kind: str) -> dict[str, Any]:
    """The description, whose checksum is right: what can be wrong with it is what kind of file it is."""
    described = json.loads(text)
    if described["format"] != kind:
        raise CliError(f"expected a {kind}, got a {described['format']}")
    if described["version"] != VERSION:
        raise CliError(f"expected format version {VERSION}, got {described['version']}")
    content: dict[str, Any] = described["content"]
    return content


def _checksum(text: str, tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype.name}\0{tensor.shape}\0".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
