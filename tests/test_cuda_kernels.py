"""Which kernel runs a layer on a GPU: each against the reference, the choice of the table, and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import reference
from cuda_support import DEVICES, MODULE, converter, host, needs_emulator
from support import CELLS, Problem, random_problem, states_of
from tolerances import relative_error

import fusedrnn as fr
from fusedrnn.cuda.modes import KERNELS

# Relative L2 errors against float64: forward, gradients.
PROMISES = {"ieee": (1e-5, 1e-4), "tf32": (2e-3, 5e-3)}

Emulate = Callable[..., None]


@pytest.fixture
def emulate() -> Iterator[Emulate]:
    """`_cuda.emulate`; the device is the first one again afterwards."""
    assert MODULE is not None
    yield MODULE.emulate
    MODULE.emulate()


@pytest.fixture
def compute_9(device: str) -> Iterator[None]:
    """A device of compute capability 9.0 or later."""
    assert MODULE is not None
    if device == "emulated":
        MODULE.emulate(architecture=90)
    elif MODULE.devices()[0][1] < 90:
        pytest.skip("needs compute capability 9.0")
    yield
    if device == "emulated":
        MODULE.emulate()


def run(problem: Problem, convert: Any, mode: str = "ieee", recompute: bool = False) -> tuple[str, list[Any]]:
    """The kernel of the forward call; y, the final state and the gradients of all parameters."""
    with fr.cuda.set_float32_mode(mode):
        y, state, tape = fr.functional.forward(
            problem.cell,
            convert(problem.x),
            convert(problem.params),
            convert(problem.state),
            recompute=recompute,
            **{**problem.options, "resets": convert(problem.options.get("resets"))},
        )
    grads = fr.functional.backward(tape, convert(problem.dy), convert(problem.dstate))
    return tape._layer.kernel, [y, *states_of(state), grads.x, *grads.params]


def expected(problem: Problem) -> list[Any]:
    """What `run` should return."""
    y, state, tape = problem.run_reference()
    dx, _, params = reference.backward(tape, problem.dy, problem.dstate)
    return [y, *state, dx, *params]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("kernel", "mode"),
    [("step", "ieee"), ("persistent", "ieee"), ("step", "tf32"), ("persistent", "tf32"), ("cluster", "tf32")],
)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.usefixtures("compute_9")
def test_each_kernel_that_is_named_runs(
    recompute: bool, kernel: str, mode: str, cell: str, device: str
) -> None:
    resets = np.random.default_rng(0).random((4, 5)) < 0.3
    lengths = np.array([4, 2, 0, 3, 1])
    problem = random_problem(cell, (4, 5, 6, 40), "float32", lengths=lengths, resets=resets)
    with fr.cuda.set_kernel(kernel):
        ran, results = run(problem, converter("torch", device), mode, recompute)
    assert ran == kernel
    forward, gradient = PROMISES[mode]
    first_gradient = 1 + reference.CELLS[cell].states
    for i, (got, want) in enumerate(zip(results, expected(problem), strict=True)):
        if want is not None:
            assert relative_error(host(got), want) <= (forward if i < first_gradient else gradient)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kernel", "mode"),
    # In tf32 what blocks hand to each other is rounded, and has no such bits.
    [
        ("step", "ieee"),
        ("persistent", "ieee"),
        ("persistent", "tf32x3"),
        ("persistent", "tf32"),
        ("cluster", "tf32"),
    ],
)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("compute_9")
def test_a_nan_of_all_ones_stays_in_its_row(cell: str, kernel: str, mode: str, device: str) -> None:
    """Bits that stand for "not there yet" between the blocks of a persistent kernel."""
    problem = random_problem(cell, (3, 2, 4, 40), "float32")
    ones = np.full(1, -1, np.int32).view(np.float32)[0]
    for states in (problem.state, problem.dstate):
        states_of(states)[0][1] = ones
    with fr.cuda.set_kernel(kernel):
        ran, results = run(problem, converter("torch" if device == "gpu" else "other", device), mode)
    y, dx = host(results[0]), host(results[1 + reference.CELLS[cell].states])
    assert ran == kernel
    assert np.isfinite(y[:, 0]).all()
    assert np.isfinite(dx[:, 0]).all()
    assert np.isnan(y[:, 1]).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.usefixtures("compute_9")
def test_modules_run_on_the_kernel_that_is_named(
    kernel: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    if device == "gpu":
        pytest.importorskip("cupy")
    module = fr.LSTM(5, 24, 2, bidirectional=True, seed=0)
    x = np.random.default_rng(1).normal(size=(3, 2, 5)).astype(np.float32)
    y, _, tape = module.forward(x)
    dx, _ = module.backward(tape, y)
    module.to("cuda")
    convert = converter("torch", device)
    real = MODULE.forward  # type: ignore[union-attr]

    def watched(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        seen.append(result[2].kernel)
        return result

    monkeypatch.setattr(MODULE, "forward", watched)
    with fr.cuda.set_kernel(kernel), fr.cuda.set_float32_mode("tf32"):
        got, _, tape = module.forward(convert(x))
        got_dx, _ = module.backward(tape, got)
    assert seen == [kernel] * 4
    assert relative_error(host(got), y) <= 2e-3
    assert relative_error(host(got_dx), dx) <= 5e-3


@needs_emulator
def test_names_are_those_of_the_table() -> None:
    assert MODULE is not None
    assert MODULE.kernels == KERNELS


@needs_emulator
@pytest.mark.parametrize(
    ("mode", "dtype", "hidden", "device", "kernel"),
    [
        ("tf32", "float32", 16, {"architecture": 90}, "cluster"),
        ("tf32", "float32", 16, {"architecture": 80}, "persistent"),
        ("tf32x3", "float32", 16, {"architecture": 90}, "persistent"),
        ("ieee", "float32", 400, {"architecture": 90, "processors": 25}, "persistent"),
        ("ieee", "float32", 401, {"architecture": 90, "processors": 26}, "step"),
        ("tf32", "float32", 264, {"architecture": 90, "processors": 17}, "persistent"),
        ("tf32", "float32", 264, {"architecture": 90, "processors": 16}, "step"),
        ("ieee", "float64", 16, {"architecture": 90}, "step"),
    ],
)
def test_the_table_chooses(
    mode: str, dtype: str, hidden: int, device: dict[str, int], kernel: str, emulate: Emulate
) -> None:
    problem = random_problem("rnn_tanh", (1, 2, 3, hidden), dtype)
    emulate(**device)
    assert run(problem, converter("other", "emulated"), mode)[0] == kernel


@needs_emulator
@pytest.mark.parametrize(
    ("kernel", "options", "device", "reason"),
    [
        ("cluster", {}, {"architecture": 80}, "device: expected compute capability 90 or later, got 80"),
        ("cluster", {}, {"architecture": 90}, "math: not implemented for ieee"),
        ("persistent", {"dtype": "float64"}, {}, "math: not implemented for f64"),
        ("persistent", {"proj": 3}, {}, "proj_size: expected 0, got 3"),
        ("persistent", {"hidden": 40}, {"processors": 2}, r"H: expected at most 32, .* got 40"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(
    kernel: str, options: dict[str, Any], device: dict[str, int], reason: str, emulate: Emulate
) -> None:
    shape = (2, 2, 3, options.get("hidden", 16))
    problem = random_problem("lstm", shape, options.get("dtype", "float32"), proj=options.get("proj", 0))
    emulate(**device)
    with (
        fr.cuda.set_kernel(kernel),
        pytest.raises(RuntimeError, match=rf"^kernel: {kernel} cannot run this: {reason}$"),
    ):
        run(problem, converter("other", "emulated"))


@needs_emulator
def test_the_environment_names_a_kernel(monkeypatch: pytest.MonkeyPatch, emulate: Emulate) -> None:
    convert = converter("other", "emulated")
    problem = random_problem("gru", (2, 2, 3, 16), "float32")
    emulate()
    assert run(problem, convert, "tf32")[0] == "persistent"
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "step")
    assert run(problem, convert, "tf32")[0] == "step"
    with fr.cuda.set_kernel("persistent"):
        assert run(problem, convert, "tf32")[0] == "persistent"
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "cluster")
    with pytest.raises(RuntimeError, match=r"^FUSEDRNN_CUDA_KERNEL: cluster cannot run this: device: "):
        run(problem, convert)
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "fast")
    with pytest.raises(
        ValueError, match=r"^FUSEDRNN_CUDA_KERNEL: expected one of cluster, persistent, step, got fast$"
    ):
        run(problem, convert)
    monkeypatch.setenv("FUSEDRNN_CUDA_KERNEL", "")
    assert run(problem, convert, "tf32")[0] == "persistent"


@needs_emulator
def test_backward_uses_the_kernel_of_its_forward(emulate: Emulate) -> None:
    convert = converter("other", "emulated")
    problem = random_problem("gru", (2, 2, 3, 24), "float32")

    def forward() -> Any:
        with fr.cuda.set_float32_mode("tf32"):
            return fr.functional.forward("gru", convert(problem.x), convert(problem.params))[2]

    emulate()
    with fr.cuda.set_kernel("persistent"):
        named = forward()
    free = forward()
    assert named._layer.kernel == free._layer.kernel == "persistent"
    emulate(processors=1)
    with pytest.raises(RuntimeError, match=r"^kernel: persistent cannot run this: H: expected at most 16, "):
        fr.functional.backward(named, convert(problem.dy))
    fr.functional.backward(free, convert(problem.dy))


def test_set_kernel() -> None:
    assert fr.cuda.get_kernel() is None
    with fr.cuda.set_kernel("step"):
        with fr.cuda.set_kernel(None):
            assert fr.cuda.get_kernel() is None
        assert fr.cuda.get_kernel() == "step"
    assert fr.cuda.get_kernel() is None
    for name in ("fast", "", 3):
        with pytest.raises(ValueError, match=r"name: expected 'cluster', 'persistent', 'step' or None, got "):
            fr.cuda.set_kernel(name)  # type: ignore[arg-type]
    assert fr.cuda.get_kernel() is None
