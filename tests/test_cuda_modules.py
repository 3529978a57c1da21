"""Recurrent modules on a GPU against the same on the CPU.

In the emulated build the parameters are NumPy arrays, or those of fake_cupy, which are as strict as CuPy's.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import fake_cupy
import numpy as np
import pytest
from cuda_support import assert_same, host, needs_emulator, own_or, same_library
from support import MODULE_CELLS, make_module, random_lengths, states_of

import fusedrnn as fr

LIBRARIES = ["own", "torch", "jax", "other"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_library_comes_in_and_goes_out(name: str, where: str) -> None:
    convert = own_or(where, name)
    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": "float32"}
    plain, moved = (
        make_module("lstm_proj", 4, 6, **options),
        make_module("lstm_proj", 4, 6, **options).to("cuda"),
    )
    x = rng.normal(size=(5, 3, 4)).astype(np.float32)
    y, state, tape = plain.forward(x)
    got_y, got_state, got_tape = moved.forward(convert(x))
    assert_same(got_y, y)
    assert_same(got_state, state)
    given = convert(x)
    for result in (got_y, *got_state):
        if name != "other":
            assert same_library(result, given)
    dy = rng.normal(size=y.shape).astype(np.float32)
    dstate = tuple(rng.normal(size=part.shape).astype(np.float32) for part in state)
    dx, dstart = plain.backward(tape, dy, dstate)
    got_dx, got_dstart = moved.backward(got_tape, convert(dy), convert(dstate))
    assert_same(got_dx, dx, "gradient")
    assert_same(got_dstart, dstart, "gradient")
    assert_same(host(moved.flat_grads), plain.flat_grads, "gradient")
    dx, dstart = plain.backward(tape, None, (None, dstate[1]), need_dx=False)
    got_dx, got_dstart = moved.backward(got_tape, None, (None, convert(dstate[1])), need_dx=False)
    assert got_dx is None
    assert_same(got_dstart, dstart, "gradient")
    assert_same(moved(given)[0], plain(x)[0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_random_networks(cell: str, seed: int, where: str) -> None:
    rng = np.random.default_rng([seed, MODULE_CELLS.index(cell)])
    dtype = ("float32", "float64")[seed % 2]
    inputs, hidden, layers = int(rng.integers(1, 6)), int(rng.integers(2, 10)), int(rng.integers(1, 4))
    seq_len, batch = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    options = {
        "bidirectional": bool(rng.integers(2)),
        "batch_first": bool(rng.integers(2)),
        "bias": bool(rng.integers(3)),
        "dropout": 0.4 if layers > 1 else 0.0,
        "dtype": dtype,
    }
    plain = make_module(cell, inputs, hidden, layers, **options)
    moved = make_module(cell, inputs, hidden, layers, **options).to("cuda")
    convert = own_or(where, "torch" if seed == 0 else "own")
    lead = (batch, seq_len) if options["batch_first"] else (seq_len, batch)
    x = rng.normal(size=(*lead, inputs)).astype(dtype)
    lengths = random_lengths(rng, seq_len, batch) if rng.integers(2) else None
    resets = rng.random(lead) < 0.3 if rng.integers(2) else None
    y, state, _ = plain.forward(x)
    widths = [part.shape[-1] for part in states_of(state)]
    rows = states_of(state)[0].shape[0]
    start = tuple(rng.normal(size=(rows, batch, width)).astype(dtype) for width in widths)
    replaced = None
    if resets is not None and rng.integers(2):
        replaced = tuple(rng.normal(size=(rows, width)).astype(dtype) for width in widths)
    plain.load_random_state({"": (7, 0)})
    moved.load_random_state({"": (7, 0)})
    y, state, tape = plain.forward(x, start, lengths, resets, replaced)
    got_y, got_state, got_tape = moved.forward(
        convert(x), convert(start), lengths, convert(resets), convert(replaced)
    )
    assert_same(got_y, y)
    assert_same(states_of(got_state), states_of(state))
    dy = rng.normal(size=y.shape).astype(dtype)
    dx, dstart = plain.backward(tape, dy, start)
    got_dx, got_dstart = moved.backward(got_tape, convert(dy), convert(start))
    assert_same(got_dx, dx, "gradient")
    assert_same(states_of(got_dstart), states_of(dstart), "gradient")
    for name, grad in plain.grads.items():
        assert_same(moved.grads[name], grad, "gradient")


@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_recomputed_gates(cell: str, where: str) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "recompute": True}
    plain, moved = (make_module(cell, 3, 5, **options) for _ in range(2))
    moved.to("cuda")
    convert = own_or(where, "own")
    x = np.random.default_rng(0).normal(size=(4, 3, 3)).astype(plain.dtype)
    y, _, tape = plain.forward(x, lengths=[4, 0, 2])
    got_y, _, got_tape = moved.forward(convert(x), lengths=[4, 0, 2])
    assert_same(got_y, y)
    assert_same(moved.backward(got_tape, convert(y)), plain.backward(tape, y), "gradient")
    assert_same(host(moved.flat_grads), plain.flat_grads, "gradient")
    moved.recompute = False
    assert got_tape.nbytes < moved.forward(convert(x), lengths=[4, 0, 2])[2].nbytes


def test_one_sequence_without_a_batch(where: str) -> None:
    convert = own_or(where, "own")
    plain, moved = make_module("gru", 3, 5), make_module("gru", 3, 5).to("cuda")
    x = np.random.default_rng(0).normal(size=(4, 3))
    y, state, tape = plain.forward(x)
    got_y, got_state, got_tape = moved.forward(convert(x))
    assert_same(got_y, y)
    assert_same(got_state, state)
    assert_same(moved.backward(got_tape, convert(y)), plain.backward(tape, y), "gradient")


@pytest.mark.parametrize("rows", [5, 60])
@pytest.mark.parametrize("layout", ["time", "batch_first", "single"])
@pytest.mark.parametrize("name", ["own", "torch"])
def test_lookups(name: str, layout: str, rows: int, where: str) -> None:
    convert = own_or(where, name)
    rng = np.random.default_rng(0)
    shape = {"time": (6, 4), "batch_first": (4, 6), "single": (6,)}[layout]
    indices = rng.integers(0, 5, shape)
    options = {"batch_first": layout == "batch_first", "bidirectional": True, "num_layers": 2}
    results = []
    for device in ("cpu", "cuda"):
        embedding = fr.Embedding(rows, 3, padding_idx=2, dtype="float64", seed=1).to(device)
        network = make_module("gru", 3, 5, **options).to(device)
        here = convert if device == "cuda" else np.asarray
        lookup = embedding.lookup(here(indices))
        y, state, tape = network.forward(lookup)
        assert_same(network(lookup)[0], host(y))
        dx, dstate = network.backward(tape, here(np.ones(y.shape)))
        embedding.backward(lookup, dx)
        results.append([y, state, dstate, dx, network.flat_grads, embedding.flat_grads])
    for got, want in zip(results[1], results[0], strict=True):
        assert_same(got, want, "gradient")


def test_tables_of_other_arrays(where: str) -> None:
    rng = np.random.default_rng(0)
    table, indices = rng.normal(size=(60, 3)), rng.integers(0, 60, (4, 2))
    plain, moved = make_module("lstm", 3, 5), make_module("lstm", 3, 5).to("cuda")
    y, _, tape = plain.forward(fr.Lookup(table, indices))
    convert = own_or(where, "torch")
    lookup = fr.Lookup(convert(table), indices)
    got_y, _, got_tape = moved.forward(lookup)
    assert_same(got_y, y)
    assert same_library(got_y, lookup.table)
    assert_same(moved.backward(got_tape, convert(y)), plain.backward(tape, y), "gradient")
    np.testing.assert_array_equal(lookup.rows(), table[indices])
    with pytest.raises(
        RuntimeError, match=r"x: expected a numpy.ndarray as the parameters, which are on cpu"
    ):
        plain(lookup)
    if where != "numpy":
        with pytest.raises(TypeError, match=r"x: expected a cupy.ndarray of float64, got ndarray"):
            moved(fr.Lookup(table, indices))


def test_moving_there_and_back(where: str) -> None:
    module = make_module("lstm", 3, 4, 2)
    before = module.state_dict()
    module.flat_grads[...] = np.arange(module.num_parameters)
    assert module.device == "cpu"
    assert module.to("cuda") is module and module.to("cuda:0") is module
    assert module.device == "cuda:0"
    assert all(type(value) is np.ndarray for value in module.state_dict().values())
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    np.testing.assert_array_equal(host(module.flat_grads), np.arange(module.num_parameters))
    module.parameters["bias_ih_l0"] = np.full(16, 2.0)
    module.parameters["bias_hh_l0"] = 3.0
    module.parameters["bias_hh_l1"] -= 1.0
    module.parameters["bias_ih_l1"] = module.parameters["bias_hh_l1"]
    with pytest.raises(ValueError, match=r"bias_ih_l0: expected shape \(16,\), got \(3,\)"):
        module.parameters["bias_ih_l0"] = np.zeros(3)
    with pytest.raises(TypeError, match=r"complex|float64"):
        module.parameters["bias_ih_l0"] = np.zeros(16, complex)
    module.to("cpu")
    assert type(module.flat_parameters) is np.ndarray
    np.testing.assert_array_equal(module.parameters["bias_ih_l0"], np.full(16, 2.0))
    np.testing.assert_array_equal(module.parameters["bias_hh_l0"], np.full(16, 3.0))
    np.testing.assert_array_equal(module.parameters["bias_ih_l1"], before["bias_hh_l1"] - 1.0)
    module.load_state_dict(before)
    module.to("cuda").load_state_dict(before)
    np.testing.assert_array_equal(module.state_dict()["weight_ih_l0"], before["weight_ih_l0"])


def test_a_tape_of_another_device_is_refused(where: str) -> None:
    x = np.zeros((2, 2, 3), np.float32)
    own = own_or(where, "own")
    for module in (make_module("lstm", 3, 4, dtype="float32"), make_module("gru", 3, 4, 2, dtype="float32")):
        y, _, tape = module.forward(x)
        module.to("cuda")
        with pytest.raises(
            RuntimeError, match=r"tape: expected one made on cuda:0 as the parameters, got one made on cpu"
        ):
            module.backward(tape, own(y))
        y, _, tape = module.forward(own(x))
        module.backward(tape, y)
        module.to("cpu")
        with pytest.raises(RuntimeError, match=r"tape: expected one made on cpu .*, got one made on cuda:0"):
            module.backward(tape, host(y))
    linear = fr.Linear(3, 2).to("cuda")
    y, linear_tape = linear.forward(own(x))
    with pytest.raises(RuntimeError, match=r"tape: expected one made on cpu .*, got one made on cuda:0"):
        linear.to("cpu").backward(linear_tape, host(y))


def test_copies_stay_on_their_device(where: str) -> None:
    module = make_module("gru", 3, 4).to("cuda")
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.device == "cuda:0"
        assert_same(host(other.flat_parameters), host(module.flat_parameters))
        assert other.flat_parameters is not module.flat_parameters


def test_trees_move_as_a_whole(where: str) -> None:
    class Net(fr.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = fr.Linear(2, 3, seed=1)
            self.second = fr.Linear(3, 2, seed=1)

    net = Net().to("cuda")
    assert net.first.device == net.second.device == "cuda:0"
    net.second.to("cpu")
    with pytest.raises(
        RuntimeError, match=r"second: expected a module on cuda:0 as the others, got one on cpu"
    ):
        net.flat_parameters  # noqa: B018
    net.first.to("cpu")
    net.to("cpu")
    assert net.flat_parameters.size == 17


def test_refused_moves_and_calls(where: str) -> None:
    module = make_module("lstm", 3, 4, dtype="float32")
    for device, kind, text in (
        (3, TypeError, "device: expected a string, got int"),
        ("gpu", ValueError, "device: expected 'cpu', 'cuda' or 'cuda:N', got 'gpu'"),
        ("cuda:x", ValueError, "device"),
        ("cuda:", ValueError, "device"),
        ("cuda:-1", ValueError, "device"),
    ):
        with pytest.raises(kind, match=text):
            module.to(device)
    torch = own_or(where, "torch")
    x = torch(np.zeros((2, 2, 3), np.float32))
    with pytest.raises(
        RuntimeError, match=r"x: expected a numpy.ndarray as the parameters, which are on cpu"
    ):
        module(x)
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray"):
        fr.Linear(3, 2)(x)
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray"):
        fr.LSTMCell(3, 2)([1.0])
    module.to("cuda")
    with pytest.raises(TypeError, match=r"x: expected a .*\.ndarray of float32, got list"):
        module([[[1.0]]])
    with pytest.raises(TypeError, match=r"float32"):
        module(torch(np.zeros((2, 2, 3))))
    with pytest.raises(TypeError, match=r"state"):
        module(x, (torch(np.zeros((1, 2, 4))), torch(np.zeros((1, 2, 4)))))
    for what in (module.stream, lambda: module.quantize("bf16")):
        with pytest.raises(RuntimeError, match=r"expected a LSTM on cpu, got one on cuda:0"):
            what()


def test_small_arrays_come_in_any_order(where: str) -> None:
    own = own_or(where, "own")
    plain, moved = make_module("lstm", 3, 4), make_module("lstm", 3, 4).to("cuda")
    rng = np.random.default_rng(0)
    x, state, replaced, dstate = (rng.normal(size=(n, 5, w)) for n, w in ((6, 3), *((2, 4),) * 3))
    resets = rng.random((6, 5)) < 0.3

    def turned(array: Any) -> Any:
        return own(np.asfortranarray(array))

    y, _, tape = plain.forward(x, tuple(state[:, None]), None, resets, tuple(replaced[:, None]))
    parts = [tuple(map(turned, both[:, None])) for both in (state, replaced, dstate)]
    got_y, _, got_tape = moved.forward(own(x), parts[0], None, turned(resets), parts[1])
    assert_same(got_y, y)
    want = plain.backward(tape, None, tuple(dstate[:, None]))
    assert_same(moved.backward(got_tape, None, parts[2]), want, "gradient")


def test_a_networks_own_arrays_alone(where: str) -> None:
    if where == "numpy":
        pytest.skip("parameters held by NumPy: no other library's array to refuse")
    module = make_module("lstm", 3, 4, dtype="float32").to("cuda")
    x = np.zeros((2, 2, 3), np.float32)
    with pytest.raises(TypeError, match=r"x: expected a cupy.ndarray of float32, got ndarray"):
        module(x)
    with pytest.raises(TypeError, match=r"dy: expected a cupy.ndarray, got list"):
        module.backward(module.forward(own_or(where, "own")(x))[2], [[1.0]])
    linear = fr.Linear(3, 2).to("cuda")
    with pytest.raises(TypeError, match=r"x: expected dtype float32 as weight, got float64"):
        linear(own_or(where, "own")(x.astype(np.float64)))


@needs_emulator
def test_the_callers_stream_is_cupys(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from fusedrnn.cuda import backend

    with fake_cupy.installed(monkeypatch):
        module = make_module("lstm", 3, 4, dtype="float32").to("cuda")
        x = torch.zeros(2, 2, 3)
        fake_cupy.streams.clear()
        module(x)
        assert fake_cupy.streams == [0]
        found = backend.library_of(x)._replace(stream=99)
        monkeypatch.setattr(backend, "library_of", lambda example: found)
        module(x)
        assert fake_cupy.streams == [0, 99]
        monkeypatch.setattr(backend, "library_of", lambda example: found._replace(device=1))
        with pytest.raises(
            RuntimeError, match=r"x: expected an array on cuda:0 as the parameters, got cuda:1"
        ):
            module(x)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_backward_adds_nothing(
    error: type[BaseException], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gru = fr.GRU(3, 4, 3, bidirectional=True, seed=0).to("cuda")
    x = own_or(where, "own")(np.ones((5, 2, 3), np.float32))
    y, _, tape = gru.forward(x)
    gru.backward(tape, y)
    before = host(gru.flat_grads).copy()
    kernels = type(gru._backend.kernels)
    stages = kernels.run_calls

    for last in range(3):
        left = [last]

        def run(self: Any, calls: Any, left: list[int] = left) -> Any:
            if not left[0]:
                raise error
            left[0] -= 1
            return stages(self, calls)

        with monkeypatch.context() as patch:
            patch.setattr(kernels, "run_calls", run)
            with pytest.raises(error):
                gru.backward(tape, y)
        assert np.array_equal(host(gru.flat_grads), before)
