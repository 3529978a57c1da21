"""Stateful: a Sequential whose networks start from a state that is given, and whose final state comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.checks import check_flag
from fusedrnn.nn.blocks import Sequential
from fusedrnn.nn.containers import check_module
from fusedrnn.nn.members import BlockTape, check_lengths, looked_up, taken
from fusedrnn.nn.module import Module
from fusedrnn.nn.tape import check_tape


class Stateful(Sequential):
    """Modules one after the other, as `Sequential`, with the state of those that have one.

        y, state, tape = model.forward(x, state)
        dx, dstate = model.backward(tape, dy, dstate)
        y, state = model(x, state)

    state is a tuple of one for each member that has a state, in their order, each as the member has it or
    None for its start; None for all of them. It lets a long sequence be taken in pieces, as `Trainer` does
    with `bptt`. Members with a network inside that would start anew at each call are refused.

    Args:
        modules: in their order; or one dictionary of them by name.

    Raises:
        TypeError: one of them is not a Module, or a name not a string.
        ValueError: a name is empty or holds a dot, or a member hides a state.
    """

    has_state = True

    def _put(self, modules: list[Module]) -> None:
        self._check_members({f"modules[{index}]": module for index, module in enumerate(modules)})
        super()._put(modules)

    def _check_members(self, modules: Mapping[str, Module]) -> None:
        for name, module in modules.items():
            check_module(name, module)
            hidden = [type(m).__name__ for m in module.modules() if m.has_state]
            if hidden and not module.has_state:
                raise ValueError(
                    f"{name}: expected a module with a state of its own, or without any inside, got a "
                    f"{type(module).__name__} with a {hidden[0]}, which would start anew at each call"
                )

    def _parts(self, name: str, state: Any) -> list[Any]:
        """Return the state of each member, None where it has none."""
        count = sum([module.has_state for module in self])
        if state is None:
            return [None] * len(self)
        if not isinstance(state, tuple) or len(state) != count:
            got = f"{len(state)} of them" if isinstance(state, tuple) else type(state).__name__
            raise ValueError(f"{name}: expected a tuple of the states of {count} members, got {got}")
        parts = iter(state)
        return [next(parts) if module.has_state else None for module in self]

    def __call__(  # type: ignore[override]
        self,
        x: Any,
        state: Any = None,
        lengths: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> tuple[Any, Any]:
        """Return y and the state behind it, and keep no tape; arguments as `forward`."""
        y, state, _ = self._run(x, state, lengths, mask, False)
        return y, state

    def forward(  # type: ignore[override]
        self,
        x: Any,
        state: Any = None,
        lengths: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
    ) -> tuple[Any, Any, BlockTape]:
        """Return y, the state behind it, and the tape; raises what the modules do.

        Args:
            x: input of the first module.
            state: a tuple, or None for the start.
            lengths: (B,) of an integer dtype, each in 0..T, or None.
            mask: bool, laid out as x: false for steps that are left out; or None.

        Raises:
            ValueError: the state is not one of these modules.
        """
        y, state, tapes = self._run(x, state, lengths, mask, True)
        return y, state, BlockTape(self, tapes)

    def _step_in(self, stream: Any, name: str) -> Any:
        # Its state is a tuple of its own.
        return stream.streamed(name, self)

    def _run(self, x: Any, state: Any, lengths: Any, mask: Any, keep: bool) -> tuple[Any, Any, list[Any]]:
        modules, parts = list(self), self._parts("state", state)
        check_lengths(modules, x, lengths)
        finals: list[Any] = []
        tapes: list[Any] = []
        for place, (module, part) in enumerate(zip(modules, parts, strict=True)):
            found = looked_up(modules, place, x)
            if found is not None:
                x = found
                tapes.append(found)
            else:
                before: tuple[Any, ...] = () if part is None else (part,)
                results: Any = (module.forward if keep else module)(
                    x, *before, **taken(module, lengths, mask)
                )
                results = results if keep or module.has_state else (results,)
                x = results[0]
                tapes.append(results[-1])
                finals += [results[1]] if module.has_state else []
            if lengths is not None or mask is not None:
                lengths, mask = module.output_steps(lengths, mask)
        return x, tuple(finals), tapes

    def backward(
        self, tape: BlockTape, dy: Array, dstate: Any = None, *, need_dx: bool = True
    ) -> tuple[Any, Any]:
        """Add to the gradients of all modules; return dx, or None without need_dx, and dstate.

        Args:
            tape: of forward.
            dy: gradient of y.
            dstate: gradient of the state behind y, a tuple; None for zeros, of any member, too.
            need_dx: False leaves out the gradient of x.

        Raises:
            TypeError: dy is not an array of the dtype of y.
            ValueError: dy has not the shape of y, dstate is none of these modules, or the tape is another's.
        """
        pairs, dx = check_tape(tape, self, BlockTape)._pairs(list(self)), dy
        check_flag("need_dx", need_dx)
        flows = self._parts("dstate", dstate)
        starts: list[Any] = []
        for index, (module, part) in reversed(list(enumerate(pairs))):
            if module.has_state:
                dx, start = module.backward(part, dx, flows[index], need_dx=need_dx or index > 0)
                starts.append(start)
            else:
                dx = module.backward(part, dx, need_dx=need_dx or index > 0)
        return dx if need_dx else None, tuple(reversed(starts))
