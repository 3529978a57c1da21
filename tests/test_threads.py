"""The same bits for every thread count and run; shared modules, the caller's FP state."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support import (
    CELLS,
    DTYPES,
    HOST_CELLS,
    assert_ran,
    in_threads,
    make_module,
    num_threads,
    random_lengths,
    random_problem,
    run_python,
    states_of,
)

import fusedrnn as fr
from fusedrnn import _core


def digest(*arrays: Any) -> str:
    """A hash of the bytes of all arrays."""
    total = hashlib.sha256()
    for a in arrays:
        if a is not None:
            total.update(np.ascontiguousarray(a).tobytes())
    return total.hexdigest()


def run_all(problem: Any) -> str:
    y, state, tape = problem.run()
    grads = fr.functional.backward(tape, problem.dy, problem.dstate)
    return digest(y, *state, grads.x, *states_of(grads.state), *grads.params)


# (T, B, I, H): few and many rows, few and many units, so that every way of sharing the work is taken.
SHAPES = [
    (12, 1, 8, 16),
    (6, 1, 40, 200),
    (5, 2, 3, 130),
    (6, 5, 9, 65),
    (4, 40, 7, 33),
    (3, 67, 20, 5),
    (40, 8, 16, 64),
    (60, 20, 5, 35),  # several blocks of gradients
    (9, 130, 3, 140),  # of two steps each
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("cell", "proj"), [*((cell, 0) for cell in CELLS), ("lstm", 4)])
def test_same_bits_for_every_thread_count(
    cell: str, proj: int, shape: tuple[int, int, int, int], dtype: str
) -> None:
    rng = np.random.default_rng(0)
    plain = random_problem(cell, shape, dtype, proj=proj)
    masked = [
        random_problem(
            cell,
            shape,
            dtype,
            proj=proj,
            lengths=random_lengths(rng, *shape[:2]),
            resets=rng.random(shape[:2]) < 0.2,
            reverse=reverse,
        )
        for reverse in (True, False)
    ]
    for problem in (plain, *masked):
        seen = set()
        for n in (1, 2, 3, 2, 1):
            with num_threads(n):
                assert fr.get_num_threads() == n
                seen.add(run_all(problem))
        assert len(seen) == 1


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_same_bits_for_stacks(cell: str) -> None:
    """Two bidirectional layers, the projections between them, and a linear layer on top."""
    module = make_module(cell, 9, 34, 2, bidirectional=True, dtype="float32")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(11, 6, 9)).astype("float32")
    head = fr.Linear(module(x)[0].shape[-1], 50, seed=0)
    dy = rng.normal(size=(11, 6, 50)).astype("float32")
    seen = set()
    for n in (1, 2, 3):
        with num_threads(n):
            module.zero_grad()
            head.zero_grad()
            y, state, tape = module.forward(x)
            z, head_tape = head.forward(y)
            dx, dstate = module.backward(tape, head.backward(head_tape, dy))
            seen.add(
                digest(
                    z, *states_of(state), dx, *states_of(dstate), *module.grads.values(), *head.grads.values()
                )
            )
    assert len(seen) == 1


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize(
    ("layers", "bidirectional"),
    [
        (2, True),
        *(pytest.param(*shape, marks=pytest.mark.once) for shape in [(1, True), (2, False), (5, False)]),
    ],
)
@pytest.mark.parametrize("cell", HOST_CELLS)
def test_same_bits_for_calls_at_once(cell: str, layers: int, bidirectional: bool, masked: bool) -> None:
    """One row is too little for a team: directions and layers run on a thread each."""
    seq_len = 300
    module = make_module(cell, 20, 64, layers, bidirectional=bidirectional, dtype="float32")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(seq_len, 2, 20)).astype("float32")
    options: dict[str, Any] = {}
    if masked:
        options = {"lengths": [seq_len - 7, seq_len // 2], "resets": rng.random(x.shape[:2]) < 0.1}
    dy = rng.normal(size=(seq_len, 2, module(x)[0].shape[-1])).astype("float32")
    seen = set()
    for n in (1, 2, 3, 2, 1):
        with num_threads(n):
            module.zero_grad()
            y, state, tape = module.forward(x, **options)
            dx, dstate = module.backward(tape, dy)
            grads = digest(*module.grads.values())
            module.zero_grad()
            assert module.backward(tape, dy, need_dx=False)[0] is None
            assert digest(*module.grads.values()) == grads
            inference, final = module(x, **options)
            assert np.array_equal(inference, y)
            assert digest(*states_of(final)) == digest(*states_of(state))
            seen.add(digest(y, *states_of(state), dx, *states_of(dstate), *module.grads.values()))
    assert len(seen) == 1


def calls_of(count: int, **changes: Any) -> list[Any]:
    """Forward calls of one LSTM layer on inputs of their own, each worth a thread, the first the longest."""
    sizes = [600] + [24] * (count - 1)
    problems = [random_problem("lstm", (200, 1, size, 64), "float32", seed=i) for i, size in enumerate(sizes)]
    return [_core.ForwardCall("lstm", p.x, p.params, p.state, **changes) for p in problems]


def test_calls_run_once() -> None:
    calls = calls_of(2)
    with pytest.raises(ValueError, match="calls: expected different calls, got one twice"):
        _core.run_calls([calls[0], calls[0]])
    results = _core.run_calls(calls)
    assert [y.shape for y, _, _ in results] == [(200, 1, 64)] * 2
    with pytest.raises(ValueError, match="calls: expected calls that have not run, got one that has"):
        _core.run_calls(calls[:1])
    assert _core.run_calls([]) == []
    for wrong in (None, (), np.zeros(2), [None], [calls[0], "call"]):
        with pytest.raises(TypeError, match="calls: expected"):
            _core.run_calls(wrong)  # type: ignore[call-overload]


def test_stages_run_one_after_another() -> None:
    with num_threads(2):
        want = _core.run_calls(calls_of(2))
        calls = [*calls_of(2), *calls_of(2)]
        staged = _core.StagedCalls([calls[:2], [], calls[2:]])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="calls: expected calls that have not run, got one that has"):
            _core.run_calls(calls[:1])
        first, none, last = staged.run(), staged.run(), staged.run()
    assert none == []
    for got in (first, last):
        for (y, _, _), (expected, _, _) in zip(got, want, strict=True):
            assert np.array_equal(y, expected)
    with pytest.raises(ValueError, match="calls: expected a stage that has not run, got none"):
        staged.run()
    fresh = calls_of(1)[0]
    with pytest.raises(ValueError, match="calls: expected different calls, got one twice"):
        _core.StagedCalls([[fresh], [fresh]])  # type: ignore[list-item]
    for wrong in (None, (), [None], [[None]]):
        with pytest.raises(TypeError, match=r"(stages|calls): expected"):
            _core.StagedCalls(wrong)  # type: ignore[arg-type]


def test_one_thread_runs_the_stages() -> None:
    """Two that meet get an error, not each other's workspace."""
    x = np.ones((4000, 1, 64), "float32")
    weights = random_problem("lstm", (1, 1, 64, 64), "float32").params
    staged = _core.StagedCalls([[_core.ForwardCall("lstm", x, weights)] for _ in range(2)])  # type: ignore[list-item]
    errors: list[str] = []

    def run() -> None:
        try:
            staged.run()
        except RuntimeError as error:
            errors.append(str(error))

    in_threads(run, 2)
    assert errors in ([], ["calls: expected one thread to run them, got two"])


def test_calls_that_share_an_output_run_in_turn() -> None:
    """The last of two calls that write the same array has the say, as if they had been made one by one."""
    out = np.zeros((200, 1, 64), "float32")
    with num_threads(2):
        _core.run_calls(calls_of(2, out=out))
        want = _core.run_calls(calls_of(2))[1][0]
    assert np.array_equal(out, want)


def test_a_call_follows_another() -> None:
    """A call whose input is the output of the one before waits for its steps."""
    first = random_problem("lstm", (400, 1, 64, 64), "float32")
    weights = random_problem("gru", (1, 1, 64, 64), "float32").params
    want = None
    for n in (1, 2, 2, 2, 3):
        between, out = (np.full((400, 1, 64), np.nan, "float32") for _ in range(2))
        calls = [
            _core.ForwardCall("lstm", first.x, first.params, out=between),
            _core.ForwardCall("gru", between, weights, out=out),
        ]
        with num_threads(n):
            _core.run_calls(calls)
        want = out if want is None else want
        assert np.array_equal(out, want)


@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_for_every_run(cell: str) -> None:
    problem = random_problem(cell, (9, 17, 12, 40), "float32")
    with num_threads(3):
        assert len({run_all(problem) for _ in range(20)}) == 1


def test_same_bits_in_every_process() -> None:
    """Another process with another thread count, and other addresses, gives the same bits."""
    code = """
from support import random_problem
from test_threads import run_all
print(run_all(random_problem("gru", (9, 17, 12, 40), "float32")))
"""
    want = run_all(random_problem("gru", (9, 17, 12, 40), "float32"))
    for n in ("1", "2", "3"):
        done = run_python("-c", code, FUSEDRNN_NUM_THREADS=n)
        assert_ran(done)
        assert done.stdout.split() == [want]


def test_rows_do_not_depend_on_their_place() -> None:
    """A row gives the same bits wherever in the batch it stands."""
    problem = random_problem("lstm", (6, 13, 8, 32), "float32")
    y = problem.run()[0]
    turned = problem.with_(x=problem.x[:, ::-1], state=tuple(s[::-1] for s in problem.state))
    assert np.array_equal(turned.run()[0][:, ::-1], y)


@pytest.mark.parametrize("cell", HOST_CELLS)
def test_threads_hammer_one_module(cell: str) -> None:
    """Concurrent calls share the weights; each gets the result of a call on its own."""
    module = make_module(cell, 7, 21, 2, bidirectional=True, dtype="float32")
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(5, b, 7)).astype("float32") for b in (1, 2, 3, 5, 8, 13)]
    params = [module.parameters[name] for name in module.parameters]
    with num_threads(2):
        want = [digest(y, *states_of(state)) for y, state in map(module, inputs)]

        def work(k: int) -> bool:
            for i in range(30):
                at = (k + i) % len(inputs)
                y, state = module(inputs[at])
                y_kept, _, _ = module.forward(inputs[at])
                if digest(y, *states_of(state)) != want[at] or not np.array_equal(y, y_kept):
                    return False
            return True

        with ThreadPoolExecutor(6) as pool:
            assert all(pool.map(work, range(6)))
    assert all(np.isfinite(p).all() for p in params)


def test_threads_hammer_the_kernels() -> None:
    """Whole forward and backward passes at once, while another thread keeps changing the thread count."""
    problems = [random_problem(cell, (6, b, 5, 24), "float32") for cell in CELLS for b in (1, 9)]
    want = [run_all(p) for p in problems]
    stop = threading.Event()

    def change() -> None:
        n = 0
        while not stop.is_set():
            fr.set_num_threads(1 + n % 3)
            n += 1
            time.sleep(0.002)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(5):
                assert list(pool.map(run_all, problems)) == want
    finally:
        stop.set()
        changer.join()


def test_many_threads() -> None:
    """More threads than rows, units and processors."""
    problem = random_problem("lstm", (4, 3, 5, 20), "float32")
    want = run_all(problem)
    with num_threads(16):
        assert run_all(problem) == want


@pytest.mark.parametrize("n", [0, -1, 2**31, 2**63])
def test_bad_thread_count(n: int) -> None:
    before = fr.get_num_threads()
    with pytest.raises((ValueError, TypeError), match="n"):
        fr.set_num_threads(n)
    assert fr.get_num_threads() == before


def test_denormals_in_the_caller() -> None:
    """Calls, threaded and failing ones too, leave gradual underflow as it was, in every Python thread."""
    problem = random_problem("gru", (6, 9, 8, 40), "float32")

    def gradual_underflow() -> bool:
        tiny = np.full(64, np.finfo(np.float32).tiny, np.float32)
        halves = tiny * np.float32(0.5)
        return bool((halves > 0).all() and (halves + halves == tiny).all())

    def work(_: int) -> bool:
        before = gradual_underflow()
        run_all(problem)
        with pytest.raises(ValueError, match="expected"):
            problem.with_(x=problem.x[..., :3]).run()
        fr.functional.sigmoid(problem.x)
        fr._core.norm(problem.params[2], 2.0)
        return before and gradual_underflow()

    with num_threads(2):
        assert work(0)
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(work, range(6)))


def test_denormal_inputs_are_harmless() -> None:
    problem = random_problem("lstm", (5, 4, 6, 20), "float32")
    tiny = np.float32(1e-40)
    y, _, tape = problem.with_(x=problem.x * tiny, state=tuple(s * tiny for s in problem.state)).run()
    want = problem.with_(x=problem.x * 0, state=tuple(s * 0 for s in problem.state)).run()[0]
    assert np.max(np.abs(y - want)) < 1e-30
    assert np.isfinite(fr.functional.backward(tape, problem.dy * tiny, problem.dstate).x).all()
