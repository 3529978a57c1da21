"""Store: parameters and gradients as named views into two flat arrays.

A leaf starts with a buffer pair of its own. The first time a parent is asked for its parameters, the whole
tree below it moves into one buffer pair, in depth-first order, and every view in it is renewed.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array, as_array, assign
from fusedrnn.backend import CPU, Backend
from fusedrnn.checks import check_shapes, check_size, resolve_dtype
from fusedrnn.nn.buffers import Buffers, ParameterDict, Snapshot, moved, named_views, nobody, take_room
from fusedrnn.nn.tree import Tree
from fusedrnn.nn.turns import Turn

StoreT = TypeVar("StoreT", bound="Store[Any]")
Initial: TypeAlias = "float | npt.ArrayLike | Callable[[Array], object]"


class Store(Tree[StoreT]):
    """The parameters of a tree of modules, and what is saved with them; the base of `Module`."""

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
    # The dictionary that `parameters` gave out, while anyone has it.
    _given: Callable[[], ParameterDict | None]
    # None, or what was listed last: buffers, where they start, and the members below.
    _layout: Any
    _snapshot: Snapshot | None
    _turn: Turn
    # {name: array} that is saved and not trained.
    _saved: dict[str, Array]
    _frozen: bool
    # Attributes by which the parameters are made: set later, they would do nothing.
    _fixed: frozenset[str] = frozenset()
    # Rebuilt rather than copied: everything that points into the buffers.
    _derived = frozenset(
        {"_buffers", "_start", "_own", "_own_grads", "_tree", "_tree_grads", "_given", "_layout"}
        | {"_snapshot", "_turn"}
    )
    _not_searched = Tree._not_searched | _derived

    def _declare(self, shapes: dict[str, tuple[int, ...]], dtype: np.dtype[Any] | None) -> None:
        """Create this module's own parameters, zero until they are initialised."""
        sizes = check_shapes(shapes, np.dtype(np.float32) if dtype is None else dtype)
        take_room(sum(sizes) - self.__dict__.get("_size", 0))
        self.__dict__.update(_shapes=shapes, _dtype=dtype, _size=sum(sizes), _layout=None, _snapshot=None)
        self.__dict__.setdefault("_given", nobody)
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
        """Hook for subclasses that keep views of their parameters; called whenever these change."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters; float32 for a tree that has none."""
        found = next((module._dtype for module in self.modules() if module._dtype is not None), None)
        return np.dtype(np.float32) if found is None else found

    @property
    def device(self) -> str:
        """Where the parameters are: "cpu", or "cuda:0" and so on."""
        return self._backend.name

    @property
    def parameters(self) -> ParameterDict:
        """{dotted name: writable view into `flat_parameters`}.

        When the tree moves into another buffer (it is extended, or goes to another device), the dictionary
        follows; arrays taken out of it before go stale. While anyone has it or a view of one of its arrays,
        every call looks whether the weights have changed; afterwards calls need not, but on a GPU.

        Raises:
            TypeError: a module stands in a list, tuple, set or dict, where it is not found.
        """
        self._check_found()
        self._gather()
        with Buffers.turn:
            given = self._given()
            if given is None:
                given = ParameterDict()
                self._fill(given, list(self.named_modules()))
                self.__dict__["_given"] = weakref.ref(given)
            return given

    @property
    def grads(self) -> ParameterDict:
        """{dotted name: view into `flat_grads`}, which `backward` adds to."""
        self._gather()
        return self._tree_grads

    @property
    def flat_parameters(self) -> Array:
        """All parameters of the tree as one 1-D array of `dtype`; views of it as those of `parameters`."""
        self._check_found()
        stop = self._gather()
        return self._buffers.lend()[self._start : stop]

    @property
    def flat_grads(self) -> Array:
        """All gradients of the tree as one 1-D array of `dtype`, in the order of `flat_parameters`."""
        stop = self._gather()
        return self._buffers.grads[self._start : stop]

    @property
    def num_parameters(self) -> int:
        """Number of trainable values in the tree, frozen ones too."""
        self._check_found()
        return sum(module._size for module in self.modules())

    def parameter(
        self,
        name: str,
        shape: int | tuple[int, ...],
        init: Initial = 0,
        *,
        dtype: npt.DTypeLike | None = None,
    ) -> None:
        """Add a parameter of this module's own: trained, saved and moved as those of layers.

        `self.name` reads it, as a forward does (in a class without `__getattr__`); a backward adds to
        `self.grads[name]`. To write to it, `self.parameters[name][...] = values`.

        Args:
            name: a free attribute name without a dot.
            shape: its sizes.
            init: a number or an array to start from, or a function that fills an array, as those of
                `fusedrnn.init` do.
            dtype: "float32" or "float64"; None for that of the tree.

        Raises:
            TypeError: an argument of the wrong kind, or another dtype than this module's other parameters.
            ValueError: the name is taken, or a size or shape is wrong.
        """
        sizes = self._check_new(name, shape)
        found = self.dtype if dtype is None else resolve_dtype(dtype)
        if self._dtype is not None and found != self._dtype:
            raise TypeError(f"dtype: expected {self._dtype} as this module's other parameters, got {found}")
        values = initial(name, sizes, found, init)
        own = slice(self._start, self._start + self._size)
        to_numpy, flats = self._backend.to_numpy, self._buffers
        joined = np.concatenate([to_numpy(flats.parameters[own]), values.reshape(-1)])
        grads = to_numpy(flats.grads[own])
        self._declare({**self._shapes, name: sizes}, found)
        # It comes after all others.
        assign(self._buffers.parameters, joined)
        assign(self._buffers.grads[: grads.size], grads)

    def buffer(
        self,
        name: str,
        shape: int | tuple[int, ...],
        init: Initial = 0,
        *,
        dtype: npt.DTypeLike | None = None,
    ) -> None:
        """Add an array that is saved, loaded and moved with the parameters, and not trained.

        `self.name` is the array; assigning to it copies the values in.

        Args:
            name: a free attribute name without a dot.
            shape: its sizes.
            init: as of `parameter`.
            dtype: of floats, integers or bools, None for that of the parameters; floats follow `astype`.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: the name is taken, or a size or shape is wrong.
        """
        sizes = self._check_new(name, shape)
        found = self.dtype if dtype is None else np.dtype(dtype)
        if found.kind not in "fiub":
            raise TypeError(f"dtype: expected one of floats, integers or bools, got {found}")
        take_room(math.prod(sizes))
        values = initial(name, sizes, found, init)
        self._saved[name] = moved(values, CPU, self._backend)

    def _check_new(self, name: str, shape: int | tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes of a parameter or buffer that is to have a name, or refuse them."""
        if not isinstance(name, str):
            raise TypeError(f"name: expected a string, got {type(name).__name__}")
        if not name or "." in name or hasattr(self, name) or name in self._shapes:
            raise ValueError(f"name: expected a free attribute name without a dot, got {name!r}")
        sizes = shape if isinstance(shape, (tuple, list)) else (shape,)
        self._show()
        return tuple([check_size("shape", size, 0) for size in sizes])

    def _show(self) -> None:
        """Let this class, if it does not find its own way, have these attributes: it slows all others."""
        self.__dict__["_shown"] = True
        if not hasattr(type(self), "__getattr__"):
            setattr(type(self), "__getattr__", Store._attribute)  # noqa: B010

    def _attribute(self, name: str) -> Any:
        # Called for what is no attribute: parameters, to be read, and buffers.
        if name in (saved := self.__dict__.get("_saved", {})):
            return saved[name]
        if name in self.__dict__.get("_own", {}) and not name.startswith("_"):
            view = self._own[name][...]
            if isinstance(view, np.ndarray):
                view.flags.writeable = False
            return view
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__:
            if (array := self.__dict__.get("_saved", {}).get(name)) is not None:
                values = self._backend.to_numpy(array).copy()
                np.copyto(values, as_array(value, name), casting="same_kind")
                assign(array, values)
                return
            if name in self.__dict__.get("_own", {}):
                raise TypeError(f"{name}: a parameter; write to it with parameters[{name!r}][...] = values")
        elif name in self._fixed:
            raise AttributeError(
                f"{name}: expected as an argument, {type(self).__name__}(..., {name}={value!r:.40}), since "
                "weights are there for what it was; got an assignment"
            )
        super().__setattr__(name, value)

    def named_buffers(self) -> Iterator[tuple[str, Array]]:
        """Iterate over (dotted name, array) of what is saved with the parameters and not trained."""
        for prefix, module in self.named_modules():
            for name, array in module._saved.items():
                yield f"{prefix}.{name}" if prefix else name, array

    def _flats(self) -> tuple[Array, Array]:
        """Return the flat parameters, to be written to `with self._buffers`, and gradients, once gathered."""
        below = sum([module._size for _, module in self._layout[2]])
        own = slice(self._start, self._start + self._size + below)
        return self._buffers.parameters[own], self._buffers.grads[own]

    def _trained(self) -> list[slice]:
        """Return where in the flat arrays those parameters lie that are not frozen; of a gathered tree."""
        members = [self, *[module for _, module in self._layout[2]]]
        if not any(module._frozen for module in members):
            return [slice(None)]
        pieces: list[slice] = []
        stop = 0
        for module in members:
            start, stop = stop, stop + module._size
            if module._frozen or start == stop:
                continue
            if pieces and pieces[-1].stop == start:
                start = pieces.pop().start
            pieces.append(slice(start, stop))
        return pieces

    def _kept_parameters(self) -> Mapping[str, Array]:
        """Return this module's own parameters as they are now, for a tape: later changes do not reach them.

        The same copy serves until they change. On a GPU these are the parameters themselves, which have to
        stay until backward.
        """
        if self._backend is not CPU:
            return self._own
        snapshot = self._snapshot
        # Drawn before the parameters are read: if they change meanwhile, the number is never seen again.
        version = self._buffers.values.version
        if snapshot is None or version is None or snapshot.version != version:
            flat = self._buffers.parameters[self._start : self._start + self._size]
            snapshot = Snapshot.of(flat, self._shapes, version, snapshot)
            self.__dict__["_snapshot"] = snapshot
        return snapshot.parameters

    def _gather(self) -> int:
        """Make sure that the tree lies in one buffer pair and is listed; return where it ends."""
        if not self._children and self._layout == (self._buffers, self._start, []):
            return self._start + self._size
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
        if self._layout != (self._buffers, self._start, members[1:]):
            self._list()
        return offset

    def _move(
        self, members: list[tuple[str, StoreT]], backend: Backend, dtype: np.dtype[Any] | None = None
    ) -> None:
        """Copy the tree's parameters and gradients into a new buffer pair, there, and of a dtype if given."""
        kept = self.dtype
        for name, module in members:
            # None apart: NumPy takes it for float64 in comparisons.
            if dtype is None and module._dtype is not None and module._dtype != kept:
                raise TypeError(
                    f"{name}: expected {kept} as the other parameters, got {module._dtype}; see astype()"
                )
        buffers = Buffers(sum(module._size for _, module in members), dtype or kept, backend)
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
            for name, array in module._saved.items():
                module._saved[name] = moved(array, module._backend, backend, dtype)
            if module._backend is not backend:
                module.__dict__["_backend"] = backend
            if dtype is not None and module._dtype is not None:
                module.__dict__.update(_dtype=dtype, _snapshot=None)
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
        given = self._given()
        if given is not None:
            self._fill(given, members)

    def _fill(self, given: ParameterDict, members: list[tuple[str, StoreT]]) -> None:
        """Let a dictionary that others have hold the parameters of the tree, lent to them."""
        given._replace(
            {
                f"{prefix}.{name}" if prefix else name: view
                for prefix, module in members
                if module._shapes
                for name, view in named_views(module._buffers.lend()[module._start :], module._shapes).items()
            }
        )


def initial(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], init: Initial) -> Array:
    """Return the array that `Store.parameter` describes.

    Raises:
        TypeError: init is neither a number, an array nor a function.
        ValueError: an array of another shape.
    """
    array: Array = np.zeros(shape, dtype)
    if callable(init):
        init(array)
        return array
    given = as_array(init, name)
    if given.shape not in ((), shape):
        raise ValueError(f"{name}: expected shape {shape}, got {given.shape}")
    if not np.can_cast(given.dtype, dtype, "same_kind"):
        raise TypeError(f"{name}: expected values of {dtype}, got {given.dtype}")
    array[...] = given
    return array
