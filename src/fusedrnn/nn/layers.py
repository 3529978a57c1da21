"""Linear, LayerNorm and Dropout, with PyTorch's names, shapes and meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.backend import NOTHING
from fusedrnn.checks import check_array, check_flag, check_number, check_size, resolve_dtype
from fusedrnn.compute import HasCompute, check_compute
from fusedrnn.init import Noise, Seed, check_method, make_rng, torch_uniform
from fusedrnn.inputs.rows import as_rows, check_kind, contiguous, copied
from fusedrnn.nn.crossing import crosses, crosses_back
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import SavedTape, check_tape


def _own(module: Module) -> Mapping[str, Array]:
    return module._own


class Linear(HasCompute, Module):
    """y = x W^T + b over the last axis.

    Parameters: weight (O, I), bias (O,), both initialised from U(-1/sqrt(I), 1/sqrt(I)).

    Args:
        in_features: I >= 0.
        out_features: O >= 1.
        bias: whether there is a bias.
        weight_of: an `Embedding` (O, I) whose weight serves as this layer's: then only the bias is a
            parameter of this layer, gradients of both add up in the embedding's, and a state_dict of PyTorch
            may name the weight twice. Put the embedding into the same tree.
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here; None leaves all parameters at zero, for weights
            that are loaded next.
        compute: "float32", or "bf16x3" or "bf16" for products of two or one bfloat16 a factor with sums in
            float32, on the CPU, as `Recurrent` says; None for what `set_float32_matmul_precision` says. Can
            be set.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    _dtype: np.dtype[Any]
    _stepwise = True
    _fixed = frozenset(("in_features", "out_features", "bias"))

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_of: Embedding | None = None,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        compute: str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_size("in_features", in_features, 0)
        self.out_features = check_size("out_features", out_features)
        self.bias = check_flag("bias", bias)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        self._compute = check_compute(compute, found)
        if weight_of is not None:
            if not isinstance(weight_of, Embedding):
                raise TypeError(f"weight_of: expected an Embedding, got {type(weight_of).__name__}")
            if weight_of.dtype != found:
                raise TypeError(f"weight_of: expected an Embedding of {found}, got {weight_of.dtype}")
            if weight_of._shapes["weight"] != shapes["weight"]:
                raise ValueError(
                    f"weight_of: expected an Embedding(O, I) = {shapes['weight']}, got {weight_of!r}"
                )
            # Not an attribute of its own, which would make it a child.
            self._tied = {"weight": weight_of}
            del shapes["weight"]
        self._declare(shapes, found)
        for array in self._own.values() if method else ():
            torch_uniform(array, self.in_features, rng=rng)

    @crosses
    def __call__(self, x: Array) -> Array:
        """Return y (..., O) for x (..., I). An x that is not C-contiguous is copied first."""
        return self._apply(x, self._joined(_own) if self._tied else self._own)[0]

    def _joined(self, arrays_of: Callable[[Module], Mapping[str, Array]]) -> Mapping[str, Array]:
        """Return the parameters or gradients of this layer with the embedding's, if it is tied to one."""
        own = arrays_of(self)
        if not self._tied:
            return own
        source = self._tied["weight"]
        if source._backend is not self._backend:
            raise RuntimeError(
                f"weight_of: expected an Embedding on {self.device} as this Linear, got {source.device}"
            )
        return {**own, **arrays_of(source)}

    def _kept_parameters(self) -> Mapping[str, Array]:
        own, source = super()._kept_parameters(), self._tied.get("weight")
        return own if source is None else {**own, "weight": source._kept_parameters()["weight"]}

    @crosses
    def forward(self, x: Array) -> tuple[Array, SavedTape]:
        """Return y (..., O) and the tape, which refers to x (..., I).

        Raises:
            TypeError: x is not an array of the module's dtype.
            ValueError: the last axis is not I.
        """
        kept = self._kept_parameters()
        y, rows = self._apply(x, kept)
        return y, SavedTape(self, y.shape, (rows, kept, self._options()), copied(x, rows))

    def _options(self) -> dict[str, str]:
        """What the kernels are told beside the arrays."""
        if self.compute == "float32":
            return {}
        self._require_cpu("compute")
        return {"compute": self.compute}

    def _apply(self, x: Array, parameters: Mapping[str, Array]) -> tuple[Array, Array]:
        backend, options = self._backend, self._options()
        rows = as_rows("x", x, (self.in_features,), backend)
        y = backend.kernels.linear_forward(rows, parameters["weight"], parameters.get("bias"), **options)
        return y.reshape(*x.shape[:-1], self.out_features), rows

    @crosses_back
    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Add to the gradients of weight and bias; return dx (..., I), or None without need_dx.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        backend = self._backend
        check_array("dy", dy, tape.shape, self._dtype, kind=backend.array)
        rows, kept, options = tape.saved
        flow = as_rows("dy", dy, (self.out_features,), backend)
        sums, owner = self._joined(Module._sums), self._tied.get("weight", self)
        # Always in this order, so that no two threads wait for each other.
        with self._turn.take(), NOTHING if owner is self else owner._turn.take():
            dx = backend.kernels.linear_backward(
                rows, kept["weight"], flow, sums.get("weight"), sums.get("bias"), need_dx, **options
            )
        return None if dx is None else dx.reshape(*tape.shape[:-1], self.in_features)

    def _extra_repr(self) -> str:
        tied = f", weight_of={self._tied['weight']!r}" if self._tied else ""
        dtype = "" if self._dtype == np.float32 else f", dtype='{self._dtype}'"
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        compute = "" if self.compute == "float32" else f", compute={self.compute!r}"
        return f"{sizes}, bias={self.bias}{tied}{dtype}{compute}"


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

    _fixed = frozenset(("normalized_shape", "elementwise_affine", "bias"))
    _stepwise = True

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

    @crosses
    def __call__(self, x: Array) -> Array:
        """Return y for x (..., *normalized_shape). An x that is not C-contiguous is copied first."""
        return self._apply(x, self._own)[0]

    @crosses
    def forward(self, x: Array) -> tuple[Array, SavedTape]:
        """Return y in the shape of x (..., *normalized_shape), and the tape, which refers to x.

        Raises:
            TypeError: x is not an array of the module's dtype.
            ValueError: the last axes are not normalized_shape.
        """
        kept = self._kept_parameters()
        y, rows, mean, rstd = self._apply(x, kept)
        owned = copied(x, rows) + mean.nbytes + rstd.nbytes
        return y, SavedTape(self, y.shape, (rows, mean, rstd, kept), owned)

    def _apply(self, x: Array, parameters: Mapping[str, Array]) -> tuple[Array, Array, Array, Array]:
        backend = self._backend
        rows = as_rows("x", x, self.normalized_shape, backend)
        weight, bias = self._flat(parameters, "weight"), self._flat(parameters, "bias")
        y, mean, rstd = backend.kernels.layer_norm_forward(rows, weight, bias, self.eps)
        return y.reshape(x.shape), rows, mean, rstd

    @crosses_back
    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Add to the gradients of weight and bias; return dx in the shape of x, or None without need_dx.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        backend = self._backend
        rows, mean, rstd, kept = tape.saved
        check_array("dy", dy, tape.shape, rows.dtype, kind=backend.array)
        weight, flow = self._flat(kept, "weight"), as_rows("dy", dy, self.normalized_shape, backend)
        sums = self._sums()
        dweight, dbias = self._flat(sums, "weight"), self._flat(sums, "bias")
        with self._turn.take():
            dx = backend.kernels.layer_norm_backward(rows, weight, flow, mean, rstd, dweight, dbias)
        return dx.reshape(tape.shape) if need_dx else None

    def _extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        dtype = "" if self._dtype is None or self._dtype == np.float32 else f", dtype='{self._dtype}'"
        options = f"eps={self.eps}, elementwise_affine={self.elementwise_affine}"
        return f"{self.normalized_shape}, {options}{bias}{dtype}"


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

    @crosses
    def __call__(self, x: Array) -> Array:
        """Return y in the shape of x, float32 or float64; a new mask at every call in training mode."""
        return self.forward(x)[0]

    @crosses
    def forward(self, x: Array) -> tuple[Array, SavedTape]:
        """Return y in the shape of x, and the tape.

        Raises:
            TypeError: x is not a float32 or float64 array.
        """
        backend = self._backend
        check_kind("x", x, backend)
        drop = None
        y = x
        if self.training and self.p:
            drop = self._noise.take(self.p)
            y = backend.kernels.dropout(contiguous(x), *drop)
        return y, SavedTape(self, y.shape, (drop, x.dtype), 0)

    @crosses_back
    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Return dx: dy with the mask and scale of the forward call; None without need_dx.

        Raises:
            TypeError: dy is not an array of the dtype of y.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        backend = self._backend
        drop, dtype = tape.saved
        check_array("dy", dy, tape.shape, dtype, kind=backend.array)
        if not need_dx:
            return None
        return dy if drop is None else backend.kernels.dropout(contiguous(dy), *drop)

    def _step_in(self, stream: Any, name: str) -> Any:
        return stream.unchanged

    def _extra_repr(self) -> str:
        return f"p={self.p}"
