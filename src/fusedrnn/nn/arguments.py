"""What the constructor of a module was called with, so that another such module can be made."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fusedrnn.cell_spec import CellSpec
from fusedrnn.nn.tree import Tree
from fusedrnn.symbolic import DefinedCell

# Of an array and of a container that are kept; larger ones are the caller's affair.
MOST_BYTES = 1 << 20
MOST_ITEMS = 1 << 20


class Unkept:
    """Stands for an argument that is not kept: it is none that a file could hold.

    Attributes:
        kind: the name of its type.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind


class ConstructorSignature:
    """The signature of a class with a `__new__` of any arguments: that of its `__init__`, be it inherited.

    Before Python 3.11.4 `inspect` takes that of an inherited `__new__` first.
    """

    def __get__(self, instance: Any, kind: Any) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(kind.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


def check_keywords(kind: type, given: Iterable[str]) -> None:
    """Refuse arguments by a name that neither a class nor what it hands its `**options` to takes.

    Raises:
        TypeError: such a name, with the class that was called and what may have been meant.
    """
    names: list[str] = []
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
        if not base.__module__.startswith("fusedrnn."):
            return  # options of a user's own, as its __init__ likes
    for name in given:
        if name not in names:
            meant = "".join(f". Did you mean {near!r}?" for near in difflib.get_close_matches(name, names, 1))
            raise TypeError(
                f"{kind.__qualname__}.__init__() got an unexpected keyword argument {name!r}{meant}"
            )


class Arguments:
    """Positional and keyword arguments of a call, without what could change later or cannot be copied."""

    __slots__ = ("options", "positional")

    def __init__(self, positional: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.positional = [kept(value) for value in positional]
        self.options = {name: kept(value) for name, value in options.items()}

    def named(self, kind: Any) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
        """Return (name, value) of those that have to be positional, and the others by name.

        Args:
            kind: the class whose constructor they are of.
        """
        signature = inspect.signature(kind.__init__)
        bound = signature.bind(None, *self.positional, **self.options)
        found = list(bound.arguments.items())[1:]
        kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
        several = any(kinds[name] is inspect.Parameter.VAR_POSITIONAL for name, _ in found)
        first: list[tuple[str, Any]] = []
        others: dict[str, Any] = {}
        for name, value in found:
            if kinds[name] is inspect.Parameter.VAR_POSITIONAL:
                first += [(f"{name}[{index}]", item) for index, item in enumerate(value)]
            elif kinds[name] is inspect.Parameter.VAR_KEYWORD:
                others.update(value)
            elif kinds[name] is inspect.Parameter.POSITIONAL_ONLY or (
                several and kinds[name] is inspect.Parameter.POSITIONAL_OR_KEYWORD
            ):
                first.append((name, value))
            else:
                others[name] = value
        return first, others


def kept(value: Any) -> Any:
    """Return an argument as it is kept: containers are copied, what no file could hold is an `Unkept`."""
    if value is None or isinstance(value, (bool, int, float, str, Tree, DefinedCell, CellSpec, Unkept)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, type) and issubclass(value, (np.generic, float)):
        return np.dtype(value).name
    if type(value) is np.ndarray and value.nbytes <= MOST_BYTES and value.dtype.kind in "biuf":
        return value.copy()
    if type(value) in (list, tuple) and len(value) <= MOST_ITEMS:
        return type(value)([kept(item) for item in value])
    if isinstance(value, Mapping) and len(value) <= MOST_ITEMS:
        return {kept(key): kept(item) for key, item in value.items()}
    return Unkept(type(value).__name__)
