"""Files: safetensors with a checksum, and writing that never leaves half a file behind.

Layout: tensors as they are. The header's metadata has one entry, `fusedrnn`: a SHA-256 of everything else, a
space, and JSON with `format` (which kind of file), `version` and `content`. So a changed bit is an error, and
not another model. Several entries would be written in no particular order, and equal files would differ.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from fusedrnn.arrays import Array

Tensors = dict[str, Array]

VERSION = 1
_ENTRY = "fusedrnn"
_LARGEST_HEADER = 100_000_000  # bytes, as for every safetensors file


class FileError(OSError, ValueError):
    """A file that cannot be read or written, or is not what it should be; the text says which and why."""


def _safetensors() -> ModuleType:
    """The library that knows the format: it is needed where files are read and written, and only there."""
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError("files of tensors need safetensors; run: pip install safetensors") from None
    return safetensors.numpy


def reason(error: Exception) -> str:
    """Return what is wrong in words: the text of a KeyError is a bare name."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def prefixed(prefix: str, tensors: Mapping[str, Array]) -> Tensors:
    """Return the tensors under names that begin with the prefix."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Array]) -> Tensors:
    """Return the tensors called `prefix`.something, in the order of their names."""
    start = f"{prefix}."
    return {name[len(start) :]: tensors[name] for name in sorted(tensors) if name.startswith(start)}


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; a pipe, on which opening would wait, or a device without an end is refused.

    Raises:
        FileError: it is not a regular file, or cannot be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):
                raise FileError(f"{path}: not a regular file")
            yield file
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by a file that holds `data`: either all of it gets there, or the old file stays.

    A file that is replaced hands on its permissions.

    Raises:
        FileError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    try:
        _remove_strays(target)
        # A name that nobody can foresee, and O_EXCL: what others put into the folder is never written to.
        temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.tmp")
        mode = target.stat().st_mode & 0o777 if target.exists() else None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o666 if mode is None else mode)
        try:
            with open(descriptor, "wb") as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                if mode is not None:
                    os.fchmod(descriptor, mode)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
                os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise FileError(f"{path}: cannot write: {error.strerror or error}") from None


def _prefix(target: Path) -> str:
    """How the names of a target's temporary files begin: short, however long its own name is."""
    return f".fusedrnn-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]}-"


def _remove_strays(target: Path) -> None:
    """Remove what writers of the target left behind that were killed: a living one holds a lock."""
    prefix, names = _prefix(target), []
    with contextlib.suppress(OSError):  # a folder that may be written but not listed
        names = [name for name in os.listdir(target.parent) if name.startswith(prefix)]
    for stray in map(target.with_name, names):
        with contextlib.suppress(OSError, FileError), open_regular(stray) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stray.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name last; file systems without this operation are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(path: Path, kind: str, tensors: Mapping[str, Array], content: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able description atomically.

    Raises:
        FileError: the file cannot be written.
    """
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    text = json.dumps({"format": kind, "version": VERSION, "content": content}, sort_keys=True)
    metadata = {_ENTRY: f"{_checksum(text, arrays)} {text}"}
    write_atomically(path, _safetensors().save(arrays, metadata))


def load(path: Path, kind: str) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save` wrote: the tensors and the description.

    Raises:
        FileError: no such file, another kind of file, or a damaged one.
    """
    with open_regular(path) as file:
        try:
            return parse(file, os.fstat(file.fileno()).st_size, kind)
        except FileError as error:
            raise FileError(f"{path}: {error}") from None


def kind_of(path: Path) -> str:
    """Return which kind of file it is, or "" of none of ours: `load` says why.

    Raises:
        FileError: no such file.
    """
    with open_regular(path) as file:
        try:
            text = (_entry(file, os.fstat(file.fileno()).st_size) or "").partition(" ")[2]
            return str(json.loads(text)["format"])
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
            return ""


def parse(file: BinaryIO, size: int, kind: str) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors and the description from an open file of `size` bytes.

    The header comes first, and is held against the size: a file that is not what it says costs no memory.

    Raises:
        FileError: another kind of file, or a damaged one.
    """
    try:
        entry = _entry(file, size)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise FileError(f"not a safetensors file, or a damaged one ({reason(error)})") from None
    if entry is None:
        raise FileError(f"expected a {kind}, got another safetensors file")
    checksum, _, text = entry.partition(" ")
    content = _content(text, kind)
    file.seek(0)
    try:
        tensors: Tensors = _safetensors().load(file.read(size))
    except (ImportError, MemoryError, OSError):
        raise
    except Exception as error:  # the reader has many ways to refuse a file
        raise FileError(f"not a safetensors file, or a damaged one ({error})") from None
    if checksum != _checksum(text, tensors):
        raise FileError("damaged: the contents do not match their checksum")
    return tensors, content


def _entry(file: BinaryIO, size: int) -> str | None:
    """Our entry in the header's metadata, if there is one.

    Raises:
        AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError: the header is damaged.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    held = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if held != size - 8 - length:
        raise ValueError(f"tensors of {held} bytes, of which the file holds {size - 8 - length}")
    entry = metadata.get(_ENTRY)
    if not isinstance(entry, str | None):
        raise TypeError("metadata that is no text")
    return entry


def _content(text: str, kind: str) -> dict[str, Any]:
    """The description, from the header's entry."""
    try:
        described = json.loads(text)
        found, version, content = described["format"], described["version"], described["content"]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise FileError(f"damaged: the description cannot be read ({reason(error)})") from None
    if found != kind:
        raise FileError(f"expected a {kind}, got a {found}")
    if version != VERSION:
        raise FileError(f"expected format version {VERSION}, got {version}")
    if not isinstance(content, dict):
        raise FileError("damaged: the description cannot be read")
    return content


def _checksum(text: str, tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype.name}\0{tensor.shape}\0".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
