"""Linear, Embedding, LayerNorm and Dropout, with PyTorch's names, shapes and meaning."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fusedrnn.backend import CPU, Backend
from fusedrnn.cells import Array
from fusedrnn.checks import (
    as_array,
    as_indices,
    check_array,
    check_flag,
    check_number,
    check_size,
    resolve_dtype,
)
from fusedrnn.init import Noise, Seed, make_rng, torch_uniform
from fusedrnn.lookup import Lookup
from fusedrnn.module import Module
from fusedrnn.tape import SavedTape, check_tape


def _as_rows(name: str, x: Any, trailing: tuple[int, ...], backend: Backend) -> Array:
    """Return x (..., *trailing) as a contiguous and aligned (N, D) array, a view if x is both itself."""
    _check_kind(name, x, backend)
    split = x.ndim - len(trailing)
    if split < 0 or x.shape[split:] != trailing:
        raise ValueError(f"{name}: expected shape (..., {', '.join(map(str, trailing))}), got {x.shape}")
    return _contiguous(x).reshape(math.prod(x.shape[:split]), math.prod(trailing))


def _check_kind(name: str, x: Any, backend: Backend) -> None:
    if not isinstance(x, backend.array):
        kind = f"{backend.array.__module__}.{backend.array.__name__}"
        raise TypeError(f"{name}: expected a {kind}, got {type(x).__name__}")


def _contiguous(x: Array) -> Array:
    """Return x as a contiguous and aligned array of its library; libraries of GPUs align what they make."""
    if isinstance(x, np.ndarray):
        return np.require(x, requirements=["C", "A"])
    return x if x.flags.c_contiguous else x.copy(order="C")


def _copied(x: Array, rows: Array) -> int:
    """Return the bytes of `rows` that x does not already hold."""
    return 0 if x.flags.c_contiguous and getattr(x.flags, "aligned", True) else rows.nbytes


class Linear(Module):
    """y = x W^T + b over the last axis.

    Parameters: weight (O, I), bias (O,), both initialised from U(-1/sqrt(I), 1/sqrt(I)).

    Args:
        in_features: I >= 0.
        out_features: O >= 1.
        bias: whether there is a bias.
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    _dtype: np.dtype[Any]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
    ) -> None:
        super().__init__()
        self.in_features = check_size("in_features", in_features, 0)
        self.out_features = check_size("out_features", out_features)
        self.bias = check_flag("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        self._declare(shapes, resolve_dtype(dtype))
        rng = make_rng(seed)
        for array in self._own.values():
            torch_uniform(array, self.in_features, rng=rng)

    def __call__(self, x: Array) -> Array:
        """Return y (..., O) for x (..., I). An x that is not C-contiguous is copied first."""
        return self._apply(x, self._own)[0]

    def forward(self, x: Array) -> tuple[Array, SavedTape]:
        """Return y (..., O) and the tape, which refers to x (..., I).

        Raises:
            TypeError: x is not an array of the module's dtype.
            ValueError: the last axis is not I.
        """
        backend = self._backend
        if backend is not CPU and backend.is_foreign(x):
            return backend.across(x, self.forward, x)
        kept = self._kept_parameters()
        y, rows = self._apply(x, kept)
        return y, SavedTape(self, y.shape, (rows, kept), _copied(x, rows))

    def _apply(self, x: Array, parameters: Mapping[str, Array]) -> tuple[Array, Array]:
        backend = self._backend
        if backend is not CPU and backend.is_foreign(x):
            return backend.across(x, self._apply, x, parameters)
        rows = _as_rows("x", x, (self.in_features,), backend)
        y = backend.kernels.linear_forward(rows, parameters["weight"], parameters.get("bias"))
        return y.reshape(*x.shape[:-1], self.out_features), rows

    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Add to the gradients of weight and bias; return dx (..., I), or None without need_dx.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        backend = self._backend
        if backend is not CPU and backend.is_foreign(dy):
            return backend.across(dy, partial(self.backward, need_dx=need_dx), tape, dy)
        check_array("dy", dy, tape.shape, self._dtype, kind=backend.array)
        rows, kept = tape.saved
        flow = _as_rows("dy", dy, (self.out_features,), backend)
        with self._turn.take():
            dx = backend.kernels.linear_backward(
                rows, kept["weight"], flow, self._own_grads["weight"], self._own_grads.get("bias"), need_dx
            )
        return None if dx is None else dx.reshape(*tape.shape[:-1], self.in_features)

    def _extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias}"


class Embedding(Module):
    """y = weight[indices].

    Parameters: weight (num_embeddings, embedding_dim), initialised from N(0, 1).

    Args:
        num_embeddings: number of rows V >= 1.
        embedding_dim: D >= 1.
        padding_idx: a row that starts at zero and gets no gradient; negative counts from the end.
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    _dtype: np.dtype[Any]

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
    ) -> None:
        super().__init__()
        self.num_embeddings = check_size("num_embeddings", num_embeddings)
        self.embedding_dim = check_size("embedding_dim", embedding_dim)
        self.padding_idx = None
        if padding_idx is not None:
            row = check_size("padding_idx", padding_idx, -self.num_embeddings)
            if row >= self.num_embeddings:
                raise ValueError(
                    f"padding_idx: expected an int < num_embeddings = {num_embeddings}, got {row}"
                )
            self.padding_idx = row % self.num_embeddings
        self._declare({"weight": (self.num_embeddings, self.embedding_dim)}, resolve_dtype(dtype))
        self._own["weight"] = make_rng(seed).standard_normal((self.num_embeddings, self.embedding_dim))
        if self.padding_idx is not None:
            self._own["weight"][self.padding_idx] = 0.0

    def __call__(self, indices: npt.ArrayLike) -> Array:
        """Return y (..., D) for indices (...) of an integer dtype, each in 0..V-1."""
        return self._apply(indices)[0]

    def forward(self, indices: npt.ArrayLike) -> tuple[Array, SavedTape]:
        """Return y (..., D) and the tape.

        Raises:
            TypeError: indices are not integers.
            ValueError: an index outside 0..V-1.
        """
        backend = self._backend
        if backend is not CPU and backend.is_foreign(indices):
            return backend.across(indices, self.forward, indices)
        y, flat = self._apply(indices)
        if isinstance(indices, np.ndarray) and np.may_share_memory(flat, indices):
            flat = flat.copy()
        return y, SavedTape(self, y.shape, (flat,), flat.nbytes)

    def _apply(self, indices: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.int64]]:
        backend = self._backend
        if backend is not CPU and backend.is_foreign(indices):
            return backend.across(indices, self._apply, indices)
        array = np.asarray(indices) if backend is CPU else as_array(indices)
        flat = as_indices("indices", array)
        y = backend.kernels.embedding_forward(flat, self._own["weight"])
        return y.reshape(*array.shape, self.embedding_dim), flat

    def lookup(self, indices: npt.ArrayLike) -> Lookup:
        """Return weight[indices] for a recurrent layer, without copying the rows; see `Lookup`.

        `backward` takes it as the tape, with the layer's dx.

        Raises:
            TypeError: indices are not integers.
        """
        return Lookup(self._own["weight"], indices, owner=self)

    def backward(self, tape: SavedTape | Lookup, dy: Array) -> None:
        """Add to the gradient of weight; there is no gradient of the indices.

        Args:
            tape: from `forward`, or what `lookup` returned.
            dy: gradient of y (..., D), or of weight (V, D) as the layer returns it that was given a lookup.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has the wrong shape, or the tape is another module's.
        """
        backend = self._backend
        if backend is not CPU and backend.is_foreign(dy):
            backend.across(dy, self.backward, tape, dy)
            return
        grad = self._own_grads["weight"]
        if isinstance(tape, Lookup):
            if tape._owner is not self:
                raise ValueError(f"tape: expected a lookup of this {self!r}, got one of {tape._owner!r}")
            rows = check_array("dy", dy, grad.shape, self._dtype, "(V, D)", backend.array)
        else:
            tape = check_tape(tape, self, SavedTape)
            check_array("dy", dy, tape.shape, self._dtype, kind=backend.array)
            rows = _as_rows("dy", dy, (self.embedding_dim,), backend)
        with self._turn.take():
            kept = None if self.padding_idx is None else grad[self.padding_idx].copy()
            if isinstance(tape, Lookup):
                grad += rows
            else:
                backend.kernels.embedding_backward(tape.saved[0], rows, grad)
            if kept is not None:
                grad[self.padding_idx] = kept

    def _extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class LayerNorm(Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last axes, var without Bessel's correction.

    Parameters: weight (normalized_shape), initially 1, and bias (normalized_shape), initially 0.

    Args:
        normalized_shape: size of the last axis, or sizes of the last axes.
        eps: added to the variance.
        elementwise_affine: whether there are parameters.
        bias: whether there is a bias among them.
        dtype: "float32" or "float64".

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Ba, Kiros and Hinton 2016, arXiv:1607.06450v1.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = "float32",
    ) -> None:
        super().__init__()
        sizes = normalized_shape if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
        if not sizes:
            raise ValueError("normalized_shape: expected at least one size, got none")
        self.normalized_shape = tuple(check_size("normalized_shape", size) for size in sizes)
        self.eps = check_number("eps", eps)
        self.elementwise_affine = check_flag("elementwise_affine", elementwise_affine)
        self.bias = check_flag("bias", bias)
        names = (["weight", "bias"] if self.bias else ["weight"]) if self.elementwise_affine else []
        found = resolve_dtype(dtype)
        self._declare(dict.fromkeys(names, self.normalized_shape), found if names else None)
        if self.elementwise_affine:
            self._own["weight"] = 1.0

    def _flat(self, arrays: Mapping[str, Array], name: str) -> Array | None:
        return arrays[name].reshape(-1) if name in arrays else None

    def __call__(self, x: Array) -> Array:
        """Return y for x (..., *normalized_shape). An x that is not C-contiguous is copied first."""
        return self._apply(x, self._own)[0]

    def forward(self, x: Array) -> tuple[Array, SavedTape]:
        """Return y in the shape of x (..., *normalized_shape), and the tape, which refers to x.

        Raises:
            TypeError: x is not an array of the module's dtype.
            ValueError: the last axes are not normalized_shape.
        """
        backend = self._backend
        if backend is not CPU and backend.is_foreign(x):
            return backend.across(x, self.forward, x)
        kept = self._kept_parameters()
        y, rows, mean, rstd = self._apply(x, kept)
        owned = _copied(x, rows) + mean.nbytes + rstd.nbytes
        return y, SavedTape(self, y.shape, (rows, mean, rstd, kept), owned)

    def _apply(self, x: Array, parameters: Mapping[str, Array]) -> tuple[Array, Array, Array, Array]:
        backend = self._backend
        if backend is not CPU and backend.is_foreign(x):
            return backend.across(x, self._apply, x, parameters)
        rows = _as_rows("x", x, self.normalized_shape, backend)
        weight, bias = self._flat(parameters, "weight"), self._flat(parameters, "bias")
        y, mean, rstd = backend.kernels.layer_norm_forward(rows, weight, bias, self.eps)
        return y.reshape(x.shape), rows, mean, rstd

    def backward(self, tape: SavedTape, dy: Array) -> Array:
        """Add to the gradients of weight and bias; return dx in the shape of x.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        backend = self._backend
        if backend is not CPU and backend.is_foreign(dy):
            return backend.across(dy, self.backward, tape, dy)
        rows, mean, rstd, kept = tape.saved
        check_array("dy", dy, tape.shape, rows.dtype, kind=backend.array)
        weight, flow = self._flat(kept, "weight"), _as_rows("dy", dy, self.normalized_shape, backend)
        sums = self._flat(self._own_grads, "weight"), self._flat(self._own_grads, "bias")
        with self._turn.take():
            dx = backend.kernels.layer_norm_backward(rows, weight, flow, mean, rstd, *sums)
        return cast(Array, dx.reshape(tape.shape))

    def _extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class Dropout(Module):
    """Zero each value with probability p in training mode and scale the others by 1/(1-p).

    The mask is not stored: it is drawn again from (seed, offset) in backward. In evaluation mode, and with
    p = 0, the output is the input itself.

    Args:
        p: probability in [0, 1].
        seed: int, numpy.random.Generator or None.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Srivastava et al. 2014.
    """

    _noise: Noise

    def __init__(self, p: float = 0.5, *, seed: Seed = None) -> None:
        super().__init__()
        self.p = check_number("p", p, 0.0, 1.0)
        self._noise = Noise(make_rng(seed))

    def __call__(self, x: Array) -> Array:
        """Return y in the shape of x, float32 or float64; a new mask at every call in training mode."""
        return self.forward(x)[0]

    def forward(self, x: Array) -> tuple[Array, SavedTape]:
        """Return y in the shape of x, and the tape.

        Raises:
            TypeError: x is not a float32 or float64 array.
        """
        backend = self._backend
        if backend is not CPU and backend.is_foreign(x):
            return backend.across(x, self.forward, x)
        _check_kind("x", x, backend)
        drop = None
        y = x
        if self.training and self.p:
            drop = self._noise.take(self.p)
            y = backend.kernels.dropout(_contiguous(x), *drop)
        return y, SavedTape(self, y.shape, (drop, x.dtype), 0)

    def backward(self, tape: SavedTape, dy: Array) -> Array:
        """Return dx: dy with the mask and scale of the forward call.

        Raises:
            TypeError: dy is not an array of the dtype of y.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        backend = self._backend
        if backend is not CPU and backend.is_foreign(dy):
            return backend.across(dy, self.backward, tape, dy)
        drop, dtype = tape.saved
        check_array("dy", dy, tape.shape, dtype, kind=backend.array)
        return dy if drop is None else cast(Array, backend.kernels.dropout(_contiguous(dy), *drop))

    def _extra_repr(self) -> str:
        return f"p={self.p}"
