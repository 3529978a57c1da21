"""Views of the parameters that others hold: calls look at the weights while there are any, and no longer."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import fusedrnn as fr

pytestmark = pytest.mark.once

X = np.random.default_rng(0).normal(size=(3, 2, 4)).astype("float32")


def network() -> Any:
    return fr.LSTM(4, 8, seed=0, init="torch")


def version(module: Any) -> int | None:
    """None while every call has to look at the weights."""
    return module._buffers.values.version  # type: ignore[no-any-return]


def fresh(module: Any) -> Any:
    """The output of a copy, which has packed nothing yet."""
    return copy.deepcopy(module)(X)[0]


def bias(module: Any) -> Any:
    return module.parameters["bias_ih_l0"]


HOLDS: dict[str, Callable[[Any], Any]] = {
    "dictionary": lambda m: m.parameters,
    "its items": lambda m: m.parameters.items(),
    "its values": lambda m: list(m.parameters.values())[-1],
    "one array": bias,
    "flat": lambda m: m.flat_parameters,
    "a part": lambda m: m.flat_parameters[3:],
    "a part of a part": lambda m: m.flat_parameters[3:][::2][1:],
    "reshaped": lambda m: bias(m).reshape(4, 8).T,
    "a type": lambda m: bias(m).view(np.uint32),
    "a subclass": lambda m: bias(m).view(np.recarray),
    "strided": lambda m: as_strided(bias(m), (2, 2), (4, 4)),
    "windows": lambda m: sliding_window_view(bias(m), 3, writeable=True),
    "memory": lambda m: memoryview(bias(m)),
    "data": lambda m: bias(m).data,
    "bytes": lambda m: memoryview(bias(m)).cast("B")[8:],
    "frombuffer": lambda m: np.frombuffer(bias(m), np.int32)[1:],
    "flatiter": lambda m: bias(m).flat,
    "nditer": lambda m: np.nditer([bias(m)], op_flags=[["readwrite"]]),
    "ctypes": lambda m: bias(m).ctypes,
    "dlpack": lambda m: np.from_dlpack(bias(m))[1:],
    "capsule": lambda m: bias(m).__dlpack__(),
    "object": lambda m: np.array([bias(m), None], object),
}


@pytest.mark.parametrize("name", HOLDS)
def test_the_last_view_ends_it(name: str) -> None:
    """Whatever still reaches the memory counts; afterwards no call has to read all weights."""
    module = network()
    before = version(module)
    assert before is not None
    held = HOLDS[name](module)
    gc.collect()
    assert version(module) is None
    module(X)
    assert version(module) is None
    del held
    after = version(module)
    assert after is not None and after > before


WRITES: dict[str, Callable[[Any], None]] = {
    "in a row": lambda m: m.parameters["weight_hh_l0"][0].fill(0.5),
    "by name": lambda m: m.parameters.__setitem__("weight_hh_l0", 0.5),
    "to all": lambda m: m.flat_parameters.fill(0.5),
    "to a part": lambda m: m.flat_parameters[5:].__setitem__(slice(None, None, 2), 0.5),
    "by memory": lambda m: memoryview(m.parameters["bias_ih_l0"]).__setitem__(0, 0.5),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("layers", [1, 2])
def test_no_write_is_missed(layers: int, write: str) -> None:
    """Through views that are gone at once, before and after calls and the library's own writes."""
    module = fr.LSTM(4, 8, layers, seed=0, init="torch")
    optimiser = fr.optim.SGD(module, lr=0.01)
    for turn in range(4):
        before = module(X)[0]
        WRITES[write](module)
        assert not np.array_equal(module(X)[0], before)
        assert np.array_equal(module(X)[0], fresh(module))
        module.flat_grads[:] = turn + 1
        optimiser.step()
        assert np.array_equal(module(X)[0], fresh(module))
        module.flat_parameters[:] = np.arange(module.num_parameters) % 7 / (turn + 7)


def test_a_view_that_lives_on_writes_at_any_time() -> None:
    module, held = network(), []
    module(X)
    held.append(module.parameters["weight_hh_l0"][:, 2])
    for value in (0.1, 0.2, 0.3):
        held[0][:] = value
        assert np.array_equal(module(X)[0], fresh(module))
        module.load_state_dict(module.state_dict())  # a write of the library's own in between
        held[0][:] = -value
        assert np.array_equal(module(X)[0], fresh(module))
    held.append(module.flat_parameters[2:])
    del held[0]
    assert version(module) is None
    held[0][:] = 0.25
    assert np.array_equal(module(X)[0], fresh(module))


def test_the_library_itself_hands_nothing_out() -> None:
    module = network()
    before = version(module)
    state = module.state_dict()
    assert module.num_parameters and module.grads and module.dtype and repr(module)
    y, _, tape = module.forward(X)
    module.backward(tape, y)
    fr.clip_grad_norm(module, 1.0)
    assert version(module) == before and np.array_equal(
        state["bias_ih_l0"], module.state_dict()["bias_ih_l0"]
    )


def test_the_dictionary_is_one_object_while_it_is_held() -> None:
    net = fr.Sequential(fr.Linear(4, 3, seed=0))
    held = net.parameters
    assert net.parameters is held
    net.append(fr.Linear(3, 2, seed=1))
    assert net.parameters is held and list(held) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    held["1.bias"] = 3.0
    assert net.state_dict()["1.bias"].tolist() == [3.0, 3.0]


def test_a_module_without_parameters() -> None:
    module = fr.Dropout(0.5, seed=0)
    assert dict(module.parameters) == {} and module.flat_parameters.size == 0
    assert version(module) is not None


def test_threads_that_take_and_drop_views() -> None:
    """Reading parameters changes nothing for calls, and all writes of a thread are seen by its calls."""
    module, stop, failed = network(), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            total = sum(float(array[0].sum()) for array in module.parameters.values())
            if not np.isfinite(total):
                failed.append(total)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(300):
            module.parameters["weight_hh_l0"][...] = turn / 300.0
            if not np.array_equal(module(X)[0], fresh(module)):
                failed.append(turn)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert version(module) is not None
