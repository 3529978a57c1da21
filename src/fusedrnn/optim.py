"""SGD, Adam and AdamW on the flat parameter arrays, with PyTorch's formulas."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from fusedrnn.cells import Array
from fusedrnn.checks import as_array, assign, check_array, check_flag, check_number, check_size
from fusedrnn.module import Module, gather_modules


class Optimizer:
    """Base of the optimisers: modules, their flat state arrays, and a step count.

    Attributes:
        lr: learning rate >= 0; set it to follow a schedule.
        step_count: number of steps taken.
    """

    # Names of the settings and of the state arrays, in state_dict.
    _settings: ClassVar[tuple[str, ...]] = ()
    _state_names: tuple[str, ...] = ()

    def __init__(self, modules: Module | Iterable[Module], lr: float) -> None:
        self._modules = gather_modules(modules)
        self._single = isinstance(modules, Module)
        self.lr = lr
        self.step_count = 0

    def _allocate(self, names: tuple[str, ...]) -> None:
        self._state_names = names
        self._state = []
        for module in self._modules:
            flat = module._flat_parameters()
            with module._backend.on_device():
                self._state.append({name: module._backend.xp.zeros_like(flat) for name in names})
        self._backends = [module._backend for module in self._modules]
        self._sizes = [module.num_parameters for module in self._modules]

    @property
    def lr(self) -> float:
        """Learning rate."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = check_number("lr", value)

    def step(self) -> None:
        """Update every parameter from its gradient.

        Raises:
            ValueError: a module has other parameters than when this optimiser was made.
            RuntimeError: a module has moved to another device since.
        """
        arrays = [(module._flat_parameters(), module.flat_grads) for module in self._modules]
        checked = zip(self._modules, arrays, self._sizes, self._backends, strict=True)
        for module, (parameters, _), size, backend in checked:
            if module._backend is not backend:
                raise RuntimeError(
                    f"{type(module).__name__}: expected it on {backend.name} as when the optimiser was made, "
                    f"got it on {module._backend.name}"
                )
            if parameters.size != size:
                raise ValueError(
                    f"{type(module).__name__}: expected {size} parameters as when the optimiser was made, "
                    f"got {parameters.size}"
                )
        try:
            for (parameters, grads), state, backend in zip(arrays, self._state, self._backends, strict=True):
                with backend.on_device():
                    self._update(backend.kernels, parameters, grads, state)
        finally:
            for module in self._modules:
                module._buffers.changed()
        self.step_count += 1

    def _update(self, kernels: Any, parameters: Array, grads: Array, state: dict[str, Array]) -> None:
        raise TypeError("Optimizer: use SGD, Adam or AdamW")

    def zero_grad(self) -> None:
        """Set the gradients of all modules to zero."""
        for module in self._modules:
            module.zero_grad()

    def _views(self, name: str) -> dict[str, Array]:
        """Return a state array as {parameter name: view}, numbering the modules if there are several."""
        views = {}
        for number, (module, state) in enumerate(zip(self._modules, self._state, strict=True)):
            start = 0
            module._gather()
            for parameter, array in module._tree.items():
                key = parameter if self._single else f"{number}.{parameter}"
                views[key] = state[name][start : start + array.size].reshape(array.shape)
                start += array.size
        return views

    def state_dict(self) -> dict[str, Any]:
        """Return {"step": int, setting: value, ..., state name: {parameter name: copy}}, to save as it is."""
        settings = {name: getattr(self, name) for name in self._settings}
        arrays = {
            name: {key: np.array(as_array(view)) for key, view in self._views(name).items()}
            for name in self._state_names
        }
        return {"step": self.step_count, **settings, **arrays}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` of the same optimiser over the same modules returned.

        Everything is checked before anything is written.

        Raises:
            TypeError: a value of the wrong kind or dtype.
            ValueError: names or shapes differ, or a setting is out of range.
        """
        names = ("step", *self._settings, *self._state_names)
        _check_names("state_dict", names, state_dict)
        step = check_size("step", state_dict["step"], 0)
        settings = {name: self._check_setting(name, state_dict[name]) for name in self._settings}
        targets = {name: self._views(name) for name in self._state_names}
        for name, views in targets.items():
            _check_names(name, tuple(views), state_dict[name])
            for key, view in views.items():
                check_array(f"{name} {key}", as_array(state_dict[name][key]), view.shape, view.dtype)
        for name, views in targets.items():
            for key, view in views.items():
                assign(view, as_array(state_dict[name][key]))
        for name, value in settings.items():
            setattr(self, name, value)
        self.step_count = step

    def _check_setting(self, name: str, value: Any) -> Any:
        """Return a checked setting; numbers >= 0 unless a subclass says otherwise."""
        return check_number(name, value)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)}" for name in self._settings)
        return f"{type(self).__name__}({settings})"


def _check_names(what: str, expected: tuple[str, ...], given: Mapping[str, Any]) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{what}: expected a mapping, got {type(given).__name__}")
    missing = [name for name in expected if name not in given]
    unexpected = [str(name) for name in given if name not in expected]
    if missing or unexpected:
        raise ValueError(
            f"{what}: expected the names of this optimiser, got others; "
            f"missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}"
        )


class SGD(Optimizer):
    """Stochastic gradient descent.

    g = grad + weight_decay * p; buf = momentum * buf + (1 - dampening) * g, in the first step buf = g;
    g = g + momentum * buf with nesterov, else buf; p = p - lr * g.

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

    def __init__(
        self,
        modules: Module | Iterable[Module],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(modules, lr)
        self.momentum = check_number("momentum", momentum)
        self.dampening = check_number("dampening", dampening, -np.inf)
        self.weight_decay = check_number("weight_decay", weight_decay)
        self.nesterov = check_flag("nesterov", nesterov)
        if self.nesterov and (self.momentum == 0.0 or self.dampening != 0.0):
            raise ValueError("nesterov: expected momentum > 0 and dampening = 0")
        self._allocate(("momentum_buffer",) if self.momentum else ())

    def _update(self, kernels: Any, parameters: Array, grads: Array, state: dict[str, Array]) -> None:
        kernels.sgd_step(
            parameters,
            grads,
            state.get("momentum_buffer"),
            self.lr,
            self.momentum,
            self.dampening,
            self.weight_decay,
            self.nesterov,
            self.step_count == 0,
        )

    def _check_setting(self, name: str, value: Any) -> Any:
        if name == "nesterov":
            return check_flag(name, value)
        return check_number(name, value, -np.inf if name == "dampening" else 0.0)


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
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        modules: Module | Iterable[Module],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(modules, lr)
        self.betas = _check_betas(betas)
        self.eps = check_number("eps", eps)
        self.weight_decay = check_number("weight_decay", weight_decay)
        self._allocate(("exp_avg", "exp_avg_sq"))

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
        return _check_betas(value) if name == "betas" else check_number(name, value)


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

    Arguments and exceptions as `Adam`, but weight_decay is 0.01 if not given.

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
