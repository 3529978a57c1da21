"""Values of other projects' own tests: candle, burn and Keras. Each names its file and its test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fusedrnn as fr

Array = NDArray[np.float32]
pytestmark = pytest.mark.once


def array(values: Any) -> Array:
    return np.array(values, np.float32)


def close(found: Any, want: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, array(want), rtol=0, atol=tolerance)


def test_candle_lstm() -> None:
    """candle, candle-nn/tests/rnn.rs, lstm: seven steps of a cell whose weights are cosines and sines."""
    cell, bias = fr.LSTMCell(2, 3), array([-1, 1, -0.5, 2] * 3)
    weights = np.cos(np.arange(24, dtype=np.float32)), np.sin(np.arange(36, dtype=np.float32))
    values = (weights[0].reshape(12, 2), weights[1].reshape(12, 3), bias, np.cos(bias))
    cell.load_state_dict(dict(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), values, strict=True)))
    layer = fr.LSTM(2, 3)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x = np.outer(array([3, 1, 4, 1, 5, 9, 2]), array([1, 0.5]))[:, None]
    state: Any = None
    for x_t in x:
        state = cell(x_t, state)
    for h, c in (state, [part[0] for part in layer(x)[1]]):
        close(h, [[0.9919, 0.1738, -0.1451]], 5e-5)
        close(c, [[5.725, 0.4458, -0.2908]], 5e-4)


# Of burn: gates of a direction, each with its weights of x (I, H) and of h (H, H), and its biases of both.
Gate = tuple[Any, Any, Any, Any]
X = [[0.949, -0.861], [0.892, 0.927], [-0.173, -0.301], [-0.081, 0.992]]
H_0 = [[0.280, 0.360, -1.242], [-0.588, 0.729, -0.788]]
C_0 = [[0.723, 0.397, -0.262], [0.471, 0.613, 1.885]]
INPUT: tuple[Gate, Gate] = (
    (
        [[0.367, 0.091, 0.342], [0.322, 0.533, 0.059]],
        [-0.196, 0.354, 0.209],
        [[-0.320, 0.232, -0.165], [0.093, -0.572, -0.315], [-0.467, 0.325, 0.046]],
        [0.181, -0.190, -0.245],
    ),
    (
        [[-0.055, 0.506, 0.247], [-0.369, 0.178, -0.258]],
        [0.540, -0.164, 0.033],
        [[0.159, 0.180, -0.037], [-0.443, 0.485, -0.488], [0.098, -0.085, -0.140]],
        [-0.510, 0.105, 0.114],
    ),
)
FORGET: tuple[Gate, Gate] = (
    (
        [[-0.342, -0.084, -0.420], [-0.432, 0.119, 0.191]],
        [0.315, -0.413, -0.041],
        [[0.453, 0.063, 0.561], [0.211, 0.149, 0.213], [-0.499, -0.158, 0.068]],
        [-0.431, -0.535, 0.125],
    ),
    (
        [[-0.154, -0.432, -0.547], [-0.369, -0.310, -0.175]],
        [0.141, 0.004, 0.055],
        [[-0.005, -0.277, -0.515], [-0.011, -0.101, -0.365], [0.426, 0.379, 0.337]],
        [-0.382, 0.331, -0.176],
    ),
)
CELL: tuple[Gate, Gate] = (
    (
        [[-0.046, -0.382, 0.321], [-0.533, 0.558, 0.004]],
        [-0.358, 0.282, -0.078],
        [[-0.358, 0.109, 0.139], [-0.345, 0.091, -0.368], [-0.508, 0.221, -0.507]],
        [0.502, -0.509, -0.247],
    ),
    (
        [[-0.571, 0.228, -0.287], [-0.331, 0.110, 0.219]],
        [-0.206, -0.546, 0.462],
        [[0.449, -0.240, 0.071], [-0.045, 0.131, 0.124], [0.138, -0.201, 0.191]],
        [-0.030, 0.211, -0.352],
    ),
)
OUTPUT: tuple[Gate, Gate] = (
    (
        [[-0.577, -0.359, 0.216], [-0.550, 0.268, 0.243]],
        [-0.227, -0.274, 0.039],
        [[-0.383, 0.449, 0.222], [-0.357, -0.093, 0.449], [-0.106, 0.236, 0.360]],
        [-0.361, -0.209, -0.454],
    ),
    (
        [[0.491, -0.442, 0.333], [0.313, -0.121, -0.070]],
        [-0.387, -0.250, 0.066],
        [[-0.030, 0.268, 0.299], [-0.019, -0.280, -0.314], [0.466, -0.365, -0.248]],
        [-0.398, -0.199, -0.566],
    ),
)
UPDATE: tuple[Gate, Gate] = (
    (
        [[-0.2811, 0.5090, 0.5018], [0.3391, -0.4236, 0.1081]],
        [0.2932, -0.3519, -0.5715],
        [[-0.3471, 0.5214, 0.0961], [0.0545, -0.4904, -0.1875], [-0.5702, 0.4457, 0.3568]],
        [-0.0100, 0.4518, -0.4102],
    ),
    (
        [[-0.3444, 0.1924, -0.4765], [0.5193, 0.5556, -0.5727]],
        [0.1090, 0.1779, -0.5385],
        [[0.1221, 0.3925, 0.5287], [-0.1472, -0.4187, -0.1948], [0.3441, -0.3082, -0.2047]],
        [0.0016, -0.2148, -0.0400],
    ),
)
RESET: tuple[Gate, Gate] = (
    (
        [[0.4414, -0.1353, -0.1265], [0.4792, 0.5304, 0.1165]],
        [-0.2524, 0.3333, 0.1033],
        [[-0.2695, -0.0677, -0.4557], [0.1472, -0.2345, -0.2662], [-0.2660, 0.3830, -0.1630]],
        [0.1663, 0.2391, 0.1826],
    ),
    (
        [[-0.1988, -0.1203, -0.3422], [0.1769, 0.4788, -0.3443]],
        [-0.5053, -0.3676, 0.5771],
        [[-0.3936, 0.3504, -0.4486], [0.3063, -0.1370, -0.2914], [-0.2334, 0.3303, 0.1760]],
        [-0.5080, -0.2488, -0.3456],
    ),
)
NEW: tuple[Gate, Gate] = (
    (
        [[0.4266, 0.2784, 0.4451], [0.0782, -0.0815, 0.0853]],
        [-0.2231, -0.4428, 0.4737],
        [[0.0900, -0.1821, 0.2430], [0.4665, 0.1551, 0.5155], [0.0631, -0.1566, 0.3337]],
        [0.0364, -0.3941, 0.1780],
    ),
    (
        [[-0.4517, 0.2339, 0.4797], [-0.3884, 0.2067, -0.2982]],
        [-0.3792, -0.1922, 0.0903],
        [[-0.5586, -0.0762, -0.3944], [-0.3306, -0.4191, -0.4898], [0.1442, 0.0135, -0.3179]],
        [-0.3912, -0.3963, -0.3368],
    ),
)


def of_burn(kind: Any, *gates: tuple[Gate, Gate], directions: int = 2) -> Any:
    """A module of 2 inputs and 3 units whose gates, in our order, have these weights."""
    module = kind(2, 3, bidirectional=directions == 2, batch_first=True)
    for direction, suffix in enumerate(("_l0", "_l0_reverse")[:directions]):
        own = [gate[direction] for gate in gates]
        for place, name in enumerate(("weight_ih", "bias_ih", "weight_hh", "bias_hh")):
            value = np.concatenate([array(gate[place]).T for gate in own])
            module.load_state_dict({**module.state_dict(), name + suffix: value})
    return module


def test_burn_bidirectional_lstm() -> None:
    """burn, crates/burn-nn/src/modules/rnn/lstm.rs, test_bidirectional."""
    lstm = of_burn(fr.LSTM, INPUT, FORGET, CELL, OUTPUT)
    y, (h, c) = lstm(array([X]), (array(H_0)[:, None], array(C_0)[:, None]))
    want = [
        [0.23764, -0.03442, 0.04414, -0.15635, -0.03366, -0.05798],
        [0.00473, -0.02254, 0.02988, -0.16510, -0.00306, 0.08742],
        [0.06210, -0.06509, -0.05339, -0.01710, 0.02091, 0.16012],
        [-0.03420, 0.07774, -0.09774, -0.02604, 0.12584, 0.20872],
    ]
    close(y[0], want, 2e-5)
    close(h[:, 0], [want[3][:3], want[0][3:]], 2e-5)
    close(c[:, 0], [[-0.13593, 0.17125, -0.22395], [-0.45425, -0.11206, -0.12908]], 2e-5)
    y, (_, c) = lstm(array([X]))
    close(y[0, 0], [0.08679, -0.08776, -0.00528, -0.15969, -0.05322, -0.08863], 2e-5)
    close(y[0, 3], [-0.04026, 0.07178, -0.10189, -0.07349, -0.04576, 0.05550], 2e-5)
    close(c[:, 0], [[-0.15839, 0.15923, -0.23569], [-0.47407, -0.17493, -0.19643]], 2e-5)


def test_burn_gru() -> None:
    """burn, crates/burn-nn/src/modules/rnn/gru.rs, test_gru_against_pytorch, test_bigru_against_pytorch.

    Its weights are rounded to four digits, what it expects is of those that were not.
    """
    one = of_burn(fr.GRU, RESET, UPDATE, NEW, directions=1)
    x = array([[[-0.11147, 0.12036], [-0.36963, -0.24042], [-1.19692, 0.20927], [-0.97236, -0.75505]]])
    want = [
        [0.05665, -0.34932, 0.43267],
        [-0.1737, -0.49246, 0.38099],
        [-0.35401, -0.68099, 0.05061],
        [-0.47854, -0.70427, -0.13648],
    ]
    close(one(x, array([[[0.3239, -0.10852, 0.21033]]]))[0][0], want, 2e-4)
    close(one(x)[1][0], [[-0.50146, -0.70066, -0.14894]], 2e-4)
    both = of_burn(fr.GRU, RESET, UPDATE, NEW)
    want = [
        [0.24537, 0.14018, 0.19449, -0.49777, -0.15647, 0.48392],
        [0.27468, -0.14514, 0.56205, -0.60381, -0.04986, 0.15683],
        [-0.04062, -0.33486, 0.52330, -0.42244, -0.12644, -0.12034],
        [-0.11743, -0.53873, 0.54429, -0.64943, 0.30127, -0.41943],
    ]
    y, h = both(array([X]), array(H_0)[:, None])
    close(y[0], want, 2e-4)
    close(h[:, 0], [want[3][:3], want[0][3:]], 2e-4)
    close(both(array([X]))[1][:, 0], [[-0.16505, -0.57952, 0.53565], [-0.46770, -0.18086, 0.47519]], 2e-4)


@pytest.mark.parametrize("reset_after", [True, False])
def test_burn_gru_of_one_unit(reset_after: bool) -> None:
    """burn, the same file, tests_forward_seq_len_3: both forms, to the digits that it has."""
    gru = fr.GRU(1, 1, bias=False, reset_after=reset_after)
    weights = array([[0.6], [0.5], [0.7]])
    gru.load_state_dict({"weight_ih_l0": weights, "weight_hh_l0": weights})
    close(gru(array([0.1, 0.2, 0.3])[:, None, None])[0][:, 0, 0], [0.0341, 0.0894, 0.1575], 6e-5)


def test_burn_bidirectional_rnn() -> None:
    """burn, crates/burn-nn/src/modules/rnn/basic.rs, test_bidirectional."""
    want = [
        [0.5226, -0.6370, 0.0210, 0.0685, 0.3867, 0.3602],
        [0.3580, 0.8431, 0.4129, -0.3175, 0.4374, 0.1766],
        [-0.3837, -0.2703, -0.3957, -0.1542, -0.1122, 0.0725],
        [0.5059, 0.5527, 0.1244, -0.6779, 0.3725, -0.3387],
    ]
    rnn = of_burn(fr.RNN, INPUT)
    close(rnn(array([X]), array(H_0)[:, None])[0][0], want, 1e-4)
    close(rnn(array([X]))[1][:, 0], [[0.5075, 0.5298, 0.1083], [0.0892, 0.3912, 0.3607]], 1e-4)


def constant(kind: Any, inputs: int, units: int, **options: Any) -> Any:
    """Keras's initialisers of 0.01, 0.02 and 0.03, with a forget bias of 1; one of its biases is our two."""
    module = kind(inputs, units, batch_first=True, **options)
    values = {"weight_ih": 0.01, "weight_hh": 0.02, "bias_ih": 0.03, "bias_hh": 0.03 if kind is fr.GRU else 0}
    state = {}
    for name, value in module.state_dict().items():
        state[name] = np.full_like(value, values[name.split("_l0")[0]])
        if kind is fr.LSTM and name.startswith("bias_ih"):
            state[name][units : 2 * units] = 1
    module.load_state_dict(state)
    return module


def test_keras_initial_states() -> None:
    """Keras, keras/src/layers/rnn/{lstm,gru,simple_rnn}_test.py, test_pass_initial_state."""
    x, start = np.arange(24, dtype=np.float32).reshape(2, 4, 3), array([[[0, 1], [2, 3]]])
    backwards = np.ascontiguousarray(x[:, ::-1])
    lstm, gru, rnn = constant(fr.LSTM, 3, 2), constant(fr.GRU, 3, 2), constant(fr.RNN, 3, 4)
    close(lstm(x, (start, start))[1][0][0], [[0.20574439, 0.3558822], [0.64930826, 0.66276]], 1e-6)
    close(lstm(backwards, (start, start))[1][0][0], [[0.13281618, 0.2790356], [0.5839337, 0.5992567]], 1e-6)
    close(gru(x, start)[1][0], [[0.23774096, 0.33508456], [0.83659905, 1.0227708]], 1e-6)
    close(gru(backwards, start)[1][0], [[0.13486053, 0.23261218], [0.78257304, 0.9691353]], 1e-6)
    start = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
    close(rnn(x, start)[1][0][:, 0], [0.33621645, 0.6262637], 1e-6)
    close(rnn(backwards, start)[1][0][:, 0], [0.07344437, 0.43043602], 1e-6)


def test_keras_states_that_are_kept() -> None:
    """Keras, the same files, test_statefulness: the same sequence again, from where it ended."""
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for kind, want in (
        (fr.LSTM, [0.3124785, 0.6863672]),
        (fr.GRU, [0.29542392, 0.5885018]),
        (fr.RNN, [0.40559256, 0.7361247]),
    ):
        module = constant(kind, 4, 4)
        y, _ = module(x, module(x)[1])
        close(y[:, -1], np.outer(want, np.ones(4)), 1e-6)


def test_keras_masks() -> None:
    """Keras, simple_rnn_test.py and bidirectional_test.py, test_masking; the GRU backwards, too."""
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    mask = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], bool)
    y, h = constant(fr.RNN, 3, 2)(x, mask=mask)
    kept = np.array([[0.0599281, 0.15122814, 0, 0.32394567], [0.3969304, 0, 0, 0.608085]])
    close(np.where(mask, y[..., 0], 0), kept, 1e-6)
    close(h[0, :, 1], kept[:, -1], 1e-6)
    _, h = constant(fr.GRU, 3, 2, bidirectional=True)(x, mask=mask)
    close(h[..., 0], [[0.19393763, 0.30818558], [0.11669192, 0.28380975]], 1e-6)


def test_keras_both_directions() -> None:
    """Keras, bidirectional_test.py, test_correctness with "sum", and test_return_state."""
    x = np.arange(24, dtype=np.float32)
    y, _ = constant(fr.GRU, 4, 2, bidirectional=True, merge="sum")(x.reshape(2, 3, 4))
    want = [[0.20937867, 0.34462988, 0.40290534], [0.59829646, 0.6734641, 0.6479671]]
    close(y, np.array(want)[..., None] * np.ones(2), 1e-6)
    _, (h, c) = constant(fr.LSTM, 3, 2, bidirectional=True)(x.reshape(2, 4, 3))
    close(h[..., 0], [[0.1990008, 0.52335435], [0.12659755, 0.44717982]], 1e-6)
    close(c[..., 0], [[0.35567185, 1.0492687], [0.2501858, 0.941473]], 1e-6)
