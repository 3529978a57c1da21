"""The cells this build knows: their constants, names and equations, checked against the compiled module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from fusedrnn import _core
from fusedrnn.arrays import Array

Weights: TypeAlias = tuple[Array | None, ...]  # in the order of the cell's parameters


@dataclass(frozen=True)
class Parameter:
    """One parameter of a cell, as its compiled header lists it.

    Attributes:
        name: without layer and direction.
        role: input_weight, hidden_weight, input_bias, hidden_bias, projection or per_unit.
        need: required, optional or refused.
        rows, columns: an axis each, as (2, "H") for 2*H; columns (1, "1") for a vector.
    """

    name: str
    role: str
    need: str
    rows: tuple[int, str]
    columns: tuple[int, str]


@dataclass(frozen=True)
class CellSpec:
    """What the Python side knows about one cell; the equations themselves are compiled.

    Attributes:
        name: the key used by `fusedrnn.functional.forward` and by the kernels.
        gates: number of gates G; weight_ih is (G*H, I).
        gate_names: the order of the gate blocks in every weight and bias.
        states: number of state arrays: 1 (h), 2 (h, c) or more.
        state_names: their names.
        saved: values kept for backward for each unit and step.
        split_gates: True if the gradients of the input part and the recurrent part of the gates differ.
        equations: the step in ASCII; `*` is elementwise, h' what h is after it. `tools/equations.py` writes
            them into docstrings and pages.
        paper: where it comes from.
    """

    name: str
    gates: int
    gate_names: tuple[str, ...]
    states: int
    state_names: tuple[str, ...]
    saved: int
    split_gates: bool
    equations: str
    paper: str

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What the cell's compiled header lists, in the order of every tuple of parameters."""
        return _PARAMETERS[self.name]

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of `parameters`."""
        return tuple(p.name for p in self.parameters)

    @property
    def state_labels(self) -> tuple[str, ...]:
        """What an error message puts after the name of a state argument: nothing for a single array."""
        return ("",) if self.states == 1 else tuple(f"[{k}]" for k in range(self.states))

    def state_widths(self, hidden_size: int, proj_size: int = 0) -> tuple[int, ...]:
        """Return the width of each state: that of h is the projection's where there is one."""
        return (proj_size or hidden_size, *[hidden_size] * (self.states - 1))

    def parameter_shapes(
        self, input_size: int, hidden_size: int, bias: bool = True, proj_size: int = 0
    ) -> dict[str, tuple[int, ...]]:
        """Return {name: shape} of one layer and direction, in PyTorch's order."""
        sizes = {"1": 1, "I": input_size, "H": hidden_size, "P": proj_size or hidden_size}
        left_out = set() if bias else {"input_bias", "hidden_bias"}
        if not proj_size:
            left_out.add("projection")
        shapes = {}
        for p in self.parameters:
            if p.role not in left_out:
                axes = [p.rows] if p.columns == (1, "1") else [p.rows, p.columns]
                shapes[p.name] = tuple(times * sizes[size] for times, size in axes)
        return shapes

    def unpack_state(self, name: str, state: object) -> tuple[Any, ...]:
        """Return the state as a tuple: (h, c) is given as a pair, a single h as the array itself.

        Raises:
            TypeError: a cell with two states was not given a tuple or list.
            ValueError: the number of arrays is wrong.
        """
        if not isinstance(state, (tuple, list)):
            if self.states == 1:
                return (state,)
            names = ", ".join(self.state_names)
            raise TypeError(f"{name}: expected a tuple ({names}), got {type(state).__name__}")
        if len(state) != self.states:
            names = ", ".join(self.state_names)
            raise ValueError(f"{name}: expected {self.states} array(s) ({names}), got {len(state)}")
        return tuple(state)

    def pack_state(self, parts: tuple[Array, ...] | list[Array]) -> Any:
        """Return h itself for a cell with one state, the tuple (h, c) otherwise."""
        return parts[0] if self.states == 1 else tuple(parts)


_PARAMETERS = {
    name: tuple(Parameter(*parameter) for parameter in constants["parameters"])
    for name, constants in _core.cells.items()
}

_ELMAN = "Elman 1990, Finding structure in time"
_ELMAN_STEP = (
    "a  = W_ih x + b_ih + W_hh h + b_hh\n"
    "h' = tanh(a)                                or, with nonlinearity=\"relu\":  h' = max(0, a)"
)

CELLS: Mapping[str, CellSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            CellSpec(
                name="lstm",
                gates=4,
                gate_names=("i", "f", "g", "o"),
                states=2,
                state_names=("h", "c"),
                saved=4,
                split_gates=False,
                equations=(
                    "a  = W_ih x + b_ih + W_hh h + b_hh          four blocks of H rows: a_i, a_f, a_g, a_o\n"
                    "i  = sigmoid(a_i)     f = sigmoid(a_f)     g = tanh(a_g)     o = sigmoid(a_o)\n"
                    "c' = f*c + i*g\n"
                    "u  = o*tanh(c')\n"
                    "h' = u                                      or, with proj_size = P > 0:  h' = W_hr u"
                ),
                paper=(
                    "Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000; "
                    "projection: Sak, Senior and Beaufays 2014, arXiv:1402.1128v1"
                ),
            ),
            CellSpec(
                name="gru",
                gates=3,
                gate_names=("r", "z", "n"),
                states=1,
                state_names=("h",),
                saved=4,
                split_gates=True,
                equations=(
                    "gx = W_ih x + b_ih         gh = W_hh h + b_hh         three blocks of H rows: r, z, n\n"
                    "r  = sigmoid(gx_r + gh_r)\n"
                    "z  = sigmoid(gx_z + gh_z)\n"
                    "n  = tanh(gx_n + r*gh_n)\n"
                    "h' = (1 - z)*n + z*h                                  computed as n + z*(h - n)"
                ),
                paper="Cho et al. 2014, arXiv:1406.1078v1 (reset after the matrix product)",
            ),
            CellSpec(
                name="rnn_tanh",
                gates=1,
                gate_names=("h",),
                states=1,
                state_names=("h",),
                saved=1,
                split_gates=False,
                equations=_ELMAN_STEP,
                paper=_ELMAN,
            ),
            CellSpec(
                name="rnn_relu",
                gates=1,
                gate_names=("h",),
                states=1,
                state_names=("h",),
                saved=1,
                split_gates=False,
                equations=_ELMAN_STEP,
                paper=_ELMAN,
            ),
        )
    }
)


def resolve_cell(cell: str | CellSpec) -> CellSpec:
    """Return the registered CellSpec of a name or of the spec itself.

    Raises:
        TypeError: `cell` is neither a string nor a CellSpec.
        ValueError: no such cell is built in.
    """
    if not isinstance(cell, (str, CellSpec)):
        raise TypeError(f"cell: expected a name or a CellSpec, got {type(cell).__name__}")
    name = cell if isinstance(cell, str) else cell.name
    spec = CELLS.get(name)
    if spec is None or (isinstance(cell, CellSpec) and cell != spec):
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {name!r}")
    return spec


def rnn_cell(nonlinearity: str) -> str:
    """Return the name of the Elman cell with this nonlinearity, or raise ValueError."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
    return f"rnn_{nonlinearity}"


def gather_weights(spec: CellSpec, params: Mapping[str, Array]) -> Weights:
    """Return the arrays of one layer and direction in the kernels' order, None for those it lacks."""
    return tuple([params.get(name) for name in spec.parameter_names])


def _check_agreement() -> None:
    """Refuse to start when this file and the compiled module describe different cells."""
    compiled = {
        name: {key: value for key, value in constants.items() if key != "parameters"}
        for name, constants in _core.cells.items()
    }
    declared = {
        spec.name: {
            "gates": spec.gates,
            "states": spec.states,
            "saved": spec.saved,
            "split_gates": spec.split_gates,
        }
        for spec in CELLS.values()
    }
    differing = [name for name in {**declared, **compiled} if declared.get(name) != compiled.get(name)]
    if differing:
        details = "; ".join(
            f"{name}: cells.py {declared.get(name)}, _core {compiled.get(name)}" for name in differing
        )
        raise RuntimeError(f"fusedrnn.cells and the compiled fusedrnn._core do not agree: {details}")


_check_agreement()
