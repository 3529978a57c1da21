"""Networks of fusedrnn.torch that torch.nn has not, with what tests ask of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import fusedrnn as fr
import fusedrnn.torch as ft


def _leaky(x: Any, h: Any, s: Any, p: Any) -> dict[str, Any]:
    v = p.keep * s.v + fr.sym.tanh(x.u + h.u)
    return {"h": fr.sym.sigmoid(x.o + h.o) * v, "v": v}


LEAKY = fr.define_cell("leaky", "u o", "h v", _leaky, parameters={"keep": 0.5})

# Class, arguments before the sizes, options.
NETWORKS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("MGU", (), {}),
    ("IndRNN", (), {"nonlinearity": "tanh"}),
    ("MinGRU", (), {"num_layers": 2}),
    ("MinLSTM", (), {"bias": False}),
    ("SRU", (), {"bidirectional": True, "num_layers": 2}),
    ("LiGRU", (), {}),
    ("SLSTM", (), {"forget_gate": "exp"}),
    ("SLSTM", (), {"num_heads": 2}),
    ("LIF", (), {"recurrent": True}),
    ("Recurrent", (LEAKY,), {"bidirectional": True}),
    ("Recurrent", ("gru",), {"learned_state": True, "learned_reset_state": True}),
    ("VariantLSTM", (), {"peephole": True, "cell_clip": 3.0}),
    ("VariantLSTM", (), {"layer_norm": True, "bidirectional": True}),
    ("VariantLSTM", (), {"coupled_gates": True, "all_states": True}),
    ("VariantLSTM", (), {"proj_size": 2, "num_layers": 2, "init_state": (np.ones((2, 2)), np.ones((2, 4)))}),
    ("VariantGRU", (), {"reset_after": False}),
    ("VariantGRU", (), {"layer_norm": True, "residual": True, "num_layers": 2}),
    ("VariantRNN", (), {"nonlinearity": "relu", "layer_norm": True}),
    ("VariantGRU", (), {"bidirectional": True, "merge": "mul", "num_layers": 2}),
]
# What draws masks or normalises in training mode.
DRAWING: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("MGU", (), {"zoneout": 0.3}),
    ("VariantLSTM", (), {"recurrent_dropout": 0.4, "zoneout": (0.2, 0.5), "bidirectional": True}),
    ("VariantGRU", (), {"weight_dropout": 0.5}),
    ("VariantRNN", (), {"locked_dropout": 0.4, "dropout": 0.5, "num_layers": 2}),
    ("SRU", (), {"init_state": "normal"}),
    ("LiGRU", (), {"num_layers": 2, "dropout": 0.3}),
]

# The derivative of a spike is a surrogate, and what lies between heads has none by definition.
SMOOTH = [case for case in NETWORKS if case[0] != "LIF" and "num_heads" not in case[2]]


def name_of(case: Any) -> str:
    return f"{case[0]}-{'-'.join(case[2])}"


def made(case: Any, dtype: Any = torch.float64, **more: Any) -> tuple[Any, Any]:
    """A module, and the network of NumPy's side with its weights, each drawn anew."""
    torch.manual_seed(5)
    kind, first, options = case
    options = {**options, **more}
    ours = getattr(ft, kind)(*first, 3, 4, **options, dtype=dtype)
    for p in ours.parameters() if "num_heads" not in options else ():
        torch.nn.init.normal_(p, std=0.5)
    net = getattr(fr, kind.removeprefix("Variant"))(*first, 3, 4, **options, dtype=str(dtype)[6:])
    net.load_state_dict(ours.state_dict())
    return ours, net


def inputs(dtype: Any = torch.float64, seq_len: int = 5, batch: int = 3) -> Any:
    torch.manual_seed(2)
    return torch.randn(seq_len, batch, 3, dtype=dtype, requires_grad=True)


def flat(output: Any) -> list[Any]:
    y, state = output
    return [y, *(state if isinstance(state, tuple) else (state,))]


def equal(tensors: Any, arrays: Any) -> bool:
    pairs = zip(tensors, arrays, strict=True)
    return all(a.shape == b.shape and np.array_equal(a.detach().numpy(), b) for a, b in pairs)
