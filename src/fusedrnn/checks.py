"""Checks of arguments that modules, cells and optimisers share: each returns its argument or raises.

The message is `name: expected (symbolic = actual), got ...`; TypeError for a kind or dtype, ValueError for a
value or shape. The arrays of a call into the kernels are checked there.
"""

import math
import operator
import sys
from collections.abc import Collection, Hashable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, refuse_mask

ChoiceT = TypeVar("ChoiceT")

# Each layer takes objects and steps of the interpreter, whatever its size.
MOST_LAYERS = 1000
# The largest number that is finite.
MOST = sys.float_info.max
# Characters of a value in an error.
_LONGEST = 100


def kind_error(name: str, value: Any, expected: str) -> TypeError:
    """Return the error for a value that is no array of the kind that calls take, and say what makes one."""
    got, way = type(value).__name__, ""
    if "cupy" in expected:
        way = f"; use cupy.asarray({name})"
    elif hasattr(value, "detach"):
        grad = bool(getattr(value, "requires_grad", False))
        off_cpu = str(getattr(value, "device", "cpu")) != "cpu"
        wide = not str(getattr(value, "dtype", "")).endswith("bfloat16")
        way = f"; use {name}{'.detach()' * grad}{'.cpu()' * off_cpu}{'' if wide else '.float()'}.numpy()"
        got += " that requires grad" * grad
        way += ": gradients are those that backward returns" * grad
    elif isinstance(value, (list, tuple, int, float, np.generic)) or hasattr(value, "__array__"):
        way = f"; use numpy.asarray({name})"
    return TypeError(f"{name}: expected {expected}, got {got}{way}")


def shown(value: Any) -> str:
    """Return a value as errors show it: of data that was given in its place the kind and the shape."""
    if getattr(value, "ndim", 0) and not isinstance(value, type):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def dtype_error(name: str, dtype: np.dtype[Any], got: object) -> TypeError:
    """Return the error for an array of another dtype, and say what converts it."""
    return TypeError(f"{name}: expected {dtype}, got {got}; use {name}.astype({dtype.name!r})")


def as_int64(name: str, array: Array) -> npt.NDArray[np.int64]:
    """Return an array of any integer dtype as kernels take int64; refuse others, and values past int64."""
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected an integer dtype, got {array.dtype}; use {name}.astype('int64')")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}: expected values below 2**63, got {array.max()}")
    converted = np.ascontiguousarray(array, dtype=np.int64)
    return converted if converted.flags.aligned else converted.copy()


def as_indices(name: str, array: Array) -> npt.NDArray[np.int64]:
    """Return an array of any integer dtype as 1-D contiguous int64."""
    return as_int64(name, array).reshape(-1)


def resolve_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return float32 or float64 as a dtype.

    Raises:
        TypeError: anything else.
    """
    try:
        found = np.dtype(dtype) if dtype is not None else None
    except TypeError:
        found = None
    # None first: NumPy takes it for float64 in comparisons.
    if found is None or found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"dtype: expected float32 or float64, got {shown(dtype)}")
    return found


def check_flag(name: str, value: bool) -> bool:
    """Return a boolean argument as bool, or raise TypeError."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {shown(value)}")
    return bool(value)


def check_size(name: str, value: int, minimum: int = 1, maximum: int | None = None) -> int:
    """Return an integer argument as int, or raise TypeError (kind) or ValueError (outside of the limits)."""
    try:
        size = operator.index(value)
    except TypeError:
        size = None
    if size is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an int, got {shown(value)}")
    if size < minimum:
        raise ValueError(f"{name}: expected an int >= {minimum}, got {size}")
    if maximum is not None and size > maximum:
        raise ValueError(f"{name}: expected an int <= {maximum}, got {size}")
    return size


def check_shapes(shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any]) -> list[int]:
    """Return the sizes of parameters, or raise ValueError where nothing can address so many bytes."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    if sum(sizes) * dtype.itemsize < 2**63:
        return sizes
    name = max(shapes, key=lambda name: math.prod(shapes[name]))
    raise ValueError(
        f"{name}: expected sizes with parameters below 2^63 bytes in all, "
        f"got {sum(sizes) * dtype.itemsize} bytes, most of them for the shape {shapes[name]}"
    )


def check_mapping(name: str, value: Any) -> None:
    """Refuse what is not a mapping: to look for names in an array may take forever."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {type(value).__name__}")


def check_names(name: str, owner: str, expected: Collection[str], given: Mapping[str, Any]) -> None:
    """Refuse a mapping that has not just the names expected, or raise ValueError with those that differ."""
    missing = [key for key in expected if key not in given]
    unexpected = [str(key) for key in given if key not in expected]
    if missing or unexpected:
        raise ValueError(
            f"{name}: expected the names of {owner}, got others; "
            f"missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}"
        )


def check_choice(name: str, value: ChoiceT, choices: Collection[Any]) -> ChoiceT:
    """Return an argument that is one of the choices, or raise ValueError."""
    # What has no hash is none of them, whether they stand in a dict or would be compared element by element.
    if not isinstance(value, Hashable) or value not in tuple(choices):
        *most, last = map(repr, choices)
        raise ValueError(f"{name}: expected {', '.join(most)} or {last}, got {shown(value)}")
    return value


def check_number(name: str, value: float, low: float = 0.0, high: float = math.inf) -> float:
    """Return a real argument in [low, high] as float, or raise TypeError (kind) or ValueError (range)."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(
            f"{name}: expected a number in [{low}, {high}], got an int past {MOST:.4g}"
        ) from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected a number in [{low}, {high}], got {number}")
    return number


def check_array(
    name: str,
    value: Any,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    symbols: str = "",
    kind: type[Any] = np.ndarray,
) -> Array:
    """Return an array argument, or raise TypeError (not an array, dtype) or ValueError (shape)."""
    if not isinstance(value, kind):
        raise kind_error(name, value, f"a {kind.__module__}.{kind.__name__}")
    refuse_mask(name, value)
    if value.dtype != dtype:
        raise dtype_error(name, dtype, value.dtype)
    if value.shape != shape:
        symbols = f"{symbols} = " if symbols else ""
        raise ValueError(f"{name}: expected shape {symbols}{shape}, got {value.shape}")
    return cast(Array, value)


def check_reset_after(reset_after: bool) -> None:
    """Refuse the cell whose reset gate acts before the matrix product."""
    if not check_flag("reset_after", reset_after):
        raise ValueError(
            "reset_after: expected True, got False; GRUCell is built with the reset gate after the matrix "
            "product only: see GRU(reset_after=False) and its stream"
        )
