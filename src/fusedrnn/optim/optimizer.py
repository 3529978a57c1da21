"""Optimizer: the base of the optimisers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fusedrnn.arrays import Array, as_array, assign
from fusedrnn.checks import check_array, check_mapping, check_names, check_number, check_size
from fusedrnn.listing import Listed
from fusedrnn.nn.buffers import named_views
from fusedrnn.nn.module import Module, gather_modules
from fusedrnn.optim.groups import Modules, ParameterGroup, split_groups
from fusedrnn.optim.layout import Layout


class Optimizer(Listed):
    """Base of the optimisers: modules, their flat state arrays, and a step count.

    Every setting is checked when it is assigned, as the arguments are. The state belongs to parameters by
    name and shape: it follows them if a tree is put together in another order. Modules that are frozen
    (`requires_grad_(False)`) are left as they are, and so is their state.

    Modules may come in groups with settings of their own, as in
    `Adam([{"params": model.rnn, "lr": 1e-4}, {"params": [model.head], "weight_decay": 0.0}], lr=1e-3)`.

    Attributes:
        lr: learning rate >= 0; set it to follow a schedule. It holds for all groups without one of their own.
        step_count: number of steps taken.
    """

    # Names of the settings, in state_dict.
    _settings: ClassVar[tuple[str, ...]] = ()
    lr: float
    step_count: int

    def __init__(self, modules: Modules, **settings: Any) -> None:
        self._single = isinstance(modules, Module)
        groups = split_groups(modules)
        self._modules = gather_modules([module for members, _ in groups for module in members])
        # For each module, its state arrays, in the order of its parameters.
        self._state: list[dict[str, Array]] = [{} for _ in self._modules]
        self._backends = [module._backend for module in self._modules]
        self._layouts = [Layout.of(module) for module in self._modules]
        # For each module, the number of its group.
        self._group_of = [number for number, (members, _) in enumerate(groups) for _ in members]
        # For each group, the settings that are not those of all.
        self._own_settings: list[dict[str, Any]] = [{} for _ in groups]
        self._assign(settings)
        for own, (_, given) in zip(self._own_settings, groups, strict=True):
            for name, value in given.items():
                self._assign_group(own, name, value)
        self.step_count = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._settings:
            self._assign({name: value})
        else:
            super().__setattr__(name, check_size(name, value, 0) if name == "step_count" else value)

    def _assign(self, settings: Mapping[str, Any]) -> None:
        """Check settings, also together with those that stay, and set them all or none."""
        checked = {name: self._check_setting(name, value) for name, value in settings.items()}
        for own in self._own_settings:
            self._check_together({**self.__dict__, **checked, **own})
        self._prepare(checked)
        self.__dict__.update(checked)

    def _assign_group(self, own: dict[str, Any], name: str, value: Any) -> None:
        """Check one setting of a group, also together with its others, and set it."""
        if name not in self._settings:
            raise ValueError(f"{name}: expected one of {', '.join(self._settings)} in a group, got {name!r}")
        checked = {name: self._check_setting(name, value)}
        self._check_together({**self.__dict__, **own, **checked})
        self._prepare(checked)
        own.update(checked)

    def _settings_of(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that hold in a group."""
        common = self.__dict__
        return {**{name: common[name] for name in self._settings}, **own}

    def _check_setting(self, name: str, value: Any) -> Any:
        """Return a checked setting; finite numbers >= 0 unless a subclass says otherwise."""
        return check_number(name, value, 0.0, sys.float_info.max)

    def _check_together(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings that exclude each other."""

    def _prepare(self, settings: Mapping[str, Any]) -> None:
        """Make the state that settings need which are about to be set."""

    @property
    def _state_names(self) -> tuple[str, ...]:
        """Names of the state arrays."""
        return tuple(self._state[0]) if self._state else ()

    def _zeros(self, names: tuple[str, ...]) -> list[dict[str, Array]]:
        """Return state arrays of zeros."""
        states = []
        for module in self._modules:
            module._gather()
            flat = module._flats()[0]
            with module._backend.on_device():
                states.append({name: module._backend.xp.zeros_like(flat) for name in names})
        return states

    def _follow(self) -> None:
        """Move the state to where its parameters are now.

        Raises:
            ValueError: a module has other parameters than when this optimiser was made.
            RuntimeError: a module has moved to another device since.
        """
        moved = []
        for module, backend, layout in zip(self._modules, self._backends, self._layouts, strict=True):
            if module._backend is not backend:
                raise RuntimeError(
                    f"{type(module).__name__}: expected it on {backend.name} as when the optimiser was made, "
                    f"got it on {module._backend.name}"
                )
            module._gather()
            # One object for as long as nothing was moved.
            if module._layout is layout.mark:
                moved.append(layout)
                continue
            now = Layout.of(module)
            if found := layout.difference(now):
                raise ValueError(
                    f"{type(module).__name__}: expected the parameters that it had when the optimiser was "
                    f"made, got others; {found}; make a new optimiser"
                )
            moved.append(now)
        if moved == self._layouts:
            return
        states = [
            {name: before.reorder(flat, now) for name, flat in state.items()}
            for state, before, now in zip(self._state, self._layouts, moved, strict=True)
        ]
        self._state, self._layouts = states, moved

    def _convert(self) -> None:
        """Convert the state to the dtype that the parameters have now."""
        self._layouts = [
            layout._replace(mark=None, dtype=module.dtype)
            for layout, module in zip(self._layouts, self._modules, strict=True)
        ]
        self._state = [
            {name: flat.astype(module.dtype) for name, flat in state.items()}
            for state, module in zip(self._state, self._modules, strict=True)
        ]
        self._follow()

    def step(self) -> None:
        """Update every parameter from its gradient.

        Raises:
            ValueError: a module has other parameters than when this optimiser was made.
            RuntimeError: a module has moved to another device since.
        """
        self._follow()
        settings = [self._settings_of(own) for own in self._own_settings]
        for module, number, state in zip(self._modules, self._group_of, self._state, strict=True):
            backend = module._backend
            parameters, grads = module._flats()
            with backend.on_device(), module._buffers:
                for part in module._trained():
                    values = {name: array[part] for name, array in state.items()}
                    self._update(backend.kernels, parameters[part], grads[part], values, settings[number])
        self.__dict__["step_count"] += 1

    def _update(
        self, kernels: Any, parameters: Array, grads: Array, state: dict[str, Array], settings: dict[str, Any]
    ) -> None:
        raise TypeError("Optimizer: use SGD, Adam or AdamW")

    @property
    def param_groups(self) -> list[ParameterGroup]:
        """The groups, one if none were given: `optimizer.param_groups[0]["lr"] = 1e-4`."""
        members: list[list[Module]] = [[] for _ in self._own_settings]
        for module, number in zip(self._modules, self._group_of, strict=True):
            members[number].append(module)
        return [ParameterGroup(self, *parts) for parts in zip(members, self._own_settings, strict=True)]

    def zero_grad(self) -> None:
        """Set the gradients of all modules to zero."""
        for module in self._modules:
            module.zero_grad()

    def _views(self, name: str, states: list[dict[str, Array]]) -> dict[str, Array]:
        """Return a state array as {parameter name: view}, numbering the modules if there are several."""
        views = {}
        for number, (layout, state) in enumerate(zip(self._layouts, states, strict=True)):
            for parameter, view in named_views(state[name], layout.shapes).items():
                views[parameter if self._single else f"{number}.{parameter}"] = view
        return views

    def state_dict(self) -> dict[str, Array]:
        """Return {"step": (), setting: () or (2,), ..., "state name.parameter name": copy}, NumPy arrays all.

        It can be saved as it is, `numpy.savez(path, **state)` or `safetensors.numpy.save_file(state, path)`,
        and what these load goes to `load_state_dict`. The learning rate that a schedule has set is in it.
        """
        self._follow()
        state = self._numbers()
        for name in self._state_names:
            for key, view in self._views(name, self._state).items():
                state[f"{name}.{key}"] = np.array(as_array(view))
        return state

    def _numbers(self) -> dict[str, Array]:
        """Return the step and the settings as arrays."""
        settings = {name: np.array(getattr(self, name)) for name in self._settings}
        for number, own in enumerate(self._own_settings):
            settings.update({f"group.{number}.{name}": np.array(value) for name, value in own.items()})
        return {"step": np.array(self.step_count, np.int64), **settings}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` of the same optimiser over the same modules returned.

        Everything is checked before anything is written. Settings and the step may be plain numbers too.

        Raises:
            TypeError: a value of the wrong kind or dtype.
            ValueError: names or shapes differ, or a setting or a second moment is out of range.
        """
        check_mapping("state_dict", state_dict)
        self._follow()
        kept = self._numbers()
        given = {name: _plain(name, state_dict[name], kept[name]) for name in kept if name in state_dict}
        settings = {name: self._check_setting(name, given[name]) for name in self._settings if name in given}
        groups = [
            {
                name: self._check_setting(name, given[key])
                for name in own
                if (key := f"group.{number}.{name}") in given
            }
            for number, own in enumerate(self._own_settings)
        ]
        states = self._zeros(self._states_in(state_dict, [settings, *groups]))
        views = {
            f"{name}.{key}": view
            for name in (states[0] if states else ())
            for key, view in self._views(name, states).items()
        }
        check_names("state_dict", "this optimiser", (*kept, *views), state_dict)
        step = check_size("step", given["step"], 0)
        for own in groups:
            self._check_together({**settings, **own})
        for name, view in views.items():
            values = check_array(name, as_array(state_dict[name], name), view.shape, view.dtype)
            self._check_state(name, values)
            assign(view, values)
        self._state = states
        self.__dict__.update(settings, step_count=step)
        for own, loaded in zip(self._own_settings, groups, strict=True):
            own.update(loaded)

    def _check_state(self, name: str, values: Array) -> None:
        """Refuse values, of the right shape, that a state array of a state_dict cannot have."""

    def _states_in(self, state_dict: Mapping[str, Any], settings: list[dict[str, Any]]) -> tuple[str, ...]:
        """Return the names of the state arrays that a state_dict has, given settings of all and of groups."""
        return self._state_names

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layouts": [layout._replace(mark=None) for layout in self._layouts]}

    def __repr__(self) -> str:
        modules = repr(self._modules[0] if self._single else self._modules)
        if any(self._own_settings):
            modules = repr(self.param_groups)
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._settings)
        return f"{type(self).__name__}({modules}, {settings})"


def _plain(name: str, value: Any, like: Array) -> Any:
    """Return as plain numbers what was saved as an array like another; everything else as it is."""
    if not hasattr(value, "__array__") or isinstance(value, np.generic):
        return value
    return check_array(name, as_array(value, name), like.shape, like.dtype).tolist()
