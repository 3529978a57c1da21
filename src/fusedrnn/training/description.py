"""A model and a loss as text, by which a checkpoint tells whether they are those that it was made with."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np

from fusedrnn.nn.blocks import Residual
from fusedrnn.nn.containers import ModuleDict, ModuleList
from fusedrnn.nn.module import Module


def model_text(model: Module) -> dict[str, str]:
    """Return the modules by name, members first, those of this package with their options."""
    return {name: _module_text(module) for name, module in reversed(list(model.named_modules()))}


def _module_text(module: Module) -> str:
    kind = type(module)
    if isinstance(module, (ModuleList, ModuleDict, Residual)) or not kind.__module__.startswith("fusedrnn."):
        return kind.__qualname__
    # Which changes the memory, and no bit of a result.
    return repr(module).replace(", recompute=True", "")


def loss_text(loss: Any) -> str:
    """Return the name of a function, and what a `functools.partial` gives it."""
    if not isinstance(loss, functools.partial):
        found: str = getattr(loss, "__qualname__", type(loss).__qualname__)
        return found
    given = [_value_text(value) for value in loss.args]
    given += [f"{name}={_value_text(value)}" for name, value in sorted(loss.keywords.items())]
    return f"{loss_text(loss.func)}({', '.join(['...', *given])})"


def _value_text(value: Any) -> str:
    if isinstance(value, (bool, int, float, str)) or value is None:
        return repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:8]
        return f"{value.dtype} {value.shape} {digest}"
    return loss_text(value)
