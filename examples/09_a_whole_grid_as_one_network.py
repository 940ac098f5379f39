"""
A whole grid as one network
===========================

The grid contains ten learning rates from 1e-4 to 1e5 and three widths. On three folds,
this makes 90 trainings. ``BatchedGridSearchCV`` stacks those of equal shape. Candidates
that diverge do not affect the others, and the table of results marks them.
"""

# %%
# A table and a grid
# ------------------

import time
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from sknan import (
    BatchedGridSearchCV,
    DivergenceWarning,
    NaNImputer,
    SafeScaler,
    StableNetRegressor,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")

X, y = load_diabetes(return_X_y=True)
X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
model = make_pipeline(
    NaNImputer(),
    SafeScaler(),
    StableNetRegressor(max_epochs=20, early_stopping=False, random_state=0),
)
RATES = [10.0**k for k in range(-4, 6)]
WIDTHS = [16, 32, 64]
grid = {
    "stablenetregressor__lr": RATES,
    "stablenetregressor__module__width": WIDTHS,
}

# %%
# Stable candidates: stacked, and one after another
# -------------------------------------------------
# At these twelve learning rates no step fails. The stacked search and scikit-learn's
# ``GridSearchCV`` return the same scores up to rounding.

stable = grid | {"stablenetregressor__lr": list(np.geomspace(1e-4, 1e-1, 12))}
start = time.perf_counter()
stacked = BatchedGridSearchCV(model, stable, cv=3).fit(X, y)
seconds_stacked = time.perf_counter() - start
start = time.perf_counter()
one_by_one = GridSearchCV(model, stable, cv=3).fit(X, y)
seconds_one_by_one = time.perf_counter() - start
difference = np.abs(
    one_by_one.cv_results_["mean_test_score"] - stacked.cv_results_["mean_test_score"]
).max()
print(
    f"{len(stacked.cv_results_['params'])} candidates: {seconds_stacked:.2f} s "
    f"stacked, {seconds_one_by_one:.2f} s one by one; largest difference between "
    f"scores {difference:.1g}"
)

# %%
# The whole grid
# --------------
# One warning summarizes the candidates that were rescued. A rescue takes longer than
# ordinary training, because the guard tests at which lower learning rate the network
# learns.

start = time.perf_counter()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", DivergenceWarning)
    search = BatchedGridSearchCV(model, grid, cv=3).fit(X, y)
print(f"{len(search.cv_results_['params'])} candidates: ", end="")
print(f"{time.perf_counter() - start:.1f} s")
for warning in caught:
    print(warning.message)

# %%
# Diverging candidates
# --------------------

results = pd.DataFrame(search.cv_results_).rename(
    columns={
        "param_stablenetregressor__lr": "lr",
        "param_stablenetregressor__module__width": "width",
        "mean_test_score": "R2",
    }
)
table = results.pivot_table(
    index="lr", values=["R2", "n_recoveries", "diverged_at", "effective_lr"]
)
table["rescued"] = results.groupby("lr")["n_recoveries"].agg(
    lambda counts: f"{(counts > 0).sum()} of {len(counts)} widths"
)
print(table[["R2", "rescued", "diverged_at", "effective_lr"]].to_string(na_rep="-"))
assert np.isfinite(results["R2"].astype(float)).all()
print(f"\nBest: {search.best_params_}, R2 {search.best_score_:.3f}")

# %%
# Scores of all candidates
# ------------------------
# Rescued candidates have hollow markers. They have a score, but they trained at a lower
# learning rate than the one on the axis.

figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
for width, marker, color in zip(
    WIDTHS, "o^s", ("#0b5394", "#b2560d", "#38761d"), strict=True
):
    of_width = results[results["width"] == width]
    rates, scores = of_width["lr"].astype(float), of_width["R2"].astype(float)
    rescued = of_width["n_recoveries"].astype(int) > 0
    axes.plot(rates, scores, color=color, alpha=0.5)
    axes.plot(
        rates[~rescued], scores[~rescued], marker, color=color, label=f"width {width}"
    )
    axes.plot(rates[rescued], scores[rescued], marker, color=color, markerfacecolor="w")
axes.plot([], [], "o", color="0.3", markerfacecolor="w", label="rescued")
axes.set(
    xscale="log",
    xlabel="learning rate",
    ylabel="R2, mean of 3 folds",
    title="Every learning rate has a finite score",
)
axes.grid(alpha=0.3)
axes.legend(fontsize=9)
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "09_a_whole_grid_as_one_network.png", dpi=120)
