"""What Sequential, Residual and Concat do with each of their members, and their tape."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from fusedrnn.inputs.lookup import Lookup
from fusedrnn.inputs.sequences import as_lengths
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.module import Module
from fusedrnn.nn.recurrent_base import Recurrent
from fusedrnn.nn.tape import Tape


class BlockTape(Tape):
    """Tape of a module made of others: theirs, in their order.

    Attributes:
        tapes: one of each module.
    """

    __slots__ = ("tapes",)

    def __init__(self, owner: Module, tapes: Iterable[Any], nbytes: int = 0) -> None:
        self.tapes = tuple(tapes)
        for tape in self.tapes:
            nbytes += getattr(tape, "nbytes", 0)
        super().__init__(owner, nbytes)

    def _pairs(self, modules: list[Module]) -> list[tuple[Module, Any]]:
        """Return each module with its tape.

        Raises:
            ValueError: there are more or fewer modules than in forward.
        """
        if len(modules) != len(self.tapes):
            raise ValueError(f"tape: expected one of {len(modules)} modules, got one of {len(self.tapes)}")
        return list(zip(modules, self.tapes, strict=True))


@lru_cache(maxsize=256)
def _options(forward: Any) -> tuple[bool, bool]:
    """Return whether the forward of a class has an argument called lengths, and one called mask."""
    names = inspect.signature(forward).parameters
    return "lengths" in names, "mask" in names


def taken(module: Module, lengths: Any, mask: Any) -> dict[str, Any]:
    """Return which of both go to a module."""
    takes_lengths, takes_mask = _options(type(module).forward)
    given = {"lengths": lengths if takes_lengths else None, "mask": mask if takes_mask else None}
    return {name: value for name, value in given.items() if value is not None}


def check_lengths(modules: Iterable[Module], x: Any, lengths: Any) -> None:
    """Refuse lengths that x cannot have, where none of the modules that get them would look.

    Raises:
        TypeError: lengths are not of an integer dtype.
        ValueError: as many sequences of such lengths are not in x, of either layout.
    """
    if lengths is None or any(_options(type(module).forward)[0] for module in modules):
        return
    found, leading = as_lengths(lengths), tuple(np.shape(x)[:2])
    # (T, B, ...), (B, T, ...), or (T, ...) for one sequence.
    layouts = {leading, leading[::-1], (*leading[:1], 1)}
    most = max([steps for steps, *batch in layouts if found.shape == tuple(batch)], default=-1)
    if most < 0 or (found.size and not 0 <= found.min() <= found.max() <= most):
        values = f" of {found.min()}..{found.max()}" if found.size else ""
        raise ValueError(
            f"lengths: expected (B,) values in 0..T with x of shape {np.shape(x)}, "
            f"got shape {found.shape}{values}"
        )


def call_member(module: Module, x: Any, lengths: Any, mask: Any) -> Any:
    """Return y alone of a member."""
    plain = lengths is None and mask is None
    y = module(x) if plain else module(x, **taken(module, lengths, mask))
    return y[0] if module.has_state else y


def forward_member(module: Module, x: Any, lengths: Any, mask: Any) -> tuple[Any, Any]:
    """Return y and the tape of a member."""
    plain = lengths is None and mask is None
    results = module.forward(x) if plain else module.forward(x, **taken(module, lengths, mask))
    return results[0], results[-1]


def looked_up(modules: list[Module], place: int, x: Any) -> Lookup | None:
    """Return what an embedding looks up for the network behind it, where that pays; None elsewhere."""
    module = modules[place]
    if type(module) is not Embedding or not isinstance(modules[min(place + 1, len(modules) - 1)], Recurrent):
        return None
    found = module.lookup(x)
    return found if found._pays else None


def backward_member(module: Module, tape: Any, dy: Any, need_dx: bool) -> Any:
    """Return dx alone of a member."""
    dx = module.backward(tape, dy, need_dx=need_dx)
    return dx[0] if module.has_state else dx
