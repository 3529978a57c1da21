"""A Linear whose weight is an Embedding's: one parameter, gradients of both, PyTorch's names."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from support import Array
from tolerances import assert_close

import fusedrnn as fr

V, D = 7, 4
TOKENS = np.array([[0, 6, 2], [2, 2, 5]])


class Net(fr.Module):
    """Embedding, GRU and the output layer that shares the embedding's weight."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embed = fr.Embedding(V, D, dtype="float64", seed=seed)
        self.rnn = fr.GRU(D, D, dtype="float64", seed=seed + 1)
        self.head = fr.Linear(D, V, weight_of=self.embed, dtype="float64", seed=seed + 2)

    def __call__(self, tokens: Array) -> Array:
        return self.head(self.rnn(self.embed(tokens))[0])

    def train_step(self, tokens: Array) -> float:
        x, e_tape = self.embed.forward(tokens)
        y, _, y_tape = self.rnn.forward(x)
        logits, l_tape = self.head.forward(y)
        loss, dlogits = fr.cross_entropy(logits, tokens)
        dy = self.head.backward(l_tape, dlogits)
        self.embed.backward(e_tape, self.rnn.backward(y_tape, dy)[0])
        return loss


def test_one_parameter() -> None:
    net = Net()
    assert "head.weight" not in net.parameters and list(net.head.parameters) == ["bias"]
    x = np.random.default_rng(0).normal(size=(3, D))
    want = x @ net.embed.parameters["weight"].T + net.head.parameters["bias"]
    assert_close(net.head(x), want, "output")
    net.parameters["embed.weight"] = 0.5
    assert_close(net.head(x), x @ np.full((D, V), 0.5) + net.head.parameters["bias"], "output")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert np.array_equal(other(TOKENS), net(TOKENS))
        other.parameters["embed.weight"] = -1.0
        assert_close(other.head(x), x @ np.full((D, V), -1.0) + other.head.parameters["bias"], "output")
    assert repr(net.head) == (
        "Linear(in_features=4, out_features=7, bias=True, "
        "weight_of=Embedding(7, 4, dtype='float64'), dtype='float64')"
    )
    assert list(fr.Linear(D, V, bias=False, weight_of=net.embed, dtype="float64").parameters) == []


def test_gradients_add_up() -> None:
    """Central differences of the shared weight through both of its uses."""
    net = Net()
    net.train_step(TOKENS)
    grad = net.grads["embed.weight"].copy()
    weight, step = net.parameters["embed.weight"], 1e-6
    for place in ((0, 1), (2, 3), (5, 0), (3, 2)):
        losses = []
        for sign in (1.0, -1.0):
            weight[place] += sign * step
            losses.append(copy.deepcopy(net).train_step(TOKENS))
            weight[place] -= sign * step
        assert abs((losses[0] - losses[1]) / (2 * step) - grad[place]) < 1e-7


def test_steps_lower_the_loss() -> None:
    net = Net()
    optimiser = fr.optim.Adam(net, lr=0.05)
    losses = []
    for _ in range(30):
        losses.append(net.train_step(TOKENS))
        optimiser.step()
        net.zero_grad()
    assert losses[-1] < 0.2 * losses[0]


def test_the_gradient_is_that_of_the_forward_call() -> None:
    net = Net()
    x = np.ones((2, D))
    y, tape = net.head.forward(x)
    want = net.head.backward(tape, np.ones_like(y))
    net.parameters["embed.weight"] = 9.0
    assert np.array_equal(net.head.backward(tape, np.ones_like(y)), want)


def test_state_dicts_may_name_the_weight_twice() -> None:
    net, other = Net(1), Net(2)
    state = net.state_dict()
    twice = {**state, "head.weight": state["embed.weight"]}
    other.load_state_dict(twice)
    assert np.array_equal(other(TOKENS), net(TOKENS))
    under_the_other_name = {name: value for name, value in twice.items() if name != "embed.weight"}
    other = Net(3)
    other.load_state_dict(under_the_other_name)
    assert np.array_equal(other(TOKENS), net(TOKENS))
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"^head.weight: expected the values of embed.weight"):
        other.load_state_dict(
            {**state, "head.weight": 2.0 * state["embed.weight"], "rnn.bias_ih_l0": np.ones(12)}
        )
    assert all(np.array_equal(value, before[name]) for name, value in other.state_dict().items())
    with pytest.raises(ValueError, match="unexpected: weight"):
        net.head.load_state_dict({"weight": state["embed.weight"], "bias": state["head.bias"]})


def test_parity_with_torch() -> None:
    torch = pytest.importorskip("torch")
    embed = torch.nn.Embedding(V, D, dtype=torch.float64)
    head = torch.nn.Linear(D, V, dtype=torch.float64)
    head.weight = embed.weight
    theirs = torch.nn.ModuleDict(
        {"embed": embed, "rnn": torch.nn.GRU(D, D, dtype=torch.float64), "head": head}
    )
    net = Net()
    net.load_state_dict(theirs.state_dict())
    net.train_step(TOKENS)
    logits = head(theirs["rnn"](embed(torch.tensor(TOKENS)))[0])
    torch.nn.functional.cross_entropy(logits.reshape(-1, V), torch.tensor(TOKENS).reshape(-1)).backward()
    assert_close(net.grads["embed.weight"], embed.weight.grad.numpy(), "gradient")


def test_errors() -> None:
    embed = fr.Embedding(V, D)
    for bad, error in (
        (fr.Linear(D, V), TypeError),
        (np.zeros((V, D)), TypeError),
        (fr.Embedding(V, D, dtype="float64"), TypeError),
        (fr.Embedding(D, V), ValueError),
    ):
        with pytest.raises(error, match=r"^weight_of: expected an Embedding"):
            fr.Linear(D, V, weight_of=bad)  # type: ignore[arg-type]
    head = fr.Linear(D, V, weight_of=embed)
    with pytest.raises(ValueError, match=r"^x: "):
        head(np.zeros((2, V), "float32"))


def test_a_table_written_to_through_a_look_up_is_no_stale_weight() -> None:
    """A tape has the weights of its own forward, though the last one's were copied."""
    net = fr.Module()
    net.embedding = fr.Embedding(5, 4, seed=0)
    net.out = fr.Linear(4, 5, weight_of=net.embedding, seed=0)
    x = np.ones((2, 4), np.float32)
    y, _ = net.out.forward(x)
    table = net.embedding.lookup(np.array([1])).table
    for _ in range(3):
        y, tape = net.out.forward(x)
        want = net.out.backward(tape, np.ones_like(y))
        table *= 2
        y, tape = net.out.forward(x)
        assert np.array_equal(net.out.backward(tape, np.ones_like(y)), 2 * want)
