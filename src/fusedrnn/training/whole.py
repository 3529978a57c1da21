"""What Ctrl-C does not cut in two: signal handlers wait until it is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Whole:
    """A block that Python's signal handlers do not come into: while `waiting`, they run at its end.

        with whole.waiting():
            with whole:
                ...

    Blocks do not stand in each other. Outside of the main thread, where no handler runs, nothing is done.
    """

    def __init__(self) -> None:
        self._inside = False
        self._came: list[tuple[Callable[[int, FrameType | None], Any], int, FrameType | None]] = []

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Make the handlers that there are wait, from here to the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in signal.valid_signals()}
        made = {number: self._waiter(handler) for number, handler in before.items() if callable(handler)}
        try:
            for number, waiter in made.items():
                signal.signal(number, waiter)
            yield
        finally:
            # One that is left here after all, by a signal that comes just now, does as the one before.
            for number, waiter in made.items():
                if signal.getsignal(number) is waiter:
                    signal.signal(number, before[number])

    def _waiter(self, handler: Any) -> Callable[[int, FrameType | None], Any]:
        def wait(number: int, frame: FrameType | None) -> None:
            if self._inside:
                self._came.append((handler, number, frame))
            else:
                handler(number, frame)

        return wait

    def __enter__(self) -> None:
        self._inside = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inside = False
        while self._came:
            handler, number, frame = self._came.pop(0)
            handler(number, frame)
