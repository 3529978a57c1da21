"""ONNX files: ONNX Runtime as the oracle, the node tests of onnx, what is refused, and `convert`."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fusedrnn as fr

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.once

T, B, I, H = 5, 3, 4, 6
BLOCKS = {"RNN": 1, "LSTM": 4, "GRU": 3}


def draw(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(0, 0.7, shape).astype(np.float32)


def write(path: Path, nodes: Any, inputs: Any, outputs: Any, constants: Any, opset: int = 14) -> Path:
    """A file with float inputs {name: rank}, or (rank, type), and float outputs {name: rank}."""

    def info(name: str, rank: Any) -> Any:
        rank, kind = rank if isinstance(rank, tuple) else (rank, onnx.TensorProto.FLOAT)
        return onnx.helper.make_tensor_value_info(name, kind, [f"{name}{i}" for i in range(rank)])

    graph = onnx.helper.make_graph(
        nodes,
        "test",
        [info(*each) for each in inputs.items()],
        [info(*each) for each in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def one_node(
    path: Path, op: str, direction: str, lengths: bool, states: bool, peephole: bool, opset: int, **more: Any
) -> tuple[Path, dict[str, Any]]:
    """A file with one node of random weights, and its inputs."""
    directions, blocks = (2 if direction == "bidirectional" else 1), BLOCKS[op]
    constants = {
        "W": draw(1, directions, blocks * H, I),
        "R": draw(2, directions, blocks * H, H),
        "B": draw(3, directions, 2 * blocks * H),
    }
    feeds: dict[str, Any] = {"X": draw(4, T, B, I)}
    inputs: dict[str, Any] = {"X": 3}
    names = ["X", "W", "R", "B", "", ""]
    if lengths:
        feeds["L"], names[4] = np.array([5, 1, 3], np.int32), "L"
        inputs["L"] = (1, onnx.TensorProto.INT32)
    if states:
        feeds["h"], names[5], inputs["h"] = draw(5, directions, B, H), "h", 3
    if op == "LSTM":
        names += ["", ""]
        if states:
            feeds["c"], names[6], inputs["c"] = draw(6, directions, B, H), "c", 3
        if peephole:
            constants["P"], names[7] = draw(7, directions, 3 * H), "P"
    outputs = {"Y": 4, "Y_h": 3} | ({"Y_c": 3} if op == "LSTM" else {})
    node = onnx.helper.make_node(op, names, list(outputs), direction=direction, hidden_size=H, **more)
    return write(path, [node], inputs, outputs, constants, opset), feeds


def check_with_runtime(path: Path, feeds: dict[str, Any]) -> fr.Module:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = fr.onnx.load(path)
    ours = graph(**feeds)
    theirs = session.run(None, feeds)
    for mine, want in zip(ours if isinstance(ours, tuple) else (ours,), theirs, strict=True):
        assert mine.shape == want.shape and mine.dtype == want.dtype
        np.testing.assert_allclose(mine, want, rtol=1e-4, atol=2e-5)
    return graph


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(("lengths", "states", "opset"), [(False, False, 7), (True, True, 14)])
def test_nodes_with_random_weights(
    tmp_path: Path, op: str, direction: str, lengths: bool, states: bool, opset: int
) -> None:
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    check_with_runtime(*one_node(tmp_path / "m.onnx", op, direction, lengths, states, states, opset, **more))


def test_relu_and_coupled_gates(tmp_path: Path) -> None:
    relu = {"activations": ["Relu", "Relu"]}
    path = tmp_path / "m.onnx"
    check_with_runtime(*one_node(path, "RNN", "bidirectional", True, True, False, 14, **relu))
    check_with_runtime(*one_node(path, "LSTM", "forward", True, True, False, 14, input_forget=1))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_reset_gate_before_the_product(tmp_path: Path, direction: str) -> None:
    check_with_runtime(*one_node(tmp_path / "m.onnx", "GRU", direction, True, True, False, 14))


@pytest.mark.parametrize("op", ["RNN", "LSTM", "GRU"])
def test_batch_first_layout(tmp_path: Path, op: str) -> None:
    """ONNX Runtime has no layout 1: the same weights in layout 0, transposed."""
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    path, feeds = one_node(tmp_path / "a.onnx", op, "bidirectional", True, True, False, 14, **more)
    wanted = fr.onnx.load(path)(**feeds)
    path, _ = one_node(tmp_path / "b.onnx", op, "bidirectional", True, True, False, 14, layout=1, **more)
    turned = {n: a.swapaxes(0, 1) if a.ndim == 3 else a for n, a in feeds.items()}
    y, *states = fr.onnx.load(path)(**turned)
    np.testing.assert_array_equal(y, wanted[0].transpose(2, 0, 1, 3))
    for mine, want in zip(states, wanted[1:], strict=True):
        np.testing.assert_array_equal(mine, want.swapaxes(0, 1))


def node_tests() -> dict[str, tuple[Any, Any, Any]]:
    """onnx's own tests of the recurrent nodes: a node, its inputs and its outputs."""
    found: dict[str, tuple[Any, Any, Any]] = {}

    def expect(node: Any, inputs: Any, outputs: Any, name: str) -> None:
        found[name] = node, inputs, outputs

    for op in BLOCKS:
        module = importlib.import_module(f"onnx.backend.test.case.node.{op.lower()}")
        module.expect = expect  # type: ignore[attr-defined]
        cases = getattr(module, op)
        for name in dir(cases):
            if name.startswith("export"):
                getattr(cases, name)()
    return found


NODE_TESTS = node_tests()


@pytest.mark.parametrize("name", NODE_TESTS)
def test_onnx_node_tests(tmp_path: Path, name: str) -> None:
    """They give weights as inputs; a file has them as constants."""
    node, inputs, outputs = NODE_TESTS[name]
    values = dict(zip([each for each in node.input if each], inputs, strict=True))
    constants = {each: array for each, array in values.items() if each in ("W", "R", "B", "P")}
    kinds = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int32): onnx.TensorProto.INT32}
    given = {
        each: (array.ndim, kinds[array.dtype]) for each, array in values.items() if each not in constants
    }
    wanted = dict(zip([each for each in node.output if each], outputs, strict=True))
    made = {each: array.ndim for each, array in wanted.items()}
    graph = fr.onnx.load(write(tmp_path / "m.onnx", [node], given, made, constants))
    found = graph(**{each: values[each] for each in given})
    for mine, want in zip(found if isinstance(found, tuple) else (found,), outputs, strict=True):
        np.testing.assert_allclose(mine, want, rtol=1e-4, atol=1e-6)


def test_there_are_node_tests() -> None:
    assert len(NODE_TESTS) >= 18


@pytest.mark.parametrize(
    ("op", "attributes", "match"),
    [
        ("LSTM", {"clip": 3.0}, "clip: expected none"),
        ("RNN", {"clip": 0.0}, "clip: expected none, got 0.0"),
        ("GRU", {"linear_before_reset": 1, "activations": ["HardSigmoid", "Tanh"]}, "activations"),
        ("RNN", {"activations": ["Affine"]}, "activations"),
    ],
)
def test_what_no_module_computes_is_refused(tmp_path: Path, op: str, attributes: Any, match: str) -> None:
    path, _ = one_node(tmp_path / "m.onnx", op, "forward", False, False, False, 14, **attributes)
    with pytest.raises(ValueError, match=rf"node 0 \({op}\): {match}"):
        fr.onnx.load(path)


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        (fr.GRU, {"layer_norm": True, "bias": False}, "layer_norm"),
        (fr.LSTM, {"layer_norm": True}, "layer_norm"),
        (fr.LSTM, {"cell_clip": 1.0}, "cell_clip"),
        (fr.LSTM, {"proj_size": 2}, "proj_size"),
    ],
)
def test_what_onnx_has_not_is_refused(tmp_path: Path, kind: Any, options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=f"^{match}: expected none, since ONNX has none"):
        fr.onnx.save(kind(I, H, **options), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: fr.RNN(I, H, 2, nonlinearity="relu", seed=0),
        lambda: fr.LSTM(I, H, 2, bidirectional=True, batch_first=True, seed=0),
        lambda: fr.LSTM(I, H, peephole=True, coupled_gates=True, bias=False, seed=0),
        lambda: fr.GRU(I, H, bidirectional=True, seed=0),
        lambda: fr.GRU(I, H, 2, reset_after=False, seed=0),
    ],
)
def test_saved_networks(tmp_path: Path, make: Any) -> None:
    module = make()
    for name, value in module.state_dict().items():
        if name.startswith("peephole"):
            value[:] = draw(8, H)
            module.load_state_dict({**module.state_dict(), name: value})
    x = draw(9, T, B, I)
    x = x.swapaxes(0, 1).copy() if module.batch_first else x
    rows = module.num_layers * (2 if module.bidirectional else 1)
    state = tuple(draw(10 + i, rows, B, H) for i in range(2))
    lengths = np.array([5, 1, 2], np.int32)
    path = tmp_path / "m.onnx"
    fr.onnx.save(module, path, lengths=True, states=True)
    feeds = {"x": x, "lengths": lengths, "h_0": state[0]}
    if isinstance(module, fr.LSTM):
        feeds["c_0"] = state[1]
    check_with_runtime(path, feeds)
    y, final = module(x, state if isinstance(module, fr.LSTM) else state[0], lengths=lengths)
    again = fr.onnx.load(path)(**feeds)
    finals = final if isinstance(final, tuple) else (final,)
    for mine, want in zip(again, (y, *finals), strict=True):
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=1e-6)


def model_of_all() -> fr.Sequential:
    return fr.Sequential(
        fr.Embedding(20, I, seed=1),
        fr.LSTM(I, H, bidirectional=True, seed=2),
        fr.Dropout(0.5),
        fr.GRU(2 * H, H, seed=3),
        fr.Linear(H, 7, seed=4),
    ).eval()


def test_a_saved_sequence_of_modules(tmp_path: Path) -> None:
    model, path = model_of_all(), tmp_path / "m.onnx"
    fr.onnx.save(model, path)
    tokens = np.random.default_rng(0).integers(0, 20, (T, B))
    graph = check_with_runtime(path, {"x": tokens})
    assert [type(layer) for layer in graph.layers.values()] == [fr.Embedding, fr.LSTM, fr.GRU, fr.Linear]
    np.testing.assert_allclose(graph(tokens), model(tokens), rtol=1e-5, atol=1e-6)


def test_modules_in_modules(tmp_path: Path) -> None:
    """A Sequential in another, a Linear with the weight of the embedding, and one module twice."""
    table, twice = fr.Embedding(20, I, seed=1), fr.GRU(I, I, seed=2)
    head = fr.Linear(I, 20, weight_of=table, seed=3)
    model, path = (
        fr.Sequential(table, fr.Sequential(twice, fr.Sequential(), twice), head),
        tmp_path / "m.onnx",
    )
    fr.onnx.save(model, path)
    tokens = np.random.default_rng(0).integers(0, 20, (T, B))
    graph = check_with_runtime(path, {"x": tokens})
    np.testing.assert_allclose(graph(tokens), model(tokens), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"^0\.1\.layer_norm: expected none, since ONNX has none"):
        fr.onnx.save(fr.Sequential(fr.Sequential(fr.Linear(I, I), fr.LSTM(I, H, layer_norm=True))), path)


def test_operators_around(tmp_path: Path) -> None:
    node = onnx.helper.make_node
    nodes = [
        node("GRU", ["X", "W", "R"], ["Y", "Yh"], hidden_size=H, linear_before_reset=1),
        node("Squeeze", ["Y", "axes"], ["y"]),
        node("Squeeze", ["Yh", "first"], ["h"]),
        node("Gemm", ["h", "G", "g"], ["a"], transB=1),
        node("Relu", ["a"], ["b"]),
        node("Softmax", ["b"], ["c"], axis=-1),
        node("LogSoftmax", ["y"], ["d"]),
        node("Transpose", ["d"], ["e"], perm=[1, 2, 0]),
        node("Concat", ["c", "b"], ["f"], axis=1),
        node("Unsqueeze", ["f", "first"], ["z"]),
        node("Sigmoid", ["e"], ["s"]),
    ]
    constants = {
        "W": draw(1, 1, 3 * H, I),
        "R": draw(2, 1, 3 * H, H),
        "axes": np.array([1]),
        "first": np.array([0]),
        "G": draw(3, 7, H),
        "g": draw(4, 7),
    }
    path = write(tmp_path / "m.onnx", nodes, {"X": 3}, {"z": 3, "s": 3}, constants)
    check_with_runtime(path, {"X": draw(5, T, B, I)})


def test_hostile_files_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    fr.onnx.save(fr.LSTM(I, H, seed=0), path)
    data = path.read_bytes()
    for damaged in (b"", b"garbage", data[: len(data) // 2], data[:-40]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"m\.onnx"):
            fr.onnx.load(path)
    model = onnx.load_model_from_string(data)
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "secret"
    model.graph.initializer[0].ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"not a valid|inside the file"):
        fr.onnx.load(path)
    node = onnx.helper.make_node("Det", ["X"], ["Y"], name="it")
    with pytest.raises(ValueError, match=r"node it \(Det\): .*Det cannot be run"):
        fr.onnx.load(write(path, [node], {"X": 3}, {"Y": 1}, {}))


def test_examples_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(block, "onnx.md", "exec"), {})
    assert capsys.readouterr().out == "True\n['lstm_0', 'linear_1']\n"


def test_convert(tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from typer.testing import CliRunner

    from fusedrnn.cli.app import app

    fr.onnx.save(model_of_all(), tmp_path / "m.onnx")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "m.onnx")])
    assert result.exit_code == 0 and "LSTM(4, 6, bidirectional=True)" in result.output
    graph = fr.onnx.load(tmp_path / "m.onnx")
    written = load_file(tmp_path / "m.safetensors")
    assert set(written) == set(graph.state_dict())
    (tmp_path / "bad.onnx").write_bytes(b"no")
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "bad.onnx")])
    assert result.exit_code == 1 and "bad.onnx" in result.stderr
