"""What `dir` and tab completion list: public names alone."""

from __future__ import annotations


class Listed:
    """Base of the classes that users hold: their `dir` leaves out names that begin with an underscore."""

    __slots__ = ()

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]
