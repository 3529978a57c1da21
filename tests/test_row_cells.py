"""Cells whose step works on whole rows: layer normalisation, and a reset gate before the product."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import row_cells
from row_cells import CELLS, OWN
from support import assert_same_again, assert_streams, bare, random_lengths, states_of
from tolerances import assert_close

import fusedrnn as fr
from fusedrnn import sym

SIZES = [(1, 1, 2, 1), (4, 3, 2, 3), (5, 7, 4, 17), (3, 40, 3, 33)]


def random_network(name: str, inputs: int, hidden: int, **options: Any) -> Any:
    module = CELLS[name].make(input_size=inputs, hidden_size=hidden, init=None, **options)
    rng = np.random.default_rng([inputs, hidden, 7])
    # Small enough that no gradient explodes: there float32 and differences have lost their digits.
    module.flat_parameters[...] = rng.normal(size=module.flat_parameters.size) * min(0.4, hidden**-0.5)
    return module


def layers_of(module: Any) -> list[dict[str, Any]]:
    """{name: array} of each layer and direction, the network's own arrays."""
    layers = []
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            end = f"_l{layer}{suffix}"
            names = [name for name in module.parameters if name.endswith(end)]
            layers.append({name[: -len(end)]: module.parameters[name] for name in names})
    return layers


class Problem:
    """A call of a network, and the scalar that its gradients are those of."""

    def __init__(self, name: str, sizes: tuple[int, int, int, int], options: dict[str, Any]) -> None:
        seq_len, batch, inputs, hidden = sizes
        made = {key: options[key] for key in ("bidirectional", "num_layers", "bias") if key in options}
        self.cell = CELLS[name]
        self.module = random_network(name, inputs, hidden, dtype="float64", **made)
        rng = np.random.default_rng([*sizes, 3])
        self.directions = 1 + self.module.bidirectional
        rows = self.module.num_layers * self.directions
        self.x = rng.normal(size=(seq_len, batch, inputs))
        self.dy = rng.normal(size=(seq_len, batch, hidden * self.directions))
        self.state, self.dstate, self.reset = (
            [rng.normal(size=(rows, batch, hidden)) for _ in range(self.cell.states)] for _ in range(3)
        )
        self.lengths, self.resets = np.full(batch, seq_len), np.zeros((seq_len, batch), bool)
        self.call: dict[str, Any] = {"state": bare(tuple(self.state))}
        if options.get("cut"):
            self.lengths = random_lengths(rng, seq_len, batch)
            self.resets = rng.random((seq_len, batch)) < 0.3
            self.call |= {"lengths": self.lengths, "resets": self.resets}
            self.call["reset_state"] = bare(tuple(self.reset))
        self.rng = rng

    def reference(self) -> tuple[Any, list[Any]]:
        return row_cells.run_network(
            self.cell.step,
            layers_of(self.module),
            self.directions,
            self.x,
            self.state,
            self.lengths,
            self.resets,
            self.reset,
        )

    def value(self) -> float:
        y, final = self.reference()
        return float(
            (y * self.dy).sum() + sum((a * b).sum() for a, b in zip(final, self.dstate, strict=True))
        )

    def slope(self, array: Any, direction: Any, step: float = 2e-6) -> float:
        """The derivative of value() where `array` moves in a direction, by the five-point formula."""
        start, values = array.copy(), []
        for k in (-2, -1, 1, 2):
            array[...] = start + k * step * direction
            values.append(self.value())
        array[...] = start
        return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


EVERYTHING = {"bidirectional": True, "num_layers": 2, "cut": True}
CASES: dict[str, tuple[tuple[int, int, int, int], dict[str, Any]]] = {
    "one": ((1, 1, 2, 1), {}),
    "few": ((4, 3, 2, 3), {}),
    "everything": ((4, 7, 4, 17), EVERYTHING),
    "many_rows": ((2, 40, 3, 33), {"cut": True}),
    "no_bias": ((3, 5, 2, 9), {"bias": False, "bidirectional": True}),
}


@pytest.mark.parametrize(("sizes", "options"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("name", CELLS)
def test_against_the_reference(name: str, sizes: tuple[int, int, int, int], options: dict[str, Any]) -> None:
    """Outputs and states of a reference in NumPy, gradients by differences, and float32 beside float64."""
    problem = Problem(name, sizes, options)
    module = problem.module
    want_y, want_final = problem.reference()
    y, final, tape = module.forward(problem.x, **problem.call)
    assert np.array_equal(module(problem.x, **problem.call)[0], y)
    assert_close(y, want_y, "output", "y")
    for got, want in zip(states_of(final), want_final, strict=True):
        assert_close(got, want, "state", "state")
    dx, dstart = module.backward(tape, problem.dy, bare(tuple(problem.dstate)))

    pairs = [(problem.x, dx), *zip(problem.state, states_of(dstart), strict=True)]
    pairs += [(array, module.grads[each]) for each, array in module.parameters.items()]
    found, wanted = [], []
    for array, gradient in pairs:
        direction = problem.rng.normal(size=array.shape)
        found.append((gradient * direction).sum())
        wanted.append(problem.slope(array, direction))
    scale = 1 + np.abs(wanted).max()
    if name != "rnn_relu":  # whose slope may change within a step
        assert np.abs(np.subtract(found, wanted)).max() <= 1e-7 * scale

    single = module.astype("float32")
    call = {
        key: bare(tuple(part.astype("float32") for part in states_of(value))) if "state" in key else value
        for key, value in problem.call.items()
    }
    y32, _, tape32 = single.forward(problem.x.astype("float32"), **call)
    assert_close(y32, y, "output", "y")
    dstate = bare(tuple(part.astype("float32") for part in problem.dstate))
    dx32, _ = single.backward(tape32, problem.dy.astype("float32"), dstate)
    if name != "rnn_relu" and sizes[-1] > 3:  # rows of few units may be all but constant
        assert_close(dx32, dx, "gradient", "dx")
        assert_close(single.flat_grads, module.flat_grads, "gradient", "parameters")


@pytest.mark.parametrize("name", CELLS)
def test_recompute_streams_lookups_and_threads(name: str) -> None:
    """Recomputed gradients, looked-up inputs and any number of threads: the same bits."""
    module = random_network(name, 5, 65, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(5)
    for batch in (1, 6):
        table = rng.normal(size=(9, 5)).astype("float32")
        tokens = rng.integers(0, 9, (24, batch))
        x, lengths = table[tokens], rng.integers(1, 25, batch)
        y, state, tape = module.forward(x, lengths=lengths)
        module.zero_grad()
        dx, dstart = module.backward(tape, y.copy(), state)
        want = (dx, dstart, module.flat_grads.copy())
        looked_up = module.forward(fr.Lookup(table, tokens), lengths=lengths)[0]
        assert np.array_equal(looked_up, y)
        for recompute in (False, True):
            module.recompute = recompute
            assert_same_again(module, x, y, state, want, lengths=lengths)
    one = random_network(name, 5, 33)
    y, state = one(x)
    assert_streams(one, x, y, state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_statistics(dtype: str) -> None:
    """Rows of equal values are exactly 0 whatever they are, and a distant mean costs no accuracy."""
    cell = fr.define_cell("normalised", "a", "h", lambda x, h, s, p: {"h": sym.layer_norm(x.a)})
    for hidden in (1, 5, 33):
        rnn = fr.Recurrent(cell, hidden, hidden, dtype=dtype, init=None)
        rnn.parameters["weight_ih_l0"][...] = np.eye(hidden)
        for value in (0.1, -3e4, 1e8):
            y, _ = rnn(np.full((2, 3, hidden), value, dtype))
            assert not y.any()
        x = (1e4 + np.random.default_rng(0).normal(size=(2, 3, hidden))).astype(dtype)
        want = row_cells.normalised(x.reshape(6, hidden).astype("float64")).reshape(x.shape)
        if hidden > 1:
            assert_close(rnn(x)[0], want, "output")
        x[0, 1, 0] = np.nan
        y, _ = rnn(x)
        assert np.isnan(y[0, 1]).all() and np.isfinite(np.delete(y.reshape(6, hidden), 1, axis=0)).all()


@pytest.mark.once
class TestDefinitions:
    def test_text(self) -> None:
        text = str(fr.GRU(1, 1, reset_after=False).cell)
        assert "tanh(x.n + product(h.n, t1 * s.h))" in text.replace("sigmoid(a.r)", "t1")
        assert "a.n: the product with weight_hh of link.0, whose gradient is dlink.0" in text
        text = str(fr.LSTM(1, 1, layer_norm=True).cell)
        assert "layer_norm(x).f" in text and "link.0 = layer_norm(link.0)" in text

    @pytest.mark.parametrize("name", CELLS)
    def test_saved(self, name: str) -> None:
        module = random_network(name, 3, 5)
        definition = module.cell
        again = fr.cell_from_json(fr.cell_to_json(definition))
        assert again.digest == definition.digest and str(again) == str(definition)
        other = pickle.loads(pickle.dumps(module))
        x = np.random.default_rng(0).normal(size=(3, 2, 3)).astype("float32")
        assert np.array_equal(other(x)[0], module(x)[0])

    def test_parameters(self) -> None:
        lstm = fr.LSTM(3, 4, layer_norm=True, seed=0)
        shapes = {name: array.shape for name, array in lstm.parameters.items()}
        assert shapes == {
            "weight_ih_l0": (16, 3),
            "weight_hh_l0": (16, 4),
            "gain_c_l0": (4,),
            "bias_c_l0": (4,),
            "gain_ih_l0": (16,),
            "gain_hh_l0": (16,),
            "bias_ih_l0": (16,),
        }
        assert lstm.parameters["bias_ih_l0"].reshape(4, 4).tolist() == [[0] * 4, [1] * 4, [0] * 4, [0] * 4]
        assert all((lstm.parameters[f"gain_{each}_l0"] == 1).all() for each in ("ih", "hh", "c"))
        for other in (fr.GRU, fr.RNN):
            # Of a cell with one gate, too, whose parameters have one value a unit.
            parameters = other(3, 4, layer_norm=True).parameters
            assert all((parameters[f"gain_{each}_l0"] == 1).all() for each in ("ih", "hh"))
        plain = fr.LSTM(3, 4, layer_norm=True, bias=False)
        assert not any(name.startswith("bias") for name in plain.parameters)
        assert repr(lstm) == "LSTM(3, 4, layer_norm=True)"
        assert repr(fr.GRU(3, 4, reset_after=False)) == "GRU(3, 4, reset_after=False)"
        before, after = fr.GRU(3, 4, reset_after=False, seed=1), fr.GRU(3, 4, seed=1)
        assert list(before.parameters) == list(after.parameters)

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match="layer_norm: expected False with peephole, got True"):
            fr.LSTM(3, 4, layer_norm=True, peephole=True)
        with pytest.raises(ValueError, match="layer_norm: expected False with reset_after=False, got True"):
            fr.GRU(3, 4, layer_norm=True, reset_after=False)
        with pytest.raises(TypeError, match="layer_norm: expected"):
            fr.RNN(3, 4, layer_norm=1)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("gates", "step", "message"),
        [
            ("n r", lambda x, h: sym.product(h.n, h.r) + x.n + x.r, "gates: expected those whose product"),
            (
                "r n",
                lambda x, h: sym.product(h.n, h.r) + h.n + x.n + x.r,
                "step: expected either h.n or a prod",
            ),
            (
                "r n",
                lambda x, h: sym.product(h.n, h.r) + sym.product(h.n, x.r) + x.n,
                "step: expected one prod",
            ),
            ("r n", lambda x, h: sym.product(x.n, h.r), "sym.product: gate: expected h.g of a gate g"),
            ("r", lambda x, h: sym.layer_norm(x.r) + x.r, "step: expected x.r to be read normalised only"),
        ],
    )
    def test_steps(self, gates: str, step: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fr.define_cell("refused", gates, "h", lambda x, h, s, p: {"h": step(x, h)})

    def test_kinds(self) -> None:
        for step, message in (
            (lambda x: sym.layer_norm(), "sym.layer_norm: expected at least one symbol"),
            (lambda x: sym.layer_norm(x.r, 1.0), "sym.layer_norm: expected symbols, got float"),
            (lambda x: sym.product(x.r, 2.0), "sym.product: operand: expected a symbol, got float"),
        ):
            with pytest.raises(TypeError, match=message):
                fr.define_cell("refused", "r", "h", lambda x, h, s, p, step=step: {"h": step(x)})

    def test_own(self) -> None:
        kinds = [operation.kind for operation in OWN.operations]
        assert kinds.count("product") == 2 and kinds.count("layer_norm") == 2
