"""Files of models that are damaged, or made to harm."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import files, saving

pytestmark = pytest.mark.once


def forge(path: Path, change: Callable[[dict[str, Any], files.Tensors], Any], model: Any = None) -> Path:
    """A file with a right checksum that says something else."""
    fr.save(model or fr.Sequential(fr.Linear(3, 4, seed=0), fr.Pool("max")), path)
    tensors, content = files.load(path, saving.MODEL)
    changed = change(content, tensors)
    files.save(path, saving.MODEL, tensors, content if changed is None else changed)
    return path


def setting(*keys: Any) -> Callable[[Any, Any], None]:
    *keys, value = keys

    def change(content: Any, _: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def modules(*described: Any) -> Callable[[Any, Any], None]:
    return setting("modules", [{"arguments": [], "options": {}, **each} for each in described])


LINEAR = {"class": "fusedrnn.Linear"}
DEEP: Any = [1]
for _ in range(300):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "change",
    [
        setting("modules", 3),
        setting("modules", []),
        setting("modules", [None]),
        setting("modules", [{"class": "fusedrnn.Tanh", "arguments": [], "options": {}}] * 10_001),
        setting("modules", 0, "class", 3),
        setting("modules", 0, "class", "os.system"),
        setting("modules", 0, "class", "fusedrnn.os"),
        setting("modules", 0, "class", "fusedrnn.Module.__new__"),
        setting("modules", 0, "class", "fusedrnn."),
        setting("modules", 0, "arguments", {"a": 1}),
        setting("modules", 0, "arguments", [{"module": 0}]),
        setting("modules", 0, "arguments", [{"module": 5}]),
        setting("modules", 0, "arguments", [{"cell": "{}"}]),
        setting("modules", 0, "arguments", [{"array": "0.weight"}]),
        setting("modules", 0, "arguments", [{"eval": "1"}]),
        setting("modules", 0, "arguments", [{"tuple": 3}]),
        setting("modules", 0, "arguments", [{"dict": [[[], 1]]}]),
        setting("modules", 0, "arguments", [{}]),
        setting("modules", 0, "arguments", DEEP),
        setting("modules", 0, "options", {"in_features": 3}),
        setting("modules", 0, "options", {"in_features": "3", "out_features": 4}),
        setting("modules", 0, "options", {"in_features": 3, "out_features": 5}),
        setting("modules", 0, "options", {"in_features": 3, "out_features": 4, "init": "default"}),
        setting("modules", 0, "options", {"in_features": 3, "out_features": 4, "__class__": 4}),
        setting("model", -1),
        setting("model", 3),
        setting("model", True),
        setting("model", "2"),
        setting("dtype", "float16"),
        setting("dtype", None),
        setting("evaluating", ["7"]),
        setting("frozen", 3),
        setting("frozen", [["0"]]),
        setting("bf16", ["7"]),
        setting("bf16x3", ["1"]),  # a Pool multiplies nothing
        lambda content, tensors: {},
        lambda content, tensors: tensors.pop("0.bias") is None,
        lambda content, tensors: tensors.update({"0.bias": np.zeros(3, "f4")}),
        lambda content, tensors: tensors.update({"0.bias": np.zeros(4, "i4")}),
        lambda content, tensors: tensors.update({"more": np.zeros(4, "f4")}),
    ],
)
def test_forged_files(change: Any, tmp_path: Path) -> None:
    path = forge(tmp_path / "m", change)
    with pytest.raises(files.FileError, match=r"/m: .*"):
        fr.load(path)


@pytest.mark.parametrize(
    "described",
    [
        {"class": "fusedrnn.Linear", "options": {"in_features": 1 << 20, "out_features": 1 << 20}},
        {"class": "fusedrnn.LSTM", "arguments": [1 << 16, 1 << 16, 1000]},
        {"class": "fusedrnn.Embedding", "arguments": [1 << 31, 1 << 10]},
        {"class": "fusedrnn.LayerNorm", "arguments": [1 << 40]},
        {"class": "fusedrnn.BatchNorm", "arguments": [1 << 40], "options": {"affine": False}},
        {"class": "fusedrnn.CRF", "arguments": [(1 << 18) + 1, "bio"]},
        {"class": "fusedrnn.Conv1d", "arguments": [1 << 15, 1 << 15, 1 << 10]},
        {"class": "fusedrnn.MGU", "arguments": [1 << 15, 1 << 20]},
        {"class": "fusedrnn.AttentionDecoder", "arguments": ["lstm", 1 << 15, 1 << 15, 1 << 15]},
        {"class": "fusedrnn.TransducerJoiner", "arguments": [1 << 20, 1 << 20]},
        {"class": "fusedrnn.Pool", "arguments": ["attention", 1 << 40]},
        {"class": "fusedrnn.Linear", "options": {"in_features": 1 << 62, "out_features": 1 << 62}},
    ],
    ids=lambda described: described["class"],
)
def test_sizes_are_held_against_the_file(described: Any, tmp_path: Path) -> None:
    """Before memory is taken."""
    path = forge(tmp_path / "m", modules(*[LINEAR | {"arguments": [3, 4]}] * 2, described))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(files.FileError, match=r"expected no more values than the file holds|2\^63"):
        fr.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_many_modules_are_held_against_the_file_together(tmp_path: Path) -> None:
    each = LINEAR | {"arguments": [20, 100]}
    path = forge(tmp_path / "m", modules(*[each] * 5))
    with pytest.raises(files.FileError, match="expected no more values than the file holds"):
        fr.load(path)


def test_every_truncation_and_flipped_bit(tmp_path: Path) -> None:
    fr.save(fr.Linear(1, 1, seed=0), tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    damaged = tmp_path / "d"
    for size in range(len(data)):
        damaged.write_bytes(data[:size])
        with pytest.raises(files.FileError):
            fr.load(damaged)
    for place in range(0, len(data) * 8, 5):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        damaged.write_bytes(bytes(flipped))
        with pytest.raises(files.FileError):
            fr.load(damaged)
