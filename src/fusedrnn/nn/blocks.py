"""Sequential, Residual and Concat: modules made of modules, with one forward and one backward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.checks import check_array, check_flag
from fusedrnn.nn.arguments import Arguments
from fusedrnn.nn.containers import ModuleList, block_of, check_module
from fusedrnn.nn.members import (
    BlockTape,
    backward_member,
    call_member,
    check_lengths,
    forward_member,
    looked_up,
)
from fusedrnn.nn.module import Module
from fusedrnn.nn.module_stream import ModuleStream
from fusedrnn.nn.tape import check_tape


class Sequential(ModuleList):
    """Modules one after the other: each takes the y of the one before.

    `lengths` and `mask` go to those members whose `forward` has an argument of the name, as the recurrent
    networks and `Pool`; behind a member that changes time they are what its `output_steps` says. Networks
    with a state start from zeros at each call, and their final state is left out. An `Embedding`, whose input
    has no gradient, can only be the first.

    Members are indexed and replaced by place or name, sliced, appended and iterated; a slice has the same
    members. The names in a state_dict are PyTorch's: "0.weight" and so on, or those given.

    Args:
        modules: in their order; or one dictionary of them by name.

    Raises:
        TypeError: one of them is not a Module, or a name not a string.
        ValueError: a name is empty or holds a dot.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        named: Any = modules
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            named = modules[0]
            for name, module in named.items():
                if not isinstance(name, str):
                    raise TypeError(f"name: expected a string, got {type(name).__name__}")
                if not name or "." in name:
                    raise ValueError(f"name: expected a name without a dot, got {name!r}")
                check_module(name, module)
            super().__init__()
            self._check_members(named)
            self.__dict__["_children"] = dict(named)
        elif len(modules) == 1 and isinstance(modules[0], (list, tuple)):
            raise TypeError(f"modules[0]: expected a Module, got {type(modules[0]).__name__}; use *modules")
        else:
            super().__init__(named)

    def _check_members(self, modules: Mapping[str, Module]) -> None:
        """Refuse modules that a subclass cannot have."""

    def _put(self, modules: list[Module]) -> None:
        """Number the modules, or keep the names that they were given."""
        old = list(self._children.items())
        super()._put(modules)
        if all(name == str(index) for index, (name, _) in enumerate(old)):
            return
        new: dict[str, Module] = {}
        for index, module in enumerate(modules):
            kept = old[index] if len(old) == len(modules) else None
            same = [name for name, other in old if other is module and name not in new]
            free = (str(number) for number in range(index, index + len(modules) + len(old) + 1))
            taken = {*new, *(name for name, _ in old)}
            new[kept[0] if kept else same[0] if same else next(n for n in free if n not in taken)] = module
        self.__dict__["_children"] = new

    @overload
    def __getitem__(self, index: int | str) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | str | slice) -> Any:
        if isinstance(index, str):
            return self._children[index]
        if isinstance(index, slice):
            found = list(self._children.items())[index]
            return Sequential(dict(found)) if self._is_named() else Sequential(*[m for _, m in found])
        return super().__getitem__(index)

    def __setitem__(self, index: int | str, module: Module) -> None:
        super().__setitem__(self._place(index) if isinstance(index, str) else index, module)

    def __delitem__(self, index: int | str | slice) -> None:
        super().__delitem__(self._place(index) if isinstance(index, str) else index)

    def _place(self, name: str) -> int:
        if name not in self._children:
            raise KeyError(name)
        return list(self._children).index(name)

    def _is_named(self) -> bool:
        return any(name != str(index) for index, name in enumerate(self._children))

    def __call__(
        self, x: Any, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> Any:
        """Return y for x, as the first module takes it, and keep no tape; arguments as `forward`."""
        modules = list(self)
        check_lengths(modules, x, lengths)
        for place, module in enumerate(modules):
            found = looked_up(modules, place, x)
            x = call_member(module, x, lengths, mask) if found is None else found
            if lengths is not None or mask is not None:
                lengths, mask = module.output_steps(lengths, mask)
        return x

    def stream(self, batch_size: int = 1, max_len: int = 1024) -> ModuleStream:
        """Return a `ModuleStream` that runs these modules one step at a time, without dropout.

        Each has to have a `stream`, as networks of one direction and causal attention, or to make each step
        of its y of that step alone.

        Args:
            batch_size: how many sequences go side by side.
            max_len: how many steps attention holds, that of the call among them.

        Raises:
            TypeError: an argument is not an int.
            ValueError: an argument is below 1, or a module cannot be streamed, whose name is said.
            RuntimeError: the modules are on a GPU.
        """
        self._require_cpu("stream")
        return ModuleStream(self, batch_size, max_len)

    def _step_in(self, stream: Any, name: str) -> Any:
        return stream.chained(f"{name}.", self.named_children())

    def output_steps(self, lengths: Any, mask: Any) -> tuple[Any, Any]:
        """Return the lengths and the mask behind the last module."""
        for module in self:
            lengths, mask = module.output_steps(lengths, mask)
        return lengths, mask

    def forward(
        self, x: Any, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> tuple[Any, BlockTape]:
        """Return y and the tape; raises what the modules do.

        Args:
            x: input of the first module.
            lengths: (B,) of an integer dtype, each in 0..T, or None.
            mask: bool, laid out as x: false for steps that are left out; or None.
        """
        tapes: list[Any] = []
        modules = list(self)
        check_lengths(modules, x, lengths)
        for place, module in enumerate(modules):
            found = looked_up(modules, place, x)
            x, tape = forward_member(module, x, lengths, mask) if found is None else (found, found)
            tapes.append(tape)
            if lengths is not None or mask is not None:
                lengths, mask = module.output_steps(lengths, mask)
        return x, BlockTape(self, tapes)

    def backward(self, tape: BlockTape, dy: Array, *, need_dx: bool = True) -> Any:
        """Add to the gradients of all modules; return dx, or None without need_dx or where there is none.

        Raises:
            TypeError: dy is not an array of the dtype of y.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        pairs, dx = check_tape(tape, self, BlockTape)._pairs(list(self)), dy
        check_flag("need_dx", need_dx)
        for index, (module, part) in reversed(list(enumerate(pairs))):
            dx = backward_member(module, part, dx, need_dx or index > 0)
        return dx if need_dx else None

    def _arguments(self) -> Arguments:
        return Arguments((dict(self._children),) if self._is_named() else tuple(self), {})

    def __repr__(self) -> str:
        if self._is_named():
            named = [f"{name!r}: {module!r}" for name, module in self._children.items()]
            return f"{type(self).__name__}({block_of('{', named, '}')})"
        return f"{type(self).__name__}{block_of('(', map(repr, self), ')')}"


class Residual(Module):
    """y = x + module(x), where module(x) has the shape of x.

    `lengths` and `mask` go to the module if its `forward` has an argument of the name; a state starts from
    zeros and is left out.

    Args:
        module: any module; `Sequential` makes one of several.

    Raises:
        TypeError: it is not a Module.

    Paper: He et al. 2016, Deep residual learning, arXiv:1512.03385.
    """

    def __init__(self, module: Module) -> None:
        super().__init__()
        check_module("module", module)
        self.module = module

    def _sum(self, x: Any, inner: Any) -> Any:
        dtype = getattr(x, "dtype", type(x).__name__)
        if np.shape(x) != inner.shape or dtype != inner.dtype:
            raise ValueError(
                f"module: expected one whose y is as x, {np.shape(x)} of {dtype}, "
                f"got {inner.shape} of {inner.dtype}"
            )
        return x + inner

    def __call__(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> Array:
        """Return y in the shape of x, and keep no tape; arguments as `forward`."""
        check_lengths([self.module], x, lengths)
        y: Array = self._sum(x, call_member(self.module, x, lengths, mask))
        return y

    def _step_in(self, stream: Any, name: str) -> Any:
        step = stream.member(f"{name}.module", self.module)
        return lambda x: self._sum(x, step(x))

    def output_steps(self, lengths: Any, mask: Any) -> tuple[Any, Any]:
        """Return those of the module."""
        return self.module.output_steps(lengths, mask)

    def forward(
        self, x: Array, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> tuple[Array, BlockTape]:
        """Return y in the shape of x, and the tape.

        Args:
            x: input of the module.
            lengths: (B,) of an integer dtype, each in 0..T, or None.
            mask: bool, laid out as x: false for steps that are left out; or None.

        Raises:
            ValueError: the module's y has another shape or dtype; and what the module raises.
        """
        check_lengths([self.module], x, lengths)
        inner, tape = forward_member(self.module, x, lengths, mask)
        return self._sum(x, inner), BlockTape(self, [tape])

    def backward(self, tape: BlockTape, dy: Array, *, need_dx: bool = True) -> Any:
        """Add to the gradients of the module; return dx, or None without need_dx.

        Raises:
            TypeError: dy is not an array of the dtype of y.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        ((module, part),) = check_tape(tape, self, BlockTape)._pairs([self.module])
        check_flag("need_dx", need_dx)
        dx = backward_member(module, part, dy, need_dx)
        return dy + dx if need_dx else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.module!r})"


class Concat(ModuleList):
    """Modules that all take the same x; y is theirs joined in the last axis.

    `lengths` and `mask` go to those members whose `forward` has an argument of the name; states start from
    zeros and are left out. `Sequential()` stands for x itself.

    Args:
        modules: in the order of their outputs, one at least.

    Raises:
        TypeError: one of them is not a Module.
        ValueError: there is none.
    """

    _host_only = True

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)
        self._check_some()

    def _check_some(self) -> None:
        if not len(self):
            raise ValueError("modules: expected one at least, got none")

    def _join(self, parts: list[Any]) -> Any:
        self._check_some()
        first = parts[0]
        for index, part in enumerate(parts):
            if part.shape[:-1] != first.shape[:-1] or part.dtype != first.dtype:
                raise ValueError(
                    f"modules[{index}]: expected one whose y has shape {(*first.shape[:-1], '...')} and "
                    f"{first.dtype} as that of modules[0], got {part.shape} and {part.dtype}"
                )
        return self._backend.xp.concatenate(parts, axis=-1)

    def __call__(
        self, x: Any, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> Array:
        """Return y (..., sum of the modules' sizes), and keep no tape; arguments as `forward`."""
        check_lengths(self, x, lengths)
        y: Array = self._join([call_member(module, x, lengths, mask) for module in self])
        return y

    def _step_in(self, stream: Any, name: str) -> Any:
        steps = [stream.member(f"{name}.{inner}", module) for inner, module in self.named_children()]
        return lambda x: self._join([step(x) for step in steps])

    def output_steps(self, lengths: Any, mask: Any) -> tuple[Any, Any]:
        """Return those of the first module."""
        return self[0].output_steps(lengths, mask)

    def forward(
        self, x: Any, lengths: npt.ArrayLike | None = None, mask: npt.ArrayLike | None = None
    ) -> tuple[Array, ConcatTape]:
        """Return y (..., sum of the modules' sizes), and the tape.

        Args:
            x: input of every module.
            lengths: (B,) of an integer dtype, each in 0..T, or None.
            mask: bool, laid out as x: false for steps that are left out; or None.

        Raises:
            ValueError: the outputs differ but for the last axis; and what the modules raise.
        """
        check_lengths(self, x, lengths)
        pairs = [forward_member(module, x, lengths, mask) for module in self]
        y = self._join([part for part, _ in pairs])
        sizes = [part.shape[-1] for part, _ in pairs]
        return y, ConcatTape(self, [tape for _, tape in pairs], y, sizes)

    def backward(self, tape: ConcatTape, dy: Array, *, need_dx: bool = True) -> Any:
        """Add to the gradients of all modules; return dx, or None without need_dx or where there is none.

        Raises:
            TypeError: dy is not an array of the dtype of y.
            ValueError: dy has not the shape of y, or the tape is another module's.
        """
        tape = check_tape(tape, self, ConcatTape)
        pairs = tape._pairs(list(self))
        check_flag("need_dx", need_dx)
        check_array("dy", dy, tape.shape, tape.dtype, kind=self._backend.array)
        dx, stop = None, 0
        for (module, part), size in zip(pairs, tape.sizes, strict=True):
            start, stop = stop, stop + size
            piece = backward_member(module, part, dy[..., start:stop], need_dx)
            # Not added in place: a module may return its dy.
            dx = piece if dx is None else dx if piece is None else dx + piece
        return dx if need_dx else None

    def _arguments(self) -> Arguments:
        return Arguments(tuple(self), {})

    def __repr__(self) -> str:
        return f"{type(self).__name__}{block_of('(', map(repr, self), ')')}"


class ConcatTape(BlockTape):
    """Tape of a `Concat`: those of its modules, the shape and dtype of y, and the modules' sizes in it."""

    __slots__ = ("dtype", "shape", "sizes")

    def __init__(self, owner: Module, tapes: list[Any], y: Array, sizes: list[int]) -> None:
        super().__init__(owner, tapes)
        self.shape, self.dtype, self.sizes = y.shape, y.dtype, sizes
