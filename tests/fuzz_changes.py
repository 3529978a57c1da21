"""What fuzz_sequences.py changes between calls, and what runs beside them."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from fuzz_entries import ALLOWED
from fuzz_subjects import Rng, pick, values
from support import Array

# What NumPy lets one set on an array, or refuses with one of these.
REFUSED = (ValueError, TypeError, AttributeError)


class Watch:
    """Ends the process with a traceback if an operation takes `limit` seconds, or up to twice that."""

    started = -np.inf

    def start(self, limit: float) -> None:
        # Anew for every operation would take longer than most of them.
        if time.monotonic() - self.started > limit:
            faulthandler.dump_traceback_later(2 * limit, exit=True)
            self.started = time.monotonic()

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.started = -np.inf


WATCH = Watch()


def disturb(rng: Rng, array: Array, attributes: bool = False) -> None:
    """Change what NumPy lets one change on an array."""
    kind = rng.integers(4 if attributes else 6)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            if kind == 0:
                shapes = [
                    array.shape[::-1],
                    (-1,),
                    (1, *array.shape),
                    (-1, 1),
                    (*array.shape, 1),
                    array.shape[1:],
                ]
                array.shape = pick(rng, shapes)
            elif kind == 1:
                array.dtype = np.dtype(pick(rng, ["f4", "f8", "i4", "i8", "u1", "?", ">f4", "f2", "c8"]))
            elif kind == 2:
                array.strides = pick(
                    rng, [(0,) * array.ndim, array.strides[::-1], (array.itemsize,) * array.ndim]
                )
            elif kind == 3:
                array.flags.writeable = not array.flags.writeable
            elif array.dtype.kind == "f":
                array[...] = values(rng, array.shape, array.dtype)
            elif array.size:
                array.reshape(-1)[...] = array.reshape(-1)[0]
        except REFUSED:
            pass


def write_weights(rng: Rng, module: Any, views: list[Any]) -> None:
    """Change weights by one of the ways that there are."""
    parameters = module.parameters
    names = list(parameters)
    if not names:
        return
    name, kind = pick(rng, names), rng.integers(8)
    view = parameters[name]
    new = values(rng, view.shape, module.dtype)
    if kind == 0:
        parameters[name] = new
    elif kind == 1:
        view[...] = new
    elif kind == 2:
        module.flat_parameters[...] *= module.dtype.type(pick(rng, [0.5, -1.0, 1.0]))
    elif kind == 3:
        parameters[name] -= module.dtype.type(0.1) * new
    elif kind == 4:
        module.load_state_dict({**module.state_dict(), name: new})
    elif kind == 5:
        module.load_state_dict({name: new}, strict=False)
    elif kind == 6 and view.size:
        view.reshape(-1)[int(rng.integers(view.size))] = new.reshape(-1)[0]
    elif views:
        old = pick(rng, views)
        old = old[pick(rng, list(old))] if isinstance(old, dict) else old
        with suppress(*REFUSED):
            old *= old.dtype.type(0.5)


@contextmanager
def running(*functions: Callable[[], None]) -> Iterator[None]:
    """Threads beside the block, waited for at its end; their failures are raised."""
    failures: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def await_child(pid: int, limit: float) -> None:
    end = time.monotonic() + 3 * limit
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"a child ended with status {status}"
            return
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("a child of fork hangs")
        time.sleep(0.0005)


def outcome_of_a_storm(function: Callable[..., Any], *args: Any, **arguments: Any) -> None:
    """As `outcome`, of arguments that change meanwhile: a row that was there may be gone."""
    with suppress(*ALLOWED, IndexError):
        function(*args, **arguments)
