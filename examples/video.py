"""Films of a digit that bounces about, and their next pictures (pip install scikit-learn matplotlib)."""

import sys

import numpy as np
from matplotlib.figure import Figure
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_digits

import fusedrnn as fr

quick = "--quick" in sys.argv
count, epochs, steps, size = (300, 6, 20, 16) if quick else (1000, 15, 20, 16)
digits = load_digits().images.astype(np.float32) / 16
held_out = np.random.default_rng(0).random(len(digits)) < 0.25


def films(digits, count, rng):
    """(N, T, size, size): each a digit that goes 1 or 2 pixels a step each way, and back at walls."""
    found = np.zeros((count, steps, size, size), np.float32)
    for film in found:
        digit, place = digits[rng.integers(len(digits))], rng.integers(0, size - 7, 2)
        move = rng.choice([-2, -1, 1, 2], 2)
        for picture in film:
            picture[place[0] : place[0] + 8, place[1] : place[1] + 8] = digit
            move = np.where((place + move < 0) | (place + move > size - 8), -move, move)
            place = place + move
    return found


class Rows(fr.Module):
    """A convolution along the rows of each picture: (T, B, size, size) to (T, B, size / 2 * channels)."""

    def __init__(self, channels):
        super().__init__()
        self.conv = fr.Conv1d(size, channels, 5, stride=2, padding=2, batch_first=True, seed=0)

    def forward(self, x):
        y, tape = self.conv.forward(x.reshape(-1, size, size))
        return y.reshape(*x.shape[:2], -1), (tape, x.shape, y.shape)

    def backward(self, tape, dy, *, need_dx=True):
        tape, before, after = tape
        dx = self.conv.backward(tape, dy.reshape(after), need_dx=need_dx)
        return dx.reshape(before) if need_dx else None


def moved(output, x):
    """A kernel (..., 25) of each picture x, its windows, and the picture that they make: it moved."""
    kernel = np.exp(output - output.max(-1, keepdims=True))
    kernel /= kernel.sum(-1, keepdims=True)
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(2, 2)] * 2)
    windows = sliding_window_view(padded, (5, 5), axis=(-2, -1)).reshape(*x.shape, 25)
    return kernel, windows, np.einsum("...xyk,...k->...xy", windows, kernel)


def loss(output, targets):
    """Squared error of the next picture, from targets (T, B, 2, size, size): this one and the next."""
    kernel, windows, found = moved(output, targets[..., 0, :, :])
    gap, pictures = found - targets[..., 1, :, :], kernel.size // 25
    dkernel = np.einsum("...xyk,...xy->...k", windows, gap) * 2 / pictures
    return float((gap**2).sum() / pictures), kernel * (dkernel - (dkernel * kernel).sum(-1, keepdims=True))


rng = np.random.default_rng(0)
x, x_test = films(digits[~held_out], count, rng), films(digits[held_out], 200, rng)
model = fr.Sequential(Rows(16), fr.ReLU(), fr.LSTM(8 * size, 128, seed=1), fr.Linear(128, 25, seed=2))
optimizer = fr.optim.Adam(model, lr=0.005)
schedule = fr.optim.OneCycleLR(optimizer, 0.005, epochs * -(-count // 16))
trainer = fr.training.Trainer(
    model, loss, optimizer, schedule, clip=1.0, epochs=epochs, batch_size=16, progress=False
)
trainer.fit((list(x[:, :-1]), list(np.stack([x[:, :-1], x[:, 1:]], 2))))
x_test = x_test.swapaxes(0, 1)
found = moved(model(x_test[:-1]), x_test[:-1])[2]
ours, copied = (np.mean((one - x_test[1:])[1:] ** 2) for one in (found, x_test[:-1]))
print(f"mean squared error {ours:.5f} from the third picture on, copying the last one {copied:.5f}")
dreamt = x_test[:6, :1]
while len(dreamt) < steps:  # from six pictures on it sees its own
    dreamt = np.concatenate([dreamt, moved(model(dreamt)[-1:], dreamt[-1:])[2]])
figure = Figure(figsize=(9, 1.1))
for axes, picture in zip(figure.subplots(2, steps).flat, [*x_test[:, 0], *dreamt[:, 0]], strict=True):
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
figure.savefig("video.png", bbox_inches="tight", dpi=120)
