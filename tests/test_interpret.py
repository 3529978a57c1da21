"""fr.interpret: records against the networks, attributions against differences and by conservation."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import interpret

pytestmark = pytest.mark.once

RNG = np.random.default_rng(0)
X = RNG.standard_normal((9, 3, 4))


def classifier(**options: Any) -> fr.Sequential:
    rnn = fr.LSTM(4, 5, num_layers=2, bidirectional=True, seed=0, dtype="float64")
    head = fr.Linear(10, 3, seed=1, dtype="float64")
    return fr.Sequential(rnn, fr.Dropout(0.5), fr.Pool("last"), head)


@pytest.mark.parametrize("kind", [fr.LSTM, fr.GRU, fr.RNN])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False}])
def test_records_are_what_the_network_does(kind: Any, options: dict[str, Any]) -> None:
    network = kind(4, 5, dtype="float64", seed=0, **options)
    lengths = [9, 4, 0]
    y, state = network(X, lengths=lengths)
    records = interpret.cell_records(network, X, lengths)
    top = [record for record in records if record.layer == network.num_layers - 1]
    np.testing.assert_allclose(np.concatenate([r.values["h"] for r in top], -1), y, rtol=1e-10, atol=1e-13)
    assert [(r.layer, r.reverse) for r in records] == sorted((r.layer, r.reverse) for r in records)
    if kind is fr.LSTM:
        np.testing.assert_allclose(records[0].values["c"][3, 1], state[1][0, 1], rtol=1e-10)
    assert np.array_equal(records[0].counts.sum(axis=0), lengths)
    by_one = kind(4, 5, dtype="float64", batch_first=True, **options)
    by_one.load_state_dict(network.state_dict())
    again = interpret.cell_records(by_one, X.swapaxes(0, 1), lengths)[-1].values["h"]
    np.testing.assert_allclose(again, records[-1].values["h"], rtol=1e-13)


def test_saturation() -> None:
    """A forget gate held open, and shares of the steps that count alone."""
    lstm = fr.LSTM(4, 5, seed=0, dtype="float64")
    lstm.parameters["bias_ih_l0"][5:10] = 20.0
    (record,) = interpret.cell_records(lstm, X, [9, 4, 0])
    found = record.saturation()
    assert np.array_equal(found["f"][1], np.ones(5)) and not found["f"][0].any()
    seen = np.concatenate([record.values["g"][:9, 0], record.values["g"][:4, 1]])
    np.testing.assert_allclose(found["g"][0], (seen < -0.9).mean(axis=0))
    np.testing.assert_allclose(
        record.saturation(low=0.5)["i"][0], (record.values["i"][record.counts] < 0.5).mean(0)
    )
    assert "f: saturated left 0%, right 100%" in repr(record)
    assert np.isnan(interpret.cell_records(lstm, X, [0, 0, 0])[0].saturation()["i"][0]).all()


def test_saliency_is_the_slope() -> None:
    model, lengths = classifier(), [9, 4, 6]
    found = interpret.saliency(model, X, [0, 1, 2], lengths)
    model.eval()
    for place in ((0, 0, 1), (3, 1, 2), (8, 0, 3), (5, 1, 0)):
        change = np.zeros_like(X)
        change[place] = 1e-6
        up, down = (model(X + sign * change, lengths)[place[1], place[1]] for sign in (1, -1))
        assert found.values[place] == pytest.approx((up - down) / 2e-6, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(found.output, model(X, lengths)[[0, 1, 2], [0, 1, 2]], rtol=1e-12)


def test_integrated_gradients_are_complete() -> None:
    """They add up to the difference of the outputs, from any baseline; more places, a smaller error."""
    model = classifier()
    start = RNG.standard_normal(4)
    found = interpret.integrated_gradients(model, 3 * X, 1, baseline=start, steps=24, lengths=[9, 4, 6])
    model.eval()
    whole = model(3 * X, [9, 4, 6])[:, 1] - model(np.broadcast_to(start, X.shape).copy(), [9, 4, 6])[:, 1]
    np.testing.assert_allclose(found.values.sum(axis=(0, 2)), whole, rtol=1e-3)
    np.testing.assert_allclose(found.error, whole - found.values.sum(axis=(0, 2)), atol=1e-12)
    assert not found.values[4:, 1].any()
    few = interpret.integrated_gradients(model, 3 * X, 1, baseline=start, steps=2, lengths=[9, 4, 6])
    assert np.abs(found.error).max() < 0.1 * np.abs(few.error).max()


def test_of_tokens_and_of_one_sequence() -> None:
    model = fr.Sequential(fr.Embedding(7, 4, seed=0), fr.GRU(4, 5, seed=1), fr.Pool("mean"), fr.Linear(5, 2))
    found = interpret.integrated_gradients(model, [1, 2, 6], 1)
    assert found.values.shape == (3, 4) and found.steps.shape == (3,) and found.output.shape == ()
    assert abs(found.error) < 1e-9
    assert not any(gradient.any() for gradient in model.grads.values()) and model.training
    assert found.figure(labels="abc").axes
    with pytest.raises(ValueError, match=r"labels: expected T = 3 of them, got 2"):
        found.figure(labels="ab")


@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_lrp_conserves(eps: float) -> None:
    """With the biases' share given back nothing is lost, through layers and directions."""
    model = classifier()
    found = interpret.lrp(model, X, [0, 1, 2], eps=eps, bias_factor=1.0)
    np.testing.assert_allclose(found.values.sum(axis=(0, 2)) + found.rest, found.output, rtol=1e-9)
    np.testing.assert_allclose(found.output, model.eval()(X)[[0, 1, 2], [0, 1, 2]], rtol=1e-10)
    assert np.abs(interpret.lrp(model, X, 0, eps=eps).error).min() > 1e-3


def test_lrp_by_hand() -> None:
    """One unit and one step: h = o tanh(c), c = i g, and all relevance goes through g to x by its share."""
    lstm, head = fr.LSTM(2, 1, seed=3, dtype="float64"), fr.Linear(1, 1, seed=4, dtype="float64")
    model, x = fr.Sequential(lstm, fr.Pool("last"), head), np.array([[0.7, -1.1]])
    found = interpret.lrp(model, x, 0, eps=0.0)
    (record,) = interpret.cell_records(lstm, x)
    through = float(record.values["h"][0, 0, 0] * head.parameters["weight"][0, 0])
    weight = lstm.parameters["weight_ih_l0"][2]
    bias = lstm.parameters["bias_ih_l0"][2] + lstm.parameters["bias_hh_l0"][2]
    np.testing.assert_allclose(found.values[0], weight * x[0] / (weight @ x[0] + bias) * through, rtol=1e-12)


def test_attention_maps() -> None:
    model = fr.Sequential(
        fr.SelfAttention(4, 2, causal=True, seed=0), fr.Pool("attention", features=4, seed=1), fr.Linear(4, 2)
    )
    x, lengths = X.astype(np.float32), [9, 4, 0]
    heads, pool = interpret.attention_maps(model, x, lengths)
    assert heads.weights.shape == (3, 2, 9, 9) and pool.weights.shape == (3, 1, 1, 9)
    np.testing.assert_allclose(heads.weights.sum(-1)[1, 0], [1] * 4 + [0] * 5, atol=1e-12)
    q, k = np.split(
        x[:, 0] @ model[0].state_dict()["in_proj_weight"][:8].T, 2, axis=-1
    )  # biases start from 0
    scores = np.exp(np.where(np.tri(9) > 0, q[:, 2:] @ k[:, 2:].T / np.sqrt(2), -np.inf))
    np.testing.assert_allclose(heads.weights[0, 1], scores / scores.sum(-1, keepdims=True), rtol=1e-5)
    assert not np.triu(heads.weights[0, 0], 1).any()
    np.testing.assert_allclose(pool.weights.sum(-1).ravel(), [1, 1, 0], atol=1e-12)
    y = model[0](x, lengths)  # what the pool gives is the sum by these weights
    np.testing.assert_allclose(
        (pool.weights[0, 0, 0][:, None] * y[:, 0]).sum(0), model[1](y, lengths)[0], rtol=1e-5
    )
    with pytest.raises(ValueError, match="model: expected a SelfAttention or an attention Pool"):
        interpret.attention_maps(model[2:], x)


def flow_of(rnn: Any, x: Any = X, targets: Any = (0, 1, 1), **options: Any) -> interpret.GradientFlow:
    model = fr.Sequential(rnn, fr.Pool("last"), fr.Linear(rnn.hidden_size, 2, seed=0))
    return interpret.gradient_flow(
        model, fr.cross_entropy, x.astype(np.float32), np.array(targets), **options
    )


def test_gradient_flow_is_that_of_training() -> None:
    """Norms of the parameters' gradients are those that backward adds, layer by layer."""
    gru = fr.GRU(4, 5, num_layers=2, seed=0, dtype="float64")
    model = fr.Sequential(gru, fr.Linear(5, 2, seed=0, dtype="float64"))
    targets = RNG.integers(0, 2, (9, 3))
    found = interpret.gradient_flow(model, fr.cross_entropy, X, targets, lengths=[9, 9, 9])
    logits, tape = model.forward(X)
    dy = fr.cross_entropy(logits, targets)[1]
    model.backward(tape, dy)
    for ours, name in {"0.l0.weight_ih_l0": "0.weight_ih_l0", "0.l1.weight_hh_l0": "0.weight_hh_l1"}.items():
        assert found.parameters[ours][0] == pytest.approx(np.linalg.norm(model.grads[name]), rel=1e-9)
    np.testing.assert_allclose(found.norms["1"], np.linalg.norm(dy, axis=(1, 2)), rtol=1e-12)
    assert list(found.norms) == ["0.l0", "0.l1", "1"] and found.findings == []
    assert "nothing vanishes" in repr(found)


def test_gradient_flow_finds_what_is_wrong() -> None:
    weak = fr.RNN(4, 6, seed=0)
    weak.parameters["weight_hh_l0"][...] *= 0.2
    with pytest.raises(
        ValueError, match=r"^x: expected at least one step of one sequence, got shape \(0, 3, 4\)"
    ):
        flow_of(weak, X[:0])
    (said,) = flow_of(weak).findings
    assert said.startswith("0: gradients vanish over time: what was 5 steps before")
    strong = fr.RNN(4, 6, nonlinearity="relu", seed=0)
    strong.parameters["weight_hh_l0"][...] *= 8
    assert any(said.startswith("0: gradients explode over time") for said in flow_of(strong).findings)
    flat = fr.Linear(6, 2, init=None)
    model = fr.Sequential(fr.RNN(4, 6, seed=0), fr.Pool("last"), flat)
    found = interpret.gradient_flow(model, fr.cross_entropy, X.astype(np.float32), np.array([0, 1, 1]))
    assert any("weight_ih_l0" in said and "exactly 0" in said for said in found.findings)
    short = flow_of(fr.LSTM(4, 6, seed=0), lengths=[5, 2, 0])
    assert len(short.reach["0"]) == 5 and short.reach["0"][0] == 1.0


def test_figures() -> None:
    (record,) = interpret.cell_records(fr.LSTM(4, 5, seed=0), X)
    maps = interpret.attention_maps(fr.SelfAttention(4, 2, seed=0), X.astype(np.float32))
    for figure in (
        record.figure(),
        maps[0].figure(labels="abcdefghi"),
        flow_of(fr.LSTM(4, 6, seed=0)).figure(),
    ):
        written = io.BytesIO()
        figure.savefig(written, format="svg")
        assert written.tell() > 1000


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: interpret.cell_records(fr.Linear(4, 5), X),
            TypeError,
            "network: expected an RNN, LSTM or GRU",
        ),
        (
            lambda: interpret.cell_records(fr.MGU(4, 5), X),
            ValueError,
            "network: expected an RNN, LSTM or GRU",
        ),
        (lambda: interpret.cell_records(fr.LSTM(4, 5), X[..., :3]), ValueError, "x: expected shape .* I = 4"),
        (lambda: interpret.cell_records(fr.LSTM(4, 5), [[1]]), TypeError, "x: expected floats, got int64"),
        (lambda: interpret.saliency(classifier(), X, 3), ValueError, r"target: expected 0..2, got 3..3"),
        (lambda: interpret.saliency(classifier(), X, 1.0), TypeError, "target: expected integers"),
        (
            lambda: interpret.saliency(fr.LSTM(4, 5), X, 1),
            ValueError,
            r"outputs \(B, K\) or \(K,\), got \(9, 3, 5",
        ),
        (lambda: interpret.saliency(lambda x: x, X, 1), TypeError, "model: expected a Module"),
        (
            lambda: interpret.integrated_gradients(classifier(), X, 1, np.ones(3)),
            ValueError,
            "baseline: expected",
        ),
        (
            lambda: interpret.lrp(fr.Sequential(fr.GRU(4, 5)), X, 0),
            ValueError,
            "model: expected a Sequential of LSTM",
        ),
        (lambda: interpret.lrp(classifier(), X, 0, bias_factor=2), ValueError, "bias_factor: expected"),
    ],
)
def test_errors(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
