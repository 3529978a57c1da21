"""What estimators take for X: arrays and lists of them, and tokens, as one list of sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MappingView
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from fusedrnn.arrays import Array, refuse_mask
from fusedrnn.checks import shown

_LIST = "a list of arrays (T, I), of strings or of lists of strings"


def holds_tokens(X: Any) -> bool:
    """Return whether X is a list of strings, whose characters are tokens, or of lists of strings."""
    if not isinstance(X, (list, tuple)) or not len(X):
        return False
    return all(
        isinstance(x, str) or (isinstance(x, (list, tuple)) and all(isinstance(token, str) for token in x))
        for x in X
    ) and any(isinstance(x, str) or len(x) for x in X)


def holds_sequences(X: Any) -> bool:
    """Return whether X is a list of arrays, or an array (N, T, I)."""
    if isinstance(X, (list, tuple)):
        return len(X) > 0 and all(isinstance(x, np.ndarray) and x.ndim in (1, 2) for x in X)
    return isinstance(X, np.ndarray) and X.ndim == 3


def check_ordered(name: str, value: Any, expected: str) -> None:
    """Refuse what is no array and has no items by number: a dict, a set, a generator, a number. And a string.

    NumPy would make an array of one object of it.
    """
    if hasattr(value, "__array__") or hasattr(value, "shape"):
        return
    got, way = type(value).__name__, ""
    if isinstance(value, Mapping):
        way = f"; use list({name}.values())"
    elif isinstance(value, (MappingView, Iterator)):
        way = f"; use list({name})"
    elif isinstance(value, (str, bytes)):
        got = shown(value)
    elif hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        return
    raise TypeError(f"{name}: expected {expected}, got {got}{way}")


def check_sequences(X: Any) -> None:
    """Refuse an X that is neither a list nor an array.

    Raises:
        TypeError: it is something else. None is found later.
    """
    if X is not None:
        check_ordered("X", X, f"{_LIST}, or an array (N, T, I) or (N, T)")


def as_sequences(estimator: Any, X: Any, reset: bool) -> list[Array]:
    """Return X as a list of float32 arrays (T_n, I), which are finite.

    Args:
        estimator: gets `n_features_in_` if reset, else X has to have as many.
        X: list of arrays (T_n, I) or, with one feature, (T_n,); an array (N, T, I), in which steps of nothing
            but NaN at the end are padding; or anything that scikit-learn takes for an array (N, T), with one
            feature.
        reset: whether this is the first X.

    Raises:
        TypeError, ValueError: something else.
    """
    if X is None or (isinstance(X, (list, tuple)) and not X):
        got = "None" if X is None else "none"
        raise ValueError(f"X: expected at least one sequence, got {got}")
    if not holds_sequences(X):
        _refuse_ragged(X)
        table = validate_data(estimator, X, dtype=np.float32, reset=reset)
        if reset:
            estimator._rank = 2
        elif estimator._rank != 2:
            raise ValueError(
                f"X: expected sequences of {estimator.n_features_in_} features as in fit, got a table"
            )
        return list(table[..., None])
    sequences = []
    for index, x in enumerate(X):
        refuse_mask(f"X[{index}]", x)
        if x.dtype.kind not in "fiub":
            raise TypeError(f"X[{index}]: expected an array of numbers, got {x.dtype}")
        with np.errstate(over="ignore"):  # found below
            x = np.asarray(x, np.float32)
        x = x[:, None] if x.ndim == 1 else x
        if not isinstance(X, (list, tuple)) and x.shape[1]:
            x = x[: _end(x)]
        if not np.isfinite(x).all():
            raise ValueError(
                f"X[{index}]: expected finite values in the range of float32, got NaN or infinity"
            )
        sequences.append(x)
    if not sequences:  # of an array
        raise ValueError("X: expected at least one sequence, got none")
    if not sequences[0].shape[1]:
        raise ValueError(f"X[0]: expected shape (T, I) with a feature or more, got {X[0].shape}")
    if reset:
        estimator.n_features_in_ = sequences[0].shape[1]
        estimator._rank = 3
    for index, x in enumerate(sequences):
        if x.shape[1] != estimator.n_features_in_ or estimator._rank != 3:
            raise ValueError(
                f"X[{index}]: expected shape (T, I) with I = {estimator.n_features_in_} features, "
                f"got {x.shape}"
            )
        if not len(x):
            raise ValueError(f"X[{index}]: expected at least one step, got none")
    return sequences


def refuse_missing(name: str, labels: Any) -> None:
    """Refuse classes and tags that are none: None and NaN, which NumPy would make the string "nan" of."""
    for index, label in enumerate(labels):
        gone = isinstance(label, (float, np.floating)) and bool(np.isnan(label))
        if label is None or gone or type(label).__name__ in ("NAType", "NaTType"):
            raise ValueError(f"{name}[{index}]: expected a class or tag, got {label}")


def given_classes(classes: Any) -> Array | None:
    """Return the argument `classes` of `partial_fit` sorted, or None.

    Raises:
        ValueError: one of them is None or NaN.
    """
    if classes is None:
        return None
    refuse_missing("classes", classes)
    return np.unique(classes)


def _refuse_ragged(X: Any) -> None:
    """Refuse lists of lists of different lengths, and arrays of objects or strings, with what to do."""
    expected = f"X: expected {_LIST}"
    if getattr(X, "ndim", 0) == 1 and np.asarray(X).dtype.kind in "OUST":
        raise ValueError(f"{expected}, got {type(X).__name__} of {X.dtype}; use X.tolist()")
    if isinstance(X, (list, tuple)) and any(np.iterable(x) for x in X):
        for index, x in enumerate(X):
            if np.iterable(x) and not isinstance(x, (str, bytes)):
                check_ordered(f"X[{index}]", x, "an array (T, I)")
        counts = {len(x) if hasattr(x, "__len__") else -1 for x in X}
        # Tables of pandas and the like, which are lists of their columns' names.
        tables = any(hasattr(x, "__array__") and not isinstance(x, (np.ndarray, np.generic)) for x in X)
        if len(counts) > 1 or tables:
            raise ValueError(
                f"{expected}, got {type(X[0]).__name__} in it; use [numpy.asarray(x) for x in X]"
            )


def _end(x: Array) -> int:
    """Return how many steps there are before those at the end that are nothing but NaN."""
    real = np.flatnonzero(~np.isnan(x).all(axis=1))
    return int(real[-1]) + 1 if real.size else 0
