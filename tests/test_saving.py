"""Models in files: the same model again, nothing executed, whatever the file says."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import fusedrnn as fr
from fusedrnn import saving

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4, 3)).astype("f4")


class Tagger(fr.Module):
    """A model of one's own, with a parameter and a buffer."""

    def __init__(
        self, sizes: Any, tags: int = 3, *, body: Any = None, seed: Any = None, note: Any = None
    ) -> None:
        super().__init__()
        hidden, layers = sizes
        self.body = body or fr.Sequential()
        self.rnn = fr.LSTM(3, hidden, layers, seed=seed)
        self.head = fr.Linear(hidden, tags, seed=seed)
        self.note = note
        self.parameter("gain", (tags,), 1.0)
        self.buffer("calls", (), dtype="int64")

    def forward(self, x: Any) -> Any:
        y, _, rnn = self.rnn.forward(self.body(x))
        y, head = self.head.forward(y)
        return y * self.gain, (rnn, head)


class Other(fr.Module):
    """It needs what no file holds."""

    def __init__(self, vocabulary: Any) -> None:
        super().__init__()


def a_cell() -> Any:
    return fr.define_cell("decay", "u", "h", lambda x, h, s, p: {"h": p.d * s.h + x.u}, parameters={"d": 0.5})


def cell_of_rows() -> Any:
    def step(x: Any, h: Any, s: Any, p: Any) -> Any:
        normed = fr.sym.layer_norm(x.u + h.u)
        return {"h": fr.sym.tanh(normed)}

    return fr.define_cell("normed", "u", "h", step)


def tied() -> fr.Module:
    embedding = fr.Embedding(7, 4, padding_idx=-1, seed=0)
    return fr.Sequential(embedding, fr.GRU(4, 4, seed=1), fr.Linear(4, 7, weight_of=embedding))


def shared() -> fr.Module:
    linear = fr.Linear(3, 3, seed=0)
    return fr.Sequential(linear, fr.Tanh(), linear)


def grown() -> fr.Module:
    net = fr.Sequential(fr.Linear(3, 4, seed=0))
    net.append(fr.Residual(fr.Linear(4, 4, seed=1)))
    net[1].module = fr.Linear(4, 4, bias=False, seed=2)
    net.insert(0, fr.Dropout(0.25))
    net[0].p = 0.125
    return net


def frozen() -> fr.Module:
    net = fr.Sequential({"a": fr.Linear(3, 3, seed=0), "b": fr.BatchNorm(3)})
    net(X)
    net["a"].requires_grad_(False)
    net["b"].eval()
    return net


MODELS: dict[str, Callable[[], Any]] = {
    "rnn": lambda: fr.RNN(3, 4, 2, "relu", bidirectional=True, seed=0),
    "lstm": lambda: fr.LSTM(3, 5, proj_size=2, num_layers=2, dropout=0.5, forget_bias=2.0, seed=0),
    "peephole": lambda: fr.LSTM(3, 4, peephole=True, cell_clip=3.0, recompute=True, seed=0),
    "normed": lambda: fr.GRU(3, 4, layer_norm=True, seed=0),
    "gru_before": lambda: fr.GRU(3, 4, reset_after=False, batch_first=True, weight_dropout=0.5, seed=0),
    "recurrent": lambda: fr.Recurrent("gru", 3, 4, seed=0),
    "defined": lambda: fr.Recurrent(a_cell(), 3, 4, 2, seed=0),
    "rows": lambda: fr.Recurrent(cell_of_rows(), 3, 4, seed=0),
    "lif": lambda: fr.LIF(3, 4, beta=0.5, surrogate="sigmoid", slope=5.0, seed=0),
    "sru": lambda: fr.SRU(3, 4, num_layers=2, dtype="float64", seed=0),
    "masks": lambda: fr.LSTM(3, 4, recurrent_dropout=0.2, zoneout=(0.1, 0.3), seed=0),
    "zoneout": lambda: fr.Recurrent("gru", 3, 4, zoneout=0.1, seed=0),
    "defined_masks": lambda: fr.Recurrent(a_cell(), 3, 4, zoneout=0.5, seed=0),
    "sizes": lambda: fr.GRU(3, [4, 5], 2, bidirectional=True, merge="sum", locked_dropout=(0.1, 0.2), seed=0),
    "joined": lambda: fr.SRU(3, 3, 2, residual=True, learned_state=True, seed=0),
    "indrnn": lambda: fr.IndRNN(3, 4, 1, "tanh", bias=False, seed=0),
    "cells": lambda: fr.ModuleList(
        [fr.LSTMCell(3, 4, seed=0), fr.GRUCell(3, 4), fr.RNNCell(3, 4, nonlinearity="relu")]
    ),
    "others": lambda: fr.ModuleDict({"mgu": fr.MGU(3, 4), "g": fr.MinGRU(3, 4), "l": fr.MinLSTM(3, 4)}),
    "norms": lambda: fr.Sequential(fr.LayerNorm((3,), eps=0.1, bias=False), fr.BatchNorm(3, momentum=None)),
    "blocks": lambda: fr.Sequential(
        fr.Conv1d(3, 4, 3, padding="causal", seed=0),
        fr.Concat(fr.Sequential(fr.GELU("tanh"), fr.Softmax(-1)), fr.ReLU(), fr.Sigmoid()),
        fr.Pool("attention", 12, seed=0),
    ),
    "attention": lambda: fr.SelfAttention(3, 3, causal=True, seed=0),
    "hybrid": lambda: fr.Hybrid(3, 1, "gru", 3, expansion=2, dropout=0.5, seed=0),
    "quantum": lambda: fr.QuantumLSTM(3, 4, 2, layers=2, batch_first=True, seed=0),
    "tied": tied,
    "shared": shared,
    "grown": grown,
    "frozen": frozen,
    "wide": lambda: fr.Sequential(fr.Linear(3, 4, seed=0), fr.GRU(4, 2, seed=0)).astype("float64"),
    "crf": lambda: fr.CRF(3, np.array([[True, False, True]] * 3), batch_first=True, seed=0),
    "bio": lambda: fr.CRF(5, "bio", seed=0),
    "decoder": lambda: fr.AttentionDecoder("lstm", 3, 4, 5, 6, bias=False, seed=0),
    "encoder_decoder": lambda: fr.EncoderDecoder(
        fr.GRU(3, 4, seed=0),
        fr.Embedding(5, 2, seed=1),
        fr.AttentionDecoder("gru", 2, 3, 4, seed=2),
        fr.Linear(3, 5, seed=3),
        fr.Sequential(fr.Pool("mean"), fr.Linear(4, 3, seed=4)),
        bos=3,
        eos=4,
    ),
    "layers": lambda: fr.AttentionDecoder("lstm", 3, 4, 5, num_layers=3, seed=0),
    "luong": lambda: fr.AttentionDecoder(
        "gru", 3, 4, 5, score="general", query="current", input_feeding=True
    ),
    "joiner": lambda: fr.TransducerJoiner(4, 5, seed=0),
    "adaptive": lambda: fr.AdaptiveSoftmax(8, 9, [3, 5], 2.0, True, seed=0),
    "sampled": lambda: fr.SampledSoftmax(3, 9, 4, "uniform", seed=0),
    "own": lambda: Tagger(
        (4, 2), note={"a": [1, None, (2.5, True)], 3: float("inf")}, body=frozen(), seed=RNG
    ),
    "own_in": lambda: fr.Sequential({"first": Tagger([3, 1], 3, seed=1), "then": Tagger([2, 1], tags=2)}),
}


def settings(model: Any) -> list[Any]:
    return [
        (name, type(module), module.training, module._frozen, module._shapes)
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model_again(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    for array in model.parameters.values():
        array[...] += RNG.normal(size=array.shape)
    fr.save(model, tmp_path / "m.safetensors")
    again = fr.load(str(tmp_path / "m.safetensors"), classes=[Tagger])
    assert repr(again) == repr(model) and settings(again) == settings(model) and again.dtype == model.dtype
    want, got = model.state_dict(), again.state_dict()
    assert list(got) == list(want)
    for key, array in want.items():
        assert np.array_equal(got[key], array) and got[key].dtype == array.dtype
    fr.save(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    if name not in (
        "cells",
        "others",
        "crf",
        "bio",
        "decoder",
        "encoder_decoder",
        "layers",
        "luong",
        "joiner",
        "adaptive",
        "tied",
    ):
        x = X.astype(model.dtype)
        model.eval()
        for a, b in zip(flat(model(x)), flat(again.eval()(x)), strict=True):
            np.testing.assert_array_equal(a, b)


def flat(value: Any) -> list[Any]:
    return [part for item in value for part in flat(item)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        (fr.GRU(3, 4, seed=0), "batch_first", True),
        (fr.GRU(3, 4, 2, seed=0), "dropout", 0.25),
        (fr.Dropout(), "p", 0.1),
        (fr.Embedding(5, 3, seed=0), "padding_idx", 2),
        (fr.LayerNorm(3), "eps", 0.1),
        (fr.Conv1d(3, 4, 3, seed=0), "padding", "causal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_that_was_left_to_its_default_and_set_later(
    model: Any, name: str, value: Any, tmp_path: Path
) -> None:
    setattr(model, name, value)
    fr.save(model, tmp_path / "model")
    assert getattr(fr.load(tmp_path / "model"), name) == value


@pytest.mark.parametrize("kind", [fr.RNN, fr.RNNCell])
def test_the_function_of_a_step_cannot_be_set_later(kind: Any, tmp_path: Path) -> None:
    module = kind(3, 4, nonlinearity="relu", seed=0)
    with pytest.raises(AttributeError):
        module.nonlinearity = "tanh"
    fr.save(module, tmp_path / "model")
    assert fr.load(tmp_path / "model").nonlinearity == "relu" and kind(3, 4).nonlinearity == "tanh"


def test_what_is_shared_stays_shared(tmp_path: Path) -> None:
    fr.save(shared(), tmp_path / "m")
    again = fr.load(tmp_path / "m")
    assert again[0] is again[2] and again.num_parameters == 12
    fr.save(tied(), tmp_path / "m")
    again = fr.load(tmp_path / "m")
    assert again[2]._tied["weight"] is again[0]


def test_every_class_of_the_package_is_known() -> None:
    public = {
        name
        for name in fr.__all__
        if isinstance(kind := getattr(fr, name, None), type) and issubclass(kind, fr.Module)
    }
    assert public == set(saving._OWN)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_can_be_saved(how: Callable[[Any], Any], tmp_path: Path) -> None:
    for name in ("tied", "own", "blocks", "defined"):
        model = MODELS[name]()
        other = how(model)
        fr.save(model, tmp_path / "a")
        fr.save(other, tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_tensors_are_a_state_dict(tmp_path: Path) -> None:
    """Any reader of safetensors has the weights."""
    model = grown()
    fr.save(model, tmp_path / "m")
    tensors = safetensors.numpy.load_file(tmp_path / "m")
    assert sorted(tensors) == sorted(model.state_dict())


def test_what_save_refuses(tmp_path: Path) -> None:
    changed = Tagger((4, 1))
    changed.head = fr.Linear(4, 9)
    bare = fr.Module()
    bare.body = fr.Linear(2, 2)

    class Linear(fr.Linear):
        pass

    twins = fr.Sequential(Linear(2, 2), type("Linear", (fr.Linear,), {})(2, 2))
    for model, kind, text in (
        ("model", TypeError, "model: expected a Module, got str"),
        (Other(object()), TypeError, "Other: vocabulary: expected numbers, .*, got object"),
        (
            Other([3, {1, 2}]),
            TypeError,
            r"Other: vocabulary\[1\]: expected numbers, .*, got set",
        ),
        (Other(np.zeros(1 << 20)), TypeError, "Other: vocabulary: expected .* arrays of at most 1 MB"),
        (
            changed,
            ValueError,
            r"head: expected a model that its constructor's arguments make again, got Linear",
        ),
        (bare, ValueError, r"body: expected a model that its constructor's arguments make again"),
        (twins, ValueError, "classes: expected one class called Linear, got two"),
    ):
        with pytest.raises(kind, match=text):
            fr.save(model, tmp_path / "m")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="cannot write: No such file"):
        fr.save(grown(), tmp_path / "none" / "m")


def test_what_load_refuses(tmp_path: Path) -> None:
    fr.save(MODELS["own"](), tmp_path / "m")
    twin = type("Tagger", (fr.Module,), {})
    fails = type("Tagger", (fr.Module,), {"__init__": lambda self, *a, **k: 1 / 0})
    for classes, kind, text in (
        ([], ValueError, r"expected 'Tagger' among classes; .* load\(path, classes=\[Tagger\]\)"),
        ([dict], TypeError, "classes: expected classes of modules, got <class 'dict'>"),
        (Tagger, TypeError, r"classes: expected a list of classes, got Tagger; use \[Tagger\]"),
        ([Tagger, twin], ValueError, "classes: expected one class called Tagger, got two"),
        ([fails], ZeroDivisionError, "division by zero"),
    ):
        with pytest.raises(kind, match=text):
            fr.load(tmp_path / "m", classes=classes)
    with pytest.raises(OSError, match="No such file"):
        fr.load(tmp_path / "none")
    safetensors.numpy.save_file({"a": X}, tmp_path / "plain")
    with pytest.raises(ValueError, match="expected a fusedrnn model, got another safetensors file"):
        fr.load(tmp_path / "plain")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    fr.save(grown(), path)
    old = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        fr.save(tied(), path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["m"]


def test_a_file_is_loaded_where_its_class_was_not(tmp_path: Path) -> None:
    """In another process, with nothing but the class given; nothing is imported by name."""
    fr.save(MODELS["blocks"](), tmp_path / "m")
    code = f"import fusedrnn as fr; print(fr.load({str(tmp_path / 'm')!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(MODELS["blocks"]())
    text = (tmp_path / "m").read_text(errors="replace")
    assert "__main__" not in text and "test_saving" not in text
