"""Fast recurrent networks: hand-written kernels for forward and backward under a thin NumPy API.

lstm = fusedrnn.LSTM(10, 20)
y, (h, c) = lstm(x)
y, state, tape = lstm.forward(x)
dx, dstate = lstm.backward(tape, dy)
"""

from fusedrnn import cuda, functional, init, optim
from fusedrnn._core import __version__
from fusedrnn.buffers import ParameterDict
from fusedrnn.cells import CELLS, CellSpec
from fusedrnn.clip import clip_grad_norm, clip_grad_value
from fusedrnn.config import config, get_num_threads, set_num_threads, show_config
from fusedrnn.embedding import Embedding
from fusedrnn.layers import Dropout, LayerNorm, Linear
from fusedrnn.lookup import Lookup
from fusedrnn.losses import cross_entropy, mse_loss
from fusedrnn.module import Module
from fusedrnn.quantized import QuantizedRecurrent, QuantizedStream
from fusedrnn.recurrent import GRU, LSTM, RNN
from fusedrnn.rnn_cells import GRUCell, LSTMCell, RNNCell
from fusedrnn.sequences import pad, unpad
from fusedrnn.stream import Stream
from fusedrnn.tape import Tape, set_detect_changes

__all__ = [
    "CELLS",
    "GRU",
    "LSTM",
    "RNN",
    "CellSpec",
    "Dropout",
    "Embedding",
    "GRUCell",
    "LSTMCell",
    "LayerNorm",
    "Linear",
    "Lookup",
    "Module",
    "ParameterDict",
    "QuantizedRecurrent",
    "QuantizedStream",
    "RNNCell",
    "Stream",
    "Tape",
    "__version__",
    "clip_grad_norm",
    "clip_grad_value",
    "config",
    "cross_entropy",
    "cuda",
    "functional",
    "get_num_threads",
    "init",
    "mse_loss",
    "optim",
    "pad",
    "set_detect_changes",
    "set_num_threads",
    "show_config",
    "unpad",
]
