"""help, dir and repr: arguments are explained where one asks, names are public, reprs can be pasted."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

pytestmark = pytest.mark.once

CONSTRUCTORS = [
    *(fr.Recurrent, fr.MGU, fr.IndRNN, fr.MinGRU, fr.MinLSTM, fr.SRU, fr.LiGRU, fr.SLSTM, fr.LIF),
    *(fr.RNN, fr.LSTM, fr.GRU, fr.RNNCell, fr.LSTMCell, fr.GRUCell),
    *(fr.Linear, fr.Embedding, fr.LayerNorm, fr.Dropout, fr.CRF, fr.AttentionDecoder),
    *(fr.EncoderDecoder, fr.ScheduledSampling, fr.QuantumLSTM),
    *(fr.AdaptiveSoftmax, fr.SampledSoftmax, fr.MixtureDensity, fr.CTCStream),
    *(fr.Sequential, fr.Residual, fr.Concat, fr.Pool, fr.BatchNorm, fr.Conv1d, fr.SelfAttention, fr.Hybrid),
    *(fr.Stateful, fr.Tagger),
    *(fr.optim.SGD, fr.optim.Adam, fr.optim.AdamW),
    *(fr.optim.StepLR, fr.optim.MultiStepLR, fr.optim.ExponentialLR, fr.optim.LinearLR),
    *(fr.optim.CosineAnnealingLR, fr.optim.OneCycleLR, fr.optim.NoamLR, fr.optim.SequentialLR),
    *(fr.optim.ReduceLROnPlateau, fr.training.Trainer, fr.training.EarlyStopping, fr.training.SequenceData),
    *(fr.preprocessing.Scaler, fr.preprocessing.Vocabulary, fr.preprocessing.Tokenizer),
]
CALLS = [
    fr.LSTM.__call__,
    fr.LSTM.forward,
    fr.LSTM.stream,
    fr.SelfAttention.stream,
    fr.Hybrid.forward,
    fr.Stateful.forward,
    fr.Tagger.forward,
    fr.Tagger.loss,
    fr.Stateful.backward,
    fr.Hybrid.stream,
    fr.LSTMCell.__call__,
    fr.LSTM.backward,
    fr.LSTM.quantize,
    fr.LSTMCell.forward,
    fr.LSTMCell.backward,
    fr.QuantizedRecurrent,
    fr.QuantizedRecurrent.__call__,
    fr.QuantizedRecurrent.stream,
    fr.Lookup,
    fr.Embedding.backward,
    fr.functional.forward,
    fr.functional.backward,
    *[getattr(fr.losses, name) for name in fr.losses.__all__],
    fr.training.Trainer.fit,
    fr.training.Trainer.evaluate,
    fr.preprocessing.windows,
    fr.preprocessing.impute,
    fr.preprocessing.buckets,
    fr.ctc_loss,
    fr.ctc_align,
    fr.ctc_decode,
    fr.CRF.loss,
    fr.CRF.decode,
    fr.CRF.marginals,
    fr.AdaptiveSoftmax.loss,
    fr.SampledSoftmax.loss,
    fr.transducer_decode,
    fr.per_example.norms,
    fr.MixtureDensity.loss,
    fr.MixtureDensity.sample,
    fr.AttentionDecoder.forward,
    fr.AttentionDecoder.backward,
    fr.EncoderDecoder.forward,
    fr.EncoderDecoder.backward,
    fr.QuantumLSTM.forward,
    fr.QuantumLSTM.backward,
    fr.decode.beam_search,
    fr.clip_grad_norm,
    fr.clip_grad_value,
    fr.pad,
    fr.unpad,
    fr.set_detect_changes,
    fr.set_num_threads,
    fr.define_cell,
    fr.cell_to_json,
    fr.cell_from_json,
    fr.save,
    fr.load,
    fr.check_gradients,
    fr.Sequential.forward,
    fr.Pool.forward,
    fr.BatchNorm.forward,
    fr.Conv1d.forward,
    fr.sym.heaviside,
    *[getattr(fr.init, name) for name in fr.init.__all__],
]


def explained(target: Any) -> dict[str, str]:
    """The arguments in the Args section of a docstring, each with what is said about it."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", f"{inspect.getdoc(target)}\n", re.MULTILINE)
    found = re.split(r"^    (\w+): ", section[1] if section else "", flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


@pytest.mark.parametrize("target", [*CONSTRUCTORS, *CALLS], ids=lambda target: target.__qualname__)
def test_every_argument_is_explained_there(target: Any) -> None:
    names = [name for name in inspect.signature(target).parameters if name != "self"]
    assert list(explained(target)) == names
    if target in CONSTRUCTORS:
        assert "Raises:" in (inspect.getdoc(target) or "")


def test_the_same_argument_is_explained_alike() -> None:
    """The text stands once for each network and cell: it must not come to differ."""
    for family in ((fr.RNN, fr.LSTM, fr.GRU, fr.Recurrent), (fr.RNNCell, fr.LSTMCell, fr.GRUCell)):
        texts = [explained(target) for target in family]
        for name in set.intersection(*map(set, texts)) - {"init"}:
            assert len({text[name] for text in texts}) == 1, name


@pytest.mark.parametrize("target", [*CONSTRUCTORS, *CALLS], ids=lambda target: target.__qualname__)
def test_signatures_name_types_by_their_short_names(target: Any) -> None:
    text = str(inspect.signature(target))
    assert not re.search(r"numpy\.|fusedrnn\.|typing\.|collections\.", text), text


MODULES = [
    "LSTM(3, 5)",
    "LSTM(3, 5, proj_size=2, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True, "
    "recompute=True, dtype='float64')",
    "GRU(3, 5, dtype='float64')",
    "RNN(3, 5, num_layers=2, nonlinearity='relu')",
    "LSTM(3, 5, peephole=True, cell_clip=3.0)",
    "LSTM(3, 5, bias=False, coupled_gates=True)",
    "MGU(3, 5, num_layers=2, bidirectional=True)",
    "IndRNN(3, 5, bias=False)",
    "IndRNN(3, 5, dtype='float64', nonlinearity='tanh')",
    "MinGRU(3, 5, batch_first=True)",
    "MinLSTM(3, 5)",
    "SRU(3, 5)",
    "LiGRU(3, 5, bidirectional=True)",
    "LiGRU(3, 5, batch_norm=False)",
    "SLSTM(3, 6, num_heads=3, forget_gate='exp')",
    "GRU(3, 5, init_state='normal', learned_reset_state=True, batch_norm=True)",
    "LIF(3, 5)",
    "LIF(3, 5, beta=0.5, learn_beta=False, threshold=2.0, surrogate='sigmoid', slope=5.0, recurrent=True)",
    "Recurrent('gru', 3, 5)",
    "LSTMCell(3, 5, bias=False, dtype='float64')",
    "GRUCell(3, 5)",
    "RNNCell(3, 5, nonlinearity='relu')",
    "Linear(in_features=3, out_features=4, bias=False, dtype='float64')",
    "Linear(in_features=3, out_features=4, bias=True, weight_of=Embedding(4, 3))",
    "Embedding(5, 3, padding_idx=1, dtype='float64')",
    "LayerNorm((3, 2), eps=0.01, elementwise_affine=True, bias=False, dtype='float64')",
    "LayerNorm((3,), eps=1e-05, elementwise_affine=False)",
    "Dropout(p=0.25)",
]


@pytest.mark.parametrize("text", MODULES)
def test_module_reprs(text: str) -> None:
    """A repr is a call that makes such a module again, with every option that is not the default."""
    assert repr(eval(text, vars(fr))) == text
    module = eval(text, vars(fr))
    again = eval(repr(module), vars(fr))
    assert module._shapes == again._shapes and module.dtype == again.dtype


@pytest.mark.parametrize(
    "text",
    [
        "SGD(Linear(in_features=3, out_features=4, bias=True), lr=0.1, momentum=0.9, dampening=0.0, "
        "weight_decay=0.0, nesterov=True)",
        "Adam(GRU(3, 5), lr=0.001, betas=(0.9, 0.99), eps=1e-08, weight_decay=0.0)",
        "AdamW([GRU(3, 5), Dropout(p=0.5)], lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)",
    ],
)
def test_optimiser_reprs(text: str) -> None:
    assert repr(eval(text, {**vars(fr), **vars(fr.optim)})) == text


def test_other_reprs() -> None:
    lstm = fr.LSTM(3, 5)
    assert repr(lstm.quantize("int8")) == "QuantizedRecurrent(LSTM(3, 5), weights='int8')"
    assert repr(lstm.stream(2)) == "Stream(LSTM(3, 5), batch_size=2)"
    for stream in (lstm.stream(2), lstm.quantize("bf16").stream(2)):
        assert repr(eval(repr(stream), vars(fr))) == repr(stream)


def test_dir_lists_public_names() -> None:
    for package in (fr, fr.optim, fr.functional, fr.init, fr.cuda, fr.sym, fr.training, fr.preprocessing):
        assert dir(package) == sorted(package.__all__)
        assert all(hasattr(package, name) for name in dir(package))
    lstm, embedding = fr.LSTM(2, 3), fr.Embedding(4, 2)
    x = np.zeros((1, 1, 2), np.float32)
    tape = lstm.forward(x)[2]
    objects: list[Any] = [
        *(lstm, fr.GRUCell(2, 3), fr.Linear(2, 3), embedding, fr.Dropout()),
        *(fr.optim.Adam(lstm), lstm.stream(), lstm.quantize("int8"), lstm.quantize("int8").stream()),
        *(embedding.lookup([[1]]), tape, fr.Linear(2, 3).forward(x)[1]),
        fr.functional.forward("lstm", x, list(lstm.state_dict().values()))[2],
    ]
    for value in objects:
        assert dir(value) and not [name for name in dir(value) if name.startswith("_")], value
        assert all(hasattr(value, name) for name in dir(value))
    assert {"forward", "hidden_size", "parameters", "stream"} <= set(dir(lstm))
    assert not {"pays", "with_table", "with_indices", "table_gradient"} & set(dir(embedding.lookup([[1]])))
    assert not {"on", "packing"} & set(dir(tape))
