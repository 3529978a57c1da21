"""Where a turning object is, from measurements, and what a Kalman filter says (pip install matplotlib)."""

import sys

import numpy as np
from matplotlib.figure import Figure

import fusedrnn as fr

quick = "--quick" in sys.argv


def paths(count, steps, rng):
    """Places and measurements (T, B, 2): constant speed, sudden turns, every tenth measurement far off."""
    heading, turn = rng.uniform(0, 2 * np.pi, count), np.zeros(count)
    speed, places = rng.uniform(0.5, 1.5, count), [rng.standard_normal((count, 2))]
    for _ in range(steps - 1):
        turn = np.where(rng.random(count) < 0.05, 0.3 * rng.standard_normal(count), turn)
        heading = heading + turn
        places.append(places[-1] + speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], -1))
    places = np.stack(places)
    noise = np.where(rng.random((steps, count, 1)) < 0.1, 5.0, 0.7) * rng.standard_normal(places.shape)
    return places, places + noise


def kalman(seen, process, measurement):
    """A filter of place and velocity, each axis alone; one variance matrix serves all objects."""
    move, noise = np.array([[1, 1], [0, 1]]), process * np.array([[1 / 3, 1 / 2], [1 / 2, 1]])
    state, spread, found = np.stack([seen[0], 0 * seen[0]]), np.diag([measurement, 1.0]), [seen[0]]
    for z in seen[1:]:
        state, spread = np.tensordot(move, state, 1), move @ spread @ move.T + noise
        gain = spread[:, 0] / (spread[0, 0] + measurement)
        state = state + gain[:, None, None] * (z - state[0])
        spread = spread - np.outer(gain, spread[0])
        found.append(state[0])
    return np.stack(found)


def error(found, places):
    return np.sqrt(((found - places)[10:] ** 2).sum(-1).mean())


def steps_of(seen):  # the network knows moves alone, so that it does not matter where an object is
    return np.diff(seen, axis=0, prepend=seen[:1]).astype(np.float32)


rng, epochs = np.random.default_rng(0), 20 if quick else 40
places, seen = paths(320 if quick else 2000, 60, rng)
model = fr.Sequential(fr.GRU(2, 64, seed=0), fr.Linear(64, 2, seed=1))
optimizer = fr.optim.Adam(model, lr=0.005)
trainer = fr.training.Trainer(
    *(model, fr.losses.huber_loss, optimizer),
    schedule=fr.optim.OneCycleLR(optimizer, 0.01, epochs * -(-seen.shape[1] // 32)),
    clip=1.0,
    epochs=epochs,
    progress=False,
)
rows = [list(a.swapaxes(0, 1)) for a in (steps_of(seen), (places - seen).astype(np.float32))]
trainer.fit(tuple(rows))
grid = [(q, r) for q in (0.003, 0.01, 0.03, 0.1, 0.3) for r in (0.5, 1.0, 2.0, 3.0, 5.0)]
best = min(grid, key=lambda pair: error(kalman(seen, *pair), places))  # as good as such a filter can be here
places, seen = paths(500, 60, rng)
corrected, filtered = seen + model.eval()(steps_of(seen)), kalman(seen, *best)
print(
    f"error {error(corrected, places):.3f}, Kalman filter {error(filtered, places):.3f}, "
    f"measurements {error(seen, places):.3f}"
)
axes = (figure := Figure(figsize=(6, 4))).subplots()
axes.plot(*seen[:, 0].T, "x", color="0.6", label="measured")
for path, name in ((places, "true"), (filtered, "Kalman filter"), (corrected, "network")):
    axes.plot(*path[:, 0].T, label=name)
axes.set(xlabel="x", ylabel="y", aspect="equal")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
figure.savefig("tracking.png", bbox_inches="tight", dpi=80)
