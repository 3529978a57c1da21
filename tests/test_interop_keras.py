"""fusedrnn.keras: models and weights of Keras's files beside what Keras computes; files that are refused."""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr

h5py = pytest.importorskip("h5py")

from keras_files import cell_weights, draw, layer, run, write_h5, write_keras  # noqa: E402

import fusedrnn.keras as fk  # noqa: E402

pytestmark = pytest.mark.once

B, T, I, H = 4, 7, 5, 6
CELLS = [("LSTM", {}), ("GRU", {"reset_after": True}), ("GRU", {"reset_after": False}), ("SimpleRNN", {})]
GROUP = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "simple_rnn"}
# Padding at the right, at the left, within, and a row of nothing else.
TOKENS = np.random.default_rng(0).integers(1, 9, (B, T))
TOKENS[0, 4:] = TOKENS[1] = TOKENS[2, :2] = TOKENS[3, 3] = 0


def values(weights: Any, prefix: str) -> list[Any]:
    return [weights[name] for name in sorted(weights) if name.startswith(prefix)]


def close(found: Any, want: Any) -> None:
    assert found.dtype == np.float32 and found.shape == want.shape
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize(("kind", "options"), CELLS)
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_one_layer(tmp_path: Path, kind: str, options: dict[str, Any], sequences: bool, masked: bool) -> None:
    """Forward, from the end, with zeros for what is masked, and in both directions with every merge_mode."""
    after = options.get("reset_after", True)
    table = draw(1, 9, I)
    x, mask = table[TOKENS], (TOKENS != 0 if masked else None)
    flipped = None if mask is None else mask[:, ::-1]
    embedding = layer("Embedding", input_dim=9, output_dim=I, mask_zero=masked)
    rest: dict[str, Any] = {"units": H, "return_sequences": sequences, **options}

    def model(*layers: Any, weights: Any) -> fr.Module:
        weights = {"embedding/vars/0": table, **weights}
        return fk.load(write_keras(tmp_path / "m.keras", [embedding, *layers], weights))

    weights = cell_weights(GROUP[kind], kind, I, H, after)
    arrays = values(weights, GROUP[kind])
    plain = layer(kind, **rest)
    close(model(plain, weights=weights)(TOKENS), run(kind, arrays, x, mask, after, sequences))
    backwards = model(layer(kind, go_backwards=True, **rest), weights=weights)(TOKENS)
    close(backwards, run(kind, arrays, x[:, ::-1], flipped, after, sequences))
    zeros = model(layer(kind, zero_output_for_mask=True, **rest), weights=weights)(TOKENS)
    close(zeros, run(kind, arrays, x, mask, after, sequences, zeros=True))
    both = {
        **cell_weights("bidirectional/forward_layer", kind, I, H, after, seed=1),
        **cell_weights("bidirectional/backward_layer", kind, I, H, after, seed=2),
    }
    first = run(kind, values(both, "bidirectional/f"), x, mask, after, sequences, zeros=sequences)
    second = run(kind, values(both, "bidirectional/b"), x[:, ::-1], flipped, after, sequences, sequences)
    second = second[:, ::-1] if sequences else second
    merged = {"concat": np.concatenate([first, second], -1), "sum": first + second, "mul": first * second}
    for mode, want in (merged | {"ave": (first + second) / 2}).items():
        wrapper = layer("Bidirectional", layer=plain, merge_mode=mode)
        close(model(wrapper, weights=both)(TOKENS), want)


def stack() -> tuple[list[Any], dict[str, Any]]:
    """A model of everything."""
    gru = {"units": H, "return_sequences": True}
    layers = [
        layer("InputLayer", batch_shape=[None, T, I], dtype="float32", sparse=False),
        layer("Masking", mask_value=0.5),
        layer("GRU", "gru", reset_after=True, **gru),
        layer("Dropout", rate=0.5),
        layer("GRU", "gru.b", reset_after=False, recurrent_dropout=0.2, **gru),
        layer("LayerNormalization", axis=[-1], epsilon=1e-3, center=True, scale=True),
        layer("TimeDistributed", layer=layer("Dense", "inner", units=3, activation="tanh")),
        layer("Dense", "dense_1", units=4, activation="linear", use_bias=False),
        layer("Activation", activation="softmax"),
    ]
    weights = {
        **cell_weights("gru", "GRU", I, H, True, 1),
        **cell_weights("gru_1", "GRU", H, H, False, 2),
        "layer_normalization/vars/0": 1 + draw(3, H),
        "layer_normalization/vars/1": draw(4, H),
        "time_distributed/layer/vars/0": draw(5, H, 3),
        "time_distributed/layer/vars/1": draw(6, 3),
        "dense/vars/0": draw(7, 3, 4),
    }
    return layers, weights


def test_a_stack(tmp_path: Path) -> None:
    layers, weights = stack()
    model = fk.load(write_keras(tmp_path / "m.keras", layers, weights))
    x = draw(8, B, T, I)
    x[0, 4:] = x[1, :2] = 0.5
    kept = (x != 0.5).any(-1)
    y = run("GRU", values(weights, "gru/"), x, kept)
    y = run("GRU", values(weights, "gru_1/"), y, kept, after=False)
    norm = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-3)
    y = norm * weights["layer_normalization/vars/0"] + weights["layer_normalization/vars/1"]
    y = np.tanh(y @ weights["time_distributed/layer/vars/0"] + weights["time_distributed/layer/vars/1"])
    y = np.exp(y @ weights["dense/vars/0"])
    close(model(x), y / y.sum(-1, keepdims=True))
    names = ["gru", "gru_b", "layernormalization", "timedistributed", "dense_1"]
    assert list(model.layers.keys()) == names
    assert isinstance(model.layers["gru"], fr.GRU) and model.layers["gru"].batch_first
    with pytest.raises(ValueError, match=r"layer 'gru' \(GRU\): x: expected shape"):
        model(x[..., 1:])


def test_weights_of_a_model_that_one_has(tmp_path: Path) -> None:
    """Layers are found by their kinds and their order, in files of both kinds."""
    weights = {
        "embedding/vars/0": draw(1, 9, I),
        **cell_weights("bidirectional/forward_layer", "LSTM", I, H, seed=1),
        **cell_weights("bidirectional/backward_layer", "LSTM", I, H, seed=2),
        **cell_weights("bidirectional_1/forward_layer", "LSTM", 2 * H, H, seed=3),
        **cell_weights("bidirectional_1/backward_layer", "LSTM", 2 * H, H, seed=4),
        "dense/vars/0": draw(5, 2 * H, 3),
        "dense/vars/1": draw(6, 3),
    }
    lstm = fr.LSTM(I, H, 2, bidirectional=True, batch_first=True, seed=0)
    model = fr.Sequential(fr.Embedding(9, I), lstm, fr.Linear(2 * H, 3))
    fk.load_weights(model, write_h5(tmp_path / "m.weights.h5", weights))
    y = weights["embedding/vars/0"][TOKENS]
    for group in ("bidirectional", "bidirectional_1"):
        back = run("LSTM", values(weights, f"{group}/b"), y[:, ::-1])[:, ::-1]
        y = np.concatenate([run("LSTM", values(weights, f"{group}/f"), y), back], -1)
    close(model(TOKENS), y @ weights["dense/vars/0"] + weights["dense/vars/1"])
    x, sizes = draw(7, B, T, I), fr.GRU(I, [H, 2], batch_first=True)
    two = {**cell_weights("gru", "GRU", I, H), **cell_weights("gru_1", "GRU", H, 2, seed=1)}
    fk.load_weights(sizes, write_h5(tmp_path / "m.weights.h5", two))
    y = run("GRU", values(two, "gru_1"), run("GRU", values(two, "gru/"), x))
    close(sizes(x)[0], y)
    wide = fr.GRU(I, H, batch_first=True, dtype="float64")
    layers = [layer("GRU", units=H, return_sequences=True)]
    one = cell_weights("gru", "GRU", I, H)
    fk.load_weights(wide, write_keras(tmp_path / "m.keras", layers, one))
    np.testing.assert_allclose(wide(x.astype(np.float64))[0], run("GRU", values(one, "gru"), x), atol=1e-12)


def test_modules_that_do_not_fit(tmp_path: Path) -> None:
    """Nothing is written then."""
    path = write_h5(tmp_path / "m.weights.h5", cell_weights("gru", "GRU", I, H))
    cases: list[tuple[fr.Module, str]] = [
        (fr.GRU(I, H + 1), r"gru/cell: expected a kernel of shape (5, 21), got (5, 18)"),
        (fr.GRU(I, H, reset_after=False), "gru/cell: expected a bias of shape (18,), got (2, 18)"),
        (fr.GRU(I, H, bias=False), "expected a module for every array, got none for gru/cell/vars/2"),
        (fr.GRU(I, H, 2), "gru_1/cell: expected an array 0, got none; layers that are left: []"),
        (fr.LSTM(I, H), "lstm/cell: expected an array 0, got none; layers that are left: ['gru']"),
        (fr.LSTM(I, H, 1, proj_size=2), "model: expected modules that Keras has, too, got LSTM(5, 6"),
        (fr.GRU(I, H, layer_norm=True), "model: expected modules that Keras has, too, got GRU(5, 6"),
        (fr.GRU(I, H, learned_state=True), "model: expected modules that Keras has, too, got GRU(5, 6"),
        (fr.MGU(I, H), "model: expected modules that Keras has, too, got MGU(5, 6"),
    ]
    for module, message in cases:
        before = module.flat_parameters.copy()
        with pytest.raises(ValueError, match=re.escape(message)):
            fk.load_weights(module, path)
        assert np.array_equal(module.flat_parameters, before)
    with pytest.raises(TypeError, match="model: expected a Module, got str"):
        fk.load_weights("gru", path)  # type: ignore[arg-type]


REFUSED: list[tuple[Any, str]] = [
    (layer("Lambda", function={"class_name": "__lambda__"}), "layer 'lambda' (Lambda): not a layer"),
    (layer("GRU", units=H) | {"module": "mine"}, "expected one of keras.layers, got one of 'mine'"),
    (layer("GRU", units=H) | {"registered_name": "mine>GRU"}, "expected one of keras.layers"),
    (layer("GRU", units=H, activation="relu"), "activation: expected 'tanh', got 'relu'"),
    (layer("GRU", units=H, activation={"class_name": "f"}), "activation: expected 'tanh'"),
    (layer("GRU", units=H, recurrent_activation="hard_sigmoid"), "recurrent_activation: expected 'sigmoid'"),
    (layer("GRU", units=H, stateful=True), "stateful: expected False, got 'True'"),
    (layer("GRU", units=H, return_state=True), "return_state: expected False"),
    (layer("GRU", units=H, surprise=3), "surprise: not an option that is understood"),
    (layer("GRU", units=H, dtype="mixed_float16"), "dtype: expected float32 or float64, got 'mixed_float16'"),
    (layer("GRU", units=7), "gru/cell: expected an array of shape (None, 21), got (5, 18)"),
    (layer("GRU", units=10**12), "gru/cell: expected an array of shape"),
    (layer("GRU", units="6"), "units: expected int, got '6'"),
    (layer("GRU"), "units: expected int, got 'None'"),
    (layer("GRU", units=H, reset_after=False), "gru/cell: expected a bias of shape (18,), got (2, 18)"),
    (layer("Bidirectional", layer=layer("Dense", units=3)), "layer: expected LSTM, GRU or SimpleRNN"),
    (
        layer(
            "Bidirectional",
            layer=layer("GRU", units=H),
            backward_layer=layer("GRU", units=7, go_backwards=True),
        ),
        "backward_layer: expected the options of layer, got another units",
    ),
    (
        layer("Bidirectional", layer=layer("GRU", units=H), merge_mode=None),
        "merge_mode: expected 'concat' or 'sum' or 'mul' or 'ave', got 'None'",
    ),
    (layer("TimeDistributed", layer=layer("GRU", units=H)), "layer: expected Dense"),
    (layer("LayerNormalization", axis=[1]), "axis: expected -1, got [1]"),
    ({"class_name": "GRU"}, "expected a layer with a config"),
    ("GRU", "expected a layer with a config"),
    (layer("GRU", units=H) | {"class_name": ["GRU"]}, "not a layer that can be run"),
]


@pytest.mark.parametrize(("entry", "message"), REFUSED)
def test_layers_that_are_refused(tmp_path: Path, entry: Any, message: str) -> None:
    path = write_keras(tmp_path / "m.keras", [entry], cell_weights("gru", "GRU", I, H))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        fk.load(path)
    assert str(caught.value).startswith(str(path))


def test_models_that_are_refused(tmp_path: Path) -> None:
    weights = cell_weights("gru", "GRU", I, H)
    gru = layer("GRU", units=H)
    for top, message in (
        ({"class_name": "Functional"}, "class_name: expected Sequential, got Functional"),
        ({"registered_name": "mine>Sequential"}, "class_name: expected Sequential"),
        ({"config": {}}, "config: expected layers"),
        ({"config": {"layers": [gru, gru]}}, "gru_1/cell: expected an array 0"),
        ({"config": {"layers": []}}, "expected a module for every array, got none for gru/cell/vars/0"),
    ):
        with pytest.raises(ValueError, match=message):
            fk.load(write_keras(tmp_path / "m.keras", [gru], weights, **top))
    with pytest.raises(ValueError, match=r"expected a .keras file with a configuration; see load_weights"):
        fk.load(write_h5(tmp_path / "m.weights.h5", weights))
    with pytest.raises(FileNotFoundError):
        fk.load(tmp_path / "none.keras")


def test_hostile_arrays(tmp_path: Path) -> None:
    """Links, other files, pieces and filters, and sizes that are only said."""
    path = tmp_path / "m.weights.h5"
    other = tmp_path / "secret.h5"
    with h5py.File(other, "w") as file:
        file["x"] = np.zeros((I, 18), np.float32)

    def external(file: Any) -> None:
        file["layers/gru/cell/vars/0"] = h5py.ExternalLink(str(other), "x")

    def soft(file: Any) -> None:
        file["layers/gru/cell/vars/0"] = h5py.SoftLink("/layers/gru/cell/vars/1")

    def raw(file: Any) -> None:
        (tmp_path / "raw").write_bytes(bytes(360))
        place = [(str(tmp_path / "raw"), 0, 360)]
        file.create_dataset("layers/gru/cell/vars/0", (I, 18), np.float32, external=place)

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((I, 18), np.float32)
        layout[...] = h5py.VirtualSource(str(other), "x", (I, 18))
        file.create_virtual_dataset("layers/gru/cell/vars/0", layout)

    def unwritten(file: Any) -> None:
        file.create_dataset("layers/gru/cell/vars/0", (2**40, 18), np.float32)

    def chunked(file: Any) -> None:
        zeros = np.zeros((1000, 1000), np.float32)
        file.create_dataset("layers/gru/cell/vars/0", data=zeros, compression="gzip")

    def text(file: Any) -> None:
        file["layers/gru/cell/vars/0"] = "cos\nsystem"

    def half(file: Any) -> None:
        file["layers/gru/cell/vars/0"] = np.zeros((I, 18), np.float16)

    def named(file: Any) -> None:
        file["layers/gru/cell/vars/0"] = np.dtype(np.float32)

    def twice(file: Any) -> None:
        file["layers/a"] = np.zeros(1000, np.float32)
        for i in range(9):
            file[f"layers/a{i}"] = file["layers/a"]

    def circle(file: Any) -> None:
        group = file.create_group("layers/gru")
        for name in "abcdef":
            group[name] = group

    def none(file: Any) -> None:
        file["layers"] = 3

    def old(file: Any) -> None:
        file.create_group("layers")
        file.attrs["layer_names"] = ["gru"]

    cases = [
        (external, "layers/gru/cell/vars/0: expected data inside the file, got a link"),
        (soft, "expected data inside the file, got a link"),
        (raw, "expected data inside the file; other files are not read"),
        (virtual, "expected data inside the file; other files are not read"),
        (unwritten, "expected 79164837199872 bytes in one piece"),
        (chunked, "expected 4000000 bytes in one piece"),
        (text, "expected float32 or float64, got object"),
        (half, "expected float32 or float64, got float16"),
        (named, "expected an array, got Datatype"),
        (twice, "arrays of 40000 bytes in a file of"),
        (circle, "more than 100000 entries, or more than 16 levels of groups"),
        (none, "expected a group 'layers'"),
        (old, "expected the layout of Keras 3, got that of Keras 2"),
    ]
    for make, message in cases:
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(ValueError, match=re.escape(message.removeprefix("layers/"))) as caught:
            fk.load_weights(fr.GRU(I, H), path)
        assert str(caught.value).startswith(f"{path}: not a Keras 3 file, or a damaged one: ")


def test_damaged_files(tmp_path: Path) -> None:
    """Every prefix and some other bytes: one kind of error, or none."""
    layers, weights = stack()
    whole = write_keras(tmp_path / "m.keras", layers, weights).read_bytes()
    path = tmp_path / "damaged.keras"
    rng = np.random.default_rng(0)
    for round_ in range(60):
        data = bytearray(whole)
        if round_ < 20:
            del data[rng.integers(len(data)) :]
        else:
            for place in rng.integers(len(data), size=8):
                data[place] = rng.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(ValueError):
            fk.load(path)
    for name, text in (("config.json", "[" * 100_000), ("config.json", "\xff"), ("model.weights.h5", "")):
        with zipfile.ZipFile(path, "w") as archive:
            for member in {"config.json", "model.weights.h5"} - {name}:
                archive.writestr(member, "{}")
            archive.writestr(name, text)
        with pytest.raises(ValueError, match="not a Keras 3 file, or a damaged one"):
            fk.load(path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps({}))
        archive.writestr("model.weights.h5", bytes(1 << 24))
    path.write_bytes(bomb.getvalue())
    with pytest.raises(ValueError, match=r"model\.weights\.h5: expected at most"):
        fk.load(path)


# Of Keras's own tests, keras/src/layers/rnn/{lstm,gru,simple_rnn}_test.py: kernels of 0.01, recurrent ones of
# 0.02, biases of 0.03 and forget biases of 1. All units of a row have one value.
CONSTANTS: list[tuple[str, dict[str, Any], tuple[int, ...], list[float]]] = [
    ("LSTM", {}, (3, 6, 4, 3), [0.6288687, 0.86899155, 0.9460773]),
    ("LSTM", {"go_backwards": True}, (3, 6, 4, 3), [0.35622165, 0.74789524, 0.8872726]),
    ("GRU", {}, (3, 6, 4, 3), [0.5217289, 0.6371659, 0.39384964]),
    ("GRU", {"go_backwards": True}, (3, 6, 4, 3), [0.24406259, 0.611516, 0.3928808]),
    ("GRU", {"reset_after": False}, (3, 6, 4, 3), [0.51447755, 0.6426879, 0.40208298]),
    ("SimpleRNN", {}, (2, 3, 4, 4), [0.405432, 0.73605347]),
    ("SimpleRNN", {"go_backwards": True}, (2, 3, 4, 4), [0.11144729, 0.5528889]),
]
# The same with masks and all outputs.
CONSTANTS_MASKED: list[tuple[str, list[list[int]], list[list[float]]]] = [
    (
        "LSTM",
        [[1, 1, 1, 0], [1, 1, 0, 0]],
        [[0.01588910, 0.05552048, 0.11755939, 0.11755939], [0.14185596, 0.28556206, 0.28556206, 0.28556206]],
    ),
    (
        "GRU",
        [[1, 1, 0, 1], [1, 0, 0, 1]],
        [[0.03606692, 0.09497581, 0.09497581, 0.19393763], [0.16051409, 0.16051409, 0.16051409, 0.30818558]],
    ),
]


def of_constants(tmp_path: Path, kind: str, inputs: int, units: int, **options: Any) -> fr.Module:
    weights = cell_weights(GROUP[kind], kind, inputs, units, options.get("reset_after", True))
    for name, array in weights.items():
        array[...] = {"0": 0.01, "1": 0.02, "2": 0.03}[name[-1]]
    if kind == "LSTM":
        weights["lstm/cell/vars/2"][units : 2 * units] = 1
    return fk.load(write_keras(tmp_path / "m.keras", [layer(kind, units=units, **options)], weights))


def test_values_of_keras_own_tests(tmp_path: Path) -> None:
    for kind, options, (*shape, units), want in CONSTANTS:
        x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        close(of_constants(tmp_path, kind, shape[-1], units, **options)(x), np.outer(want, np.ones(units)))
    x = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    for kind, mask, rows in CONSTANTS_MASKED:
        model = of_constants(tmp_path, kind, 3, 2, return_sequences=True)
        close(model(x, mask=np.array(mask, bool)), np.array(rows)[..., None] * np.ones(2))
