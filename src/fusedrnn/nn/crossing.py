"""Crossing: modules on a GPU take the arrays of other libraries and return arrays of the same."""

from collections.abc import Callable
from functools import partial, wraps
from types import FunctionType
from typing import Any, TypeVar, cast

from fusedrnn.backend import CPU, first_array

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def crosses(method: MethodT) -> MethodT:
    """Wrap a method of one array, `forward` or a call: what is foreign goes through `Backend.across`."""

    def call(self: Any, x: Any) -> Any:
        backend = self._backend
        if backend is not CPU and backend.is_foreign(x):
            return backend.across(x, partial(method, self), x)
        return method(self, x)

    return _called_as(method, call)


def crosses_back(method: MethodT) -> MethodT:
    """Wrap a `backward(tape, dy)`; dy may be a state, with None in it."""

    def call(self: Any, tape: Any, dy: Any, *, need_dx: bool = True) -> Any:
        backend = self._backend
        if backend is not CPU and backend.is_foreign(example := first_array(dy)):
            return backend.across(example, partial(method, self, need_dx=need_dx), tape, dy)
        return method(self, tape, dy, need_dx=need_dx)

    return _called_as(method, call)


def _called_as(method: MethodT, wrapper: Callable[..., Any]) -> MethodT:
    """Return a wrapper with the method's names of its arguments, for those who give them by name.

    Arguments that are spelled out cost a call on the CPU next to nothing; `*arguments` would.
    """
    call = cast(FunctionType, wrapper)
    code = call.__code__
    count = code.co_argcount
    names = cast(FunctionType, method).__code__.co_varnames[:count] + code.co_varnames[count:]
    renamed = FunctionType(code.replace(co_varnames=names), call.__globals__, None, None, call.__closure__)
    renamed.__kwdefaults__ = call.__kwdefaults__
    return cast(MethodT, wraps(method)(renamed))
