"""Turn: threads that add to the gradients of one module do so one after another."""

import os
import threading
import weakref


class Turn:
    """What one module's backward holds while it adds to the gradients: `with turn.lock, turn:`.

    The lock is a thread's own to take again, so that a signal handler that calls backward inside backward
    gets an error from `turn` in place of waiting for itself. A child of fork finds it free, whoever held it.
    """

    __slots__ = ("__weakref__", "_taken", "lock")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._taken = False
        _turns.add(self)

    def __enter__(self) -> None:
        if self._taken:
            raise RuntimeError(
                "backward: expected no call inside backward of the same module, got one; "
                "a signal handler has to leave it to the code that it interrupts"
            )
        self._taken = True

    def __exit__(self, *_: object) -> None:
        self._taken = False


_turns: "weakref.WeakSet[Turn]" = weakref.WeakSet()


def _free_in_child() -> None:
    """Forget the threads that only the parent has."""
    for turn in _turns:
        if turn.lock.acquire(blocking=False):
            turn.lock.release()
        else:
            turn.lock, turn._taken = threading.RLock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_in_child)
