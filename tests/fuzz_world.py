"""One sequence of fuzz_sequences.py: a module, what is given to it, what comes out, and how both change."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda_support import EMULATED
from fuzz_blocks import block
from fuzz_changes import disturb, running, write_weights
from fuzz_entries import ALLOWED, garbage, mutated
from fuzz_oracle import (
    Arguments,
    Held,
    Stepping,
    arrays_of,
    bits,
    check_same,
    content,
    ordinary,
    outcome,
    plain,
)
from fuzz_subjects import Rng, Subject, chance, drawn, pick, subject, values
from support import Array

import fusedrnn as fr

COMPUTE = ["float32", *(name for name in ("bf16", "bf16x3") if fr.config()[f"{name}_isa"] is not None)]


class World:
    """One sequence: a module, what was given to it and what it gave."""

    def __init__(self, rng: Rng, limit: float) -> None:
        self.rng = rng
        self.limit = limit
        self.subject: Subject = subject(rng, block, block)
        self.parents: list[Any] = []
        self.tapes: list[Held] = []
        self.streams: list[Stepping] = []
        self.quantized: list[tuple[Any, Any]] = []
        self.optimizers: list[Any] = []
        self.calls: list[Arguments] = []
        self.views: list[Any] = []
        self.arrays: list[Array] = []
        self.detecting = False

    @property
    def module(self) -> Any:
        return self.subject.module

    # Calls

    def arguments(self, usual: bool = False) -> Arguments:
        """Arguments: new ones, those of an earlier call as they are now, or some of them wrong."""
        rng = self.rng
        if not usual and self.calls and chance(rng, 0.3):
            return dict(pick(rng, self.calls))
        arguments = self.subject.draw(rng)
        if not usual and chance(rng, 0.2):
            valid = list(arguments.values())
            for name in rng.permutation(list(arguments))[: 1 + int(rng.integers(2))]:
                wrong = mutated if chance(rng, 0.7) else lambda rng, _, valid: garbage(rng, valid)
                arguments[str(name)] = wrong(rng, arguments[str(name)], valid)
            if chance(rng, 0.1):
                arguments["surplus"] = None
        self.remember(arguments)
        return arguments

    def remember(self, value: Any) -> None:
        if isinstance(value, dict):
            self.calls = [*self.calls[-5:], value]
        self.arrays = [*self.arrays[-60:], *(array for array in arrays_of(value) if ordinary(array))]

    def call(self) -> None:
        """A call without a tape."""
        arguments = self.arguments()
        twin = self.subject.fresh()
        want = outcome(twin, **plain(arguments))
        got = outcome(self.module, **arguments)
        check_same("call", got, want)
        assert self.module.random_state() == twin.random_state() or got[1] is not None
        self.module.load_random_state(twin.random_state())
        self.remember(list(arrays_of(got[0])))

    def usual_call(self) -> None:
        """A call that nothing is wrong with."""
        arguments = self.arguments(usual=True)
        want = self.subject.fresh()(**plain(arguments))
        random_state = self.module.random_state()
        check_same("call", (self.module(**arguments), None), (want, None))
        self.module.load_random_state(random_state)

    def forward(self) -> None:
        """A call that keeps a tape."""
        arguments = self.arguments()
        twin = self.subject.fresh()
        want = outcome(twin.forward, **plain(arguments))
        before = content(list(arguments.values()))
        got = outcome(self.module.forward, **arguments)
        check_same("forward", tuple_without_tape(got), tuple_without_tape(want))
        self.module.load_random_state(twin.random_state())
        if got[1] is not None:
            return
        results, tape = got[0][:-1], got[0][-1]
        if not all(array.size < 10**6 for array in arrays_of(results)):
            return  # arrays without memory behind them, handed through
        copies = tuple(plain(result) for result in results)
        given = [*before, *content(list(results))]
        self.tapes = [
            *self.tapes[-5:],
            Held(self.module, tape, twin, want[0][-1], copies, given, self.detecting),
        ]
        self.remember(list(arrays_of(list(results))))

    def backward(self) -> None:
        if not self.tapes:
            return self.forward()
        held = pick(self.rng, self.tapes)
        flow = self.subject.flow(self.rng, held.results)
        if chance(self.rng, 0.2):
            name = pick(self.rng, list(flow))
            flow[name] = mutated(self.rng, flow[name], list(flow.values()))
        self.arrays += [array for array in arrays_of(flow) if ordinary(array)]
        held.backward(flow, self.detecting)
        return None

    # Changes

    def change_array(self) -> None:
        """Set an attribute or values of an array that was given to a call or came out of one."""
        if self.arrays:
            disturb(self.rng, pick(self.rng, self.arrays))

    def change_weights(self) -> None:
        write_weights(self.rng, self.module, self.views)

    def change_weights_elsewhere(self) -> None:
        """The same by another thread, while this one calls; afterwards every call sees the new weights."""
        rng = np.random.default_rng(self.rng.integers(2**32))
        arguments = self.arguments(usual=True)
        random_state = self.module.random_state()
        with running(lambda: write_weights(rng, self.module, self.views)):
            for _ in range(5):
                outcome(self.module, **arguments)
                outcome(self.module.forward, **arguments)
        self.module.load_random_state(random_state)
        self.usual_call()

    def refused_load(self) -> None:
        """A load that fails writes nothing."""
        state = self.module.state_dict()
        if state:
            before = bits(state)
            bad = {name: 2 * value for name, value in state.items()}
            name = pick(self.rng, list(bad))
            bad[name] = pick(self.rng, [bad[name][..., None], bad[name].astype("c8"), "x", None])
            assert outcome(self.module.load_state_dict, bad)[1] is not None
            assert bits(self.module.state_dict()) == before

    def disfigured_weight(self) -> None:
        """Someone sets the shape of a weight: errors until it is set back, or calls that do not notice."""
        arrays = pick(self.rng, [self.module.parameters, self.module.grads])
        if not arrays:
            return
        view = arrays[pick(self.rng, list(arrays))]
        shape, dtype, strides = view.shape, view.dtype, view.strides
        disturb(self.rng, view, attributes=True)
        arguments = self.arguments(usual=True)
        random_state = self.module.random_state()
        actions: list[Callable[[], Any]] = [
            lambda: self.module(**arguments),
            lambda: self.module.forward(**arguments),
            lambda: [held.module.backward(held.tape, **self.subject.flow(self.rng, held.results))
                     for held in self.tapes],
            lambda: [item.stream.refresh() for item in self.streams if item.twins],
            lambda: self.module.quantize("int8"),
            lambda: [optimizer.step() for optimizer in self.optimizers],
            lambda: self.module.state_dict(),
            lambda: copy.deepcopy(self.module),
        ]  # fmt: skip
        for action in actions:
            try:
                action()
            except (*ALLOWED, AttributeError):
                pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            view.dtype = dtype
            view.shape = shape
            view.strides = strides
        view.flags.writeable = True
        self.module.load_random_state(random_state)
        # A refresh may have read it.
        self.streams = [item for item in self.streams if not item.twins]
        self.optimizers = []

    def switch(self) -> None:
        """Options that may be changed at any time."""
        kind = self.rng.integers(7)
        if kind == 0:
            self.detecting = chance(self.rng, 0.5)
            fr.set_detect_changes(self.detecting)
        elif kind == 1:
            fr.set_num_threads(pick(self.rng, [1, 2, 4]))
        elif kind == 2:
            self.module.train(chance(self.rng, 0.5))
        elif kind == 3:
            for member in self.module.modules():
                if hasattr(member, "recompute"):
                    member.recompute = chance(self.rng, 0.5)
        elif kind == 4:
            assert self.module.to("cpu") is self.module
        elif kind == 5 and self.module.dtype == np.float32:
            for member in self.module.modules():
                if hasattr(member, "compute"):
                    member.compute = pick(self.rng, COMPUTE)
        else:
            self.module.zero_grad()

    def device(self) -> None:
        """To the GPU, where the build has an emulator of one, calls there, and back; elsewhere an error."""
        module, before = self.module, bits(self.module.state_dict())
        grads, twin = module.flat_grads.copy(), self.subject.fresh()
        error = outcome(module.to, "cuda")[1]
        if error is not None:
            # No GPU, or a cell or a block without kernels for one.
            assert isinstance(error, (RuntimeError, ValueError))
            assert not EMULATED or "runs on cpu" in str(error), error
        else:
            twin.to("cuda")
            for name in ("__call__", "forward"):
                # Of a usual layout: the GPU refuses what is not aligned.
                arguments = plain(self.arguments(usual=True))
                want = outcome(getattr(twin, name), **plain(arguments))
                got = outcome(getattr(module, name), **arguments)
                if name == "__call__":
                    check_same("call on the GPU", got, want)
            if got[1] is None:
                flow = plain(self.subject.flow(self.rng, got[0][:-1]))
                want = outcome(twin.backward, want[0][-1], **plain(flow))
                check_same("backward on the GPU", outcome(module.backward, got[0][-1], **flow), want)
                check_same("gradients", (module.flat_grads, None), (twin.flat_grads, None))
            disturb(self.rng, pick(self.rng, self.arrays))
            assert module.to("cpu") is module
            module.load_random_state(twin.random_state())
            module.flat_grads[...] = grads
            # Those of the parameters that were left behind.
            self.tapes, self.optimizers, self.streams = [], [], []
        assert bits(module.state_dict()) == before

    def join_a_tree(self) -> None:
        """The module's parameters move; what was handed out before follows or goes stale."""
        self.views.append(self.module.parameters)
        self.views += list(self.module.parameters.values())
        parent = fr.Module()
        if chance(self.rng, 0.5):
            parent.first = fr.Linear(2, 3, dtype=self.module.dtype)
        parent.add_module("inner", self.parents[-1] if self.parents else self.module)
        pick(self.rng, [lambda: parent.parameters, lambda: parent.flat_grads, parent.state_dict])()
        self.parents.append(parent)

    def copied(self) -> None:
        """A copy takes the place of the module; the tapes remain the original's."""
        pair = (self.module, self.optimizers[-1:])
        copies: Any = pickle.loads(pickle.dumps(pair)) if chance(self.rng, 0.5) else copy.deepcopy(pair)
        other = copies[0]
        assert bits(other.state_dict()) == bits(self.module.state_dict())
        assert bits(other.flat_grads) == bits(self.module.flat_grads)
        assert other.random_state() == self.module.random_state()
        self.subject.module, self.optimizers = other, copies[1]
        self.parents = []

    # Training

    def optimise(self) -> None:
        """A step, as of a new optimiser with the same state over a new module."""
        if not self.optimizers or chance(self.rng, 0.2):
            settings = pick(self.rng, [{}, {"weight_decay": 0.1}])
            kind = pick(self.rng, ["SGD", "Adam", "AdamW"])
            if kind == "SGD":
                settings = {**settings, "momentum": pick(self.rng, [0.0, 0.9])}
            self.optimizers = [getattr(fr.optim, kind)(self.module, lr=0.01, **settings)]
        optimizer = self.optimizers[-1]
        twin = self.subject.fresh()
        other = type(optimizer)(twin)
        other.load_state_dict(optimizer.state_dict())
        if hasattr(other, "_fresh"):
            other._fresh = optimizer._fresh
        with np.errstate(all="ignore"):
            want, got = outcome(other.step), outcome(optimizer.step)
        check_same("step", got, want)
        check_same("parameters", (self.module.state_dict(), None), (twin.state_dict(), None))
        check_same("moments", (optimizer.state_dict(), None), (other.state_dict(), None))

    def clip(self) -> None:
        twin = self.subject.fresh()
        if chance(self.rng, 0.5):
            most = pick(self.rng, [0.0, 0.1, 1.0, 1e300, np.inf, -1.0])
            want, got = (
                outcome(fr.clip_grad_value, twin, most),
                outcome(fr.clip_grad_value, self.module, most),
            )
        else:
            options = {
                "max_norm": pick(self.rng, [0.0, 0.1, 5.0, np.inf, np.nan]),
                "norm_type": pick(self.rng, [1.0, 2.0, 3.0, np.inf]),
                "error_if_nonfinite": chance(self.rng, 0.5),
            }
            want = outcome(fr.clip_grad_norm, twin, **options)
            got = outcome(fr.clip_grad_norm, self.module, **options)
        check_same("clip", got, want)
        check_same("gradients", (self.module.flat_grads, None), (twin.flat_grads, None))

    # Streams and quantized networks

    def stream(self) -> None:
        """Make one, step it, read and set its state, refresh it."""
        if not isinstance(self.module, fr.Recurrent) or self.module.bidirectional or self.module.residual:
            return
        rng, module = self.rng, self.module
        if not self.streams or chance(rng, 0.15):
            self.streams = [*self.streams[-2:], self.new_stream()]
        item = pick(rng, self.streams)
        kind = rng.integers(8)
        if kind == 0:
            item.check_state()
        elif kind == 1:
            state = item.twin.state
            state = (
                tuple(values(rng, s.shape, s.dtype) for s in state) if isinstance(state, tuple) else -state
            )
            item.twin.state = plain(state)
            item.stream.state = state
        elif kind == 2:
            rows = pick(rng, [None, [0], [True], np.array([-1]), np.array([99]), np.zeros(0, int)])
            check_same("reset", outcome(item.stream.reset, rows), outcome(item.twin.reset, rows))
        elif kind == 3 and item.twins and item.stream._module is module:
            state = item.twin.state
            item.stream.refresh()
            item.twin = item.twins()
            item.twin.state = state
        for _ in range(3):
            x = item.draw(rng)
            if chance(rng, 0.1):
                x = mutated(rng, x, [x])
            y = item.step(x)
            if y is not None:
                self.remember([x, y])

    def new_stream(self) -> Stepping:
        rng, module, batch = self.rng, self.module, pick(self.rng, [1, 1, 2, 5])
        shape, dtype = (batch, module.input_size), module.dtype
        whole = module._spec.definition or module._beside()
        if dtype == np.float32 and not whole and chance(rng, 0.4):
            weights = pick(rng, ["int8", "bf16"])
            stream, twin = (m.quantize(weights).stream(batch) for m in (module, self.subject.fresh()))
            return Stepping(stream, twin, lambda rng: drawn(rng, shape, dtype))
        twins = lambda: self.subject.fresh().stream(batch)  # noqa: E731
        return Stepping(module.stream(batch), twins(), lambda rng: drawn(rng, shape, dtype), twins)

    def quantize(self) -> None:
        """A quantized network is a copy: what happens to the original does not reach it."""
        module = self.module
        if not isinstance(module, fr.Recurrent) or module.dtype != np.float32:
            return
        if module._spec.definition or module._beside():
            return
        if not self.quantized or chance(self.rng, 0.2):
            weights = pick(self.rng, ["int8", "bf16"])
            self.quantized = [
                *self.quantized[-2:],
                (module.quantize(weights), self.subject.fresh().quantize(weights)),
            ]
        network, twin = pick(self.rng, self.quantized)
        arguments = self.arguments()
        check_same("quantized", outcome(network, **arguments), outcome(twin, **plain(arguments)))


def tuple_without_tape(result: Any) -> Any:
    value, error = result
    return (None if error is not None else value[:-1]), error
