"""
Calibrated probabilities
========================

Networks that train for too long become overconfident. On a messy table of loans, the
usual recipe has a worse log-loss than the share of defaults as a constant prediction.
Of the events that ``tabular_pipeline`` predicts with 90 %, about 90 % happen.
"""

# %%
# Loans, with missing values and a sentinel
# -----------------------------------------

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.calibration import calibration_curve
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import train_test_split

from sknan import StableNetClassifier, tabular_pipeline
from sknan.estimators import default_network

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")

rng = np.random.default_rng(0)
n_rows = 5000
loans = pd.DataFrame(
    {
        "income": rng.lognormal(10.3, 0.7, n_rows),
        "debt": rng.gamma(2.0, 6000.0, n_rows),
        "age": rng.integers(18, 80, n_rows).astype(float),
        "years employed": rng.exponential(6.0, n_rows),
        "score": rng.normal(600, 80, n_rows),
        "purpose": rng.choice(["car", "house", "tour", "study"], n_rows),
        "town": rng.choice([f"town {i}" for i in range(25)], n_rows),
    }
)
odds = (
    0.9 * np.log1p(loans["debt"] / loans["income"])
    - 0.02 * (loans["score"] - 600)
    - 0.08 * loans["years employed"]
    + 0.8 * (loans["purpose"] == "tour")
    + 0.7 * np.sin(loans["age"] / 8)
    - 0.6
)
defaults = rng.random(n_rows) < 1 / (1 + np.exp(-odds))

loans = loans.mask(rng.random(loans.shape) < 0.08)
loans.loc[rng.random(n_rows) < 0.06, "years employed"] = -999  # "not known"

X_train, X_test, y_train, y_test = train_test_split(
    loans, defaults, test_size=0.5, random_state=0, stratify=defaults
)

# %%
# The usual recipe and the pipeline
# ---------------------------------
# Both use the same preparation; only the network at the end differs.

usual = StableNetClassifier(
    lr_schedule="constant", max_epochs=50, early_stopping=False, random_state=0
)
models = {
    "the usual network": tabular_pipeline(usual),
    "tabular_pipeline": tabular_pipeline("classifier"),
    "share of defaults": DummyClassifier(strategy="prior"),
}
models["tabular_pipeline"].set_params(net__random_state=0)

probabilities = {
    name: model.fit(X_train, y_train).predict_proba(X_test)[:, 1]
    for name, model in models.items()
}
losses = {name: log_loss(y_test, p) for name, p in probabilities.items()}
for name, p in probabilities.items():
    print(
        f"{name:18}  log-loss {losses[name]:.3f}  "
        f"ROC-AUC {roc_auc_score(y_test, p):.3f}"
    )

# %%
# Reliability
# -----------
# The test rows are sorted by predicted probability, and each point contains a twelfth
# of them. On the diagonal, the prediction equals the observed frequency.


def draw_reliability(title, curves):
    """Draw labels, line styles, colors and probabilities of the test rows."""
    figure, axes = plt.subplots(figsize=(6.0, 5.0), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for label, line, color, p in curves:
        observed, predicted = calibration_curve(
            y_test, p, n_bins=12, strategy="quantile"
        )
        label = f"{label}, log-loss {log_loss(y_test, p):.3f}"
        axes.plot(predicted, observed, line, color=color, label=label)
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="predicted probability of default",
        ylabel="observed frequency of default",
        title=title,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=9)
    return figure


figure = draw_reliability(
    "Predicted probabilities agree with frequencies",
    [
        (name, line, color, probabilities[name])
        for name, line, color in (
            ("the usual network", "s--", "#b2560d"),
            ("tabular_pipeline", "o-", "#0b5394"),
        )
    ],
)
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "calibrated_probabilities.png", dpi=150)
print(f"Plot: {OUTPUTS / 'calibrated_probabilities.png'}")

# %%
# A loss that makes networks cautious, before and after calibration
# -----------------------------------------------------------------
# A focal loss counts rows that are predicted well for less, so that its probabilities
# are too close to one half. ``calibration="temperature"`` corrects them by one number,
# which is fitted on the rows that the networks have held out.

focal = tabular_pipeline("classifier", random_state=0).set_params(
    net__estimator=default_network("classifier").set_params(criterion="focal"),
    net__calibration="temperature",
)
after = focal.fit(X_train, y_train).predict_proba(X_test)[:, 1]
prepared = focal[:-1].transform(X_test)
networks = focal[-1].estimators_
before = np.mean([net.predict_proba(prepared)[:, 1] for net in networks], axis=0)
print(f"temperature {focal[-1].temperature_:.2f}")

figure = draw_reliability(
    "Focal loss, calibrated on held-out rows",
    [
        ("before calibration", "s--", "#b2560d", before),
        ("after calibration", "o-", "#0b5394", after),
    ],
)
figure.savefig(OUTPUTS / "temperature.png", dpi=150)
print(f"Plot: {OUTPUTS / 'temperature.png'}")
