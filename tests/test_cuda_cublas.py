"""Products by a cuBLAS found at run time: a stand-in for it, libraries that cannot serve, the search."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_support import needs_emulator
from support import TESTS, assert_ran, run_python

from fusedrnn.cuda import cublas

# Runs every mode; argv: the stand-in, whose calls are counted, or nothing where none may be used.
RUN = """
import ctypes, dataclasses, sys
import fusedrnn as fr
from cuda_support import converter
from support import random_problem
from test_cuda_kernels import expected, run
from tolerances import relative_error

# Mode, promise, and how many products there are by the types of factors, result and computation: gx, dx,
# dW_ih and dW_hh twice, and once dW_hr. Only dx has the elements of x.
modes = [
    ("ieee", 1e-4, {(0, 0, 68): 9}),
    ("tf32", 5e-3, {(0, 0, 77): 9}),
    ("tf32x3", 1e-4, {}),
    ("f64", 1e-12, {(1, 1, 70): 9}),
    ("fp16", 5e-3, {(2, 0, 68): 7, (2, 2, 68): 2}),
]
convert = converter("other", "emulated")
for mode, promise, products in modes:
    dtype = {"f64": "float64", "fp16": "float16"}.get(mode, "float32")
    for proj in (0, 7):
        problem = random_problem("lstm", (3, 4, 5, 16), dtype, proj=proj)
        if dtype == "float16":  # where c is wider
            states = {name: (getattr(problem, name)[0], getattr(problem, name)[1].astype("float32"))
                      for name in ("state", "dstate")}
            problem = dataclasses.replace(problem, **states)
        _, results = run(problem, convert, mode if dtype == "float32" else "ieee")
        for got, want in zip(results, expected(problem), strict=True):
            assert relative_error(got, want) < promise, mode
    for types, count in products.items() if len(sys.argv) > 1 else ():
        calls = ctypes.CDLL(sys.argv[1]).fake_cublas_calls(*types)
        assert calls == count, (mode, types, calls)
print(fr.config()["cuda"])
"""

RAISES = """
import numpy as np
import fusedrnn as fr
from cuda_support import converter

convert = converter("other", "emulated")
try:
    fr.functional.forward("gru", convert(np.zeros((2, 1, 3))), convert((np.zeros((9, 3)), np.zeros((9, 3)))))
except fr.cuda.Error as error:
    print(error.code, error.name, error)
"""


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    library = tmp_path_factory.mktemp("cublas") / "libfake_cublas.so"
    source = TESTS / "cuda" / "fake_cublas.cpp"
    command = [*compiler.split(), "-std=c++20", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return str(library)


@needs_emulator
def test_products_run_in_the_library_that_is_named(fake: str) -> None:
    done = run_python("-c", RUN, fake, FUSEDRNN_CUBLAS=fake)
    assert_ran(done)
    assert f"; cuBLAS 13.99.7 ({fake}); cuda:0 " in done.stdout


@needs_emulator
@pytest.mark.parametrize(
    ("choice", "failure", "reason"),
    [
        (None, "", "this build takes the one that FUSEDRNN_CUBLAS names"),
        ("0", "", "FUSEDRNN_CUBLAS=0"),
        ("/nowhere/libcublas.so.13", "", "/nowhere/libcublas.so.13: cannot open"),
        ("libm.so.6", "", "libm.so.6: has no cublasCreate_v2"),
        ("fake", "no_handle", "cuda:0: cublasCreate: CUBLAS_STATUS_NOT_INITIALIZED (1), 13.99.7 (/"),
    ],
)
def test_without_a_library_our_own_kernels_run(
    choice: str | None, failure: str, reason: str, fake: str
) -> None:
    choice = fake if choice == "fake" else choice
    done = run_python("-c", RUN, FUSEDRNN_CUBLAS=choice, FAKE_CUBLAS=failure)
    assert_ran(done)
    assert f"; cuBLAS none ({reason}" in done.stdout


@needs_emulator
def test_a_product_that_fails_is_an_error(fake: str) -> None:
    done = run_python("-c", RAISES, FUSEDRNN_CUBLAS=fake, FAKE_CUBLAS="no_product")
    assert_ran(done)
    name = "CUBLAS_STATUS_EXECUTION_FAILED"
    assert done.stdout.startswith(f"13 {name} cublasGemmEx: as it was asked to ({name})")


def test_files_of_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        tmp_path / "nvidia/cu13/lib/libcublas.so.13",
        tmp_path / "nvidia/cublas/lib/libcublas.so.12",
        tmp_path / "torch/lib/libcublas.so.12",
    ]
    assert cublas.candidates() == [file for file in cublas.candidates() if Path(file).is_file()]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "torch/__init__.py").write_text("raise AssertionError('imported')\n")
    for name in [name for name in sys.modules if name.split(".")[0] in ("nvidia", "torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cublas.candidates() == [str(file) for file in files]
    assert "torch" not in sys.modules
