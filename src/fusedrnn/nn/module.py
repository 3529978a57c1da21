"""Module: the base of all layers and of the models made of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, assign
from fusedrnn.backend import CPU
from fusedrnn.checks import check_flag, check_mapping, kind_error, resolve_dtype
from fusedrnn.cuda.libraries import is_device_array
from fusedrnn.devices import find_backend
from fusedrnn.init import Noise
from fusedrnn.listing import Listed
from fusedrnn.nn.arguments import Arguments, ConstructorSignature, check_keywords
from fusedrnn.nn.buffers import ParameterDict, moved
from fusedrnn.nn.loading import LoadResult, encoded, read_state, saved_cells
from fusedrnn.nn.store import Store
from fusedrnn.symbolic import DefinedCell

ModuleT = TypeVar("ModuleT", bound="Module")


class Module(Listed, Store["Module"]):
    """Base of all layers, and of models that are made of them.

    Every module keeps one protocol, so that one can be made of others:

        y, tape = m.forward(x)                       # keeps what backward needs
        dx = m.backward(tape, dy, need_dx=True)      # adds to m.grads; dx is None without need_dx
        y = m(x)                                     # forward without a tape

    and where `m.has_state`, a state goes beside:

        y, state, tape = m.forward(x, state)
        dx, dstate = m.backward(tape, dy, dstate)
        y, state = m(x, state)

    A tape belongs to the module that made it, keeps the parameters of that time, and may be used again. A
    model defines `forward` and `backward` by those of its parts; its tape is theirs, say in a tuple, and a
    call is `forward` without it. An embedding has no gradient of its indices: its dx is None.

    Assigning a module to an attribute makes it a child. Several go into a `ModuleList` or `ModuleDict`: plain
    lists and dictionaries with modules in them are refused. `parameter` and `buffer` add arrays of a module's
    own. A subclass calls `super().__init__()` first. A module reached by two names has one set of parameters,
    listed under the first name. `copy.deepcopy` and pickling rebuild the views.

    Threads may share a module for calls, `forward` and `backward`: gradients of all of them add up, in the
    order in which the threads come. They may not while it is changed: loaded, stepped by an optimiser, moved,
    built, or its gradients cleared or clipped.

    Ctrl-C in the backward of several recurrent layers or directions adds all of their gradients or none; in
    that of a single one, where it takes longer than a moment, it may leave a part of them added.

    Attributes:
        training: switches dropout, and nothing else; see `train` and `eval`.
        has_state: whether `forward` and `backward` have a state beside.
    """

    has_state: ClassVar[bool] = False
    training: bool
    _noise: Noise | None
    # The cell that a recurrent network's state_dict has, if it has one.
    _saved_cell: DefinedCell | None = None
    _made_with: Arguments
    __signature__: ClassVar[Any] = ConstructorSignature()
    # Whether there are no kernels of it for a GPU.
    _host_only: ClassVar[bool] = False
    # Whether each step of y is made of that step of x alone.
    _stepwise: ClassVar[bool] = False
    # {name: module whose parameter of this name serves for one of its own}
    _tied: Mapping[str, Module] = MappingProxyType({})

    def __new__(cls: type[ModuleT], *arguments: Any, **options: Any) -> ModuleT:
        """Keep the arguments, from which `fusedrnn.load` makes such a module again."""
        if options:
            check_keywords(cls, options)
        self = super().__new__(cls)
        self.__dict__["_made_with"] = Arguments(arguments, options)
        return self

    def __init__(self) -> None:
        self.__dict__.update(training=True, _children={}, _noise=None, _saved={}, _frozen=False)
        self._declare({}, None)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Return what `forward` does, but for the tape."""
        results = self.forward(*arguments, **options)
        return results[0] if len(results) == 2 else results[:-1]

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Return y and the tape, or y, the state and the tape.

        Raises:
            TypeError: this kind of module has none.
        """
        raise TypeError(f"{type(self).__name__}: expected a class that defines forward, got one without")

    def backward(self, *arguments: Any, **options: Any) -> Any:
        """Add to the gradients; return dx, or dx and dstate.

        Raises:
            TypeError: this kind of module has none.
        """
        raise TypeError(f"{type(self).__name__}: expected a class that defines backward, got one without")

    def output_steps(self, lengths: Any, mask: Any) -> tuple[Any, Any]:
        """Return the lengths and the mask of y for those of x, each or None, as the module behind takes them.

        They are the same unless a class says otherwise: one that leaves no time in y returns (None, None).
        """
        return lengths, mask

    def _step_in(self, stream: Any, name: str) -> Any:
        """Return what a `ModuleStream` calls with each step, or None where no step stands alone.

        Args:
            stream: the `ModuleStream`.
            name: of this member of it.
        """
        if hasattr(self, "stream"):
            return stream.streamed(name, self)
        return self if self._stepwise else None

    def to(self: ModuleT, device: str) -> ModuleT:
        """Move the parameters and gradients of the whole tree; return self.

        On a GPU they are CuPy arrays, and calls take arrays of PyTorch, CuPy and JAX on that GPU and return
        the same library's; a tape refers to the parameters, too: leave them until backward is done. Views of
        the parameters go stale. Make optimisers after the move.

        Args:
            device: "cpu", "cuda" (the first GPU) or "cuda:N".

        Raises:
            TypeError: device is not a string.
            ValueError: another string, or a GPU that is not there.
            RuntimeError: CUDA or CuPy is not there; the message says which. Or a module in the tree runs on
                the CPU alone.
        """
        backend = find_backend(device)
        self._check_found()
        members = list(self.named_modules())
        for name, module in members:
            if backend is not CPU and module._host_only:
                where = f"{name}: " if name else ""
                raise RuntimeError(f"{where}expected no {type(module).__name__} on {device}: it runs on cpu")
        if any(module._backend is not backend for _, module in members):
            self._move(members, backend)
        return self

    def astype(self: ModuleT, dtype: npt.DTypeLike) -> ModuleT:
        """Convert the parameters, gradients and buffers of floats of the whole tree; return self.

        Views of the parameters go stale, and tapes with them. Make optimisers after it.

        Args:
            dtype: "float32" or "float64".

        Raises:
            TypeError: another dtype.
        """
        found = resolve_dtype(dtype)
        members = list(self.named_modules())
        self._check_found()
        # None apart: NumPy takes it for float64 in comparisons.
        given = [module._dtype for _, module in members if module._dtype is not None]
        given += [array.dtype for _, array in self.named_buffers() if array.dtype.kind == "f"]
        if any(dtype != found for dtype in given):
            self._move(members, self._backend, found)
        return self

    def requires_grad_(self: ModuleT, requires_grad: bool = True) -> ModuleT:
        """Set whether optimisers change the parameters of the whole tree; return self.

        Those that are frozen (False) are left as they are by `step`, weight decay included. `backward` does
        not compute their gradients, which stay, and do not count in `clip_grad_norm`. Names, state_dict and
        num_parameters stay.

        Raises:
            TypeError: not a bool.
        """
        frozen = not check_flag("requires_grad", requires_grad)
        for module in self.modules():
            module.__dict__["_frozen"] = frozen
        return self

    @property
    def requires_grad(self) -> bool:
        """Whether optimisers change any parameter of the tree."""
        return any(module._size and not module._frozen for module in self.modules())

    def _arguments(self) -> Arguments:
        """Return what a constructor makes such a module of."""
        return self._made_with

    def _still(self) -> dict[str, Array]:
        """Return masks of values of its own parameters that stay as they are: they get no gradient."""
        return {}

    def _check_values(self, values: Mapping[str, Array]) -> None:
        """Refuse values for its own parameters, of the right shapes, that it cannot have."""

    def _sums(self) -> Mapping[str, Array]:
        """Return the gradients of its own parameters that backward adds to: none while it is frozen."""
        return {} if self._frozen else self._own_grads

    def _require_cpu(self, what: str) -> None:
        """Refuse what only the CPU has."""
        if self._backend is not CPU:
            raise RuntimeError(f"{what}: expected a {type(self).__name__} on cpu, got one on {self.device}")

    def _kind_error(self, name: str, value: Any) -> Exception:
        """Say that an argument is not an array, or one that is elsewhere than the parameters."""
        if self._backend is CPU and is_device_array(value):
            return RuntimeError(
                f"{name}: expected a numpy.ndarray as the parameters, which are on cpu, got a "
                f"{type(value).__name__} on a GPU; see to()"
            )
        kind = f"{self._backend.array.__module__}.{self._backend.array.__name__}"
        return kind_error(name, value, f"a {kind} of {self.dtype}")

    def zero_grad(self) -> None:
        """Set every gradient to zero."""
        # As bytes: what array libraries fill fastest.
        self.flat_grads.view(np.uint8).fill(0)

    def state_dict(self) -> dict[str, Array]:
        """Return {dotted name: copy of the parameter, or of the buffer}, as NumPy arrays on every device.

        A `Recurrent` over a cell of `define_cell` adds "cell", the bytes of its JSON, which `cell_from_json`
        reads.

        Raises:
            TypeError: a module stands in a list, tuple, set or dict, where it is not found.
        """
        self._check_found()
        self._gather()
        arrays = {**self._tree, **dict(self.named_buffers())}
        state = {name: np.array(self._backend.to_numpy(array)) for name, array in arrays.items()}
        return {**state, **{name: encoded(cell) for name, cell in saved_cells(self).items()}}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy parameters in, for instance from the state_dict of the same module in PyTorch.

        Everything is checked and converted before anything is written. Other float dtypes are converted.

        Args:
            state_dict: {name: array, or tensor that np.asarray understands}. A "cell" may be left out; one
                that is there has to be this network's.
            strict: raise if names are missing or unexpected.

        Returns:
            The missing and the unexpected names, both empty if `strict`.

        Raises:
            TypeError: a value is not of a float dtype.
            ValueError: a shape or a cell differs, or `strict` and the names differ, or two values for a tied
                weight.
        """
        self._check_found()
        self._gather()
        flat = self._flats()[0]
        # Converted beside the parameters and copied in one piece: what fails has written nothing.
        values, saved, result = read_state(self, flat, state_dict, strict)
        with self._buffers:
            assign(flat, values)
        for name, array in self.named_buffers():
            assign(array, saved[name])
        return result

    # Modes and randomness

    def train(self: ModuleT, mode: bool = True) -> ModuleT:
        """Switch dropout on (or off) in the whole tree; return self."""
        check_flag("mode", mode)
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self: ModuleT) -> ModuleT:
        """Switch dropout off in the whole tree; return self. `backward` works in either mode."""
        return self.train(False)

    def random_state(self) -> dict[str, tuple[int, int]]:
        """Return {dotted module name: (seed, offset)} of the dropout noise, to resume a run exactly."""
        return {
            name: (module._noise.seed, module._noise.offset)
            for name, module in self.named_modules()
            if module._noise is not None
        }

    def load_random_state(self, state: Mapping[str, tuple[int, int]]) -> None:
        """Restore what `random_state` returned.

        Raises:
            TypeError: not a mapping of pairs of integers.
            ValueError: the names differ from this module's.
        """
        check_mapping("state", state)
        sources = {name: module._noise for name, module in self.named_modules() if module._noise is not None}
        if set(sources) != set(state):
            raise ValueError(f"state: expected the names {sorted(sources)}, got {sorted(state)}")
        pairs = {}
        for name, pair in state.items():
            if len(pair) != 2:
                raise ValueError(f"state[{name!r}]: expected a pair (seed, offset), got {len(pair)} values")
            pairs[name] = operator.index(pair[0]), operator.index(pair[1])
        for name, noise in sources.items():
            noise.seed, noise.offset = pairs[name]

    # Copies and text

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in self._derived}
        own = slice(self._start, self._start + self._size)
        state["_children"] = dict(self._children)
        state["_saved"] = {name: np.array(self._backend.to_numpy(a)) for name, a in self._saved.items()}
        state["_values"] = np.array(self._backend.to_numpy(self._buffers.parameters[own]))
        state["_grad_values"] = np.array(self._backend.to_numpy(self._buffers.grads[own]))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        values, grads = state.pop("_values"), state.pop("_grad_values")
        self.__dict__.update(state)
        self.__dict__["_saved"] = {n: moved(array, CPU, self._backend) for n, array in self._saved.items()}
        if "_shown" in state:
            self._show()
        self._declare(self._shapes, self._dtype)
        with self._buffers:
            assign(self._buffers.parameters, values)
        assign(self._buffers.grads, grads)

    def _extra_repr(self) -> str:
        """Return what stands between the parentheses of the repr of a leaf."""
        return ""

    def __repr__(self) -> str:
        extra = self._extra_repr()
        if not self._children:
            return f"{type(self).__name__}({extra})"
        lines = [extra] * bool(extra)
        lines += [f"({name}): {child!r}" for name, child in self._children.items()]
        body = "\n".join(lines).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"


def changed_options(**given: tuple[Any, Any]) -> str:
    """Return ", name=value" for each (value, default) that differ, for a repr."""
    return "".join([f", {name}={value!r}" for name, (value, default) in given.items() if value != default])


def gather_modules(modules: object) -> list[Module]:
    """Return one module, or an iterable of modules whose trees do not overlap, as a list.

    Raises:
        TypeError: something else than a module.
        ValueError: the same parameters are reached twice.
    """
    found: list[Module] = []
    seen: set[int] = set()
    if isinstance(modules, (Module, ParameterDict)) or not isinstance(modules, Iterable):
        modules = [modules]
    for item in modules:
        if not isinstance(item, Module):
            arrays = isinstance(item, (Mapping, np.ndarray)) or is_device_array(item)
            way = "; give the module itself, as in Adam(lstm), not its parameters" if arrays else ""
            raise TypeError(f"modules: expected a Module or a list of them, got {type(item).__name__}{way}")
        members = {id(member) for member in item.modules()}
        if members & seen:
            raise ValueError(f"modules: expected modules that share nothing, got {type(item).__name__} twice")
        seen |= members
        found.append(item)
    return found
