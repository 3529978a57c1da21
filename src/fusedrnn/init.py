"""Initialisers. Each fills an array in place and returns it; all randomness comes from `rng`."""

import math
import operator
from typing import TypeAlias

import numpy as np

from fusedrnn.cells import Array, CellSpec

Seed: TypeAlias = int | np.random.Generator | None

RECURRENT_METHODS = ("default", "torch")


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


def xavier_uniform(array: Array, gain: float = 1.0, *, rng: Seed = None) -> Array:
    """Fill with U(-a, a), a = gain * sqrt(6 / (fan_in + fan_out)).

    Args:
        array: (fan_out, fan_in), float32 or float64; further axes count into both fans.
        gain: scale factor.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.

    Raises:
        TypeError: not a float array.
        ValueError: read-only, or fewer than two axes.

    Paper: Glorot and Bengio 2010.
    """
    fan_in, fan_out = _fans(array)
    return _uniform(array, gain * _inverse_root((fan_in + fan_out) / 6.0), rng)


def xavier_normal(array: Array, gain: float = 1.0, *, rng: Seed = None) -> Array:
    """Fill with N(0, s^2), s = gain * sqrt(2 / (fan_in + fan_out)). Arguments as `xavier_uniform`."""
    fan_in, fan_out = _fans(array)
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
    """Fill with N(0, s^2), s = sqrt(2 / fan). Arguments as `he_uniform`."""
    return _normal(array, _inverse_root(_fan(array, mode) / 2.0), rng)


def orthogonal(array: Array, gain: float = 1.0, *, rng: Seed = None) -> Array:
    """Fill with a (semi-)orthogonal matrix times gain, uniform over all of them.

    Args:
        array: (rows, columns), float32 or float64; further axes are folded into the columns.
        gain: scale factor.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.

    Raises:
        TypeError: not a float array.
        ValueError: read-only, or fewer than two axes.

    Paper: Saxe, McClelland and Ganguli 2013, arXiv:1312.6120v3.
    """
    _fans(array)
    rows = array.shape[0]
    columns = math.prod(array.shape[1:])
    draw = make_rng(rng, "rng").standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(draw)
    # Without the sign of R's diagonal the distribution would depend on the QR implementation.
    q *= np.where(np.diagonal(r) < 0.0, -1.0, 1.0)
    array[...] = gain * (q if rows >= columns else q.T).reshape(array.shape)
    return array


def torch_uniform(array: Array, fan: int, *, rng: Seed = None) -> Array:
    """Fill with U(-1/sqrt(fan), 1/sqrt(fan)): PyTorch's default with fan = hidden_size or in_features.

    Raises:
        TypeError: not a float array.
        ValueError: read-only.
    """
    _check_array(array)
    return _uniform(array, _inverse_root(fan), rng)


def forget_gate_bias(bias: Array, value: float = 1.0, *, gate: int = 1, gates: int = 4) -> Array:
    """Set the forget gate's block of an LSTM bias (4*H,) in i, f, g, o order; the rest is left alone.

    Both LSTM biases are added, so set one of them only.

    Raises:
        TypeError: not a float array.
        ValueError: read-only, not one axis, or a size that is not a multiple of `gates`.

    Paper: Gers, Schmidhuber and Cummins 2000.
    """
    _check_array(bias)
    if bias.ndim != 1 or bias.size % gates:
        raise ValueError(f"bias: expected shape ({gates}*H,), got {bias.shape}")
    size = bias.size // gates
    bias[gate * size : (gate + 1) * size] = value
    return bias


def recurrent_layer(
    spec: CellSpec,
    params: dict[str, Array],
    method: str = "default",
    *,
    forget_bias: float = 1.0,
    rng: Seed = None,
) -> None:
    """Initialise one layer and direction of a cell in place.

    "default" draws input and projection weights Xavier uniform and recurrent weights orthogonal, gate by
    gate, and sets the biases to zero but for bias_ih of a forget gate, which gets `forget_bias`.
    "torch" draws everything from U(-1/sqrt(H), 1/sqrt(H)) as torch.nn does; `forget_bias` is not used.

    Args:
        spec: the cell.
        params: {"weight_ih": (G*H, I), "weight_hh": (G*H, Hout), ...} arrays to fill.
        method: "default" or "torch".
        forget_bias: see above.
        rng: an int seed, a numpy.random.Generator, or None for fresh entropy.
    """
    rng = make_rng(rng, "rng")
    hidden_size = params["weight_hh"].shape[0] // spec.gates
    if method == "torch":
        for array in params.values():
            torch_uniform(array, hidden_size, rng=rng)
        return
    for gate in range(spec.gates):
        block = slice(gate * hidden_size, (gate + 1) * hidden_size)
        xavier_uniform(params["weight_ih"][block], rng=rng)
        orthogonal(params["weight_hh"][block], rng=rng)
    if "weight_hr" in params:
        xavier_uniform(params["weight_hr"], rng=rng)
    if "bias_ih" in params:
        params["bias_ih"][...] = 0.0
        params["bias_hh"][...] = 0.0
        if "f" in spec.gate_names:
            gate = spec.gate_names.index("f")
            forget_gate_bias(params["bias_ih"], forget_bias, gate=gate, gates=spec.gates)


def check_method(method: str) -> str:
    """Return the name of an initialisation for recurrent layers, or raise ValueError."""
    if method not in RECURRENT_METHODS:
        raise ValueError(f"init: expected one of {', '.join(RECURRENT_METHODS)}, got {method!r}")
    return method


def _check_array(array: Array) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        kind = f"dtype {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"array: expected a float numpy.ndarray, got {kind}")
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
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode: expected 'fan_in' or 'fan_out', got {mode!r}")
    return fan_in if mode == "fan_in" else fan_out


def _inverse_root(value: float) -> float:
    """Return 1/sqrt(value), and 0 for the empty fan of a zero-size layer."""
    return 1.0 / math.sqrt(value) if value > 0 else 0.0


def _uniform(array: Array, bound: float, rng: Seed) -> Array:
    array[...] = make_rng(rng, "rng").uniform(-bound, bound, array.shape)
    return array


def _normal(array: Array, std: float, rng: Seed) -> Array:
    array[...] = make_rng(rng, "rng").standard_normal(array.shape) * std
    return array
