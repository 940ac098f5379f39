"""
Each of the four causes of NaN is named by the guard and mended in one line
===========================================================================

A hole in the table, a learning rate too high, a root at the edge of its domain, a loss
that overflows: each is provoked in a plain torch loop, where it ends in NaN,
explained in a sentence, and repaired. The picture shows the loss of all eight
trainings.
"""

# %%
# One loop for all
# ----------------
# As anyone writes it: no checks, no clipping. It notes the loss of each step.

import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import nn

from sknan import DivergenceWarning, NaNImputer, StableNetRegressor, functional, losses
from sknan.diagnosis import diagnose

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")

rng = np.random.default_rng(0)
table = rng.normal(size=(256, 4)).astype("float32")
amount = table[:, :1] + 0.5 * table[:, 1:2] ** 2


def perceptron() -> nn.Module:
    """The same weights whenever it is called."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))


def plain_loop(module, criterion, X, y, lr=0.01, n_steps=60):
    """The loss of each step, and the first step that diagnose can explain."""
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    curve, report = [], None
    for step in range(n_steps):
        batch = torch.arange(step % 4, len(X), 4)
        if report is None and np.isfinite(curve).all():
            report = diagnose(module, criterion, X[batch], y[batch])
        optimizer.zero_grad()
        loss = criterion(module(X[batch]), y[batch])
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve, report


curves = {}

# %%
# 1. The data
# -----------
# One missing cell among 1024, and every weight is NaN after one step. A network of
# sknan refuses the table; an imputer mends it.

damaged = table.copy()
damaged[5, 2] = np.nan
broken, report = plain_loop(perceptron(), nn.MSELoss(), damaged, amount)
print(report, "\n")

mended, report = plain_loop(
    perceptron(), nn.MSELoss(), NaNImputer().fit_transform(damaged), amount
)
assert report is None
curves["data: a missing cell", "NaNImputer()"] = broken, mended

# %%
# 2. The learning rate
# --------------------
# Each step overshoots, and the next one more so. There is no operation to blame.
# Clipped, each stays finite, but soon the network answers the same to every row:
# the guard sees that too, goes back to the last verified weights, and tries which lower
# rate learns.

broken, _ = plain_loop(perceptron(), nn.MSELoss(), table, amount, lr=30.0)

net = StableNetRegressor(
    optimizer="sgd", lr=30.0, max_epochs=15, batch_size=64, random_state=0
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DivergenceWarning)
    net.fit(table, amount[:, 0])
print(net.nonfinite_reports_[0], "\n")
print(f"asked for lr=30, went on at {net.effective_lr_:.3g}")
print(net.nonfinite_reports_[0].recovery, "\n")
mended = np.repeat(net.net_.history[:, "train_loss"], 4)  # an epoch is four steps
curves["learning rate: 30", "StableNetRegressor(lr=30)"] = broken, mended

# %%
# 3. An operation
# ---------------
# The root of the second feature's square: finite where the feature is 0, with an
# infinite slope, so the loss looks well while the weights turn to NaN.


class Length(nn.Module):
    """Adds the length of two features, by a root that may be given."""

    def __init__(self, sqrt):
        super().__init__()
        self.body, self.sqrt = perceptron(), sqrt
        self.gate = nn.Parameter(torch.ones(2))

    def forward(self, X):
        """A perceptron's answer and the length."""
        length = self.sqrt(((self.gate * X[:, :2]) ** 2).sum(1, keepdim=True))
        return self.body(X) + length


centred = table.copy()
centred[7, :2] = 0.0  # a row that lies exactly in the middle
broken, report = plain_loop(Length(torch.sqrt), nn.MSELoss(), centred, amount)
print(report, "\n")

mended, report = plain_loop(Length(functional.sqrt), nn.MSELoss(), centred, amount)
assert report is None
curves["operation: torch.sqrt", "functional.sqrt"] = broken, mended

# %%
# 4. The loss
# -----------
# log cosh, written out, overflows where a residual exceeds 89.


def log_cosh(output, target):
    """The formula as it stands in books."""
    return torch.log(torch.cosh(output - target)).mean()


outlying = amount.copy()
outlying[9] = 150.0
broken, report = plain_loop(perceptron(), log_cosh, table, outlying)
print(report, "\n")

mended, report = plain_loop(perceptron(), losses.LogCoshLoss(), table, outlying)
assert report is None
curves["loss: log(cosh(x))", "losses.LogCoshLoss()"] = broken, mended

# %%
# The picture
# -----------
# A cross marks the last finite loss of a training that ended in NaN. The mended ones
# are means over epochs of four steps, the estimator's in units of its target.

figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained", sharex=True)
for axis, ((cause, repair), (broken, mended)) in zip(
    axes.flat, curves.items(), strict=True
):
    end = int(np.isfinite(broken).cumprod().sum())
    assert 0 < end < len(broken)
    axis.plot(broken[:end], "s--", color="#b2560d", markersize=4, label=cause)
    axis.plot(
        end - 1,
        broken[end - 1],
        "x",
        color="black",
        markersize=11,
        markeredgewidth=2,
        label=f"NaN or inf from step {end + 1}",
    )
    per_epoch = np.reshape(mended, (-1, 4)).mean(axis=1)
    axis.plot(np.arange(len(per_epoch)) * 4 + 1.5, per_epoch, "#0b5394", label=repair)
    axis.set(yscale="log", ylabel="loss")
    axis.set_ylim(top=5 * max(*broken[:end], *per_epoch))
    axis.legend(fontsize=9, loc="upper right")
    axis.grid(alpha=0.3)
for axis in axes[1]:
    axis.set_xlabel("step")
figure.suptitle("Four causes of NaN, and what mends each")
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "08_four_causes_of_nan.png", dpi=120)
