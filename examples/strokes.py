"""Which kind of stroke a pen drew, of those of Japanese characters (pip install kanjivg matplotlib)."""

import re
import sys
from collections import Counter
from importlib.resources import files

import numpy as np
from matplotlib.figure import Figure
from sklearn.neighbors import KNeighborsClassifier

from fusedrnn.estimators import SequenceClassifier

quick = "--quick" in sys.argv
t = np.arange(1, 5)[:, None] / 4
BERNSTEIN = np.concatenate([(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], axis=1)


def moves(path):
    """Moves (T, 2) of the pen along cubic curves, four to each; a place is a complex number."""
    points, place, last = [], 0j, 0j
    for command, text in re.findall(r"([MmCcSs])([^A-Za-z]*)", path):
        numbers = np.array(re.findall(r"-?\d*\.?\d+", text), float)
        for group in (numbers[::2] + 1j * numbers[1::2]).reshape(
            -1, {"m": 1, "c": 3, "s": 2}[command.lower()]
        ):
            group = group + place * command.islower()
            if command in "Mm":
                place = last = group[0]
                points = [place]
                continue
            first = group[0] if command in "Cc" else 2 * place - last
            points += list(BERNSTEIN @ [place, first, group[-2], group[-1]])
            place, last = group[-1], group[-2]
    found = np.diff(points)
    return np.stack([found.real, found.imag], axis=1) / 10


names = sorted(file.name for file in files("kanji").iterdir() if re.fullmatch(r"0[4-9].{3}\.svg", file.name))
drawn = []  # of each character all strokes with their kinds
for name in names[:: max(1, len(names) // 150) if quick else 4]:
    text = (files("kanji") / name).read_text(encoding="utf-8")
    pairs = re.findall(r'<path [^>]*kvg:type="(.)[^"]*"[^>]* d="([^"]+)"', text)
    drawn.append([(kind, moves(path)) for kind, path in pairs])
held = [one for part in drawn[::10] for one in part]  # characters of which no stroke was trained on
known = [one for index, part in enumerate(drawn) if index % 10 for one in part]
often = {kind for kind, count in Counter(kind for kind, _ in known).items() if count >= 20}
(y, X), (y_test, X_test) = (
    zip(*[one for one in part if one[0] in often], strict=True) for part in (known, held)
)
model = SequenceClassifier(bidirectional=True, epochs=8 if quick else 12, random_state=0).fit(list(X), y)
found = model.predict(list(X_test))


def shape(x):
    """Eight places on the way, from where the stroke begins."""
    places = np.cumsum(x, axis=0)
    steps = np.linspace(0, len(x) - 1, 8)
    return np.stack([np.interp(steps, np.arange(len(x)), column) for column in places.T]).ravel()


neighbours = KNeighborsClassifier(5).fit([shape(x) for x in X], y)
nearest = neighbours.score([shape(x) for x in X_test], y_test)
print(f"accuracy {np.mean(found == y_test):.4f} of {len(y_test)} strokes, {len(often)} kinds;", end=" ")
print(f"by the five most similar shapes {nearest:.4f}")
figure = Figure(figsize=(9, 2.2))
kinds = [kind for kind, _ in Counter(y).most_common(18)]
for kind, axes in zip(kinds, figure.subplots(2, 9).flat, strict=False):
    for index in [i for i, one in enumerate(found) if one == kind][:12]:
        places = np.cumsum(X_test[index], axis=0)
        axes.plot(places[:, 0], -places[:, 1], "k" if y_test[index] == kind else "r", alpha=0.5)
    axes.set_axis_off()
figure.savefig("strokes.png", bbox_inches="tight", dpi=80)
