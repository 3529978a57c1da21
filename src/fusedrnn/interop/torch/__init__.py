"""Recurrent networks and losses for PyTorch; `fusedrnn.torch` is the public name."""

from fusedrnn.interop.torch.convert import convert, restore
from fusedrnn.interop.torch.losses import ctc_loss
from fusedrnn.interop.torch.modules import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "convert", "ctc_loss", "restore"]
