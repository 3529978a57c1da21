"""One task after another without forgetting: EWC and replay (pip install scikit-learn matplotlib)."""

import sys

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import fusedrnn as fr

quick = "--quick" in sys.argv
tasks, epochs, strength, kept = (3, 10, 30.0, 100) if quick else (5, 20, 30.0, 100)
images, classes = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
held_out = np.random.default_rng(0).random(len(classes)) < 0.25
# Each task is to read digits whose 64 pixels are in another order, the first in the right one.
orders = [np.random.default_rng(task).permutation(64) if task else np.arange(64) for task in range(tasks)]


def gradients(model, x, targets, reduction="mean"):
    """Tape and dy of a pass over pictures (B, 64), read a row a step."""
    rows = np.ascontiguousarray(x.reshape(-1, 8, 8).swapaxes(0, 1))
    output, tape = model.forward(rows)
    return tape, fr.cross_entropy(output, targets, reduction=reduction)[1]


def accuracy(model, order):
    rows = images[held_out][:, order].reshape(-1, 8, 8).swapaxes(0, 1)
    return np.mean(model(np.ascontiguousarray(rows)).argmax(-1) == classes[held_out])


def learnt(method):
    """Accuracies (tasks, tasks): of each column's task after each row's was learnt."""
    rng, anchors, found = np.random.default_rng(0), [], []
    memory, answers = np.zeros((kept * tasks, 64), np.float32), np.zeros(kept * tasks, int)
    model = fr.Sequential(fr.GRU(8, 64, seed=0), fr.Pool("last"), fr.Linear(64, 10, seed=1))
    for seen, order in enumerate(orders):
        x, targets = images[~held_out][:, order], classes[~held_out]
        optimizer = fr.optim.Adam(model, lr=0.003)
        for _ in range(epochs):
            for some in np.array_split(rng.permutation(len(x)), len(x) // 32):
                batch, goals = x[some], targets[some]
                if method == "replay" and seen:  # as many again of those kept of the tasks before
                    old = rng.integers(0, kept * seen, 32)
                    batch, goals = np.concatenate([batch, memory[old]]), np.concatenate([goals, answers[old]])
                model.zero_grad()
                model.backward(*gradients(model, batch, goals))
                for importance, before in anchors:
                    model.flat_grads[:] += strength * importance * (model.flat_parameters - before)
                fr.clip_grad_norm(model, 1.0)
                optimizer.step()
        if method == "ewc":
            fisher = fr.per_example.fisher(*gradients(model, x, targets, "sum"))
            flat = np.concatenate([fisher[name].ravel() for name in model.grads])
            anchors.append((flat, model.flat_parameters.copy()))
        elif method == "replay":
            some = rng.choice(len(x), kept, replace=False)
            memory[kept * seen : kept * (seen + 1)] = x[some]
            answers[kept * seen : kept * (seen + 1)] = targets[some]
        found.append([accuracy(model, each) for each in orders])
    return np.array(found)


axes = (figure := Figure(figsize=(6, 3))).subplots()
for method in ("naive", "ewc", "replay"):
    table = learnt(method)
    forgotten = np.mean(table.diagonal()[:-1] - table[-1, :-1])
    print(f"{method}: accuracy {table[-1].mean():.3f} of all tasks, forgotten {forgotten:.3f}")
    axes.plot(range(1, tasks + 1), [table[n, : n + 1].mean() for n in range(tasks)], "o-", label=method)
axes.set(xlabel="tasks so far", ylabel="accuracy of these", xticks=range(1, tasks + 1))
axes.legend()
figure.savefig("continual.png", bbox_inches="tight", dpi=80)
