"""Strings of handwritten digits, read column by column: CTC (pip install scikit-learn matplotlib).

python examples/ctc_digits.py [EPOCHS [STRINGS]]
"""

import sys
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import fusedrnn as fr

epochs, count = [int(text) for text in sys.argv[1:]] + [12, 3000][len(sys.argv) - 1 :]
images, classes = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8).astype(np.float32) / 16
held_out = np.random.default_rng(0).random(len(classes)) < 0.2


def strings(count, usable, seed):
    """Return pictures (T, 8), a column a step, of one to seven digits, and these plus 1: 0 is the blank."""
    rng, pictures, targets = np.random.default_rng(seed), [], []
    for _ in range(count):
        digits = rng.choice(np.flatnonzero(usable), rng.integers(1, 8))
        picture, end = np.zeros((10 * len(digits), 8), np.float32), 0
        for digit in digits:  # two columns of overlap to two of space between them
            place = picture[max(0, end + rng.integers(-2, 3)) :][:8]
            np.maximum(place, images[digit].T, out=place)
            end = np.flatnonzero(picture.any(axis=1))[-1] + 1
        pictures.append(picture[:end])
        targets.append(classes[digits] + 1)
    return pictures, targets


def distance(a, b):
    """How many characters have to be changed, left out or put in."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


pictures, targets = strings(count, ~held_out, seed=0)
reader = fr.LSTM(8, 64, bidirectional=True, seed=0)
model = fr.Sequential(reader, fr.Dropout(0.3, seed=1), fr.Linear(128, 11, seed=2))
optimizer = fr.optim.AdamW(model, lr=0.01)
schedule = fr.optim.OneCycleLR(optimizer, 0.01, epochs * -(-count // 32))
trainer = fr.training.Trainer(model, fr.ctc_loss, optimizer, schedule, clip=1.0, epochs=epochs)
start = time.process_time()
trainer.fit((pictures, targets))
print(f"{count} strings, {time.process_time() - start:.0f} s of processor time")

pictures, targets = strings(500, held_out, seed=1)
x, lengths = fr.pad(pictures)
logits = model(x, lengths)
found, _ = fr.ctc_decode(logits, lengths, beam=10)
errors = sum(distance(a.tolist(), b.tolist()) for a, b in zip(found, targets, strict=True))
print(
    f"character error rate {errors / sum(map(len, targets)):.2%} of digits that were not trained on (aim: 3%)"
)

longest = int(lengths.argmax())
_, axes = plt.subplots(2, 1, sharex=True)
axes[0].imshow(pictures[longest].T, cmap="gray_r")
axes[1].imshow(fr.Softmax()(logits[:, longest]).T, aspect="auto")
axes[1].set_yticks(range(11), ["blank", *"0123456789"])
axes[0].set_title("read: " + "".join(str(label - 1) for label in found[longest]))
plt.savefig("ctc_digits.png", bbox_inches="tight")
