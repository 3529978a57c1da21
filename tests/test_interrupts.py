"""Signal handlers run inside every long call, and with the floating-point state of the caller."""

from __future__ import annotations

import ctypes
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from support import num_threads, random_problem

import fusedrnn as fr
from fusedrnn import _core, init

# Rounding modes of <fenv.h>, which differ by processor; to nearest is 0 on each.
MODES = {"x86_64": (0x800, 0x400), "aarch64": (0x400000, 0x800000)}
UPWARD, DOWNWARD = MODES.get(platform.machine(), (0, 0))
libm = ctypes.CDLL(None)


@contextmanager
def handled(handler: Callable[[], None]) -> Iterator[None]:
    """Every 10 ms of the process, a Python signal handler."""
    before = signal.signal(signal.SIGPROF, lambda *_: handler())
    signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def normal(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng(0).standard_normal(shape, dtype=dtype)


def linear(n: int) -> Callable[[], Any]:
    x, weight = normal(2000 * n, 1000), normal(1000, 1000)
    return lambda: _core.linear_forward(x, weight, None)


def linear_backward(n: int) -> Callable[[], Any]:
    x, weight, dy = normal(1000 * n, 1000), normal(1000, 1000), normal(1000 * n, 1000)
    return lambda: _core.linear_backward(x, weight, dy, np.zeros_like(weight), None, True)


def packing(n: int) -> Callable[[], Any]:
    problem = random_problem("lstm", (1, 1, 1, 1000), "float32")
    w = np.broadcast_to(np.float32(0.01), (4000, 2000 * n)).copy()
    x, params = np.zeros((0, 1, 2000 * n), "float32"), (w, *problem.params[1:])
    return lambda: _core.forward("lstm", x, params, save=True)


def packing_of_a_stream(n: int) -> Callable[[], Any]:
    problem = random_problem("lstm", (1, 1, 1, 1000), "float32")
    w = np.broadcast_to(np.float32(0.01), (4000, 4000 * n)).copy()
    return lambda: _core.Stream("lstm", [(w, *problem.params[1:])], 1)


def quantizing(n: int) -> Callable[[], Any]:
    problem = random_problem("lstm", (1, 1, 1, 1000), "float32")
    w = np.broadcast_to(np.float32(0.01), (4000, 2000 * n)).copy()
    return lambda: _core.Quantized("lstm", [[(w, *problem.params[1:])]], "bf16")


def one_step(n: int) -> Callable[[], Any]:
    problem = random_problem("lstm", (1, 500 * n, 600, 600), "float32")
    return lambda: problem.run()


def one_step_backward(n: int) -> Callable[[], Any]:
    problem = random_problem("lstm", (1, 200 * n, 600, 600), "float32")
    tape = problem.with_(options={"recompute": True}).run()[2]
    return lambda: fr.functional.backward(tape, problem.dy)


def one_step_projected(n: int) -> Callable[[], Any]:
    problem = random_problem("lstm", (1, 500 * n, 600, 600), "float32", proj=500)
    return lambda: problem.run()


def one_block_of_inputs(n: int) -> Callable[[], Any]:
    problem = random_problem("gru", (2, 1000 * n, 2000, 100), "float32")
    return lambda: problem.run()


def a_step_of_a_stream(n: int) -> Callable[[], Any]:
    step = fr.GRU(600, 600, init="torch", seed=0).stream(500 * n)
    x = normal(500 * n, 600)
    return lambda: step(x)


def a_step_of_a_quantized_stream(n: int) -> Callable[[], Any]:
    step = fr.GRU(600, 600, init="torch", seed=0).quantize("bf16").stream(200 * n)
    x = normal(200 * n, 600)
    return lambda: step(x)


def orthogonal(n: int) -> Callable[[], Any]:
    return lambda: init.orthogonal(np.empty((400 * n, 400 * n), "float32"), rng=0)


def uniform(n: int) -> Callable[[], Any]:
    return lambda: init.xavier_uniform(np.empty((4000 * n, 4000), "float32"), rng=0)


def ctc(n: int) -> Callable[[], Any]:
    """One sequence: whoever looks at the clock between sequences alone never does."""
    logits, targets = normal(2000 * n, 1, 60), np.ones((1, 300), np.int64)
    return lambda: _core.ctc_loss(logits, targets, np.array([2000 * n]), np.array([300]), 0, True, False)


def ctc_in_logarithms(n: int) -> Callable[[], Any]:
    logits, targets = normal(500 * n, 1, 60) * 1000, np.ones((1, 200), np.int64)
    return lambda: _core.ctc_loss(logits, targets, np.array([500 * n]), np.array([200]), 0, True, False)


def ctc_beam_search(n: int) -> Callable[[], Any]:
    logits = normal(500 * n, 1, 1000)
    return lambda: fr.ctc_decode(logits, beam=20)


def crf_loss(n: int) -> Callable[[], Any]:
    crf, emissions, tags = fr.CRF(300, seed=0), normal(1000 * n, 1, 300), np.zeros((1000 * n, 1), np.int64)
    return lambda: crf.loss(emissions, tags)


def crf_viterbi(n: int) -> Callable[[], Any]:
    crf, emissions = fr.CRF(300, seed=0), normal(2000 * n, 1, 300)
    return lambda: crf.decode(emissions)


def decoder_forward(n: int) -> Callable[[], Any]:
    decoder = fr.AttentionDecoder("gru", 8, 16, 64, 64, score="location", location_filters=20, seed=0)
    x, memory = normal(20 * n, 1, 8), normal(3000, 1, 64)
    return lambda: decoder(x, memory)


def decoder_backward(n: int) -> Callable[[], Any]:
    decoder = fr.AttentionDecoder("gru", 8, 16, 64, 64, score="location", location_filters=20, seed=0)
    y, _, _, tape = decoder.forward(normal(10 * n, 1, 8), normal(3000, 1, 64))
    return lambda: decoder.backward(tape, y)


def decoder_search(n: int) -> Callable[[], Any]:
    decoder, head = fr.AttentionDecoder("gru", 8, 64, 16, seed=0), fr.Linear(64, 3000, seed=1)
    head.parameters["bias"][1] = -np.inf  # nothing ends before max_len
    model, memory = (fr.Embedding(3000, 8, seed=2), decoder, head), normal(20, 1, 16)
    return lambda: fr.decode.beam_search(model, memory, 0, 1, 20, 50 * n)


def quantum_forward(n: int) -> Callable[[], Any]:
    network, x = fr.QuantumLSTM(2, 4, qubits=8, layers=4, seed=0), normal(500 * n, 1, 2)
    return lambda: network(x)


def quantum_backward(n: int) -> Callable[[], Any]:
    network = fr.QuantumLSTM(2, 4, qubits=8, layers=4, seed=0)
    y, _, tape = network.forward(normal(200 * n, 1, 2))
    return lambda: network.backward(tape, y)


LONG_CALLS = [
    quantum_forward,
    quantum_backward,
    decoder_forward,
    decoder_backward,
    decoder_search,
    ctc,
    ctc_in_logarithms,
    ctc_beam_search,
    crf_loss,
    crf_viterbi,
    linear,
    linear_backward,
    packing,
    packing_of_a_stream,
    quantizing,
    one_step,
    one_step_backward,
    one_step_projected,
    one_block_of_inputs,
    a_step_of_a_stream,
    a_step_of_a_quantized_stream,
    orthogonal,
    uniform,
]


@pytest.mark.once
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", LONG_CALLS, ids=lambda make: make.__name__)
def test_handlers_run_inside_long_calls(make: Callable[[int], Callable[[], Any]], threads: int) -> None:
    """Again and again in 0.4 seconds of the processor; one that waits for the end of the call runs once."""
    with num_threads(threads):
        for n in (1, 2, 4, 8, 16, 32):
            call, runs = make(n), []
            with handled(lambda runs=runs: runs.append(time.process_time())):  # type: ignore[misc]
                start = time.process_time()
                call()
                end = time.process_time()
            if end - start > 0.4:
                break
        inside = [moment for moment in runs if moment < end - 0.01]
        assert len(inside) >= 3


def gradual_underflow() -> bool:
    tiny = np.full(64, np.finfo(np.float32).tiny, np.float32)
    halves = tiny * np.float32(0.5)
    return bool((halves > 0).all() and (halves + halves == tiny).all()) and 2.0**-1022 / 2 > 0


@pytest.mark.once
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", [linear, one_step, packing], ids=lambda make: make.__name__)
def test_handlers_see_gradual_underflow(make: Callable[[int], Callable[[], Any]], threads: int) -> None:
    with num_threads(threads):
        for n in (4, 8, 16, 32):
            call, seen = make(n), []
            with handled(lambda seen=seen: seen.append(gradual_underflow())):  # type: ignore[misc]
                call()
            if len(seen) > 2:
                break
        assert len(seen) > 2 and all(seen)
        assert gradual_underflow()


@pytest.fixture
def nearest() -> Iterator[None]:
    """Rounding to nearest again afterwards."""
    if not UPWARD:
        pytest.skip("the rounding modes of this processor are not known here")
    yield
    libm.fesetround(0)


@pytest.mark.usefixtures("nearest")
def test_the_callers_rounding_does_not_reach_the_kernels() -> None:
    """Not on any thread, nor while weights are packed; and it is the caller's again afterwards."""
    problem = random_problem("gru", (6, 9, 8, 40), "float32")
    x, weight = normal(400, 300), normal(200, 300)
    network = fr.GRU(8, 40, seed=0)

    def results() -> list[bytes]:
        y, state, tape = problem.run()
        grads = fr.functional.backward(tape, problem.dy, problem.dstate)
        quantized = network.quantize("int8")(problem.x)[0]
        arrays = [y, *state, grads.x, *grads.params[:4], quantized, network.stream(9)(problem.x[0])]
        arrays += [_core.linear_forward(x, weight, None), _core.tanh(x), np.float64(_core.norm(x, 3.0))]
        return [np.asarray(array).tobytes() for array in arrays]

    with num_threads(1):
        want = results()
    for threads in (1, 2, 3):
        with num_threads(threads):
            libm.fesetround(UPWARD)
            got = results()
            assert libm.fegetround() == UPWARD
            libm.fesetround(0)
            assert got == want


@pytest.mark.once
@pytest.mark.usefixtures("nearest")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_handler_has_and_may_set_the_callers_rounding(threads: int) -> None:
    modes = []

    def handler() -> None:
        modes.append(libm.fegetround())
        libm.fesetround(DOWNWARD)

    call = linear(4)
    want = call()
    with num_threads(threads), handled(handler):
        libm.fesetround(UPWARD)
        got = call()
        left = libm.fegetround()
        libm.fesetround(0)
    assert len(modes) > 2 and modes[0] == UPWARD and set(modes[1:]) <= {DOWNWARD, 0}
    assert left == DOWNWARD and np.array_equal(got, want)


def interrupted_backward(module: Any, steps: int, zeros: bool) -> int:
    """Ctrl-C at the first, second, fourth, ... moment of a backward; return how often it came."""
    y, _, tape = module.forward(normal(steps, 32, 128))
    dy = np.ones_like(y)
    module.zero_grad()
    if not zeros:
        module.backward(tape, dy)
    before = module.flat_grads.copy()
    module.backward(tape, dy)
    want = module.flat_grads.copy()
    interrupted = moment = 0
    while True:
        moment += 1 + moment // 2
        module.flat_grads[...] = before
        left = [moment]

        def handler(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        try:
            with handled(handler):
                module.backward(tape, dy)
        except KeyboardInterrupt:
            interrupted += 1
            assert np.array_equal(module.flat_grads, before) or np.array_equal(module.flat_grads, want)
        else:
            assert np.array_equal(module.flat_grads, want)
            return interrupted


@pytest.mark.once
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_backward_of_a_stack_adds_nothing(threads: int, zeros: bool) -> None:
    """Wherever Ctrl-C comes, gradients are as before; the call after it adds all of them.

    A busy machine makes one signal of several: then there are few moments in a backward that is not longer.
    """
    with num_threads(threads):
        module = fr.GRU(128, 128, 4, bidirectional=True, dropout=0.1, init="torch", seed=0)
        assert any(interrupted_backward(module, steps, zeros) > 2 for steps in (60, 120, 240, 480, 960))


@pytest.mark.once
def test_a_short_backward_of_a_stack_is_one_call() -> None:
    """Stages that take a moment run in one piece, each once, and say what they did; longer ones do not."""

    def staged(steps: int) -> Any:
        layers = fr.GRU(64, 64, 2, seed=0).forward(normal(steps, 32, 64))[2].layers
        dy = normal(steps, 32, 64)
        return _core.StagedCalls([[_core.BackwardCall(layer, dy)] for layer in layers])

    apart, together = staged(1), staged(1)
    assert together.run_if_short() and not together.run_if_short()
    for _ in range(2):
        (want,), (got,) = apart.run(), together.run()
        assert all(np.array_equal(a, b) for a, b in zip(want[2][:4], got[2][:4], strict=True))
    with pytest.raises(ValueError, match="a stage that has not run"):
        together.run()
    assert not apart.run_if_short() and not staged(100).run_if_short()
