"""Where a series of the UCR anomaly archive is not as it was (pip install aeon matplotlib)."""

import sys

import numpy as np
from aeon.datasets import load_kdd_tsad_135
from matplotlib.figure import Figure

from fusedrnn.estimators import AnomalyDetector, Forecaster
from fusedrnn.preprocessing import windows

quick = "--quick" in sys.argv
train, _ = load_kdd_tsad_135(split="train")
test, labels = load_kdd_tsad_135(split="test")
train, test, labels = np.ravel(train), np.ravel(test), np.ravel(labels).astype(bool)
model = Forecaster(16, 96, hidden_size=32, epochs=5 if quick else 30, random_state=0)
detector = AnomalyDetector(model, smooth=32).fit(train)
scores = -detector.score_samples(test)


def shapes(series):  # windows without their mean and deviation
    found = windows(series, 64)[0]
    return (found - found.mean(1, keepdims=True)) / found.std(1, keepdims=True)


known, seen = shapes(train), shapes(test)
nearest = np.array([((known - one) ** 2).sum(1).min() for one in seen])  # to a window of training
real, normal = np.flatnonzero(labels), scores[~labels]
print(f"largest at step {scores.argmax()}; the anomaly is at {real[0]} to {real[-1]}")
print(f"by the nearest neighbour's distance it would be at {32 + nearest.argmax()}")
print(f"{np.mean(normal < scores[labels].max()):.4f} of the other steps are less strange than it")
upper, lower = (figure := Figure(figsize=(9, 3))).subplots(2, 1, sharex=True)
upper.plot(test, lw=0.5)
lower.plot(scores, lw=0.5)
for axes, name in ((upper, "series"), (lower, "score")):
    axes.axvspan(real[0], real[-1], color="C3", alpha=0.5)
    axes.set_ylabel(name)
figure.savefig("anomaly.png", bbox_inches="tight", dpi=80)
