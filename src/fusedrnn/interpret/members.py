"""A copy of a model to look into, in float64 and without dropout, and its members one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.nn.blocks import Sequential
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.members import forward_member
from fusedrnn.nn.module import Module

Floats = npt.NDArray[np.float64]


def studied(model: Module, name: str) -> Module:
    """Return a copy of a model in float64, in evaluation mode: the caller's gradients stay as they are.

    Raises:
        TypeError: model is no module.
        RuntimeError: it is on a GPU.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a Module, got {type(model).__name__}")
    model._require_cpu(name)
    found: Module = copy.deepcopy(model).astype("float64").eval()
    return found


def flattened(model: Module, name: str = "") -> Iterator[tuple[str, Module]]:
    """Yield (dotted name, member) of a model, those of Sequentials one by one."""
    if type(model) is not Sequential:
        yield name or type(model).__name__, model
        return
    for part, member in model._children.items():
        yield from flattened(member, f"{name}.{part}" if name else part)


def as_floats(x: Any) -> Any:
    """Return floats as float64, and tokens as they are."""
    x = np.asarray(x)
    return x.astype(np.float64) if x.dtype.kind == "f" else x


def embedded(model: Module, x: Any) -> tuple[Module, Floats]:
    """Return a model behind its embedding, and the floats that it takes: tokens have no gradients."""
    x = as_floats(x)
    if x.dtype.kind == "f":
        return model, x
    if type(model) is not Sequential or not len(model) or not isinstance(model[0], Embedding):
        raise TypeError(
            f"x: expected floats, or tokens for a Sequential that begins with an Embedding, got {x.dtype}"
        )
    return embedded(model[1:], model[0](x))


def walked(
    members: Iterable[tuple[str, Module]], x: Any, lengths: Any
) -> Iterator[tuple[str, Module, Array, Any, Any]]:
    """Yield (name, member, y, tape, lengths before it) of each member, in their order."""
    mask = None
    for name, member in members:
        before = lengths
        x, tape = forward_member(member, x, lengths, mask)
        if lengths is not None:
            lengths, mask = member.output_steps(lengths, mask)
        yield name, member, x, tape, before
