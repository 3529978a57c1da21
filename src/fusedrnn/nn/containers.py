"""ModuleList and ModuleDict: modules that hold others."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import overload

from fusedrnn.nn.arguments import Arguments
from fusedrnn.nn.module import Module


class ModuleList(Module):
    """Modules in an order, found as children "0", "1" and so on: `self.layers = fr.ModuleList(...)`.

    It is indexed, sliced, iterated and extended as a list is, and not called.

    Args:
        modules: what it starts with.

    Raises:
        TypeError: one of them is not a Module.
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def append(self, module: Module) -> None:
        """Put a module at the end.

        Raises:
            TypeError: it is not a Module.
            ValueError: it is this one, or holds it; as of all that put modules here.
        """
        self._put([*self, module])

    def extend(self, modules: Iterable[Module]) -> None:
        """Put several modules at the end.

        Raises:
            TypeError: one of them is not a Module.
        """
        self._put([*self, *modules])

    def insert(self, index: int, module: Module) -> None:
        """Put a module before the one at an index.

        Raises:
            TypeError: it is not a Module.
        """
        modules = list(self)
        modules.insert(index, module)
        self._put(modules)

    def _put(self, modules: list[Module]) -> None:
        known = {id(module) for module in self._children.values()}
        for index, module in enumerate(modules):
            check_module(f"modules[{index}]", module)
            if id(module) not in known:
                self._refuse_around(f"modules[{index}]", module)
        self.__dict__["_children"] = {str(index): module for index, module in enumerate(modules)}

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> ModuleList: ...
    def __getitem__(self, index: int | slice) -> Module | ModuleList:
        found = list(self)[index]
        return ModuleList(found) if isinstance(found, list) else found

    def __setitem__(self, index: int, module: Module) -> None:
        modules = list(self)
        modules[operator.index(index)] = module
        self._put(modules)

    def __delitem__(self, index: int | slice) -> None:
        modules = list(self)
        del modules[index]
        self._put(modules)

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[Module]:
        return iter(list(self._children.values()))

    def _arguments(self) -> Arguments:
        return Arguments((list(self),), {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({block_of('[', map(repr, self), ']')})"


class ModuleDict(Module):
    """Modules by name, found as children: `self.heads = fr.ModuleDict({"tags": fr.Linear(8, 3)})`.

    It is indexed and iterated as a dictionary is, and not called.

    Args:
        modules: what it starts with.

    Raises:
        TypeError: a name is not a string, or a value not a Module.
        ValueError: a name is empty or holds a dot.
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        super().__init__()
        self.update(modules)

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add modules by name, in place of those that have these names.

        Raises:
            TypeError: a name is not a string, or a value not a Module.
            ValueError: a name is empty or holds a dot, or a module is this one or holds it.
        """
        given = dict(modules)
        for name, module in given.items():
            self._check(name, module)
        self._children.update(given)

    def __getitem__(self, name: str) -> Module:
        return self._children[name]

    def __setitem__(self, name: str, module: Module) -> None:
        self._check(name, module)
        self._children[name] = module

    def _check(self, name: str, module: Module) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got {type(name).__name__}")
        if not name or "." in name:
            raise ValueError(f"name: expected a name without a dot, got {name!r}")
        check_module(name, module)
        self._refuse_around(name, module)

    def __delitem__(self, name: str) -> None:
        del self._children[name]

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._children))

    def __contains__(self, name: object) -> bool:
        return name in self._children

    def keys(self) -> list[str]:
        """Return the names."""
        return list(self._children)

    def values(self) -> list[Module]:
        """Return the modules."""
        return list(self._children.values())

    def items(self) -> list[tuple[str, Module]]:
        """Return (name, module) of each."""
        return list(self._children.items())

    def _arguments(self) -> Arguments:
        return Arguments((dict(self.items()),), {})

    def __repr__(self) -> str:
        named = [f"{name!r}: {module!r}" for name, module in self.items()]
        return f"{type(self).__name__}({block_of('{', named, '}')})"


def check_module(name: str, module: object) -> None:
    """Refuse what is not a Module."""
    if not isinstance(module, Module):
        raise TypeError(f"{name}: expected a Module, got {type(module).__name__}")


def block_of(begin: str, texts: Iterable[str], end: str) -> str:
    """Return texts between brackets, each on lines of its own."""
    lines = [text.replace("\n", "\n  ") for text in texts]
    body = "".join([f"\n  {line}," for line in lines])
    return f"{begin}{body}\n{end}" if lines else f"{begin}{end}"
