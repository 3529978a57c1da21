"""What the installed package says of itself."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

pytestmark = pytest.mark.once


def test_licences_come_with_the_package() -> None:
    """Its own, and that of pybind11, parts of which are compiled in."""
    files = {file.name: file for file in metadata.files("fusedrnn") or [] if "licenses" in file.parts}
    assert "Apache License" in files["LICENSE"].read_text()
    notice = files["pybind11.txt"].read_text()
    assert "pybind11" in notice and "Redistributions in binary form must reproduce" in notice


def test_other_libraries_are_imported_when_asked_for() -> None:
    """The package alone imports none of those that it plugs into."""
    others = {"autograd", "cupy", "h5py", "jax", "mpi4py", "onnx", "torch"}
    code = f"import sys, fusedrnn; print({others!r} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
