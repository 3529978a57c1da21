"""Fast recurrent networks: hand-written kernels for forward and backward under a thin NumPy API.

lstm = fusedrnn.LSTM(10, 20)
y, (h, c) = lstm(x)
y, state, tape = lstm.forward(x)
dx, dstate = lstm.backward(tape, dy)
"""

import importlib

from fusedrnn import (
    cuda,
    decode,
    distributed,
    functional,
    init,
    interpret,
    losses,
    optim,
    per_example,
    preprocessing,
    training,
)
from fusedrnn._core import __version__
from fusedrnn.cells import CELLS, CellSpec
from fusedrnn.compute import get_float32_matmul_precision, set_float32_matmul_precision
from fusedrnn.config import config, get_num_threads, set_num_threads, show_config
from fusedrnn.inference.attention_stream import AttentionStream
from fusedrnn.inference.quantized import QuantizedRecurrent, QuantizedStream
from fusedrnn.inference.stream import Stream
from fusedrnn.inputs.lookup import Lookup
from fusedrnn.inputs.sequences import pad, unpad
from fusedrnn.losses.mixture import MixtureDensity
from fusedrnn.losses.regression import quantile_loss
from fusedrnn.nn.activations import GELU, ReLU, Sigmoid, Softmax, Tanh
from fusedrnn.nn.adaptive_softmax import AdaptiveSoftmax
from fusedrnn.nn.batch_norm import BatchNorm
from fusedrnn.nn.blocks import Concat, Residual, Sequential
from fusedrnn.nn.bptt import bptt, checkpoint
from fusedrnn.nn.buffers import ParameterDict
from fusedrnn.nn.containers import ModuleDict, ModuleList
from fusedrnn.nn.conv import Conv1d
from fusedrnn.nn.embedding import Embedding
from fusedrnn.nn.gradient_check import check_gradients
from fusedrnn.nn.hybrid import Hybrid, HybridStream
from fusedrnn.nn.layers import Dropout, LayerNorm, Linear
from fusedrnn.nn.module import Module
from fusedrnn.nn.module_stream import ModuleStream
from fusedrnn.nn.networks import LIF, MGU, SLSTM, SRU, IndRNN, LiGRU, MinGRU, MinLSTM
from fusedrnn.nn.pool import Pool
from fusedrnn.nn.quantum import QuantumLSTM
from fusedrnn.nn.recurrent import GRU, LSTM, RNN
from fusedrnn.nn.recurrent_base import Recurrent
from fusedrnn.nn.rnn_cells import GRUCell, LSTMCell, RNNCell
from fusedrnn.nn.sampled_softmax import SampledSoftmax
from fusedrnn.nn.self_attention import SelfAttention
from fusedrnn.nn.stateful import Stateful
from fusedrnn.nn.tape import Tape, set_detect_changes
from fusedrnn.saving import load, save
from fusedrnn.sequence.attention import AttentionDecoder
from fusedrnn.sequence.crf import CRF
from fusedrnn.sequence.ctc import ctc_align, ctc_decode, ctc_loss
from fusedrnn.sequence.ctc_stream import CTCStream
from fusedrnn.sequence.encoder_decoder import EncoderDecoder
from fusedrnn.sequence.scheduled_sampling import ScheduledSampling
from fusedrnn.sequence.tagger import Tagger
from fusedrnn.sequence.transducer import TransducerJoiner, transducer_loss
from fusedrnn.sequence.transducer_decoding import transducer_decode
from fusedrnn.symbolic import DefinedCell, cell_from_json, cell_to_json, define_cell, sym
from fusedrnn.training.clip import clip_grad_norm, clip_grad_value
from fusedrnn.training.linear_cross_entropy import linear_cross_entropy
from fusedrnn.training.losses import cross_entropy, mse_loss

__all__ = [
    "CELLS",
    "CRF",
    "GELU",
    "GRU",
    "LIF",
    "LSTM",
    "MGU",
    "RNN",
    "SLSTM",
    "SRU",
    "AdaptiveSoftmax",
    "AttentionDecoder",
    "AttentionStream",
    "BatchNorm",
    "CTCStream",
    "CellSpec",
    "Concat",
    "Conv1d",
    "DefinedCell",
    "Dropout",
    "Embedding",
    "EncoderDecoder",
    "GRUCell",
    "Hybrid",
    "HybridStream",
    "IndRNN",
    "LSTMCell",
    "LayerNorm",
    "LiGRU",
    "Linear",
    "Lookup",
    "MinGRU",
    "MinLSTM",
    "MixtureDensity",
    "Module",
    "ModuleDict",
    "ModuleList",
    "ModuleStream",
    "ParameterDict",
    "Pool",
    "QuantizedRecurrent",
    "QuantizedStream",
    "QuantumLSTM",
    "RNNCell",
    "ReLU",
    "Recurrent",
    "Residual",
    "SampledSoftmax",
    "ScheduledSampling",
    "SelfAttention",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Stateful",
    "Stream",
    "Tagger",
    "Tanh",
    "Tape",
    "TransducerJoiner",
    "__version__",
    "bptt",
    "cell_from_json",
    "cell_to_json",
    "check_gradients",
    "checkpoint",
    "clip_grad_norm",
    "clip_grad_value",
    "config",
    "cross_entropy",
    "ctc_align",
    "ctc_decode",
    "ctc_loss",
    "cuda",
    "decode",
    "define_cell",
    "distributed",
    "functional",
    "get_float32_matmul_precision",
    "get_num_threads",
    "init",
    "interpret",
    "linear_cross_entropy",
    "load",
    "losses",
    "mse_loss",
    "onnx",
    "optim",
    "pad",
    "per_example",
    "preprocessing",
    "quantile_loss",
    "save",
    "set_detect_changes",
    "set_float32_matmul_precision",
    "set_num_threads",
    "show_config",
    "sym",
    "training",
    "transducer_decode",
    "transducer_loss",
    "unpad",
]

# Each needs a library of its own, which is imported when it is first asked for.
_INTEROP = ("autograd", "estimators", "jax", "keras", "onnx", "torch")


def __getattr__(name: str) -> object:
    if name not in _INTEROP:
        raise AttributeError(f"module 'fusedrnn' has no attribute {name!r}")
    return importlib.import_module(f"fusedrnn.{name}")


def __dir__() -> list[str]:
    return __all__
