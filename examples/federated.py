"""Nine speakers train a model together, each on a device (pip install aeon matplotlib "flwr[simulation]")."""

import logging
import os
import sys

import numpy as np
from aeon.datasets import load_japanese_vowels
from matplotlib.figure import Figure

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam
from flwr.simulation import run_simulation

import fusedrnn as fr
from fusedrnn.preprocessing import Scaler

quick = "--quick" in sys.argv
rounds, noise = (15, 2.0) if quick else (40, 4.0)
(x, y), (x_test, y_test) = (load_japanese_vowels(split=split) for split in ("train", "test"))
x, x_test = ([one.T.astype(np.float32) for one in part] for part in (x, x_test))
x, x_test = map(Scaler().fit(x).transform, (x, x_test))
speakers, y = np.unique(y, return_inverse=True)


def network():
    gru = fr.GRU(12, 32, bidirectional=True, seed=0)
    return fr.Sequential(gru, fr.Pool("mean"), fr.Linear(64, 9, seed=1))


def gradients(model, chosen, clip=None):
    """Leave in the model the sum of the gradients of some recordings, each clipped where asked."""
    batch, lengths = fr.pad([x[i] for i in chosen])
    output, tape = model.forward(batch, lengths=lengths)
    _, dy = fr.cross_entropy(output, y[chosen], reduction="sum")
    model.zero_grad()
    if clip is None:
        model.backward(tape, dy)
    else:
        fr.per_example.clip_and_sum(tape, dy, clip)


def accuracy(model):
    batch, lengths = fr.pad(x_test)
    return float(np.mean(speakers[model(batch, lengths=lengths).argmax(-1)] == y_test))


client, server, found = ClientApp(), ServerApp(), {}


@client.train()
def train(message, context):
    """One pass over the recordings of a speaker, or one step by noisy gradients."""
    model, settings, number = network(), message.content["config"], context.node_config["partition-id"]
    model.flat_parameters[:] = message.content["arrays"]["flat"].numpy()
    scale, own = settings["noise"], np.flatnonzero(y == number)
    rng = np.random.default_rng([settings["server-round"], number])  # a secret one, where noise is to hide
    for chosen in [own] if scale else np.array_split(rng.permutation(own), 3):
        gradients(model, chosen, 1.0 if scale else None)
        drawn = scale * rng.standard_normal(model.flat_grads.size)
        model.flat_parameters[:] -= 0.1 * (model.flat_grads + drawn) / len(chosen)
    flat, size = ArrayRecord({"flat": Array(model.flat_parameters)}), MetricRecord({"num-examples": len(own)})
    return Message(RecordDict({"arrays": flat, "size": size}), reply_to=message)


@server.main()
def main(grid, context):
    """Train by what the speakers send back, without noise and with it."""
    for scale in (0.0, noise):
        model, curve = network(), found.setdefault(scale, [])

        def measured(_, arrays, model=model, curve=curve):
            model.flat_parameters[:] = arrays["flat"].numpy()
            curve.append(accuracy(model))

        strategy = FedAdam(fraction_evaluate=0.0, min_available_nodes=9, eta=0.03, tau=1e-6)
        start, settings = ArrayRecord({"flat": Array(model.flat_parameters)}), ConfigRecord({"noise": scale})
        strategy.start(grid, start, rounds, train_config=settings, evaluate_fn=measured)


central, rng = network(), np.random.default_rng(0)
optimizer = fr.optim.Adam(central, lr=0.005)
for _ in range(rounds):
    for chosen in np.array_split(rng.permutation(len(x)), 9):
        gradients(central, chosen)
        optimizer.step()
logging.getLogger("flwr").setLevel("WARNING")
run_simulation(server, client, num_supernodes=9)
rho = rounds / (2 * noise**2)  # of zero-concentrated differential privacy
print(
    f"accuracy {accuracy(central):.3f} central, {found[0.0][-1]:.3f} federated, {found[noise][-1]:.3f} "
    f"private (epsilon {rho + 2 * np.sqrt(rho * np.log(1e5)):.1f}, delta 1e-5)"
)
axes = (figure := Figure(figsize=(6, 3))).subplots()
axes.plot(np.transpose(list(found.values())))
axes.axhline(accuracy(central), color="C2")
axes.legend(["federated", "private", "central"], title="accuracy, by round")
figure.savefig("federated.png", bbox_inches="tight", dpi=80)
