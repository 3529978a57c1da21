"""Arguments and parameters of what runs on kernels that take arrays of NumPy."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from fusedrnn.interop.torch.kernels import Tensor, numpy

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def check_tensor(name: str, value: Any) -> None:
    """Raise TypeError or RuntimeError where it is not a tensor on the CPU."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    on_host(name, value)


def on_host(name: str, given: Any) -> Any:
    """Return what is given, a tensor of the CPU or no tensor at all; RuntimeError else."""
    if isinstance(given, Tensor) and not given.is_cpu:
        raise RuntimeError(f"{name}: expected a tensor on the CPU, got one on {given.device}; use .cpu()")
    return given


def as_array(given: Any) -> Any:
    """Return an array on the memory of a tensor, and what is no tensor as it is."""
    return numpy(given) if isinstance(given, Tensor) else given


def register(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module a parameter by its dotted name, with modules without a forward on the way to it."""
    *path, own = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module.register_parameter(own, nn.Parameter(value))


def outside_graphs(function: FunctionT) -> FunctionT:
    """Have torch.compile break its graph at calls of the function, inside of which it looks at nothing.

    torch.compiler.disable does that, and imports the compiler, which takes seconds.
    """
    disabled: Any = None

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal disabled
        if "torch._dynamo" not in sys.modules:
            return function(*arguments, **options)
        if disabled is None:
            disabled = torch.compiler.disable(function)
        return disabled(*arguments, **options)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]
