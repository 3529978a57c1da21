"""Random sequences of public calls, between which what they were given is changed. Run by test_fuzz.py.

A sequence takes a module of some kind and calls it, keeps tapes, steps, saves, copies and shares it, and
between the calls changes arguments, results and weights: shape, dtype, strides, flags, values; in other
threads, in children of fork and in signal handlers too. Every result is held against that of a module made
anew; what raises has changed nothing; a call that does not come back ends the process with a traceback.

Usage: fuzz_sequences.py [--seed N] [--first N] [--sequences N] [--seconds N] [--limit SECONDS]
A failure says which sequence it was: `--seed S --first F --sequences 1` is that one again.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from typing import Any

import numpy as np
from cuda_support import EMULATED
from fuzz_changes import WATCH, await_child, disturb, outcome_of_a_storm, running, write_weights
from fuzz_lattices import lattices
from fuzz_oracle import (
    arrays_of,
    changed,
    check_same,
    ordinary,
    outcome,
    plain,
)
from fuzz_public import losses, public_call, sequences
from fuzz_subjects import Rng, Tagger, chance, pick
from fuzz_world import World

import fusedrnn as fr

SANITIZED = any(name in os.environ.get("LD_PRELOAD", "") for name in ("asan", "tsan"))


class Sequence(World):
    """What goes on beside a module: other threads, children, handlers, and calls without one."""

    def threads(self) -> None:
        """Several threads call one module, and run backward of one tape."""
        module, arguments = self.module, self.arguments(usual=True)
        noisy = module.training and module.random_state()
        want = self.subject.fresh()(**plain(arguments))
        tapes = [held for held in self.tapes if held.module is module and not changed(held.given)]
        held = pick(self.rng, tapes) if tapes else None
        flow = plain(self.subject.flow(self.rng, held.results)) if held else {}
        grads, count = module.flat_grads.copy(), 3
        random_state = module.random_state()

        def work() -> None:
            if not noisy:
                check_same("call beside others", (module(**arguments), None), (want, None))
            if held:
                held.module.backward(held.tape, **flow)

        with running(*[work] * (count - 1)):
            work()
        module.load_random_state(random_state)
        if held:
            held.twin.flat_grads[...] = grads
            for _ in range(count):
                held.twin.backward(held.twin_tape, **flow)
            if isinstance(module, Tagger):
                # Each of its layers takes the threads in an order of its own.
                assert np.allclose(module.flat_grads, held.twin.flat_grads, 1e-3, 1e-3, equal_nan=True)
            else:
                check_same("gradients of threads", (module.flat_grads, None), (held.twin.flat_grads, None))

    def storm(self) -> None:
        """Threads change everything at once while others call: any results, and no harm done."""
        rngs = [np.random.default_rng(self.rng.integers(2**32)) for _ in range(2)]
        arguments = self.arguments(usual=True)
        mine = [array for array in arrays_of(arguments) if ordinary(array)]
        tapes = [held for held in self.tapes if held.module is self.module]
        flows = [(held, self.subject.flow(self.rng, held.results)) for held in tapes]
        random_state = self.module.random_state()
        kept = self.module.state_dict()

        def change(rng: Rng) -> None:
            for _ in range(20):
                if mine:
                    disturb(rng, pick(rng, mine))
                write_weights(rng, self.module, self.views)

        def use() -> None:
            for _ in range(5):
                outcome_of_a_storm(self.module, **arguments)
                outcome_of_a_storm(self.module.forward, **arguments)
                for held, flow in flows:
                    outcome_of_a_storm(held.module.backward, held.tape, **flow)

        with running(lambda: change(rngs[0]), lambda: change(rngs[1]), use):
            use()
        self.module.load_state_dict(kept)
        self.module.load_random_state(random_state)
        self.module.zero_grad()
        self.usual_call()

    def fork(self) -> None:
        """A child, made while another thread calls, calls the module and runs backward.

        Not under a sanitizer: its allocator has locks that a thread, even one that ends, leaves taken in the
        child (libasan before GCC 14).
        """
        if not hasattr(os, "fork") or SANITIZED:
            return
        arguments, stop = self.arguments(usual=True), threading.Event()
        random_state = self.module.random_state()

        def forever() -> None:
            while not stop.is_set():
                outcome(self.module, **arguments)

        helpers = [forever] if chance(self.rng, 0.5) and not random_state else []
        with running(*helpers):
            # Its thread would be missing in the child, and waited for.
            WATCH.stop()
            pid = os.fork()
            if pid == 0:
                run_child(self)
            stop.set()
            await_child(pid, self.limit)

    def handler(self) -> None:
        """A signal handler calls the module and a copy of it in the middle of an operation.

        Without collections of garbage: before 3.12 CPython makes them inside of allocations, that of a
        context among them, and a handler in a weak reference's callback that sets a context variable, as
        np.errstate does, frees what is being copied.
        """
        if self.module.training and self.module.random_state():
            self.module.eval()
        arguments = self.arguments(usual=True)
        arguments = plain(arguments)
        want = self.subject.fresh()(**arguments)
        other = self.subject.fresh()
        failures: list[BaseException] = []
        handled = []

        def handle(*_: Any) -> None:
            # The next alarm may be set by now: within this handler's backward another would be refused.
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                check_same("call in a handler", (self.module(**arguments), None), (want, None))
                results = other.forward(**arguments)
                other.backward(results[-1], **self.subject.flow(np.random.default_rng(0), results[:-1]))
            except BaseException as error:
                failures.append(error)
            handled.append(1)

        before = signal.signal(signal.SIGALRM, handle)
        gc.disable()
        try:
            for _ in range(3):
                signal.setitimer(signal.ITIMER_REAL, 10 ** self.rng.uniform(-5, -3))
                pick(self.rng, [self.usual_call, self.forward, self.backward, self.stream])()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            gc.enable()
        if failures:
            raise failures[0]

    # The rest

    def outside(self) -> None:
        pick(self.rng, [losses, lattices, sequences, public_call])(self.rng)
        fr.set_detect_changes(self.detecting)

    def forget(self) -> None:
        """Let go of arrays, tapes and streams in any order."""
        for items in (self.tapes, self.arrays, self.calls, self.streams, self.views, self.parents):
            if items and chance(self.rng, 0.5):
                del items[int(self.rng.integers(len(items)))]  # type: ignore[attr-defined]
        if chance(self.rng, 0.1):
            gc.collect()


OPERATIONS = {
    "call": 10, "forward": 12, "backward": 14, "change_array": 14, "change_weights": 8, "switch": 4,
    "refused_load": 1, "disfigured_weight": 1.5, "join_a_tree": 1.5, "copied": 1.5, "optimise": 3, "clip": 2,
    "stream": 5, "quantize": 3, "threads": 1, "storm": 0.4, "change_weights_elsewhere": 0.5, "fork": 0.3,
    "handler": 1, "device": 5 if EMULATED else 0.1, "outside": 6, "forget": 2,
}  # fmt: skip


def run_child(world: Sequence) -> None:
    """What a child of fork does; it does not return."""
    status = 3
    try:
        WATCH.start(world.limit)
        world.usual_call()
        world.forward()
        world.backward()
        world.stream()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_sequence(seed: int, number: int, limit: float) -> int:
    """Run one sequence; return how many operations it had."""
    rng = np.random.default_rng([seed, number])
    # NumPy's own generator, for what draws without a seed.
    fr.set_detect_changes(False)
    fr.set_num_threads(1)
    world = Sequence(rng, limit)
    print(f"sequence {number}: {world.subject.name}", flush=True)
    weights = np.array(list(OPERATIONS.values()))
    count = int(rng.integers(5, 40))
    for name in rng.choice(list(OPERATIONS), size=count, p=weights / weights.sum()):
        # Named before it runs, so that a crash shows what was on its way.
        print(" ", name, flush=True)
        WATCH.start(limit)
        getattr(world, str(name))()
    return count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--sequences", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--limit", type=float, default=5.0)
    options = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    if not SANITIZED:
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    end, number, operations = time.monotonic() + options.seconds, options.first, 0
    while number < options.first + options.sequences and (
        time.monotonic() < end or options.sequences < 10**9
    ):
        try:
            operations += run_sequence(options.seed, number, options.limit)
        except BaseException:
            print(f"FAILED: --seed {options.seed} --first {number} --sequences 1", flush=True)
            raise
        number += 1
    print(f"done: seed {options.seed}, {number - options.first} sequences, {operations} operations")


if __name__ == "__main__":
    main()
