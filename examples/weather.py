"""San Francisco's hourly temperature, a day ahead (pip install vega_datasets matplotlib)."""

import sys

import numpy as np
from matplotlib.figure import Figure
from vega_datasets import data

from fusedrnn.estimators import Forecaster
from fusedrnn.preprocessing import windows

quick = "--quick" in sys.argv
series = data.sf_temps()["temp"].to_numpy()  # 8,759 hours; the last 60 days are held out
held, context = 1440, 168
model = Forecaster(24, context, season=24, hidden_size=32, epochs=4 if quick else 10, random_state=0)
model.fit(series[-held - 1500 : -held] if quick else series[:-held])
x, y = windows(series[-held - context :], context, 24, 24)
found = np.stack(model.predict(list(x)))
error, naive = np.abs(found - y).mean(), np.abs(x[:, -24:] - y).mean()
print(f"error {error:.3f} degrees, of the same hour a day before {naive:.3f}: MASE {error / naive:.3f}")
axes = (figure := Figure(figsize=(9, 3))).subplots()
for guess, name in ((x[:, -24:], "the day before"), (found, "network")):
    axes.plot(np.arange(1, 241) / 24, (guess - y)[:10].ravel(), label=name)
axes.set(xlabel="day", ylabel="degrees too warm")
axes.legend()
figure.savefig("weather.png", bbox_inches="tight", dpi=80)
