"""Recurrent over cells of a user's own: names, states, files, copies, and what is refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import defined_cells
import numpy as np
import pytest
import safetensors.numpy
from support import assert_ran, run_python, states_of
from tolerances import assert_close

import fusedrnn as fr

X = np.random.default_rng(0).normal(size=(6, 3, 4)).astype("float32")


def three_states(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    """Two gates with a product of h, another state as the output, and both kinds of initial values."""
    slow = p.rate * s.slow + (1 - p.rate) * fr.sym.tanh(x.a + h.a)
    fast = fr.sym.sin(p.speed * s.fast + x.b + 0.5 * h.b)
    return {"slow": slow, "fast": fast, "out": slow * fast + 0.1 * s.out}


CELL = fr.define_cell(
    "slow and fast",
    {"a": 0.5, "b": (-1, 1)},
    "slow fast out",
    three_states,
    parameters={"rate": 0.9, "speed": (1, 2)},
    hidden="out",
)


def network(**options: Any) -> Any:
    return fr.Recurrent(CELL, 4, 5, **{"num_layers": 2, "bidirectional": True, "seed": 3, **options})


def everything(module: Any, x: Any = X) -> list[Any]:
    """Outputs, states and gradients of a call, with gradients of all that comes out."""
    module.zero_grad()
    y, state, tape = module.forward(x)
    dx, dstate = module.backward(tape, y.copy(), state)
    return [y, *states_of(state), dx, *states_of(dstate), module.flat_grads.copy()]


def assert_equal(got: list[Any], want: list[Any]) -> None:
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.once
def test_names_shapes_and_initial_values() -> None:
    module = network()
    assert module.cell is CELL
    assert repr(module) == "Recurrent(slow and fast, 4, 5, num_layers=2, bidirectional=True)"
    shapes = {name: array.shape for name, array in module.parameters.items()}
    first = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "rate_l0", "speed_l0"]
    assert list(shapes)[:7] == [*first, "weight_ih_l0_reverse"]
    assert [shapes[name] for name in first] == [(10, 4), (10, 5), (10,), (10,), (5,), (5,)]
    assert shapes["weight_ih_l1"] == (10, 10) and "speed_l1_reverse" in shapes
    bias, speed = module.parameters["bias_ih_l1"], module.parameters["speed_l1"]
    assert bias[:5].tolist() == [0.5] * 5 and len(set(np.abs(bias[5:]))) == 5 and np.abs(bias).max() <= 1
    assert not module.parameters["bias_hh_l1"].any()
    assert np.all((speed >= 1) & (speed <= 2)) and np.allclose(module.parameters["rate_l0"], 0.9)
    without = network(bias=False, seed=None)
    assert not [name for name in without.parameters if "bias" in name]
    assert network().state_dict()["speed_l0"].tolist() == network().state_dict()["speed_l0"].tolist()


def test_states_are_in_the_cells_order() -> None:
    """The state that the output sees comes first, and all of them go in and out as a tuple."""
    assert CELL.states == ("out", "slow", "fast")
    module = network(bidirectional=False, num_layers=1)
    y, (out, slow, fast), _ = module.forward(X)
    assert np.array_equal(out[0], y[-1]) and slow.shape == fast.shape == (1, 3, 5)
    _, first = module(X[:2])
    again, last = module(X[2:], first)
    assert_close(again, y[2:], "output")
    for got, want in zip(last, (out, slow, fast), strict=True):
        assert_close(got, want, "state")
    with pytest.raises(ValueError, match=r"state: expected 3 array\(s\) \(out, slow, fast\), got 2"):
        module(X, (out, slow))
    with pytest.raises(TypeError, match=r"state: expected a tuple \(out, slow, fast\), got ndarray"):
        module(X, out)
    with pytest.raises(ValueError, match=r"state\[1\]: expected shape"):
        module(X, (out, slow[..., :3], fast))


@pytest.mark.parametrize("by_name", [True, False])
def test_functional_is_the_same(by_name: bool) -> None:
    module = network(bidirectional=False, num_layers=1)
    params = {
        name.removesuffix("_l0"): array for name, array in module.state_dict().items() if name != "cell"
    }
    wanted = everything(module)
    for cell in (CELL, CELL.spec):
        given: Any = dict(reversed(params.items()))
        if not by_name:
            given = [params.get(name) for name in CELL.spec.parameter_names]
        y, state, tape = fr.functional.forward(cell, X, given)
        grads = fr.functional.backward(tape, y.copy(), state)
        named = grads.params if by_name else dict(zip(CELL.spec.parameter_names, grads.params, strict=True))
        flat = np.concatenate([named[name].reshape(-1) for name in params])
        states = [part[0] for part in (*wanted[1:4], *wanted[5:8])]
        assert_equal([y, *state, *grads.state], [wanted[0], *states])
        assert_equal([grads.x, flat], [wanted[4], wanted[8]])
        assert repr(tape).startswith("FunctionalTape(slow and fast, seq_len=6")


@pytest.mark.once
def test_compiled_cells_by_name() -> None:
    for name, want in (("lstm", fr.LSTM(4, 5, 2, seed=1)), ("rnn_relu", fr.RNN(4, 5, 2, "relu", seed=1))):
        got = fr.Recurrent(name, 4, 5, 2, seed=1)
        assert_equal(everything(got), everything(want))
        assert got.cell == name and "cell" not in got.state_dict()
        assert repr(got) == f"Recurrent({name!r}, 4, 5, num_layers=2)"
    assert fr.Recurrent("lstm", 4, 5, proj_size=2)(X)[0].shape == (6, 3, 2)
    assert fr.Recurrent(fr.CELLS["gru"], 4, 5, init=None)(X)[0].shape == (6, 3, 5)


def test_copies_and_conversions() -> None:
    module = network()
    want = everything(module)
    assert_equal(everything(copy.deepcopy(module)), want)
    assert_equal(everything(pickle.loads(pickle.dumps(module))), want)
    for got, like in zip(everything(module.astype("float64"), X.astype("float64")), want, strict=True):
        assert got.dtype == np.float64
        assert_close(got, like, "gradient", dtype="float32")
    model = fr.Sequential(network(), fr.Linear(10, 2, seed=0))
    assert np.array_equal(copy.deepcopy(model)(X), model(X))
    assert "0.cell" in model.state_dict() and "0.speed_l1" in model.parameters


@pytest.mark.once
def test_a_pickle_needs_no_function_of_the_users(tmp_path: Path) -> None:
    """A process that has never seen the step computes the same bits."""
    (tmp_path / "net.pickle").write_bytes(pickle.dumps(network()))
    assert b"three_states" not in (tmp_path / "net.pickle").read_bytes()
    np.save(tmp_path / "x.npy", X)
    script = (
        "import sys, pickle, numpy as np\n"
        "net = pickle.load(open(sys.argv[1] + '/net.pickle', 'rb'))\n"
        "np.save(sys.argv[1] + '/y.npy', net(np.load(sys.argv[1] + '/x.npy'))[0])\n"
        "print(net, net.cell.parameters)\n"
    )
    done = run_python("-c", script, str(tmp_path))
    assert_ran(done)
    assert "Recurrent(slow and fast, 4, 5" in done.stdout and "('rate', 'speed')" in done.stdout
    assert np.array_equal(np.load(tmp_path / "y.npy"), network()(X)[0])


@pytest.mark.once
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_files_have_the_cell(kind: str, tmp_path: Path) -> None:
    module, path = network(), tmp_path / f"model.{kind}"
    if kind == "npz":
        np.savez(path, **module.state_dict())
        state = dict(np.load(path, allow_pickle=False))
    else:
        safetensors.numpy.save_file(module.state_dict(), path)
        state = safetensors.numpy.load_file(path)
    cell = fr.cell_from_json(state["cell"])
    assert (cell.name, cell.states, cell.initial) == (CELL.name, CELL.states, CELL.initial)
    again = fr.Recurrent(cell, 4, 5, 2, bidirectional=True, init=None)
    again.load_state_dict(state)
    assert_equal(everything(again), everything(module))


@pytest.mark.once
def test_loading_weights_of_another_cell() -> None:
    model = fr.Sequential(network())
    state = model.state_dict()
    other = fr.define_cell(
        "slow and fast",
        "a b",
        "slow fast out",
        lambda x, h, s, p: {**three_states(x, h, s, p), "slow": s.slow * p.rate},
        parameters="rate speed",
        hidden="out",
    )
    wrong = fr.Recurrent(other, 4, 5, 2, bidirectional=True)
    before = model.flat_parameters.copy()
    with pytest.raises(
        ValueError, match=r"0\.cell: expected <cell 'slow and fast': .*got another one, <cell"
    ):
        model.load_state_dict({f"0.{name}": value for name, value in wrong.state_dict().items()})
    for damage in (np.zeros(3), np.frombuffer(b"{}", np.uint8), "{", state["0.cell"][:-1]):
        with pytest.raises((TypeError, ValueError), match=r"0\.cell: expected"):
            model.load_state_dict({**state, "0.cell": damage})
    assert np.array_equal(model.flat_parameters, before)
    renamed = fr.define_cell(
        "else", "a b", "slow fast out", three_states, parameters="rate speed", hidden="out"
    )
    model.load_state_dict({**state, "0.cell": fr.cell_to_json(renamed)})
    del state["0.cell"]
    assert model.load_state_dict(state) == ([], [])


@pytest.mark.once
def test_equal_cells_are_one_to_the_kernels() -> None:
    again = fr.define_cell(CELL.name, "a b", CELL.states, three_states, parameters="rate speed", hidden="out")
    assert again.spec.name == CELL.spec.name and again.digest == CELL.digest
    assert copy.deepcopy(CELL) is CELL and copy.copy(CELL) is CELL
    loaded = pickle.loads(pickle.dumps(CELL.spec))
    assert loaded == CELL.spec and loaded.definition.initial == CELL.initial
    assert pickle.loads(pickle.dumps(fr.CELLS["gru"])) == fr.CELLS["gru"]


def test_training_uses_the_parameters_of_units() -> None:
    module = network(num_layers=1, bidirectional=False)
    optimizer = fr.optim.Adam(module, lr=0.02)
    target = np.sin(np.arange(6 * 3 * 5)).reshape(6, 3, 5).astype("float32") * 0.5
    before = module.state_dict()
    losses = []
    for _ in range(60):
        y, _, tape = module.forward(X)
        loss, dy = fr.mse_loss(y, target)
        module.backward(tape, dy)
        optimizer.step()
        module.zero_grad()
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]
    after = module.state_dict()
    assert all(not np.array_equal(before[name], after[name]) for name in after if name != "cell")


def test_sequences_with_holes_and_tables() -> None:
    """mask and Lookup go their ways for any cell."""
    module = network()
    mask = np.array([[True, False, True]] * 6)
    mask[3] = False
    y, _ = module(X, mask=mask)
    keep = [0, 1, 2, 4, 5]
    assert np.array_equal(y[keep][:, [0, 2]], module(X[keep][:, [0, 2]])[0]) and not y[3].any()
    embedding = fr.Embedding(7, 4, seed=0)
    tokens = np.arange(30).reshape(10, 3) % 7
    want = everything(module, embedding(tokens))
    module.zero_grad()
    y, state, tape = module.forward(embedding.lookup(tokens))
    _, dstate = module.backward(tape, y.copy(), state)
    assert np.array_equal(y, want[0])
    for got, like in zip((*dstate, module.flat_grads), want[5:], strict=True):
        assert_close(got, like, "gradient")


@pytest.mark.once
def test_what_runs_on_compiled_cells_alone() -> None:
    with pytest.raises(ValueError, match=r"quantize: expected a compiled cell, lstm, .*got slow and fast"):
        network().quantize("int8")


ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "kind": (lambda: fr.Recurrent(3, 4, 5), TypeError, "cell: expected a name, a CellSpec or what .*got int"),
    "function": (
        lambda: fr.Recurrent(three_states, 4, 5),
        TypeError,
        "what define_cell returns, got function",
    ),
    "name": (lambda: fr.Recurrent("elman", 4, 5), ValueError, "cell: expected one of lstm, .*got 'elman'"),
    "key": (lambda: fr.Recurrent(CELL.spec.name, 4, 5), ValueError, "cell: expected one of lstm"),
    "forged": (lambda: fr.Recurrent(replace(CELL.spec, gates=3), 4, 5), ValueError, "cell: expected one of"),
    "proj_size": (
        lambda: fr.Recurrent(CELL, 4, 5, proj_size=2),
        ValueError,
        "proj_size: expected 0, since slow",
    ),
    "gru": (
        lambda: fr.Recurrent("gru", 4, 5, proj_size=2),
        ValueError,
        "proj_size: expected 0, since gru has",
    ),
    "forget_bias": (
        lambda: fr.Recurrent(CELL, 4, 5, forget_bias=1.0),
        ValueError,
        "forget_bias: expected None, since slow and fast has no gate f, got 1.0",
    ),
    "functional": (
        lambda: fr.functional.forward(CELL, X, {"weight_ih": X[0]}),
        ValueError,
        "params: expected the names weight_ih, .*missing: .*rate, speed",
    ),
    "json": (
        lambda: fr.cell_to_json(CELL.spec),
        TypeError,
        "cell: expected what define_cell returns, got CellSpec",
    ),
    "text": (lambda: fr.cell_from_json(3), TypeError, "cell: expected a str of JSON or its bytes, got int"),
    "floats": (
        lambda: fr.cell_from_json(np.zeros(3)),
        TypeError,
        "cell: expected a str of JSON or its bytes",
    ),
}


@pytest.mark.once
@pytest.mark.parametrize("kind", ERRORS)
def test_errors(kind: str) -> None:
    call, error, message = ERRORS[kind]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_compiled_cells_written_as_data(name: str) -> None:
    """The same outputs, states and gradients, layer upon layer."""
    sizes: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": "float64"}
    compiled = fr.Recurrent(name, 4, 18, seed=1, **sizes)
    written = fr.Recurrent(defined_cells.CELLS[name], 4, 18, init=None, **sizes)
    written.flat_parameters[...] = compiled.flat_parameters
    x = X.astype("float64")
    for got, want in zip(everything(written, x), everything(compiled, x), strict=True):
        assert np.abs(got - want).max() <= 1e-13 * np.abs(want).max()
