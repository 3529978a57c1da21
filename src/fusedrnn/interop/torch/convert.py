"""Swap the recurrent modules of a model for those of this library, and back."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from fusedrnn.interop.torch.cells import GRUCell, LSTMCell, RNNCell
from fusedrnn.interop.torch.modules import GRU, LSTM, RNN

ModelT = TypeVar("ModelT", bound=nn.Module)
_OURS: dict[type, type] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
_THEIRS: dict[type, type] = {ours: theirs for theirs, ours in _OURS.items()}


def convert(model: ModelT) -> ModelT:
    """Make every torch.nn LSTM, GRU and RNN of a model, and cell of one step, one of this library, in place.

    The modules stay the same objects with another class: parameters, optimisers, hooks, tied modules and
    `state_dict` are as before. Subclasses are left as they are.

    Args:
        model: a module, which may itself be recurrent.

    Returns:
        The model.

    Raises:
        TypeError: not a torch.nn.Module.
    """
    return _swap(model, _OURS)


def restore(model: ModelT) -> ModelT:
    """Undo `convert`.

    Args:
        model: a module.

    Returns:
        The model.

    Raises:
        TypeError: not a torch.nn.Module.
    """
    return _swap(model, _THEIRS)


def _swap(model: Any, classes: dict[type, type]) -> Any:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        other = classes.get(type(module))
        if other is not None:
            module.__class__ = other
    return model
