"""Policies of stable-baselines3's contributions, whose sequences have beginnings of episodes inside."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from fusedrnn.interop.torch.convert import convert
from fusedrnn.interop.torch.kernels import Tensor

PolicyT = TypeVar("PolicyT", bound=type[nn.Module])


def process_sequence(
    features: Tensor, lstm_states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM over sequences in which episodes begin, in one call.

    It is what a recurrent policy of sb3-contrib calls `_process_sequence`, which takes the steps one by one
    as soon as an episode begins inside of a sequence. Where one begins, the state is zero before the step.

    Args:
        features: (N*T, I), the T steps of a sequence after one another.
        lstm_states: h and c, (num_layers, N, H) each.
        episode_starts: (N*T,), not 0 where an episode begins.
        lstm: a `fusedrnn.torch.LSTM`.

    Returns:
        outputs (N*T, H) in the order of features, and the final h and c.

    Raises:
        TypeError, ValueError, RuntimeError: as the LSTM's forward.
    """
    count = lstm_states[0].shape[1]
    x = features.reshape(count, -1, lstm.input_size).transpose(0, 1)
    begins = episode_starts != 0
    # Mostly there is none in the single step of a rollout, and a call without resets is a short one.
    some = torch.compiler.is_compiling() or bool(begins.any())
    resets = begins.reshape(count, -1).transpose(0, 1) if some else None
    y, state = lstm(x, lstm_states, resets=resets)
    return y.transpose(0, 1).flatten(0, 1), state


def recurrent_policy(policy: PolicyT) -> PolicyT:
    """Return a class of policies with the kernels of this library in place of torch.nn's LSTM.

        RecurrentPPO(recurrent_policy(MlpLstmPolicy), "CartPole-v1")

    Args:
        policy: a class of sb3_contrib's recurrent policies, or another module that keeps its LSTMs as
            submodules and runs them through `_process_sequence`.

    Returns:
        A subclass, whose sequences run in one call, also where episodes begin inside of them.

    Raises:
        TypeError: not a class of modules, or one without `_process_sequence`.
    """
    if not (isinstance(policy, type) and issubclass(policy, nn.Module)):
        raise TypeError(f"policy: expected a class of torch.nn.Module, got {policy!r}")
    if not hasattr(policy, "_process_sequence"):
        raise TypeError(f"policy: expected a class with _process_sequence, got {policy.__name__}")

    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        policy.__init__(self, *arguments, **options)
        convert(self)

    made = {
        "__init__": __init__,
        "__module__": policy.__module__,
        "_process_sequence": staticmethod(process_sequence),
    }
    return type(f"Fused{policy.__name__}", (policy,), made)  # type: ignore[return-value]
