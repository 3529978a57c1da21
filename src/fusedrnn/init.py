"""Initialisers. Each fills an array in place and returns it; all randomness comes from `rng`."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from fusedrnn import _core
from fusedrnn.arrays import Array, refuse_mask
from fusedrnn.cells import CellSpec, Initial
from fusedrnn.checks import MOST, check_choice, check_number, check_size, kind_error

Seed: TypeAlias = int | np.random.Generator | None

RECURRENT_METHODS = ("default", "torch")

_PART = 1 << 20  # elements drawn at a time
_REFLECTIONS = 96  # taken together: enough for the products to be worth it


__all__ = [
    "forget_gate_bias",
    "he_normal",
    "he_uniform",
    "orthogonal",
    "recurrent_layer",
    "torch_uniform",
    "xavier_normal",
    "xavier_uniform",
]


def __dir__() -> list[str]:
    return __all__


def make_rng(seed: Seed, name: str = "seed") -> np.random.Generator:
    """Return a Generator: the given one, one seeded with an int, or one seeded by the system.

    Raises:
        TypeError: `seed` is not an int, a numpy.random.Generator or None.
        ValueError: `seed` is negative.
    """
    if seed is None or isinstance(seed, np.random.Generator):
        return np.random.default_rng(seed)
    try:
        number = operator.index(seed)
    except TypeError:
        kind = type(seed).__name__
        raise TypeError(f"{name}: expected an int, a numpy.random.Generator or None, got {kind}") from None
    if number < 0:
        raise ValueError(f"{name}: expected an int >= 0, got {number}")
    return np.random.default_rng(number)


class Noise:
    """The randomness of a dropout layer: a seed drawn once, and an offset that names each application."""

    __slots__ = ("offset", "seed")

    def __init__(self, rng: np.random.Generator) -> None:
        self.seed = int(rng.integers(0, 2**64, dtype=np.uint64))
        self.offset = 0

    def take(self, p: float) -> tuple[float, int, int]:
        """Return (p, seed, offset) of a new application; the same triple draws the same mask again."""
        offset = self.offset
        self.offset = offset + 1
        return p, self.seed, offset

    def streams(self, count: int) -> tuple[int, int]:
        """Return (seed, offset) of so many applications, at consecutive offsets."""
        offset = self.offset
        self.offset = offset + count
        return self.seed, offset


def xavier_uniform(array: Array, gain: float = 1.0, *, rng: Seed = None) -> Array:
    """Fill with U(-a, a), a = gain * sqrt(6 / (fan_in + fan_out)).

    Args:
        array: (fan_out, fan_in), float32 or float64; further axes count into both fans.
        gain: scale factor.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.

    Raises:
        TypeError: not a float array.
        ValueError: read-only, fewer than two axes, or a gain that is not finite.

    Paper: Glorot and Bengio 2010.
    """
    fan_in, fan_out = _fans(array)
    gain = check_number("gain", gain, -MOST, MOST)
    return _uniform(array, gain * _inverse_root((fan_in + fan_out) / 6.0), rng)


def xavier_normal(array: Array, gain: float = 1.0, *, rng: Seed = None) -> Array:
    """Fill with N(0, s^2), s = gain * sqrt(2 / (fan_in + fan_out)).

    Args:
        array: (fan_out, fan_in), float32 or float64; further axes count into both fans.
        gain: scale factor.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.

    Raises:
        TypeError: not a float array.
        ValueError: read-only, fewer than two axes, or a gain that is not finite.

    Paper: Glorot and Bengio 2010.
    """
    fan_in, fan_out = _fans(array)
    gain = check_number("gain", gain, -MOST, MOST)
    return _normal(array, gain * _inverse_root((fan_in + fan_out) / 2.0), rng)


def he_uniform(array: Array, *, mode: str = "fan_in", rng: Seed = None) -> Array:
    """Fill with U(-a, a), a = sqrt(6 / fan), for layers followed by a rectifier.

    Args:
        array: (fan_out, fan_in), float32 or float64.
        mode: "fan_in" keeps the variance of the forward pass, "fan_out" that of the backward pass.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.

    Raises:
        TypeError: not a float array.
        ValueError: read-only, fewer than two axes, or an unknown mode.

    Paper: He et al. 2015, arXiv:1502.01852v1.
    """
    return _uniform(array, _inverse_root(_fan(array, mode) / 6.0), rng)


def he_normal(array: Array, *, mode: str = "fan_in", rng: Seed = None) -> Array:
    """Fill with N(0, s^2), s = sqrt(2 / fan), for layers followed by a rectifier.

    Args:
        array: (fan_out, fan_in), float32 or float64.
        mode: "fan_in" keeps the variance of the forward pass, "fan_out" that of the backward pass.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.

    Raises:
        TypeError: not a float array.
        ValueError: read-only, fewer than two axes, or an unknown mode.

    Paper: He et al. 2015, arXiv:1502.01852v1.
    """
    return _normal(array, _inverse_root(_fan(array, mode) / 2.0), rng)


def orthogonal(array: Array, gain: float = 1.0, *, rng: Seed = None) -> Array:
    """Fill with a (semi-)orthogonal matrix times gain, uniform over all of them.

    Args:
        array: (rows, columns), float32 or float64; further axes are folded into the columns.
        gain: scale factor.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.

    Raises:
        TypeError: not a float array.
        ValueError: read-only, fewer than two axes, or a gain that is not finite.

    Papers: Saxe, McClelland and Ganguli 2013, arXiv:1312.6120v3; Stewart 1980, The Efficient Generation of
    Random Orthogonal Matrices.
    """
    _fans(array)
    gain = check_number("gain", gain, -MOST, MOST)
    rows = array.shape[0]
    columns = math.prod(array.shape[1:])
    q = _orthonormal_rows(min(rows, columns), max(rows, columns), make_rng(rng, "rng"))
    array[...] = gain * (q if rows <= columns else q.T).reshape(array.shape)
    return array


def torch_uniform(array: Array, fan: int, *, rng: Seed = None) -> Array:
    """Fill with U(-1/sqrt(fan), 1/sqrt(fan)): PyTorch's default with fan = hidden_size or in_features.

    Args:
        array: float32 or float64.
        fan: number of inputs.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.

    Raises:
        TypeError: not a float array.
        ValueError: read-only.
    """
    _check_array(array)
    return _uniform(array, _inverse_root(fan), rng)


def forget_gate_bias(bias: Array, value: float = 1.0, *, gate: int = 1, gates: int = 4) -> Array:
    """Set the forget gate's block of an LSTM bias (4*H,) in i, f, g, o order; the rest is left alone.

    Both LSTM biases are added, so set one of them only.

    Args:
        bias: (gates*H,), float32 or float64.
        value: what the forget gate's H values become.
        gate: which of the blocks is the forget gate's.
        gates: number of blocks.

    Raises:
        TypeError: not a float array, or gate or gates no int.
        ValueError: read-only, not one axis, a size that is not a multiple of `gates`, or no such gate.

    Paper: Gers, Schmidhuber and Cummins 2000.
    """
    _check_array(bias)
    blocks = check_size("gates", gates)
    check_size("gate", gate, 0, blocks - 1)
    if bias.ndim != 1 or bias.size % blocks:
        raise ValueError(f"bias: expected shape ({gates}*H,), got {bias.shape}")
    size = bias.size // blocks
    bias[gate * size : (gate + 1) * size] = value
    return bias


def recurrent_layer(
    spec: CellSpec,
    params: dict[str, Array],
    method: str | None = "default",
    *,
    forget_bias: float | None = None,
    rng: Seed = None,
) -> None:
    """Initialise one layer and direction of a cell in place.

    "default" draws input and projection weights Xavier uniform and recurrent weights orthogonal, gate by
    gate, and sets the biases to zero but for bias_ih of gates that the cell says more of: of an LSTM the
    forget gate, 1. "torch" draws weights and biases from U(-1/sqrt(H), 1/sqrt(H)) as torch.nn does.
    Both give the parameters that each unit has of its own what the cell says of them, or zero.
    None leaves everything as it is, and draws nothing: for weights that are loaded next.

    Args:
        spec: the cell.
        params: {"weight_ih": (G*H, I), "weight_hh": (G*H, Hout), ...} arrays to fill.
        method: "default", "torch" or None.
        forget_bias: with "default", the bias of the gate called f in place of what the cell says.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.
    """
    if method is None:
        return
    rng = make_rng(rng, "rng")
    initial = dict(spec.initial)
    if forget_bias is not None:
        initial["x.f"] = initial["p.bias_ih.f"] = forget_bias
    for name in spec.definition.parameters if spec.definition is not None else ():
        symbols = spec.definition.symbols_of(name)
        for symbol, part in zip(symbols, params[name].reshape(len(symbols), -1), strict=True):
            _fill(part, initial.get(symbol, 0.0), rng)
    dense = {p.name: params[p.name] for p in spec.parameters if p.role != "per_unit" and p.name in params}
    hidden_size = params["weight_ih"].shape[0] // spec.gates
    if method == "torch":
        for array in dense.values():
            torch_uniform(array, hidden_size, rng=rng)
        return
    for gate, name in enumerate(spec.gate_names):
        block = slice(gate * hidden_size, (gate + 1) * hidden_size)
        xavier_uniform(params["weight_ih"][block], rng=rng)
        if "weight_hh" in params:
            orthogonal(params["weight_hh"][block], rng=rng)
        if "bias_ih" in params:
            _fill(params["bias_ih"][block], initial.get(f"x.{name}", 0.0), rng)
    if "weight_hr" in params:
        xavier_uniform(params["weight_hr"], rng=rng)
    if "bias_hh" in params:
        params["bias_hh"][...] = 0.0


def _fill(array: Array, value: Initial, rng: Seed) -> None:
    """Fill with a number, or drawn uniformly from (low, high)."""
    if not isinstance(value, tuple):
        array[...] = value
        return
    low, high = value
    _uniform(array, (high - low) / 2.0, rng)
    array += (high + low) / 2.0


def standard_normal(array: Array, rng: Seed) -> Array:
    """Fill with N(0, 1)."""
    return _normal(array, 1.0, rng)


def check_method(method: str | None) -> str | None:
    """Return the name of an initialisation of a layer or None, or raise ValueError."""
    check_choice("init", method, (*RECURRENT_METHODS, None))
    return method


def _check_array(array: Array) -> None:
    refuse_mask("array", array)
    if not isinstance(array, np.ndarray):
        raise kind_error("array", array, "a float numpy.ndarray")
    if array.dtype.kind != "f":
        raise TypeError(f"array: expected a float numpy.ndarray, got dtype {array.dtype}")
    if not array.flags.writeable:
        raise ValueError("array: expected a writable array, got a read-only one")


def _fans(array: Array) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight stored (out, in, ...)."""
    _check_array(array)
    if array.ndim < 2:
        raise ValueError(f"array: expected at least 2 axes (fan_out, fan_in), got shape {array.shape}")
    field = math.prod(array.shape[2:])
    return array.shape[1] * field, array.shape[0] * field


def _fan(array: Array, mode: str) -> int:
    fan_in, fan_out = _fans(array)
    check_choice("mode", mode, ("fan_in", "fan_out"))
    return fan_in if mode == "fan_in" else fan_out


def _inverse_root(value: float) -> float:
    """Return 1/sqrt(value), and 0 for the empty fan of a zero-size layer."""
    return 1.0 / math.sqrt(value) if value > 0 else 0.0


def _parts(array: Array) -> Iterator[Array]:
    """Cut an array along its first axis, in order: draws stay small, and a Ctrl-C is seen between two."""
    if array.ndim == 0:
        yield array[...]
        return
    step = max(1, _PART // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], step):
        yield array[start : start + step]


def _uniform(array: Array, bound: float, rng: Seed) -> Array:
    rng = make_rng(rng, "rng")
    for part in _parts(array):
        part[...] = rng.uniform(-bound, bound, part.shape)
    return array


def _normal(array: Array, std: float, rng: Seed) -> Array:
    rng = make_rng(rng, "rng")
    for part in _parts(array):
        part[...] = rng.standard_normal(part.shape) * std
    return array


def _orthonormal_rows(count: int, size: int, rng: np.random.Generator) -> Array:
    """Return (count, size) orthonormal rows, uniform over all of them; float64, the same bits on any threads.

    The rows are the first of D H_count ... H_1, a product of reflections H_k = 1 - 2 v v^T: v lies along g
    plus its length times the sign of its first entry in place k, with g normal from place k on. Such
    reflections take a normal matrix to a triangle whose diagonal has the opposite signs, which D gives back;
    what is left of the columns stays normal, so that g can be drawn as it comes and there is nothing to
    factorise. Several at a time are 1 - V T V^T (Schreiber and Van Loan 1989): two products with what the
    later ones gave.
    """
    q = np.zeros((0, size - count))
    signs = np.empty(count)
    for start in range((count - 1) // _REFLECTIONS * _REFLECTIONS, -1, -_REFLECTIONS):
        block = min(_REFLECTIONS, count - start)
        v = np.triu(rng.standard_normal((block, size - start)))
        first = np.diagonal(v)
        signs[start : start + block] = np.where(first < 0.0, 1.0, -1.0)
        v[np.arange(block), np.arange(block)] -= signs[start : start + block] * np.linalg.norm(v, axis=1)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        # [1 0; 0 q] V, the rows of q standing below those of this block.
        below = q
        q = _core.linear_forward(below, v[:, block:].copy(), None)
        product = np.ascontiguousarray(np.concatenate((v[:, :block].T, q)))
        product = _core.linear_forward(product, -_triangle(v), None)
        q = _core.linear_forward(product, v.T.copy(), None)
        q[block:, block:] += below
        q[np.arange(block), np.arange(block)] += 1.0
    q *= signs[:, None]
    return q


def _triangle(v: Array) -> Array:
    """Return T of H_1 ... H_n = 1 - V T V^T for the reflections along the unit rows of v."""
    products = _core.linear_forward(v, v, None)
    t = np.zeros_like(products)
    for k in range(len(v)):
        t[:k, k] = -2.0 * (t[:k, :k] @ products[:k, k])
        t[k, k] = 2.0
    return t
