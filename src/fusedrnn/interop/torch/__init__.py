"""Recurrent networks and losses for PyTorch; `fusedrnn.torch` is the public name."""

from fusedrnn.interop.torch.cells import GRUCell, LSTMCell, RNNCell
from fusedrnn.interop.torch.convert import convert, restore
from fusedrnn.interop.torch.crf import CRF
from fusedrnn.interop.torch.decoder import AttentionDecoder
from fusedrnn.interop.torch.joiner import TransducerJoiner
from fusedrnn.interop.torch.losses import ctc_loss, transducer_loss
from fusedrnn.interop.torch.modules import GRU, LSTM, RNN
from fusedrnn.interop.torch.networks import (
    LIF,
    MGU,
    SLSTM,
    SRU,
    Hybrid,
    IndRNN,
    LiGRU,
    MinGRU,
    MinLSTM,
    QuantumLSTM,
    Recurrent,
    VariantGRU,
    VariantLSTM,
    VariantRNN,
)
from fusedrnn.interop.torch.policies import process_sequence, recurrent_policy

__all__ = [
    "CRF",
    "GRU",
    "LIF",
    "LSTM",
    "MGU",
    "RNN",
    "SLSTM",
    "SRU",
    "AttentionDecoder",
    "GRUCell",
    "Hybrid",
    "IndRNN",
    "LSTMCell",
    "LiGRU",
    "MinGRU",
    "MinLSTM",
    "QuantumLSTM",
    "RNNCell",
    "Recurrent",
    "TransducerJoiner",
    "VariantGRU",
    "VariantLSTM",
    "VariantRNN",
    "convert",
    "ctc_loss",
    "process_sequence",
    "recurrent_policy",
    "restore",
    "transducer_loss",
]
