"""
Any learning rate ends in a finite model
========================================

One skorch net and one guarded net, equal but for the name of the class, are searched
over ten learning rates on a damaged table. Where no step fails, both give the same
scores. Where the plain net ends in NaN or learns nothing, the guarded one recovers.
"""

# %%
# The smallest case
# -----------------
# Three cities and the prices of eggs and milk in USD. Two prices are missing.

print("Loading torch, scikit-learn and sknan (some seconds) ...", flush=True)

import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from skorch import NeuralNetClassifier

from sknan import (
    DivergenceWarning,
    GuardedNetClassifier,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    TabularMLP,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")
OUTPUTS.mkdir(exist_ok=True)

prices = pd.DataFrame(
    {"eggs": [2.5, np.nan, 4.6], "milk": [7.9, 8.9, np.nan]},
    index=["London", "Venice", "Prague"],
)
filled = {"as given": prices}
for strategy in ("zero", "mean", "median"):
    imputer = NaNImputer(strategy=strategy).set_output(transform="pandas")
    filled[strategy] = imputer.fit_transform(prices)
print("\nPrices in USD, and what three strategies fill in:")
print(pd.concat(filled, axis=1).to_string())

# %%
# A real table, damaged
# ---------------------
# The breast cancer data of scikit-learn contain 30 measurements of 569 tumors. Of the
# cells, 10 % become missing, 1 % infinite, and 1 % too large by a factor of a million.

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
damage = np.random.default_rng(0).random(X.shape)
X = X.mask(damage < 0.12, X * 1e6).mask(damage < 0.11, np.inf).mask(damage < 0.10)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.25, stratify=y, random_state=0
)
print(
    f"\nBreast cancer: {len(X)} rows, {int(X.isna().sum().sum())} cells missing, "
    f"{int(np.isinf(X).sum().sum())} infinite."
)

# %%
# One net, plain and guarded
# --------------------------
# Preparation, network, initial weights, optimizer, batches and folds are the same.

RATES = [10.0**k for k in range(-5, 5)]
N_COLUMNS = NaNImputer(add_indicator=True).fit_transform(X_train).shape[1]


class SeededMLP(TabularMLP):
    """A network with the same initial weights and batches for each candidate."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(n_features_in=N_COLUMNS, n_outputs=2)


def pipeline_of(net_class):
    """Return the preparation of the table, followed by a net of this class."""
    net = net_class(
        SeededMLP,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        max_epochs=20,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    return Pipeline(
        [
            ("impute", NaNImputer(add_indicator=True, dtype=np.float32)),
            ("scale", SafeScaler()),
            ("net", net),
        ]
    )


SCORES = ("accuracy", "nan_weights", "final_lr")


def scores_of(model, X, y):
    """Return the accuracy, whether weights are NaN, and the final learning rate."""
    net = model[-1]
    is_finite = all(p.isfinite().all() for p in net.module_.parameters())
    final_lr = getattr(net, "effective_lr_", net.lr)
    values = (model.score(X, y), float(not is_finite), final_lr)
    return dict(zip(SCORES, values, strict=True))


def search(net_class):
    """Return the mean scores of each learning rate over three folds."""
    print(f"Searching over {net_class.__name__}, 30 trainings ...", end=" ", flush=True)
    start = time.perf_counter()
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    grid = GridSearchCV(
        pipeline_of(net_class),
        {"net__lr": RATES},
        scoring=scores_of,
        refit=False,
        cv=folds,
    )
    results = grid.fit(X_train, y_train).cv_results_
    print(f"{time.perf_counter() - start:.0f} s")
    return {name: results[f"mean_test_{name}"] for name in SCORES}


warnings.simplefilter("ignore", DivergenceWarning)  # the table says what was rescued
plain = search(NeuralNetClassifier)
guarded = search(GuardedNetClassifier)

# %%
# The results
# -----------
# A diverged plain net predicts one class for every row. Its accuracy is an ordinary
# number, by which a search may even choose it.

table = pd.DataFrame(
    {
        "lr": RATES,
        "plain": plain["accuracy"],
        "folds in NaN": np.round(3 * plain["nan_weights"]).astype(int),
        "guarded": guarded["accuracy"],
        "final lr": guarded["final_lr"],
    }
)
rescued = table["final lr"] < 0.99 * table["lr"]
print("\nAccuracy, mean of 3 folds:")
formats = {"lr": "{:.0e}", "plain": "{:.3f}", "guarded": "{:.3f}", "final lr": "{:.1e}"}
formatters = {name: form.format for name, form in formats.items()}
print(table.to_string(index=False, formatters=formatters))
assert np.isfinite(table["guarded"]).all()

# %%
# The model in another process
# ----------------------------
# ``StableNetClassifier`` is the guarded net as a scikit-learn estimator, which also
# clips and schedules. Rescued from the highest learning rate, it is saved, and predicts
# the same in another process.

model = Pipeline(
    [
        ("impute", NaNImputer(add_indicator=True)),
        ("scale", SafeScaler()),
        ("net", StableNetClassifier(lr=RATES[-1], random_state=0)),
    ]
)
model.fit(X_train, y_train)
print(
    f"\nStableNetClassifier continued at {model[-1].effective_lr_:.2g} instead of "
    f"{RATES[-1]:g}: accuracy {model.score(X_test, y_test):.3f} on the test rows."
)
saved = (model, X_test, model.predict_proba(X_test))
(OUTPUTS / "model.pkl").write_bytes(pickle.dumps(saved))
elsewhere = """
import pickle, sys
from pathlib import Path
model, X_test, expected = pickle.loads(Path(sys.argv[1]).read_bytes())
assert (model.predict_proba(X_test) == expected).all()
print("Loaded in another process: bitwise the same predictions.")
"""
print("Loading it in another process ...", flush=True)
subprocess.run([sys.executable, "-c", elsewhere, OUTPUTS / "model.pkl"], check=True)

# %%
# Accuracy against learning rate
# ------------------------------

figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
axes.axvspan(
    table["lr"][rescued].min() / 3,
    RATES[-1] * 3,
    color="0.94",
    label="the guard rescued steps",
)
axes.plot("lr", "guarded", "o-", data=table, color="#0b5394", label="guarded net")
axes.plot("lr", "plain", "s--", data=table, color="#b2560d", ms=5, label="plain net")
axes.plot(
    "lr",
    "plain",
    "kx",
    data=table[table["folds in NaN"] > 0],
    markersize=10,
    markeredgewidth=2,
    label="plain net: weights are NaN",
)
axes.set(
    xscale="log",
    xlim=(RATES[0] / 3, RATES[-1] * 3),
    ylim=(0.3, 1.02),
    xlabel="learning rate",
    ylabel="accuracy, mean of 3 folds",
    title="The same skorch net, plain and guarded",
)
axes.grid(alpha=0.3)
axes.legend(loc="lower left", fontsize=9)
figure.savefig(OUTPUTS / "quickstart.png", dpi=110)

same = table[~rescued]
assert (same["plain"] == same["guarded"]).all()
print(
    f"Plot: {OUTPUTS / 'quickstart.png'}\n\n"
    f"Up to a learning rate of {same['lr'].max():g} no step failed, and both nets have "
    "the same scores.\n"
    f"Above it the plain net falls to {table['plain'].min():.2f}, with NaN "
    f"weights from {table['lr'][table['folds in NaN'] > 0].min():g} on, while the "
    f"guarded net stays at {table['guarded'][rescued].min():.2f} or better."
)
