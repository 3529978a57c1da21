"""Run by test_errors.py in a process of its own: random garbage for every argument of every compiled entry.

Each call has to return or raise; an error leaves every array that it was given as it was.
Usage: fuzz_entries.py SEED
"""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

import numpy as np
from entries import ENTRIES, Entry, arrays_in, replaced

from fusedrnn import _core

ALLOWED = (TypeError, ValueError, RuntimeError, MemoryError, OverflowError)
DTYPES = ("f4", "f8", "f2", ">f8", "i8", "i4", "u1", "?", "c16", "O", "U3", "V8", "M8[s]", "g")
NUMBERS = (0, 1, -1, 2, 3, 7, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30, True, False)
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"))
OBJECTS = (
    None,
    "",
    "lstm",
    "x" * 300,
    "\0",
    b"lstm",
    (),
    [],
    {},
    object(),
    type,
    np.float64(1.0),
    Ellipsis,
    slice(3),
)
ROUNDS = 120


def random_array(rng: np.random.Generator) -> Any:
    """Any dtype, rank 0 to 4, empty or enormous, in a layout of any kind."""
    dtype = np.dtype(str(rng.choice(DTYPES, p=[0.25, 0.25, *[0.5 / (len(DTYPES) - 2)] * (len(DTYPES) - 2)])))
    shape = tuple(int(n) for n in rng.choice([0, 1, 2, 3, 4, 5, 6, 24], size=rng.integers(0, 5)))
    values = rng.choice([0.0, 1.0, -1.0, 3.0, -100.0, 1e30], size=shape)
    with np.errstate(all="ignore"):
        array = np.zeros(shape, dtype) if dtype.kind in "VUM" else values.astype(dtype)
    layout = rng.integers(0, 8)
    if layout == 1 and array.ndim:
        array = array[..., ::-1]
    elif layout == 2 and array.ndim:
        array = np.repeat(array, 2, axis=0)[::2]
    elif layout == 3:
        array = array.T
    elif layout == 4 and dtype.kind != "O":
        raw = np.zeros(array.nbytes + 1, np.uint8)
        array = np.ndarray(shape, dtype, raw.data, 1)
    elif layout == 5:
        array.flags.writeable = False
    elif layout == 6 and dtype.kind != "O":
        # No memory behind it: the sizes alone are too large, or one is and another is zero.
        huge = [
            (2**40, 3, 4),
            (3, 2**40, 4),
            (2**40, 0, 4),
            (0, 2**40, 4),
            (2**40,),
            (2**33, 2**20),
            (2**24, 2**24, 6),
        ]
        wide = dtype if dtype.itemsize <= 8 else np.dtype("f8")
        array = np.broadcast_to(np.zeros((), wide), huge[rng.integers(len(huge))])
    return array


def garbage(rng: np.random.Generator, valid: list[Any]) -> Any:
    """Something that is most likely wrong."""
    kind = rng.integers(0, 8)
    if kind <= 2:
        return random_array(rng)
    if kind == 3:
        return NUMBERS[rng.integers(len(NUMBERS))]
    if kind == 4:
        return FLOATS[rng.integers(len(FLOATS))]
    if kind == 5:
        return OBJECTS[rng.integers(len(OBJECTS))]
    if kind == 6:
        items = [garbage(rng, valid) for _ in range(rng.integers(0, 7))]
        return tuple(items) if rng.integers(2) else items
    return valid[rng.integers(len(valid))]


def mutated(rng: np.random.Generator, value: Any, valid: list[Any]) -> Any:
    """Something that is nearly right: one array of the argument in another shape, dtype or layout."""
    found = list(arrays_in(value))
    if not found or rng.integers(3) == 0:
        return garbage(rng, valid)
    path, array = found[rng.integers(len(found))]
    kind = rng.integers(0, 7)
    new: Any = None
    if kind == 0:
        new = array[None] if rng.integers(2) else array[0] if array.ndim and len(array) else array
    elif kind == 1 and array.ndim:
        axis = int(rng.integers(array.ndim))
        size = int(rng.integers(0, array.shape[axis] + 3))
        if array.shape[axis]:
            new = array.take(np.arange(size) % array.shape[axis], axis)
        else:
            new = np.zeros((*array.shape[:axis], size, *array.shape[axis + 1 :]), array.dtype)
    elif kind == 2:
        new = array.astype("f4" if array.dtype == np.float64 else "f8")
    elif kind == 3:
        new = np.repeat(array, 2, axis=-1)[..., ::2]
    elif kind == 4:
        new = array.copy()
        new.flags.writeable = False
    elif kind == 5:
        new = array.copy()
        if new.size:
            number = rng.choice([-1, 2, 10**6]) if new.dtype.kind in "iu" else 1
            new.flat[rng.integers(new.size)] = np.array(number).astype(new.dtype)
    return replaced(value, path, new)


def snapshot(arguments: dict[str, Any]) -> list[tuple[Any, bytes]]:
    """The arrays among the arguments and their bytes; the enormous and the untypical ones are left out."""
    return [
        (array, array.tobytes())
        for value in arguments.values()
        for _, array in arrays_in(value)
        if array.size < 10_000 and array.dtype.kind != "O"
    ]


def attempt(name: str, entry: Entry, arguments: dict[str, Any]) -> bool:
    """Call once; True if it raised."""
    before = snapshot(arguments)
    try:
        entry.function(**arguments)
    except ALLOWED as error:
        for array, content in before:
            if array.tobytes() != content:
                raise AssertionError(f"{name}: an array changed though the call raised {error!r}") from error
        return True
    return False


def disturbed(rng: np.random.Generator, entry: Entry, i: int) -> dict[str, Any]:
    """By turns garbage for all arguments, one argument nearly right, and two; now and then one too many."""
    valid = list(entry.arguments.values()) or [None]
    arguments = dict(entry.arguments)
    if i % 3 == 0:
        arguments = {key: garbage(rng, valid) for key in arguments}
    else:
        for key in [str(key) for key in rng.permutation(list(arguments))][: i % 3]:
            arguments[key] = mutated(rng, arguments[key], valid)
    if i % 10 == 9:
        arguments["surplus"] = None
    return arguments


def main(seed: int) -> None:
    # AddressSanitizer reserves terabytes of addresses for itself, and has a limit of its own on allocations.
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    # A TypeError of pybind11 shows all arguments: whole arrays take longer to write than all calls.
    np.set_printoptions(threshold=0, edgeitems=1)
    rng = np.random.default_rng(seed)
    calls = raised = 0
    for name, make in ENTRIES.items():
        # Where there are no arguments, only one too many can be wrong.
        for i in range(ROUNDS) if make().arguments else [9]:
            entry = make()
            arguments = disturbed(rng, entry, i)
            # Named before the call, so that a crash shows what was on its way.
            kinds = {key: getattr(value, "shape", type(value).__name__) for key, value in arguments.items()}
            print(name, i, kinds, flush=True)
            raised += attempt(name, entry, arguments)
            calls += 1
        _core.set_num_threads(1)
    for name, make in ENTRIES.items():
        entry = make()
        assert not attempt(name, entry, entry.arguments), name
    print(f"done: {calls} calls, {raised} raised")


if __name__ == "__main__":
    main(int(sys.argv[1]))
