"""Modules: trees, state_dict, copies, and what may be written to."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from support import MODULE_CELLS, Array, make_module

import fusedrnn as fr

pytestmark = pytest.mark.once


class Net(fr.Module):
    """Embedding, bidirectional LSTM, norm, linear."""

    def __init__(self, dtype: str = "float32", seed: int = 0) -> None:
        super().__init__()
        self.embed = fr.Embedding(7, 4, dtype=dtype, seed=seed)
        self.rnn = fr.LSTM(4, 5, 2, bidirectional=True, dropout=0.3, dtype=dtype, seed=seed)
        self.norm = fr.LayerNorm(10, dtype=dtype)
        self.head = fr.Linear(10, 3, dtype=dtype, seed=seed)

    def __call__(self, tokens: Array) -> Array:
        return self.head(self.norm(self.rnn(self.embed(tokens))[0]))


TOKENS = np.array([[0, 1], [2, 6], [5, 3]])


def names(layers: int, bidirectional: bool, projected: bool = False, bias: bool = True) -> list[str]:
    kinds = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * bias + ["weight_hr"] * projected
    return [
        f"{n}_l{k}{s}" for k in range(layers) for s in ("", "_reverse")[: 1 + bidirectional] for n in kinds
    ]


def test_tree() -> None:
    net = Net()
    assert [name for name, _ in net.named_children()] == ["embed", "rnn", "norm", "head"]
    assert list(net.children()) == [net.embed, net.rnn, net.norm, net.head]
    assert next(iter(net.modules())) is net and len(list(net.modules())) == 5
    want = [
        "embed.weight",
        *(f"rnn.{n}" for n in names(2, True)),
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ]
    assert list(net.parameters) == want and list(net.grads) == want
    assert net.num_parameters == net.flat_parameters.size == sum(p.size for p in net.parameters.values())
    assert net.dtype == np.float32
    for name in want:
        assert net.grads[name].shape == net.parameters[name].shape


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", MODULE_CELLS)
def test_parameter_names_and_shapes_are_torchs(cell: str, bidirectional: bool, bias: bool) -> None:
    module = make_module(cell, 3, 6, 3, bidirectional=bidirectional, bias=bias)
    assert list(module.parameters) == names(3, bidirectional, cell == "lstm_proj", bias)
    gates = {"lstm": 4, "lstm_proj": 4, "gru": 3}.get(cell, 1)
    out = 3 if cell == "lstm_proj" else 6
    assert module.parameters["weight_ih_l0"].shape == (6 * gates, 3)
    assert module.parameters["weight_ih_l1"].shape == (6 * gates, out * (1 + bidirectional))
    assert module.parameters["weight_hh_l2"].shape == (6 * gates, out)


def test_children_join_late() -> None:
    """A child assigned after the parent's buffers were used moves in, with its values and gradients."""
    net = Net()
    before = net.flat_parameters.copy()
    extra = fr.Linear(3, 2, seed=5)
    extra.grads["bias"] = 2.0
    values = extra.flat_parameters.copy()
    net.extra = extra
    assert np.array_equal(net.flat_parameters, np.concatenate([before, values]))
    assert np.shares_memory(extra.parameters["weight"], net.flat_parameters)
    assert net.grads["extra.bias"].tolist() == [2.0, 2.0]
    outer = fr.Module()
    outer.net = net
    outer.flat_parameters[:] = 0.0
    assert not extra.parameters["weight"].any() and not net(TOKENS).any()
    del net.extra
    assert "extra.bias" not in net.parameters and "net.extra.bias" not in outer.parameters


def test_shared_child_is_counted_once() -> None:
    tied = fr.Module()
    tied.a = fr.Linear(2, 2)
    tied.b = tied.a
    assert list(tied.parameters) == ["a.weight", "a.bias"]


def test_a_module_goes_into_none_of_its_own_tree() -> None:
    """Directly or through others, whatever way it is put there: calls and texts would not end."""
    net, row, named = fr.Module(), fr.Sequential(fr.Linear(2, 2)), fr.ModuleDict()
    net.row, row[0].named = row, named
    text = repr(net)
    for call, message in (
        (lambda: setattr(net, "b", net), "b: expected a module without this Module in it, got itself"),
        (lambda: net.add_module("b", net), "b: expected .*, got itself"),
        (lambda: setattr(row[0], "b", net), "b: expected a module without this Linear .* Module that holds"),
        (lambda: row.append(row), r"modules\[1\]: expected a module without this Sequential .*, got itself"),
        (lambda: row.extend([fr.Linear(2, 2), net]), r"modules\[2\]: .*, got a Module that holds it"),
        (lambda: row.insert(0, net), r"modules\[0\]: .*, got a Module that holds it"),
        (lambda: row.__setitem__(0, fr.Residual(row)), r"modules\[0\]: .*, got a Residual that holds it"),
        (lambda: named.__setitem__("b", named), "b: .*, got itself"),
        (lambda: named.update({"a": fr.Linear(2, 2), "b": row}), "b: .*, got a Sequential that holds it"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
        assert repr(net) == text and not hasattr(net, "b") and not hasattr(row[0], "b")
    net.again = row[0]
    assert net.num_parameters == 6


def test_mixed_dtypes_are_refused() -> None:
    mixed = fr.Module()
    mixed.a, mixed.b = fr.Linear(2, 2), fr.Linear(2, 2, dtype="float64")
    with pytest.raises(TypeError, match="float"):
        mixed.flat_parameters  # noqa: B018


def test_parameters_are_writable_views() -> None:
    net = Net("float64")
    net.parameters["head.bias"] = np.array([1.0, 2.0, 3.0])
    net.parameters["head.bias"] *= 2.0
    assert net.head.parameters["bias"].tolist() == [2.0, 4.0, 6.0]
    assert net.flat_parameters[-3:].tolist() == [2.0, 4.0, 6.0]
    for name, value in (("surplus", np.zeros(3)), ("head.bias", np.zeros(4))):
        with pytest.raises((KeyError, ValueError)):
            net.parameters[name] = value


def test_changed_weights_are_seen_at_once() -> None:
    """Packed weights are renewed after any way of writing: a view, the flat array, a step, a load."""
    net = Net("float64").eval()
    seen = [net(TOKENS)]
    net.parameters["rnn.weight_hh_l1"][0, 0] += 1.0
    seen.append(net(TOKENS))
    net.flat_parameters[:] *= 1.1
    seen.append(net(TOKENS))
    net.flat_grads[:] = 1.0
    fr.optim.SGD(net, lr=0.1).step()
    seen.append(net(TOKENS))
    net.load_state_dict(Net("float64", seed=9).state_dict())
    seen.append(net(TOKENS))
    for a, b in pairwise(seen):
        assert not np.array_equal(a, b)
    assert np.array_equal(seen[-1], Net("float64", seed=9).eval()(TOKENS))


def test_state_dict_round_trip() -> None:
    net, other = Net(seed=1).eval(), Net(seed=2).eval()
    saved = net.state_dict()
    assert list(saved) == list(net.parameters)
    for name, value in saved.items():
        assert not np.shares_memory(value, net.flat_parameters) and value.flags.writeable, name
    other.load_state_dict(saved)
    assert np.array_equal(other.flat_parameters, net.flat_parameters)
    assert np.array_equal(other(TOKENS), net(TOKENS))
    wide = Net("float64")
    wide.load_state_dict(saved)
    assert np.array_equal(wide.flat_parameters, net.flat_parameters.astype("float64"))
    assert all(np.array_equal(a, saved[n]) for n, a in copy.deepcopy(net).state_dict().items())


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"head.bias": None}, ValueError, "missing: head.bias"),
        ({"surplus": np.zeros(3)}, ValueError, "unexpected: surplus"),
        ({"head.bias": np.zeros(4)}, ValueError, "head.bias: expected shape"),
        ({"head.weight": np.zeros((10, 3))}, ValueError, "head.weight: expected shape"),
        ({"head.bias": np.zeros(3, np.int64)}, TypeError, "head.bias"),
        ({"head.bias": np.array(["a", "b", "c"])}, TypeError, "head.bias"),
        ({"head.bias": "abc"}, TypeError, "head.bias"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_state_dict_writes_nothing(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    net = Net(seed=1)
    before = net.flat_parameters.copy()
    saved = {**Net(seed=2).state_dict(), **change}
    saved = {name: value for name, value in saved.items() if value is not None}
    with pytest.raises(kind, match=message):
        net.load_state_dict(saved)
    assert np.array_equal(net.flat_parameters, before)


def test_load_not_strict() -> None:
    net = Net(seed=1)
    saved = {"head.bias": np.ones(3, np.float32), "surplus": np.zeros(2)}
    result = net.load_state_dict(saved, strict=False)
    assert net.parameters["head.bias"].tolist() == [1.0] * 3
    assert "surplus" in result.unexpected_keys and "head.weight" in result.missing_keys
    with pytest.raises(ValueError, match=r"head\.bias"):
        net.load_state_dict({"head.bias": np.ones(4)}, strict=False)


def test_repr() -> None:
    text = repr(Net())
    for part in (
        "Net(",
        "(embed): Embedding(7, 4)",
        "(rnn): LSTM(4, 5, ",
        "num_layers=2",
        "(norm): LayerNorm(",
    ):
        assert part in text
    assert "bidirectional=True" in text and "dropout=0.3" in text
    assert repr(fr.GRU(3, 4)) == "GRU(3, 4)"
    assert "relu" in repr(fr.RNN(3, 4, nonlinearity="relu")) and "float64" in repr(
        fr.LSTM(3, 4, dtype="float64")
    )
    assert "proj_size=2" in repr(fr.LSTM(3, 4, proj_size=2))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(how: str) -> None:
    """A copy computes the same, has buffers of its own, and the same noise to come."""
    net = Net(seed=1)
    net.flat_grads[:] = 3.0
    other = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    assert not np.shares_memory(other.flat_parameters, net.flat_parameters)
    assert np.array_equal(other.flat_grads, net.flat_grads)
    assert np.array_equal(other(TOKENS), net(TOKENS))
    assert np.array_equal(other.eval()(TOKENS), net.eval()(TOKENS))
    other.flat_parameters[:] = 0.0
    other.zero_grad()
    assert net.flat_parameters.any() and net.flat_grads.any()
    assert not other(TOKENS).any()
    for name, view in other.parameters.items():
        assert np.shares_memory(view, other.flat_parameters), name


def test_train_and_eval() -> None:
    net = Net("float64")
    assert net.training and net.rnn.training
    assert net.eval() is net and not net.rnn.training and not net.training
    assert np.array_equal(net(TOKENS), net(TOKENS))
    assert net.train() is net and net.rnn.training
    assert not np.array_equal(net(TOKENS), net(TOKENS))
    net.train(False)
    assert not net.head.training


def test_module_basics() -> None:
    class Forgetful(fr.Module):
        def __init__(self) -> None:
            self.child = fr.Linear(2, 2)

    with pytest.raises(RuntimeError, match="super"):
        Forgetful()
    empty = fr.Module()
    assert empty.num_parameters == 0 and empty.flat_parameters.size == 0 and empty.state_dict() == {}
    empty.zero_grad()
    assert fr.LSTM(2, 3, dtype=np.float64).dtype == np.float64
    with pytest.raises(UserWarning, match="dropout"):
        fr.LSTM(2, 3, dropout=0.5)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (fr.LSTM(2, 3), ("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size")),
        (fr.GRU(2, [3, 4]), ("hidden_size", "num_layers")),
        (fr.RNNCell(2, 3), ("input_size", "hidden_size", "bias")),
        (fr.Linear(2, 3), ("in_features", "out_features", "bias")),
        (fr.Embedding(2, 3), ("num_embeddings", "embedding_dim")),
        (fr.SelfAttention(3), ("embed_dim", "num_heads", "bias")),
        (fr.Hybrid(3), ("size", "num_layers", "cell", "num_heads", "attention_layer", "expansion")),
        (fr.LayerNorm(3), ("normalized_shape", "elementwise_affine", "bias")),
        (fr.BatchNorm(3), ("num_features", "affine")),
        (fr.Conv1d(2, 3, 1), ("in_channels", "out_channels", "kernel_size", "bias")),
        (fr.Pool("attention", 3), ("kind", "features")),
        (fr.AdaptiveSoftmax(4, 9, [4]), ("in_features", "n_classes", "cutoffs", "div_value", "head_bias")),
        (fr.SampledSoftmax(3, 9, 4), ("in_features", "n_classes")),
        (fr.QuantumLSTM(2, 3), ("input_size", "hidden_size", "qubits", "layers")),
        (fr.CRF(3), ("num_tags",)),
        (fr.TransducerJoiner(3, 4), ("hidden_size", "num_classes")),
        (fr.AttentionDecoder("gru", 2, 3, 4), ("cell", "input_size", "hidden_size", "memory_size", "bias")),
        (fr.AttentionDecoder("gru", 2, 3, 4, num_layers=2), ("num_layers",)),
    ],
)
def test_what_parameters_were_made_by_stays(module: fr.Module, names: tuple[str, ...]) -> None:
    """Set later, it did nothing but change what repr and other formats say."""
    text = repr(module)
    for name in names:
        with pytest.raises(AttributeError, match=f"^{name}: expected as an argument, .*{name}=2\\), since"):
            setattr(module, name, 2)
    assert repr(module) == text and repr(copy.deepcopy(module)) == text
