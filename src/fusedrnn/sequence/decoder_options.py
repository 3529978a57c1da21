"""What a decoder with attention may be made of: its options, and the parameters that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fusedrnn.arrays import Array
from fusedrnn.cell_spec import CellSpec
from fusedrnn.checks import check_choice, check_flag, check_size
from fusedrnn.init import recurrent_layer, torch_uniform, xavier_uniform

SCORES = ("additive", "location", "dot", "general", "window")
CELL_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
# Of the kernels' parameters, in their order.
NAMES = (
    *("weight_query", "weight_memory", "bias_memory", "weight_energy"),
    *(f"{name}_l0" for name in CELL_NAMES),
    *("weight_output", "weight_location", "weight_filter", "weight_coverage", "weight_window", "bias_window"),
)


class DecoderOptions(NamedTuple):
    """Options of an `AttentionDecoder`, checked."""

    score: str
    query: str
    input_feeding: bool
    coverage: bool
    attention_size: int
    location_filters: int
    location_kernel_size: int
    num_windows: int

    @property
    def current(self) -> bool:
        return self.query == "current"

    @property
    def additive(self) -> bool:
        """Whether energies are v . tanh(...)."""
        return self.score in ("additive", "location")

    @property
    def windowed(self) -> bool:
        return self.score == "window"

    def text(self, hidden_size: int) -> str:
        """Return those that are not the usual ones, as arguments."""
        usual = DecoderOptions("additive", "previous", False, False, hidden_size, 10, 31, 10)
        named = zip(self._fields, self, usual, strict=True)
        return "".join(f", {name}={value!r}" for name, value, other in named if value != other)


def check_options(
    score: Any,
    query: Any,
    input_feeding: Any,
    coverage: Any,
    attention_size: Any,
    location_filters: Any,
    location_kernel_size: Any,
    num_windows: Any,
    hidden_size: int,
    memory_size: int,
) -> DecoderOptions:
    """Return the options; refuse what has no meaning together."""
    check_choice("score", score, SCORES)
    check_choice("query", query, ("previous", "current"))
    feeds, covers = check_flag("input_feeding", input_feeding), check_flag("coverage", coverage)
    additive = score in ("additive", "location")
    if feeds and query == "previous":
        raise ValueError(
            "input_feeding: expected False with query='previous', whose context enters every gate, "
            "got True; use query='current'"
        )
    if covers and not additive:
        raise ValueError(
            f"coverage: expected False with score={score!r}, which adds nothing inside a tanh, got True; "
            "use score='additive'"
        )
    size = check_size("attention_size", hidden_size if attention_size is None else attention_size)
    if not additive and size != hidden_size:
        raise ValueError(
            f"attention_size: expected None with score={score!r}, whose query is the state, got {size}"
        )
    if score == "dot" and memory_size != hidden_size:
        raise ValueError(
            f"memory_size: expected hidden_size = {hidden_size} with score='dot', got {memory_size}; "
            "use score='general'"
        )
    filters = check_size("location_filters", location_filters)
    width = check_size("location_kernel_size", location_kernel_size)
    if width % 2 == 0:
        raise ValueError(f"location_kernel_size: expected an odd number, got {width}")
    windows = check_size("num_windows", num_windows)
    return DecoderOptions(score, query, feeds, covers, size, filters, width, windows)


def parameter_shapes(
    spec: CellSpec, options: DecoderOptions, input_size: int, hidden_size: int, memory_size: int, bias: bool
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each parameter by its name, in the order of `NAMES`."""
    h, m, a = hidden_size, memory_size, options.attention_size
    fed = (h if options.input_feeding else 0) if options.current else m
    gates = spec.gates * h
    shapes: dict[str, tuple[int, ...]] = {}
    if options.additive:
        shapes |= {
            "weight_query": (a, h),
            "weight_memory": (a, m),
            "bias_memory": (a,),
            "weight_energy": (a,),
        }
    elif options.score == "general":
        shapes["weight_memory"] = (h, m)
    elif options.windowed:
        shapes |= {"weight_window": (3 * options.num_windows, h), "bias_window": (3 * options.num_windows,)}
    cell = ((gates, input_size + fed), (gates, h), (gates,), (gates,))
    shapes |= {f"{name}_l0": shape for name, shape in zip(CELL_NAMES, cell, strict=True)}
    if options.current:
        shapes["weight_output"] = (h, m + h)
    if options.score == "location":
        filters = options.location_filters
        shapes |= {"weight_location": (a, filters), "weight_filter": (filters, options.location_kernel_size)}
    if options.coverage:
        shapes["weight_coverage"] = (a,)
    return {name: shape for name, shape in shapes.items() if bias or not name.startswith("bias")}


def initialise(
    spec: CellSpec, parameters: Mapping[str, Array], method: str, *, rng: np.random.Generator
) -> None:
    """Draw the attention's weights, then the cell's."""
    attention = (name for name in NAMES if not name.endswith("_l0") and name in parameters)
    for name in attention:
        array, bias = parameters[name], name.startswith("bias")
        if method == "torch":
            fan = parameters[name.replace("bias", "weight")].shape[-1] if bias else array.shape[-1]
            torch_uniform(array, 1 if name == "weight_coverage" else fan, rng=rng)
        elif not bias:
            xavier_uniform(array if array.ndim == 2 else array[None], rng=rng)
    own = {name: parameters[f"{name}_l0"] for name in CELL_NAMES if f"{name}_l0" in parameters}
    recurrent_layer(spec, own, method, rng=rng)
