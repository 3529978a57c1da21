"""Calls for fuzz_sequences.py that need no module under test: losses, sequences, and garbage for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from fuzz_blocks import constructors
from fuzz_entries import garbage, mutated
from fuzz_oracle import bits, check_same, outcome, plain
from fuzz_subjects import Arguments, Rng, chance, drawn, leading_axes, pick

import fusedrnn as fr

# The losses of single elements, with their arrays.
LOSSES = [
    (fr.mse_loss, ("pred", "target")),
    (fr.losses.l1_loss, ("pred", "target")),
    (fr.losses.huber_loss, ("pred", "target")),
    (fr.losses.smooth_l1_loss, ("pred", "target")),
    (fr.losses.gaussian_nll_loss, ("pred", "target", "var")),
    (fr.losses.student_t_nll_loss, ("pred", "target", "log_scale", "log_df")),
    (fr.losses.negative_binomial_nll_loss, ("log_mean", "target", "log_total_count")),
    (fr.losses.binary_cross_entropy_with_logits, ("logits", "target")),
]


def losses(rng: Rng) -> None:
    """Losses in any layout, as of copies; arguments nearly right."""
    dtype, leading, classes = pick(rng, ["f4", "f8"]), leading_axes(rng), pick(rng, [1, 2, 5, 20])
    reduction = pick(rng, ["mean", "sum", "none"])
    function: Any
    if chance(rng, 0.5):
        function = fr.cross_entropy
        arguments: Arguments = {
            "logits": drawn(rng, (*leading, classes), dtype),
            "targets": rng.integers(0, classes, leading),
            "weight": np.abs(drawn(rng, (classes,), dtype)) if chance(rng, 0.3) else None,
            "reduction": reduction,
            "label_smoothing": pick(rng, [0.0, 0.1, 1.0]),
        }
    else:
        function, names = pick(rng, LOSSES)
        arguments = {name: drawn(rng, leading, dtype) for name in names} | {"reduction": reduction}
        if names[0].startswith("log") and chance(rng, 0.9):  # counts, or classes
            arguments["target"] = (arguments["target"] > 0).astype(dtype)
    if chance(rng, 0.3):
        name = pick(rng, list(arguments))
        arguments[name] = mutated(rng, arguments[name], list(arguments.values()))
    with np.errstate(all="ignore"):
        got, want = outcome(function, **arguments), outcome(function, **plain(arguments))
    if got[1] is None and want[1] is None and isinstance(got[0][0], float):
        # NumPy adds up arrays of another layout in another order.
        assert np.isclose(got[0][0], want[0][0], rtol=1e-5, atol=1e-30, equal_nan=True), (got, want)
        got, want = (got[0][1], None), (want[0][1], None)
    check_same(function.__name__, got, want)


def sequences(rng: Rng) -> None:
    """What pad puts together, unpad takes apart."""
    dtype, trailing = pick(rng, ["f4", "f8", "i4", "?"]), leading_axes(rng)[:2]
    items = [
        drawn(rng, (int(rng.integers(0, 5)), *trailing), "f8").astype(dtype)
        for _ in range(int(rng.integers(1, 5)))
    ]
    batch_first = chance(rng, 0.5)
    x, lengths = fr.pad(items, batch_first, pick(rng, [0, 1]))
    parts = fr.unpad(x, lengths, batch_first)
    assert bits([np.array(part) for part in parts]) == bits([np.array(item) for item in items])
    arguments: Arguments = {"x": x, "lengths": lengths, "batch_first": batch_first}
    name = pick(rng, list(arguments))
    arguments[name] = mutated(rng, arguments[name], list(arguments.values()))
    outcome(fr.unpad, **arguments)
    given = garbage(rng, items)
    if not isinstance(given, np.ndarray) or given.size < 10**6:  # not millions of sequences
        outcome(fr.pad, given, garbage(rng, items), garbage(rng, items))


def small_module() -> Any:
    return fr.LSTM(2, 3, seed=0, init="torch")


def defined(**arguments: Any) -> Any:
    """define_cell; a step that asks for symbols which are not there raises AttributeError."""
    try:
        return fr.define_cell(**arguments)
    except AttributeError as error:
        raise ValueError(str(error)) from None


def table() -> dict[str, tuple[Any, Arguments]]:
    """Public callables with arguments that they accept."""
    x, sizes = np.ones((3, 2, 2), np.float32), {"input_size": 2, "hidden_size": 3}
    shared = {"bias": True, "dtype": "float32", "seed": 0, "init": "torch"}
    network = {
        **sizes,
        "num_layers": 1,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
        **shared,
    }
    module = small_module()
    other = small_module()
    adam, sgd = fr.optim.Adam(other), fr.optim.SGD(other, momentum=0.9)
    stream, network_8 = module.stream(2), module.quantize("int8")
    step = network_8.stream(2)
    weight = np.ones((6, 3), np.float32)
    setting = {"name": "lr", "value": 0.1}
    return {
        "LSTM": (fr.LSTM, {**network, "proj_size": 0, "forget_bias": 1.0, "recompute": False}),
        "LSTM of options": (
            fr.LSTM,
            {**network, "peephole": True, "coupled_gates": True, "cell_clip": 1.0, "forget_bias": 1.0},
        ),
        "Recurrent": (fr.Recurrent, {"cell": fr.MGU(2, 3).cell, **network, "recompute": False}),
        "IndRNN": (fr.IndRNN, {**network, "nonlinearity": "relu"}),
        "LIF": (
            fr.LIF,
            {
                **network,
                "beta": 0.9,
                "learn_beta": True,
                "threshold": 1.0,
                "surrogate": "atan",
                "slope": 2.0,
                "recurrent": False,
            },
        ),
        "cell_from_json": (fr.cell_from_json, {"text": fr.cell_to_json(fr.MGU(2, 3).cell)}),
        "GRU": (fr.GRU, {**network, "reset_after": True}),
        "RNN": (fr.RNN, {**network, "nonlinearity": "relu"}),
        "LSTMCell": (fr.LSTMCell, {**sizes, **shared, "forget_bias": 1.0}),
        "GRUCell": (fr.GRUCell, {**sizes, **shared}),
        "RNNCell": (fr.RNNCell, {**sizes, **shared, "nonlinearity": "tanh"}),
        "Linear": (
            fr.Linear,
            {
                "in_features": 2,
                "out_features": 3,
                "bias": True,
                "weight_of": None,
                "dtype": "float32",
                "seed": 0,
            },
        ),
        "LayerNorm": (
            fr.LayerNorm,
            {
                "normalized_shape": 3,
                "eps": 1e-5,
                "elementwise_affine": True,
                "bias": True,
                "dtype": "float32",
            },
        ),
        "Dropout": (fr.Dropout, {"p": 0.5, "seed": 1}),
        **constructors(),
        "CRF": (
            fr.CRF,
            {"num_tags": 3, "constraints": None, "batch_first": True, "dtype": "float32", "seed": 0},
        ),
        "QuantumLSTM": (
            fr.QuantumLSTM,
            {
                **sizes,
                "qubits": 2,
                "layers": 1,
                "batch_first": True,
                "dtype": "float32",
                "seed": 0,
                "init": None,
            },
        ),
        "define_cell": (
            defined,
            {
                "name": "leaky",
                "gates": {"i": 0.0},
                "states": "h",
                "step": lambda x, h, s, p: {"h": fr.sym.tanh(x.i + h.i) * p.k + s.h},
                "parameters": {"k": (0.0, 1.0)},
            },
        ),
        "all_reduce_grads": (
            fr.distributed.all_reduce_grads,
            {"module": module, "group": None, "weight": 0.5},
        ),
        "broadcast_parameters": (fr.distributed.broadcast_parameters, {"module": module, "root": 0}),
        "check_same": (fr.distributed.check_same, {"module": module, "group": None}),
        "Embedding": (
            fr.Embedding,
            {"num_embeddings": 3, "embedding_dim": 2, "padding_idx": 0, "dtype": "float64", "seed": 1},
        ),
        "Lookup": (fr.Lookup, {"table": weight, "indices": np.array([[0, 1]])}),
        "Adam": (
            fr.optim.Adam,
            {"modules": other, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0},
        ),
        "SGD": (
            fr.optim.SGD,
            {
                "modules": other,
                "lr": 0.1,
                "momentum": 0.5,
                "dampening": 0.0,
                "weight_decay": 0.1,
                "nesterov": False,
            },
        ),
        "Adam:load": (adam.load_state_dict, {"state_dict": adam.state_dict()}),
        "SGD:load": (sgd.load_state_dict, {"state_dict": sgd.state_dict()}),
        "Adam:set": (lambda name, value: setattr(adam, name, value), setting),
        "SGD:set": (lambda name, value: setattr(sgd, name, value), setting),
        "clip_grad_norm": (
            fr.clip_grad_norm,
            {"modules": module, "max_norm": 1.0, "norm_type": 2.0, "error_if_nonfinite": False},
        ),
        "clip_grad_value": (fr.clip_grad_value, {"modules": [module], "clip_value": 1.0}),
        "sigmoid": (fr.functional.sigmoid, {"x": x}),
        "tanh": (fr.functional.tanh, {"x": x}),
        "load_state_dict": (module.load_state_dict, {"state_dict": module.state_dict(), "strict": True}),
        "load_random_state": (module.load_random_state, {"state": module.random_state()}),
        "to": (module.to, {"device": "cpu"}),
        "train": (module.train, {"mode": True}),
        "add_module": (fr.Module().add_module, {"name": "a", "module": small_module()}),
        "parameters": (
            lambda value: module.parameters.__setitem__("bias_ih_l0", value),
            {"value": np.ones(12, np.float32)},
        ),
        "stream": (module.stream, {"batch_size": 2}),
        "quantize": (module.quantize, {"weights": "bf16"}),
        "quantized": (
            network_8,
            {"x": x, "state": None, "lengths": [1, 2], "resets": None, "reset_state": None},
        ),
        "Stream": (stream, {"x": x[0]}),
        "Stream:state": (lambda value: setattr(stream, "state", value), {"value": stream.state}),
        "Stream:reset": (stream.reset, {"rows": [0]}),
        "QuantizedStream": (step, {"x": x[0]}),
        "QuantizedStream:state": (lambda value: setattr(step, "state", value), {"value": step.state}),
        "QuantizedStream:reset": (step.reset, {"rows": [0]}),
        "functional": (
            fr.functional.forward,
            {
                "cell": "gru",
                "x": x,
                "params": {
                    "weight_ih": np.ones((9, 2), np.float32),
                    "weight_hh": np.ones((9, 3), np.float32),
                },
                "state": np.ones((2, 3), np.float32),
                "lengths": np.array([1, 2]),
                "resets": np.zeros((3, 2), bool),
                "reset_state": np.ones(3, np.float32),
                "reverse": False,
                "recompute": False,
            },
        ),
        "set_num_threads": (fr.set_num_threads, {"n": 1}),
        "set_detect_changes": (fr.set_detect_changes, {"enabled": False}),
        **{
            f"init.{name}": (getattr(fr.init, name), {"array": weight, "gain": 1.0, "rng": 0})
            for name in ("xavier_uniform", "xavier_normal", "orthogonal")
        },
        **{
            f"init.{name}": (getattr(fr.init, name), {"array": weight, "mode": "fan_in", "rng": 0})
            for name in ("he_uniform", "he_normal")
        },
        "init.forget_gate_bias": (
            fr.init.forget_gate_bias,
            {"bias": np.ones(8, np.float32), "value": 1.0, "gate": 1, "gates": 4},
        ),
    }


def public_call(rng: Rng) -> None:
    """A public callable with one or two arguments wrong, or all of them."""
    entries = table()
    name = pick(rng, list(entries))
    function, arguments = entries[name]
    valid = list(arguments.values())
    wrong = [str(key) for key in rng.permutation(list(arguments))[: pick(rng, [0, 1, 1, 2, 9])]]
    for key in wrong:
        arguments[key] = mutated(rng, arguments[key], valid) if chance(rng, 0.5) else garbage(rng, valid)
    print(
        "   ",
        name,
        {key: getattr(arguments[key], "shape", repr(arguments[key])[:60]) for key in wrong},
        flush=True,
    )
    result = outcome(function, **arguments)
    assert wrong or result[1] is None, result
    fr.set_num_threads(1)
