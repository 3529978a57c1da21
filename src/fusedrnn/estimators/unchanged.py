"""What was fitted before stays, whatever ends a fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StoppedError(KeyboardInterrupt):
    """Ctrl-C in training, after an epoch or more, of which the network stays."""


@contextmanager
def unchanged_by_errors(estimator: Any, in_place: bool = False) -> Iterator[None]:
    """Keep network, classes and scales of before if a fit is refused, diverges or is interrupted.

    A network that Ctrl-C leaves after an epoch or more is whole, and stays.

    Args:
        estimator: any.
        in_place: whether the present network is trained on.
    """
    before = dict(estimator.__dict__)
    parts = [before["model_"], before["optimizer_"]] if in_place else []
    states = [part.state_dict() for part in parts]
    noise = before["model_"].random_state() if in_place else {}
    try:
        yield
    except StoppedError:
        raise
    except BaseException:
        estimator.__dict__.clear()
        estimator.__dict__.update(before)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        if in_place:
            before["model_"].load_random_state(noise)
        raise
