"""check_gradients: what backward returns and adds, against differences of forward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fusedrnn.arrays import Array, assign
from fusedrnn.checks import check_number, check_size, kind_error
from fusedrnn.init import Seed, make_rng
from fusedrnn.listing import Listed
from fusedrnn.nn.module import Module


class GradientCheck(Listed):
    """What `check_gradients` found; its repr is a table.

    Attributes:
        errors: {name: largest error of the values looked at}, of inputs ("x", "state[0]") and parameters.
        worst: the name with the largest.
        error: that of the worst; 1e-6 or less is right, 1e-2 or more wrong.
    """

    __slots__ = ("_looked_at", "error", "errors", "worst")

    def __init__(self, errors: Mapping[str, float], looked_at: Mapping[str, tuple[int, int]]) -> None:
        self.errors = dict(errors)
        self._looked_at = dict(looked_at)
        # NaN is the worst of all.
        self.worst = max(errors, key=lambda name: (np.isnan(errors[name]), errors[name]), default="")
        self.error = errors.get(self.worst, 0.0)

    def __repr__(self) -> str:
        width = max(map(len, self.errors), default=0)
        lines = [f"GradientCheck: error {self.error:.1e}" + f", worst in {self.worst}" * bool(self.errors)]
        for name, error in self.errors.items():
            some, size = self._looked_at[name]
            lines.append(f"  {name:{width}}  {error:.1e}  {some} of {size} values")
        return "\n".join(lines)


def check_gradients(
    module: Module,
    x: Any,
    *inputs: Any,
    samples: int | None = 50,
    eps: float = 1e-6,
    seed: Seed = 0,
    **options: Any,
) -> GradientCheck:
    """Compare the gradients of a module's backward with central differences of its forward.

    A copy in float64 is checked, whatever the module's dtype: of the gradients of all inputs of floats and
    all parameters that are not frozen, but for what stays as it is (a row of `padding_idx`, weight_hh between
    heads), up to `samples` values each. Dropout draws the same mask in every call. The error of a value is
    its difference, relative to the largest gradient of its array (or to a thousandth of the largest of all,
    where that is more). A difference across a kink of forward, as max and relu have, is no mistake.

    It also sees that forward and a call agree, that backward adds to the gradients and takes a tape twice,
    and that gradients have their arrays' shapes.

    Args:
        module: any module whose forward and backward keep the protocol of `Module`.
        x: its input.
        inputs: what else forward takes by position, as a state.
        samples: how many values of each array to look at, drawn at random; None for all.
        eps: step of the differences, relative to values above 1; from 1e-12 to 1.
        seed: int, numpy.random.Generator or None, for what is drawn.
        options: what forward takes by name, as lengths.

    Raises:
        TypeError: module is not a Module, or an argument of another wrong kind.
        ValueError: backward breaks one of the rules above, or the module is not on the CPU.
    """
    if not isinstance(module, Module):
        raise TypeError(f"module: expected a Module, got {type(module).__name__}")
    module._require_cpu("check_gradients")
    most = None if samples is None else check_size("samples", samples)
    step, rng = check_number("eps", eps, 1e-12, 1.0), make_rng(seed)
    trial = _Trial(copy.deepcopy(module).astype("float64"), (x, *inputs), options, rng)
    given, wanted = trial.analytic()
    largest = max([float(np.abs(gradient).max(initial=0)) for gradient in wanted.values()], default=0.0)
    floor = max(1e-3 * largest, 1e-4 * trial.magnitude, np.finfo(np.float64).tiny)
    errors, looked_at = {}, {}
    still = {
        f"{prefix}.{name}" if prefix else name: mask
        for prefix, member in module.named_modules()
        for name, mask in member._still().items()
    }
    for name, values in given.items():
        flat, gradient = values.reshape(-1), wanted[name].reshape(-1)
        some = np.flatnonzero(~still[name].reshape(-1)) if name in still else np.arange(flat.size)
        if most is not None and most < len(some):
            some = np.sort(rng.choice(some, most, replace=False))
        slopes = np.array([trial.slope(flat, int(index), step) for index in some])
        scale = max(float(np.abs(gradient).max(initial=0)), float(np.abs(slopes).max(initial=0)), floor)
        errors[name] = float(np.abs(slopes - gradient[some]).max(initial=0)) / scale
        looked_at[name] = (len(some), flat.size)
    return GradientCheck(errors, looked_at)


class _Trial:
    """A module with one set of inputs, and a loss: the sum of its outputs by random weights.

    Attributes:
        magnitude: the sum of what the loss adds up, without signs.
    """

    def __init__(
        self, module: Module, inputs: tuple[Any, ...], options: dict[str, Any], rng: np.random.Generator
    ) -> None:
        self._module, self._options = module, options
        self._names = ["x", *(f"inputs[{i}]" for i in range(len(inputs) - 1))]
        if module.has_state and len(inputs) > 1:
            self._names[1] = "state"
        self._inputs = [_wide(name, value) for name, value in zip(self._names, inputs, strict=True)]
        self._random = module.random_state()
        self._buffers = {name: np.array(array) for name, array in module.named_buffers()}
        *outputs, self._tape = self._forward()
        self._weights = [_map(lambda y: rng.standard_normal(y.shape), _outputs(output)) for output in outputs]
        pairs = list(zip(_leaves("", outputs), _leaves("", self._weights), strict=True))
        self.magnitude = float(sum([np.abs(y * weight).sum() for (_, y), (_, weight) in pairs]))
        self._check_call(outputs)

    def _forward(self) -> Any:
        """Return what forward does, with the dropout and the buffers of the first time."""
        self._reset()
        return self._module.forward(*self._inputs, **self._options)

    def _reset(self) -> None:
        self._module.load_random_state(self._random)
        for name, array in self._module.named_buffers():
            assign(array, self._buffers[name])

    def _check_call(self, outputs: list[Any]) -> None:
        self._reset()
        called = self._module(*self._inputs, **self._options)
        results = outputs[0] if len(outputs) == 1 else outputs
        for (name, y), (_, other) in zip(_leaves("y", results), _leaves("y", called), strict=True):
            if not np.allclose(y, other, rtol=1e-6, atol=1e-9, equal_nan=True):
                raise ValueError(f"{name}: expected a call to return what forward does, got other values")

    def analytic(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return {name: values} of inputs and parameters, and {name: gradient} by backward."""
        module = self._module
        module.zero_grad()
        returned = module.backward(self._tape, *self._weights)
        returned = list(returned) if isinstance(returned, (tuple, list)) else [returned]
        once = {name: grad.copy() for name, grad in module.grads.items()}
        module.backward(self._tape, *self._weights)
        given: dict[str, Array] = {}
        wanted: dict[str, Array] = {}
        got = [array for _, array in _leaves("", returned)]
        inputs = list(zip(self._names, self._inputs, strict=True))
        leaves = [leaf for name, value in inputs for leaf in _leaves(name, value)]
        for (name, value), gradient in zip(leaves, got, strict=False):
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                continue
            if not isinstance(gradient, np.ndarray) or gradient.shape != value.shape:
                shape = getattr(gradient, "shape", type(gradient).__name__)
                raise ValueError(f"{name}: expected a gradient of shape {value.shape}, got {shape}")
            given[name], wanted[name] = value, gradient
        frozen = {
            f"{prefix}.{name}" if prefix else name
            for prefix, member in module.named_modules()
            if member._frozen
            for name in member._shapes
        }
        for name, value in module.parameters.items():
            if name in frozen:
                continue
            if not np.allclose(module.grads[name], 2 * once[name], rtol=1e-6, atol=1e-12, equal_nan=True):
                raise ValueError(
                    f"grads[{name!r}]: expected backward to add to it, and the same with a tape used again, "
                    "got other values after the second"
                )
            given[name], wanted[name] = value, once[name]
        return given, wanted

    def slope(self, flat: Array, index: int, eps: float) -> float:
        """Return the difference of the loss along one value, by the step."""
        kept = float(flat[index])
        step = eps * max(1.0, abs(kept))
        ends = []
        for moved in (kept + step, kept - step):
            flat[index] = moved
            *outputs, _ = self._forward()
            pairs = zip(_leaves("", outputs), _leaves("", self._weights), strict=True)
            ends.append(sum([float((y * weight).sum()) for (_, y), (_, weight) in pairs]))
        flat[index] = kept
        return (ends[0] - ends[1]) / (2 * step)


def _wide(name: str, value: Any) -> Any:
    """Return a copy of an input with its floats in float64."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)) and all(
        isinstance(v, (tuple, np.ndarray, type(None))) for v in value
    ):
        return tuple([_wide(f"{name}[{index}]", item) for index, item in enumerate(value)])
    if not isinstance(value, np.ndarray):
        raise kind_error(name, value, "a numpy.ndarray")
    return np.array(value, np.float64 if value.dtype.kind == "f" else value.dtype, order="C")


def _outputs(value: Any) -> Any:
    for name, output in _leaves("y", value):
        if not isinstance(output, np.ndarray) or output.dtype.kind != "f":
            raise TypeError(
                f"{name}: expected forward to return arrays of floats, got {type(output).__name__}"
            )
    return value


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple([_map(function, item) for item in value])
    return function(value)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Iterate over (name, item) of what may be a nest of tuples."""
    if isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}[{index}]", item)
    else:
        yield name, value
