"""What a newcomer does first: errors name the argument that was given, and say what to do."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_support import EMULATED

import fusedrnn as fr
from fusedrnn.cuda.backend import CudaBackend
from fusedrnn.libraries import needed

X64 = np.random.default_rng(0).standard_normal((7, 2, 3))
X = X64.astype(np.float32)
H = np.zeros((1, 2, 5), np.float32)
LSTM, FIRST, GRU = fr.LSTM(3, 5), fr.LSTM(3, 5, batch_first=True), fr.GRU(3, 5)
DEEP, CELL, LINEAR = fr.LSTM(3, 5, 2, bidirectional=True), fr.LSTMCell(3, 5), fr.Linear(3, 4)
NORM, QUANTIZED = fr.LayerNorm(3), fr.LSTM(3, 5).quantize("int8")
PARAMS = {name.removesuffix("_l0"): array for name, array in LSTM.state_dict().items()}
TAKE_X: dict[str, Callable[[Any], Any]] = {
    "lstm": LSTM,
    "lstm_forward": LSTM.forward,
    "batch_first": FIRST,
    "deep": DEEP,
    "gru": GRU,
    "cell": lambda x: CELL(x[0]),
    "cell_forward": lambda x: CELL.forward(x[0]),
    "linear": LINEAR,
    "linear_forward": LINEAR.forward,
    "layer_norm": NORM,
    "layer_norm_forward": NORM.forward,
    "stream": lambda x: fr.LSTM(3, 5).stream(2)(x[0]),
    "quantized": QUANTIZED,
    "quantized_stream": lambda x: QUANTIZED.stream(2)(x[0]),
    "functional": lambda x: fr.functional.forward("lstm", x, PARAMS),
}


class Tensor:
    """What errors see of a tensor of PyTorch."""

    def __init__(
        self, requires_grad: bool = False, device: str = "cpu", dtype: str = "torch.float32"
    ) -> None:
        self.requires_grad, self.device, self.dtype = requires_grad, device, dtype

    def __getitem__(self, index: int) -> Tensor:
        return self

    def detach(self) -> Tensor:
        return self


@pytest.mark.parametrize("name", TAKE_X)
def test_float64_is_about_x(name: str) -> None:
    """`np.random.randn` goes into a float32 module."""
    with pytest.raises(
        TypeError, match=r"^x: expected dtype float32 as .*, got float64; use x\.astype\('float32'\)"
    ):
        TAKE_X[name](X64)


@pytest.mark.parametrize("name", TAKE_X)
def test_integers_are_about_x(name: str) -> None:
    with pytest.raises(
        TypeError, match=r"^x: expected dtype float32.*, got int64; use x\.astype\('float32'\)$"
    ):
        TAKE_X[name](np.ones(X.shape, np.int64))


@pytest.mark.parametrize("name", [n for n in TAKE_X if "stream" not in n and n != "functional"])
def test_float32_into_a_module_of_float64(name: str) -> None:
    make: dict[str, Callable[[Any], Any]] = {
        "linear": fr.Linear(3, 4, dtype="float64"),
        "layer_norm": fr.LayerNorm(3, dtype="float64"),
        "cell": lambda x: fr.GRUCell(3, 5, dtype="float64")(x[0]),
    }
    call = make.get(name.removesuffix("_forward"), fr.GRU(3, 5, 2, dtype="float64"))
    with pytest.raises(
        TypeError, match=r"^x: expected dtype float64 as .*, got float32; use x\.astype\('float64'\)"
    ):
        call(X)


def test_parameters_that_differ_are_named() -> None:
    """With an x that fits the others, it is the odd parameter."""
    for name in ("weight_hh", "bias_ih", "bias_hh"):
        with pytest.raises(
            TypeError, match=rf"^{name}: expected dtype float32 as x, got float64; use {name}\.astype"
        ):
            fr.functional.forward("lstm", X, {**PARAMS, name: PARAMS[name].astype(np.float64)})


@pytest.mark.parametrize("name", TAKE_X)
def test_tensors_are_told_the_way(name: str) -> None:
    with pytest.raises(TypeError, match=r"^x: expected .*, got Tensor.*; use x(\.detach\(\))?\.numpy\(\)"):
        TAKE_X[name](Tensor())


def test_the_way_of_each_tensor() -> None:
    for tensor, way in (
        (Tensor(), "got Tensor; use x.numpy()"),
        (Tensor(True), "got Tensor that requires grad; use x.detach().numpy(): gradients are those that"),
        (Tensor(device="cuda:0"), "got Tensor; use x.cpu().numpy()"),
        (Tensor(dtype="torch.bfloat16"), "got Tensor; use x.float().numpy()"),
    ):
        with pytest.raises(TypeError, match=re.escape(way)):
            LSTM(tensor)  # type: ignore[arg-type]


@pytest.mark.skipif(EMULATED, reason="the emulator's device memory is the host's: tensors are on its GPU")
def test_tensors_of_torch_are_refused() -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor(X)
    with pytest.raises(
        TypeError, match=r"^x: expected a numpy.ndarray of float32, got Tensor; use x\.numpy\(\)$"
    ):
        LSTM(x)
    with pytest.raises(TypeError, match=r"requires grad; use x\.detach\(\)\.numpy\(\)"):
        LSTM(x.clone().requires_grad_())


def test_tensors_of_torch() -> None:
    """What the errors say works, and copies nothing; numbers and masks go in as they are."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(X)
    assert np.shares_memory(x.numpy(), x.numpy())
    want = LSTM(X, lengths=[3, 7], resets=X[..., 0] > 0)[0]
    lengths, resets = torch.tensor([3, 7]), torch.tensor(X[..., 0] > 0)
    assert np.array_equal(LSTM(x.numpy(), lengths=lengths, resets=resets)[0], want)
    LSTM.load_state_dict({name: torch.tensor(a).requires_grad_() for name, a in LSTM.state_dict().items()})


MESSAGES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "list": (
        lambda: LSTM(X.tolist()),
        TypeError,
        "x: expected a numpy.ndarray of float32, got list; use numpy.asarray(x)",
    ),
    "tokens": (
        lambda: LSTM(np.array([[1, 2], [3, 4]])),
        ValueError,
        "got (2, 2); numbers of tokens go through an Embedding first",
    ),
    "state_as_two": (
        lambda: LSTM(X, H, H),  # type: ignore[call-arg]
        TypeError,
        "state: expected a tuple (h, c), got ndarray",
    ),
    "state_as_two_gru": (
        lambda: GRU(X, H, H),
        TypeError,
        "lengths: expected an integer dtype, got float32; a state of two arrays is one pair, (h, c)",
    ),
    "state_dtype": (
        lambda: LSTM(X, (H.astype("f8"), H)),
        TypeError,
        "state[0]: expected float32, got float64; use state[0].astype('float32')",
    ),
    "state_batch": (
        lambda: LSTM(X.transpose(1, 0, 2), (H, H)),
        ValueError,
        "state[0]: expected shape (num_layers*D, B, H) = (1, 7, 5), got (1, 2, 5); "
        "x is (T, B, I) = (2, 7, 3), with batch_first=True (B, T, I)",
    ),
    "state_count": (lambda: GRU(X, (H, H)), ValueError, "state: expected 1 array(s) (h), got 2"),
    "lengths_batch": (
        lambda: FIRST(X, lengths=[1, 2]),
        ValueError,
        "lengths: expected shape (B,) = (7,), got (2,); "
        "x is (B, T, I) = (7, 2, 3), with batch_first=False (T, B, I)",
    ),
    "resets": (
        lambda: LSTM(X, resets=np.zeros((2, 7), bool)),
        ValueError,
        "resets: expected shape (T, B) = (7, 2), got (2, 7)",
    ),
    "mask": (
        lambda: FIRST(X, mask=np.zeros((2, 7), bool)),
        ValueError,
        "mask: expected shape (B, T) = (7, 2), got (2, 7)",
    ),
    "mask_dtype": (
        lambda: LSTM(X, mask=np.ones((7, 2))),
        TypeError,
        "mask: expected bool, got float64; use mask.astype('bool')",
    ),
    "dy_dtype": (
        lambda: LSTM.backward(LSTM.forward(X)[2], np.ones((7, 2, 5))),
        TypeError,
        "dy: expected float32, got float64; use dy.astype('float32')",
    ),
    "functional_dy": (
        lambda: fr.functional.backward(fr.functional.forward("lstm", X, PARAMS)[2], np.ones((7, 2, 5))),
        TypeError,
        "dy: expected dtype float32 as x, got float64; use dy.astype('float32')",
    ),
    "tape": (
        lambda: LSTM.backward(LSTM.forward(X), np.ones((7, 2, 5), np.float32)),  # type: ignore[arg-type]
        TypeError,
        "tape: expected a Tape, got tuple; it is the last of what forward returns",
    ),
    "functional_tape": (
        lambda: fr.functional.backward(X, X),  # type: ignore[arg-type]
        TypeError,
        "tape: expected a FunctionalTape, got ndarray; it is the last of what forward returns",
    ),
    "one_hot": (
        lambda: fr.cross_entropy(np.zeros((3, 4)), np.eye(4)[:3]),
        ValueError,
        "targets: expected shape (...) = (3,), got (3, 4); use targets.argmax(-1) for the numbers of classes",
    ),
    "mse_int": (
        lambda: fr.mse_loss(np.zeros(3, int), np.zeros(3)),
        TypeError,
        "pred: expected a float32 or float64 numpy.ndarray, got int64; use pred.astype('float32')",
    ),
    "lookup": (
        lambda: fr.Lookup(np.zeros((5, 3), int), [[1]]).rows(),
        TypeError,
        "table: expected float32 or float64, got int64",
    ),
    "adam_parameters": (
        lambda: fr.optim.Adam(LSTM.parameters),  # type: ignore[arg-type]
        TypeError,
        "modules: expected a Module or a list of them, got ParameterDict; "
        "give the module itself, as in Adam(lstm), not its parameters",
    ),
    "adam_called": (
        lambda: fr.optim.Adam(LSTM.parameters()),
        TypeError,
        "parameters and grads are dictionaries {name: array}, not methods: leave out the parentheses; "
        "optimisers and clip_grad_norm take the module itself, as in Adam(lstm)",
    ),
    "adam_values": (
        lambda: fr.optim.Adam(LSTM.parameters.values()),  # type: ignore[arg-type]
        TypeError,
        "got ndarray; give the module itself, as in Adam(lstm), not its parameters",
    ),
    "adam_groups": (
        lambda: fr.optim.Adam([{"params": LSTM.parameters}]),
        TypeError,
        "got ParameterDict; give the module itself, as in Adam(lstm), not its parameters",
    ),
    "clip": (
        lambda: fr.clip_grad_norm(LSTM.parameters, 1.0),  # type: ignore[arg-type]
        TypeError,
        "got ParameterDict; give the module itself, as in Adam(lstm), not its parameters",
    ),
    "array_for_a_size": (
        lambda: fr.LSTM(X, 5),  # type: ignore[arg-type]
        TypeError,
        "input_size: expected an int, got ndarray of shape (7, 2, 3)",
    ),
    "list_for_a_number": (
        lambda: fr.Dropout([0.5] * 1000),  # type: ignore[arg-type]
        TypeError,
        f"p: expected a number, got {str([0.5] * 1000)[:100]}...",
    ),
    "list_of_modules": (
        lambda: fr.Sequential([GRU, LINEAR]),  # type: ignore[arg-type]
        TypeError,
        "modules[0]: expected a Module, got list; use *modules",
    ),
    "weights_of_a_whole_model": (
        lambda: GRU.load_state_dict({f"rnn.{name}": value for name, value in GRU.state_dict().items()}),
        ValueError,
        "; those behind 'rnn.' fit: give them without it, by removeprefix",
    ),
    "weights_of_another_model": (
        lambda: GRU.load_state_dict({"rnn.weight_ih_l0": H}),
        ValueError,
        "; unexpected: rnn.weight_ih_l0",
    ),
    "load_with_the_model": (
        lambda: fr.load(LSTM, "model.safetensors"),  # type: ignore[arg-type]
        TypeError,
        "path: expected a path, got LSTM; load(path) makes the model, too",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), MESSAGES.values(), ids=MESSAGES)
def test_messages(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)) as caught:
        call()
    assert type(caught.value) is kind and str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("code", "library", "message"),
    [
        ("fr.estimators", "sklearn", "fusedrnn.estimators needs scikit-learn; run: pip install scikit-learn"),
        ("fr.torch", "torch", "fusedrnn.torch needs torch; run: pip install torch"),
        ("fr.jax", "jax", "fusedrnn.jax needs jax; run: pip install jax"),
        ("fr.keras", "h5py", "fusedrnn.keras needs h5py; run: pip install h5py"),
        ("fr.autograd", "autograd", "fusedrnn.autograd needs autograd; run: pip install autograd"),
        ("fr.onnx.load('m.onnx')", "onnx", "fusedrnn.onnx needs onnx; run: pip install onnx"),
        ("fr.onnx.save(fr.GRU(3, 5), 'm')", "onnx", "fusedrnn.onnx needs onnx; run: pip install onnx"),
    ],
)
@pytest.mark.once
def test_a_missing_library_is_named(code: str, library: str, message: str) -> None:
    program = f"import sys, fusedrnn as fr; sys.modules[{library!r}] = None; {code}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ended.stderr.splitlines()[-1] == f"ModuleNotFoundError: {message}"


def test_what_a_library_itself_lacks_is_not_ours_to_say() -> None:
    for error in (ModuleNotFoundError("of numpy", name="numpy"), ImportError("broken", name="torch")):
        with pytest.raises(ImportError) as caught, needed("fusedrnn.torch", "torch"):
            raise error
        assert caught.value is error


def test_options_by_position_and_by_name() -> None:
    """`functional.forward` and modules take lengths, resets and reset_state alike."""
    lengths, resets = np.array([3, 7]), X[..., 0] > 0
    fresh = (H[0], H[0])
    ours = fr.functional.forward("lstm", X, PARAMS, None, lengths, resets, fresh)[0]
    named = fr.functional.forward("lstm", X, PARAMS, lengths=lengths, resets=resets, reset_state=fresh)[0]
    assert np.array_equal(ours, named)
    assert np.array_equal(ours, LSTM(X, None, lengths, resets)[0])


class OnGpu:
    """What a module on a GPU sees of an array there."""

    __cuda_array_interface__: Any = None

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)


def test_float64_is_about_x_on_a_gpu() -> None:
    backend: Any = object.__new__(CudaBackend)
    match = r"^x: expected float32 as the parameters, got float64; convert x to float32$"
    with pytest.raises(TypeError, match=match):
        backend.for_input(OnGpu("float64"), np.dtype(np.float32))
    for x in (OnGpu("float32"), [1.0], None):
        assert backend.for_input(x, np.dtype(np.float32)) is backend
