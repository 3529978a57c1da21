"""The cells this build knows: their constants, names and equations, checked against the compiled module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from fusedrnn import _core
from fusedrnn.arrays import Array
from fusedrnn.cell_spec import CellSpec, Initial, Parameter, Weights, parameters_of
from fusedrnn.checks import check_choice
from fusedrnn.symbolic import DefinedCell

__all__ = [
    "CELLS",
    "CellSpec",
    "Initial",
    "Parameter",
    "Weights",
    "gather_weights",
    "resolve_cell",
    "rnn_cell",
]

_ELMAN_STEP = (
    "a  = W_ih x + b_ih + W_hh h + b_hh\n"
    "h' = tanh(a)                                or, with nonlinearity=\"relu\":  h' = max(0, a)"
)

CELLS: Mapping[str, CellSpec] = MappingProxyType(
    {
        spec.name: replace(spec, parameters=parameters_of(_core.cells.get(spec.name)))
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
                initial=(("x.f", 1.0),),
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
            *[
                CellSpec(
                    name=name,
                    gates=1,
                    gate_names=("h",),
                    states=1,
                    state_names=("h",),
                    saved=1,
                    split_gates=False,
                    equations=_ELMAN_STEP,
                    paper="Elman 1990, Finding structure in time",
                )
                for name in ("rnn_tanh", "rnn_relu")
            ],
        )
    }
)


def resolve_cell(cell: str | CellSpec | DefinedCell) -> CellSpec:
    """Return the CellSpec of the name of a compiled cell, of a defined cell, or the spec itself.

    Raises:
        TypeError: `cell` is none of these.
        ValueError: no such cell is built in.
    """
    if isinstance(cell, DefinedCell):
        return cell.spec
    if not isinstance(cell, (str, CellSpec)):
        raise TypeError(
            f"cell: expected a name, a CellSpec or what define_cell returns, got {type(cell).__name__}"
        )
    if isinstance(cell, str):
        spec = CELLS.get(cell)
    else:
        spec = CELLS.get(cell.name) if cell.definition is None else cell.definition.spec
    if spec is None or (isinstance(cell, CellSpec) and cell != spec):
        name = cell if isinstance(cell, str) else cell.name
        raise ValueError(
            f"cell: expected one of {', '.join(CELLS)} or what define_cell returns, got {name!r}"
        )
    return spec


def rnn_cell(nonlinearity: str) -> str:
    """Return the name of the Elman cell with this nonlinearity, or raise ValueError."""
    check_choice("nonlinearity", nonlinearity, ("tanh", "relu"))
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
