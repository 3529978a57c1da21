"""Long sequences in pieces: truncated backpropagation through time, and tapes that are made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, StateLike, as_regular
from fusedrnn.checks import check_array, check_size
from fusedrnn.inputs.lookup import Lookup
from fusedrnn.inputs.sequences import lengths_within
from fusedrnn.listing import Listed
from fusedrnn.nn.recurrent_base import Recurrent

Backward: TypeAlias = Callable[..., Any]


class Windows:
    """A long input, cut along time into windows of the same number of steps; the last may be shorter.

    Attributes:
        count: how many there are.
    """

    __slots__ = ("_axis", "_lengths", "_resets", "_seq_len", "_window", "_x", "count")

    def __init__(self, network: Recurrent[Any], x: Any, window: int, lengths: Any, resets: Any) -> None:
        if not hasattr(x, "shape") or len(x.shape) not in (2, 3):
            raise network._input_error(x)
        self._axis = 1 if len(x.shape) == 3 and network.batch_first else 0
        self._x, self._window, self._seq_len = x, window, int(x.shape[self._axis])
        self._lengths = None
        if lengths is not None:
            batch = 1 if len(x.shape) == 2 else int(x.shape[1 - self._axis])
            self._lengths = lengths_within(lengths, batch, self._seq_len)
        self._resets = None
        if resets is not None:
            self._resets = as_regular("resets", resets)
            check_array("resets", self._resets, tuple(x.shape[:-1]), np.dtype(np.bool_))
        self.count = -(-self._seq_len // window)

    def steps(self, index: int) -> tuple[Any, ...]:
        """Return where along the layout of x the steps of a window lie."""
        place = slice(index * self._window, min(self._seq_len, (index + 1) * self._window))
        return (slice(None), place) if self._axis else (place,)

    def arguments(self, index: int) -> tuple[Any, dict[str, Any]]:
        """Return x, lengths and resets of a window."""
        place, x = self.steps(index), self._x
        if isinstance(x, Lookup):
            part: Any = Lookup(x._values, x.indices[place])
        else:
            part = x[place]
        found: dict[str, Any] = {}
        if self._lengths is not None:
            found["lengths"] = np.clip(self._lengths - index * self._window, 0, part.shape[self._axis])
        if self._resets is not None:
            found["resets"] = self._resets[place]
        return part, found


class BPTT(Listed):
    """What `bptt` returns: an iterator over (y, backward) of each window.

    Attributes:
        network: that of the call.
        state: the state that the next window starts from; after the last, the final state.
    """

    __slots__ = ("_next", "_reset_state", "_windows", "network", "state")

    def __init__(
        self, network: Recurrent[Any], windows: Windows, state: StateLike | None, reset_state: Any
    ) -> None:
        self.network = network
        self.state: Any = state
        self._windows = windows
        self._reset_state = reset_state
        self._next = 0

    def __iter__(self) -> BPTT:
        return self

    def __len__(self) -> int:
        """Return how many windows are still to come."""
        return self._windows.count - self._next

    def __next__(self) -> tuple[Array, Backward]:
        if self._next == self._windows.count:
            raise StopIteration
        network = self.network
        x, options = self._windows.arguments(self._next)
        y, final, tape = network.forward(x, self.state, **options, reset_state=self._reset_state)
        self.state = final
        self._next += 1

        def backward(dy: Array, *, need_dx: bool = True) -> Any:
            """Add the gradients of this window; return dx of its steps, or of the table of a `Lookup`."""
            return network.backward(tape, dy, need_dx=need_dx)[0]

        return y, backward

    def __repr__(self) -> str:
        done = f"window {self._next} of {self._windows.count}"
        return f"BPTT({self.network!r}, {done})"


def bptt(
    network: Recurrent[Any],
    x: Array | Lookup,
    window: int,
    state: StateLike | None = None,
    lengths: npt.ArrayLike | None = None,
    resets: npt.NDArray[np.bool_] | None = None,
    reset_state: StateLike | None = None,
) -> BPTT:
    """Truncated backpropagation through time: the state goes from window to window, the gradient does not.

        windows = fr.bptt(rnn, x, window=50)
        for k, (y, backward) in enumerate(windows):
            loss, dy = loss_of(y, targets[50 * k : 50 * (k + 1)])
            backward(dy)
            optimizer.step()
            rnn.zero_grad()
        state = windows.state

    A window runs when the loop asks for it, with the weights of that time. Its tape lives as long as its
    `backward`, which may be left out, be called later or more than once; `backward(dy, need_dx=True)` adds to
    `grads` and returns dx of the window. Outputs are bitwise those of one call over all of x.

    Args:
        network: a recurrent network of one direction, on any device.
        x: (T, B, I), (B, T, I) with batch_first, or (T, I); or a `Lookup` of such a shape, of which dx is the
            gradient of the table.
        window: steps of a window, 1 or more; the last has what is left of T.
        state: the initial state, h or a tuple of h and the others, or None for zeros.
        lengths: (B,) of an integer dtype, each in 0..T; a row keeps its state past its end.
        resets: (T, B) bool, laid out as x: where true, the state is replaced before step t reads it.
        reset_state: what resets put in place of the state; None for zeros.

    Returns:
        An iterator of (y, backward), with the attribute `state` and with `len`, the windows to come.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument of the wrong shape or out of range, or a network of two directions: the
            reverse one starts from the end.

    Paper: Williams and Peng 1990, An efficient gradient-based algorithm for on-line training of recurrent
    network trajectories.
    """
    _check_network(network, "bptt")
    check_size("window", window)
    if reset_state is not None and resets is None:
        raise ValueError("reset_state: expected None without resets")
    return BPTT(network, Windows(network, x, window, lengths, resets), state, reset_state)


class CheckpointTape(Listed):
    """What `checkpoint` keeps for its backward: the state at the start of every segment.

    It refers to x, the states and resets; do not write to them before backward.

    Attributes:
        nbytes: bytes of the states; backward takes the tape of one segment besides.
    """

    __slots__ = ("_kept", "_network", "_reset_state", "_shape", "_states", "_windows", "nbytes")

    def __init__(
        self,
        network: Recurrent[Any],
        windows: Windows,
        states: list[Any],
        reset_state: Any,
        shape: tuple[int, ...],
    ) -> None:
        self._network, self._windows, self._states = network, windows, states
        self._reset_state, self._shape = reset_state, shape
        self._kept = network._kept_parameters()
        # The first is the caller's.
        self.nbytes = sum(part.nbytes for state in states[1:] for part in _parts(state))

    def backward(
        self, dy: Array | None = None, dstate: StateLike | None = None, *, need_dx: bool = True
    ) -> tuple[Any, Any]:
        """Add to the gradients and return (dx, dstate), as `Recurrent.backward` does; usable again.

        An error or KeyboardInterrupt between two segments leaves what the later ones added to the gradients.

        Args:
            dy: gradient of y, in its shape and dtype, or None for zeros if dstate is given.
            dstate: gradient of the final state, or None for zeros.
            need_dx: False leaves out the gradient of x, and dx is None.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape, or neither dy nor dstate.
            RuntimeError: the parameters have changed since forward, or the network trains with dropout.
        """
        network, windows = self._network, self._windows
        if dy is None and dstate is None:
            raise ValueError("dy: expected an array unless dstate is given, got None for both")
        if dy is not None:
            check_array("dy", dy, self._shape, network.dtype)
        _check_replayed(network)
        if network._kept_parameters() is not self._kept:
            raise RuntimeError(
                "tape: expected the parameters as they were in forward, from which the tapes of segments are "
                "made again, got changed ones"
            )
        dx: Any = None
        for index in reversed(range(windows.count)):
            place = windows.steps(index)
            x, options = windows.arguments(index)
            _, _, tape = network.forward(x, self._states[index], **options, reset_state=self._reset_state)
            flow = None if dy is None else dy[place]
            part, dstate = network.backward(tape, flow, dstate, need_dx=need_dx)
            if not need_dx:
                continue
            if isinstance(x, Lookup):
                dx = part if dx is None else np.add(dx, part, out=dx)
            else:
                dx = np.empty((*self._shape[:-1], network.input_size), part.dtype) if dx is None else dx
                dx[place] = part
        return dx, dstate

    def __repr__(self) -> str:
        return f"CheckpointTape({self._network!r}, segments={self._windows.count}, nbytes={self.nbytes})"


def checkpoint(
    network: Recurrent[Any],
    x: Array | Lookup,
    checkpoint_every: int,
    state: StateLike | None = None,
    lengths: npt.ArrayLike | None = None,
    resets: npt.NDArray[np.bool_] | None = None,
    reset_state: StateLike | None = None,
) -> tuple[Array, Any, CheckpointTape]:
    """Forward over a long sequence that keeps the states at every k-th step alone, and all gradients.

        y, state, tape = fr.checkpoint(rnn, x, checkpoint_every=320)
        dx, dstate = tape.backward(dy)

    Backward goes over the segments from the last to the first and runs each forward once more, so that no
    more than one segment's tape is in memory: with k near sqrt(T) the tape takes O(sqrt(T)) for about a third
    more time. Nothing is truncated. y and the states have the bits of the plain call; gradients are sums
    that a segment's border may cut, equal but for rounding, and the same in every run.

    Args:
        network: a recurrent network of one direction, on the CPU. Its parameters must stay as they are until
            backward was called.
        x: (T, B, I), (B, T, I) with batch_first, or (T, I), T >= 1; or a `Lookup` of such a shape.
        checkpoint_every: k, the steps of a segment.
        state: the initial state, or None for zeros.
        lengths: (B,) of an integer dtype, each in 0..T.
        resets: (T, B) bool, laid out as x: where true, the state is replaced before step t reads it.
        reset_state: what resets put in place of the state; None for zeros.

    Returns:
        y, the final state, and the tape, with a `backward` of its own.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: an argument of the wrong shape or out of range, or a network of two directions: the
            reverse one starts from the end.
        RuntimeError: the network is on a GPU, or trains with dropout, which would draw other masks.

    Paper: Chen et al. 2016, Training deep nets with sublinear memory cost, arXiv:1604.06174.
    """
    _check_network(network, "checkpoint")
    network._require_cpu("checkpoint")
    check_size("checkpoint_every", checkpoint_every)
    _check_replayed(network)
    if reset_state is not None and resets is None:
        raise ValueError("reset_state: expected None without resets")
    windows = Windows(network, x, checkpoint_every, lengths, resets)
    if not windows.count:
        raise ValueError("x: expected one step or more, got T = 0")
    if isinstance(x, Lookup):
        # The rows as they are now, as in every tape.
        x = Lookup(x._values.copy(), x.indices)
        windows = Windows(network, x, checkpoint_every, lengths, resets)
    y = np.empty((*x.shape[:-1], network._network.out_size), network.dtype)
    states: list[Any] = []
    for index in range(windows.count):
        part, options = windows.arguments(index)
        states.append(state)
        y[windows.steps(index)], state = network(part, state, **options, reset_state=reset_state)
    return y, state, CheckpointTape(network, windows, states, reset_state, y.shape)


def _check_network(network: object, name: str) -> None:
    """Refuse what does not go from the first step to the last."""
    if not isinstance(network, Recurrent):
        raise TypeError(f"network: expected a recurrent network, got {type(network).__name__}")
    if network.bidirectional:
        raise ValueError(f"{name}: expected bidirectional=False: the reverse direction starts from the end")


def _check_replayed(network: Recurrent[Any]) -> None:
    """Refuse a network whose forward would not give the same again."""
    if name := network._draws_anew():
        raise RuntimeError(
            f"{name}: expected 0 or evaluation mode, got {getattr(network, name)}: a segment that runs again "
            "would draw other masks"
        )


def _parts(state: Any) -> tuple[Array, ...]:
    return state if isinstance(state, tuple) else (state,)


__all__ = ["BPTT", "CheckpointTape", "bptt", "checkpoint"]
