"""QuantumLSTM: an LSTM whose gates are quantum circuits, simulated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.backend import CPU
from fusedrnn.checks import check_array, check_flag, check_size, kind_error, resolve_dtype
from fusedrnn.init import Seed, check_method, make_rng, torch_uniform
from fusedrnn.inputs.masks import counted_steps, only_counted
from fusedrnn.inputs.rows import check_sequence, contiguous
from fusedrnn.inputs.sequences import as_lengths
from fusedrnn.nn.module import Module, changed_options
from fusedrnn.nn.rotations import rotation_gradients, rotations
from fusedrnn.nn.tape import SavedTape, check_tape

State: TypeAlias = tuple[Array, Array]
_MOST_QUBITS = 8
_GATES = 4


class QuantumLSTM(Module):
    """LSTM whose gates are variational quantum circuits: a simulator of them, which runs on the CPU.

    For each gate of i, f, g, o, with its own circuit of Q qubits, angles and rows of the weights:

        v = W_ih x + b_ih + W_hh h     z = circuit(v)     a = W_out z + b_out
        i, f, o = sigmoid(a)   g = tanh(a)   c' = f*c + i*g   h' = o*tanh(c')

    The circuit starts from |0...0>, takes every qubit through a Hadamard gate, RY(arctan v_q) and
    RZ(arctan v_q^2), and then through L layers: CNOT gates from each qubit to the next and to the one after
    that, in rings, and the rotation RZ(angle 2) RY(angle 1) RZ(angle 0) on each; z_q is the expectation of
    Z. State vectors are exact: there is no noise and no sampling. Gradients are exact, too, by the adjoint
    method, in memory that does not grow with L.

    The paper's gates have no linear maps: its circuits take [h, x], of Q values, and h has as many values as
    are measured. That is W_ih and W_hh of ones and zeros, W_out the identity, biases 0. Its two circuits
    behind o*tanh(c) are left out, as implementations with linear maps do.

    `y, (h, c) = m(x)`; to train, `y, state, tape = m.forward(x)` and `dx, dstate = m.backward(tape, dy)`.
    x is (T, B, I), (B, T, I) with batch_first, or (T, I) for one sequence; y (T, B, H), laid out as x. The
    state is (h, c), each (1, B, H), or (1, H) for one sequence.

    Parameters: weight_ih (4Q, I), weight_hh (4Q, H), bias_ih (4Q,), weight_out (4H, Q) and bias_out (4H,),
    gates one after another; angles (4, L, Q, 3).

    Args:
        input_size: I.
        hidden_size: H.
        qubits: Q in 1..8; the time of a step grows with Q 2^Q.
        layers: L >= 1, the variational layers of each circuit.
        batch_first: x and y are (B, T, ...) instead of (T, B, ...).
        dtype: "float32" or "float64".
        seed: int, numpy.random.Generator or None.
        init: "default" or "torch", which are the same here: weights and biases as torch.nn.Linear's, angles
            uniform over a turn. None leaves all parameters at zero, for weights that are loaded next.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Papers: Chen, Yoo and Fang 2020, Quantum long short-term memory, arXiv:2009.01783; Jones and Gacon 2020,
    arXiv:2009.02823 (adjoint gradients).
    """

    _fixed = frozenset(("input_size", "hidden_size", "qubits", "layers"))
    has_state = True
    _host_only = True
    _dtype: np.dtype[Any]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        qubits: int = 4,
        layers: int = 1,
        batch_first: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
    ) -> None:
        super().__init__()
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = check_size("hidden_size", hidden_size)
        self.qubits = check_size("qubits", qubits, maximum=_MOST_QUBITS)
        self.layers = check_size("layers", layers)
        self.batch_first = check_flag("batch_first", batch_first)
        found, method, rng = resolve_dtype(dtype), check_method(init), make_rng(seed)
        inputs, outputs = _GATES * self.qubits, _GATES * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (inputs, self.input_size),
            "weight_hh": (inputs, self.hidden_size),
            "bias_ih": (inputs,),
            "angles": (_GATES, self.layers, self.qubits, 3),
            "weight_out": (outputs, self.qubits),
            "bias_out": (outputs,),
        }
        self._declare(shapes, found)
        if not method:
            return
        for name in shapes:
            if name == "angles":
                self._own[name] = rng.uniform(0, 2 * math.pi, shapes[name])
            else:
                fan = self.qubits if name.endswith("out") else self.input_size + self.hidden_size
                torch_uniform(self._own[name], fan, rng=rng)

    def __call__(
        self, x: Array, state: State | None = None, lengths: npt.ArrayLike | None = None
    ) -> tuple[Array, State]:
        """Return y and the state, and keep no tape; arguments as `forward`."""
        return self._run(x, state, lengths, self._own, keep=False)[:2]

    def forward(
        self, x: Array, state: State | None = None, lengths: npt.ArrayLike | None = None
    ) -> tuple[Array, State, SavedTape]:
        """Run all steps and keep what `backward` needs.

        Args:
            x: (T, B, I), (B, T, I) with batch_first, or (T, I).
            state: (h, c), zero if None.
            lengths: (B,) of an integer dtype, each in 0..T; all T if None. Past them y is 0, and what
                stands in x is not looked at.

        Returns:
            y: (T, B, H), laid out as x.
            state: (h, c) after each sequence's last step.
            tape: for `backward`. It refers to x: do not write to it before.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape or range.
        """
        kept = self._kept_parameters()
        y, found, saved = self._run(x, state, lengths, kept, keep=True)
        owned = sum(array.nbytes for array in saved[2])
        return y, found, SavedTape(self, y.shape, (*saved, kept), owned)

    def _run(
        self, x: Array, state: Any, lengths: Any, parameters: Mapping[str, Array], keep: bool
    ) -> tuple[Array, State, tuple[Any, ...]]:
        """Return y, the state, and what backward reads: rows of x, lengths, and the kernels' arrays."""
        axis = check_sequence(x, "I", self.input_size, self._dtype, self.batch_first)
        single, counts = x.ndim == 2, None
        if lengths is not None:
            counts = as_lengths(lengths)
            x = only_counted(counted_steps(None, counts, x.shape[:-1], axis), x)
        steps = self._time_major(x)
        rows = contiguous(steps).reshape(-1, self.input_size)
        gx = CPU.kernels.linear_forward(rows, parameters["weight_ih"], parameters["bias_ih"])
        start = self._states("state", state, steps.shape[1], single)
        y, h_n, c_n, tape = _core.quantum_forward(
            _batch_last(gx.reshape(*steps.shape[:2], gx.shape[1])),
            self._weights(parameters),
            counts,
            start,
            keep,
        )
        found = self._as_state(h_n, c_n, single)
        return self._as_given(y, single), found, (rows, counts, (*(tape or ()), y, *start))

    def backward(
        self, tape: SavedTape, dy: Array | None, dstate: State | None = None, *, need_dx: bool = True
    ) -> tuple[Array | Any, State]:
        """Add to the gradients of the parameters; return dx and dstate.

        Args:
            tape: from `forward`.
            dy: gradient of y, in its shape and dtype, or None for zeros.
            dstate: gradients of the final state, in its shapes; None for zero.
            need_dx: whether to compute dx.

        Returns:
            dx: in the shape of x, exactly 0 past a sequence's end; None without need_dx.
            dstate: gradients of the initial state.

        Raises:
            TypeError: an argument of the wrong kind or dtype.
            ValueError: an argument of the wrong shape, or the tape of another module.
        """
        tape = check_tape(tape, self, SavedTape)
        rows, counts, arrays, kept = tape.saved
        *core_tape, y, h, c = arrays
        single, batch = len(tape.shape) == 2, h.shape[1]
        flow = np.zeros(tape.shape, self._dtype) if dy is None else dy
        check_array("dy", flow, tape.shape, self._dtype)
        dend = self._states("dstate", dstate, batch, single)
        dgx, dgates, dunitaries, dh_0, dc_0 = _core.quantum_backward(
            *(tuple(core_tape), self._weights(kept), counts, c),
            *(_batch_last(self._time_major(flow)), dend),
        )
        sums, dproducts = self._sums(), _rows(dgx)
        with self._turn.take():
            dx = CPU.kernels.linear_backward(
                rows, kept["weight_ih"], dproducts, sums.get("weight_ih"), sums.get("bias_ih"), need_dx
            )
            if sums:
                before = _rows(np.concatenate([h[None], y])[:-1])
                _add_product(before, kept["weight_hh"], dproducts, sums["weight_hh"], None)
                self._add_outputs(core_tape[1], dgates, kept["weight_out"], sums)
                parts = dunitaries.sum(axis=2, dtype=np.float64).reshape(*kept["angles"].shape[:-1], 8)
                sums["angles"] += rotation_gradients(kept["angles"], parts)
        found = self._as_state(dh_0, dc_0, single)
        if not need_dx:
            return None, found
        shaped = dx.reshape(*y.shape[::2], self.input_size)
        return (shaped[:, 0] if single else shaped.swapaxes(0, 1) if self.batch_first else shaped), found

    def _add_outputs(self, z: Array, dgates: Array, weight: Array, sums: Mapping[str, Array]) -> None:
        """Add the gradients of the maps from what was measured (T, 4Q, B) to the gates (T, 4H, B)."""
        for gate in range(_GATES):
            measured = slice(gate * self.qubits, (gate + 1) * self.qubits)
            units = slice(gate * self.hidden_size, (gate + 1) * self.hidden_size)
            _add_product(
                *(_rows(z[:, measured]), weight[units], _rows(dgates[:, units])),
                *(sums["weight_out"][units], sums["bias_out"][units]),
            )

    def _weights(self, parameters: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the parameters of the time loop as the kernels take them."""
        unitaries = rotations(parameters["angles"]).reshape(-1, 8).astype(self._dtype)
        return parameters["weight_hh"], unitaries, parameters["weight_out"], parameters["bias_out"]

    def _time_major(self, x: Array) -> Array:
        """Return steps (T, B, n)."""
        return x[:, None] if x.ndim == 2 else x.swapaxes(0, 1) if self.batch_first else x

    def _as_given(self, y: Array, single: bool) -> Array:
        """Return y (T, H, B) in the layout of x."""
        return contiguous(y[..., 0] if single else y.transpose((2, 0, 1) if self.batch_first else (0, 2, 1)))

    def _states(self, name: str, state: Any, batch: int, single: bool) -> tuple[Array, Array]:
        """Return h and c (H, B)."""
        if state is None:
            zero = np.zeros((self.hidden_size, batch), self._dtype)
            return zero, zero
        if not isinstance(state, tuple) or len(state) != 2:
            raise kind_error(name, state, "a tuple (h, c)")
        shape = (1, self.hidden_size) if single else (1, batch, self.hidden_size)
        symbols = "(1, H)" if single else "(1, B, H)"
        h, c = (
            check_array(f"{name}[{i}]", part, shape, self._dtype, symbols).reshape(batch, self.hidden_size)
            for i, part in enumerate(state)
        )
        return np.ascontiguousarray(h.T), np.ascontiguousarray(c.T)

    def _as_state(self, h: Array, c: Array, single: bool) -> State:
        """Return h and c (H, B) as a state."""
        shape = (1, self.hidden_size) if single else (1, h.shape[1], self.hidden_size)
        return contiguous(h.T).reshape(shape), contiguous(c.T).reshape(shape)

    def _extra_repr(self) -> str:
        changed = changed_options(
            qubits=(self.qubits, 4),
            layers=(self.layers, 1),
            batch_first=(self.batch_first, False),
            dtype=(str(self._dtype), "float32"),
        )
        return f"{self.input_size}, {self.hidden_size}{changed}"


def _batch_last(x: Array) -> Array:
    """Return steps (T, B, n) as the kernels take them, (T, n, B)."""
    return contiguous(x.transpose(0, 2, 1))


def _rows(x: Array) -> Array:
    """Return steps (T, n, B) as rows (T*B, n)."""
    return contiguous(x.transpose(0, 2, 1)).reshape(-1, x.shape[1])


def _add_product(x: Array, weight: Array, dy: Array, dweight: Array, dbias: Array | None) -> None:
    """Add the gradients of x W^T + b."""
    CPU.kernels.linear_backward(x, weight, dy, dweight, dbias, False)
