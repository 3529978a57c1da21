"""double_backward against differences of backward and forward along a direction, and against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from defined_cells import CELLS, SHUFFLE
from support import num_threads
from tolerances import assert_close, relative_error

import fusedrnn as fr
from fusedrnn import functional as F
from fusedrnn.cells import resolve_cell

# Differences of backward, with a step of 1e-3, of values near 1.
DIFFERENCES = 1e-8


class Problem:
    """A call of a layer, what goes into its backward, and a direction of everything."""

    def __init__(self, cell: Any, T: int = 4, B: int = 3, I: int = 2, H: int = 5, **options: Any) -> None:
        self.cell, self.options, self.spec = cell, options, resolve_cell(cell)
        self._rng = np.random.default_rng([T, B, I, H])
        shapes = self.spec.parameter_shapes(I, H)
        # Small beside the step, so that differences are good.
        scale = 1 / np.sqrt(I + H)
        self.params = {name: scale * self._draw(*shape) for name, shape in shapes.items()}
        self.along = {name: scale * self._draw(*shape) for name, shape in shapes.items()}
        self.x, self.along_x, self.dy = self._draw(T, B, I), self._draw(T, B, I), self._draw(T, B, H)
        # Positive, as the normaliser of an sLSTM is.
        self.state, self.along_state, self.dstate = (
            [np.abs(self._draw(B, H)) + 0.5 for _ in range(self.spec.states)] for _ in range(3)
        )

    def _draw(self, *shape: int) -> Any:
        return self._rng.standard_normal(shape)

    def second(self) -> F.SecondGradients:
        pack = self.spec.pack_state
        directions = F.Gradients(self.along_x, pack(self.along_state), self.along)
        state, dstate = pack(self.state), pack(self.dstate)
        return F.double_backward(
            self.cell, self.x, self.params, self.dy, directions, state, dstate, **self.options
        )

    def at(self, step: float) -> dict[str, Any]:
        """y, the final states and all gradients, so far along the direction."""
        params = {name: value + step * self.along[name] for name, value in self.params.items()}
        state = [value + step * along for value, along in zip(self.state, self.along_state, strict=True)]
        x, pack = self.x + step * self.along_x, self.spec.pack_state
        y, final, tape = F.forward(self.cell, x, params, pack(state), **self.options)
        return self.named(F.SecondGradients(*F.backward(tape, self.dy, pack(self.dstate)), y, final))

    def named(self, found: F.SecondGradients) -> dict[str, Any]:
        unpack = self.spec.unpack_state
        states = {f"state{i}": value for i, value in enumerate(unpack("state", found.state))}
        ends = {f"dstate{i}": value for i, value in enumerate(unpack("dstate", found.dstate))}
        return {"x": found.x, "dy": found.dy, **found.params, **states, **ends}

    def differences(self) -> dict[str, Any]:
        weights = {-2e-3: 1, -1e-3: -8, 1e-3: 8, 2e-3: -1}
        points = [(weight, self.at(step)) for step, weight in weights.items()]
        return {name: sum(weight * point[name] for weight, point in points) / 12e-3 for name in points[0][1]}

    def check(self) -> None:
        got, want = self.named(self.second()), self.differences()
        assert set(got) == set(want)
        scale = max(np.abs(value).max() for value in want.values())
        for name, value in want.items():
            # Beside what is 1e-6 of the largest: differences of what is 0 leave rounding.
            noise = np.full(value.shape, 1e-6 * scale)
            error = relative_error(got[name] + noise, value + noise)
            assert error <= DIFFERENCES, (name, error)


SMOOTH = [
    *("lstm", "gru", "rnn_tanh"),
    *(CELLS["peephole_lstm"], SHUFFLE),
    *(network(1, 1).cell for network in (fr.MGU, fr.MinGRU, fr.MinLSTM, fr.SRU, fr.SLSTM)),
    fr.IndRNN(1, 1, 1, "tanh").cell,
]


@pytest.mark.parametrize("cell", SMOOTH, ids=lambda cell: cell if isinstance(cell, str) else cell.name)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lengths": np.array([4, 0, 2]), "reverse": True},
        {"resets": np.array([[False, True, False], [True, False, False], [False] * 3, [True, True, False]])},
    ],
    ids=["plain", "reverse", "resets"],
)
def test_against_differences(cell: Any, options: dict[str, Any]) -> None:
    Problem(cell, **options).check()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 1, 17), (2, 19, 3, 8), (6, 1, 4, 33)], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_sizes(cell: str, shape: tuple[int, int, int, int]) -> None:
    Problem(cell, *shape).check()


def test_piecewise_linear_cells() -> None:
    """A relu has no second derivative of its own; what is left are those of the products."""
    Problem("rnn_relu", T=3).check()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_float32_and_threads(cell: str) -> None:
    problem = Problem(cell, 5, 20, 3, 16)
    want = problem.named(problem.second())
    for name in ("x", "along_x", "dy"):
        setattr(problem, name, getattr(problem, name).astype(np.float32))
    for values in (problem.state, problem.along_state, problem.dstate):
        values[:] = [value.astype(np.float32) for value in values]
    for named in (problem.params, problem.along):
        named.update({name: value.astype(np.float32) for name, value in named.items()})
    results = []
    for threads in (1, 2, 3):
        with num_threads(threads):
            results.append(problem.named(problem.second()))
    for name, value in results[0].items():
        assert_close(value, want[name], "gradient", name)
        assert all(np.array_equal(value, other[name]) for other in results[1:])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_gradient_penalty_of_torch(kind: str) -> None:
    """The gradients of |dy/dx|^2, by PyTorch's own second derivatives in float64."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = getattr(torch.nn, kind)(3, 5).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0], x, dy, create_graph=True)
    weights = list(module.parameters())
    want = torch.autograd.grad(dx.square().sum(), [x, dy, *weights])
    cell = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh"}[kind]
    params = [weight.detach().numpy() for weight in weights]
    inputs, flow = x.detach().numpy(), dy.detach().numpy()
    _, _, tape = F.forward(cell, inputs, params)
    directions = F.Gradients(2 * F.backward(tape, flow).x, None, None)
    found = F.double_backward(cell, inputs, params, flow, directions)
    for got, expected in zip((found.x, found.dy, *found.params), want, strict=True):
        assert_close(got, expected.numpy(), "gradient")


def test_what_may_be_left_out() -> None:
    """No biases, parameters as a sequence, directions of some alone."""
    problem = Problem("lstm")
    names = list(problem.params)[:2]
    weights = [problem.params[name] for name in names]
    for of_params in ([None, problem.along["weight_hh"]], {"weight_hh": problem.along["weight_hh"]}):
        found = F.double_backward("lstm", problem.x, weights, problem.dy, F.Gradients(None, None, of_params))
        assert isinstance(found.params, tuple) and len(found.params) == 2
        zeros = {name: np.zeros_like(value) for name, value in problem.params.items()}
        full = problem.params | {name: zeros[name] for name in zeros if name not in names}
        along = zeros | {"weight_hh": problem.along["weight_hh"]}
        want = F.double_backward("lstm", problem.x, full, problem.dy, F.Gradients(None, None, along))
        assert_close(found.x, want.x, "gradient")
        assert_close(found.params[1], want.params["weight_hh"], "gradient")


X, DY, W = (
    np.ones((3, 2, 4)),
    np.ones((3, 2, 5)),
    {"weight_ih": np.ones((5, 4)), "weight_hh": np.ones((5, 5))},
)
NOTHING = F.Gradients(None, None, None)


@pytest.mark.parametrize(
    ("error", "match", "changes"),
    [
        (ValueError, r"dy: expected shape \(T, B, H\) = \(3, 2, 5\), got \(3, 2, 4\)", {"dy": X}),
        (TypeError, "dy: expected float64, got float32", {"dy": DY.astype(np.float32)}),
        (TypeError, r"directions: expected \(x, state, params\), got dict", {"directions": {}}),
        (ValueError, r"directions.x: expected shape \(3, 2, 4\)", {"directions": (DY, None, None)}),
        (ValueError, r"directions.params: expected some of the names weight_ih, weight_hh, got bias_ih",
         {"directions": (None, None, {"bias_ih": DY})}),
        (ValueError, r"directions.state: expected shape \(B, H\)", {"directions": (None, DY, None)}),
        (ValueError, "weight_ih: expected shape", {"x": DY}),
        (ValueError, r"x: expected shape \(T, B, I\), got \(3, 2\)", {"x": X[..., 0]}),
        (ValueError, "cell: expected a pointwise one for second derivatives, got gru_reset_before",
         {"cell": fr.GRU(1, 1, reset_after=False).cell}),
    ],
)  # fmt: skip
def test_errors(error: type[Exception], match: str, changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"cell": "rnn_tanh", "x": X, "params": W, "dy": DY, "directions": NOTHING}
    with pytest.raises(error, match=match):
        F.double_backward(**{**arguments, **changes})
