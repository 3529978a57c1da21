"""torch's own inputs and error inputs for RNN, GRU, LSTM and their cells, on those of fusedrnn.torch."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from unittest import mock

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # torch's test support needs it

# Its import would forbid the whole process to set cuDNN's flags.
with mock.patch("torch.backends.disable_global_flags"):
    from torch.testing._internal import common_modules
from torch.utils import _pytree as pytree  # noqa: E402

import fusedrnn.torch as ft  # noqa: E402

pytestmark = [
    pytest.mark.once,
    # Of torch.nn's own LSTM, once in a process.
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

KINDS = ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"]


def database(kind: str, what: str, dtype: Any) -> list[Any]:
    """The samples that torch's test of modules would run."""
    theirs = getattr(torch.nn, kind)
    (info,) = [info for info in common_modules.module_db if info.module_cls is theirs]
    # Of their samples for LSTM none is packed.
    packed = {"with_packed_sequence": True} if kind in ("RNN", "GRU") and what == "inputs" else {}
    torch.manual_seed(0)
    function = getattr(info, f"module_{what}_func")
    samples = function(info, device="cpu", dtype=dtype, requires_grad=True, training=True, **packed)
    assert len(samples) >= (2 if kind.endswith("Cell") else 14)
    return list(samples)


def leaves_of(tree: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def flat(output: Any) -> list[Any]:
    """Tensors of an output; of packed ones the rows."""
    y, *state = output if isinstance(output, tuple) else (output,)
    packed = isinstance(y, torch.nn.utils.rnn.PackedSequence)
    return leaves_of([y.data if packed else y, state])


def gradients(module: Any, args: Any, inputs: list[Any]) -> list[Any]:
    found = flat(module(*args))
    loss = sum((part.square() * (i + 1)).sum() for i, part in enumerate(found))
    return list(torch.autograd.grad(loss, [*inputs, *module.parameters()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_module_inputs(kind: str, dtype: Any) -> None:
    """As torch.nn, as torch's reference, and the same of inputs that are not contiguous."""
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    for sample in database(kind, "inputs", dtype):
        made, given = sample.constructor_input, sample.forward_input
        assert not given.kwargs
        theirs = getattr(torch.nn, kind)(*made.args, **made.kwargs, dtype=dtype)
        ours = getattr(ft, kind)(*made.args, **made.kwargs, dtype=dtype)
        assert ours.load_state_dict(theirs.state_dict()) and repr(ours) == repr(theirs)
        packed = isinstance(given.args[0], torch.nn.utils.rnn.PackedSequence)
        inputs = [given.args[0].data] if packed else leaves_of(given.args)
        want, got = [flat(m(*given.args)) for m in (theirs, ours)]
        slopes = [gradients(m, given.args, inputs) for m in (theirs, ours)]
        for a, b in zip(got + slopes[1], want + slopes[0], strict=True):
            scale = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)
        for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            again = flat(other(*given.args))
            assert all(torch.equal(a, b) for a, b in zip(again, got, strict=True))
        if packed:
            continue
        reference = sample.reference_fn(ours, *given.args)
        torch.testing.assert_close(flat(reference), got)
        apart = pytree.tree_map(scattered, given.args)
        assert not leaves_of(apart)[0].is_contiguous()
        again = flat(ours(*apart)) + gradients(ours, apart, leaves_of(apart))
        assert all(torch.equal(a, b) for a, b in zip(again, got + slopes[1], strict=True))


def scattered(tensor: Any) -> Any:
    """The same values, each the first of two."""
    return torch.stack([tensor, tensor + 1], -1)[..., 0].detach().requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_module_inputs(kind: str) -> None:
    for sample in database(kind, "inputs", torch.float64)[::3]:
        made, given = sample.constructor_input, sample.forward_input
        ours = getattr(ft, kind)(*made.args, **made.kwargs, dtype=torch.float64)
        if isinstance(given.args[0], torch.nn.utils.rnn.PackedSequence):
            data, *rest = given.args[0]
            inputs, spec = pytree.tree_flatten((data,))
        else:
            inputs, spec = pytree.tree_flatten(given.args)
            rest = None

        def run(*tensors: Any, ours: Any = ours, spec: Any = spec, rest: Any = rest) -> tuple[Any, ...]:
            args = pytree.tree_unflatten(tensors[: spec.num_leaves], spec)
            if rest is not None:
                args = (torch.nn.utils.rnn.PackedSequence(*args, *rest),)
            return tuple(flat(ours(*args)))

        assert torch.autograd.gradcheck(run, (*inputs, *ours.parameters()), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_module_error_inputs(kind: str) -> None:
    for sample in database(kind, "error_inputs", torch.float64):
        made, given = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        ours = getattr(ft, kind)
        if sample.error_on is common_modules.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                ours(*made.args, **made.kwargs)
        else:
            module = ours(*made.args, **made.kwargs)
            with pytest.raises(sample.error_type, match=sample.error_regex):
                module(*given.args)
