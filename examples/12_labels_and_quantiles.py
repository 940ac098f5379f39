"""
Several labels, several quantiles
=================================

A digit is even or odd, and prime or not, and may have a closed loop. One network learns
these labels together. Another one predicts seven quantiles of the progress of a
disease. They cannot cross; those of separate networks do in some rows.
"""

# %%
# Several labels of a row
# -----------------------
#
# ``y`` has a column of 0 and 1 for each label.

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.datasets import load_diabetes, load_digits
from sklearn.metrics import d2_pinball_score, f1_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from sknan import (
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")

images, digits = load_digits(return_X_y=True)
labels = pd.DataFrame(
    {
        "even": digits % 2 == 0,
        "prime": np.isin(digits, [2, 3, 5, 7]),
        "above 4": digits > 4,
        "closed loop": np.isin(digits, [0, 4, 6, 8, 9]),
    }
)
X_train, X_test, y_train, y_test, _, digits_test = train_test_split(
    images, labels, digits, random_state=0, stratify=digits
)
tagger = make_pipeline(
    SafeScaler(),
    StableNetClassifier(class_weight="balanced", max_epochs=30, random_state=0),
)
tagger.fit(X_train, y_train)

# %%
# ``score`` is the share of rows whose labels are all correct. ``f1_score`` is computed
# for each label.

f1 = f1_score(y_test, tagger.predict(X_test), average=None)
probabilities = tagger.predict_proba(X_test)
all_correct = tagger.score(X_test, y_test)
print(f"all four labels are correct for {all_correct:.1%} of the test images")
print("F1:", dict(zip(labels, f1.round(3).tolist(), strict=True)))

# %%
# Several quantiles of a target
# -----------------------------
#
# One network predicts all quantiles. For comparison, another one is trained for each
# of the quantiles.

X, y = load_diabetes(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
levels = [0.05, 0.15, 0.25, 0.5, 0.75, 0.85, 0.95]


def fitted(quantile):
    network = StableNetRegressor(
        criterion="quantile",
        criterion__quantile=quantile,
        module__dropout=0.2,
        max_epochs=40,
        random_state=0,
    )
    return make_pipeline(SafeScaler(), network).fit(X_train, y_train)


quantiles = fitted(levels).predict(X_test)
separate = np.column_stack([fitted(q).predict(X_test) for q in levels])


def crossing(predicted):
    return (np.diff(predicted) < 0).any(axis=1).mean()


print(f"quantiles cross in {crossing(quantiles):.0%} of the test rows,")
print(f"those of separate networks in {crossing(separate):.0%}")

# %%
# The pinball loss measures each quantile. D2 is the share of it that is avoided, of
# the loss of the same quantile of all targets. The share of targets below a quantile
# should be its level.

scores = pd.DataFrame(
    {
        "below": [(y_test <= quantiles[:, i]).mean() for i in range(len(levels))],
        "D2, one network": [
            d2_pinball_score(y_test, quantiles[:, i], alpha=q)
            for i, q in enumerate(levels)
        ],
        "D2, separate": [
            d2_pinball_score(y_test, separate[:, i], alpha=q)
            for i, q in enumerate(levels)
        ],
    },
    index=levels,
)
print(scores.round(2))
assert crossing(quantiles) == 0

# %%
# Pictures of both
# ----------------
#
# Left: the mean probability of each label for the images of each digit. Right: targets
# and quantiles of the test rows, in the order of their medians.

shares = pd.DataFrame(probabilities, columns=labels.columns).groupby(digits_test).mean()
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
left.imshow(shares.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
for digit in range(10):
    for number, label in enumerate(shares):
        share = shares.loc[digit, label]
        color = "white" if share > 0.5 else "black"
        left.text(digit, number, f"{share:.2f}", ha="center", va="center", color=color)
left.set(
    xticks=range(10),
    yticks=range(4),
    yticklabels=shares.columns,
    xlabel="digit in the image",
    title=f"Mean probability of each label, {all_correct:.0%} all correct",
)

order = np.argsort(quantiles[:, 3])
ranks = np.arange(len(order))
low, _, lower, median, upper, _, high = quantiles[order].T
blue = "#0b5394"
right.fill_between(ranks, low, high, color=blue, alpha=0.15, label="5 % to 95 %")
right.fill_between(ranks, lower, upper, color=blue, alpha=0.3, label="25 % to 75 %")
right.plot(ranks, median, color=blue, label="median")
right.plot(ranks, y_test[order], ".", color="#b2560d", label="target")
right.set(
    xlabel="test row, in the order of the predicted median",
    ylabel="progress of the disease",
    title="Quantiles of one network, which never cross",
)
right.legend(loc="upper left", fontsize=9)
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "12_labels_and_quantiles.png", dpi=120)
print(f"Plot: {OUTPUTS / '12_labels_and_quantiles.png'}")
