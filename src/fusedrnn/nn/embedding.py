"""Embedding, with PyTorch's names, shapes and meaning."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, as_array, as_regular
from fusedrnn.backend import CPU
from fusedrnn.checks import as_indices, check_array, check_size, resolve_dtype
from fusedrnn.init import Seed, check_method, make_rng
from fusedrnn.inputs.lookup import Lookup
from fusedrnn.inputs.rows import as_rows
from fusedrnn.nn.crossing import crosses, crosses_back
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import SavedTape, check_tape


class Embedding(Module):
    """y = weight[indices].

    Parameters: weight (num_embeddings, embedding_dim), initialised from N(0, 1).

    Args:
        num_embeddings: number of rows V >= 1.
        embedding_dim: D >= 1.
        padding_idx: a row that starts at zero and gets no gradient; negative counts from the end.
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here; None leaves all parameters at zero, for weights
            that are loaded next.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    _dtype: np.dtype[Any]
    _stepwise = True
    _fixed = frozenset(("num_embeddings", "embedding_dim"))

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
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
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        self._declare({"weight": (self.num_embeddings, self.embedding_dim)}, found)
        if method:
            self._own["weight"] = rng.standard_normal((self.num_embeddings, self.embedding_dim))
        if self.padding_idx is not None:
            self._own["weight"][self.padding_idx] = 0.0

    @crosses
    def __call__(self, indices: npt.ArrayLike) -> Array:
        """Return y (..., D) for indices (...) of an integer dtype, each in 0..V-1."""
        return self._apply(indices)[0]

    @crosses
    def forward(self, indices: npt.ArrayLike) -> tuple[Array, SavedTape]:
        """Return y (..., D) and the tape.

        Raises:
            TypeError: indices are not integers.
            ValueError: an index outside 0..V-1.
        """
        y, flat = self._apply(indices)
        if isinstance(indices, np.ndarray) and np.may_share_memory(flat, indices):
            flat = flat.copy()
        return y, SavedTape(self, y.shape, (flat,), flat.nbytes)

    def _apply(self, indices: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.int64]]:
        backend = self._backend
        array = as_regular("indices", indices) if backend is CPU else as_array(indices, "indices")
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

    @crosses_back
    def backward(self, tape: SavedTape | Lookup, dy: Array, *, need_dx: bool = True) -> None:
        """Add to the gradient of weight; there is no gradient of the indices.

        Args:
            tape: from `forward`, or what `lookup` returned.
            dy: gradient of y (..., D), or of weight (V, D) as the layer returns it that was given a lookup.
            need_dx: changes nothing.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has the wrong shape, or the tape is another module's.
        """
        backend = self._backend
        grad, shape = self._own_grads["weight"], (self.num_embeddings, self.embedding_dim)
        if grad.shape != shape:
            raise ValueError(f"grads['weight']: expected shape (V, D) = {shape}, got {grad.shape}")
        if isinstance(tape, Lookup):
            if tape._owner is not self:
                raise ValueError(f"tape: expected a lookup of this {self!r}, got one of {tape._owner!r}")
            rows = check_array("dy", dy, grad.shape, self._dtype, "(V, D)", backend.array)
        else:
            tape = check_tape(tape, self, SavedTape)
            check_array("dy", dy, tape.shape, self._dtype, kind=backend.array)
            rows = as_rows("dy", dy, (self.embedding_dim,), backend)
        if self._frozen:
            return
        with self._turn.take():
            kept = None if self.padding_idx is None else grad[self.padding_idx].copy()
            if isinstance(tape, Lookup):
                grad += rows
            else:
                backend.kernels.embedding_backward(tape.saved[0], rows, grad)
            if kept is not None:
                grad[self.padding_idx] = kept

    def _still(self) -> dict[str, Array]:
        mask = np.zeros((self.num_embeddings, 1), bool)
        if self.padding_idx is not None:
            mask[self.padding_idx] = True
        return {"weight": np.broadcast_to(mask, (self.num_embeddings, self.embedding_dim))}

    def _extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        dtype = "" if self._dtype == np.float32 else f", dtype='{self._dtype}'"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}{dtype}"
