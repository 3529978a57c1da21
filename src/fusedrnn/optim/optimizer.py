"""The optimisers and their base."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from fusedrnn.arrays import Array, as_array, assign
from fusedrnn.checks import check_array, check_flag, check_mapping, check_names, check_number, check_size
from fusedrnn.listing import Listed
from fusedrnn.nn.buffers import named_views
from fusedrnn.nn.module import Module, gather_modules
from fusedrnn.optim.layout import Layout


class Optimizer(Listed):
    """Base of the optimisers: modules, their flat state arrays, and a step count.

    Every setting is checked when it is assigned, as the arguments are. The state belongs to parameters by
    name and shape: it follows them if a tree is put together in another order.

    Attributes:
        lr: learning rate >= 0; set it to follow a schedule.
        step_count: number of steps taken.
    """

    # Names of the settings, in state_dict.
    _settings: ClassVar[tuple[str, ...]] = ()
    lr: float
    step_count: int

    def __init__(self, modules: Module | Iterable[Module], **settings: Any) -> None:
        self._modules = gather_modules(modules)
        self._single = isinstance(modules, Module)
        # For each module, its state arrays, in the order of its parameters.
        self._state: list[dict[str, Array]] = [{} for _ in self._modules]
        self._backends = [module._backend for module in self._modules]
        self._layouts = [Layout.of(module) for module in self._modules]
        self._assign(settings)
        self.step_count = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._settings:
            self._assign({name: value})
        else:
            super().__setattr__(name, check_size(name, value, 0) if name == "step_count" else value)

    def _assign(self, settings: Mapping[str, Any]) -> None:
        """Check settings, also together with those that stay, and set them all or none."""
        checked = {name: self._check_setting(name, value) for name, value in settings.items()}
        self._check_together({**self.__dict__, **checked})
        self._prepare(checked)
        self.__dict__.update(checked)

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
            flat = module._flat_parameters()
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
        states = [
            {name: before.reorder(flat, now) for name, flat in state.items()}
            for state, before, now in zip(self._state, self._layouts, moved, strict=True)
        ]
        self._state, self._layouts = states, moved

    def step(self) -> None:
        """Update every parameter from its gradient.

        Raises:
            ValueError: a module has other parameters than when this optimiser was made.
            RuntimeError: a module has moved to another device since.
        """
        self._follow()
        for module, state in zip(self._modules, self._state, strict=True):
            backend = module._backend
            parameters, grads = module._flat_parameters(), module.flat_grads
            with backend.on_device(), module._buffers:
                self._update(backend.kernels, parameters, grads, state)
        self.step_count += 1

    def _update(self, kernels: Any, parameters: Array, grads: Array, state: dict[str, Array]) -> None:
        raise TypeError("Optimizer: use SGD, Adam or AdamW")

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
        return {"step": np.array(self.step_count, np.int64), **settings}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` of the same optimiser over the same modules returned.

        Everything is checked before anything is written. Settings and the step may be plain numbers too.

        Raises:
            TypeError: a value of the wrong kind or dtype.
            ValueError: names or shapes differ, or a setting is out of range.
        """
        check_mapping("state_dict", state_dict)
        self._follow()
        kept = self._numbers()
        given = {name: _plain(name, state_dict[name], kept[name]) for name in kept if name in state_dict}
        settings = {name: self._check_setting(name, given[name]) for name in self._settings if name in given}
        states = self._zeros(self._states_in(state_dict, settings))
        views = {
            f"{name}.{key}": view
            for name in (states[0] if states else ())
            for key, view in self._views(name, states).items()
        }
        check_names("state_dict", "this optimiser", (*kept, *views), state_dict)
        step = check_size("step", given["step"], 0)
        self._check_together(settings)
        for name, view in views.items():
            assign(view, check_array(name, as_array(state_dict[name], name), view.shape, view.dtype))
        self._state = states
        self.__dict__.update(settings, step_count=step)

    def _states_in(self, state_dict: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the state arrays that a state_dict with these settings has to have."""
        return self._state_names

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layouts": [layout._replace(mark=None) for layout in self._layouts]}

    def __repr__(self) -> str:
        modules = repr(self._modules[0] if self._single else self._modules)
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._settings)
        return f"{type(self).__name__}({modules}, {settings})"


def _plain(name: str, value: Any, like: Array) -> Any:
    """Return as plain numbers what was saved as an array like another; everything else as it is."""
    if not hasattr(value, "__array__") or isinstance(value, np.generic):
        return value
    return check_array(name, as_array(value, name), like.shape, like.dtype).tolist()


class SGD(Optimizer):
    """Stochastic gradient descent.

    g = grad + weight_decay * p; buf = momentum * buf + (1 - dampening) * g, in the first step with momentum
    buf = g; g = g + momentum * buf with nesterov, else buf; p = p - lr * g.

    Args:
        modules: a module, or several that share nothing.
        lr: learning rate >= 0.
        momentum: >= 0.
        dampening: of the momentum.
        weight_decay: >= 0, L2 penalty.
        nesterov: needs momentum > 0 and dampening 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.
    """

    _settings = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    # Whether the momentum buffer waits for its first step.
    _fresh: bool = True

    def __init__(
        self,
        modules: Module | Iterable[Module],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            modules,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )

    def _prepare(self, settings: Mapping[str, Any]) -> None:
        if settings.get("momentum") and not self._state_names:
            self._state, self._fresh = self._zeros(("momentum_buffer",)), True

    def step(self) -> None:
        """Update every parameter from its gradient; raises what `Optimizer.step` does."""
        super().step()
        self._fresh = self._fresh and not self.momentum

    def _update(self, kernels: Any, parameters: Array, grads: Array, state: dict[str, Array]) -> None:
        kernels.sgd_step(
            parameters,
            grads,
            state["momentum_buffer"] if self.momentum else None,
            self.lr,
            self.momentum,
            self.dampening,
            self.weight_decay,
            self.nesterov,
            self._fresh,
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a `state_dict`, with a momentum buffer or without; raises what the base's does."""
        super().load_state_dict(state_dict)
        self._fresh = not any(as_array(array).any() for state in self._state for array in state.values())

    def _states_in(self, state_dict: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, ...]:
        saved = any(str(name).startswith("momentum_buffer.") for name in state_dict)
        return ("momentum_buffer",) if saved or settings.get("momentum") else ()

    def _check_setting(self, name: str, value: Any) -> Any:
        if name == "nesterov":
            return check_flag(name, value)
        if name == "dampening":
            return check_number(name, value, -sys.float_info.max, sys.float_info.max)
        return super()._check_setting(name, value)

    def _check_together(self, settings: Mapping[str, Any]) -> None:
        if settings["nesterov"] and (not settings["momentum"] or settings["dampening"]):
            raise ValueError(
                "nesterov: expected momentum > 0 and dampening = 0, got "
                f"momentum={settings['momentum']}, dampening={settings['dampening']}"
            )


class Adam(Optimizer):
    """Adam, with an L2 penalty.

    g = grad + weight_decay * p; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    p = p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    Where v overflows (float32: gradients above 1e19), `step` leaves the parameter and its moments as they
    are, and raises ValueError after the others have taken it.

    Args:
        modules: a module, or several that share nothing.
        lr: learning rate >= 0.
        betas: (b1, b2), each in [0, 1).
        eps: at least sqrt(tiny / (1 - b2)), tiny being the smallest normal number of the parameters' dtype
            (3.4e-18 for float32 by default): `step` refuses one whose square vanishes.
        weight_decay: >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Kingma and Ba 2014, arXiv:1412.6980v9.
    """

    _settings = ("lr", "betas", "eps", "weight_decay")
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        modules: Module | Iterable[Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self._state = self._zeros(("exp_avg", "exp_avg_sq"))

    def _update(self, kernels: Any, parameters: Array, grads: Array, state: dict[str, Array]) -> None:
        kernels.adam_step(
            parameters,
            grads,
            state["exp_avg"],
            state["exp_avg_sq"],
            self.lr,
            *self.betas,
            self.eps,
            self.weight_decay,
            self._decoupled,
            self.step_count + 1,
        )

    def _check_setting(self, name: str, value: Any) -> Any:
        return _check_betas(value) if name == "betas" else super()._check_setting(name, value)


def _check_betas(betas: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas: expected a pair of numbers, got {betas!r}")
    # The largest float below 1: with 1 itself the bias correction would divide by zero.
    below_one = float(np.nextafter(1.0, 0.0))
    return check_number("betas[0]", betas[0], 0.0, below_one), check_number(
        "betas[1]", betas[1], 0.0, below_one
    )


class AdamW(Adam):
    """Adam with weight decay apart from the gradient: p = p - lr * weight_decay * p, then Adam's step.

    Args:
        modules: a module, or several that share nothing.
        lr: learning rate >= 0.
        betas: (b1, b2), each in [0, 1).
        eps: added to the denominator; at least sqrt(tiny / (1 - b2)), as `Adam` says.
        weight_decay: >= 0.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Loshchilov and Hutter 2017, arXiv:1711.05101v3.
    """

    _decoupled = True

    def __init__(
        self,
        modules: Module | Iterable[Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(modules, lr, betas, eps, weight_decay)
