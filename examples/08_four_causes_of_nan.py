"""
Four causes of NaN, and the repair of each
==========================================

The causes are a missing value, a learning rate that is too high, a square root at the
edge of its domain, and a loss that overflows. Each turns a plain torch loop into NaN,
is explained in one sentence, and is repaired. The plot shows the loss of all eight
trainings.
"""

# %%
# One loop for all causes
# -----------------------
# This is the usual loop, without checks and without clipping. It records the loss of
# each step.

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
    """Return a new network, always with the same initial weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))


def plain_loop(module, criterion, X, y, lr=0.01, n_steps=60):
    """Return the loss of each step, and the report of the first failed step."""
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
# With one missing cell among 1024, every weight is NaN after one step. The networks of
# sknan refuse such a table; an imputer repairs it.

damaged = table.copy()
damaged[5, 2] = np.nan
failed, report = plain_loop(perceptron(), nn.MSELoss(), damaged, amount)
print(report, "\n")

repaired, report = plain_loop(
    perceptron(), nn.MSELoss(), NaNImputer().fit_transform(damaged), amount
)
assert report is None
curves["1. Data: a missing cell", "NaNImputer()"] = failed, repaired

# %%
# 2. The learning rate
# --------------------
# Each step overshoots more than the one before, and no single operation is the cause.
# With clipping, all steps are finite, but soon the network predicts the same for every
# row. The guard detects this, restores the last verified weights, and tests at which
# lower learning rate the network learns.

failed, _ = plain_loop(perceptron(), nn.MSELoss(), table, amount, lr=30.0)

net = StableNetRegressor(
    optimizer="sgd", lr=30.0, max_epochs=15, batch_size=64, random_state=0
)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DivergenceWarning)
    net.fit(table, amount[:, 0])
print(net.nonfinite_reports_[0], "\n")
print(f"lr=30 was given, and training continued at {net.effective_lr_:.3g}.")
print(net.nonfinite_reports_[0].recovery, "\n")
repaired = np.repeat(net.net_.history[:, "train_loss"], 4)  # four steps per epoch
curves["2. Learning rate: 30", "StableNetRegressor(lr=30)"] = failed, repaired

# %%
# 3. An operation
# ---------------
# The square root is finite at 0, but its derivative is infinite there. The loss stays
# finite while the weights become NaN.


class Length(nn.Module):
    """A network that adds the norm of two weighted features to its output."""

    def __init__(self, sqrt):
        super().__init__()
        self.body, self.sqrt = perceptron(), sqrt
        self.gate = nn.Parameter(torch.ones(2))

    def forward(self, X):
        """Return predictions of shape (n_samples, 1)."""
        length = self.sqrt(((self.gate * X[:, :2]) ** 2).sum(1, keepdim=True))
        return self.body(X) + length


with_zeros = table.copy()
with_zeros[7, :2] = 0.0
failed, report = plain_loop(Length(torch.sqrt), nn.MSELoss(), with_zeros, amount)
print(report, "\n")

repaired, report = plain_loop(Length(functional.sqrt), nn.MSELoss(), with_zeros, amount)
assert report is None
curves["3. Operation: square root of zero", "functional.sqrt"] = failed, repaired

# %%
# 4. The loss
# -----------
# If log(cosh(x)) is computed as it is written, it overflows for a residual above 89.


def log_cosh(output, target):
    """Compute the mean of log cosh of the residuals as the formula is written."""
    return torch.log(torch.cosh(output - target)).mean()


outlying = amount.copy()
outlying[9] = 150.0
failed, report = plain_loop(perceptron(), log_cosh, table, outlying)
print(report, "\n")

repaired, report = plain_loop(perceptron(), losses.LogCoshLoss(), table, outlying)
assert report is None
curves["4. Loss: log(cosh(x))", "losses.LogCoshLoss()"] = failed, repaired

# %%
# The loss of each training
# -------------------------
# A cross marks the last finite loss of a training that ended in NaN. The losses of the
# repaired trainings are means over epochs of four steps. The estimator standardizes the
# target, so that its loss has another scale.

figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained", sharex=True)
for axis, ((cause, repair), (failed, repaired)) in zip(
    axes.flat, curves.items(), strict=True
):
    end = int(np.isfinite(failed).cumprod().sum())
    assert 0 < end < len(failed)
    axis.plot(failed[:end], "s--", color="#b2560d", markersize=4, label="plain loop")
    axis.plot(
        end - 1,
        failed[end - 1],
        "x",
        color="black",
        markersize=11,
        markeredgewidth=2,
        label=f"NaN or inf from step {end + 1}",
    )
    per_epoch = np.reshape(repaired, (-1, 4)).mean(axis=1)
    axis.plot(np.arange(len(per_epoch)) * 4 + 1.5, per_epoch, "#0b5394", label=repair)
    axis.set(ylabel="loss", title=cause)
    highest = max(*failed[:end], *per_epoch)
    if highest > 100:
        axis.set(yscale="log", ylim=(None, 5 * highest))
    else:
        axis.set_ylim(0, 1.7 * highest)  # leave room for the legend
    axis.legend(fontsize=9, loc="upper right")
    axis.grid(alpha=0.3)
for axis in axes[1]:
    axis.set_xlabel("step")
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "08_four_causes_of_nan.png", dpi=120)
