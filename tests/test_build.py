"""What the build asks for: CUDA by name alone, whatever compilers are there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1]
CMAKE = shutil.which("cmake")

pytestmark = pytest.mark.once

# What of the build decides about CUDA, and nothing after it.
PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(check LANGUAGES NONE)
include("{source}/cmake/cuda.cmake")
"""


@pytest.mark.skipif(CMAKE is None or not (SOURCE / "cmake").exists(), reason="needs cmake and the sources")
@pytest.mark.parametrize(
    ("environment", "options", "says"),
    [
        ({}, [], "fusedrnn: without CUDA; FUSEDRNN_CUDA=ON adds it"),
        ({"FUSEDRNN_CUDA": ""}, [], "fusedrnn: without CUDA"),
        ({"FUSEDRNN_CUDA": "ON"}, ["-DFUSEDRNN_CUDA=OFF"], "fusedrnn: without CUDA"),
        ({"FUSEDRNN_CUDA": "ON"}, [], "FUSEDRNN_CUDA: expected nvcc >= 12.4 for ON, found one that compiles"),
        ({}, ["-DFUSEDRNN_CUDA=ON"], "FUSEDRNN_CUDA: expected nvcc >= 12.4 for ON, found one that compiles"),
        ({"FUSEDRNN_CUDA": "AUTO"}, [], "FUSEDRNN_CUDA: expected OFF, ON or EMULATED, got AUTO"),
    ],
    ids=str,
)
def test_cuda_only_when_asked_for(
    environment: dict[str, str], options: list[str], says: str, tmp_path: Path
) -> None:
    """An nvcc that is there is not even run unless CUDA is asked for."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    nvcc.chmod(0o755)
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.format(source=SOURCE))
    assert CMAKE is not None
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "FUSEDRNN"))}
    clean["PATH"] = f"{tmp_path}{os.pathsep}{clean['PATH']}"
    done = subprocess.run(
        [CMAKE, "-S", tmp_path, "-B", tmp_path / "build", *options],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert says in " ".join((done.stdout + done.stderr).split())
    assert (tmp_path / "ran").exists() == ("found one" in says)
