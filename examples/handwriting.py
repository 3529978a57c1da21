"""Characters that a network draws stroke by stroke, and a picture (pip install kanjivg matplotlib)."""

import re
import sys
from importlib.resources import files

import numpy as np
from matplotlib.figure import Figure

import fusedrnn as fr

quick = "--quick" in sys.argv
rng = np.random.default_rng(0)


def stroke(path):
    """Points along a path of cubic curves, about every 8 units, of 109."""
    points, place, last = [], np.zeros(2), np.zeros(2)
    for command, numbers in re.findall(r"([MmCcSs])([^A-Za-z]*)", path):
        values = np.array(re.findall(r"-?\d*\.?\d+", numbers), float).reshape(-1, 2)
        for group in values.reshape(-1, {"m": 1, "c": 3, "s": 2}[command.lower()], 2):
            group = group + place if command.islower() else group
            if command in "Mm":
                place, points = group[0], [group[0]]
                continue
            first = group[0] if command in "Cc" else 2 * place - last
            last, end = group[-2], group[-1]
            t = np.linspace(0, 1, max(2, round(np.linalg.norm(end - place) / 8) + 1))[1:, None]
            points += list(
                (1 - t) ** 3 * place + 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * last + t**3 * end
            )
            place = end
        last = place if command in "Mm" else last
    return np.array(points)


def character(file):
    """Moves (T, 3): x, y, and 1 where the pen is lifted after the point."""
    strokes = [
        stroke(path) for path in re.findall(r'<path [^>]*d="([^"]+)"', file.read_text(encoding="utf-8"))
    ]
    ends = np.concatenate([np.arange(len(one)) == len(one) - 1 for one in strokes])[:, None]
    moves = np.diff(np.concatenate(strokes), axis=0, prepend=[[54.5, 54.5]]) / 10
    return np.concatenate([moves, ends], 1).astype(np.float32)


names = sorted(file.name for file in files("kanji").iterdir() if re.fullmatch(r"0[4-9].{3}\.svg", file.name))
drawn = [character(files("kanji") / name) for name in names[:: max(1, len(names) // 150) if quick else 4]]
held, drawn = drawn[::10], [one for index, one in enumerate(drawn) if index % 10]
density = fr.MixtureDensity(10)
head = fr.Linear(128, density.size, seed=1)
model = fr.Sequential(fr.LSTM(3, 128, seed=0), head)
optimizer = fr.optim.Adam(model, lr=0.005)
epochs = 12 if quick else 15
schedule = fr.optim.OneCycleLR(optimizer, 0.005, epochs * -(-len(drawn) // 32))
trainer = fr.training.Trainer(
    model, density.loss, optimizer, schedule, clip=1.0, epochs=epochs, progress=False
)
trainer.fit(([one[:-1] for one in drawn], [one[1:] for one in drawn]))
ours = trainer.evaluate(([one[:-1] for one in held], [one[1:] for one in held]))["loss"]
known, seen = (np.concatenate([one[1:] for one in part]) for part in (drawn, held))
spread, mean, lifted = np.cov(known[:, :2].T), known[:, :2].mean(0), known[:, 2].mean()
gap = seen[:, :2] - mean
gaussian = 0.5 * (gap @ np.linalg.inv(spread) * gap).sum(1) + np.log(
    2 * np.pi * np.sqrt(np.linalg.det(spread))
)
pen = -np.where(seen[:, 2] > 0, np.log(lifted), np.log(1 - lifted))
print(f"{ours:.3f} nats a point, one Gaussian for all moves {np.mean(gaussian + pen):.3f}")
figure, step = Figure(figsize=(8, 2)), model[0].stream()
for number, axes in enumerate(figure.subplots(1, 5)):
    step.reset()
    points = [held[number][0]]
    for _ in range(60):
        points.append(density.sample(head(step(points[-1])), bias=1.0, seed=rng))
    places = np.cumsum([point[:2] for point in points], axis=0)
    for one in np.split(places, np.flatnonzero([point[2] for point in points]) + 1):
        axes.plot(one[:, 0], -one[:, 1], "k")
    axes.set_axis_off()
figure.savefig("handwriting.png", bbox_inches="tight", dpi=80)
