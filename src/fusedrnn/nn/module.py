"""Module: parameters and gradients as named views into two flat arrays, and a tree of child modules.

A leaf starts with a buffer pair of its own. The first time a parent is asked for its parameters, the whole
tree below it moves into one buffer pair, in depth-first order, and every view in it is renewed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from fusedrnn.arrays import Array, assign
from fusedrnn.backend import CPU, Backend
from fusedrnn.checks import check_flag, check_mapping, check_shapes, kind_error
from fusedrnn.cuda.libraries import is_device_array
from fusedrnn.devices import find_backend
from fusedrnn.init import Noise
from fusedrnn.listing import Listed
from fusedrnn.nn.buffers import Buffers, ParameterDict, Snapshot, named_views
from fusedrnn.nn.loading import LoadResult, read_state
from fusedrnn.nn.tree import Tree
from fusedrnn.nn.turns import Turn

ModuleT = TypeVar("ModuleT", bound="Module")


class Module(Listed, Tree["Module"]):
    """Base of all layers. Assigning a module to an attribute makes it a child; lists of modules are refused.

    A subclass calls `super().__init__()` before it assigns children. A module reached by two names has one
    set of parameters, listed under the first name. `copy.deepcopy` and pickling rebuild the views.

    Threads may share a module for calls, `forward` and `backward`: gradients of all of them add up, in the
    order in which the threads come. They may not while it is changed: loaded, stepped by an optimiser, moved,
    built, or its gradients cleared or clipped.

    Ctrl-C in the backward of several recurrent layers or directions leaves their gradients as they were.

    Attributes:
        training: switches dropout, and nothing else; see `train` and `eval`.
    """

    training: bool
    _noise: Noise | None
    _backend: Backend = CPU
    _dtype: np.dtype[Any] | None
    _shapes: dict[str, tuple[int, ...]]
    _size: int
    _buffers: Buffers
    _start: int
    _own: ParameterDict
    _own_grads: ParameterDict
    _tree: ParameterDict
    _tree_grads: ParameterDict
    _layout: object
    _snapshot: Snapshot | None
    _turn: Turn
    # {name: module whose parameter of this name serves for one of its own}
    _tied: Mapping[str, Module] = MappingProxyType({})
    # Rebuilt rather than copied: everything that points into the buffers.
    _derived = frozenset(
        {"_buffers", "_start", "_own", "_own_grads", "_tree", "_tree_grads", "_layout", "_snapshot", "_turn"}
    )

    def __init__(self) -> None:
        self.__dict__.update(training=True, _children={}, _noise=None)
        self._declare({}, None)

    def _declare(self, shapes: dict[str, tuple[int, ...]], dtype: np.dtype[Any] | None) -> None:
        """Create this module's own parameters, zero until they are initialised."""
        sizes = check_shapes(shapes, np.dtype(np.float32) if dtype is None else dtype)
        self.__dict__.update(_shapes=shapes, _dtype=dtype, _size=sum(sizes), _layout=None, _snapshot=None)
        self.__dict__["_turn"] = Turn()
        self.__dict__.update(
            {name: ParameterDict() for name in ("_own", "_own_grads", "_tree", "_tree_grads")}
        )
        self._bind(Buffers(self._size, np.float32 if dtype is None else dtype, self._backend), 0)

    def _bind(self, buffers: Buffers, start: int) -> None:
        """Point this module's own views at `buffers`, from `start` on."""
        self.__dict__.update(_buffers=buffers, _start=start)
        for views, flat in ((self._own, buffers.parameters), (self._own_grads, buffers.grads)):
            views._replace(named_views(flat[start:], self._shapes))
        if self._shapes:
            self._rebind()

    def _rebind(self) -> None:
        """Hook for subclasses that keep views of their parameters; called whenever the views change."""

    # Parameters

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters; float32 for a tree that has none."""
        found = next((module._dtype for module in self.modules() if module._dtype is not None), None)
        return np.dtype(np.float32) if found is None else found

    @property
    def parameters(self) -> ParameterDict:
        """{dotted name: writable view into `flat_parameters`}.

        When the tree moves into another buffer (it is extended, or goes to another device), the dictionary
        follows; arrays taken out of it before go stale.
        """
        self._gather()
        self._buffers.hand_out()
        return self._tree

    @property
    def grads(self) -> ParameterDict:
        """{dotted name: view into `flat_grads`}, which `backward` adds to."""
        self._gather()
        return self._tree_grads

    @property
    def flat_parameters(self) -> Array:
        """All parameters of the tree as one 1-D array of `dtype`."""
        array = self._flat_parameters()
        self._buffers.hand_out()
        return array

    @property
    def flat_grads(self) -> Array:
        """All gradients of the tree as one 1-D array of `dtype`, in the order of `flat_parameters`."""
        stop = self._gather()
        return self._buffers.grads[self._start : stop]

    @property
    def num_parameters(self) -> int:
        """Number of trainable values in the tree."""
        return sum(module._size for module in self.modules())

    def _flat_parameters(self) -> Array:
        """Return `flat_parameters` to a caller that writes to them within `with self._buffers`."""
        stop = self._gather()
        return self._buffers.parameters[self._start : stop]

    def _kept_parameters(self) -> Mapping[str, Array]:
        """Return this module's own parameters as they are now, for a tape: later changes do not reach them.

        The same copy serves until they change. On a GPU these are the parameters themselves, which have to
        stay until backward.
        """
        if self._backend is not CPU:
            return self._own
        snapshot = self._snapshot
        # Drawn before the parameters are read: if they change meanwhile, the number is never seen again.
        version = self._buffers.version
        if snapshot is None or version is None or snapshot.version != version:
            flat = self._buffers.parameters[self._start : self._start + self._size]
            snapshot = Snapshot.of(flat, self._shapes, version, snapshot)
            self.__dict__["_snapshot"] = snapshot
        return snapshot.parameters

    def _gather(self) -> int:
        """Make sure that the tree lies in one buffer pair and is listed; return where it ends."""
        members = list(self.named_modules())
        offset = self._start
        together = True
        for _, module in members:
            together = together and module._buffers is self._buffers and module._start == offset
            offset += module._size
        if not together:
            for name, module in members:
                if module._backend is not self._backend:
                    raise RuntimeError(
                        f"{name}: expected a module on {self.device} as the others, "
                        f"got one on {module.device}; move them together with to()"
                    )
            self._move(members, self._backend)
            offset = self._buffers.parameters.size
        # Listing again without need would upset a loop over the dictionary.
        if self._layout != (self._buffers, self._start, members[1:]):
            self._list()
        return offset

    def _move(self, members: list[tuple[str, Module]], backend: Backend) -> None:
        """Copy the tree's parameters and gradients into a new buffer pair, there."""
        dtype = self.dtype
        for name, module in members:
            # None apart: NumPy takes it for float64 in comparisons.
            if module._dtype is not None and module._dtype != dtype:
                raise TypeError(f"{name}: expected {dtype} as the other parameters, got {module._dtype}")
        # A dictionary that was handed out follows to the new buffers.
        handed_out = any(module._buffers.handed_out for _, module in members)
        buffers = Buffers(sum(module._size for _, module in members), dtype, backend, handed_out)
        offset = 0
        for _, module in members:
            old = slice(module._start, module._start + module._size)
            new = slice(offset, offset + module._size)
            for target, source in (
                (buffers.parameters, module._buffers.parameters),
                (buffers.grads, module._buffers.grads),
            ):
                if module._backend is backend:
                    target[new] = source[old]
                else:
                    assign(target[new], module._backend.to_numpy(source[old]))
            if module._backend is not backend:
                module.__dict__["_backend"] = backend
            module._bind(buffers, offset)
            offset = new.stop
        for _, module in members:
            module._list()

    def _list(self) -> None:
        """Renew the dictionaries of the whole tree."""
        members = list(self.named_modules())
        self.__dict__["_layout"] = (self._buffers, self._start, members[1:])
        for tree, own in ((self._tree, "_own"), (self._tree_grads, "_own_grads")):
            tree._replace(
                {
                    f"{prefix}.{name}" if prefix else name: view
                    for prefix, module in members
                    for name, view in getattr(module, own).items()
                }
            )

    @property
    def device(self) -> str:
        """Where the parameters are: "cpu", or "cuda:0" and so on."""
        return self._backend.name

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
            RuntimeError: CUDA or CuPy is not there; the message says which.
        """
        backend = find_backend(device)
        members = list(self.named_modules())
        if any(module._backend is not backend for _, module in members):
            self._move(members, backend)
        return self

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
        """Return {dotted name: copy of the parameter}, as NumPy arrays on every device."""
        self._gather()
        return {name: np.array(self._backend.to_numpy(view)) for name, view in self._tree.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Copy parameters in, for instance from the state_dict of the same module in PyTorch.

        Everything is checked and converted before anything is written. Other float dtypes are converted.

        Args:
            state_dict: {name: array, or tensor that np.asarray understands}.
            strict: raise if names are missing or unexpected.

        Returns:
            The missing and the unexpected names, both empty if `strict`.

        Raises:
            TypeError: a value is not of a float dtype.
            ValueError: a shape differs, or `strict` and the names differ, or two values for a tied weight.
        """
        flat = self._flat_parameters()
        # Converted beside the parameters and copied in one piece: what fails has written nothing.
        values, result = read_state(self, flat, state_dict, strict)
        with self._buffers:
            assign(flat, values)
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
        state["_values"] = np.array(self._backend.to_numpy(self._buffers.parameters[own]))
        state["_grad_values"] = np.array(self._backend.to_numpy(self._buffers.grads[own]))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        values, grads = state.pop("_values"), state.pop("_grad_values")
        self.__dict__.update(state)
        self._declare(self._shapes, self._dtype)
        with self._buffers:
            assign(self._buffers.parameters, values)
        assign(self._buffers.grads, grads)

    def _extra_repr(self) -> str:
        """Return what stands between the parentheses of the repr of a leaf."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {child!r}" for name, child in self._children.items()]
        if not lines:
            return f"{type(self).__name__}({self._extra_repr()})"
        body = "\n".join(lines).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"


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
