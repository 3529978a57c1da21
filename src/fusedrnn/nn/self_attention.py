"""SelfAttention: every step of a sequence looks at all others, or at those before it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.backend import CPU
from fusedrnn.checks import check_array, check_flag, check_size, resolve_dtype
from fusedrnn.compute import HasCompute, check_compute
from fusedrnn.inference.attention_stream import AttentionStream
from fusedrnn.init import Seed, check_method, make_rng, xavier_uniform
from fusedrnn.inputs.masks import counted_steps, only_counted
from fusedrnn.inputs.rows import as_rows, check_sequence
from fusedrnn.nn.activations import softmax, softmax_gradient
from fusedrnn.nn.layers import Linear
from fusedrnn.nn.module import Module, changed_options
from fusedrnn.nn.tape import SavedTape, check_tape


class SelfAttention(HasCompute, Module):
    """Attention of a sequence to itself, by scaled products of several heads.

        q, k, v = W_in x + b_in                          each (T, E), cut into heads of d = E / num_heads
        a       = softmax over s of q_t . k_s / sqrt(d)  for each head; with causal over s <= t
        y_t     = W_out [sum over s of a_(t,s) v_s of each head] + b_out

    x and y are (T, B, E), (B, T, E) with batch_first, or (T, E) for one sequence. Only steps that count,
    those within `lengths` and where `mask` is true, are looked at; y is 0 at others. There is no notion of
    place but that of `causal`: a recurrent network in front gives one. Time and memory grow with the square
    of a sequence's own length.

    Parameters, as torch.nn.MultiheadAttention's: in_proj_weight (3*E, E), Xavier uniform at first,
    in_proj_bias (3*E,), 0 at first, and those of the `Linear` out_proj, whose bias is 0 at first.

    Args:
        embed_dim: E >= 1.
        num_heads: how many heads; it divides E.
        causal: whether a step sees only itself and those before it.
        bias: whether there are biases.
        batch_first: x and y are (B, T, E).
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here; None leaves all parameters at zero, for weights
            that are loaded next.
        compute: "float32", or "bf16x3" or "bf16" for products, those of queries, keys and values among them,
            of two or one bfloat16 a factor with sums in float32, as `Recurrent` says; can be set. None as
            `set_float32_matmul_precision` says.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, bfloat16 where dtype or CPU do not have it, or num_heads that
            do not divide embed_dim.

    Paper: Vaswani et al. 2017, Attention is all you need, arXiv:1706.03762.
    """

    _host_only = True
    _fixed = frozenset(("embed_dim", "num_heads", "bias"))
    _dtype: np.dtype[Any]

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        causal: bool = False,
        bias: bool = True,
        batch_first: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        compute: str | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = check_size("embed_dim", embed_dim)
        self.num_heads = check_size("num_heads", num_heads)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of embed_dim = {embed_dim}, got {num_heads}")
        self.causal = check_flag("causal", causal)
        self.bias = check_flag("bias", bias)
        self.batch_first = check_flag("batch_first", batch_first)
        size, found, method, rng = self.embed_dim, resolve_dtype(dtype), check_method(init), make_rng(seed)
        self._compute = check_compute(compute, found)
        shapes: dict[str, tuple[int, ...]] = {"in_proj_weight": (3 * size, size)}
        if self.bias:
            shapes["in_proj_bias"] = (3 * size,)
        self._declare(shapes, found)
        if method:
            xavier_uniform(self._own["in_proj_weight"], rng=rng)
        self.out_proj = Linear(size, size, self.bias, dtype=found, seed=rng, init=init, compute=self.compute)
        if self.bias:
            self.out_proj._own["bias"] = 0.0

    def _compute_changed(self) -> None:
        self.out_proj.compute = self.compute

    def __call__(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> Array:
        """Return y in the shape of x, and keep no tape; arguments and errors are those of `forward`."""
        context, counts, *_ = self._attend(x, lengths, mask, self._own, False)
        return only_counted(counts, self.out_proj(context))

    def forward(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> tuple[Array, SavedTape]:
        """Return y in the shape of x, and the tape, which refers to x.

        Args:
            x: (T, B, E), (B, T, E) with batch_first, or (T, E).
            lengths: (B,) of an integer dtype, each in 0..T; all T if None.
            mask: bool, laid out as x without its last axis: true for steps that count; all if None.

        Raises:
            TypeError: x is not an array of the module's dtype, or an argument of another wrong kind.
            ValueError: an argument of the wrong shape, or lengths out of range.
        """
        kept = self._kept_parameters()
        context, counts, rows, products, weights = self._attend(x, lengths, mask, kept, True)
        y, out_tape = self.out_proj.forward(context)
        saved = (rows, products, weights, counts, kept, out_tape, self.compute, self.batch_first)
        owned = products.nbytes + context.nbytes + out_tape.nbytes + sum([a.nbytes for a in weights])
        return only_counted(counts, y), SavedTape(self, y.shape, saved, owned)

    def _attend(
        self,
        x: Array,
        lengths: npt.ArrayLike | None,
        mask: npt.ArrayLike | None,
        parameters: Any,
        keep: bool,
    ) -> tuple[Array, Array | None, Array, Array, list[Array]]:
        """Return the heads' sums in the shape of x, which steps count, and what backward reads."""
        size = self.embed_dim
        axis = check_sequence(x, "E", size, self._dtype, self.batch_first)
        counts = None
        if lengths is not None or mask is not None:
            counts = counted_steps(mask, lengths, x.shape[:-1], axis)
            x = only_counted(counts, x)
        rows = as_rows("x", x, (size,), CPU)
        weight, bias = parameters["in_proj_weight"], parameters.get("in_proj_bias")
        products = CPU.kernels.linear_forward(rows, weight, bias, compute=self.compute)
        products = products.reshape(*x.shape[:-1], 3, size)
        context: Array = np.zeros(x.shape, x.dtype)
        weights: list[Array] = []
        for part, steps, columns in self._heads(context.shape, counts, self.batch_first):
            q, k, v = _parts(products, part, steps, columns)
            attention = self._weights(q, k)
            sums = CPU.kernels.linear_forward(attention, _turned(v), None, compute=self.compute)
            _put(context, part, steps, columns, sums)
            if keep:
                weights.append(attention)
        return context, counts, rows, products, weights

    def _heads(
        self, shape: tuple[int, ...], counts: Array | None, batch_first: bool
    ) -> list[tuple[Any, Any, slice]]:
        """Return (index of a sequence, its steps that count, columns) of each sequence and head."""
        width = self.embed_dim // self.num_heads
        columns = [slice(head * width, (head + 1) * width) for head in range(self.num_heads)]
        time = int(batch_first and len(shape) == 3)
        sequences: list[Any] = [()]
        if len(shape) == 3:
            sequences = [(b,) if time else (slice(None), b) for b in range(shape[1 - time])]
        found = []
        for part in sequences:
            steps: Any = slice(None) if counts is None else np.flatnonzero(counts[part])
            if shape[time] and (counts is None or len(steps)):
                found += [(part, steps, cut) for cut in columns]
        return found

    def _weights(self, q: Array, k: Array) -> Array:
        """Return a (n, n) of one head, from q and k (n, d)."""
        scores = CPU.kernels.linear_forward(q * q.dtype.type(self._scale), k, None, compute=self.compute)
        if self.causal:
            scores[np.triu_indices(len(scores), 1)] = -np.inf
        return softmax(scores, -1)

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.embed_dim // self.num_heads)

    def backward(self, tape: SavedTape, dy: Array, *, need_dx: bool = True) -> Array | Any:
        """Add to the gradients of all parameters; return dx in the shape of x, or None without need_dx.

        Steps that do not count get exactly 0.

        Raises:
            TypeError: dy is not an array of the module's dtype.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, SavedTape)
        rows, products, weights, counts, kept, out_tape, compute, batch_first = tape.saved
        check_array("dy", dy, tape.shape, rows.dtype)
        check_flag("need_dx", need_dx)
        dcontext = self.out_proj.backward(out_tape, only_counted(counts, dy))
        dproducts = np.zeros_like(products)
        scale = rows.dtype.type(self._scale)
        heads = self._heads(tape.shape, counts, batch_first)
        for (part, steps, columns), a in zip(heads, weights, strict=True):
            q, k, v = _parts(products, part, steps, columns)
            flow = np.ascontiguousarray(dcontext[part][steps, columns])
            dturned, dk = np.zeros(v.shape[::-1], v.dtype), np.zeros_like(k)
            da = CPU.kernels.linear_backward(a, _turned(v), flow, dturned, None, True, compute)
            dscores = np.ascontiguousarray(softmax_gradient(a, da, -1))
            dq = CPU.kernels.linear_backward(q * scale, k, dscores, dk, None, True, compute)
            for index, gradient in enumerate((dq * scale, dk, dturned.T)):
                _put(dproducts[..., index, :], part, steps, columns, gradient)
        sums = self._sums()
        flat = dproducts.reshape(-1, 3 * self.embed_dim)
        with self._turn.take():
            dx = CPU.kernels.linear_backward(
                rows,
                kept["in_proj_weight"],
                flat,
                sums.get("in_proj_weight"),
                sums.get("in_proj_bias"),
                need_dx,
                compute,
            )
        return only_counted(counts, dx.reshape(tape.shape)) if need_dx else None

    def stream(self, batch_size: int = 1, max_len: int = 1024) -> AttentionStream:
        """Return an `AttentionStream` that runs this module one step at a time.

        Args:
            batch_size: how many sequences go side by side.
            max_len: how many steps are held, that of the call among them; later the oldest is forgotten.

        Raises:
            TypeError: an argument is not an int.
            ValueError: the module is not causal, or an argument is below 1.
        """
        if not self.causal:
            raise ValueError("stream: expected causal=True, got False: a step looks at later ones there")
        return AttentionStream(self, check_size("batch_size", batch_size), check_size("max_len", max_len))

    def _extra_repr(self) -> str:
        changed = changed_options(
            num_heads=(self.num_heads, 1),
            causal=(self.causal, False),
            bias=(self.bias, True),
            batch_first=(self.batch_first, False),
            dtype=(str(self._dtype), "float32"),
            compute=(self.compute, "float32"),
        )
        return f"{self.embed_dim}{changed}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._extra_repr()})"


def _parts(products: Array, part: Any, steps: Any, columns: slice) -> list[Array]:
    """Return q, k and v (n, d) of one sequence and head."""
    return [np.ascontiguousarray(products[part][steps, index, columns]) for index in range(3)]


def _put(target: Array, part: Any, steps: Any, columns: slice, values: Array) -> None:
    """Write values (n, d) to one sequence and head."""
    target[part][steps, columns] = values


def _turned(v: Array) -> Array:
    """Return the transpose (d, n), as the weight of a product."""
    return np.ascontiguousarray(v.T)
