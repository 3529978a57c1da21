"""Settings of the whole suite: repeatable hypothesis runs, and a thread count that no test leaves changed.

And the fixtures that several files share.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cuda_support import DEVICES, EMULATED
from hypothesis import HealthCheck, settings

import fusedrnn as fr

settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


def _list_if_without_a_library(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Write what skips for want of a library to the file that a variable names, for a run with all."""
    listed = os.environ.get("FUSEDRNN_TESTS_WITHOUT_TORCH")
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    if listed and report.skipped and ("torch" in reason or "could not import" in reason):
        with open(listed, "a") as file:
            print(Path(__file__).parents[1] / report.nodeid, file=file)


pytest_runtest_logreport = pytest_collectreport = _list_if_without_a_library


@pytest.fixture(autouse=True)
def _same_thread_count() -> Iterator[None]:
    before = fr.get_num_threads()
    yield
    if fr.get_num_threads() != before:
        fr.set_num_threads(before)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Children get SIGINT, even where the tests run behind a shell's `&`, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def jax_in_float64() -> Iterator[None]:
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text to train on."""
    from cli_support import pseudo_text

    path = tmp_path / "corpus.txt"
    path.write_text(pseudo_text())
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that the command line has trained, beside its text and its checkpoint."""
    from cli_support import TINY, assert_ok, invoke, pseudo_text

    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text(pseudo_text())
    assert_ok(invoke("train", folder / "corpus.txt", *TINY, "--out", folder / "model.safetensors"))
    return folder / "model.safetensors"


@pytest.fixture(params=["numpy", "fake_cupy", pytest.param("gpu", marks=DEVICES[1].marks)])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the parameters of modules are held that tests move to "cuda"."""
    kind: str = request.param
    if kind != "gpu" and not EMULATED:
        pytest.skip("needs a build with FUSEDRNN_CUDA=EMULATED")
    if kind == "fake_cupy":
        import fake_cupy

        with fake_cupy.installed(monkeypatch):
            yield kind
    else:
        yield kind
