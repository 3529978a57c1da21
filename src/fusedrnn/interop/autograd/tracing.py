"""value_and_backward, and the parameters of modules as values of a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from autograd.core import make_vjp
from autograd.extend import defvjp_argnums, primitive
from autograd.tracer import getval, isbox

from fusedrnn.arrays import Array
from fusedrnn.nn.module import Module


class _Recording(threading.local):
    """The trace of this thread that modules record themselves in.

    Attributes:
        token: a traced number that every call takes, so that it is part of the trace even if no input is.
            None outside of `value_and_backward`, and inside of a module's own forward.
    """

    token: Any = None


recording = _Recording()


def value_and_backward(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs f once and adds to the `grads` of every module that it calls.

    Inside of f, NumPy is `autograd.numpy`, and a call of a module or a read of a parameter is traced. A
    module that defines `forward` and `backward` is one step of the trace; in one that does not, what its
    `__call__` does is traced, so that it needs no backward. A module that is called twice adds its gradients
    up.

    Args:
        f: a function of any arguments that returns the loss, a scalar, or a tuple of the loss and anything
            else, from which no gradient flows.

    Returns:
        A function of the same arguments that returns the loss as a float, and what comes beside it as plain
        arrays.

    Raises:
        TypeError: f is no function, or f returns no number.
        ValueError: the loss has axes, or depends on no module.
    """
    if not callable(f):
        raise TypeError(f"f: expected a function, got {type(f).__name__}")

    def value_and_backward_of_f(*arguments: Any, **options: Any) -> Any:
        beside: list[Any] = []

        def loss_of(token: Any) -> Any:
            outer, recording.token = recording.token, token
            try:
                result = f(*arguments, **options)
            finally:
                recording.token = outer
            if isinstance(result, tuple) and result:
                result, *rest = result
                beside.extend(rest)
            if not isbox(result):
                kind = type(result).__name__
                if not isinstance(result, (float, int, np.generic, np.ndarray)):
                    raise TypeError(f"f: expected a loss, a scalar, got {kind}")
                raise ValueError(f"f: expected a loss that depends on a module, got a constant {kind}")
            shape = np.shape(innermost(result))
            if shape != ():
                raise ValueError(f"f: expected a loss of shape (), got {shape}")
            return result

        backward, loss = make_vjp(loss_of, 0.0)
        backward(np.ones((), np.asarray(innermost(loss)).dtype))
        value = float(innermost(loss))
        return (value, *(untraced(each) for each in beside)) if beside else value

    return value_and_backward_of_f


def innermost(value: Any) -> Any:
    """Return what a value of any number of traces is without them."""
    while isbox(value):
        value = getval(value)
    return value


def untraced(value: Any) -> Any:
    """Return a value, or the values in tuples, lists and dictionaries, as plain ones."""
    value = innermost(value)
    if isinstance(value, dict):
        return {name: untraced(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        made = [untraced(each) for each in value]
        if isinstance(value, list):
            return made
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value


def traced_in(value: Any) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Iterate over the traced arrays in nested tuples, with the indices that lead to each."""
    if isbox(value) and not isinstance(innermost(value), (tuple, list)):
        yield (), value
    elif isbox(value) or isinstance(value, tuple):
        for index in range(len(value)):
            for path, found in traced_in(value[index]):
                yield (index, *path), found


def replaced(value: Any, values: Iterator[Any]) -> Any:
    """Return nested tuples with other arrays in place of those that `traced_in` finds, in its order."""
    if isbox(value) and not isinstance(innermost(value), (tuple, list)):
        return next(values)
    if isbox(value) or isinstance(value, tuple):
        return tuple([replaced(value[index], values) for index in range(len(value))])
    return value


def refuse_second_derivatives(*values: Any) -> None:
    """Raise NotImplementedError where a gradient would have to be a part of another trace."""
    if any(isbox(value) for value in values):
        raise NotImplementedError(
            "fusedrnn.autograd: expected one derivative, got a derivative of a gradient; "
            "for a recurrent layer's there is fusedrnn.functional.double_backward"
        )


def add_to(module: Module, name: str, gradient: Array) -> None:
    """Add to the gradient of a parameter of a module's own, unless it is frozen."""
    sums = module._sums()
    if name in sums:
        with module._turn.take():
            sums[name] += gradient


def parameter(module: Module, name: str) -> Any:
    """Return a copy of a parameter, inside `value_and_backward` one whose gradient is added to `grads`.

    It is what `module.name` gives for a parameter of a user's own; for those of layers this is the way.

    Args:
        module: the module that the parameter belongs to, not one above it.
        name: as in its `parameters`, without dots.

    Raises:
        TypeError: not a Module.
        ValueError: the module has no such parameter of its own.
        RuntimeError: the module is on a GPU.
    """
    if not isinstance(module, Module):
        raise TypeError(f"module: expected a Module, got {type(module).__name__}")
    if name not in module._own:
        own = ", ".join(module._own) or "none"
        raise ValueError(f"name: expected a parameter of this module's own ({own}), got {name!r}")
    module._require_cpu("fusedrnn.autograd")
    values = module._own[name].copy()
    return values if recording.token is None else _read(module, name, values, recording.token)


@primitive
def _read(module: Module, name: str, values: Array, token: float) -> Array:
    return values


def _vjp_of_read(argnums: Any, ans: Any, args: Any, options: Any) -> Any:
    module, name, values, _ = args

    def vjp(g: Any) -> Any:
        refuse_second_derivatives(g, ans)
        add_to(module, name, np.asarray(g, values.dtype))
        return (0.0,)

    return vjp


defvjp_argnums(_read, _vjp_of_read)
