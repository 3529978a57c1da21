"""MGU, IndRNN, MinGRU, MinLSTM, SRU, LiGRU, SLSTM and LIF: networks whose cells are data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.checks import check_choice, check_flag, check_number
from fusedrnn.init import Seed
from fusedrnn.nn.options import Options
from fusedrnn.nn.recurrent_base import Recurrent
from fusedrnn.nn.serving import StateT
from fusedrnn.symbolic import DefinedCell, library

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LIF", "MGU", "SLSTM", "SRU", "IndRNN", "LiGRU", "MinGRU", "MinLSTM"]


class NetworkOptions(Options, total=False):
    """What every network takes by name; `Recurrent` explains them."""

    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    dtype: npt.DTypeLike
    seed: Seed
    init: str | None
    recompute: bool
    weight_dropout: float
    proj_size: int


class Network(Recurrent[StateT]):
    """`y, state = net(x)`; to train, `y, state, tape = net.forward(x)` and `dx, _ = net.backward(tape, dy)`.

    Shapes, streams and everything else are those of `Recurrent`.

    Args:
        input_size: size of x_t, I >= 0.
        hidden_size: size of the state, H >= 1; or a list of them, one for each layer.
        num_layers: layers stacked on each other.
        options: bias, batch_first, dropout, bidirectional, proj_size, dtype, seed, init, recompute,
            weight_dropout, recurrent_dropout, zoneout, locked_dropout, residual, merge, learned_state,
            init_state, learned_reset_state, batch_norm, num_heads, all_states and compute of `Recurrent`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.
    """

    # Its class says what the cell is.
    _saves_program = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Put what all networks share behind the class's own text, and its arguments among its own."""
        super().__init_subclass__(**arguments)
        if cls.__doc__ and Network.__doc__ and cls.__module__ == __name__:
            text, _, own = cls.__doc__.rstrip(" ").partition("    Args:\n")
            before, options, after = Network.__doc__.partition("        options:")
            cls.__doc__ = f"{text.rstrip()}\n\n    {before}{own}{options}{after}"


class PlainNetwork(Network[StateT]):
    """A network whose cell has no options."""

    _make_cell: ClassVar[staticmethod[[], DefinedCell]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        **options: Unpack[NetworkOptions],
    ) -> None:
        options.setdefault("batch_norm", self._usual_batch_norm)
        super().__init__(self._make_cell(), input_size, hidden_size, num_layers, **options)


class MGU(PlainNetwork[Array]):
    """Minimal gated unit, with the gate on h after the matrix product, as in `GRU`.

    A step:

        x.g = W_ih x + b_ih     h.g = W_hh h + b_hh     of each gate g of f, n
        t1 = sigmoid(x.f + h.f)
        h' = s.h + t1 * (tanh(x.n + t1 * h.n) - s.h)

    Paper: Zhou et al. 2016, arXiv:1603.09420, where f is on h before the product.
    """

    _make_cell = staticmethod(library.mgu)


class IndRNN(Network[Array]):
    """Independently recurrent network: each unit sees of the last step itself alone.

    A step:

        x.g = W_ih x + b_ih     of each gate g of h
        h' = relu(x.h + p.u * s.h)

    There are no weight_hh and bias_hh, but u_l{k}{_reverse} (H,), drawn from U(0, 1). A limit on |u|, which
    the paper recommends, is left to the user.

    Paper: Li et al. 2018, arXiv:1803.04831.

    Args:
        nonlinearity: "relu", as above, or "tanh".
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        nonlinearity: str = "relu",
        **options: Unpack[NetworkOptions],
    ) -> None:
        check_choice("nonlinearity", nonlinearity, ("relu", "tanh"))
        super().__init__(library.indrnn(nonlinearity), input_size, hidden_size, num_layers, **options)
        self._cell_options = {} if nonlinearity == "relu" else {"nonlinearity": nonlinearity}


class MinGRU(PlainNetwork[Array]):
    """GRU whose gates see x alone: no matrix product of h.

    A step:

        x.g = W_ih x + b_ih     of each gate g of z, n
        h' = s.h + sigmoid(x.z) * (x.n - s.h)

    There are no weight_hh and bias_hh.

    Paper: Feng et al. 2024, arXiv:2410.01201.
    """

    _make_cell = staticmethod(library.min_gru)


class MinLSTM(PlainNetwork[Array]):
    """LSTM whose gates see x alone and add up to 1: no matrix product of h, and no c.

    A step:

        x.g = W_ih x + b_ih     of each gate g of f, i, n
        h' = x.n + sigmoid(softplus(-x.i) - softplus(-x.f)) * (s.h - x.n)

    t1 is sigmoid(x.f) / (sigmoid(x.f) + sigmoid(x.i)). There are no weight_hh and bias_hh. The bias of f
    starts from 1.

    Paper: Feng et al. 2024, arXiv:2410.01201.
    """

    _make_cell = staticmethod(library.min_lstm)


class SRU(PlainNetwork[tuple[Array, Array]]):
    """Simple recurrent unit: gates that see x and their own unit's c, and a highway around them.

    A step:

        x.g = W_ih x + b_ih     of each gate g of n, f, r, k
        c' = x.n + sigmoid(x.f + p.v_f * s.c) * (s.c - x.n)
        h' = x.k + sigmoid(x.r + p.v_r * s.c) * (c' - x.k)

    There are no weight_hh and bias_hh, but v_f_l{k}{_reverse} (H,) and v_r_l{k}{_reverse} (H,), zero at
    first. k is the highway's projection of x, which the paper leaves out where I = H. The state is the
    pair (h, c).

    Paper: Lei et al. 2018, arXiv:1709.02755.
    """

    _make_cell = staticmethod(library.sru)


class LiGRU(PlainNetwork[Array]):
    """Light gated recurrent unit: no reset gate, a rectified candidate, and batch normalisation of W_ih x.

    A step:

        a.g = W_ih x + b_ih + W_hh h + b_hh     of each gate g of z, n
        t1 = relu(a.n)
        h' = t1 + sigmoid(a.z) * (s.h - t1)

    W_ih x is normalised as batch_norm of `Recurrent` says, which is True here where it is not given.

    Paper: Ravanelli et al. 2018, arXiv:1803.10225.
    """

    _usual_batch_norm = True
    _make_cell = staticmethod(library.li_gru)


class SLSTM(Network[tuple[Array, Array, Array, Array]]):
    """LSTM with exponential gates and heads, of xLSTM.

    A step:

        a.g = W_ih x + b_ih + W_hh h + b_hh     of each gate g of i, f, z, o
        t1 = where(0 < s.n, s.m, -1e+30) - softplus(-a.f)
        m' = maximum(t1, a.i)
        t2 = exp(t1 - m')
        t3 = exp(a.i - m')
        c' = t2 * s.c + t3 * tanh(a.z)
        n' = t2 * s.n + t3
        h' = sigmoid(a.o) * (c' / n')

    t1 is log f + m of the paper, where f is sigmoid or exp of its sum; m keeps the exponentials within range
    and leaves h as it is. Before the first step n is 0 and nothing is kept. With num_heads above 1 units see
    the h of their own head alone. The state is the tuple (h, c, n, m).

    Paper: Beck et al. 2024, arXiv:2405.04517.

    Args:
        forget_gate: "sigmoid", as above, or "exp".
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        forget_gate: str = "sigmoid",
        **options: Unpack[NetworkOptions],
    ) -> None:
        check_choice("forget_gate", forget_gate, ("sigmoid", "exp"))
        super().__init__(library.slstm(forget_gate), input_size, hidden_size, num_layers, **options)
        self._cell_options = {} if forget_gate == "sigmoid" else {"forget_gate": forget_gate}


class LIF(Network[tuple[Array, Array]]):
    """Leaky integrate-and-fire neurons, which spike (h = 1) and are reset by subtraction one step later.

    A step:

        x.g = W_ih x + b_ih     of each gate g of u
        v' = where(p.beta < 0, 0, where(1 < p.beta, 1, p.beta)) * s.v + x.u - where(1 < s.v, 1, 0)
        t1 = v' - 1
        t2 = 3.1415926535897931 * t1
        t3 = 1 / (1 + t2 * t2)
        h' = heaviside(t1, t3)

    The second argument of heaviside stands for its derivative. y and h are the spikes, the state is the pair
    (h, v) of spikes and membrane potentials. Where beta is learned, it is beta_l{k}{_reverse} (H,). There are
    no weight_hh and bias_hh unless recurrent, which makes x.u the sum of both parts. A layer computes what
    snnTorch's Leaky does behind a Linear, and RLeaky if recurrent: no gradient passes through the reset.

    Papers: Eshraghian et al. 2021, arXiv:2109.12894; surrogate gradients: Neftci, Mostafa and Zenke 2019,
    arXiv:1901.09948; atan: Fang et al. 2021, arXiv:2007.05785.

    Args:
        beta: decay of the membrane potential, in [0, 1]; what it starts from where it is learned.
        learn_beta: whether every unit has a beta of its own that is trained, cut to [0, 1].
        threshold: potential above which a neuron spikes, and which its reset takes off.
        surrogate: "atan", "fast_sigmoid", "sigmoid" or "straight_through", see `fusedrnn.sym.heaviside`.
        slope: of the surrogate; None for its default.
        recurrent: whether the last spikes of the layer are an input, too, through weight_hh.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        beta: float = 0.9,
        learn_beta: bool = True,
        threshold: float = 1.0,
        surrogate: str = "atan",
        slope: float | None = None,
        recurrent: bool = False,
        **options: Unpack[NetworkOptions],
    ) -> None:
        if not isinstance(surrogate, str):
            raise TypeError(f"surrogate: expected a string, got {type(surrogate).__name__}")
        chosen: Mapping[str, Any] = {
            "beta": check_number("beta", beta, 0.0, 1.0),
            "learn_beta": check_flag("learn_beta", learn_beta),
            "threshold": check_number("threshold", threshold, 0.0, 1e30),
            "surrogate": surrogate,
            "slope": None if slope is None else check_number("slope", slope, 0.0, 1e30),
            "recurrent": check_flag("recurrent", recurrent),
        }
        super().__init__(library.lif(**chosen), input_size, hidden_size, num_layers, **options)
        usual = {"beta": 0.9, "learn_beta": True, "threshold": 1.0, "surrogate": "atan"}
        usual |= {"slope": None, "recurrent": False}
        self._cell_options = {name: value for name, value in chosen.items() if value != usual[name]}
