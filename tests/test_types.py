"""Instances of compiled types come from their constructors: no way leads to one without its object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import _core, cuda

pytestmark = pytest.mark.once

METACLASS = type(_core.LayerTape)
MODULES = [m for m in (_core, cuda.loader.load() if cuda.is_available() else None) if m is not None]
TYPES = [value for m in MODULES for value in vars(m).values() if type(value) is METACLASS]


def test_all_are_here() -> None:
    names = (
        "WeightCache PlainCall LayerTape Stream Quantized QuantizedStream LayerCall ForwardCall BackwardCall"
    )
    assert set(names.split()) <= {kind.__name__ for kind in TYPES}


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_no_instance_without_its_constructor(kind: Any) -> None:
    with pytest.raises(TypeError):
        kind.__new__(kind)
    with pytest.raises(TypeError):
        object.__new__(kind)
    for base in kind.__mro__[1:]:
        with pytest.raises(TypeError):
            base.__new__(kind)
    with pytest.raises(TypeError):
        type("Derived", (kind,), {"__init__": lambda self: None})
    with pytest.raises(TypeError):
        METACLASS("Derived", (kind,), {})
    with pytest.raises(TypeError):
        kind.__init__ = None


def test_an_instance_keeps_its_type() -> None:
    lstm = fr.LSTM(4, 4, seed=0)
    _, _, tape = lstm.forward(np.ones((2, 3, 4), np.float32))
    found = [tape.layers[0], lstm.stream()._core, lstm.quantize("int8")._core, _core.WeightCache()]
    for instance in found:
        for kind in TYPES:
            if type(instance) is not kind:
                with pytest.raises(TypeError):
                    instance.__class__ = kind
        instance.__init__() if type(instance) is _core.WeightCache else None
    assert tape.layers[0].nbytes > 0
