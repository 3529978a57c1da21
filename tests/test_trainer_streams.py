"""Trainer: truncated backpropagation through time, and the precision that it converts to."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_trainer_resume import StopAt, Stopped
from trainer_runs import accuracy, bits, kill_again_and_again, sequences, steps

import fusedrnn as fr
from fusedrnn import files, optim
from fusedrnn.training import Trainer

pytestmark = pytest.mark.once

WINDOW = 5


def model(dropout: float = 0.2, **options: Any) -> fr.Stateful:
    return fr.Stateful(
        fr.GRU(3, 8, num_layers=2, dropout=dropout, seed=0, **options),
        fr.Linear(8, 2, seed=1, **options),
    )


def streamed(net: Any = None, **options: Any) -> Trainer:
    net = model() if net is None else net
    settings = {"epochs": 3, "batch_size": 8, "bptt": WINDOW, "clip": 1.0, "progress": False, **options}
    return Trainer(net, fr.cross_entropy, optim.Adam(net, lr=0.02), **settings)


def test_updates_equal_a_loop_over_windows() -> None:
    """Written out: the state goes on, no gradient does, steps past an end do not count."""
    inputs, targets = steps(8)
    run = streamed(epochs=2)
    run.fit((inputs, targets))
    net = model()
    adam, losses = optim.Adam(net, lr=0.02), []
    for _ in range(2):
        state = None
        # The order of the sequences in a batch of all of them changes sums by rounding alone, but draws
        # dropout for other rows: take it from the run.
        order = run_order(run, len(inputs), len(losses))
        x, lengths = fr.pad([inputs[i] for i in order])
        y, _ = fr.pad([targets[i] for i in order])
        for start in range(0, len(x), WINDOW):
            part, left = x[start : start + WINDOW], np.clip(lengths - start, 0, None)
            left = np.minimum(left, len(part))
            logits, state, tape = net.forward(part, state, left)
            counted = np.arange(len(part))[:, None] < left
            loss, flow = fr.cross_entropy(logits[counted], y[start : start + WINDOW][counted])
            dlogits = np.zeros_like(logits)
            dlogits[counted] = flow
            net.zero_grad()
            net.backward(tape, dlogits)
            fr.clip_grad_norm(net, 1.0)
            adam.step()
            losses.append(loss)
    assert run.losses == losses and run.step == 2 * 3
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(run.model.state_dict()[name], array)


def run_order(run: Trainer, count: int, done: int) -> Any:
    data = run._data(steps(count), "train")
    (order,) = data.shuffled(8, 0, done // 3)
    return order


def test_measured_as_whole_sequences_are() -> None:
    data = steps(20)
    run = streamed(metrics={"accuracy": accuracy})
    run.fit(data)
    plain = fr.Sequential(*run.model)
    whole = Trainer(
        plain,
        fr.cross_entropy,
        optim.SGD(plain, lr=0.0),
        metrics={"accuracy": accuracy},
        batch_size=8,
        progress=False,
    )
    found, want = run.evaluate(data), whole.evaluate(data)
    assert found["loss"] == pytest.approx(want["loss"], rel=1e-6)
    assert found["accuracy"] == pytest.approx(want["accuracy"], rel=1e-12)


def test_it_learns_what_lies_further_back_than_a_window() -> None:
    """The state crosses the border: of the first step's sign nothing is left in the last window."""
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((12, 3)).astype("f4") * 0.1 for _ in range(64)]
    targets = []
    for x in inputs:
        x[0, 0] = rng.choice([-2.0, 2.0])
        targets.append(np.full(12, int(x[0, 0] > 0)))
    run = streamed(model(0.0), epochs=30, bptt=4)
    run.fit((inputs, targets))
    logits, _ = run.model(np.stack(inputs, axis=1))
    assert (logits[-1].argmax(-1) == [y[0] for y in targets]).mean() > 0.95


@pytest.mark.parametrize("stops", [(1, 2, 7), (3, 4, 5, 13)])
def test_resuming_in_the_middle_of_a_stream(stops: tuple[int, ...], tmp_path: Path) -> None:
    """The state carried is in the checkpoint: the bits are those of a run that was never stopped."""
    data = steps(20), steps(6, 1)

    def made(stop: int, name: str) -> Trainer:
        return streamed(callbacks=[StopAt(stop)], checkpoint=tmp_path / name, checkpoint_steps=1)

    whole = made(-1, "whole")
    whole.fit(*data)
    for stop in stops:
        with pytest.raises(Stopped):
            made(stop, "parts").fit(*data, resume=True)
    resumed = made(-1, "parts")
    assert resumed.fit(*data, resume=True) == whole.history
    assert bits(resumed) == bits(whole)


def test_killing_loses_nothing_of_a_stream(tmp_path: Path) -> None:
    """kill -9 at random moments; FUSEDRNN_KILLS says how many."""
    path, epochs = tmp_path / "killed", 400

    def ended() -> None:
        # That of before the first step is taken away again: it only tries whether there can be one.
        if path.exists():
            files.load(path, "fusedrnn run of a Trainer")

    times = int(os.environ.get("FUSEDRNN_KILLS") or 3)
    kills = kill_again_and_again(__file__, path, epochs, times, 0.2, ended)
    whole, resumed = streamed(epochs=epochs), streamed(epochs=epochs, checkpoint=path)
    resumed.fit(steps(20), steps(6, 1), resume=True)
    whole.fit(steps(20), steps(6, 1))
    resumed._digest = whole._digest
    assert bits(resumed) == bits(whole)
    print(f"{kills} kills")


def test_the_state_of_a_checkpoint_is_that_of_the_stream(tmp_path: Path) -> None:
    inputs = [np.ones((12, 3), np.float32) * k for k in range(3)]
    targets = [np.zeros(12, np.int64)] * 3

    class Stop:
        def on_step(self, run: Trainer) -> None:
            if run.step == 2:
                raise Stopped

    run = streamed(model(0.0), callbacks=[Stop()], checkpoint=tmp_path / "c", checkpoint_steps=1, epochs=1)
    with pytest.raises(Stopped):
        run.fit((inputs, targets))
    tensors, content = files.load(tmp_path / "c", "fusedrnn run of a Trainer")
    # Of the first step: the second was made, and the error came before its checkpoint.
    assert content["carried"] == [True] and tensors["carried.0"].shape == (2, 3, 8)
    forged = [({"carried": False}, tensors), ({"carried": [True, True]}, tensors)]
    forged += [({}, {k: v for k, v in tensors.items() if k != "carried.0"})]
    for change, arrays in forged:
        files.save(tmp_path / "c", "fusedrnn run of a Trainer", arrays, {**content, **change})
        again = streamed(model(0.0), checkpoint=tmp_path / "c")
        with pytest.raises(ValueError, match="not a checkpoint of this run: carried"):
            again.fit((inputs, targets), resume=True)
    files.save(tmp_path / "c", "fusedrnn run of a Trainer", tensors, content)
    with pytest.raises(ValueError, match="bptt: expected 5, with which it was made, got 4"):
        streamed(model(0.0), checkpoint=tmp_path / "c", bptt=4).fit((inputs, targets), resume=True)


# Precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["float32", "float64"])
def test_everything_is_converted(given: str) -> None:
    """Model, the optimiser's state, and floats of the data: as if all had been of that dtype."""
    other = "float64" if given == "float32" else "float32"
    losses = []
    for precision, dtype in ((given, other), (None, given)):
        net = model(0.0, dtype=other).astype(given) if precision is None else model(0.0, dtype=other)
        optimizer = optim.Adam(net, lr=0.02)
        run = Trainer(
            net, fr.mse_loss, optimizer, epochs=2, batch_size=8, precision=precision, progress=False
        )
        inputs, _ = sequences(20, dtype="f4")
        data = [x.astype(dtype) for x in inputs], [x[:, :2].astype(dtype) for x in inputs]
        run.fit(data, data)
        assert net.dtype == given and optimizer.state_dict()["exp_avg.1.bias"].dtype == given
        losses.append((run.losses, run.history))
    assert losses[0] == losses[1]


def test_a_state_that_was_trained_is_converted() -> None:
    net = model(0.0)
    adam = optim.Adam(net, lr=0.02)
    Trainer(net, fr.cross_entropy, adam, epochs=1, progress=False).fit(steps(8))
    before = adam.state_dict()["exp_avg.0.weight_hh_l0"]
    run = Trainer(net, fr.cross_entropy, adam, epochs=1, precision="float64", progress=False)
    np.testing.assert_array_equal(adam.state_dict()["exp_avg.0.weight_hh_l0"], before.astype("f8"))
    run.fit(steps(8))
    assert adam.step_count == 2


# Errors -----------------------------------------------------------------------------------------------------


def test_what_it_refuses() -> None:
    plain = fr.Sequential(fr.GRU(3, 2, seed=0))
    both = fr.GRU(3, 2, bidirectional=True, merge="sum", seed=0)
    crf = fr.CRF(2, seed=0)
    net = model()
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: streamed(plain), ValueError, "bptt: expected a model with a state, got Sequential; fr.Stat"),
        (lambda: streamed(both), ValueError, "expected bidirectional=False with bptt"),
        (lambda: streamed(fr.Stateful(both)), ValueError, "0: expected bidirectional=False with bptt"),
        (lambda: streamed(bptt=0), ValueError, "bptt: expected an int >= 1"),
        (
            lambda: Trainer(net, crf.loss, optim.Adam(net), bptt=3),
            ValueError,
            "bptt: expected a loss of sing",
        ),
        (lambda: streamed().fit(sequences(8)), ValueError, "train targets: expected a list of arrays"),
        (lambda: streamed(precision="float16"), ValueError, "precision: expected 'float32', 'float64' or No"),
        (lambda: streamed(precision=np.float32), ValueError, "precision: expected"),
    ]
    for call, kind, text in calls:
        with pytest.raises(kind, match=f"^{text}"):
            call()


if __name__ == "__main__":
    streamed(epochs=int(sys.argv[2]), checkpoint=sys.argv[1], checkpoint_steps=1).fit(
        steps(20), steps(6, 1), resume=True
    )
