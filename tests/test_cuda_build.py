"""What a build without CUDA, or a machine without a driver or a device, says; and what of CUDA is there."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
from cuda_support import EMULATED, MODULE
from support import assert_ran, run_python

import fusedrnn as fr
from fusedrnn.cuda import loader

# A build with FUSEDRNN_CUDA=OFF has no module _cuda.
HIDDEN = """
import sys, types

class Missing:
    def find_spec(self, name, path, target=None):
        if name == "fusedrnn._cuda":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import fusedrnn as fr
"""

WITHOUT_MODULE = """
import numpy as np

class OnGpu:
    def __dlpack_device__(self):
        return 2, 0
    def __dlpack__(self, **options):
        raise AssertionError("asked for its memory")

def refused(call):
    try:
        call()
    except RuntimeError as error:
        assert "cuda: expected a CUDA device, got none; not built: " in str(error), error
        assert "FUSEDRNN_CUDA=ON" in str(error), error
    else:
        raise AssertionError("not refused")

assert fr.config()["cuda"].startswith("not built: "), fr.config()
assert not fr.cuda.is_available() and fr.cuda.missing() == fr.config()["cuda"]
refused(lambda: fr.LSTM(2, 3).to("cuda"))
refused(lambda: fr.functional.forward("lstm", OnGpu(), [np.zeros((4, 3))] * 2))
fr.show_config()
fr.LSTM(2, 3).to("cpu")(np.zeros((1, 1, 2), np.float32))
"""


def test_a_build_without_the_module() -> None:
    done = run_python("-c", HIDDEN + WITHOUT_MODULE)
    assert_ran(done)
    assert "cuda " in done.stdout and "not built" in done.stdout


# A module of a distribution beside this one.
BESIDE = """
from fusedrnn.cuda import loader
package, module = types.ModuleType("fusedrnn_cuda13"), types.ModuleType("fusedrnn_cuda13._cuda")
package.__path__ = []
module.__version__ = fr.__version__ + sys.argv[1]
module.offer_cublas, module.missing = lambda names: None, lambda: "no driver"
sys.modules |= {"fusedrnn_cuda13": package, "fusedrnn_cuda13._cuda": module}
print((loader.find() is module), fr.cuda.missing())
"""


def test_a_module_of_another_distribution() -> None:
    """It serves if it has this version."""
    done = run_python("-c", HIDDEN + BESIDE, "")
    assert_ran(done)
    assert done.stdout == "True no driver\n"
    done = run_python("-c", HIDDEN + BESIDE, "9")
    assert_ran(done)
    wanted = f"fusedrnn-cuda13=={fr.__version__}"
    assert done.stdout == f"False expected {wanted}, got {fr.__version__}9; pip install {wanted}\n"


def test_nothing_is_imported_before_it_is_needed() -> None:
    libraries = "{'cupy', 'torch', 'jax', 'fusedrnn._cuda'}"
    code = (
        "import sys, numpy as np, fusedrnn as fr\n"
        "module = fr.LSTM(2, 3, 2)\n"
        "y, state, tape = module.forward(np.zeros((2, 2, 2), np.float32))\n"
        "module.backward(tape, y)\n"
        "fr.functional.forward('gru', np.zeros((1, 1, 2)), [np.zeros((9, 2)), np.zeros((9, 3))])\n"
        f"assert not {libraries} & set(sys.modules), sorted({libraries} & set(sys.modules))\n"
    )
    assert_ran(run_python("-c", code))


def test_config_says_what_is_there() -> None:
    text = fr.config()["cuda"]
    if MODULE is None:
        assert text.startswith("not built: ")
    else:
        assert text.startswith(f"built for {MODULE.targets}; ")
        assert text.endswith(fr.cuda.missing() or "")
        assert fr.cuda.is_available() == ("cuda:0 " in text)


@pytest.mark.skipif(MODULE is None or not fr.cuda.missing(), reason="needs the module, and no device")
def test_without_a_driver_or_device() -> None:
    assert fr.cuda.missing().startswith(
        ("no driver: ", "no usable driver: ", "no device: ", "no usable device: ")
    )
    with pytest.raises(RuntimeError, match=r"cuda: expected a CUDA device, got none; no "):
        fr.LSTM(2, 3).to("cuda")


@pytest.mark.skipif(not EMULATED, reason="needs a build with FUSEDRNN_CUDA=EMULATED")
def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusedrnn.cuda import backend

    class Real:
        array_library = "cupy"

        def devices(self) -> list[tuple[str, int]]:
            return [("one", 90)]

    monkeypatch.setattr(loader, "load", Real)
    monkeypatch.setitem(sys.modules, "cupy", None)
    backend.cuda_backend.cache_clear()
    with pytest.raises(RuntimeError, match=r"cuda: expected CuPy, .* got none; install fusedrnn\[cuda13\]"):
        fr.LSTM(2, 3).to("cuda")
    with pytest.raises(ValueError, match=r"device: expected a device below cuda:1, got cuda:1"):
        fr.LSTM(2, 3).to("cuda:1")


def test_float32_modes() -> None:
    assert fr.cuda.get_float32_mode() == "ieee"
    with fr.cuda.set_float32_mode("tf32"):
        assert fr.cuda.get_float32_mode() == "tf32"
        with pytest.raises(ZeroDivisionError), fr.cuda.set_float32_mode("tf32x3"):
            1 / (fr.cuda.get_float32_mode() != "tf32x3")
        assert fr.cuda.get_float32_mode() == "tf32"
    assert fr.cuda.get_float32_mode() == "ieee"
    for mode in ("half", None, 3):
        with pytest.raises(ValueError, match=r"mode: expected 'ieee', 'tf32' or 'tf32x3', got "):
            fr.cuda.set_float32_mode(mode)  # type: ignore[arg-type]
    fr.cuda.set_float32_mode("tf32")
    assert fr.cuda.get_float32_mode() == "tf32"
    fr.cuda.set_float32_mode("ieee")


def test_errors_survive_pickling() -> None:
    error = fr.cuda.Error("launch: too much (cudaErrorLaunchOutOfResources)", 701, "name", "launch")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code, again.name, again.place) == (str(error), 701, "name", "launch")
    assert str(error) == "launch: too much (cudaErrorLaunchOutOfResources), code 701"
    assert isinstance(error, RuntimeError)


def test_torch_tensors_on_the_cpu_are_no_gpu_arrays() -> None:
    if EMULATED:
        pytest.skip("the emulated build takes tensors on the CPU for those of its device")
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"x: expected a NumPy array, got Tensor"):
        fr.functional.forward("gru", torch.zeros(1, 1, 2), [np.zeros((9, 2)), np.zeros((9, 3))])
