"""`fusedrnn::rnn` for torch.compile and torch.export, and the same as an autograd function for eager calls.

Both keep the inputs, y and a tensor that holds the kernels' tape, all through `save_for_backward`:
so hooks on saved tensors, checkpointing and the check for changes in place see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function, forward_ad
from torch.autograd.function import once_differentiable

from fusedrnn.interop.torch import kernels
from fusedrnn.interop.torch.calls import drawn_seed
from fusedrnn.interop.torch.kernels import TORCH, Cache, Inputs, Options, Tensor
from fusedrnn.interop.torch.second import gradients_of_backward

_SIZES = "str cell, int num_layers, bool bidirectional, bool batch_first, float dropout"
_TENSORS = "Tensor x, Tensor? lengths, Tensor? resets, Tensor? seed, Tensor[] state, Tensor[] params"
torch.library.define(
    "fusedrnn::rnn", f"({_TENSORS}, {_SIZES}, bool save) -> (Tensor, Tensor, Tensor, Tensor)"
)
torch.library.define(
    "fusedrnn::rnn_backward",
    f"({_TENSORS}, {_SIZES}, Tensor y, Tensor tape, Tensor? dy, Tensor? dh, Tensor? dc) -> Tensor[]",
)
_NOT_FORWARD = (
    "fusedrnn.torch: expected derivatives in reverse, got one forward through a recurrent network or a loss "
    "over sequences; use backward, torch.func.vjp or jacrev"
)
_NOT_TWICE = (
    "fusedrnn.torch: expected one derivative, got a second one of a recurrent network; "
    "fusedrnn.torch.restore(model) gives torch.nn's own, which have it"
)


def _pair(finals: Sequence[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return h and c, which has no elements where the cell has none."""
    return finals[0], finals[1] if len(finals) > 1 else like.new_empty(0)


def _call(given: tuple[Any, ...]) -> tuple[Options, Inputs, tuple[Any, ...]]:
    """Take an op's arguments apart: sizes, tensors, and what comes after both."""
    x, lengths, resets, seed, state, params = given[:6]
    inputs = Inputs(x, lengths, resets, seed, tuple(state), tuple(params))
    return Options(*given[6:11]), inputs, given[11:]


@torch.library.impl("fusedrnn::rnn", "cpu")
def _rnn(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options, inputs, (save,) = _call(given)
    (y, *finals), tape = kernels.forward(options, inputs, save)
    return y, *_pair(finals, inputs.x), kernels.attach(tape)


@torch.library.register_fake("fusedrnn::rnn")
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options, inputs, _ = _call(given)
    sizes = kernels.sizes_of(options, inputs.x, inputs.params)
    finals = [inputs.x.new_empty(shape) for shape in sizes.states]
    tape = inputs.x.new_empty(0, dtype=torch.uint8)
    return inputs.x.new_empty(sizes.y), *_pair(finals, inputs.x), tape


@torch.library.impl("fusedrnn::rnn_backward", "cpu")
def _rnn_backward(*given: Any) -> list[Tensor]:
    options, inputs, (y, tape, dy, *dfinals) = _call(given)
    finals = tuple(dfinals[: 2 if options.cell == "lstm" else 1])
    return kernels.backward(options, inputs, y, kernels.attached(tape), dy, finals)


@torch.library.register_fake("fusedrnn::rnn_backward")
def _(x: Tensor, *given: Any) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, *given[3], *given[4])]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, lengths, resets, seed, state, params, *ctx.options, _ = inputs
    y, _, _, tape = output
    ctx.states = len(state)
    ctx.mark_non_differentiable(tape)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, lengths, resets, seed, y, tape, *state, *params)


def _op_backward(
    ctx: Any, dy: Tensor | None, dh: Tensor | None, dc: Tensor | None, _: Any
) -> tuple[Any, ...]:
    x, lengths, resets, seed, y, tape, *rest = ctx.saved_tensors
    state, params = rest[: ctx.states], rest[ctx.states :]
    if ctx.options[0] != "lstm":
        dc = None
    found = torch.ops.fusedrnn.rnn_backward(
        x, lengths, resets, seed, state, params, *ctx.options, y, tape, dy, dh, dc
    )
    grads = found[1 : 1 + ctx.states], found[1 + ctx.states :]
    return (found[0], None, None, None, *grads, None, None, None, None, None, None)


def refuse_second(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError(_NOT_TWICE)


def refuse_forward(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
    raise RuntimeError(_NOT_FORWARD)


torch.library.register_autograd("fusedrnn::rnn", _op_backward, setup_context=_setup)
torch.library.register_autograd("fusedrnn::rnn_backward", refuse_second)


class Backward(Function):
    """The gradients, as a function of its own: so that it has derivatives, and vmap works."""

    @staticmethod
    def forward(options: Options, states: int, dfinals: int, needs: Any, *tensors: Any) -> tuple[Any, ...]:
        dy, finals, rest = tensors[0], tensors[1 : 1 + dfinals], tensors[1 + dfinals :]
        x, lengths, resets, seed, y, tape, *others = rest
        inputs = Inputs(x, lengths, resets, seed, tuple(others[:states]), tuple(others[states:]))
        kept = None if tape is None else kernels.attached(tape)
        return tuple(kernels.backward(options, inputs, y, kept, dy, finals, *needs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.options, ctx.states, ctx.dfinals, _, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Any, ...]:
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(_NOT_TWICE)
        dy, *rest = ctx.saved_tensors
        finals, (x, lengths, resets, seed, _, _, *others) = rest[: ctx.dfinals], rest[ctx.dfinals :]
        inputs = Inputs(x, lengths, resets, seed, tuple(others[: ctx.states]), tuple(others[ctx.states :]))
        found = gradients_of_backward(ctx.options, inputs, dy, tuple(finals), directions)
        flows, grads = found[: 1 + ctx.dfinals], found[1 + ctx.dfinals :]
        return (None, None, None, None, *flows, grads[0], None, None, None, None, None, *grads[1:])

    jvp = staticmethod(refuse_forward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return each(Backward, info, in_dims, args)


class Network(Function):
    """y and the final states of a network, eager.

    It is given what `kernels.forward` has returned, or the module's cache to call it with. The context holds
    the tape until backward. Where hooks on saved tensors are set, as in a checkpoint, it is theirs to keep or
    to drop. There is no `setup_context`, for which torch looks at the signature every time.
    """

    boxed_grads_call = False  # torch looks for it at each backward, and writes an error where it is not

    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        found: Any,
        states: int,
        x: Any,
        lengths: Any,
        resets: Any,
        seed: Any,
        *rest: Any,
    ) -> tuple[Tensor, ...]:
        if found is None or type(found) is Cache:
            inputs = Inputs(x, lengths, resets, seed, rest[:states], rest[states:])
            found = kernels.forward(options, inputs, True, found)
        outputs, tape = found
        hooked = has_hooks()
        ctx.options, ctx.states, ctx.tape = options, states, None if hooked else tape
        ctx.set_materialize_grads(False)
        handle = kernels.attach(tape) if hooked else None
        ctx.save_for_backward(x, lengths, resets, seed, outputs[0], handle, *rest)
        return outputs

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *dfinals: Tensor | None) -> tuple[Any, ...]:
        x, lengths, resets, seed, y, handle, *rest = ctx.saved_tensors
        options, states, tape = ctx.options, ctx.states, ctx.tape
        if not keeps_graph():
            ctx.tape = None
        needs = ctx.needs_input_grad
        need = needs[3], True in needs[7 + states :]
        if torch.is_grad_enabled():
            handle = handle if tape is None else kernels.attach(tape)
            given = (x, lengths, resets, seed, y, handle, *rest)
            dx, *others = Backward.apply(options, states, len(dfinals), need, dy, *dfinals, *given)
            return (None, None, None, dx, None, None, None, *others)
        if tape is None:
            tape = kernels.attached(handle)
        if tape is None:
            inputs = Inputs(x, lengths, resets, seed, tuple(rest[:states]), tuple(rest[states:]))
            dx, *others = kernels.backward(options, inputs, y, None, dy, dfinals, *need)
        else:  # as kernels.backward, sooner
            wanted = need[0], states > 0, need[1]
            dx, *others = TORCH.backward(
                tape.layers, tape.drops, (dy, *dfinals), *wanted, options.batch_first
            )
        return (None, None, None, dx, None, None, None, *others)

    jvp = staticmethod(refuse_forward)


_autograd = torch._C._autograd


def has_hooks() -> bool:
    """Return whether hooks on saved tensors are set, as a checkpoint sets them."""
    return _autograd._top_saved_tensors_default_hooks(False) is not None


# Versions without it keep the tape with the graph.
keeps_graph = getattr(_autograd, "_get_current_graph_task_keep_graph", lambda: True)


class Transformed(Function):
    """The same for torch.func, and the tensor that holds the tape."""

    @staticmethod
    def forward(
        options: Options, states: int, x: Any, lengths: Any, resets: Any, seed: Any, *rest: Any
    ) -> tuple[Tensor, ...]:
        inputs = Inputs(x, lengths, resets, seed, rest[:states], rest[states:])
        outputs, tape = kernels.forward(options, inputs, True)
        return (*outputs, kernels.attach(tape))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.states, *tensors = inputs
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:4], output[0], output[-1], *tensors[4:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *dfinals: Tensor | None) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad[2], any(ctx.needs_input_grad[6 + ctx.states :])
        given = (ctx.options, ctx.states, len(dfinals) - 1, needs, dy, *dfinals[:-1], *ctx.saved_tensors)
        dx, *others = Backward.apply(*given)
        return (None, None, dx, None, None, None, *others)

    jvp = staticmethod(refuse_forward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        return each(Transformed, info, in_dims, args)


def each(function: Any, info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Apply the function to each entry of what vmap maps over; its tapes are left out by stacking."""
    results = []
    for i in range(info.batch_size):
        entry = [
            a.select(d, i) if d is not None and isinstance(a, Tensor) else a
            for a, d in zip(args, in_dims, strict=True)
        ]
        results.append(function.apply(*entry))
    columns = list(zip(*results, strict=True))
    stacked = tuple([None if column[0] is None else torch.stack(column) for column in columns])
    return stacked, tuple([None if column is None else 0 for column in stacked])


def apply(options: Options, cache: Cache | None, inputs: Inputs) -> tuple[Tensor, ...]:
    """Return y and the final states, recorded by autograd or by whatever traces the call."""
    x, lengths, resets, seed, state, params = inputs
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or type(x) is not Tensor or not x.is_cpu:
        save = torch.is_grad_enabled()
        if not (x.is_cpu or x.is_meta):
            kernels.check(x, state, params)
        y, h, c, _ = torch.ops.fusedrnn.rnn(
            x, lengths, resets, seed, list(state), list(params), *options, save
        )
        return (y, h, c) if options.cell == "lstm" else (y, h)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        kernels.check(x, state, params)
        return Transformed.apply(options, len(state), *inputs[:4], *state, *params)[:-1]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *state, *params)):
        return Network.apply(options, cache, len(state), *inputs[:4], *state, *params)
    return kernels.forward(options, inputs, False, cache)[0]


# Without the look for transforms of torch.func, of which there are none where this is called.
_record = super(Function, Network).apply
_is_tracing, _is_transformed = torch._C._is_tracing, torch._C._are_functorch_transforms_active


def is_common() -> bool:
    """Return whether neither traces, transforms of torch.func nor derivatives forward are on."""
    return not (_is_tracing() or _is_transformed() or forward_ad._current_level >= 0)


def apply_shortly(
    options: Options, cache: Cache, module: Any, x: Any, hx: Any, lengths: Any, resets: Any
) -> tuple[Tensor, Any] | None:
    """Return y and the final state of a network.

    Returns None, with nothing done, where that is not the common case: `apply` takes or refuses the rest.
    """
    if not is_common():
        return None
    record = _record if torch.is_grad_enabled() else None
    draw = drawn_seed if options.dropout > 0 else None
    return cache.network.forward(module, x, hx, lengths, resets, record, options, options.batch_first, draw)
