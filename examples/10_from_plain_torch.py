"""
Repair a plain torch loop
=========================

This example uses neither estimators nor skorch. A hand-written loop fits a Poisson rate
to daily counts, and fails because an exponential overflows. ``diagnose`` names the
operation and the rows. With a stable loss, and with clipping that checks the gradient
norm first, all steps succeed.
"""

# %%
# Counts that depend on features with heavy tails
# -----------------------------------------------

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import nn

from sknan import losses
from sknan.diagnosis import diagnose
from sknan.optim import LearningRateSchedule, clip_grad_norm, grad_norm

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")
N_STEPS, BATCH_SIZE, LR = 300, 64, 0.1

rng = np.random.default_rng(0)
features = rng.standard_t(df=4, size=(1024, 5))
counts = rng.poisson(np.exp(np.clip(0.8 + 0.4 * features[:, 0], -3, 4)))
X = torch.tensor(features, dtype=torch.float32)
y = torch.tensor(counts, dtype=torch.float32)


class LogRate(nn.Module):
    """A network for the logarithm of the Poisson rate of each row."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, X):
        """Return log rates of shape (n_samples,)."""
        return self.layers(X)[:, 0]


# %%
# The original loop
# -----------------
# The loop stops at the first loss that is not finite, and ``diagnose`` explains it.


def batches():
    """Yield the row numbers of each batch, the same for every loop."""
    order = torch.Generator().manual_seed(0)
    for _ in range(N_STEPS):
        yield torch.randint(len(X), (BATCH_SIZE,), generator=order)


module, criterion = LogRate(), nn.PoissonNLLLoss()
optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9)
before = []
for batch in batches():
    loss = criterion(module(X[batch]), y[batch])
    if not torch.isfinite(loss):
        break
    before.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"Step {len(before) + 1} of {N_STEPS}:")
print(diagnose(module, criterion, X[batch], y[batch]))

# %%
# The repaired loop
# -----------------
# The loss has a finite value and gradient for every finite output. The gradient norm is
# checked before gradients are scaled by it. The learning rate has a warm-up, and then
# decreases.

module, criterion = LogRate(), losses.PoissonNLLLoss()
optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9)
schedule = LearningRateSchedule("cosine", warmup=0.05)
schedule.start(total_steps=N_STEPS)
after, norms = [], []
for step, batch in enumerate(batches()):
    for group in optimizer.param_groups:
        group["lr"] = LR * schedule.factor(step)
    loss = criterion(module(X[batch]), y[batch])
    optimizer.zero_grad()
    loss.backward()
    grads = [p.grad for p in module.parameters()]
    norm = grad_norm(grads).item()
    after.append(loss.item())
    norms.append(norm)
    if not math.isfinite(norm):
        print(diagnose(module, criterion, X[batch], y[batch]))
        continue
    clip_grad_norm(grads, 1.0, norm)
    optimizer.step()

with torch.no_grad():
    deviance = criterion(module(X), y).item()
    deviance_of_mean = criterion(y.mean().log().expand(len(y)), y).item()
print(
    f"All {N_STEPS} steps succeeded, {np.mean(np.array(norms) > 1):.0%} of them with "
    f"clipping. Loss on all rows: {deviance:.3f}; of the mean count as a constant "
    f"prediction: {deviance_of_mean:.3f}."
)
assert np.isfinite(after).all()
assert deviance < deviance_of_mean

# %%
# Losses and gradient norms
# -------------------------

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
left.plot(before, "s--", color="#b2560d", markersize=3, label="original loop")
left.plot(
    len(before) - 1,
    before[-1],
    "x",
    color="black",
    markersize=11,
    markeredgewidth=2,
    label="next loss is not finite",
)
left.plot(after, color="#0b5394", label="stable loss, clipping, schedule")
left.set(xlabel="step", ylabel="loss", yscale="symlog", title="Loss")
left.legend(fontsize=9)
right.plot(norms, color="#0b5394")
right.axhline(1.0, color="black", linestyle=":", label="clipping threshold")
right.set(xlabel="step", yscale="log", title="Gradient norm before clipping")
right.legend(fontsize=9)
for axis in (left, right):
    axis.grid(alpha=0.3)
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "10_from_plain_torch.png", dpi=120)
