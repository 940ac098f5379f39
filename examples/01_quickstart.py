"""
Any learning rate ends in a finite model: the main workflow in one script
=========================================================================

A table with missing values passes through an imputer, a scaler and a guarded network. A
grid search covers learning rates from sensible to absurd, and its results contain no
NaN. The best model is pickled, and predicts the same in another process.
"""

# %%
# The smallest case
# -----------------
# Three cities and the prices of eggs and milk in USD. Two prices are missing.

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
from sklearn.callback import ProgressBar
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from skorch import NeuralNetClassifier

from sknan import (
    DivergenceWarning,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    TabularMLP,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")

prices = pd.DataFrame(
    {"eggs": [2.5, np.nan, 4.6], "milk": [7.9, 8.9, np.nan]},
    index=["London", "Venice", "Prague"],
)
print("Prices in USD, two of them missing:")
print(prices.to_string(), "\n")
for strategy in ("zero", "mean", "median"):
    imputer = NaNImputer(strategy=strategy).set_output(transform="pandas")
    print(f"filled with {strategy}:")
    print(imputer.fit_transform(prices).to_string(), "\n")

# %%
# A real table, damaged
# ---------------------
# The breast cancer data of scikit-learn contain 30 measurements of 569 tumors. Of the
# cells, 10 % become missing, 1 % infinite, and 1 % too large by a factor of a million.

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
rng = np.random.default_rng(0)
damage = rng.random(X.shape)
X = X.mask(damage < 0.12, X * 1e6).mask(damage < 0.11, np.inf).mask(damage < 0.10)
print(
    f"Breast cancer: {X.shape[0]} rows, {X.shape[1]} columns, "
    f"{int(X.isna().sum().sum())} cells missing, {int(np.isinf(X).sum().sum())} "
    "infinite.\n"
)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.25, stratify=y, random_state=0
)

# %%
# A search over ten powers of ten
# -------------------------------
# The learning rates range from far too low to absurd. Besides the accuracy, the scorer
# returns how often training failed and was rescued, and the learning rate at its end.

RATES = [10.0**k for k in range(-5, 5)]
FOLDS = StratifiedKFold(3, shuffle=True, random_state=0)


def score(model, X, y):
    """Return the accuracy, the number of rescues, and the learning rate in the end."""
    net = model[-1]
    return {
        "accuracy": accuracy_score(y, model.predict(X)),
        "recoveries": len(net.nonfinite_reports_),
        "effective_lr": net.effective_lr_,
    }


def best_untouched(results):
    """Return the best candidate that trained at its learning rate, without a rescue."""
    untouched = results["mean_test_recoveries"] == 0
    return int(np.where(untouched, results["mean_test_accuracy"], -np.inf).argmax())


def search(net, scoring, refit):
    """Search over the same grid and folds with the same preparation for any network."""
    pipeline = Pipeline(
        [
            ("impute", NaNImputer(add_indicator=True, dtype=np.float32)),
            ("scale", SafeScaler()),
            ("net", net),
        ]
    )
    grid = GridSearchCV(
        pipeline,
        {"net__lr": RATES},
        scoring=scoring,
        refit=refit,
        cv=FOLDS,
    )
    grid.set_callbacks(ProgressBar(max_propagation_depth=0))
    start = time.perf_counter()
    grid.fit(X_train, y_train)
    seconds = time.perf_counter() - start
    print(f"{len(RATES)} learning rates x 3 folds in {seconds:.0f} s\n")
    return grid


# Each rescue raises a warning. The table below summarizes them.
warnings.simplefilter("ignore", DivergenceWarning)
print("Searching over guarded networks ...")
guarded = search(
    StableNetClassifier(max_epochs=20, random_state=0),
    scoring=score,
    refit=best_untouched,
)

# %%
# The same grid with a plain skorch net
# -------------------------------------
# Network, optimizer, number of epochs and preparation are the same. There is no guard,
# no gradient clipping and no learning-rate schedule.


def score_plain(model, X, y):
    """Return the accuracy, and 1 if some weight is not finite."""
    weights = torch.cat([p.detach().flatten() for p in model[-1].module_.parameters()])
    return {
        "accuracy": accuracy_score(y, model.predict(X)),
        "nan_weights": float(not torch.isfinite(weights).all()),
    }


class SeededMLP(TabularMLP):
    """A network with the same initial weights for each candidate and fold."""

    def __init__(self):
        torch.manual_seed(0)
        n_columns = NaNImputer(add_indicator=True).fit_transform(X_train).shape[1]
        super().__init__(n_features_in=n_columns, n_outputs=2)


print("Searching over plain skorch nets ...")
plain = search(
    NeuralNetClassifier(
        SeededMLP,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        max_epochs=20,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    ),
    scoring=score_plain,
    refit="accuracy",
)

# %%
# Results for each learning rate
# ------------------------------
# A diverged plain net predicts one class for every row. Its accuracy looks like that of
# a weak model. A rescued network reports the rescue and its final learning rate.

table = pd.DataFrame(
    {
        "lr": RATES,
        "sknan": guarded.cv_results_["mean_test_accuracy"],
        "rescues": guarded.cv_results_["mean_test_recoveries"],
        "effective lr": guarded.cv_results_["mean_test_effective_lr"],
        "skorch": plain.cv_results_["mean_test_accuracy"],
        "folds in NaN": 3 * plain.cv_results_["mean_test_nan_weights"],
    }
)
print(
    table.to_string(
        index=False,
        formatters={
            "lr": "{:.0e}".format,
            "sknan": "{:.3f}".format,
            "rescues": "{:.1f}".format,
            "effective lr": "{:.2g}".format,
            "skorch": "{:.3f}".format,
            "folds in NaN": "{:.0f}".format,
        },
    )
)
assert np.isfinite(table["sknan"]).all()
best = guarded.best_params_["net__lr"]
best_score = table["sknan"][guarded.best_index_]
test_score = accuracy_score(y_test, guarded.predict(X_test))
print(
    f"\nThe best learning rate without a rescue is {best:g}: accuracy {best_score:.3f} "
    f"in cross-validation, {test_score:.3f} on the test rows.\n"
)

# %%
# The best model in another process
# ---------------------------------

OUTPUTS.mkdir(exist_ok=True)
(OUTPUTS / "best_model.pkl").write_bytes(pickle.dumps(guarded.best_estimator_))
X_test.to_pickle(OUTPUTS / "X_test.pkl")
np.save(OUTPUTS / "expected.npy", guarded.predict_proba(X_test))
elsewhere = """
import pickle, sys
from pathlib import Path
import numpy as np, pandas as pd
folder = Path(sys.argv[1])
model = pickle.loads((folder / "best_model.pkl").read_bytes())
found = model.predict_proba(pd.read_pickle(folder / "X_test.pkl"))
assert np.array_equal(found, np.load(folder / "expected.npy"))
print(f"Loaded in another process: {len(found)} bitwise identical predictions.")
"""
subprocess.run([sys.executable, "-c", elsewhere, str(OUTPUTS)], check=True)

# %%
# Accuracy against learning rate
# ------------------------------

figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
is_rescued = table["rescues"] > 0
has_nan = table["folds in NaN"] > 0
axes.axvspan(
    table["lr"][is_rescued].min() / 3, RATES[-1] * 3, color="0.93", label="rescued"
)
axes.plot("lr", "skorch", "s--", data=table, color="#b2560d", label="plain skorch")
axes.plot("lr", "sknan", "o-", data=table, color="#0b5394", label="sknan")
axes.plot(
    table["lr"][has_nan],
    table["skorch"][has_nan],
    "x",
    color="black",
    markersize=10,
    markeredgewidth=2,
    label="weights are NaN in some fold",
)
axes.plot(best, best_score, "*", color="#0b5394", markersize=16, label="best")
axes.set(
    xscale="log",
    xlim=(RATES[0] / 3, RATES[-1] * 3),
    xlabel="learning rate",
    ylabel="accuracy, mean of 3 folds",
    title="Any learning rate ends in a finite model",
)
axes.grid(alpha=0.3)
axes.legend(loc="lower center", fontsize=9)
figure.savefig(OUTPUTS / "quickstart.png", dpi=110)
print(f"Plot: {OUTPUTS / 'quickstart.png'}")
