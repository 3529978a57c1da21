"""The maximum temperature in Seattle, a week ahead, with an interval (pip install vega_datasets)."""

import numpy as np
from vega_datasets import data

from fusedrnn.estimators import Forecaster
from fusedrnn.preprocessing import windows

series = data.seattle_weather()["temp_max"].to_numpy()  # 1,461 days; the last year is held out
model = Forecaster(7, 56, quantiles=[0.1, 0.5, 0.9], hidden_size=16, epochs=20, random_state=0)
x, y = windows(series[-365 - 56 :], 56, horizon=7)
low, middle, high = np.moveaxis(np.stack(model.fit(series[:-365]).predict_quantiles(list(x))), -1, 0)
error, naive = np.abs(y - middle).mean(), np.abs(y - x[:, -1:]).mean()
print(f"error {error:.2f} degrees, {error / naive:.3f} of that of repeating the last day")
print(f"{np.mean((low <= y) & (y <= high)):.0%} of the days are within the 80% interval")
