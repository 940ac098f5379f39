"""
Find the learning rate
======================

A grid search over learning rates selects an absurd one: its trainings were rescued and
continued at a learning rate more than ten thousand times lower, as the plot shows.
``find_learning_rate`` determines which learning rates are stable and learn best,
without a search.
"""

# %%
# The learning-rate range test
# ----------------------------

import time
import warnings
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from sknan import (
    BatchedGridSearchCV,
    DivergenceWarning,
    LearningRateDisplay,
    SafeScaler,
    StableNetClassifier,
    find_learning_rate,
)

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")
OUTPUTS.mkdir(exist_ok=True)

X, y = load_breast_cancer(return_X_y=True)
model = make_pipeline(SafeScaler(), StableNetClassifier(max_epochs=20, random_state=0))

start = time.perf_counter()
found = find_learning_rate(model, X, y)
seconds_of_test = time.perf_counter() - start
print(found)

# %%
# A search over a wider range
# ---------------------------

start = time.perf_counter()
rates = {"stablenetclassifier__lr": [10.0**k for k in range(-5, 4)]}
with warnings.catch_warnings():
    # The plot below shows the content of the warning.
    warnings.simplefilter("ignore", DivergenceWarning)
    search = BatchedGridSearchCV(model, rates, cv=3).fit(X, y)
seconds_of_search = time.perf_counter() - start

results = pd.DataFrame(search.cv_results_)
columns = ["mean_test_score", "n_recoveries", "effective_lr"]
print(results[["param_stablenetclassifier__lr", *columns]].to_string(index=False))

best = results.loc[search.best_index_]
model.set_params(stablenetclassifier__lr=found.suggestion)
suggested = cross_val_score(model, X, y, cv=3).mean()
print(
    f"\nThe search took {seconds_of_search:.1f} s and selects "
    f"{best['param_stablenetclassifier__lr']:g}, at which training was rescued "
    f"{best['n_recoveries']} times and continued at {best['effective_lr']:.2g}: "
    f"accuracy {best['mean_test_score']:.3f}.\nThe range test took "
    f"{seconds_of_test:.1f} s and suggests {found.suggestion:g}: accuracy "
    f"{suggested:.3f}, and no step failed."
)

# %%
# Both plots
# ----------
# The upper plot shows the loss at the end of the short trainings of the range test, the
# lower one the scores of the search. A thin line connects each learning rate that was
# rescued with the one at which training continued.

figure, axes = plt.subplots(2, figsize=(7.5, 8), layout="constrained")
LearningRateDisplay.from_range(found, ax=axes[0])
LearningRateDisplay.from_search(search, ax=axes[1])
figure.savefig(OUTPUTS / "07_finding_the_learning_rate.png", dpi=120)
