"""RNN, LSTM and GRU: the networks over whole sequences."""

import numpy.typing as npt

from fusedrnn.arrays import Array
from fusedrnn.cells import rnn_cell
from fusedrnn.checks import check_reset_after
from fusedrnn.init import Seed
from fusedrnn.nn.recurrent_base import Recurrent

__all__ = ["GRU", "LSTM", "RNN", "Recurrent"]


class RNN(Recurrent[Array]):
    """Elman network, h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or max(0, ...) with nonlinearity="relu".

    The state is the array h (num_layers*D, B, H). Shapes, calls, arguments and exceptions as `Recurrent`.
    Parameters are named and shaped as torch.nn.RNN's: weight_ih_l{k}{_reverse} (H, I or D*H),
    weight_hh_l{k}{_reverse} (H, H), bias_ih_l{k}{_reverse} (H,), bias_hh_l{k}{_reverse} (H,).

    Args:
        nonlinearity: "tanh" or "relu".

    Paper: Elman 1990, Finding structure in time.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        recompute: bool = False,
    ) -> None:
        super().__init__(
            rnn_cell(nonlinearity),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            dtype,
            seed,
            init,
            0.0,
            recompute,
        )
        self.nonlinearity = nonlinearity

    def _extra_repr(self) -> str:
        options = super()._extra_repr()
        return options if self.nonlinearity == "tanh" else f"{options}, nonlinearity={self.nonlinearity}"


class LSTM(Recurrent[tuple[Array, Array]]):
    """Long short-term memory.

    i, f, o = sigmoid(W_ih x + b_ih + W_hh h + b_hh); g = tanh(...); c' = f*c + i*g; h' = o*tanh(c'),
    or h' = W_hr (o*tanh(c')) with proj_size > 0.

    The state is the pair (h (num_layers*D, B, Hout), c (num_layers*D, B, H)). Shapes, calls, arguments and
    exceptions as `Recurrent`. Parameters are named, shaped and ordered (i, f, g, o) as torch.nn.LSTM's:
    weight_ih_l{k}{_reverse} (4*H, I or D*Hout), weight_hh_l{k}{_reverse} (4*H, Hout),
    bias_ih_l{k}{_reverse} (4*H,), bias_hh_l{k}{_reverse} (4*H,), weight_hr_l{k}{_reverse} (proj_size, H).

    Args:
        proj_size: size of h if positive, below hidden_size; 0 for no projection.
        forget_bias: initial bias of the forget gate, put into bias_ih; used by init="default" only.

    Paper: Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000; projection: Sak, Senior and
    Beaufays 2014, arXiv:1402.1128v1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        forget_bias: float = 1.0,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            "lstm",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            dtype,
            seed,
            init,
            forget_bias,
            recompute,
        )


class GRU(Recurrent[Array]):
    """Gated recurrent unit with the reset gate after the matrix product.

    r, z = sigmoid(W_ih x + b_ih + W_hh h + b_hh); n = tanh(W_in x + b_in + r*(W_hn h + b_hn));
    h' = (1-z)*n + z*h.

    The state is the array h (num_layers*D, B, H). Shapes, calls, arguments and exceptions as `Recurrent`.
    Parameters are named, shaped and ordered (r, z, n) as torch.nn.GRU's: weight_ih_l{k}{_reverse}
    (3*H, I or D*H), weight_hh_l{k}{_reverse} (3*H, H), bias_ih_l{k}{_reverse} (3*H,),
    bias_hh_l{k}{_reverse} (3*H,).

    Args:
        reset_after: only True, the form above, is built.

    Paper: Cho et al. 2014, arXiv:1406.1078v1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        dtype: npt.DTypeLike = "float32",
        seed: Seed = None,
        init: str | None = "default",
        recompute: bool = False,
    ) -> None:
        check_reset_after(reset_after)
        super().__init__(
            "gru",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            dtype,
            seed,
            init,
            0.0,
            recompute,
        )
