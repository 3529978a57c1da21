"""Tapes in memory of a caller: what other threads, processes and copies make of them, and what is refused."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import assert_ran, run_python

import fusedrnn as fr
from fusedrnn import functional
from fusedrnn.symbolic import library

T, B, I, H = 7, 5, 3, 6
CELLS: dict[str, Any] = {
    "lstm": "lstm",
    "lstm_proj": "lstm",
    "gru": "gru",
    "rnn_relu": "rnn_relu",
    "sru": library.sru(),
    "layer_norm": library.layer_norm_lstm(True),
}


def call(kind: str, dtype: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of a call and, apart, what else its tape needs to know of it."""
    cell, proj = CELLS[kind], 4 if kind.endswith("_proj") else 0
    spec, rng = fr.cells.resolve_cell(cell), np.random.default_rng(len(kind))

    def draw(*shape: int) -> Any:
        return rng.normal(0, 0.5, shape).astype(dtype)

    params = {name: draw(*shape) for name, shape in spec.parameter_shapes(I, H, True, proj).items()}
    states = tuple(draw(B, width) for width in spec.state_widths(H, proj))
    resets = tuple(draw(width) for width in spec.state_widths(H, proj))
    own = {"cell": cell, "x": draw(T, B, I), "params": params}
    return own, {
        "state": states if spec.states > 1 else states[0],
        "lengths": rng.integers(0, T + 1, B),
        "resets": rng.random((T, B)) < 0.3,
        "reset_state": resets if spec.states > 1 else resets[0],
        "reverse": True,
    }


def room(kind: str, dtype: str, recompute: bool = False) -> np.ndarray[Any, np.dtype[np.uint8]]:
    proj = 4 if kind.endswith("_proj") else 0
    size = functional.tape_bytes(CELLS[kind], T, B, H, proj, dtype=dtype, recompute=recompute)
    return np.full(size, 0xFF, np.uint8)


def gradients(tape: Any, dy: Any) -> list[bytes]:
    dx, state, params = functional.backward(tape, dy)
    states = state if isinstance(state, tuple) else (state,)
    assert dx is not None
    return [array.tobytes() for array in (dx, *states, *params.values())]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_copy_of_the_memory_is_the_tape(kind: str, dtype: str, recompute: bool) -> None:
    """Outputs and gradients have the bits of a tape that the library keeps; the arrays may be elsewhere."""
    own, beside = call(kind, dtype)
    y, _, plain = functional.forward(**own, **beside, recompute=recompute)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    want, memory = gradients(plain, dy), room(kind, dtype, recompute)
    again, _, tape = functional.forward(**own, **beside, recompute=recompute, tape_out=memory)
    assert np.array_equal(y, again) and gradients(tape, dy) == want and tape.nbytes <= plain.nbytes
    bits = np.frombuffer(memory.tobytes(), np.uint8)  # read-only, as those of a file
    memory[:] = 0xFF
    kept = functional.tape_from_arrays(**own, y=y.copy(), tape=bits, **beside, recompute=recompute)
    assert gradients(kept, dy) == want and gradients(kept, dy) == want


def test_another_thread() -> None:
    own, beside = call("gru", "float32")
    memory = room("gru", "float32")
    y, _, tape = functional.forward(**own, **beside, tape_out=memory)
    dy, found = np.ones_like(y), []

    def run() -> None:
        found.append(gradients(functional.tape_from_arrays(**own, y=y, tape=memory, **beside), dy))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [gradients(tape, dy)] * 3


def test_another_process(tmp_path: Path) -> None:
    own, beside = call("lstm", "float64")
    memory = room("lstm", "float64")
    y, _, tape = functional.forward(**own, **beside, tape_out=memory)
    given = {**own, **beside, "y": y, "tape": memory}
    (tmp_path / "call").write_bytes(pickle.dumps(given))
    code = """
import pickle, sys, numpy as np
from fusedrnn import functional
with open(sys.argv[1] + "/call", "rb") as file:
    given = pickle.load(file)
tape = functional.tape_from_arrays(**given)
dx, state, params = functional.backward(tape, np.ones_like(given["y"]))
with open(sys.argv[1] + "/grads", "wb") as file:
    file.write(b"".join(a.tobytes() for a in (dx, *state, *params.values())))
"""
    assert_ran(run_python("-c", code, str(tmp_path)))
    assert (tmp_path / "grads").read_bytes() == b"".join(gradients(tape, np.ones_like(y)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.full(B, T)}, "bytes or more|lengths"),
        ({"lengths": np.array([T, 0, 0, 0, 0])}, "tape of a call of the same lengths"),
        ({"reverse": False}, "tape of reverse=0, got one of 1"),
        ({"recompute": True}, "tape of recompute=1, got one of 0"),
        ({"cell": "rnn_tanh"}, "tape of a call of the same cell"),
        ({"x": np.ones((T, B, I + 1), "float32")}, "weight_ih|x"),
        ({"state": None}, "tape of a call of the same arguments, got another"),
        ({"reset_state": None}, "tape of a call of the same arguments"),
        ({"resets": None, "reset_state": None}, "tape of a call of the same arguments"),
    ],
)
def test_the_tape_of_another_call(change: dict[str, Any], message: str) -> None:
    own, beside = call("rnn_relu", "float32")
    memory = room("rnn_relu", "float32")
    y, _, _ = functional.forward(**own, **beside, tape_out=memory)
    before = memory.tobytes()
    with pytest.raises(ValueError, match=message):
        functional.tape_from_arrays(**{**own, **beside, "y": y, "tape": memory, **change})
    assert memory.tobytes() == before


def test_memory_without_a_tape() -> None:
    """As it is made, of another version, of other vectors, and of a call that failed."""
    own, beside = call("gru", "float32")
    memory = room("gru", "float32")
    y, _, _ = functional.forward(**own, **beside, tape_out=memory)
    for place, name in ((1, "version"), (3, "lanes")):
        other = memory.copy()
        other[: 8 * (place + 1)].view(np.int64)[place] += 1
        with pytest.raises(ValueError, match=f"tape: expected the tape of {name}=[0-9]+, got one of"):
            functional.tape_from_arrays(**own, y=y, tape=other, **beside)
    with pytest.raises(ValueError, match="tape: expected the tape of a call that has ended, got memory"):
        functional.tape_from_arrays(**own, y=y, tape=room("gru", "float32"), **beside)
    weights = {**own["params"], "bias_ih": None, "bias_hh": None}
    with pytest.raises(ValueError, match="tape: expected the tape of a call of the same arguments"):
        functional.tape_from_arrays(**{**own, "params": weights}, y=y, tape=memory, **beside)


@pytest.mark.skipif(fr.config()["bf16_isa"] is None, reason="neither AMX nor AVX512_BF16")
def test_the_tape_of_other_products() -> None:
    own, beside = call("gru", "float32")
    memory = room("gru", "float32")
    y, _, tape = functional.forward(**own, **beside, tape_out=memory, compute="bf16")
    want = gradients(tape, np.ones_like(y))
    again = functional.tape_from_arrays(**own, y=y, tape=memory, **beside, compute="bf16")
    assert gradients(again, np.ones_like(y)) == want
    with pytest.raises(
        ValueError, match="tape: expected the tape of a call of the same compute, got another"
    ):
        functional.tape_from_arrays(**own, y=y, tape=memory, **beside)


@pytest.mark.parametrize("how", ["another call", "the same call", "zeros"])
def test_memory_that_is_written_to_while_the_tape_lives(how: str) -> None:
    own, beside = call("lstm", "float32")
    memory = room("lstm", "float32")
    y, _, tape = functional.forward(**own, **beside, tape_out=memory)
    copied = memory.copy()
    kept = functional.tape_from_arrays(**own, y=y, tape=copied, **beside)
    want = gradients(tape, np.ones_like(y))
    for array in (memory, copied):
        if how == "zeros":
            array[:128] = 0
        else:
            x = own["x"] * (2 if how == "another call" else 1)
            functional.forward(**{**own, "x": x}, **beside, tape_out=array)
    for found in (tape, kept):
        with pytest.raises(
            RuntimeError, match="as it was after forward, got memory that has been written to"
        ):
            functional.backward(found, np.ones_like(y))
    y, _, tape = functional.forward(**own, **beside, tape_out=memory)
    assert gradients(tape, np.ones_like(y)) == want


def test_changes_are_detected() -> None:
    own, beside = call("gru", "float32")
    memory = room("gru", "float32")
    fr.set_detect_changes(True)
    try:
        y, _, tape = functional.forward(**own, **beside, tape_out=memory)
        gradients(tape, np.ones_like(y))
        memory[200] ^= 1
        with pytest.raises(RuntimeError, match="tape: expected tape_out as it was after forward"):
            functional.backward(tape, np.ones_like(y))
    finally:
        fr.set_detect_changes(False)


@pytest.mark.parametrize("name", ["x", "weight_hh", "bias_ih", "state", "reset_state", "resets"])
def test_memory_of_another_argument(name: str) -> None:
    """It would be overwritten, and backward read what is left."""
    own, beside = call("gru", "float32")
    shared = room("gru", "float32")
    given = {**own, **beside, "params": dict(own["params"])}
    place = given["params"] if name in given["params"] else given
    array = shared[-place[name].nbytes :].view(place[name].dtype).reshape(place[name].shape)
    array[...] = place[name]
    place[name] = array
    before = shared.tobytes()
    with pytest.raises(ValueError, match=f"tape_out: expected memory of its own, got an overlap with {name}"):
        functional.forward(**given, tape_out=shared)
    assert shared.tobytes() == before


def test_memory_that_is_refused_before_anything_is_written() -> None:
    own, beside = call("gru", "float32")
    memory = room("gru", "float32")
    with_all = {**beside, "lengths": np.full(B, T)}
    least = functional.tape_bytes("gru", T, B, H)
    wrong: Any
    for wrong, error, message in (
        (memory[:100], ValueError, r"tape_out: expected 128 bytes or more, got 100"),
        (memory[: 128 + T * B * H * 4 * 4 - 1], ValueError, r"tape_out: expected [0-9]+ bytes or more"),
        (memory[::2], ValueError, r"tape_out: expected shape \(n,\), C-contiguous"),
        (memory.reshape(2, -1), ValueError, r"tape_out: expected shape \(n,\), C-contiguous"),
        (memory.view(np.float32), TypeError, "tape_out: expected uint8, got float32"),
        (bytearray(least), TypeError, "tape_out: expected a numpy.ndarray of uint8, got bytearray"),
        (np.frombuffer(bytes(least), np.uint8), ValueError, "tape_out: expected a writable array"),
    ):
        with pytest.raises(error, match=message):
            functional.forward(**own, **with_all, tape_out=wrong)
    assert np.all(memory == 0xFF)
    with pytest.raises(ValueError, match="tape_out: expected None with a Lookup or a mask"):
        functional.forward(**own, mask=np.ones((T, B), bool), tape_out=memory)
    with pytest.raises(ValueError, match="lengths"):
        functional.forward(**own, lengths=np.full(B, T + 1), tape_out=memory)
    assert np.all(memory == 0xFF)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("gru", -1, B, H), ValueError, "seq_len"),
        (("gru", T, 1.5, H), TypeError, "batch_size"),
        (("gru", T, B, 0), ValueError, "hidden_size"),
        (("gru", T, B, H, 2), ValueError, "proj_size"),
        (("gruu", T, B, H), ValueError, "cell"),
    ],
)
def test_sizes_that_are_refused(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        functional.tape_bytes(*arguments)


def test_the_size_is_that_of_the_widest_vectors() -> None:
    """4 saved values of 16 floats for each of T*B rows, and the label."""
    assert functional.tape_bytes("gru", T, B, H) == 128 + T * B * 4 * 16 * 4
    assert functional.tape_bytes("gru", T, B, H, recompute=True) == 128
    assert functional.tape_bytes("lstm", T, B, H, 4, dtype="float64") == 128 + T * B * (4 + 1 + 1) * 8 * 8
    assert functional.tape_bytes("lstm", 0, B, H) == 128
