"""FUSEDRNN_ISA and FUSEDRNN_NUM_THREADS: what is asked for is used or refused, never replaced."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from isa_results import results
from support import DTYPES, assert_ran, run_python
from tolerances import assert_close

import fusedrnn as fr

ISAS = ("scalar", "avx2", "avx512", "neon")
SHOW = "import fusedrnn as fr; print(fr.config()['isa'], fr.get_num_threads())"


def best_isa() -> str:
    config = fr.config()
    order = ("avx512", "avx2", "neon", "scalar")
    return next(isa for isa in order if isa in config["isas_supported"] and isa in config["isas_built"])


def test_the_isa_asked_for_ran() -> None:
    assert fr.config()["isa"] == os.environ.get("FUSEDRNN_ISA", best_isa())


@pytest.mark.once
@pytest.mark.parametrize("isa", ISAS)
def test_used_or_refused(isa: str) -> None:
    """The error tells a CPU that lacks the ISA from a build that does."""
    done = run_python("-c", SHOW, FUSEDRNN_ISA=isa)
    config = fr.config()
    if isa in config["isas_built"] and isa in config["isas_supported"]:
        assert_ran(done)
        assert done.stdout.split()[0] == isa
        return
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("RuntimeError") and "FUSEDRNN_ISA" in message and isa in message
    lacking, present = ("CPU", "build") if isa in config["isas_built"] else ("build", "CPU")
    assert lacking in message and present not in message


@pytest.mark.once
@pytest.mark.parametrize("isa", ["sse9", "AVX2 ", "avx2,scalar"])
def test_unknown_isa(isa: str) -> None:
    done = run_python("-c", SHOW, FUSEDRNN_ISA=isa)
    message = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "FUSEDRNN_ISA" in message and isa.strip() in message and "scalar" in message


@pytest.mark.parametrize("isa", ISAS)
def test_isas_agree(isa: str, tmp_path: Path) -> None:
    """Every ISA that can run here gives the results of the one in use, to the usual tolerance."""
    config = fr.config()
    if isa not in config["isas_built"] or isa not in config["isas_supported"]:
        isa = "scalar"
    for dtype in DTYPES:
        target = tmp_path / f"{dtype}.npz"
        assert_ran(run_python("isa_results.py", dtype, str(target), FUSEDRNN_ISA=isa))
        with np.load(target) as theirs:
            ours = results(dtype)
            assert set(theirs) == {*ours, "isa"} and str(theirs["isa"]) == isa
            for name, array in ours.items():
                assert_close(theirs[name], array, "gradient", name)


@pytest.mark.parametrize("isa", ["avx2", "avx512", "neon"])
def test_vector_isas_share_bits(isa: str, tmp_path: Path) -> None:
    """The promise of docs/isa.md: all outputs, and the gradients of cells of one gate."""
    config = fr.config()
    if isa not in config["isas_built"] or isa not in config["isas_supported"] or config["isa"] == "scalar":
        pytest.skip(f"needs {isa} in the build and the CPU, beside a vector set in use: {config['isa']}")
    for dtype in DTYPES:
        target = tmp_path / f"{dtype}.npz"
        assert_ran(run_python("isa_results.py", dtype, str(target), FUSEDRNN_ISA=isa))
        with np.load(target) as theirs:
            shared = {k: a for k, a in results(dtype).items() if k.startswith("rnn_") or k.endswith(") 0")}
            assert len(shared) > len(results(dtype)) / 3
            for name, array in shared.items():
                assert np.array_equal(theirs[name], array), name


@pytest.mark.once
def test_default_is_the_best_supported() -> None:
    done = run_python("-c", SHOW, FUSEDRNN_ISA=None)
    assert_ran(done)
    assert done.stdout.split()[0] == best_isa()


def test_scalar_is_always_built() -> None:
    config = fr.config()
    assert "scalar" in config["isas_built"] and "scalar" in config["isas_supported"]
    assert config["isa"] in config["isas_built"] and config["isa"] in config["isas_supported"]


@pytest.mark.once
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "3x", "99999999999999999999"])
def test_bad_thread_count(value: str) -> None:
    done = run_python("-c", SHOW, FUSEDRNN_NUM_THREADS=value)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "FUSEDRNN_NUM_THREADS" in message and value in message


@pytest.mark.once
def test_thread_count_from_the_environment() -> None:
    done = run_python("-c", SHOW, FUSEDRNN_NUM_THREADS="3")
    assert_ran(done)
    assert done.stdout.split()[1] == "3"


def test_config_names_the_build() -> None:
    config = fr.config()
    assert config["version"] == fr.__version__
    assert config["num_threads"] == fr.get_num_threads() >= 1
    assert config["cpu"] and config["compiler"]


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    fr.show_config()
    shown = capsys.readouterr().out
    assert fr.__version__ in shown and fr.config()["isa"] in shown
