"""Digits as trains of spikes, read by spiking neurons (pip install scikit-learn matplotlib)."""

import sys

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import fusedrnn as fr

quick = "--quick" in sys.argv
epochs, steps, rng = 6 if quick else 30, 25, np.random.default_rng(0)
images, classes = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
held_out = np.random.default_rng(0).random(len(classes)) < 0.25


def trains(pictures):
    """Spikes (T, B, 64), each with the brightness of its pixel as probability."""
    return (rng.random((steps, *pictures.shape)) < pictures).astype(np.float32)


lif = fr.LIF(64, 100, seed=0)
model = fr.Sequential(lif, fr.Pool("mean"), fr.Linear(100, 10, seed=1))
optimizer = fr.optim.Adam(model, lr=0.005)
x, targets = images[~held_out], classes[~held_out]
for _ in range(epochs):
    for some in np.array_split(rng.permutation(len(x)), len(x) // 64):
        output, tape = model.forward(trains(x[some]))
        _, dy = fr.cross_entropy(output, targets[some])
        model.zero_grad()
        model.backward(tape, dy)
        optimizer.step()

shown = trains(images[held_out])
spikes, _ = lif(shown)
ours = np.mean(model(shown).argmax(-1) == classes[held_out])
counts = LogisticRegression(max_iter=1000).fit(trains(x).mean(0), targets)
linear = counts.score(shown.mean(0), classes[held_out])
print(f"accuracy {ours:.3f}, logistic regression of the counts of spikes {linear:.3f}")
print(f"each neuron fires in {spikes.mean():.0%} of the steps, each pixel in {shown.mean():.0%}")
figure = Figure(figsize=(8, 3))
for axes, train, name in zip(figure.subplots(1, 2), (shown, spikes), ("pixels", "neurons"), strict=True):
    step, unit = np.nonzero(train[:, 0])
    axes.scatter(step, unit, s=3, c="C0")
    axes.set(xlabel="step", title=f"{name}, a {classes[held_out][0]}")
figure.savefig("spikes.png", bbox_inches="tight", dpi=80)
