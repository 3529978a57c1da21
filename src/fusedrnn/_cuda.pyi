"""Types of the compiled module of the GPU part; see cuda/bindings for what each call refuses.

It is not part of every build: `fusedrnn.cuda.loader` imports it. Arrays are those of any library that speaks
DLPack or `__cuda_array_interface__`; streams are numbered as in those protocols.
"""

from collections.abc import Callable
from typing import Any

__version__: str
targets: str
array_library: str  # which library holds the parameters of modules
device_types: tuple[int, ...]  # DLPack's numbers of the memory that kernels read
kernels: tuple[str, ...]

class Array:
    """An array in device memory, made by this module or a view of another library's."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...  # in elements
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def ndim(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class LayerTape:
    """What backward of one layer and direction needs. It refers to x, y, the states and the weights."""

    @property
    def nbytes(self) -> int: ...
    @property
    def seq_len(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def device(self) -> int: ...
    @property
    def math(self) -> str: ...
    @property
    def kernel(self) -> str: ...

def missing() -> str: ...
def devices() -> list[tuple[str, int]]: ...
def offer_cublas(files: list[str]) -> None: ...
def cublas() -> str: ...  # "13.1.0 (file)" or "none (reason)"
def emulate(architecture: int = 80, processors: int = 16) -> None: ...  # where FUSEDRNN_CUDA=EMULATED
def take_streams() -> tuple[set[int], set[tuple[int, int]]]: ...  # the same
def is_capturing(stream: int) -> bool: ...
def synchronize(device: int, stream: int) -> None: ...
def empty(shape: list[int] | tuple[int, ...], dtype: str, device: int = 0, stream: int = 1) -> Array: ...
def view(array: Any, stream: int = 1, dtype: str | None = None) -> Array: ...
def from_capsule(capsule: object) -> Array: ...

# `empty` makes the arrays of a call that are not given: (shape, dtype name) -> array.
def forward(
    cell: str,
    x: Any,
    params: tuple[Any, ...],
    state: tuple[Any, ...] | None = None,
    *,
    indices: Any = None,
    lengths: Any = None,
    resets: Any = None,
    reset_state: tuple[Any, ...] | None = None,
    reverse: bool = False,
    save: bool = False,
    recompute: bool = False,
    float32_mode: str = "ieee",
    kernel: str | None = None,
    empty: Callable[[tuple[int, ...], str], Any],
    stream: int = 1,
    out: Any = None,
    state_out: tuple[Any, ...] | None = None,
) -> tuple[Any, tuple[Any, ...], LayerTape | None]: ...
def backward(
    tape: LayerTape,
    dy: Any = None,
    dstate: tuple[Any, ...] | None = None,
    *,
    dparams: tuple[Any, ...] | None = None,
    need_dx: bool = True,
    dx: Any = None,
    accumulate_dx: bool = False,
    empty: Callable[[tuple[int, ...], str], Any],
    stream: int = 1,
) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]: ...
def round(weight: Any, rounded: Any, stream: int = 1) -> None: ...
def dropout(x: Any, y: Any, p: float, seed: int, offset: int, stream: int = 1) -> None: ...
def layer_norm_forward(
    x: Any, weight: Any, bias: Any, eps: float, y: Any, mean: Any, rstd: Any, stream: int = 1
) -> None: ...
def layer_norm_backward(
    x: Any, weight: Any, dy: Any, mean: Any, rstd: Any, dx: Any, dweight: Any, dbias: Any, stream: int = 1
) -> None: ...
def cross_entropy(
    logits: Any,
    targets: Any,
    weight: Any,
    unit: float,
    weight_sum: float,
    ignore_index: int,
    label_smoothing: float,
    losses: Any,
    dlogits: Any,
    stream: int = 1,
) -> None: ...
def sgd_step(
    param: Any,
    grad: Any,
    momentum_buf: Any,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
    stream: int = 1,
) -> None: ...
def adam_step(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    overflowed: Any,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
    stream: int = 1,
) -> None: ...
def refuse_gradient(wide: bool, largest: float) -> None: ...
