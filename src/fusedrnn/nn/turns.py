"""Turn: threads that add to the gradients of one module do so one after another."""

import os
import threading
import weakref
from typing import Any


class Turn:
    """What one module's backward holds while it adds to the gradients: `with turn.take():`.

    A child of fork finds it free, whoever held it in the parent.
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock: Any = threading.RLock()
        _turns.add(self)

    def take(self) -> Any:
        """Return the lock to hold.

        Raises:
            RuntimeError: this thread has it: a signal handler would wait for the code that it interrupts.
        """
        if self._lock._is_owned():
            raise RuntimeError(
                "backward: expected no call inside backward of the same module, got one; "
                "a signal handler has to leave it to the code that it interrupts"
            )
        return self._lock


_turns: "weakref.WeakSet[Turn]" = weakref.WeakSet()


def _free_in_child() -> None:
    """Forget the threads that only the parent has."""
    for turn in _turns:
        if turn._lock.acquire(blocking=False):
            turn._lock.release()
        else:
            turn._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_in_child)
