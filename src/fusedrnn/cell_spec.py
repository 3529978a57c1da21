"""What the Python side knows about a cell: `CellSpec`, whether the cell is compiled or a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, SupportsIndex, TypeAlias

from fusedrnn.arrays import Array

Weights: TypeAlias = tuple[Array | None, ...]  # in the order of the cell's parameters
Initial: TypeAlias = "float | tuple[float, float]"


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
    """What the Python side knows about one cell.

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
        parameters: what the compiled module says it has, in the order of every tuple of parameters.
        initial: (symbol, value) of the biases of gates, "x.f", and the per-unit parameters, "p.u", that do
            not start from zero; a value is a number, or (low, high) to draw from.
        definition: the `DefinedCell`, None for a compiled cell.
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
    parameters: tuple[Parameter, ...] = field(default=(), repr=False)
    initial: tuple[tuple[str, Initial], ...] = ()
    definition: Any = field(default=None, compare=False, repr=False)

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

    @property
    def label(self) -> str:
        """What messages and reprs call it."""
        return self.name if self.definition is None else self.definition.name

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # The name is a key of this process: another one registers the definition anew.
        if self.definition is None:
            return super().__reduce_ex__(protocol)
        return attrgetter("spec"), (self.definition,)


def parameters_of(constants: Mapping[str, Any] | None) -> tuple[Parameter, ...]:
    """Return the parameters in what the compiled module says of a cell, if it has that."""
    return () if constants is None else tuple(Parameter(*each) for each in constants["parameters"])
