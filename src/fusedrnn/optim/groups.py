"""Parameter groups: modules with settings of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Protocol, TypeAlias

from fusedrnn.nn.module import Module, gather_modules

Modules: TypeAlias = "Module | Iterable[Module] | Iterable[Mapping[str, Any]]"


class Grouped(Protocol):
    """What a group asks of its optimiser."""

    def _assign_group(self, own: dict[str, Any], name: str, value: Any) -> None: ...

    def _settings_of(self, own: Mapping[str, Any]) -> dict[str, Any]: ...


class ParameterGroup(MutableMapping[str, Any]):
    """Some modules of an optimiser: `group["lr"]` is what holds for them, and can be set for them alone.

    `group["params"]` are the modules, `del group["lr"]` gives them the optimiser's again.
    """

    def __init__(self, optimizer: Grouped, modules: list[Module], own: dict[str, Any]) -> None:
        self._optimizer = optimizer
        self._modules = modules
        self._own = own

    def __getitem__(self, name: str) -> Any:
        return self._modules if name == "params" else self._optimizer._settings_of(self._own)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._optimizer._assign_group(self._own, name, value)

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter(("params", *self._optimizer._settings_of(self._own)))

    def __len__(self) -> int:
        return 1 + len(self._optimizer._settings_of(self._own))

    def __repr__(self) -> str:
        return repr({"params": self._modules, **self._own})


def split_groups(modules: object) -> list[tuple[list[Module], dict[str, Any]]]:
    """Return the modules and the settings of each group, of one if none are given.

    Raises:
        TypeError: groups and modules beside each other, or a group's "params" are no modules.
        ValueError: a group without "params", or no modules at all.
    """
    if isinstance(modules, (Module, Mapping)) or not isinstance(modules, Iterable):
        return [(gather_modules(modules), {})]
    items = list(modules)
    if not items:
        raise ValueError("modules: expected a Module, a list of them or of groups, got none")
    if not any(type(item) is dict for item in items):
        return [(gather_modules(items), {})]
    groups = []
    for number, item in enumerate(items):
        if type(item) is not dict:
            kind = type(item).__name__
            raise TypeError(f"modules[{number}]: expected a group as the others, a dict, got {kind}")
        own = dict(item)
        if "params" not in own:
            raise ValueError(
                f"modules[{number}]: expected a group with 'params', got {', '.join(map(str, own))}"
            )
        groups.append((gather_modules(own.pop("params")), own))
    return groups
