"""Files in Keras 3's layout, and what Keras computes with them, in NumPy and in its order of gates."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[Any]]
BLOCKS = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}
POLICY = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}}


def layer(kind: str, name: str = "", **config: Any) -> dict[str, Any]:
    """A layer's entry in config.json, with some of the entries that say nothing about its results."""
    usual = {"name": name or kind.lower(), "trainable": True, "dtype": POLICY, "kernel_initializer": {"a": 1}}
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": usual | config,
        "registered_name": None,
        "build_config": {"input_shape": [None, 7, 5]},
    }


def draw(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(0, 0.6, shape).astype(np.float32)


def cell_weights(
    group: str, kind: str, inputs: int, units: int, after: bool = True, seed: int = 0
) -> Weights:
    """Kernel, recurrent kernel and bias of a recurrent layer."""
    rows = BLOCKS[kind] * units
    bias = (2, rows) if kind == "GRU" and after else (rows,)
    shapes = ((inputs, rows), (units, rows), bias)
    return {f"{group}/cell/vars/{i}": draw(10 * seed + i, *shape) for i, shape in enumerate(shapes)}


def write_h5(path: Path, weights: Weights) -> Path:
    """A .weights.h5 file, with groups that hold nothing and the state of a random generator."""
    with h5py.File(path, "w") as file:
        file.create_group("vars").attrs["name"] = "sequential"
        file.create_group("optimizer/vars")["0"] = np.int64(3)
        file.create_group("layers/dropout/vars")
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        for name, array in weights.items():
            file[f"layers/{name}"] = array
    return path


def write_keras(path: Path, layers: Any, weights: Weights, **top: Any) -> Path:
    """A .keras file of a Sequential."""
    inner = write_h5(path.with_suffix(".h5"), weights)
    config = {"class_name": "Sequential", "config": {"name": "sequential", "layers": layers}} | top
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(config))
        archive.write(inner, "model.weights.h5")
    return path


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def step(kind: str, weights: Any, x: Any, h: Any, c: Any, after: bool) -> Any:
    """One step in float64: z r h of a GRU, i f c o of an LSTM."""
    kernel, recurrent, bias = weights
    if kind == "SimpleRNN":
        return np.tanh(x @ kernel + h @ recurrent + bias), c
    if kind == "LSTM":
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    first, second = bias if after else (bias, 0 * bias)
    xz, xr, xh = np.split(x @ kernel + first, 3, -1)
    wz, wr, wh = np.split(recurrent, 3, -1)
    bz, br, bh = np.split(second, 3, -1)
    z, r = sigmoid(xz + h @ wz + bz), sigmoid(xr + h @ wr + br)
    candidate = np.tanh(xh + r * (h @ wh + bh)) if after else np.tanh(xh + (r * h) @ wh)
    return z * h + (1 - z) * candidate, c


def run(
    kind: str,
    weights: Any,
    x: Any,
    mask: Any = None,
    after: bool = True,
    sequences: bool = True,
    zeros: bool = False,
) -> Any:
    """A layer over (B, T, I): a step that is masked keeps the state, and repeats the output before it."""
    weights = [np.asarray(w, np.float64) for w in weights]
    h = np.zeros((len(x), weights[1].shape[0]))
    c, out, outputs = h, h, []
    kept = np.ones(x.shape[:2], bool) if mask is None else mask
    for t in range(x.shape[1]):
        new_h, new_c = step(kind, weights, np.asarray(x[:, t], np.float64), h, c, after)
        where = kept[:, t, None]
        h, c = np.where(where, new_h, h), np.where(where, new_c, c)
        out = np.where(where, new_h, 0 * out if zeros else out)
        outputs.append(out)
    return np.stack(outputs, 1) if sequences else outputs[-1]
