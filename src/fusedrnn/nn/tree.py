"""Tree: modules as attributes of modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

CONTAINERS = (list, tuple, dict, set, frozenset)

NodeT = TypeVar("NodeT", bound="Tree[Any]")


class Tree(Generic[NodeT]):
    """The children of a module, found by the names of its attributes; the base of `Module`."""

    _children: dict[str, NodeT]
    # Attributes of the library's own, where modules may stand.
    _not_searched = frozenset({"_children", "_tied"})

    def __setattr__(self, name: str, value: Any) -> None:
        if "_children" not in self.__dict__:
            raise RuntimeError(
                f"{type(self).__name__}: super().__init__() must come before {name!r} is assigned"
            )
        if isinstance(value, CONTAINERS) and name not in self._not_searched:
            self._refuse_hidden(name, value, {id(member) for member in self.modules()})
        if isinstance(value, Tree):
            self._refuse_around(name, value)
        object.__setattr__(self, name, value)
        if isinstance(value, Tree):
            self._children[name] = cast(NodeT, value)
        else:
            self._children.pop(name, None)

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        self._children.pop(name, None)

    def add_module(self, name: str, module: NodeT) -> None:
        """Make `module` a child and an attribute called `name`.

        Raises:
            TypeError: `module` is not a Module.
            ValueError: the name holds a dot, or is an attribute that is not a child; or `module` is this
                module, or holds it.
        """
        if not isinstance(module, Tree):
            raise TypeError(f"{name}: expected a Module, got {type(module).__name__}")
        if "." in name or (name not in self._children and hasattr(self, name)):
            raise ValueError(f"name: expected a free attribute name without a dot, got {name!r}")
        setattr(self, name, module)

    def named_children(self) -> Iterator[tuple[str, NodeT]]:
        """Iterate over (attribute name, child)."""
        yield from self._children.items()

    def children(self) -> Iterator[NodeT]:
        """Iterate over the children."""
        yield from self._children.values()

    def named_modules(self) -> Iterator[tuple[str, NodeT]]:
        """Iterate over (dotted name, module) of the whole tree, this module ("") first, each module once."""
        found: dict[int, tuple[str, NodeT]] = {}
        self._walk("", found)
        return iter(found.values())

    def modules(self) -> Iterator[NodeT]:
        """Iterate over the modules of the whole tree, this one first, each once."""
        return (module for _, module in self.named_modules())

    def _walk(self, prefix: str, found: dict[int, tuple[str, NodeT]]) -> None:
        if id(self) in found:
            return
        found[id(self)] = prefix, self  # type: ignore[assignment]
        for name, child in self._children.items():
            child._walk(f"{prefix}.{name}" if prefix else name, found)

    def _refuse_around(self, name: str, module: Tree[Any]) -> None:
        """Refuse a child that is this module or holds it: calls and texts of such a tree have no end."""
        if any(member is self for member in module.modules()):
            got = "itself" if module is self else f"a {type(module).__name__} that holds it"
            raise ValueError(f"{name}: expected a module without this {type(self).__name__} in it, got {got}")

    def _check_found(self) -> None:
        """Refuse a tree with modules in plain containers, where nothing would train, save or move them."""
        members = list(self.named_modules())
        known = {id(member) for _, member in members}
        for prefix, member in members:
            for name, value in member.__dict__.items():
                if isinstance(value, CONTAINERS) and name not in member._not_searched:
                    member._refuse_hidden(f"{prefix}.{name}" if prefix else name, value, known)

    def _refuse_hidden(self, name: str, value: Any, known: set[int]) -> None:
        container = _hiding(value, known, set())
        if container is not None:
            raise TypeError(
                f"{name}: modules in a {type(container).__name__} are not found; "
                "use ModuleList or ModuleDict, or add_module for each"
            )


def _hiding(value: Any, known: set[int], seen: set[int]) -> Any:
    """Return the container, at any depth, that has a module which is none of those known, or None."""
    if id(value) in seen:
        return None
    seen.add(id(value))
    for item in list(value.values()) if isinstance(value, dict) else list(value):
        if isinstance(item, Tree):
            if id(item) not in known:
                return value
        elif isinstance(item, CONTAINERS) and (found := _hiding(item, known, seen)) is not None:
            return found
    return None
