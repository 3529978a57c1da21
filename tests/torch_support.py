"""What tests of fusedrnn.torch beside torch.nn share."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

import fusedrnn.torch as ft  # noqa: E402


def pair(kind: str, dtype: Any = torch.float64, **options: Any) -> tuple[Any, Any]:
    """torch's module and ours with its weights."""
    torch.manual_seed(3)
    theirs = getattr(torch.nn, kind)(5, 7, dtype=dtype, **options)
    ours = getattr(ft, kind)(5, 7, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours
