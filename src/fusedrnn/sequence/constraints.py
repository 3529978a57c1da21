"""Which tags may follow which: the schemes of named-entity tagging, and a user's own matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import refuse_mask

Mask = npt.NDArray[np.bool_]
# A type's tags in their order: whether each begins a span, and whether it ends one.
_SCHEMES = {"bio": {"B": (True, True), "I": (False, True)}}
_SCHEMES["bioes"] = {"B": (True, False), "I": (False, False), "E": (False, True), "S": (True, True)}


def allowed_tags(constraints: Any, num_tags: int) -> tuple[Mask, Mask, Mask] | None:
    """Return which tags may be first (K,), follow which (K, K) [from, to], and be last (K,); None: all.

    Raises:
        TypeError: not None, a name, or an array of bool.
        ValueError: another name, a number of tags that the scheme does not have, or another shape.
    """
    if constraints is None:
        return None
    if isinstance(constraints, str):
        if constraints not in _SCHEMES:
            raise ValueError(f"constraints: expected 'bio', 'bioes', a matrix or None, got {constraints!r}")
        return _scheme(constraints, num_tags)
    refuse_mask("constraints", constraints)
    matrix = np.asarray(constraints)
    if matrix.dtype != np.bool_:
        raise TypeError(f"constraints: expected a bool array, got {matrix.dtype}")
    if matrix.shape != (num_tags, num_tags):
        raise ValueError(f"constraints: expected shape (K, K) = ({num_tags}, {num_tags}), got {matrix.shape}")
    every = np.ones(num_tags, np.bool_)
    return every, matrix.copy(), every


def _scheme(name: str, num_tags: int) -> tuple[Mask, Mask, Mask]:
    """Return the masks of a scheme: tag 0 is O, then come the tags of one type after another."""
    parts = _SCHEMES[name]
    kinds, rest = divmod(num_tags - 1, len(parts))
    if rest:
        raise ValueError(
            f"num_tags: expected 1 + {len(parts)} n with constraints={name!r} (O, then "
            f"{', '.join(parts)} of each type), got {num_tags}"
        )
    begins = np.array([True, *[begin for begin, _ in parts.values()] * kinds])
    ends = np.array([True, *[end for _, end in parts.values()] * kinds])
    kind = np.array([-1, *np.repeat(np.arange(kinds), len(parts))])
    follows = ends[:, None] & begins[None, :]
    # Within a span: from what is not the last of one, or need not be, to what is not the first.
    inside = kind[:, None] == kind[None, :]
    open_after = np.array([False, *[part in ("B", "I") for part in parts] * kinds])
    return begins, follows | (inside & open_after[:, None] & ~begins[None, :]), ends
