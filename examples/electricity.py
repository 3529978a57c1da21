"""England's demand for electricity, a day ahead, with an interval (pip install pmdarima matplotlib)."""

import sys

import numpy as np
from matplotlib.figure import Figure
from pmdarima.datasets import load_taylor

from fusedrnn.estimators import Forecaster
from fusedrnn.preprocessing import windows

quick = "--quick" in sys.argv
demand = load_taylor() / 1000  # gigawatts, 4,032 half hours from a Monday on; the last 14 days are held out
day, week, held = 48, 336, 672
ahead = (
    2 * np.pi * np.arange(len(demand))[:, None] / [day, week]
)  # what is known ahead: hour, day of the week
weekend = np.arange(len(demand))[:, None] // day % 7 >= 5
series = np.concatenate([demand[:, None], np.sin(ahead), np.cos(ahead), weekend], axis=1)
model = Forecaster(
    day, week, season=day, quantiles=[0.1, 0.5, 0.9], hidden_size=64, covariates=5, random_state=0
)
model.set_params(epochs=4 if quick else 15).fit(series[:-held][-900 if quick else 0 :])
x = windows(series[-held - week :], week + day, day)[0]  # a forecast at each midnight
y = x[:, week:, 0]
low, middle, high = np.moveaxis(np.stack(model.predict_quantiles(list(x)))[:, :, 0], -1, 0)
error, naive = np.abs(y - middle).mean(), np.abs(y - x[:, :day, 0]).mean()
print(f"error {error:.3f} GW, of the same half hour a week before {naive:.3f}: MASE {error / naive:.3f}")
print(f"{np.mean((low <= y) & (y <= high)):.0%} of the half hours are within the 80% interval")
axes = (figure := Figure(figsize=(9, 3))).subplots()
days = np.arange(7 * day) / day
axes.fill_between(days, low[:7].ravel(), high[:7].ravel(), alpha=0.3, label="80% interval")
axes.plot(days, middle[:7].ravel(), label="network, a day ahead")
axes.plot(days, y[:7].ravel(), "k:", label="demand")
axes.set(xlabel="day", ylabel="gigawatts")
axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
figure.savefig("electricity.png", bbox_inches="tight", dpi=80)
