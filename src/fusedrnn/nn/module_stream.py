"""ModuleStream: a module made of others, one step at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn.checks import check_size
from fusedrnn.inference.stream import Resettable
from fusedrnn.nn.module import Module

Step: TypeAlias = "Callable[[Any], Any]"


class ModuleStream(Resettable):
    """A `Sequential` or `Stateful` one step at a time: `y_t = step(x_t)`; made by `model.stream()`.

    Feeding the steps of a sequence one by one gives the rows of the call over the whole sequence in
    evaluation mode, but for rounding. Networks copy their weights when the stream is made: after they change,
    call `refresh`; all other members are used as they are. A stream serves one thread at a time.

    Attributes:
        batch_size: B.
        max_len: how many steps attention holds.
    """

    __slots__ = ("_advance", "_module", "_streams", "max_len")
    _module: Any

    def __init__(self, module: Module, batch_size: int, max_len: int) -> None:
        self._module = module
        self.batch_size, self.max_len = check_size("batch_size", batch_size), check_size("max_len", max_len)
        self._streams: list[Any] = []
        self._advance = self._first()

    def _first(self) -> Step:
        return self.chained("", self._module.named_children())

    def chained(self, where: str, members: Iterable[tuple[str, Module]]) -> Step:
        """Return what members do with a step, one after the other; `where` is the name of whose they are."""
        steps = [self.member(f"{where}{name}", module) for name, module in members]

        def advance(x: Any) -> Any:
            for step in steps:
                x = step(x)
            return x

        return advance

    def member(self, name: str, module: Module) -> Step:
        """Return what a member does with a step.

        Raises:
            ValueError: it has no stream; and what its `stream` raises.
        """
        found: Step | None = module._step_in(self, name)
        if found is None:
            raise ValueError(
                f"stream: expected members that work step by step, got {name}, a {type(module).__name__}, "
                "which has no stream"
            )
        return found

    def streamed(self, name: str, module: Any) -> Step:
        """Return the stream of a member that has one, which is reset and refreshed with this one."""
        options = (
            {"max_len": self.max_len} if "max_len" in inspect.signature(module.stream).parameters else {}
        )
        try:
            stream: Step = module.stream(self.batch_size, **options)
        except (RuntimeError, TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        self._streams.append(stream)
        return stream

    @staticmethod
    def unchanged(x: Any) -> Any:
        """Return x: what dropout does with a step."""
        return x

    def __call__(self, x: Any) -> Any:
        """Advance by one step; return y of the step, which the next call may overwrite.

        Args:
            x: (B, ...), or without B if batch_size is 1: a step of what the first member takes.

        Raises:
            TypeError, ValueError: x is not what the first member takes.
        """
        return self._advance(x)

    def _reset(self, rows: npt.NDArray[np.int64] | None) -> None:
        for stream in self._streams:
            stream.reset(rows)

    @property
    def state(self) -> tuple[Any, ...]:
        """Copies of the states of the members that have one, in their order; can be set, None for a start."""
        return tuple([stream.state for stream in self._streams])

    @state.setter
    def state(self, value: tuple[Any, ...] | None) -> None:
        given = (None,) * len(self._streams) if value is None else value
        if not isinstance(given, tuple) or len(given) != len(self._streams):
            raise TypeError(f"state: expected a tuple of {len(self._streams)} states, got {given!r:.60}")
        before = self.state
        try:
            self._set(given)
        except (TypeError, ValueError):
            self._set(before)
            raise

    def _set(self, parts: tuple[Any, ...]) -> None:
        for stream, part in zip(self._streams, parts, strict=True):
            if part is None:
                stream.reset()
            else:
                stream.state = part

    def refresh(self) -> None:
        """Read the weights of the networks again; the state stays."""
        for stream in self._streams:
            stream.refresh()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._module!r}, batch_size={self.batch_size})"
