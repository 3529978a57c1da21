"""The states that sequences start from where a call gives none, and those that resets put in their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from fusedrnn.arrays import Array, as_regular
from fusedrnn.checks import check_flag
from fusedrnn.nn.options import WithOptions


class WithStarts(WithOptions):
    """What a recurrent network was made with, its initial states and those at resets."""

    # "zeros", "normal", or "given" with an array for each state.
    _start_kind: str
    _start_given: tuple[Any, ...]

    def _set_starts(self, init_state: Any, learned: bool, learned_reset: bool) -> None:
        self._learned_state = check_flag("learned_state", learned)
        self._learned_reset_state = check_flag("learned_reset_state", learned_reset)
        self._start_kind, self._start_given = "given", ()
        if isinstance(init_state, str):
            if init_state not in ("zeros", "normal"):
                raise ValueError(
                    f"init_state: expected 'zeros', 'normal' or a state, got {init_state!r}; a state is an "
                    "array, or a tuple of them"
                )
            self._start_kind = init_state
        else:
            self._start_given = self._unmasked.unpack_state("init_state", init_state)

    def _start_shapes(self) -> dict[str, tuple[int, ...]]:
        """The parameters among the states."""
        network = self._network
        shapes: dict[str, tuple[int, ...]] = {}
        for names, given in (
            (self._learned_names, self._learned_state),
            (self._reset_names, self._learned_reset_state),
        ):
            if given:
                pairs = zip(names, network.widths, strict=True)
                shapes |= {name: (network.rows, 1, width) for name, width in pairs}
        return shapes

    def _fill_starts(self, rng: np.random.Generator, zero: bool) -> None:
        """Set the parameters to what `init_state` says, or keep that for calls."""
        network = self._network
        given = []
        for k, part in enumerate(self._start_given):
            rows, width = network.rows, network.widths[k]
            name = "init_state" + self._unmasked.state_labels[k]
            array = as_regular(name, part).astype(self._dtype)
            if array.shape not in ((rows, width), (rows, 1, width)):
                raise ValueError(
                    f"{name}: expected shape (num_layers*D, H) = ({rows}, {width}), got {array.shape}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{name}: expected finite numbers, got others")
            given.append(array.reshape(rows, 1, width))
        if self._start_kind == "normal" and self._learned_state:
            given = [rng.standard_normal((network.rows, 1, width)) for width in network.widths]
        if not given:
            return
        names = self._learned_names if self._learned_state else self._given_names
        for name, array in zip(names, given, strict=True):
            if not self._learned_state:
                self.buffer(name, array.shape, dtype=self._dtype)
                self._saved[name][...] = array
            elif not zero:
                self._own[name][...] = array

    @property
    def _learned_names(self) -> list[str]:
        return [f"{state}0" for state in self._unmasked.state_names]

    @property
    def _given_names(self) -> list[str]:
        return [f"init_{state}" for state in self._unmasked.state_names]

    @property
    def _reset_names(self) -> list[str]:
        return [f"reset_{state}" for state in self._unmasked.state_names]

    def _constant_start(self) -> tuple[Array, ...] | None:
        """The initial states (num_layers*D, 1, H) that do not change from call to call; None for zeros."""
        if self._learned_state:
            return tuple([self._own[name] for name in self._learned_names])
        if self._start_kind == "given":
            return tuple([self._saved[name] for name in self._given_names])
        return None

    def _starts(self, batch: int) -> tuple[Array, ...] | None:
        """The initial states of a call that gives none; None for zeros."""
        if (constant := self._constant_start()) is not None:
            return tuple([part.repeat(batch, axis=1) for part in constant])
        if self._start_kind == "zeros" or not self.training:
            return None
        seed, offset = self._noise.streams(1)
        rng = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, offset]))
        shapes = [(self._network.rows, batch, width) for width in self._network.widths]
        return tuple([rng.standard_normal(shape).astype(self._dtype) for shape in shapes])

    def _reset_starts(self) -> tuple[Array, ...]:
        """The learned states at resets, (num_layers*D, H)."""
        return tuple([self._own[name][:, 0].copy() for name in self._reset_names])

    def _add_starts(self, names: list[str], dstates: list[Any]) -> None:
        """Add gradients (num_layers*D, B, H) to those of parameters."""
        for name, dstate in zip(names, dstates, strict=True):
            self._own_grads[name] += dstate.sum(axis=1, keepdims=True)

    @property
    def init_state(self) -> Any:
        """What calls without a state start from: "zeros", "normal", or the state that was given."""
        if self._start_kind != "given":
            return self._start_kind
        return self._unmasked.pack_state([np.array(part, self._dtype) for part in self._start_given])

    @property
    def learned_state(self) -> bool:
        """Whether the initial state is a parameter."""
        return self._learned_state

    @property
    def learned_reset_state(self) -> bool:
        """Whether what resets put in place of the state is a parameter."""
        return self._learned_reset_state
