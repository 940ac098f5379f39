"""
What a rescued training looks like
==================================

The same network trains at a usual learning rate and at one that is ten million times
higher. Both trainings end with a useful model. The plot shows which steps failed, the
cause, and the learning rate after the rescue. The HTML report adds facts on the data
and suggestions.
"""

# %%
# Two trainings
# -------------

import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sknan import (
    DivergenceWarning,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    TrainingDisplay,
    report,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")
OUTPUTS.mkdir(exist_ok=True)

X, y = load_breast_cancer(return_X_y=True, as_frame=True)
X = X.mask(np.random.default_rng(0).random(X.shape) < 0.1)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.3, random_state=0, stratify=y
)

models = {}
for name, lr in [("usual", 1e-3), ("absurd", 1e4)]:
    net = StableNetClassifier(
        lr=lr, max_epochs=60, batch_size=32, early_stopping=True, random_state=0
    )
    model = make_pipeline(NaNImputer(), SafeScaler(), net)
    with warnings.catch_warnings():
        # The plot below shows the content of the warning.
        warnings.simplefilter("ignore", DivergenceWarning)
        models[name] = model.fit(X_train, y_train)
    reports = model[-1].nonfinite_reports_
    print(
        f"lr={lr:g}: accuracy {model.score(X_test, y_test):.3f} on the test rows, "
        f"failed steps: {len(reports)}, final learning rate "
        f"{model[-1].effective_lr_:.2g}"
    )

# %%
# The plot
# --------
# The panels show the loss, the learning rate, and the gradient norm with the clipping
# threshold. A dotted line marks an epoch with a failed step. The marker on it stands
# for the cause.

figure, axes = plt.subplots(3, 2, figsize=(11, 6), layout="constrained", sharex="col")
for column, model in zip(axes.T, models.values(), strict=True):
    TrainingDisplay.from_estimator(model, ax=column)
figure.suptitle("A usual learning rate (left) and an absurd one, rescued (right)")
figure.savefig(OUTPUTS / "06_what_a_training_looks_like.png", dpi=120)

# %%
# The HTML report
# ---------------
# The report is one file that opens in any browser, also without a network connection.

page = report(models["absurd"], X_test, y_test)
page.save(OUTPUTS / "06_report.html")
print(page)
