"""ModuleList, ModuleDict and Sequential: modules that hold others."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload

from fusedrnn.arrays import Array
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import Tape, check_tape


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
        for index, module in enumerate(modules):
            _check_module(f"modules[{index}]", module)
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
            ValueError: a name is empty or holds a dot.
        """
        for name, module in dict(modules).items():
            self[name] = module

    def __getitem__(self, name: str) -> Module:
        return self._children[name]

    def __setitem__(self, name: str, module: Module) -> None:
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got {type(name).__name__}")
        if not name or "." in name:
            raise ValueError(f"name: expected a name without a dot, got {name!r}")
        _check_module(name, module)
        self._children[name] = module

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


class SequentialTape(Tape):
    """Tape of a `Sequential`: those of its modules, in their order."""

    __slots__ = ("tapes",)

    def __init__(self, owner: Module, tapes: list[Any]) -> None:
        super().__init__(owner, sum([tape.nbytes for tape in tapes if hasattr(tape, "nbytes")]))
        self.tapes = tuple(tapes)


class Sequential(ModuleList):
    """Modules one after the other: each takes the y of the one before.

    Networks with a state start from zeros, and their final state is left out. An `Embedding`, whose input
    has no gradient, can only be the first.

    Args:
        modules: in their order.

    Raises:
        TypeError: one of them is not a Module.
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def __call__(self, x: Any) -> Any:
        """Return y for x, as the first module takes it, and keep no tape."""
        for module in self:
            x = module(x)
            if module.has_state:
                x = x[0]
        return x

    def forward(self, x: Any) -> tuple[Any, SequentialTape]:
        """Return y and the tape; raises what the modules do."""
        tapes = []
        for module in self:
            results = module.forward(x)
            x = results[0]
            tapes.append(results[-1])
        return x, SequentialTape(self, tapes)

    def backward(self, tape: SequentialTape, dy: Array, *, need_dx: bool = True) -> Any:
        """Add to the gradients of all modules; return dx, or None without need_dx or where there is none.

        Raises:
            TypeError: dy is not an array of the dtype of y.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SequentialTape)
        modules, dx = list(self), dy
        if len(modules) != len(tape.tapes):
            raise ValueError(f"tape: expected one of {len(modules)} modules, got one of {len(tape.tapes)}")
        for index in reversed(range(len(modules))):
            module = modules[index]
            dx = module.backward(tape.tapes[index], dx, need_dx=need_dx or index > 0)
            if module.has_state:
                dx = dx[0]
        return dx if need_dx else None


def _check_module(name: str, module: object) -> None:
    if not isinstance(module, Module):
        raise TypeError(f"{name}: expected a Module, got {type(module).__name__}")
