"""Types of the compiled module. It checks every argument; see csrc/bindings for what each call refuses."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypedDict, final, overload

import numpy as np
import numpy.typing as npt

_Array: TypeAlias = npt.NDArray[Any]
_Int64: TypeAlias = npt.NDArray[np.int64]
_Bool: TypeAlias = npt.NDArray[np.bool_]

# In the order of the cell's parameters: weight_ih (G*H, I), weight_hh (G*H, Hout), bias_ih (G*H,),
# bias_hh (G*H,), weight_hr (P, H), and what the cell has besides.
_Params: TypeAlias = tuple[_Array | None, ...]
_Grads: TypeAlias = tuple[_Array | None, ...]
# (h (B, Hout),), (h (B, Hout), c (B, H)) or more of the shape of c
_State: TypeAlias = tuple[_Array, ...]
_StateLike: TypeAlias = tuple[_Array | None, ...]

# One program of a cell that is data. Its slots are constants, inputs, outputs and temporaries, in this order;
# code (n, 5) has an operation, a slot to write and three to read. Inputs and outputs are named by a kind and
# a number, as "s.0".
class _Program(TypedDict):
    constants: list[float]
    slots: int
    code: _Int64
    inputs: list[str]
    outputs: list[str]
    operations: list[int]

class _CellConstants(TypedDict):
    gates: int
    states: int
    saved: int
    split_gates: bool
    # Of each: name, role, need, rows and columns, an axis as (times, "I", "H", "P" or "1").
    parameters: tuple[tuple[str, str, str, tuple[int, str], tuple[int, str]], ...]

__version__: str
cells: dict[str, _CellConstants]

@final
class WeightCache:
    """Packed weights of one layer and direction, refreshed when the arrays change. Thread-safe."""

    def __init__(self) -> None: ...
    @property
    def nbytes(self) -> int: ...

@final
class PlainCall:
    def __init__(self, cell: str, params: _Params, cache: WeightCache) -> None: ...
    def __call__(
        self, x: Any, state: Any, version: int | None, save: bool, recompute: bool
    ) -> tuple[_Array, Any, LayerTape | None] | None: ...

@final
class Torch:
    """What is needed of PyTorch, whose module is given."""

    def __init__(self, module: Any) -> None: ...
    def backward(
        self,
        tapes: Sequence[LayerTape],
        drops: Sequence[tuple[float, int, int] | None],
        flows: tuple[Any, ...],
        need_x: bool,
        need_states: bool,
        need_params: bool,
        batch_first: bool,
        step_axes: int = 0,
    ) -> list[Any]: ...

@final
class TensorNetwork:
    """A module of PyTorch, the parameters of whose layers and directions have the names."""

    def __init__(
        self,
        torch: Torch,
        cell: str,
        directions: int,
        names: list[list[str]],
        caches: list[WeightCache],
        make_tape: Any,
    ) -> None: ...
    def forward(
        self,
        module: Any,
        x: Any,
        hx: Any,
        lengths: Any,
        resets: Any,
        record: Any,
        options: Any,
        batch_first: bool,
        draw: Any,
    ) -> tuple[Any, Any] | None: ...
    def step(self, module: Any, x: Any, hx: Any, record: Any, options: Any) -> Any: ...

def run_network(
    cell: str,
    directions: int,
    params: list[tuple[Any, ...]],
    caches: list[WeightCache],
    x: _Array,
    states: tuple[_Array, ...],
    lengths: _Array | None,
    resets: _Array | None,
    drops: tuple[tuple[float, int, int] | None, ...],
    save: bool,
    y: _Array,
    finals: tuple[_Array, ...],
) -> list[LayerTape]:
    """Write y and the final states of all layers and directions; return the tapes, with `save`."""

@final
class LayerTape:
    """What backward of one layer and direction needs. `nbytes` leaves out x, y, weights and states."""

    def check_unchanged(self) -> None: ...
    def copy_states(self, number: int, out: _Array) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def input_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def proj_size(self) -> int: ...
    @property
    def cell(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def reverse(self) -> bool: ...

@final
class Stream:
    """One step at a time with the weights packed once and the state kept inside."""

    def __init__(self, cell: str, layers: list[_Params], batch_size: int) -> None: ...
    def __call__(self, x: _Array) -> _Array: ...
    def get_state(self) -> list[_State]: ...
    def set_state(self, state: list[_StateLike]) -> None: ...
    def reset(self, rows: _Int64 | None = None) -> None: ...
    def refresh(self, layers: list[_Params]) -> None: ...

@final
class Quantized:
    """Layers of one or two directions with weights in "bf16" or "int8", for inference. Never changes."""

    def __init__(self, cell: str, layers: list[list[_Params]], weights: str) -> None: ...
    # States are (num_layers*D, B, width); returns the final ones. `out` (T, B, D*Hout) is written.
    def forward(
        self,
        x: _Array,
        out: _Array,
        state: _StateLike | None = None,
        *,
        lengths: _Int64 | None = None,
        resets: _Bool | None = None,
        reset_state: _StateLike | None = None,
    ) -> _State: ...
    # For each layer and direction: (weight_ih, weight_hh, weight_hr) in int8 or the upper halves of float32,
    # the scales of their rows, and the biases of the input and the recurrent part; None for what is missing.
    def weights(self) -> list[tuple[_Grads, _Grads, _Grads]]: ...
    @property
    def nbytes(self) -> int: ...

@final
class QuantizedStream:
    """One step at a time of a `Quantized` of one direction, with the state kept inside."""

    def __init__(self, network: Quantized, batch_size: int) -> None: ...
    def __call__(self, x: _Array) -> _Array: ...
    def get_state(self) -> _State: ...
    def set_state(self, state: _StateLike | None) -> None: ...
    def reset(self, rows: _Int64 | None) -> None: ...

class LayerCall:
    """A call of the kernels for one layer and direction, checked and ready to run once."""

@final
class ForwardCall(LayerCall):
    """The call `forward`."""

    def __init__(
        self,
        cell: str,
        x: _Array,
        params: _Params,
        state: _StateLike | None = None,
        indices: _Int64 | None = None,
        lengths: _Int64 | None = None,
        resets: _Bool | None = None,
        reset_state: _StateLike | None = None,
        reverse: bool = False,
        save: bool = False,
        recompute: bool = False,
        cache: WeightCache | None = None,
        version: int | None = None,
        out: _Array | None = None,
        state_out: _State | None = None,
        tape_out: _Array | None = None,  # (n,) of x's dtype; the tape is in it
        hidden_drop: tuple[float, int, int]
        | None = None,  # (p, seed, offset) of a mask on weight_hh, csrc/layers/dropout.h
    ) -> None: ...
    # Before it runs: the masks of the cell are drawn, not their expectation taken.
    def draw_masks(self, seed: int, offset: int) -> None: ...

@final
class BackwardCall(LayerCall):
    """The call `backward`."""

    def __init__(
        self,
        tape: LayerTape,
        dy: _Array | None = None,
        dstate: _StateLike | None = None,
        dparams: _Grads | None = None,
        need_dx: bool = True,
        dx: _Array | None = None,
        accumulate_dx: bool = False,
        dreset: _State | None = None,
        dsteps: tuple[_Array | None, ...] | None = None,
    ) -> None: ...

def forward(
    cell: str,
    x: _Array,
    params: _Params,
    state: _StateLike | None = None,
    indices: _Int64 | None = None,
    lengths: _Int64 | None = None,
    resets: _Bool | None = None,
    reset_state: _StateLike | None = None,
    reverse: bool = False,
    save: bool = False,
    recompute: bool = False,
    cache: WeightCache | None = None,
    version: int | None = None,
    out: _Array | None = None,
    state_out: _State | None = None,
    tape_out: _Array | None = None,
    hidden_drop: tuple[float, int, int] | None = None,
) -> tuple[_Array, _State, LayerTape | None]: ...

TAPE_LABEL_BYTES: int

def tape_row_bytes(cell: str, hidden_size: int, projected: bool, itemsize: int, recompute: bool) -> int:
    """Return the bytes of a row of a step in `tape_out`, on whatever CPU; a label comes before all rows."""

def tape_from_arrays(
    cell: str,
    x: _Array,
    params: _Params,
    y: _Array,
    tape: _Array,
    state: _StateLike | None = None,
    lengths: _Int64 | None = None,
    resets: _Bool | None = None,
    reset_state: _StateLike | None = None,
    reverse: bool = False,
    recompute: bool = False,
) -> LayerTape:
    """Return the tape of an earlier call, which has returned `y` and written `tape`, its `tape_out`."""

def backward(
    tape: LayerTape,
    dy: _Array | None = None,
    dstate: _StateLike | None = None,
    dparams: _Grads | None = None,
    need_dx: bool = True,
    dx: _Array | None = None,
    accumulate_dx: bool = False,
) -> tuple[_Array | None, _State, _Grads]: ...

class StagedCalls:
    """Lists of calls that run one after another; making it takes all memory that they need."""

    def __init__(self, stages: list[list[BackwardCall]]) -> None: ...
    def run(self) -> list[tuple[_Array | None, _State, _Grads]]:
        """Run the next list, as `run_calls` does."""
    def run_if_short(self) -> bool:
        """Run all lists if that takes a moment only, with no signal between; `run` then returns results."""

def backward_rows(
    tape: LayerTape, dy: _Array | None = None, dstate: _StateLike | None = None
) -> tuple[_Array, _State, tuple[_Array, _Array, _Array, _Array]]: ...
@overload
def run_calls(calls: list[ForwardCall]) -> list[tuple[_Array, _State, LayerTape | None]]: ...
@overload
def run_calls(calls: list[BackwardCall]) -> list[tuple[_Array | None, _State, _Grads]]: ...
def get_num_threads() -> int: ...
def set_num_threads(n: int) -> None: ...
def set_detect_changes(enabled: bool) -> None: ...
def config() -> dict[str, Any]: ...
def measure_limits() -> dict[str, Any]: ...
def exp(x: _Array) -> _Array: ...
def sigmoid(x: _Array) -> _Array: ...
def tanh(x: _Array) -> _Array: ...

program_operations: dict[str, int]

def run_program(
    code: _Array, constants: _Array, inputs: _Array, outputs: int, temporaries: int
) -> _Array: ...

# A cell that is data is known by its key, wherever the name of a cell is taken, until the process ends. Its
# values: "x", "h" (or "a" where gates are not split), "s", "p"; "next", "saved"; "dnext"; "dx", "dh" (or
# "da"), "ds", "dp". Without `hidden_product` it has no weight_hh and no bias_hh, and h.* may not be read.
def define_program(
    key: str,
    gates: int,
    states: int,
    saved: int,
    links: int,
    split_gates: bool,
    direct_hidden: bool,
    hidden_product: bool,
    bias: bool,
    per_unit: list[str],
    per_unit_values: list[int],
    operations: _Array,
    forward: list[_Program],
    inference: list[_Program],
    backward: list[_Program],
    masks: list[tuple[float, float, float, float, bool]] = [],
) -> _CellConstants: ...

# A capsule of a defined cell's programs, for the module of a GPU; None for another key.
def cell_definition(key: str) -> object | None: ...
def linear_forward(
    x: _Array,
    weight: _Array,
    bias: _Array | None,
    out: _Array | None = None,
    compute: str = "float32",
) -> _Array: ...
def linear_backward(
    x: _Array,
    weight: _Array,
    dy: _Array,
    dweight: _Array | None,
    dbias: _Array | None,
    need_dx: bool,
    compute: str = "float32",
) -> _Array | None: ...
def embedding_forward(indices: _Int64, weight: _Array) -> _Array: ...
def embedding_backward(indices: _Int64, dy: _Array, dweight: _Array) -> None: ...
def layer_norm_forward(
    x: _Array, weight: _Array | None, bias: _Array | None, eps: float
) -> tuple[_Array, _Array, _Array]: ...
def layer_norm_backward(
    x: _Array,
    weight: _Array | None,
    dy: _Array,
    mean: _Array,
    rstd: _Array,
    dweight: _Array | None,
    dbias: _Array | None,
) -> _Array: ...
def cross_entropy(
    logits: _Array,
    targets: _Int64,
    weight: _Array | None,
    ignore_index: int,
    label_smoothing: float,
    mean: bool,
) -> tuple[_Array, float, _Array]: ...
def ctc_loss(
    logits: _Array,
    targets: _Int64,
    input_lengths: _Int64,
    target_lengths: _Int64,
    blank: int,
    mean: bool,
    zero_infinity: bool,
) -> tuple[_Array, _Array]: ...
def ctc_align(
    logits: _Array, targets: _Int64, input_lengths: _Int64, target_lengths: _Int64, blank: int
) -> tuple[_Int64, _Array]: ...
def ctc_prefix_step(
    logp: _Array,
    blanks: _Array,
    labels: _Array,
    last: _Int64,
    parents: _Int64,
    bonus: _Array,
    added: _Array,
    blank: int,
    beam: int,
) -> tuple[_Int64, _Int64, _Array, _Array]: ...
def ctc_decode(
    logits: _Array, lengths: _Int64 | None, beam: int, blank: int
) -> tuple[_Int64, _Int64, _Array]: ...
def crf_loss(
    emissions: _Array,
    tags: _Int64,
    lengths: _Int64 | None,
    start: _Array,
    transitions: _Array,
    end: _Array,
    dstart: _Array,
    dtransitions: _Array,
    dend: _Array,
    mean: bool,
) -> tuple[_Array, _Array]: ...
def crf_marginals(
    emissions: _Array, lengths: _Int64 | None, start: _Array, transitions: _Array, end: _Array
) -> tuple[_Array, _Array]: ...
def beam_step(
    logits: _Array, totals: _Array, rows: _Int64, allowed: _Array | None, count: int
) -> tuple[_Int64, _Int64, _Array]: ...
def crf_nbest(
    emissions: _Array, lengths: _Int64 | None, start: _Array, transitions: _Array, end: _Array, n_best: int
) -> tuple[_Int64, _Array]: ...
def crf_decode(
    emissions: _Array, lengths: _Int64 | None, start: _Array, transitions: _Array, end: _Array
) -> tuple[_Int64, _Array]: ...
def quantum_forward(
    gx: _Array, params: _Params, lengths: _Int64 | None, state: _State, keep: bool
) -> tuple[_Array, _Array, _Array, tuple[_Array, ...] | None]: ...
def quantum_backward(
    tape: _State, params: _Params, lengths: _Int64 | None, c: _Array, dy: _Array, dstate: _State
) -> tuple[_Array, _Array, _Array, _Array, _Array]: ...

class PackedDecoder: ...

class DecoderMemory:
    @property
    def nbytes(self) -> int: ...
    @property
    def batch(self) -> int: ...

class DecoderTape:
    @property
    def nbytes(self) -> int: ...

class DecoderSampling: ...

def decoder_pack(
    cell: str,
    params: tuple[_Array | None, ...],
    memory_size: int,
    score: str,
    current: bool,
    feeds: bool,
    compute: str = "float32",
) -> PackedDecoder: ...
def decoder_prepare(
    decoder: PackedDecoder,
    memory: _Array,
    memory_lengths: _Int64 | None,
    table: _Array | None,
    contexts: bool,
    steps: int = 0,
) -> DecoderMemory: ...
def decoder_sampling(
    weight: _Array,
    bias: _Array | None,
    table: _Array,
    probability: float,
    seed: int,
    offset: int,
    compute: str = "float32",
) -> DecoderSampling: ...
def decoder_forward(
    prepared: DecoderMemory,
    x: _Array,
    lengths: _Int64 | None,
    state: tuple[_Array | None, ...] | None,
    rows: _Int64 | None,
    keep: bool,
    sampling: DecoderSampling | None,
    places: _Int64 | None,
) -> tuple[_Array, _Array, tuple[_Array, ...], DecoderTape | None, _Int64 | None]: ...

SEARCH_BEAM: int
SEARCH_NODES: int

def decoder_search(
    prepared: DecoderMemory,
    head: DecoderSampling,
    state: tuple[_Array | None, ...] | None,
    bos: int,
    eos: int,
    beam: int,
    divisors: _Array,
    n_best: int,
) -> tuple[_Int64, _Int64, _Array, _Int64]: ...
def decoder_backward(
    tape: DecoderTape,
    dy: _Array | None,
    dalpha: _Array | None,
    dstate: tuple[_Array | None, ...] | None,
    grads: tuple[_Array | None, ...] | None,
    need_dx: bool,
) -> tuple[_Array | None, _Array, tuple[_Array, ...]]: ...
def transducer_emissions(logits: _Array, labels: _Int64, blank: int) -> _Array: ...
def transducer_lattice(
    emissions: _Array, logit_lengths: _Int64, target_lengths: _Int64, label_factor: float
) -> tuple[_Array, _Array]: ...
def transducer_gradient(
    logits: _Array,
    labels: _Int64,
    blank: int,
    emissions: _Array,
    flow: _Array,
    factor: float,
    clamp: float,
) -> _Array: ...
def spare_like(x: _Array) -> _Array: ...
def dropout(x: _Array, p: float, seed: int, offset: int, out: _Array | None = None) -> _Array: ...
def sgd_step(
    param: _Array,
    grad: _Array,
    momentum_buf: _Array | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
) -> None: ...
def adam_step(
    param: _Array,
    grad: _Array,
    exp_avg: _Array,
    exp_avg_sq: _Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
) -> None: ...
def norm(x: _Array, p: float) -> float: ...
def scale_(x: _Array, factor: float) -> None: ...
def clamp_(x: _Array, lo: float, hi: float) -> None: ...

# The handler of XLA's foreign functions, a capsule. It gives the function the attribute "call" of a custom
# call, its arguments and its results, to be written: arrays on XLA's memory, gone when it returns.
def xla_handler(function: Callable[[str, list[_Array], list[_Array]], None]) -> Any: ...
