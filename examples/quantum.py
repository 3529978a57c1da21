"""A damped pendulum's next angle, by simulated quantum circuits and by an LSTM (no data needed)."""

import sys
import time

import numpy as np

import fusedrnn as fr

QUICK = "--quick" in sys.argv
WINDOW, SEEDS, EPOCHS = 4, range(1 if QUICK else 5), 60 if QUICK else 100


def pendulum(steps: int) -> np.ndarray:
    """Angles every 0.1 s: theta'' = -0.15 theta' - 9.81 sin(theta), from theta = 0 and theta' = 3."""
    angle, speed, found = 0.0, 3.0, []
    for step in range(steps * 100):
        if step % 100 == 0:
            found.append(angle)
        speed -= 0.001 * (0.15 * speed + 9.81 * np.sin(angle))
        angle += 0.001 * speed
    return np.array(found, np.float32)


angles = pendulum(300)
windows = np.lib.stride_tricks.sliding_window_view(angles, WINDOW + 1)
split = 2 * len(windows) // 3  # trained on the first two thirds, whose swings are wider
(x, y), (x_test, y_test) = ((part[:, :-1, None], part[:, -1:]) for part in (windows[:split], windows[split:]))


def error(make, seed: int) -> tuple[float, float, int]:
    """Return the root mean square error on the last third, seconds, and how many parameters were trained."""
    network = make(seed)
    head = fr.Linear(network.hidden_size, 1, seed=seed)
    model = fr.Sequential(network, fr.Pool("last", batch_first=True), head)
    optimizer, rng, start = fr.optim.Adam(model, lr=0.01), np.random.default_rng(seed), time.process_time()
    for _ in range(EPOCHS):
        for rows in np.array_split(rng.permutation(split), split // 16):
            prediction, tape = model.forward(x[rows])
            _, gradient = fr.mse_loss(prediction, y[rows])
            model.zero_grad()
            model.backward(tape, gradient, need_dx=False)
            optimizer.step()
    seconds = time.process_time() - start
    return float(np.sqrt(np.mean((model(x_test) - y_test) ** 2))), seconds, model.num_parameters


fr.set_num_threads(1)
for name, make in {
    "quantum circuits": lambda seed: fr.QuantumLSTM(1, 3, qubits=3, batch_first=True, seed=seed),
    "LSTM": lambda seed: fr.LSTM(1, 5, batch_first=True, seed=seed),
}.items():
    errors, seconds, counts = zip(*(error(make, seed) for seed in SEEDS), strict=True)
    worst, spent = max(errors), np.mean(seconds)
    print(f"{name}: error {np.mean(errors):.4f}, at most {worst:.4f}, {counts[0]} parameters, {spent:.1f} s")
lags = np.linalg.lstsq(x[..., 0], y, rcond=None)[0]
linear, repeated = (np.sqrt(np.mean((p - y_test) ** 2)) for p in (x_test[..., 0] @ lags, x_test[:, -1]))
print(f"linear in the {WINDOW} values before: error {linear:.4f}; the value before: {repeated:.4f}")
