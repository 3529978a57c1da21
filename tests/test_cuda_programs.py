"""Cells that are data on a GPU: forward and all gradients against slow networks of their equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import program_reference as programs
import pytest
from cuda_support import DEVICES, converter, host
from defined_cells import GRU, LSTM, PEEPHOLE, SPIKING
from program_reference import IND_RNN, MEMORYLESS, MIN_GRU, THREE, delay_line, random_problem
from support import states_of
from test_cuda_functional import MODES
from test_masked_cells import normal
from tolerances import assert_close, relative_error

import fusedrnn as fr
from fusedrnn.symbolic import DefinedCell

CELLS = (PEEPHOLE, LSTM, GRU, IND_RNN, MIN_GRU, THREE, MEMORYLESS, delay_line(8))
SHAPES = [(0, 2, 1, 3), (1, 1, 1, 1), (4, 1, 5, 17), (4, 2, 0, 3), (3, 33, 3, 17), (2, 1, 2, 300)]


def on_device(problem: programs.Problem, convert: Any, **more: Any) -> tuple[programs.Results, Any]:
    """What functional.forward and backward give, and the tape."""
    options = {**problem.options, **more}
    for name in ("resets", "reset_state"):
        options[name] = convert(options.get(name))
    bare = (lambda state: state[0]) if len(problem.cell.states) == 1 else tuple
    if options["reset_state"] is not None:
        options["reset_state"] = bare(options["reset_state"])
    params = {name: convert(value) for name, value in problem.params.items()}
    y, final, tape = fr.functional.forward(
        problem.cell, convert(problem.x), params, bare(convert(problem.state)), **options
    )
    dx, dstate, dparams = fr.functional.backward(tape, convert(problem.dy), bare(convert(problem.dstate)))
    results = programs.Results(
        host(y),
        host(states_of(final)),
        host(dx),
        host(states_of(dstate)),
        {name: host(value) for name, value in dparams.items()},
    )
    return results, tape


def check(problem: programs.Problem, device: str, **more: Any) -> programs.Results:
    got, _ = on_device(problem, converter("torch", device), **more)
    for name, value in programs.reference(problem).arrays().items():
        quantity = "gradient" if name.startswith("d") else "output"
        result = got.arrays()[name]
        assert result.dtype == problem.x.dtype
        assert_close(result, value, quantity, f"{problem.cell.name} {name}")
    return got


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_against_reference(
    cell: DefinedCell, shape: tuple[int, int, int, int], dtype: str, device: str
) -> None:
    check(random_problem(cell, shape, dtype), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rows", ["lengths", "resets", "both"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_sequences(cell: DefinedCell, rows: str, reverse: bool, dtype: str, device: str) -> None:
    """Lengths, resets, directions; what is kept computed once more is what was kept, to the bit."""
    resets = {"lengths": "", "resets": "row", "both": "each"}[rows]
    problem = random_problem(
        cell, (5, 4, 3, 9), dtype, lengths=rows != "resets", resets=resets, reverse=reverse
    )
    kept, again = check(problem, device), check(problem, device, recompute=True)
    for name, value in kept.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], value, name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", [PEEPHOLE, GRU, IND_RNN, THREE], ids=lambda cell: cell.name)
def test_fewer_bits(cell: DefinedCell, mode: str, device: str) -> None:
    torch = pytest.importorskip("torch")
    storage = getattr(torch, mode, torch.float32)
    to_device = converter("torch", device)
    rounded = lambda value: host(torch.tensor(value).to(storage).float())  # noqa: E731
    problem = random_problem(cell, (6, 5, 8, 24), "float32", lengths=True, resets="each")
    problem.x, problem.dy = rounded(problem.x), rounded(problem.dy)
    problem.params = {name: rounded(value) for name, value in problem.params.items()}
    for states in (problem.state, problem.dstate, problem.options["reset_state"]):
        assert states is not None
        states[0][...] = rounded(states[0])

    def convert(value: Any) -> Any:
        if isinstance(value, tuple):  # the states beyond h are float32
            return (convert(value[0]), *map(to_device, value[1:]))
        if value is None or value.dtype == bool:
            return to_device(value)
        return to_device(value).to(storage)

    with fr.cuda.set_float32_mode(mode if storage is torch.float32 else "ieee"):
        got, _ = on_device(problem, convert)
    forward, gradient = MODES[mode]
    for name, value in programs.reference(problem).arrays().items():
        assert relative_error(got.arrays()[name], value) <= (gradient if name[0] == "d" else forward), name


def every_operation(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    """All functions of fr.sym, and what they are rewritten into."""
    a, b = x.a + h.a, fr.sym.tanh(x.b + h.b)
    total = fr.sym.exp(b) + fr.sym.log(2 + b) + fr.sym.sqrt(2 + b) + fr.sym.softplus(a) + fr.sym.elu(a)
    total = total + fr.sym.gelu(a) + fr.sym.sin(a) + fr.sym.cos(a) + abs(a) / (2 + b) + fr.sym.relu(b)
    chosen = fr.sym.where(a < b, fr.sym.minimum(a, b), fr.sym.maximum(a, 0.5 * s.h))
    kept = fr.sym.where(b <= p.u, fr.sym.clip(a, -0.5, 0.5), fr.sym.sigmoid(b))
    return {"h": fr.sym.tanh(0.1 * total + chosen - kept), "c": (1 - b) * s.c + b * fr.sym.sigmoid(a) ** 2}


EVERY = fr.define_cell("every_operation", "a b", "h c", every_operation, parameters="u")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_operation(dtype: str, device: str) -> None:
    check(random_problem(EVERY, (4, 5, 3, 17), dtype), device)


@pytest.mark.parametrize("device", DEVICES)
def test_spikes(device: str) -> None:
    check(random_problem(SPIKING, (6, 3, 2, 9), "float64"), device)


@pytest.mark.parametrize("device", DEVICES)
def test_long_programs(device: str) -> None:
    """Of more slots than 48 KB of shared memory have room for, even in the smallest block."""

    def step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
        after = {}
        for k, state in enumerate(states):
            total = 0.5 * getattr(s, states[k - 1])
            for i in range(4 * k, 4 * k + 4):
                factor = fr.sym.tanh(getattr(h, gates[i])) * getattr(p, weights[i // 2])
                total = total + getattr(x, gates[i]) * factor
            after[state] = fr.sym.tanh(total)
        return after

    gates, weights = [f"g{i}" for i in range(32)], [f"w{i}" for i in range(16)]
    states = ["h", *(f"s{i}" for i in range(1, 8))]
    cell = fr.define_cell("long", gates, states, step, parameters=weights)
    assert cell.backward.slots * 8 * 32 > 48 << 10
    check(random_problem(cell, (2, 3, 2, 5), "float64"), device)


def delayed_step(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    """A product of what is not h."""
    return {"h": fr.sym.tanh(x.a + fr.sym.product(h.a, s.c)), "c": x.a - s.c}


@pytest.mark.parametrize("device", [None, *DEVICES])
def test_projections_that_are_refused(device: str | None) -> None:
    cell = fr.define_cell("delayed", "a", "h c", delayed_step)
    convert = (lambda value: value) if device is None else converter("torch", device)
    params = {"weight_ih": normal(4, 3), "weight_hh": normal(4, 2), "weight_hr": normal(2, 4)}
    given = {name: convert(value) for name, value in params.items()}
    with pytest.raises(
        ValueError, match=r"weight_hr: expected None, or .* got shape \(2, 4\) and the cell delayed"
    ):
        fr.functional.forward(cell, convert(normal(3, 2, 3)), given)
    with pytest.raises(ValueError, match="proj_size: expected 0, since delayed works unit by unit"):
        fr.Recurrent(cell, 3, 4, proj_size=2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows", [3, 60])
def test_looked_up_inputs(rows: int, device: str) -> None:
    problem = random_problem(PEEPHOLE, (6, 5, 4, 9), "float64", lengths=True)
    rng, convert = np.random.default_rng(0), converter("torch", device)
    table, indices = rng.normal(size=(rows, 4)), rng.integers(0, rows, (6, 5))
    problem.x = table[indices]
    want = programs.reference(problem)
    params = {name: convert(value) for name, value in problem.params.items()}
    y, _, tape = fr.functional.forward(
        PEEPHOLE,
        fr.Lookup(convert(table), indices),
        params,
        convert(problem.state),
        problem.options["lengths"],
    )
    grads = fr.functional.backward(tape, convert(problem.dy), convert(problem.dstate))
    assert_close(host(y), want.y, "output")
    dtable = np.zeros_like(table)
    np.add.at(dtable, indices, want.dx)
    assert_close(host(grads.x), dtable, "gradient")
    for name, value in want.dparams.items():
        assert_close(host(grads.params[name]), value, "gradient", name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", ["cluster", "persistent"])
def test_other_kernels_refuse_programs(kernel: str, device: str) -> None:
    problem = random_problem(PEEPHOLE, (2, 3, 2, 5), "float32")
    _, tape = on_device(problem, converter("torch", device))
    assert tape._layer.kernel == "step"
    expected = (
        f"{kernel} cannot run this: .*not implemented for .*peephole_lstm|{kernel} cannot run this: device"
    )
    with fr.cuda.set_kernel(kernel), pytest.raises(RuntimeError, match=expected):
        on_device(problem, converter("torch", device))
