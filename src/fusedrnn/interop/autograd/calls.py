"""Calls of modules as steps of a trace: `forward` when they are made, `backward` when gradients arrive."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import numpy as np
from autograd.extend import defvjp_argnums, primitive

from fusedrnn.inputs.lookup import Lookup
from fusedrnn.interop.autograd.tracing import (
    parameter,
    recording,
    refuse_second_derivatives,
    replaced,
    traced_in,
)
from fusedrnn.nn.blocks import Sequential
from fusedrnn.nn.module import Module
from fusedrnn.nn.rnn_cells import RecurrentCell
from fusedrnn.nn.store import Store
from fusedrnn.sequence.attention import AttentionDecoder


@cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def _with_gradients(module: Module, names: list[str]) -> list[str]:
    """Return the arguments of `forward` whose gradients `backward` returns, in that order."""
    if isinstance(module, AttentionDecoder):
        return ["x", "memory", "state"]
    return names[:2] if module.has_state or isinstance(module, RecurrentCell) else names


class _Call:
    """A call of a module: what `forward` was given, and later the tape.

    Attributes:
        traced: the arrays of a trace among the arguments.
    """

    def __init__(self, module: Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        module._require_cpu("fusedrnn.autograd")
        signature = _signature(type(module).forward)
        self.module = module
        self.bound = signature.bind(module, *arguments, **options)
        self.names = _with_gradients(module, list(signature.parameters)[1:])
        given = self.bound.arguments
        for name in given:
            if name not in self.names and any(traced_in(given[name])):
                raise TypeError(f"{name}: expected a plain array, which gets no gradient, got a traced one")
        found = [
            ((place, *path), box)
            for place, name in enumerate(self.names)
            for path, box in traced_in(given.get(name))
        ]
        self.paths, self.traced = [path for path, _ in found], [box for _, box in found]
        x = given.get(self.names[0]) if self.names else None
        self.lookup = x if isinstance(x, Lookup) and x._owner is not None else None

    def forward(self, values: tuple[Any, ...]) -> Any:
        """Run the module on plain arrays; return its outputs, several as one flat tuple."""
        given, rest = self.bound.arguments, iter(values)
        for name in self.names:
            if name in given:
                given[name] = replaced(given[name], rest)
        # What the module calls in turn belongs to its own backward.
        outer, recording.token = recording.token, None
        try:
            results = self.module.forward(*self.bound.args[1:], **self.bound.kwargs)
        finally:
            recording.token = outer
        *outputs, self.tape = results
        flat: list[Any] = []
        self.structure = [_flattened(output, flat) for output in outputs]
        self.several = len(flat) > 1
        return tuple(flat) if self.several else flat[0]

    def packed(self, result: Any) -> Any:
        """Return what `forward` returned, a box by now, as a call of the module would have."""
        parts = result if self.several else (result,)
        outputs = [_unflattened(each, parts) for each in self.structure]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def backward(self, flows: tuple[Any, ...], first: bool) -> list[Any]:
        """Add to the gradients of the module; return those of the traced arguments."""
        given = [_unflattened(each, flows) for each in self.structure]
        found = self.module.backward(self.tape, *given, need_dx=first or self.lookup is not None)
        if not isinstance(found, tuple) or len(self.names) == 1:
            found = (found,)
        if self.lookup is not None:
            self.lookup._owner.backward(self.lookup, found[0])  # type: ignore[union-attr]
        gradients = []
        for place, *path in self.paths:
            gradient = found[place] if place < len(found) else None
            for index in path:
                gradient = None if gradient is None else gradient[index]
            if gradient is None:
                kind = type(self.module).__name__
                raise TypeError(f"{self.names[place]}: {kind}.backward returns no gradient of it")
            gradients.append(gradient)
        return gradients


def _flattened(output: Any, flat: list[Any]) -> Any:
    """Append the arrays of nested tuples to a list; return the tuples with their places in it."""
    if isinstance(output, tuple):
        return tuple([_flattened(each, flat) for each in output])
    flat.append(output)
    return len(flat) - 1


def _unflattened(structure: Any, flat: Any) -> Any:
    """Undo `_flattened`."""
    if isinstance(structure, tuple):
        return tuple([_unflattened(each, flat) for each in structure])
    return flat[structure]


@primitive
def _step(call: _Call, token: Any, *values: Any) -> Any:
    return call.forward(values)


def _vjp_of_step(argnums: tuple[int, ...], ans: Any, args: tuple[Any, ...], options: Any) -> Any:
    call: _Call = args[0]
    answers = ans if call.several else (ans,)

    def vjp(g: Any) -> Any:
        flows = [g[place] for place in range(len(answers))] if call.several else [g]
        refuse_second_derivatives(*flows, ans)
        # What NumPy makes of a gradient on its way may have another dtype.
        plain = [np.asarray(flow, answer.dtype) for flow, answer in zip(flows, answers, strict=True)]
        first = any(place == 0 for place, *_ in call.paths)
        gradients = [None, 0.0, *call.backward(tuple(plain), first)]
        return [gradients[argnum] for argnum in argnums]

    return vjp


defvjp_argnums(_step, _vjp_of_step)


def _traced(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `__call__`: it is recorded where a trace is made of it, and else is as before."""

    @wraps(call)
    def __call__(self: Module, *arguments: Any, **options: Any) -> Any:
        token = recording.token
        # What most calls are, where it costs least.
        if token is None and len(arguments) == 1 and not options and type(arguments[0]) is np.ndarray:
            return call(self, arguments[0])
        if token is None and not any(traced_in((arguments, tuple(options.values())))):
            return call(self, *arguments, **options)
        if type(self).forward is Module.forward:
            return call(self, *arguments, **options)
        step = _Call(self, arguments, options)
        return step.packed(_step(step, 0.0 if token is None else token, *step.traced))

    return __call__


def _attribute(self: Module, name: str) -> Any:
    """Do what `self.name` does for a parameter of a user's own, which is traced."""
    if recording.token is not None and name in self.__dict__.get("_own", {}):
        return parameter(self, name)
    return _plain_attribute(self, name)


_plain_attribute = Store._attribute


def _reach(kind: type) -> None:
    """Have the calls of a class of modules, and reads of its parameters, traced."""
    # A Sequential calls its modules, each of which is traced.
    if "__call__" in kind.__dict__ and kind is not Sequential:
        setattr(kind, "__call__", _traced(kind.__dict__["__call__"]))  # noqa: B010
    if kind.__dict__.get("__getattr__") is _plain_attribute:
        setattr(kind, "__getattr__", _attribute)  # noqa: B010


def install() -> None:
    """Have the calls of all modules traced, of classes yet to be defined, too.

    The classes themselves are changed, so that calls cost nothing where this package is not imported.
    """
    waiting: list[type] = [Module]
    reached = set()
    while waiting:
        kind = waiting.pop()
        if kind not in reached:
            reached.add(kind)
            waiting += kind.__subclasses__()
            _reach(kind)

    def defined(cls: Any, /, **options: Any) -> None:
        super(Module, cls).__init_subclass__(**options)
        _reach(cls)

    setattr(Module, "__init_subclass__", classmethod(defined))  # noqa: B010
    setattr(Store, "_attribute", _attribute)  # noqa: B010
