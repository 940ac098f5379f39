"""
What each preparation step is worth
===================================

Each step of ``tabular_pipeline`` is omitted or replaced in turn, on a table of known
structure. Categories and dates are worth most, indicators of missing values come next.
Sentinels that are taken for numbers do little harm, because ``SafeScaler``
bounds outliers. Without a scaling step, the network standardizes the columns that are
in raw units itself.
"""

# %%
# A table in which every step matters
# -----------------------------------

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.model_selection import KFold, cross_val_score
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

from sknan import StableNetRegressor, tabular_pipeline

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUTS = Path("outputs")

rng = np.random.default_rng(0)
n_rows = 2000
income = rng.lognormal(10, 0.6, n_rows)
years = rng.integers(0, 40, n_rows)
start = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 2000, n_rows), "D")
town = rng.integers(0, 40, n_rows)
undisclosed = rng.random(n_rows) < 0.15
y = (
    np.log(income)
    + 0.03 * years
    + 0.6 * np.sin(2 * np.pi * np.asarray(start.day_of_year) / 365)
    + rng.normal(0, 0.5, 40)[town]
    - 0.8 * undisclosed
    + rng.normal(0, 0.2, n_rows)
)

people = pd.DataFrame(
    {
        "income": income,
        "years": years,
        "since": start.strftime("%Y-%m-%d"),
        "town": [f"town {i}" for i in town],
        "noise": rng.normal(size=n_rows),
    }
)
# People who do not disclose their income differ from the others.
people.loc[undisclosed, "income"] = np.nan
people.loc[rng.random(n_rows) < 0.1, "years"] = -999
people.loc[rng.choice(n_rows, 5), "noise"] = 1e12

# %%
# Each step omitted or replaced
# -----------------------------
# Steps and their parameters are set as in any pipeline. To save time, one network
# replaces the default ensemble.

net = StableNetRegressor(max_epochs=40, early_stopping=True, random_state=0)
whole = tabular_pipeline(net, random_state=0)
variants = {
    "the whole pipeline": {},
    "sentinels taken for numbers": {"clean__sentinels": None},
    "no missing-value indicators": {"impute__add_indicator": False},
    "zeros instead of medians": {"impute__strategy": "zero"},
    "StandardScaler instead of SafeScaler": {
        "scale": StandardScaler().set_output(transform="pandas")
    },
    "no scaling": {"scale": "passthrough"},
    "categories as numbers": {
        "encode__vectorizer__low_cardinality": OrdinalEncoder(
            handle_unknown="use_encoded_value", unknown_value=-1
        )
    },
    "dates omitted": {"encode__vectorizer__datetime": "drop"},
}
folds = KFold(4, shuffle=True, random_state=0)
scores = {}
for name, changes in variants.items():
    model = clone(whole).set_params(**changes)
    scores[name] = cross_val_score(model, people, y, cv=folds)
    print(f"{name:38} R2 {scores[name].mean():.3f}")

# %%
# Score without each step
# -----------------------

means = pd.Series({name: values.mean() for name, values in scores.items()})
best = means.pop("the whole pipeline")
means = means.sort_values()
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
shown = [f"{mean:.2f}" if mean > 0 else "below 0" for mean in means]
labels = [f"{name}, {mean}" for name, mean in zip(means.index, shown, strict=True)]
axes.barh(labels, means.clip(lower=0), color="#0b5394")
axes.axvline(best, color="#b2560d", label=f"the whole pipeline, {best:.2f}")
axes.set(
    xlim=(0, 1),
    xlabel="R2, mean of four folds",
    title="The pipeline with one step changed",
)
figure.legend(loc="outside lower right")
OUTPUTS.mkdir(exist_ok=True)
figure.savefig(OUTPUTS / "04_what_each_preparation_step_is_worth.png", dpi=120)
