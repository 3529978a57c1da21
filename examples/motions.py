"""Standing, walking, running or badminton, from a watch's accelerometer and gyroscope (pip install aeon)."""

import sys

import numpy as np
from aeon.datasets import load_basic_motions

from fusedrnn.estimators import SequenceClassifier
from fusedrnn.preprocessing import Scaler

quick = "--quick" in sys.argv
(x, y), (x_test, y_test) = (load_basic_motions(split=split) for split in ("train", "test"))  # (40, 6, 100)
x, x_test = x.swapaxes(1, 2), x_test.swapaxes(1, 2)
scaler = Scaler().fit(x)
model = SequenceClassifier("gru", 32, bidirectional=True, pooling="max", batch_size=8, random_state=0)
model.set_params(epochs=15 if quick else 30).fit(scaler.transform(x), y)
centres = {name: x[y == name].std(axis=1).mean(axis=0) for name in np.unique(y)}  # how much each sensor moves
nearest = [min(centres, key=lambda name: np.linalg.norm(one.std(axis=0) - centres[name])) for one in x_test]
ours = model.score(scaler.transform(x_test), y_test)
print(f"accuracy {ours:.3f}, by the nearest mean of deviations {np.mean(nearest == y_test):.3f}")
