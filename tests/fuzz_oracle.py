"""What fuzz_sequences.py holds results against: the same call of a module made anew, with copies of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fuzz_entries import ALLOWED
from support import Array

import fusedrnn as fr

Arguments = dict[str, Any]


def arrays_of(value: Any) -> Iterator[Array]:
    """Every array in arguments or results, those of look-ups too."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, fr.Lookup):
        yield value.table
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays_of(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from arrays_of(item)


def plain(value: Any) -> Any:
    """A copy with arrays of their own in the usual layout."""
    if isinstance(value, np.ndarray) and value.dtype.kind != "O" and value.size < 10**6:
        return np.array(value, order="C") if type(value) is np.ndarray else value.copy()
    if isinstance(value, fr.Lookup):
        # With other axes than two there is no other: calls refuse it.
        return fr.Lookup(plain(value.table), value.indices) if value.table.ndim == 2 else value
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(plain(item) for item in value)
    return value


def bits(value: Any) -> Any:
    """Everything that two equal results have in common; one NaN is as good as another."""
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if value.size > 10**7:
            return value.shape, str(value.dtype)  # without memory behind it
        if value.dtype.kind == "f":
            value = np.where(np.isnan(value), np.array(np.nan, value.dtype), value)
        return value.shape, str(value.dtype), value.tobytes()
    if isinstance(value, dict):
        return {name: bits(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [bits(item) for item in value]
    return repr(value) if isinstance(value, float) else value


def content(value: Any) -> list[tuple[Array, bytes]]:
    """Views of the memory of all arrays as they are shaped now, and their bytes."""
    return [(array.view(), array.tobytes()) for array in arrays_of(value) if ordinary(array)]


def ordinary(array: Array) -> bool:
    return array.size < 10_000 and array.dtype.kind != "O"


def changed(held: list[tuple[Array, bytes]]) -> bool:
    return any(array.tobytes() != before for array, before in held)


def outcome(function: Callable[..., Any], *args: Any, **arguments: Any) -> tuple[Any, Exception | None]:
    """What a call returns, or the error that it may raise; after one its arguments are as before."""
    before = content([args, arguments])
    failure = None
    try:
        return function(*args, **arguments), None
    except ALLOWED as error:
        failure = error
    assert not changed(before), f"an argument changed though the call raised {failure!r}"
    return None, failure


def check_same(what: str, got: Any, want: Any) -> None:
    """The same bits, or an error in both: which one may depend on what is looked at first."""
    (value, error), (right, refusal) = got, want
    assert (error is None) == (refusal is None), (
        f"{what}: got {error or 'a result'!r}, alone {refusal or 'one'!r}"
    )
    if error is None:
        assert bits(value) == bits(right), f"{what}: got\n{value!s:.400}\nalone\n{right!s:.400}"


@dataclass
class Held:
    """A tape, and one of the same call by a module of its own.

    Attributes:
        module, tape: those under test.
        twin, twin_tape: those that nobody else touches.
        results: copies of what forward returned before the tape.
        given: the arrays that the tape may refer to, with their bytes in forward.
        detecting: whether changes were looked for in forward.
    """

    module: Any
    tape: Any
    twin: Any
    twin_tape: Any
    results: tuple[Any, ...]
    given: list[tuple[Array, bytes]]
    detecting: bool = False

    def backward(self, flow: Arguments, detecting: bool) -> None:
        """The gradients of the forward call, or an error that changes nothing."""
        grads = self.module.flat_grads
        before = grads.copy()
        self.twin.flat_grads[...] = before
        written = changed(self.given)
        want = outcome(self.twin.backward, self.twin_tape, **plain(flow))
        got = outcome(self.module.backward, self.tape, **flow)
        if got[1] is not None:
            assert bits(self.module.flat_grads) == bits(before), f"gradients after {got[1]!r}"
        if written and (got[1] is not None or not (detecting and self.detecting)):
            # What backward reads has changed: any gradients, or the error that names it.
            assert got[1] is None or want[1] is not None or "got changed values" in str(got[1]), got[1]
            return
        check_same("backward", got, want)
        check_same("gradients", (self.module.flat_grads, None), (self.twin.flat_grads, None))


@dataclass
class Stepping:
    """A stream of any kind, and one that nobody else touches.

    Attributes:
        stream, twin: these.
        draw: makes an input.
        twins: makes another stream of the weights as they are now.
    """

    stream: Any
    twin: Any
    draw: Callable[[np.random.Generator], Array]
    twins: Callable[[], Any] | None = None
    outputs: list[Array] = field(default_factory=list)

    def step(self, x: Any) -> Any:
        want = outcome(self.twin, plain(x))
        got = outcome(self.stream, x)
        check_same("step", got, want)
        return got[0]

    def check_state(self) -> None:
        check_same("state", (self.stream.state, None), (self.twin.state, None))
