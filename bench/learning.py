#!/usr/bin/env python3
"""What networks learn: tasks with a known answer, at fixed seeds. Exit status 1 if one fails that should not.

usage: learning.py [adding | copy | digits]...     all of them without a name; minutes on one core

adding  the sum of two marked numbers among T = 400: IndRNN and LSTM learn it, a tanh RNN does not
copy    ten symbols of eight, repeated after 30 blanks: an LSTM learns it
digits  scikit-learn's digits as trains of spikes: more than 90% of unseen ones by LIF neurons
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fusedrnn as fr

Array = npt.NDArray[np.float32]
Network: TypeAlias = "fr.Recurrent[Any]"


class Readout(fr.Module):
    """A recurrent network under a linear layer."""

    def __init__(self, rnn: Network, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = fr.Linear(hidden_size, outputs, seed=1)


def adding_batch(rng: np.random.Generator, seq_len: int, batch: int) -> tuple[Array, Array]:
    """Return numbers in [0, 1) with two of them marked, one in each half, and the sums of these."""
    x = np.zeros((seq_len, batch, 2), np.float32)
    x[..., 0] = rng.random((seq_len, batch))
    rows = np.arange(batch)
    first, second = (rng.integers(*half, batch) for half in ((0, seq_len // 2), (seq_len // 2, seq_len)))
    x[first, rows, 1] = x[second, rows, 1] = 1
    return x, (x[first, rows, 0] + x[second, rows, 0])[:, None]


def adding_error(rnn: Network, seq_len: int, steps: int, lr: float, batch: int = 32) -> float:
    """Return the mean squared error over the last tenth of training; guessing 1 gives 1/6.

    The learning rate falls to 0 in the last quarter. |u| of an IndRNN stays below its paper's limit, 2^(1/T).
    """
    model = Readout(rnn, rnn.hidden_size, 1)
    optimizer = fr.optim.Adam(model, lr=lr)
    limit = 2.0 ** (1.0 / seq_len)
    limited = [array for name, array in rnn.parameters.items() if name.startswith("u_l")]
    rng = np.random.default_rng(0)
    losses = []
    for step in range(steps):
        optimizer.lr = lr * min(1.0, 4.0 * (1.0 - step / steps))
        x, sums = adding_batch(rng, seq_len, batch)
        y, _, tape = rnn.forward(x)
        guess, head_tape = model.head.forward(y[-1])
        loss, dguess = fr.mse_loss(guess, sums)
        dy = np.zeros_like(y)
        dy[-1] = model.head.backward(head_tape, dguess)
        rnn.backward(tape, dy, need_dx=False)
        fr.clip_grad_norm(model, 1.0)
        optimizer.step()
        for u in limited:
            np.clip(u, -limit, limit, out=u)
        model.zero_grad()
        losses.append(loss)
    return float(np.mean(losses[-steps // 10 :]))


def adding() -> bool:
    """Compare networks on the adding problem."""
    networks: dict[str, tuple[Callable[[], Network], int, float, bool]] = {
        "IndRNN": (lambda: fr.IndRNN(2, 32, 2, seed=0), 2000, 5e-3, True),
        "LSTM": (lambda: fr.LSTM(2, 24, seed=0, forget_bias=3.0), 2000, 2e-2, True),
        "RNN": (lambda: fr.RNN(2, 24, seed=0), 2000, 5e-3, False),
    }
    right = True
    for name, (make, steps, lr, learns) in networks.items():
        start = time.perf_counter()
        error = adding_error(make(), 400, steps, lr)
        right = right and (error < 0.02 if learns else error > 0.12)
        print(
            f"adding, T = 400: {name}: error {error:.4f} in {time.perf_counter() - start:.0f} s", flush=True
        )
    return right


def copy_accuracy(rnn: Network, blanks: int, steps: int, lr: float, batch: int = 32) -> float:
    """Return the share of ten symbols of eight that come back right after `blanks` steps and a sign."""
    model = Readout(rnn, rnn.hidden_size, 8)
    optimizer = fr.optim.Adam(model, lr=lr)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(steps):
        symbols = rng.integers(0, 8, (10, batch))
        tokens = np.full((20 + blanks, batch), 8)
        tokens[:10], tokens[10 + blanks] = symbols, 9
        x = np.eye(10, dtype=np.float32)[tokens]
        y, _, tape = rnn.forward(x)
        logits, head_tape = model.head.forward(y[-10:])
        _, dlogits = fr.cross_entropy(logits, symbols)
        dy = np.zeros_like(y)
        dy[-10:] = model.head.backward(head_tape, dlogits)
        rnn.backward(tape, dy, need_dx=False)
        fr.clip_grad_norm(model, 1.0)
        optimizer.step()
        model.zero_grad()
        shares.append(np.mean(logits.argmax(-1) == symbols))
    return float(np.mean(shares[-steps // 20 :]))


def copy() -> bool:
    """Copy symbols over a gap."""
    start = time.perf_counter()
    share = copy_accuracy(fr.LSTM(10, 64, seed=0, forget_bias=4.0), 30, 4000, 1e-2)
    print(f"copy over 30 steps: LSTM: {share:.1%} right in {time.perf_counter() - start:.0f} s", flush=True)
    return share > 0.97


def spikes_of(images: Array, steps: int, rng: np.random.Generator) -> Array:
    """Return spikes (T, B, I) whose rates are the brightnesses (B, I) in [0, 1]."""
    return (rng.random((steps, *images.shape)) < images).astype(np.float32)


def spiking_accuracy(
    train: tuple[Array, Array], test: tuple[Array, Array], epochs: int, hidden: int = 100, steps: int = 25
) -> float:
    """Return the share of unseen images that LIF neurons under a readout of their rates get right."""
    lif = fr.LIF(train[0].shape[1], hidden, seed=0)
    model = Readout(lif, hidden, int(train[1].max()) + 1)
    optimizer = fr.optim.Adam(model, lr=5e-3)
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(train[0]))
        for chosen in np.array_split(order, max(1, len(order) // 64)):
            spikes, _, tape = lif.forward(spikes_of(train[0][chosen], steps, rng))
            logits, head_tape = model.head.forward(spikes.mean(0))
            _, dlogits = fr.cross_entropy(logits, train[1][chosen])
            drate = model.head.backward(head_tape, dlogits) / steps
            lif.backward(tape, np.broadcast_to(drate, spikes.shape).copy(), need_dx=False)
            optimizer.step()
            model.zero_grad()
    rates = lif(spikes_of(test[0], steps, rng))[0].mean(0)
    return float(np.mean(model.head(rates).argmax(-1) == test[1]))


def digits() -> bool:
    """Tell digits from spikes."""
    from sklearn.datasets import load_digits

    start = time.perf_counter()
    loaded = load_digits()
    images, labels = (loaded.data / 16).astype(np.float32), loaded.target
    order = np.random.default_rng(0).permutation(len(images))
    parts = [(images[part], labels[part]) for part in (order[:1437], order[1437:])]
    share = spiking_accuracy(parts[0], parts[1], 20)
    print(f"digits as spikes: LIF: {share:.1%} right in {time.perf_counter() - start:.0f} s", flush=True)
    return share > 0.9


TASKS = {"adding": adding, "copy": copy, "digits": digits}

if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in TASKS]
    if unknown:
        sys.exit(__doc__)
    results = [TASKS[name]() for name in sys.argv[1:] or TASKS]
    sys.exit(0 if all(results) else 1)
