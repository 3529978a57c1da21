"""Tomorrow's variance of the S&P 500, beside GARCH(1, 1) (pip install arch matplotlib)."""

import sys

import numpy as np
from arch import arch_model
from arch.data import sp500
from matplotlib.figure import Figure

import fusedrnn as fr
from fusedrnn.preprocessing import windows

quick = "--quick" in sys.argv
closing = sp500.load()["Adj Close"].to_numpy()
returns = 100 * np.diff(np.log(closing))  # 5,030 days, 1999 to 2018; those from 2013 on are held out
cut, span = 3521, 250


def smoothed(rate):
    """The log of an exponentially weighted mean of squares, of what is known the evening before."""
    found = [np.var(returns[:cut])]
    for value in returns[:-1]:
        found.append(rate * found[-1] + (1 - rate) * value**2)
    return np.log(found)


before = np.concatenate([[0.0], returns[:-1]])
base = smoothed(0.94)
inputs = np.stack([before, np.abs(before), base, smoothed(0.8), smoothed(0.99)], -1).astype(np.float32)
x, r, b = (windows(a[:cut], span, 25)[0] for a in (inputs, returns[:, None], base[:, None]))


def qlike(log_variance, value):
    return np.mean(log_variance + value**2 / np.exp(log_variance))


def loss(output, targets):  # of what the network adds to the smoothed log variance
    value, start = targets[..., :1], targets[..., 1:]
    size, _, dlog = fr.losses.gaussian_nll_loss(0 * value, value, start + output, log_var=True)
    return size, dlog


forecasts = []
for seed in range(1 if quick else 5):
    head = fr.Linear(16, 1, init=None)  # zeros: it starts from the smoothed variance
    model = fr.Sequential(fr.LayerNorm(5), fr.GRU(5, 16, seed=seed), fr.Dropout(0.2, seed=seed), head)
    trainer = fr.training.Trainer(
        model,
        loss,
        fr.optim.AdamW(model, lr=0.003),
        clip=1.0,
        epochs=4 if quick else 15,
        seed=seed,
        progress=False,
    )
    trainer.fit((list(x), [np.concatenate(pair, -1).astype(np.float32) for pair in zip(r, b, strict=True)]))
    forecasts.append(base + model.eval()(inputs[:, None])[:, 0, 0])
ours, held = np.mean(forecasts, axis=0), returns[cut:]


def garch(asymmetric):
    fitted = arch_model(returns, vol="GARCH", p=1, o=asymmetric, q=1).fit(last_obs=cut, disp="off")
    return np.log(fitted.forecast(start=cut - 1, horizon=1, reindex=False).variance.to_numpy()[:-1, 0])


found = {"network": ours[cut:], "GARCH": garch(0), "GJR-GARCH": garch(1)}
print("QLIKE", ", ".join(f"{name} {qlike(one, held):.4f}" for name, one in found.items()))
axes = (figure := Figure(figsize=(9, 3))).subplots()
axes.plot(np.abs(held[-500:]), "0.7", lw=0.7, label="what came")
for name in ("GARCH", "network"):
    axes.plot(np.exp(found[name][-500:] / 2), label=name)
axes.set(xlabel="day, of the last 500", ylabel="deviation, % a day", ylim=(0, 5))
axes.legend()
figure.savefig("volatility.png", bbox_inches="tight", dpi=80)
