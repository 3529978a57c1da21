"""RNN, LSTM and GRU: the networks over whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.cells import rnn_cell
from fusedrnn.checks import check_flag, check_number
from fusedrnn.init import Seed
from fusedrnn.nn.options import Options
from fusedrnn.nn.recurrent_base import Recurrent
from fusedrnn.symbolic import DefinedCell, library

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["GRU", "LSTM", "RNN", "Recurrent"]


class RNN(Recurrent[Array]):
    """Elman network, with tanh or relu.

    A step:

        a  = W_ih x + b_ih + W_hh h + b_hh
        h' = tanh(a)                                or, with nonlinearity="relu":  h' = max(0, a)

    With layer_norm, a = gain_ih*N(W_ih x) + bias_ih + gain_hh*N(W_hh h), where N(v) is
    (v - mean(v)) / sqrt(var(v) + 1e-5) over the H units of a row. Such a network is not quantized.

    `y, state = rnn(x)`; to train, `y, state, tape = rnn.forward(x)` and `dx, _ = rnn.backward(tape, dy)`.
    x is (T, B, I), (B, T, I) with batch_first, or (T, I) for one sequence; y (T, B, D*H), laid out as x, with
    D = 2 if bidirectional else 1.
    The state is the array h (num_layers*D, B, H).

    Parameters are named and shaped as torch.nn.RNN's: weight_ih_l{k}{_reverse} (H, I or D*H),
    weight_hh_l{k}{_reverse} (H, H), bias_ih_l{k}{_reverse} (H,), bias_hh_l{k}{_reverse} (H,). With layer_norm
    there is no bias_hh, but gain_ih_l{k}{_reverse} (H,) and gain_hh_l{k}{_reverse} (H,), 1 at first.

    Args:
        input_size: size of x_t, I >= 0.
        hidden_size: size of the state, H >= 1; or a list of them, one for each layer.
        num_layers: layers stacked on each other.
        nonlinearity: "tanh" or "relu".
        bias: whether there are biases.
        batch_first: x and y are (B, T, ...) instead of (T, B, ...); states are not affected.
        dropout: probability of dropping an output between layers, in training mode.
        bidirectional: run each layer in both directions and join their outputs.
        layer_norm: whether the products with x and with h are normalised.
        dtype: of parameters, inputs and states: "float32" or "float64".
        seed: int, numpy.random.Generator or None, for initialisation and dropout.
        init: "default" (orthogonal weight_hh) or "torch" (as PyTorch draws them), see
            `fusedrnn.init.recurrent_layer`; None leaves all parameters at zero, for weights that are loaded
            next.
        recompute: tapes leave out the gates, and backward computes them once more: a fifth of a layer's
            memory or less for about a third more time. Gradients keep their bits on the CPU, and the accuracy
            of the arithmetic on a GPU. May be changed at any time.
        weight_dropout: probability of dropping an element of weight_hh for one call, in training mode, on the
            CPU; the others are scaled by 1/(1-p). Merity, Keskar and Socher 2017, arXiv:1708.02182.
        options: recurrent_dropout, zoneout, locked_dropout, residual, merge, learned_state, init_state,
            learned_reset_state, batch_norm, num_heads, all_states and compute of `Recurrent`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Elman 1990, Finding structure in time; layer_norm: Ba et al. 2016, arXiv:1607.06450.
    """

    _saves_program = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        layer_norm: bool = False,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        recompute: bool = False,
        weight_dropout: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        cell = rnn_cell(nonlinearity)
        normalised = check_flag("layer_norm", layer_norm)
        super().__init__(
            library.layer_norm_rnn(nonlinearity, check_flag("bias", bias)) if normalised else cell,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype=dtype,
            seed=seed,
            init=init,
            recompute=recompute,
            weight_dropout=weight_dropout,
            **options,
        )
        self._cell_options = {} if nonlinearity == "tanh" else {"nonlinearity": nonlinearity}
        if normalised:
            self._cell_options["layer_norm"] = True

    @property
    def nonlinearity(self) -> str:
        """The function of a step, by name."""
        return str(self._cell_options.get("nonlinearity", "tanh"))


class LSTM(Recurrent[tuple[Array, Array]]):
    """Long short-term memory.

    A step:

        a  = W_ih x + b_ih + W_hh h + b_hh          four blocks of H rows: a_i, a_f, a_g, a_o
        i  = sigmoid(a_i)     f = sigmoid(a_f)     g = tanh(a_g)     o = sigmoid(a_o)
        c' = f*c + i*g
        u  = o*tanh(c')
        h' = u                                      or, with proj_size = P > 0:  h' = W_hr u

    With peephole, peephole_i*c is added to a_i, peephole_f*c to a_f and peephole_o*c' to a_o. With
    coupled_gates, i = 1 - f. With cell_clip, c' is cut to [-cell_clip, cell_clip]. With layer_norm,
    a = gain_ih*N(W_ih x) + bias_ih + gain_hh*N(W_hh h) and u = o*tanh(gain_c*N(c') + bias_c), where N(v) is
    (v - mean(v)) / sqrt(var(v) + 1e-5) over a row: over the 4*H values of all gates together in a, over H of
    c'. Such networks are not quantized.

    `y, state = lstm(x)`; to train, `y, state, tape = lstm.forward(x)` and `dx, _ = lstm.backward(tape, dy)`.
    x is (T, B, I), (B, T, I) with batch_first, or (T, I) for one sequence; y (T, B, D*Hout), laid out as x,
    with D = 2 if bidirectional else 1 and Hout = proj_size or hidden_size.
    The state is the pair (h (num_layers*D, B, Hout), c (num_layers*D, B, H)).

    Parameters are named, shaped and ordered (i, f, g, o) as torch.nn.LSTM's:
    weight_ih_l{k}{_reverse} (4*H, I or D*Hout), weight_hh_l{k}{_reverse} (4*H, Hout),
    bias_ih_l{k}{_reverse} (4*H,), bias_hh_l{k}{_reverse} (4*H,), weight_hr_l{k}{_reverse} (proj_size, H).
    With coupled_gates there are 3*H rows, f, g, o; with peephole also peephole_i_l{k}{_reverse} (H,), _f, _o.
    With layer_norm there is no bias_hh, but gain_ih_l{k}{_reverse} and gain_hh_l{k}{_reverse} (4*H,), 1 at
    first, and gain_c_l{k}{_reverse} and bias_c_l{k}{_reverse} (H,).

    Args:
        input_size: size of x_t, I >= 0.
        hidden_size: size of the state, H >= 1; or a list of them, one for each layer.
        num_layers: layers stacked on each other.
        bias: whether there are biases.
        batch_first: x and y are (B, T, ...) instead of (T, B, ...); states are not affected.
        dropout: probability of dropping an output between layers, in training mode.
        bidirectional: run each layer in both directions and join their outputs.
        proj_size: size of h if positive, below hidden_size; 0 for no projection.
        peephole: whether the gates see c, through weights of each unit that are zero at first.
        coupled_gates: whether there is no input gate of its own but i = 1 - f.
        cell_clip: limit of |c'|; None for none.
        layer_norm: whether the products with x and with h, and c' are normalised; not with those above.
        dtype: of parameters, inputs and states: "float32" or "float64".
        seed: int, numpy.random.Generator or None, for initialisation and dropout.
        init: "default" (orthogonal weight_hh, forget_bias) or "torch" (as PyTorch draws them), see
            `fusedrnn.init.recurrent_layer`; None leaves all parameters at zero, for weights that are loaded
            next.
        forget_bias: initial bias of the forget gate, put into bias_ih; used by init="default" only.
        recompute: tapes leave out the gates, and backward computes them once more: a fifth of a layer's
            memory or less for about a third more time. Gradients keep their bits on the CPU, and the accuracy
            of the arithmetic on a GPU. May be changed at any time.
        weight_dropout: probability of dropping an element of weight_hh for one call, in training mode, on the
            CPU; the others are scaled by 1/(1-p). Merity, Keskar and Socher 2017, arXiv:1708.02182.
        options: recurrent_dropout, zoneout, locked_dropout, residual, merge, learned_state, init_state,
            learned_reset_state, batch_norm, num_heads, all_states and compute of `Recurrent`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000; projection: Sak, Senior and
    Beaufays 2014, arXiv:1402.1128v1; peepholes: Gers and Schmidhuber 2000; coupled gates: Greff et al. 2017,
    arXiv:1503.04069; layer_norm: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """

    _saves_program = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        peephole: bool = False,
        coupled_gates: bool = False,
        cell_clip: float | None = None,
        layer_norm: bool = False,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        forget_bias: float = 1.0,
        recompute: bool = False,
        weight_dropout: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        variant: dict[str, Any] = {
            "peephole": check_flag("peephole", peephole),
            "coupled_gates": check_flag("coupled_gates", coupled_gates),
            "cell_clip": None if cell_clip is None else check_number("cell_clip", cell_clip, 0.0, 1e30),
        }
        chosen = {name: value for name, value in variant.items() if value is not None and value is not False}
        cell: str | DefinedCell = library.lstm(**variant) if chosen else "lstm"
        if check_flag("layer_norm", layer_norm):
            if chosen:
                raise ValueError(
                    f"layer_norm: expected False with {', '.join(chosen)}, got True; define_cell and "
                    "sym.layer_norm make a cell that has both"
                )
            cell = library.layer_norm_lstm(check_flag("bias", bias))
            chosen["layer_norm"] = True
        super().__init__(
            cell,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            dtype=dtype,
            seed=seed,
            init=init,
            forget_bias=forget_bias,
            recompute=recompute,
            weight_dropout=weight_dropout,
            **options,
        )
        self._cell_options = chosen


class GRU(Recurrent[Array]):
    """Gated recurrent unit, by default with the reset gate after the matrix product.

    A step:

        gx = W_ih x + b_ih         gh = W_hh h + b_hh         three blocks of H rows: r, z, n
        r  = sigmoid(gx_r + gh_r)
        z  = sigmoid(gx_z + gh_z)
        n  = tanh(gx_n + r*gh_n)
        h' = (1 - z)*n + z*h                                  computed as n + z*(h - n)

    With reset_after=False the reset gate acts on h before its product: n = tanh(gx_n + W_hn (r*h) + b_hn).
    With layer_norm, gx = gain_ih*N(W_ih x) + bias_ih, gh = gain_hh*N(W_hh h) and n = tanh(gx_n + r*(gh_n +
    bias_hn)), where N(v) is (v - mean(v)) / sqrt(var(v) + 1e-5) over a row of the 3*H values of all gates
    together. Such networks are not quantized.

    `y, state = gru(x)`; to train, `y, state, tape = gru.forward(x)` and `dx, _ = gru.backward(tape, dy)`.
    x is (T, B, I), (B, T, I) with batch_first, or (T, I) for one sequence; y (T, B, D*H), laid out as x, with
    D = 2 if bidirectional else 1.
    The state is the array h (num_layers*D, B, H).

    Parameters are named, shaped and ordered (r, z, n) as torch.nn.GRU's: weight_ih_l{k}{_reverse}
    (3*H, I or D*H), weight_hh_l{k}{_reverse} (3*H, H), bias_ih_l{k}{_reverse} (3*H,),
    bias_hh_l{k}{_reverse} (3*H,). With layer_norm there is no bias_hh, but gain_ih_l{k}{_reverse} (3*H,) and
    gain_hh_l{k}{_reverse} (3*H,), 1 at first, and bias_hn_l{k}{_reverse} (H,).

    Args:
        input_size: size of x_t, I >= 0.
        hidden_size: size of the state, H >= 1; or a list of them, one for each layer.
        num_layers: layers stacked on each other.
        bias: whether there are biases.
        batch_first: x and y are (B, T, ...) instead of (T, B, ...); states are not affected.
        dropout: probability of dropping an output between layers, in training mode.
        bidirectional: run each layer in both directions and join their outputs.
        reset_after: False for the form of the paper, of ONNX's linear_before_reset=0 and of Keras's
            reset_after=False; the two forms do not share weights.
        layer_norm: whether the products with x and with h are normalised; with reset_after only.
        dtype: of parameters, inputs and states: "float32" or "float64".
        seed: int, numpy.random.Generator or None, for initialisation and dropout.
        init: "default" (orthogonal weight_hh) or "torch" (as PyTorch draws them), see
            `fusedrnn.init.recurrent_layer`; None leaves all parameters at zero, for weights that are loaded
            next.
        recompute: tapes leave out the gates, and backward computes them once more: a fifth of a layer's
            memory or less for about a third more time. Gradients keep their bits on the CPU, and the accuracy
            of the arithmetic on a GPU. May be changed at any time.
        weight_dropout: probability of dropping an element of weight_hh for one call, in training mode, on the
            CPU; the others are scaled by 1/(1-p). Merity, Keskar and Socher 2017, arXiv:1708.02182.
        options: recurrent_dropout, zoneout, locked_dropout, residual, merge, learned_state, init_state,
            learned_reset_state, batch_norm, num_heads, all_states and compute of `Recurrent`.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range.

    Paper: Cho et al. 2014, arXiv:1406.1078v1; layer_norm: Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """

    _saves_program = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        layer_norm: bool = False,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        recompute: bool = False,
        weight_dropout: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        cell: str | DefinedCell = "gru"
        variant = {}
        if not check_flag("reset_after", reset_after):
            cell, variant = library.gru_reset_before(), {"reset_after": False}
        if check_flag("layer_norm", layer_norm):
            if variant:
                raise ValueError(
                    "layer_norm: expected False with reset_after=False, got True; define_cell and "
                    "sym.layer_norm make a cell that has both"
                )
            cell, variant = library.layer_norm_gru(check_flag("bias", bias)), {"layer_norm": True}
        super().__init__(
            cell,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype=dtype,
            seed=seed,
            init=init,
            recompute=recompute,
            weight_dropout=weight_dropout,
            **options,
        )
        self._cell_options = variant
